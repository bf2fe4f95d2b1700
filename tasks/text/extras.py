"""Energies by name, for `--sampler.energy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from discdiff.config import checked
from discdiff.energy import AutoregressiveEnergy, LearnedEnergy, model_log_probs
from tasks.common.improve import ENERGY, LEARNED, load_learned
from tasks.text.folder import load_model


def _twin(folder: Path, carry_over: bool) -> AutoregressiveEnergy:
    if not (folder / "twin").exists():
        raise ValueError(f"{str(folder)!r} has no autoregressive twin: train with --twin true")
    return AutoregressiveEnergy(model_log_probs(load_model(folder / "twin").model), carry_over)


def _learned(folder: Path) -> LearnedEnergy:
    if not (folder / ENERGY / "config.json").exists():
        raise ValueError(f"{str(folder)!r} has no trained energy: run python -m tasks.text energy {folder}")
    return load_learned(folder)


ENERGIES: dict[str, Callable[[Path], Any]] = {
    "twin": lambda folder: _twin(folder, False),
    "carry_over": lambda folder: _twin(folder, True),
    LEARNED: _learned,
}
"""The twin's likelihood of the whole text, of the new tokens only, and the network that `energy` trains."""


def load_energy(folder: Path, name: str) -> Any:
    """The energy of that name. Raises ValueError for an unknown name and for one that was never trained."""
    checked("energy", name, name in ENERGIES, f"choose from {', '.join(ENERGIES)}")
    return ENERGIES[name](folder)
