"""Valued: beside each committed token the number that its prediction stood for when it was committed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Prediction, Wrapper
from discdiff.kernels.base import Around, Kernel, select
from discdiff.noise import Noise
from discdiff.types import Info, State, Step
from discdiff.values import READ_OUTS, CodeValues, matched, near, read_out

VALUE = "value"
_PLACE = "value_place"
_BYTES = 16 << 20  # of a law read out at a time


@dataclass(frozen=True)
class Valued(Around):
    """A kernel whose `state.memory["value"]` (batch, length) float64 holds the number of every committed position whose code is
    one, nan elsewhere: that of the token for what is given, else read out of the prediction by which it was committed.

    how: "expectation", "mode" or "argmax" (`values.read_out`); "near", the mean within `window` of the drawn token's number;
    "matched", the number whose soft label of width `window` is most like the law (`values.matched`), for networks that learned
    by `Ordinal(width=window)`; or "token", the drawn token's number itself. Later rounds see the drawn tokens, or with
    `nearest` the codes nearest to the numbers read out, so that they see what will be carried out. Two even modes have their
    expectation between them: take "mode" or "matched" there, or draw one and read "near" it, or more rounds.

    The prediction is the step's last network call that moves the position and hides it (of a token drawn again, the last that
    hides it; without such a call, the last), with all wrappers, but at temperature 1 where the draw is at 0. The trunk is not
    run again, the head is, once per committed position. Put what changes tokens inside, `Valued(Chain((kernel, corrector)))`.

    From a run: `state.memory["value"][:, layout.columns("action")].unflatten(1, (chunk, dim))`. Raises ValueError for an
    unknown `how`, a window that is not positive, `nearest` around a kernel that judges tokens it has drawn, or of "token", and
    before the first network call for values that do not fit the layout.
    """

    inner: Kernel
    values: CodeValues
    how: str = "expectation"
    window: float = 0.05
    nearest: bool = False

    def __post_init__(self) -> None:
        checked("values", self.values, isinstance(self.values, CodeValues), 'give CodeValues({"action": levels})')
        ways = (*READ_OUTS, "near", "matched", "token")
        checked("how", self.how, self.how in ways, f"choose from {', '.join(ways)}")
        checked("window", self.window, 0 < self.window < math.inf, "above 0, in the unit of the values")
        ok = not self.nearest or (self.how != "token" and self.inner.final)
        checked("nearest", self.nearest, ok, "it goes with a number read out and a kernel that takes no token back")

    @property
    def unbiased(self) -> bool:
        return self.inner.unbiased and not self.nearest

    @property
    def decide_first(self) -> bool:
        return self.inner.decide_first

    def init(self, state: State) -> State:
        state = self.inner.init(state)
        value = torch.where(state.committed, self.values.of(state.batch, state.tokens), math.nan)
        return state._replace(memory={**state.memory, VALUE: value})

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        heard = Heard(denoiser)
        rows = torch.arange(len(state.row), device=state.row.device)
        known = state._replace(memory={**state.memory, _PLACE: rows})
        after, info = self.inner(heard, known, step, noise)
        here = after.committed & after.valid
        fresh = here & state.free & (~state.committed | (after.tokens != state.tokens))
        value = torch.where(fresh, self.values.of(after.batch, after.tokens), state.memory[VALUE])
        tokens, read = after.tokens, 0
        if self.how != "token":
            for prediction, back, sites in heard.sources(fresh & (self.values.at(after.batch) >= 0)):
                number, code = self._read(prediction, back[sites], value.reshape(-1)[sites])
                value = value.reshape(-1).scatter(0, sites, number).view(value.shape)
                read += len(sites)
                if self.nearest:
                    ids = after.batch.ids(code, sites)
                    tokens = tokens.reshape(-1).scatter(0, sites, ids).view(tokens.shape)
        memory = {name: x for name, x in after.memory.items() if name != _PLACE}
        memory[VALUE] = torch.where(here, value, math.nan)
        return after._replace(tokens=tokens, memory=memory), info._replace(head_rows=info.head_rows + read)

    def _read(self, prediction: Prediction, index: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The number at each site (n,), float64, and the code nearest to it; drawn (n,): the drawn tokens' numbers."""
        layout, place = prediction.batch.layout, self.values.at(prediction.batch, index)
        alphabet = layout.tables(index.device).alphabet[prediction.batch.slot.reshape(-1)[index]]
        law, table = replace(prediction, temperature=1.0), self.values.table(index.device)
        number, code = torch.empty_like(place, dtype=torch.float64), torch.empty_like(place)
        for one in layout.drawn:
            size = layout.alphabets[one][1]
            for piece in (alphabet == one).nonzero()[:, 0].split(max(1, _BYTES // (8 * size))):
                if len(piece):
                    v = table[place[piece], :size].contiguous()
                    p = law.log_probs(index[piece]).double().exp()
                    if self.how == "matched":
                        number[piece] = self._matched(p, place[piece], size)
                    elif self.how == "near":
                        number[piece] = near(p, v, drawn[piece], self.window)
                    else:
                        number[piece] = read_out(p, v, self.how, self.window)
                    code[piece] = (v - number[piece, None]).abs().argmin(-1)
        return number, code

    def _matched(self, p: Tensor, place: Tensor, size: int) -> Tensor:
        """(n,): laws p (n, codes) of the rows `place` (n,) of the numbers."""
        table, labels = self.values.table(p.device), self.values.labels(self.window, p.device)
        if len(table) == 1:
            return matched(p, table[0, :size], labels[0])
        found = p.new_empty(len(p))
        for row, (v, each) in enumerate(zip(table, labels, strict=True)):
            here = (place == row).nonzero()[:, 0]
            found[here] = matched(p[here], v[:size], each[:size, :size])
        return found


@dataclass(frozen=True)
class Heard(Wrapper):
    """A denoiser that remembers what it was asked in one step, and what it said."""

    calls: list[tuple[State, Step, Prediction]] = field(default_factory=list)

    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = self.inner(state, step)
        self.calls.append((state, step, prediction))
        return prediction

    def sources(self, wanted: Tensor) -> list[tuple[Prediction, Tensor, Tensor]]:
        """Per call the prediction, the site in it of each site of `wanted` (batch, length) bool, and the sites it answers for.

        A call in which rows are repeated says nothing of them: those are trials.
        """
        best, which = (torch.full_like(wanted, -1, dtype=torch.int64) for _ in range(2))
        column, backs, found = torch.arange(wanted.shape[1], device=wanted.device), [], []
        for number, (state, step, _) in enumerate(self.calls):
            place = state.memory[_PLACE]
            row = torch.zeros_like(which[:, 0]).scatter(0, place, torch.arange(len(place), device=place.device))
            once = torch.zeros_like(which[:, 0]).index_add_(0, place, torch.ones_like(place)) == 1
            hides = state.tokens == state.batch.layout.vocab.mask
            rank = torch.where(once[:, None], (hides.long() + (hides & (step.s < step.t)))[row], -1)
            better = wanted & (rank >= 0) & (rank >= best)
            best, which = torch.where(better, rank, best), torch.where(better, number, which)
            backs.append((row[:, None] * len(column) + column).reshape(-1))
        for number, back in enumerate(backs):
            index = select(which == number)
            if len(index):
                found.append((self.calls[number][2], back, index))
        return found
