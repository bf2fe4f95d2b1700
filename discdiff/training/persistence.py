"""What a DiffusionTrainer writes into a checkpoint, and how it finds the one to go on from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import safetensors
import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers.trainer_callback import ExportableState

from discdiff.config import to_dict
from discdiff.training import states
from discdiff.training.checkpoint import CheckpointError, checkpoints, latest_checkpoint, verify, write_checkpoint
from discdiff.training.lock import FolderLock

if TYPE_CHECKING:
    from discdiff.training.trainer import DiffusionTrainer


def identity(trainer: DiffusionTrainer) -> dict[str, Any]:
    """What must not change when a run goes on: it decides which rows and which noise come next."""
    layout = _digest(to_dict(trainer.layout))
    return {
        "seed": trainer.knobs.seed,
        "batch_size": trainer.whole,
        "rows_of_an_epoch": trainer.epoch_rows,
        "layout": layout,
    }


@contextlib.contextmanager
def locked(trainer: DiffusionTrainer) -> Iterator[None]:
    """Within, no other process trains into the output folder. Raises OSError on every rank where one does already."""
    lock = FolderLock(trainer.args.output_dir)
    _first_rank(trainer.args, lock.take)
    try:
        yield
    finally:
        lock.release()


def save(trainer: DiffusionTrainer) -> None:
    """Write a checkpoint: all ranks gather what is sharded, the first alone writes, all hear whether it worked."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    tensors: dict[str, dict[str, Tensor]] = {}
    weights = states.weights(model)
    tensors["optimizer"], optimizer = states.optimizer_state(trainer.bare_optimizer, trainer.model)
    random = states.random_state(args.device)
    tensors["rng_state"] = {name: trainer.accelerator.gather(x.to(args.device)).cpu() for name, x in random.items()}
    if trainer.ema is not None:
        tensors["ema"] = {name: states.whole(x) for name, x in trainer.ema.mean.items()}
    training = {"settings": to_dict(trainer.knobs), "layout": to_dict(trainer.layout)}
    if trainer.settings is None:
        training["arguments"] = json.loads(args.to_json_string())
    scheduler = {"scheduler": trainer.lr_scheduler.state_dict(), "seconds": trainer.elapsed()}
    scheduler |= {} if trainer.memory is None else {"memory": trainer.memory.state()}

    def write(folder: Path) -> None:
        states.save_weights(model, weights, folder, original_format=False)
        states.save_states(folder, tensors, {"optimizer": optimizer, "scheduler": scheduler, "training": training})
        for callback in (*trainer.callback_handler.callbacks, trainer.control):
            if isinstance(callback, ExportableState):
                trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
        trainer.state.save_to_json(str(folder / "trainer_state.json"))

    def write_all() -> None:
        size = sum(x.nbytes for named in (weights, *tensors.values()) for x in named.values())
        note = {
            "run": identity(trainer),
            "config": _digest(training),
            "world_size": args.world_size,
            "versions": versions(),
        }
        step, keep = trainer.state.global_step, trainer.knobs.keep
        write_checkpoint(args.output_dir, step, write, size=size, keep=keep, manifest=note)

    _first_rank(args, write_all)


def find(trainer: DiffusionTrainer, resume: str | Path | None) -> tuple[str | None, dict[str, Any]]:
    """The checkpoint to begin from (None, a path, or "auto": the newest complete one if any) and its manifest.

    Raises CheckpointError if it is damaged or of another run, or if newer ones would be in the way of this run's.
    """

    def look() -> tuple[str | None, dict[str, Any]]:
        folder = Path(trainer.args.output_dir)
        path = latest_checkpoint(folder) if resume == "auto" else None if resume is None else Path(resume)
        manifest = {} if path is None else verify(path)
        step, own = manifest.get("step", 0), identity(trainer)
        newer = [x for x in checkpoints(folder) if int(x.name.split("-")[1]) > step]
        for one in newer if resume == "auto" else ():
            one.rename(
                one.with_name(f"damaged-{one.name}-{time.time_ns()}")
            )  # skipped above; it must not count as kept
        if newer and resume != "auto" and any(_complete(one) for one in newer):
            raise CheckpointError(
                f"{newer[0]} is newer than step {step} where this run would begin: "
                f'resume="auto" goes on from the newest, another output_dir starts anew'
            )
        for name, value in own.items() if manifest else ():
            stored = manifest.get("run", {}).get(name)
            if stored != value:
                raise CheckpointError(
                    f"{path} was written with {name} {stored!r}, this run has {value!r}: "
                    f"go on with the same, or start in another output_dir"
                )
        return None if path is None else str(path), manifest

    return _first_rank(trainer.args, look)


def versions() -> dict[str, str]:
    """Of the libraries that decide the numbers."""
    named = {m.__name__: str(m.__version__) for m in (torch, transformers, accelerate, safetensors)}
    return {"python": platform.python_version(), **named}


def _first_rank(args: Any, act: Any) -> Any:
    """What `act` gives on the first rank, on every rank; its ValueError or OSError is raised on every rank."""
    result: Any = None
    error: Exception | None = None
    if args.process_index == 0:
        try:
            result = act()
        except (ValueError, OSError) as caught:
            error = caught
    if args.world_size > 1:
        told = [result, None if error is None else (isinstance(error, OSError), str(error))]
        broadcast_object_list(told)
        result = told[0]
        if told[1] is not None and error is None:
            error = OSError(told[1][1]) if told[1][0] else CheckpointError(told[1][1])
    if error is not None:
        raise error
    return result


def _complete(path: Path) -> bool:
    try:
        verify(path, hashes=False)
    except CheckpointError:
        return False
    return True


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
