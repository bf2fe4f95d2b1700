"""ReMDM-conf: the less sure a token was when it was revealed, the likelier it is masked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from discdiff.config import checked
from discdiff.kernels.base import Kernel
from discdiff.kernels.remask import check_parts, transition
from discdiff.kernels.strategies import Cap, Strategy, check_feature
from discdiff.noise import Noise
from discdiff.processes import Absorbing
from discdiff.proposals import Factorised, Proposal
from discdiff.types import Info, State, Step

PSI = "psi"


@dataclass(frozen=True)
class RemaskConf(Kernel):
    """A token is masked again with softmax(-psi) times the strategy's chance, psi being its probability when revealed.

    The softmax runs over a row's revealed tokens, `state.memory["psi"]` (batch, length) float64 is inf elsewhere
    (ReMDM-conf, arXiv 2503.00307). Masked positions are revealed as without re-masking, (alpha_s - alpha_t) /
    (1 - alpha_t), so that fewer tokens are unmasked in mid-run than the process says: it does NOT keep the marginals,
    and only the last step catches up. Raises ValueError for a process other than `Absorbing`; the rest as `Remask`.
    """

    process: Absorbing = field(default_factory=Absorbing)
    strategy: Strategy = field(default_factory=Cap)
    proposal: Proposal = field(default_factory=Factorised)
    reads: ClassVar[tuple[str, ...]] = ("renoise",)

    def __post_init__(self) -> None:
        check_parts(self.process, self.strategy)
        name = type(self.process).__name__
        checked("process", name, isinstance(self.process, Absorbing), "ReMDM-conf masks again: it needs Absorbing")

    @property
    def decide_first(self) -> bool:
        return not self.proposal.joint

    def check(self, grid: Any) -> None:
        for value in grid.renoise:
            if value is not None:
                self.strategy.check("renoise", value)

    def init(self, state: State) -> State:
        check_feature(self.strategy, state)
        psi = torch.full(state.tokens.shape, torch.inf, dtype=torch.float64, device=state.tokens.device)
        return state._replace(memory={**state.memory, PSI: psi})

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        psi = state.memory[PSI]
        known = psi < torch.inf
        share = torch.where(known, -psi, -torch.inf).softmax(1)
        share = torch.where(known, share, 0.0)  # a row with nothing revealed has no softmax
        after, info, log_prob = transition(self, denoiser, state, step, noise, share)
        shown = after.committed & ~state.committed & (log_prob > -torch.inf)
        psi = torch.where(shown, log_prob.exp(), torch.where(after.committed, psi, torch.inf))
        return after._replace(memory={**after.memory, PSI: psi}), info
