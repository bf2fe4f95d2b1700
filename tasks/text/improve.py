"""The commands `energy` and `distill`: what makes few steps of a trained model better, saved beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discdiff.cli import parse
from discdiff.config import checked
from discdiff.denoisers import denoiser_of
from discdiff.distill import LEARNED, OBJECTIVES, SCALES, fit
from discdiff.energy import EnergyModel, NoiseContrastive
from discdiff.kernels import Ancestral
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.text import rows as text_rows
from tasks.text.extras import ENERGY, save_grid
from tasks.text.folder import Trained, check_text, load_model, load_task
from tasks.text.training import objective_for


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
        checked("objective", self.objective, self.objective in OBJECTIVES, f"choose from {', '.join(OBJECTIVES)}")
        checked("scale", self.scale, self.scale in SCALES, f"choose from {', '.join(SCALES)}")
        unknown = [name for name in self.learned or () if name not in LEARNED]
        checked("learn", self.learn, not unknown, f"choose from {', '.join(LEARNED)}")
        checked("rows", self.rows, self.rows >= 1, "at least 1")

    @property
    def learned(self) -> tuple[str, ...] | None:
        """What is learned, None for the objective's own choice."""
        return tuple(self.learn.split(",")) if self.learn else None


def energy(prog: str, argv: Sequence[str]) -> None:
    """Train a network that tells the corpus from what the model draws in its place; `--sampler.energy learned` uses it."""
    chosen = parse(prog, argv, {"training": TrainingSettings}, ("folder",))
    folder, training = Path(chosen["folder"]), chosen["training"]
    check_text(folder)
    corpus, tokenizer = load_task(folder)
    model, layout, process = _diffusion(folder)
    bound = objective_for(process, model.config.prediction)
    train, valid = text_rows.load_rows(corpus, tokenizer, layout)
    if training.device == "cpu":
        model = model.to("cpu")
    objective = NoiseContrastive(model, bound)
    trainer = DiffusionTrainer(
        EnergyModel.from_denoiser(model),
        training,
        objective,
        layout,
        train,
        valid,
        output_dir=folder / f"{ENERGY}_training",
    )
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    found = trainer.evaluate()
    trainer.save_model(folder / ENERGY)
    print(f"contrastive loss on the validation rows: {found['eval_loss']:.4f} nats, {2 * 0.6931:.4f} without an energy")
    print(f"saved to {folder / ENERGY}")


def distill(prog: str, argv: Sequence[str]) -> None:
    """Learn the schedule of a few-step sampler; `--grid NAME` uses it."""
    chosen = parse(prog, argv, {"distillation": Distillation}, ("folder",))
    folder, how = Path(chosen["folder"]), chosen["distillation"]
    model, layout, process = _diffusion(folder)
    assert process is not None
    fitted = fit(
        denoiser_of(model), Ancestral(process), text_rows.blank(layout, how.rows, model.device),
        how.steps, how.teacher_steps, learn=how.learned, objective=how.objective, scale=how.scale, rounds=how.rounds,
        seed=how.seed, progress=True,
    )  # fmt: skip
    path = save_grid(folder, how.name or f"{how.objective}_{how.steps}", fitted.grid)
    print(
        f"objective {fitted.untouched:.5g} -> {fitted.loss:.5g}; times {', '.join(f'{t:.3f}' for t in fitted.grid.times)}"
    )
    print(f"saved to {path}: python -m tasks.text sample {folder} --grid {path.stem}")


def _diffusion(folder: Path) -> Trained:
    trained = load_model(folder / "model")
    if trained.process is None:
        raise ValueError(f"the model in {str(folder)!r} is autoregressive: train a diffusion model")
    checked("block", trained.layout.block, not trained.layout.block, "energies and grids are of rows noised as a whole")
    return trained
