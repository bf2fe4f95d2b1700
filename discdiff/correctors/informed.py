"""Informed: the tokens that fit their surroundings worst are redrawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.correctors.base import Corrector, check_process, lowest, parts
from discdiff.correctors.redraw import answerable, masks, predict, redraw, write
from discdiff.kernels import Asked, select
from discdiff.noise import ORDER, Noise
from discdiff.processes import Absorbing, Process
from discdiff.scores import spread
from discdiff.types import Info, State, Step

SCORES = ("log_prob", "margin")


@dataclass(frozen=True)
class Informed(Corrector):
    """The k tokens of lowest score - temperature * Gumbel are redrawn at once (informed correctors, arXiv 2407.21243).

    score: log p(x_i | x_-i), or its "margin" over the best other token. A denoiser of kind cavity (a hollow transformer)
    gives scores and draws in one call, as does a process without a mask. Otherwise the second call hides the k tokens, and
    the scores come from the network's raw prediction at the tokens it sees, which is what its training made of it: sensible
    for one that is trained to repair visible tokens, nothing for one that repeats them. `hide` scores each token with it
    alone hidden instead: exact, one more network row per token. Choosing by the token's own probability is a heuristic: it
    does not leave an exact law as it is, and seeks modes at a low temperature.
    """

    k: int = 4
    temperature: float = 1.0
    score: str = "log_prob"
    hide: bool = False
    process: Process = field(default_factory=Absorbing)

    def __post_init__(self) -> None:
        checked("k", self.k, self.k >= 1, "redraw at least 1 token")
        checked("temperature", self.temperature, self.temperature >= 0, "0 (no randomness) or more")
        checked("score", self.score, self.score in SCORES, f"choose from {', '.join(SCORES)}")
        check_process(self.process, "Informed")

    def cost(self, denoiser: Any) -> int:
        return 1 if self._once(denoiser) else 2

    def _once(self, denoiser: Any) -> bool:
        """Whether one call both scores and draws."""
        return denoiser.kind == "cavity" or not any(masks(part) for part in parts(self.process))

    def correct(self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor) -> tuple[State, Info]:
        where = where & answerable(denoiser, self.process, state)
        index = select(where)
        if not len(index):
            return state, Info()
        once = self._once(denoiser)
        asked = self._ask(denoiser, state, step, noise, where, index, self.hide and not once)
        score, heads = self._score(asked, state.tokens.reshape(-1)[index])
        gumbel = -torch.log(-torch.log(noise.uniform(ORDER)))
        chosen = lowest(spread(state, index, score) - self.temperature * gumbel, where, self.k)
        info = asked.info._replace(head_rows=heads)
        if not once:
            state, drawn = redraw(denoiser, self.process, state, step, noise, chosen)
            return state, info.merge(drawn)
        worst = chosen.reshape(-1)[index].nonzero()[:, 0]
        asked = asked._replace(index=asked.index[worst])
        state, entropy = write(self.process, state, asked, index[worst], noise)
        return state, info._replace(head_rows=heads + len(worst), entropy=entropy)

    def _ask(
        self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor, index: Tensor, alone: bool
    ) -> Asked:
        if not alone:
            return predict(denoiser, self.process, state, step, noise, where, hide=False)
        length = state.tokens.shape[1]
        row = torch.div(index, length, rounding_mode="floor")
        hidden = torch.zeros(len(index), length, dtype=torch.bool, device=index.device)
        hidden = hidden.scatter(1, (index % length)[:, None], True)
        return predict(denoiser, self.process, state.rows(row), step, noise.rows(row), hidden)

    def _score(self, asked: Asked, tokens: Tensor) -> tuple[Tensor, int]:
        """Scores (n,) of the tokens at the sites, and for how many positions the head ran."""
        log_p = asked.prediction.log_prob(asked.index, tokens)
        if self.score == "log_prob":
            return log_p, len(tokens)
        at = torch.empty(asked.state.tokens.numel(), dtype=torch.int64, device=tokens.device)
        at[asked.index] = asked.state.batch.symbols(tokens, asked.index)

        def others(logits: Tensor, index: Tensor) -> Tensor:
            return logits.scatter(-1, at[index][:, None], float("-inf"))

        best = asked.prediction.then(others).rank(asked.index, "confidence").log() + torch.log1p(-log_p.exp())
        return torch.where(best.isnan(), torch.inf, log_p - best), 2 * len(tokens)
