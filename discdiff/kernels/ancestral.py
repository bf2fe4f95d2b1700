"""Ancestral sampling of any process at any stride: x0 ~ prediction, x_s ~ q(x_s | x_t, x0)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from discdiff.denoisers import inverse_cdf
from discdiff.kernels.base import Asked, Kernel, arrive, ask, reveal, select
from discdiff.layout import TokenBatch
from discdiff.noise import TOKEN, WAKE, Noise
from discdiff.processes import Absorbing, Process
from discdiff.proposals import Factorised, Proposal, needed
from discdiff.types import Alphabet, Info, State, Step

NEG_INF = float("-inf")

Site = Callable[[Tensor, Asked], Tensor]
"""(composed one-site log law (n, K + 1), what was asked) -> log law (n, K + 1), not normalised."""


@dataclass(frozen=True)
class Ancestral(Kernel):
    """p(x_s | x_t) = sum_x0 R(x0 | x_t) prod_i q(x_s,i | x_t,i, x0_i) for every process and stride.

    Decides first: a position is held with `process.hold` before any network call, and only rows and positions that are
    awake are asked; the tokens are those of evaluating everything. `site` works on the composed one-site law
    (posterior-level and classifier guidance); it, a step's score_power and a joint proposal look at all eligible
    positions. Converges to the denoiser's law as the grid is refined, error O(1 / steps) (MDLM arXiv 2406.07524).
    """

    process: Process = field(default_factory=Absorbing)
    proposal: Proposal = field(default_factory=Factorised)
    site: Site | None = None
    unbiased: ClassVar[bool] = True

    @property
    def decide_first(self) -> bool:
        """Whether positions can be held before the network is asked."""
        return self.site is None and not self.proposal.joint

    @property
    def reads(self) -> tuple[str, ...]:
        return ("rate", "score_power", *getattr(self.site, "reads", ()))

    @property
    def final(self) -> bool:
        """A revealed token of an absorbing process never moves again."""
        return isinstance(self.process, Absorbing)

    def init(self, state: State) -> State:
        """What a schedule that ends above 0 leaves unmasked at time 1 is there to stay."""
        stays = state.free & (state.tokens != state.batch.layout.vocab.mask)
        return state._replace(committed=state.committed | stays) if self.final else state

    def awake(self, state: State, step: Step, noise: Noise) -> Tensor | None:
        """The masks that an absorbing process reveals in this step."""
        if not self.final or not self.decide_first or step.score_power is not None:
            return None
        index = select(state.free & ~state.committed & (step.s < step.t))
        return index[noise.uniform(WAKE, index) >= self._hold(sites(state, step, index), step)]

    def move(self, denoiser: Any, state: State, step: Step, noise: Noise, index: Tensor) -> tuple[State, Info]:
        state, info = reveal(denoiser, self, state, step, noise, index)
        return arrive(state, step), info

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        known = self.awake(state, step, noise)
        if known is not None:
            return self.move(denoiser, state, step, noise, known)
        moving = state.free & (step.s < step.t)
        if self.final:
            moving = moving & ~state.committed
        index, info = select(moving), Info()
        composed = self.site is not None or step.score_power is not None
        place, u = sites(state, step, index), noise.uniform(WAKE, index)
        hold = self._hold(place, step)
        awake = u >= hold
        unsure = hold < 1 - 1e-12  # elsewhere the law is one-hot, whatever the network says
        chosen = unsure if composed else needed(self.proposal, state, step, index, awake, unsure)
        chosen = chosen.nonzero()[:, 0]
        if len(chosen):
            index, place, u = index[chosen], place.at(chosen), u[chosen]
            asked = ask(denoiser, self.process, state, step, noise, index)
            symbols, info = self._composed(asked) if composed else self._drawn(asked, place, u)
            tokens = (
                state.tokens.reshape(-1).scatter(0, index, state.batch.ids(symbols, index)).view(state.tokens.shape)
            )
            state = state._replace(tokens=tokens)
        return self._finish(state, step, moving, info)

    def _finish(self, state: State, step: Step, moving: Tensor, info: Info) -> tuple[State, Info]:
        arrived = moving & (step.s <= 0)
        if self.final:
            arrived = moving & (state.tokens != state.batch.layout.vocab.mask)
        committed = state.committed | arrived
        done = committed.sum() - state.committed.sum()
        return arrive(state, step)._replace(committed=committed), info._replace(committed=done)

    def _hold(self, place: Sites, step: Step) -> Tensor:
        hold = self.process.hold(*place)
        if step.rate is not None:
            hold = (1 - step.rate * (1 - hold)).clamp(min=0)
        return torch.where(_must_go(place.x, place.s, place.alphabet), 0.0, hold)

    def _drawn(self, asked: Asked, place: Sites, u: Tensor) -> tuple[Tensor, Info]:
        """x0 from the proposal, then the process's own step: nothing as wide as the vocabulary."""
        x, t, s, alphabet = place
        clean = self.proposal.draw(asked.prediction, asked.state, asked.index, asked.step, asked.noise)
        x0 = asked.state.batch.symbols(clean.tokens, asked.index)
        out = self.process.step(x, x0, t, s, u, alphabet, asked.step.rate)
        out = torch.where(_must_go(out, s, alphabet), x0, out)
        return out, clean.note(asked.info)

    def _composed(self, asked: Asked) -> tuple[Tensor, Info]:
        """The one-site log law over all symbols, changed by `site`, drawn by inverse CDF."""
        symbols = torch.empty_like(asked.index)
        entropy = torch.empty_like(asked.step.t.reshape(-1)[asked.index])
        for places in _alike(asked.state.batch, asked.index):
            symbols[places], entropy[places] = self._composed_alike(asked._replace(index=asked.index[places]))
        return symbols, asked.info._replace(entropy=entropy.mean())

    def _composed_alike(self, asked: Asked) -> tuple[Tensor, Tensor]:
        x, t, s, alphabet = sites(asked.state, asked.step, asked.index)
        log_x0 = asked.prediction.log_probs(asked.index).double()
        process = self.process.at(alphabet)
        log_p = process.log_posterior(log_x0, x, t, s)
        if asked.step.score_power is not None:
            early = t.clamp(max=1 - 1e-5)  # at t = 1 an absorbing score is 0; SEDD stops at 1 - 1e-5 too
            score = process.to_score(process.cavity(log_x0, x, early), x, early)
            log_p = _leaving(log_p, x, (asked.step.score_power - 1) * score)
        if asked.step.rate is not None:
            log_p = _leaving(log_p, x, torch.full_like(log_p, asked.step.rate).log())
        if self.site is not None:
            log_p = self.site(log_p, asked)
        symbols = inverse_cdf((log_p - log_p.amax(-1, keepdim=True)).exp(), asked.noise.uniform(WAKE, asked.index))
        x0 = inverse_cdf(log_x0.exp(), asked.noise.uniform(TOKEN, asked.index))
        symbols = torch.where(_must_go(symbols, s, alphabet), x0, symbols)
        return symbols, -torch.where(log_x0 > NEG_INF, log_x0.exp() * log_x0, 0.0).sum(-1)


class Sites(NamedTuple):
    """Symbols, times before and after the step, and alphabet at n flat sites, (n,) each."""

    x: Tensor
    t: Tensor
    s: Tensor
    alphabet: Alphabet

    def at(self, places: Tensor) -> Sites:
        """Those of the places (m,) among the n."""
        size, segment, names = self.alphabet
        alphabet = Alphabet(size[places], segment[places], names)
        return Sites(self.x[places], self.t[places], self.s[places], alphabet)


def sites(state: State, step: Step, index: Tensor) -> Sites:
    """Symbols, t, s and alphabet at flat sites."""
    x = state.batch.symbols(state.tokens.reshape(-1)[index], index)
    t, s = (time.expand(state.tokens.shape).reshape(-1)[index] for time in (step.t, step.s))
    return Sites(x, t, s, state.batch.sites(index))


def _must_go(x: Tensor, s: Tensor, alphabet: Alphabet) -> Tensor:
    """Masks at time 0, which is clean whatever the rate, the guidance and a schedule that ends below 1 leave there."""
    return (x == alphabet.size) & (s <= 0)


def _alike(batch: TokenBatch, index: Tensor) -> list[Tensor]:
    """Places in `index` (n,) grouped by segment and legal ids, so that each group has one law table."""
    tables = batch.layout.tables(index.device)
    kind = tables.segment * len(batch.layout.alphabets) + tables.alphabet
    kinds, here = kind[tables.noised].unique(), kind[batch.slot.reshape(-1)[index]]
    groups = [(here == k).nonzero()[:, 0] for k in kinds]
    return [places for places in groups if len(places)]


def _leaving(log_p: Tensor, x: Tensor, shift: Tensor) -> Tensor:
    """The law with `shift` added to the logs of all moves away from x, staying being the rest: shift log r scales the
    chance to leave; (power - 1) * score raises the concrete score to a power, LSD's log-score.
    """
    away = torch.where(log_p > NEG_INF, log_p + shift, NEG_INF).scatter(-1, x[:, None], NEG_INF)
    total = away.logsumexp(-1, keepdim=True)
    away = torch.where(total > 0, away - total, away)  # the chance to leave cannot pass 1
    return away.scatter(-1, x[:, None], torch.log1p(-total.clamp(max=0).exp()))
