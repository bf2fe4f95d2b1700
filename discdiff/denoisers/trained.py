"""The process and the denoiser of a trained network, as its configuration says."""

from __future__ import annotations

from typing import Any

from discdiff.config import from_dict
from discdiff.denoisers.log_score import LogScore
from discdiff.denoisers.model import Denoiser, ModelDenoiser
from discdiff.processes import TYPES, Absorbing, Process


def process_of(model: Any) -> Process:
    """The process a model was trained for; absorbing where its configuration names none."""
    return from_dict(model.config.process, TYPES) if model.config.process else Absorbing()


def denoiser_of(model: Any) -> Denoiser:
    """The model as a denoiser of what it was trained to predict: clean tokens, or log scores."""
    kind = model.config.prediction
    if kind == "score":
        return LogScore(
            ModelDenoiser(model, "cavity"), process_of(model), getattr(model.config, "scale_by_sigma", False)
        )
    return ModelDenoiser(model, kind)
