"""What a run refuses: arguments that break its promises, too few ranks or no sharding, losses that are not finite."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "fp16": ((True,), "its loss scaling lives on gradients that overflow, which stop this trainer; use bf16"),
    "deepspeed": ((), "its engine steps before gradients can be checked and it saves pickles; use DDP or fsdp_config"),
    "parallelism_config": ((), "rows are shared out among data-parallel ranks only"),
    "push_to_hub": ((True,), "upload with model.push_to_hub after training"),
    "load_best_model_at_end": ((True,), "the last and the averaged (EMA) weights are kept"),
    "auto_find_batch_size": ((True,), "a batch size found by trial makes the run depend on the machine"),
    "save_only_model": ((True,), "such a checkpoint cannot be resumed; use save_model"),
    "enable_jit_checkpoint": ((True,), "SIGTERM is handled already"),
    "save_strategy": (("epoch", "best"), "use save_strategy='steps' and save_steps"),
    "eval_strategy": (("epoch",), "use eval_strategy='steps' and eval_steps"),
    "logging_strategy": (("epoch",), "use logging_strategy='steps' and logging_steps"),
    "train_sampling_strategy": (("group_by_length", "batch_rebalance", "sequential"), "rows come in the keyed order"),
}


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite, found before the optimizer step; the weights are still those of the step before.

    step: number of the step that was not taken; culprit: "loss", or the name of a parameter; rows: ids of the batch.
    """

    def __init__(self, message: str, step: int, culprit: str, rows: list[int]) -> None:
        super().__init__(message)
        self.step, self.culprit, self.rows = step, culprit, rows


def blame(model: nn.Module, losses: Sequence[tuple[Tensor, Tensor]], step: int) -> NonFiniteError:
    """The error that names the first loss, else the first gradient, that is not finite; `losses` has (loss, row ids)."""
    for loss, ids in losses:
        if not math.isfinite(float(loss)):
            rows = ids.tolist()
            text = f"step {step}: the loss is {float(loss)} on the rows with ids {_short(rows)}; no optimizer step was taken"
            return NonFiniteError(text, step, "loss", rows)
    rows = [row for _, ids in losses for row in ids.tolist()]
    for name, p in model.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(getattr(p.grad, "_local_tensor", p.grad)).all()):
            name = name.removeprefix("module.")
            text = f"step {step}: the gradient of {name} is not finite, the losses are, on the rows with ids {_short(rows)}"
            return NonFiniteError(text + "; no optimizer step was taken", step, name, rows)
    text = f"step {step}: the gradient norm overflows, or another rank has a loss or gradient that is not finite"
    return NonFiniteError(text + "; no optimizer step was taken", step, "norm", rows)


def _short(rows: list[int], most: int = 32) -> str:
    return f"{rows[:most]}"[:-1] + (f", ... {len(rows) - most} more]" if len(rows) > most else "]")


def check_arguments(args: Any) -> None:
    """Raise ValueError for `TrainingArguments` this trainer cannot honour; set those that it replaces."""
    for name, (values, remedy) in _REFUSED.items():
        value = getattr(args, name, None)
        if value in values if values else value is not None:
            raise ValueError(f"{name} is {getattr(value, 'value', value)!r}: {remedy}")
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would run as DataParallel: start with torchrun --nproc-per-node {args.n_gpu}, "
            f"or choose one with CUDA_VISIBLE_DEVICES"
        )
    if args.fsdp and int((args.fsdp_config or {}).get("version", 2)) != 2:
        raise ValueError("fsdp_config has version 1: its flat parameters have no names to save under, use version 2")
    args.logging_nan_inf_filter = False  # a NaN stops the run
    args.remove_unused_columns = False  # the objective reads the items, not `model.forward`
    args.ignore_data_skip = True  # the sampler itself begins at the right place
    args.label_names = []


def check_reached(accelerator: Any, expected_world_size: int, args: Any) -> None:
    """Raise ValueError unless the asked number of ranks and the asked sharding were reached."""
    world = accelerator.num_processes
    asked = max(expected_world_size, int(os.environ.get("WORLD_SIZE", "1")))
    if world < asked or (expected_world_size and world != expected_world_size):
        raise ValueError(
            f"{world} ranks were reached, {expected_world_size or asked} asked: start with "
            f"torchrun --nproc-per-node N (accelerate launch --cpu on one machine stays at 1)"
        )
    kind = accelerator.distributed_type.value
    if (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true") and kind != "FSDP":
        raise ValueError(f"FSDP was asked, accelerate runs {kind}: it shards on accelerators only, started by torchrun")
