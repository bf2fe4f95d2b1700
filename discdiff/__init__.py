"""discdiff: discrete diffusion for text, image, audio, motion, video and action tokens in one sequence.

Names resolve lazily, so that importing the package costs little more than importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "discdiff.types": ("Alphabet", "Info", "State", "Step"),
    "discdiff.noise": ("Noise", "row_seeds"),
    "discdiff.schedules": ("CosineMD4", "Geometric", "Linear", "Polynomial", "Schedule"),
    "discdiff.processes": ("Absorbing", "Dense", "Interpolating", "MaskOrReplace", "PerSegment", "Process", "Uniform"),
    "discdiff.layout": ("Layout", "Modality", "Segment", "TokenBatch", "VocabLayout", "make_batch", "pack"),
    "discdiff.clocks": ("Blocks", "Priority", "Shared", "Windows"),
    "discdiff.denoisers": (
        "FunctionDenoiser",
        "ModelDenoiser",
        "Nucleus",
        "Prediction",
        "Temperature",
        "TopK",
        "table",
    ),
    "discdiff.proposals": ("Factorised",),
    "discdiff.scores": ("Candidate", "DepthPrefix", "LeftToRight", "Random", "Sure", "UserScore"),
    "discdiff.kernels": ("Ancestral", "Chain", "Commit", "FirstHitting"),
    "discdiff.joint": ("Joint",),
    "discdiff.sampling": ("Grid", "iterate", "sample"),
    "discdiff.models": ("DiscDiffConfig", "DiscDiffModel"),
    "discdiff.objectives": ("Autoregressive", "Elbo"),
    "discdiff.training": ("DiffusionTrainer", "TrainingSettings"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'discdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
