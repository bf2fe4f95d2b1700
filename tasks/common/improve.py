"""What makes few steps of a trained model better, kept beside it: learned times, and an energy of whole rows."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from discdiff import distill
from discdiff.config import checked
from discdiff.energy import EnergyModel, LearnedEnergy
from discdiff.kernels import Ancestral
from discdiff.layout import Layout, TokenBatch
from discdiff.processes import Process
from discdiff.report.pictures import write_atomically
from discdiff.sampling import Grid
from discdiff.training import DiffusionTrainer, TrainingSettings
from discdiff.training.checkpoint import checkpoints
from discdiff.training.lock import FolderLock

T = TypeVar("T")
ENERGY, GRIDS, LEARNED = "energy", "grids", "learned"
BASE = "base.sha256"  # beside the checkpoints of an energy: of which weights it is one


@dataclass(frozen=True)
class Distillation:
    """steps: of the sampler to make; teacher_steps: of the run it follows, a multiple of steps unless the objective is kl.

    objective: "kl" (times by dynamic programming, ours), "normalised" (LSD, LSD+) or "paper"; learn: "" is what the
    objective is for, else some of rate, time, temperature, with commas between; scale: score or log_score; rows: sampled
    at a time, rounds: times over; name: of the grid, "" is OBJECTIVE_STEPS.
    """

    steps: int = 8
    teacher_steps: int = 48
    objective: str = "kl"
    learn: str = ""
    scale: str = "score"
    rows: int = 128
    rounds: int = 1
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        checked(
            "objective",
            self.objective,
            self.objective in distill.OBJECTIVES,
            f"choose from {', '.join(distill.OBJECTIVES)}",
        )
        checked("scale", self.scale, self.scale in distill.SCALES, f"choose from {', '.join(distill.SCALES)}")
        unknown = [name for name in self.learned or () if name not in distill.LEARNED]
        checked("learn", self.learn, not unknown, f"choose from {', '.join(distill.LEARNED)}")
        checked("rows", self.rows, self.rows >= 1, "at least 1")

    @property
    def learned(self) -> tuple[str, ...] | None:
        """What is learned, None for the objective's own choice."""
        return tuple(self.learn.split(",")) if self.learn else None


def learn_grid(denoiser: Any, process: Process, rows: TokenBatch, how: Distillation, folder: Path) -> Path:
    """The grid of a few-step sampler of `rows`, saved beside the model; what was gained is printed."""
    fitted = distill.fit(
        denoiser, Ancestral(process), rows, how.steps, how.teacher_steps, learn=how.learned, objective=how.objective,
        scale=how.scale, rounds=how.rounds, seed=how.seed, progress=True,
    )  # fmt: skip
    times = ", ".join(f"{t:.3f}" for t in fitted.grid.times)
    print(f"objective {fitted.untouched:.5g} -> {fitted.loss:.5g}; times {times}")
    return save_grid(folder, how.name or f"{how.objective}_{how.steps}", fitted.grid)


def learn_energy(
    objective: Any, model: Any, training: TrainingSettings, layout: Layout, train: Any, valid: Any, folder: Path
) -> Path:
    """An `EnergyModel` that begins as the denoiser `model`, trained by `NoiseContrastive` and saved beside it.

    Raises KeyboardInterrupt where a signal ended the training, which goes on when it is called again; checkpoints of an energy
    of other weights are removed, which is said.
    """
    begun, where = EnergyModel.from_denoiser(model), folder / f"{ENERGY}_training"
    trainer = DiffusionTrainer(begun, training, objective, layout, train, valid, output_dir=where)
    if trainer.is_world_process_zero():
        _keep_only(where, fingerprint(model))
    trainer.accelerator.wait_for_everyone()
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    found = trainer.evaluate()
    trainer.save_model(folder / ENERGY)
    print(f"contrastive loss on the validation rows: {found['eval_loss']:.4f} nats, {2 * 0.6931:.4f} without an energy")
    return folder / ENERGY


def fingerprint(model: Any) -> str:
    """SHA-256 of a network's weights, in their order."""
    found = hashlib.sha256()
    for x in model.state_dict().values():
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _keep_only(where: Path, base: str) -> None:
    """Remove checkpoints that began from other weights than `base`, or nobody knows from which."""
    with FolderLock(where):
        note = where / BASE
        held = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        if held != base and (stale := checkpoints(where)):
            print(f"{where}: its checkpoints are of an energy of other weights; it is learned anew", flush=True)
            for each in stale:
                shutil.rmtree(each)
            (where / "metrics.jsonl").unlink(missing_ok=True)
        write_atomically(note, f"{base}\n".encode())


def load_learned(folder: Path) -> LearnedEnergy:
    """The energy that `learn_energy` left beside a model, on the GPU where there is one."""
    model = EnergyModel.from_pretrained(folder / ENERGY)
    return LearnedEnergy(model.to("cuda" if torch.cuda.is_available() else "cpu").eval())


def save_grid(folder: Path, name: str, grid: Grid) -> Path:
    """Write the grid as JSON beside the model."""
    path = folder / GRIDS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(grid.to_json() + "\n", encoding="utf-8")
    return path


def grids_in(folder: Path) -> dict[str, Grid]:
    """All grids beside a model, by name."""
    return {name: Grid.load(path) for name, path in _files(folder).items()}


def load_grid(folder: Path, name: str) -> Grid | None:
    """The grid of that name, None for ""; no other one is read. Raises ValueError where there is none of it."""
    return Grid.load(chosen_grid(_files(folder), name)) if name else None


def chosen_grid(grids: Mapping[str, T], name: str) -> T:
    """Raises ValueError for a name that is not among them."""
    checked("grid", name, name in grids, f"there is {', '.join(grids) or 'none yet; distill makes one'}")
    return grids[name]


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((folder / GRIDS).glob("*.json"))}
