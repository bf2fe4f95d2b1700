"""How codes are modelled given a condition: a process, what the network is trained to predict, and the objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from discdiff.clocks import Importance, Shared
from discdiff.config import checked
from discdiff.maskers import FixedCount, Independent
from discdiff.objectives import Autoregressive, BlockElbo, Dropped, Elbo
from discdiff.processes import Absorbing, Process, Uniform, vq_paper, vq_released
from discdiff.schedules import CosineSquaredMDLM

METHODS = ("vq_diffusion", "vq_paper", "vq_released", "vq_ddm", "maskgit", "autoregressive")


@dataclass(frozen=True)
class Method:
    """process: None for an autoregressive model; prediction: "own" or "cavity" (`DiscDiffConfig`); timed: the network is told
    the time; told: the condition is always given, never drawn; causal: it is read and made left to right; block: codes that
    are made together, each block given those before it, 0 for all of them.
    """

    process: Process | None
    objective: Any
    prediction: str = "own"
    timed: bool = False
    told: bool = True
    causal: bool = False
    block: int = 0


def both_ways(conditional: float) -> Method:
    """Masked diffusion of condition and codes together; conditional: share of rows trained with one of them given."""
    process = Absorbing()
    return Method(process, Elbo(process, masker=Independent(conditional)), told=False)


def method_of(name: str, dropped: float = 0.1, auxiliary: float = 0.05, block: int = 0) -> Method:
    """One of METHODS. dropped: share of rows trained without their condition; auxiliary: weight of VQ-Diffusion's second loss
    per unit time, the paper's 5e-4 per step of 100; from 1 on it rules the loss, and times are uniform; block: of block
    diffusion (2503.09573), whose times are uniform, too.

    vq_diffusion: mask-and-replace (2111.14822), the cavity predicted: what a code's own noisy value says of it is known and
    need not be learned. vq_paper: the whole posterior predicted, as the paper has it; vq_released: with the schedule of its
    code too. vq_ddm: uniform noise, cosine schedule, the cavity predicted (2112.01799). maskgit: absorbing, unweighted
    (2202.04200). autoregressive: the twin of equal size. Raises ValueError for another name, and for blocks of the twin.
    """
    made = _whole(name, auxiliary)
    if block:
        checked("block", block, made.process is not None, f"{name} makes one code after the other: leave it 0")
        blocks = BlockElbo(replace(made.objective, clock=Shared(), masker=None))
        made = replace(made, objective=blocks, block=block)
    return replace(made, objective=Dropped(made.objective, dropped))


def _whole(name: str, auxiliary: float) -> Method:
    """Of rows that are noised as a whole, whose condition is never dropped."""
    if name in ("vq_diffusion", "vq_paper", "vq_released"):
        process: Process = vq_released() if name == "vq_released" else vq_paper()
        prediction = "cavity" if name == "vq_diffusion" else "own"
        goal = Elbo(
            process,
            clock=Importance() if auxiliary < 1 else Shared(),  # it learns where the bound is large
            kind=prediction,
            auxiliary=auxiliary,
            adaptive=name == "vq_released" and auxiliary > 0,
        )
        return Method(process, goal, prediction, timed=True)
    if name == "vq_ddm":
        process = Uniform(CosineSquaredMDLM())
        return Method(process, Elbo(process, clock=Importance()), "cavity", timed=True)
    if name == "maskgit":
        process = Absorbing()
        return Method(process, Elbo(process, masker=FixedCount()))
    if name == "autoregressive":
        return Method(None, Autoregressive(), causal=True)
    raise ValueError(f"method is {name!r}: choose from {', '.join(METHODS)}")
