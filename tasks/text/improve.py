"""The commands `energy` and `distill`: what makes few steps of a trained model better, saved beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discdiff.cli import parse
from discdiff.config import checked
from discdiff.denoisers import denoiser_of
from discdiff.energy import NoiseContrastive
from discdiff.training import TrainingSettings
from tasks.common.improve import Distillation, learn_energy, learn_grid
from tasks.text import rows as text_rows
from tasks.text.folder import Trained, check_text, load_model, load_task
from tasks.text.training import objective_for


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
    print(f"saved to {learn_energy(NoiseContrastive(model, bound), model, training, layout, train, valid, folder)}")


def distill(prog: str, argv: Sequence[str]) -> None:
    """Learn the schedule of a few-step sampler; `--grid NAME` uses it."""
    chosen = parse(prog, argv, {"distillation": Distillation}, ("folder",))
    folder, how = Path(chosen["folder"]), chosen["distillation"]
    model, layout, process = _diffusion(folder)
    assert process is not None
    blank = text_rows.blank(layout, how.rows, model.device)
    path = learn_grid(denoiser_of(model), process, blank, how, folder)
    print(f"saved to {path}: python -m tasks.text sample {folder} --grid {path.stem}")


def _diffusion(folder: Path) -> Trained:
    trained = load_model(folder / "model")
    if trained.process is None:
        raise ValueError(f"the model in {str(folder)!r} is autoregressive: train a diffusion model")
    checked("block", trained.layout.block, not trained.layout.block, "energies and grids are of rows noised as a whole")
    return trained
