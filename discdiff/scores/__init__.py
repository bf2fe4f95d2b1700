"""Scores: which position is surest, for kernels that commit the best ones.

A score gives (batch, length) float64, higher first, -inf where it says nothing. Candidate-free scores leave the law of
an exact denoiser untouched when one position is committed at a time; a score that `peeks` at the drawn token biases it
towards likely tokens (total variation 0.23 on a small toy), whatever the number of steps.
"""

from typing import Any

from discdiff.scores.around import Annealed, DepthPrefix
from discdiff.scores.base import Score, check_score, log_scale, spread
from discdiff.scores.orders import Lattice, LeftToRight, Random, halton_order
from discdiff.scores.predicted import Candidate, Critic, Sure, UserScore
from discdiff.scores.values import Concentrated

SCORES: dict[str, Any] = {
    "random": Random(),
    "left_to_right": LeftToRight(),
    "lattice": Lattice(),
    "confidence": Sure("confidence"),
    "margin": Sure("margin"),
    "entropy": Sure("entropy"),
    "purity": Annealed(Sure("confidence"), 1.0, "constant"),
    "candidate": Candidate(),
}
"""Scores by the name the command line uses."""

__all__ = [
    "SCORES",
    "Annealed",
    "Candidate",
    "Concentrated",
    "Critic",
    "DepthPrefix",
    "Lattice",
    "LeftToRight",
    "Random",
    "Score",
    "Sure",
    "UserScore",
    "check_score",
    "halton_order",
    "log_scale",
    "spread",
]
