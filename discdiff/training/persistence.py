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

from discdiff.config import read_json, to_dict
from discdiff.training import states
from discdiff.training.checkpoint import CheckpointError, checkpoints, latest_checkpoint, verify, write_checkpoint
from discdiff.training.lock import FolderLock

if TYPE_CHECKING:
    from discdiff.training.trainer import DiffusionTrainer

_RECIPE: tuple[str, ...] = (
    "optimizer", "learning_rate", "weight_decay", "betas", "schedule", "schedule_by", "warmup", "decay", "final", "clip",
    "ema",
)  # fmt: skip
_ARGUMENTS: tuple[str, ...] = (
    "optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "max_grad_norm",
)  # fmt: skip


def identity(trainer: DiffusionTrainer) -> dict[str, Any]:
    """What must not change when a run goes on: it decides which rows and which noise come next."""
    layout = _digest(to_dict(trainer.layout))
    return {
        "seed": trainer.knobs.seed,
        "batch_size": trainer.whole,
        "rows_of_an_epoch": trainer.epoch_rows,
        "layout": layout,
        "rows_digest": trainer.rows_digest,
    }


def settings(trainer: DiffusionTrainer) -> dict[str, Any]:
    """What training.json says."""
    said = {"settings": to_dict(trainer.knobs), "layout": to_dict(trainer.layout)}
    if trainer.settings is None:
        said["arguments"] = json.loads(trainer.args.to_json_string())
    return said


def recipe(said: dict[str, Any]) -> dict[str, Any]:
    """Of `settings`, what the steps go by: half of it lies in the stored optimizer, so that none of it may change."""
    if "arguments" in said:
        kind, names, values = "TrainingArguments", _ARGUMENTS, said["arguments"]
    else:
        kind, names, values = "TrainingSettings", _RECIPE, said["settings"]
    return {"args": kind, **{name: values[name] for name in names if name in values}}


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
    training = settings(trainer)
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

    Raises CheckpointError if it is damaged, of another run or of other settings, if all there are are damaged, or if
    newer ones would be in the way of this run's.
    """

    def look() -> tuple[str | None, dict[str, Any]]:
        folder = Path(trainer.args.output_dir)
        path = latest_checkpoint(folder) if resume == "auto" else None if resume is None else Path(resume)
        if resume == "auto" and path is None and (damaged := checkpoints(folder)):
            raise CheckpointError(
                f"{folder} holds {len(damaged)} checkpoints and none is complete, the newest is {damaged[0].name}: "
                f"remove them to start anew, or give another output_dir"
            )
        manifest = {} if path is None else verify(path)
        step = manifest.get("step", 0)
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
        if path is not None:
            _check_same(trainer, path, manifest.get("run", {}))
        return None if path is None else str(path), manifest

    return _first_rank(trainer.args, look)


def _check_same(trainer: DiffusionTrainer, path: Path, run: dict[str, Any]) -> None:
    """Raise CheckpointError unless the run, its settings and its clock are those of the checkpoint."""
    try:
        old, state = recipe(read_json(path / "training.json")), read_json(path / "scheduler.json")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer: {error}") from error
    own, new = identity(trainer), recipe(settings(trainer))
    if None in (own["rows_digest"], run.get("rows_digest")):  # rows that cannot be told, or an older checkpoint
        del own["rows_digest"]
    if old.get("ema") == 0:
        old["ema"] = new.get("ema")  # an average may begin later
    pairs = [(name, run.get(name), value) for name, value in own.items()]
    pairs += [(name, old[name], new.get(name)) for name in old]
    for name, stored, value in pairs:
        if stored != value:
            raise CheckpointError(
                f"{path} was written with {name} {stored!r}, this run has {value!r}: "
                f"go on with the same, or start in another output_dir"
            )
    if ("memory" in state) != (trainer.memory is not None):
        had, has = ("a", "none") if "memory" in state else ("no", "one")
        raise CheckpointError(
            f"{path} was written with {had} clock that learns (memory), this run's objective has {has}: "
            f"go on with the same clock, or start in another output_dir"
        )


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
