"""TrainingSettings: the knobs of a training run, and how they become `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from discdiff.config import checked

if TYPE_CHECKING:
    from transformers import TrainingArguments

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. `batch_size` counts the rows of one optimizer step over all ranks and accumulated parts, so that
    neither the number of ranks nor `accumulation` changes the run.

    optimizer: "adamw", or "muon" for the matrices of the model's blocks (Jordan et al. 2024) and AdamW for the rest, with
    the same learning rate. schedule: learning rate after `warmup` steps, "wsd" being warmup-stable-decay (Hu et al.
    2024, arXiv 2404.06395) with the last share `decay` of the run falling linearly; all end at `final` times the learning
    rate. schedule_by "seconds" follows the share of `max_seconds` that has passed: such a run is not repeatable bit for
    bit. max_seconds stops after that wall time, earlier parts of a resumed run included (0: no limit). clip: gradient
    norm (0: off). ema: decay of the averaged weights (0: off); with ema_eval they serve evaluation and `save_model`.
    bf16: autocast. compile: the model's blocks by `torch.compile`, equal ones once (on the CPU it needs a C++ compiler).
    drop_last leaves out the rows of an epoch that fill no whole batch; without it batches run on into the next epoch.
    save_every and eval_every 0: only at the end, never. expected_world_size: error if another number of ranks was
    reached (0: any). fsdp: shard parameters (FSDP2), an error where that is not reached. Raises ValueError for an
    impossible value.
    """

    seed: int = 0
    steps: int = 1000
    batch_size: int = 32
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    schedule_by: str = "steps"
    warmup: int = 0
    decay: float = 0.2
    final: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.0
    ema_eval: bool = True
    bf16: bool = False
    compile: bool = False
    drop_last: bool = True
    workers: int = 0
    max_seconds: float = 0.0
    save_every: int = 0
    keep: int = 2
    eval_every: int = 0
    eval_batch_size: int = 32
    eval_draws: int = 1
    log_every: int = 10
    report_to: tuple[str, ...] = ()
    progress: bool = True
    device: str = "auto"
    expected_world_size: int = 0
    fsdp: bool = False

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), _KINDS.get(str(f.type))
            fits = kind is None or (isinstance(value, kind) and (f.type == "bool" or not isinstance(value, bool)))
            checked(f.name, value, fits and value == value, f"give {'an' if f.type == 'int' else 'a'} {f.type}")
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(
            self, "report_to", (self.report_to,) if isinstance(self.report_to, str) else tuple(self.report_to)
        )
        for name in ("steps", "batch_size", "accumulation", "eval_batch_size", "eval_draws", "log_every"):
            checked(name, getattr(self, name), getattr(self, name) >= 1, "it must be at least 1")
        for name in ("warmup", "workers", "save_every", "eval_every", "expected_world_size", "weight_decay", "clip"):
            checked(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "it must be 0 or more")
        checked("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "it must be above 0")
        checked("max_seconds", self.max_seconds, 0 <= self.max_seconds < math.inf, "it must be 0 (no limit) or more")
        checked("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"choose from {', '.join(OPTIMIZERS)}")
        checked(
            "optimizer",
            self.optimizer,
            self.optimizer == "adamw" or not self.fsdp,
            "muon wants whole matrices, not fsdp",
        )
        checked("schedule", self.schedule, self.schedule in SCHEDULES, f"choose from {', '.join(SCHEDULES)}")
        by = self.schedule_by == "steps" or (self.schedule_by == "seconds" and self.max_seconds > 0)
        checked("schedule_by", self.schedule_by, by, 'choose "steps", or "seconds" together with max_seconds')
        checked("warmup", self.warmup, self.warmup <= self.steps, f"it must not exceed the {self.steps} steps")
        checked("decay", self.decay, 0 < self.decay <= 1, "it is a share of the run in (0, 1]")
        checked("final", self.final, 0 <= self.final <= 1, "it is a share of the learning rate in [0, 1]")
        betas = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        checked("betas", self.betas, betas, "give two numbers in [0, 1)")
        checked("ema", self.ema, 0 <= self.ema < 1, "it is a decay in [0, 1), such as 0.9999; 0 is off")
        checked("keep", self.keep, self.keep >= 2, "at least 2 checkpoints are kept, since the newest may be damaged")
        checked("device", self.device, self.device in ("auto", "cpu"), 'choose "auto" or "cpu"')
        parts = self.batch_size % self.accumulation == 0
        checked("batch_size", self.batch_size, parts, f"it must be a multiple of accumulation={self.accumulation}")

    def factor(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of the step (0 the first), as a share of `learning_rate`, after `seconds` of training."""
        if self.schedule_by == "seconds":
            done = seconds / self.max_seconds
        else:
            done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        done = min(max(done, 0.0), 1.0)
        shape = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "wsd": min(1.0, (1.0 - done) / self.decay),
        }[self.schedule]
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return warm * (self.final + (1.0 - self.final) * shape)

    def to_arguments(self, output_dir: str | Path) -> TrainingArguments:
        """The same as `TrainingArguments`, for the number of ranks this process was started with."""
        from transformers import TrainingArguments

        world = int(os.environ.get("WORLD_SIZE", "1"))
        rows = self.batch_size // self.accumulation
        checked(
            "batch_size", self.batch_size, rows % world == 0, f"its {rows} rows per part must divide by {world} ranks"
        )
        cuda = torch.cuda.is_available() and self.device == "auto"
        sharding = {"fsdp": True, "fsdp_config": {"version": 2}} if self.fsdp else {}
        return TrainingArguments(
            output_dir=str(output_dir),
            seed=self.seed,
            max_steps=self.steps,
            per_device_train_batch_size=rows // world,
            per_device_eval_batch_size=self.eval_batch_size,
            gradient_accumulation_steps=self.accumulation,
            learning_rate=self.learning_rate,
            lr_scheduler_type="constant",  # the trainer sets its own from `factor`
            weight_decay=self.weight_decay,
            adam_beta1=self.betas[0],
            adam_beta2=self.betas[1],
            max_grad_norm=self.clip,
            bf16=self.bf16,
            dataloader_num_workers=self.workers,
            dataloader_pin_memory=cuda,
            dataloader_persistent_workers=False,
            logging_steps=self.log_every,
            save_strategy="steps",
            save_steps=self.save_every or self.steps,
            save_total_limit=self.keep,
            eval_strategy="steps" if self.eval_every else "no",
            eval_steps=self.eval_every or None,
            report_to=list(self.report_to) or "none",
            disable_tqdm=not self.progress,
            use_cpu=not cuda,
            ddp_find_unused_parameters=False,
            **sharding,
        )


def settings_of(args: TrainingArguments) -> TrainingSettings:
    """What a `TrainingArguments` says, as settings; what it has no word for (EMA, draws, time limit) keeps its default."""
    return TrainingSettings(
        seed=args.seed if args.data_seed is None else args.data_seed,
        steps=args.max_steps,
        batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        accumulation=args.gradient_accumulation_steps,
        workers=args.dataloader_num_workers,
        keep=max(2, args.save_total_limit or 2**31),
        eval_batch_size=args.per_device_eval_batch_size,
    )
