"""What `energy` and `distill` leave beside a model, by name: energies for `--sampler.energy`, grids for `--grid`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from discdiff.config import checked
from discdiff.energy import AutoregressiveEnergy, EnergyModel, LearnedEnergy, model_log_probs
from discdiff.sampling import Grid
from tasks.text.folder import load_model

ENERGY, GRIDS = "energy", "grids"


def _twin(folder: Path, carry_over: bool) -> AutoregressiveEnergy:
    if not (folder / "twin").exists():
        raise ValueError(f"{str(folder)!r} has no autoregressive twin: train with --twin true")
    return AutoregressiveEnergy(model_log_probs(load_model(folder / "twin").model), carry_over)


def _learned(folder: Path) -> LearnedEnergy:
    if not (folder / ENERGY / "config.json").exists():
        raise ValueError(f"{str(folder)!r} has no trained energy: run python -m tasks.text energy {folder}")
    model = EnergyModel.from_pretrained(folder / ENERGY)
    return LearnedEnergy(model.to("cuda" if torch.cuda.is_available() else "cpu").eval())


ENERGIES: dict[str, Callable[[Path], Any]] = {
    "twin": lambda folder: _twin(folder, False),
    "carry_over": lambda folder: _twin(folder, True),
    "learned": _learned,
}
"""The twin's likelihood of the whole text, of the new tokens only, and the network that `energy` trains."""


def load_energy(folder: Path, name: str) -> Any:
    """The energy of that name. Raises ValueError for an unknown name and for one that was never trained."""
    checked("energy", name, name in ENERGIES, f"choose from {', '.join(ENERGIES)}")
    return ENERGIES[name](folder)


def save_grid(folder: Path, name: str, grid: Grid) -> Path:
    """Write the grid as JSON beside the model."""
    path = folder / GRIDS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(grid.to_json() + "\n", encoding="utf-8")
    return path


def load_grid(folder: Path, name: str) -> Grid | None:
    """The grid of that name, None for "". Raises ValueError where there is none of it."""
    if not name:
        return None
    path = folder / GRIDS / f"{name}.json"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.json"))
        raise ValueError(f"no grid {name!r} in {str(folder)!r}: it has {', '.join(known) or 'none; distill makes one'}")
    return Grid.load(path)
