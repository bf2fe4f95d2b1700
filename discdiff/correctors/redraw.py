"""Redrawing tokens: what the network says of a position that does not show its own token, and a draw from it.

The law of one token given the others at level s is q_s(x_i | x_-i) = sum_v p(x0_i = v | x_-i) q_s(x_i | v): a prediction
that does not see x_i (cavity), noised to the level it stands at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.correctors.base import parts
from discdiff.denoisers import Prediction
from discdiff.kernels import Asked, ask, select
from discdiff.noise import CORRUPT, TOKEN, Noise
from discdiff.processes import Absorbing, PerSegment, Process
from discdiff.processes.base import alphabet_size
from discdiff.types import Alphabet, Info, State, Step


@dataclass(frozen=True)
class _Raw:
    """A denoiser whose predictions `ask` leaves as they come."""

    inner: Any
    kind: ClassVar[str] = "own"

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.inner(state, step)


def by_part(process: Process, alphabet: Alphabet, value: Callable[[Process], Tensor]) -> Tensor:
    """`value` of the process that each position follows."""
    return process.merge(alphabet, value) if isinstance(process, PerSegment) else value(process)


def masks(process: Process) -> bool:
    """Whether tokens of this process (no `PerSegment`) turn into masks."""
    return float(process.marginal(torch.tensor(0.5, dtype=torch.float64), 2).mask) > 0


def hideable(process: Process, state: State) -> Tensor:
    """Positions whose process has a mask to hide a token behind, bool (batch, length)."""
    tokens = state.tokens
    return by_part(process, state.batch.alphabet, lambda part: torch.full_like(tokens, masks(part), dtype=torch.bool))


def answerable(denoiser: Any, process: Process, state: State) -> Tensor:
    """Where the law of a token given the others can be had, bool (batch, length).

    Where a mask can hide the token, or the network predicts cavities, or an own prediction can be divided by
    q_s(x_i | v); not for an own prediction of a clean token without a mask, which only repeats the token.
    """
    if denoiser.kind == "cavity" or all(masks(part) for part in parts(process)):
        return torch.ones_like(state.free)
    symbols = state.batch.symbols(state.tokens)
    return hideable(process, state) | ~torch.isinf(process.own_shift(symbols, state.time, state.batch.alphabet))


def predict(
    denoiser: Any, process: Process, state: State, step: Step, noise: Noise, chosen: Tensor, hide: bool = True
) -> Asked:
    """Cavity predictions at the `chosen` positions (at least one), which are masked for the call where a mask exists.

    With `hide` False the network sees the tokens as they are: exact for a denoiser of kind cavity and where own
    predictions can be divided, else what the network happens to say at unmasked positions.
    A network with time is told that a hidden position stands at least at k / n, k of the row's n free ones being hidden.
    """
    if hide:
        hidden = chosen & hideable(process, state)
        share = hidden.sum(1, keepdim=True) / state.free.sum(1, keepdim=True).clamp(min=1)
        tokens = torch.where(hidden, state.batch.layout.vocab.mask, state.tokens)
        time = torch.where(hidden, torch.maximum(state.time, share.double()), state.time)
        state = state._replace(tokens=tokens, committed=state.committed & ~hidden, time=time)
    step = step._replace(t=state.time, s=state.time)
    asked = ask(_Raw(denoiser), process, state, step, noise, select(chosen))
    if denoiser.kind == "cavity" or isinstance(process, Absorbing):
        return asked
    return asked._replace(prediction=asked.prediction.then(_to_cavity(process, asked.state)))


def _to_cavity(process: Process, state: State) -> Callable[[Tensor, Tensor], Tensor]:
    """Own to cavity: the logit of the present token falls by log q_s(x_i | x_i) / q_s(x_i | other), where finite."""
    symbols, time = state.batch.symbols(state.tokens).reshape(-1), state.time.reshape(-1)

    def transform(logits: Tensor, index: Tensor) -> Tensor:
        x = symbols[index]
        shift = process.own_shift(x, time[index], state.batch.sites(index)).to(logits.dtype)
        shift = torch.where(torch.isinf(shift), 0.0, shift)
        here = torch.arange(logits.shape[-1], device=logits.device) == x[:, None]
        return logits - torch.where(here, shift[:, None], 0.0)

    return transform


def write(process: Process, state: State, asked: Asked, index: Tensor, noise: Noise) -> tuple[State, Tensor]:
    """Tokens drawn at the sites `index` of `state` (`asked.index` in the rows asked for); also the draws' mean nats."""
    drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN)
    tokens = drawn.tokens
    if not isinstance(process, Absorbing):
        time, alphabet = state.time.reshape(-1)[index], state.batch.sites(index)
        clean, uniform = state.batch.symbols(tokens, index), noise.uniform(CORRUPT, index)
        noisy = by_part(process, alphabet, lambda part: token_noise(part, clean, time, uniform, alphabet))
        tokens = state.batch.ids(noisy, index)
    tokens = state.tokens.reshape(-1).scatter(0, index, tokens).view(state.tokens.shape)
    return state._replace(tokens=tokens), -drawn.log_prob.mean()


def token_noise(process: Process, x0: Tensor, t: Tensor, uniform: Tensor, alphabet: Alphabet) -> Tensor:
    """x_t ~ q_t(. | x0, no mask), (n,) symbols by inverse CDF from one uniform each."""
    size = torch.as_tensor(alphabet_size(alphabet), device=x0.device)
    now = process.marginal(t, size)
    spread = now.token * size
    keep = torch.where(spread > 0, now.keep / (now.keep + spread), 1.0)
    rest = (uniform - keep) / (1 - keep).clamp(min=1e-300)
    return torch.where(uniform < keep, x0, torch.minimum((rest.clamp(0, 1) * size).long(), size - 1))


def redraw(
    denoiser: Any, process: Process, state: State, step: Step, noise: Noise, chosen: Tensor
) -> tuple[State, Info]:
    """Every chosen token anew given all that were not chosen, each on its own; one network call."""
    index = select(chosen)
    if not len(index):
        return state, Info()
    asked = predict(denoiser, process, state, step, noise, chosen)
    state, entropy = write(process, state, asked, index, noise)
    return state, asked.info._replace(entropy=entropy)
