"""EndPolicy: where and when a sequence may end, and what may follow its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers.constraints import legal_ids
from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.denoisers.wrappers import NEG_INF, Wrapper, some_left
from discdiff.layout import Layout, TokenBatch
from discdiff.types import State, Step


class _Places(NamedTuple):
    """Where an end token may stand, and where only the filling may; bool (batch, length)."""

    may: Tensor
    must: Tensor


@dataclass(frozen=True)
class EndPolicy(Wrapper):
    """End tokens at the right place and time, in each segment that has them and each packed sample by itself.

    end: ids or names of specials; fill: what may follow the first end (() = end tokens). No end among the first `minimum`
    free positions of a segment, none at times above `until` (models trained with padding want to end too early: LLaDA
    arXiv 2502.09992), none before a committed token that is not filling; `penalty` nats are taken from its logit. After
    a committed end (`tail`) only filling. A prompt's own end tokens do not count.

    Two positions of one step do not see each other: with several commits per step a word may still stand behind a new
    end, which `EarlyEnd` cuts off. Raises ValueError for an end that no noised segment can draw and for numbers out of range.
    """

    end: tuple[int | str, ...] = ("EOS",)
    fill: tuple[int | str, ...] = ()
    minimum: int = 0
    until: float = 1.0
    penalty: float = 0.0
    tail: bool = True

    def __post_init__(self) -> None:
        checked("end", self.end, isinstance(self.end, tuple) and len(self.end) > 0, "a tuple of ids or special names")
        checked("minimum", self.minimum, self.minimum >= 0, "0 or more positions")
        checked("until", self.until, 0 <= self.until <= 1, "a time in [0, 1], 1 for always")
        checked("penalty", self.penalty, 0 <= self.penalty < float("inf"), "0 or more nats, finite")

    def start(self, batch: TokenBatch) -> Denoiser:
        layout, table = batch.layout, self._table(batch.layout, self.end)
        reached = table.any(-1)[list(layout.drawn)]
        checked("end", self.end, bool(reached.any()), "no noised segment can draw it: add it to the segment's extras")
        return super().start(batch)

    def __call__(self, state: State, step: Step) -> Prediction:
        batch = state.batch
        device, layout = state.tokens.device, batch.layout
        ends = self._table(layout, self.end).to(device)
        filling = ends if not self.fill else self._table(layout, self.fill).to(device)
        alphabet = layout.tables(device).alphabet[batch.slot]
        may, must = (x.reshape(-1, 1) for x in self._places(state, step, ends.any(-1)[alphabet]))

        def transform(logits: Tensor, index: Tensor) -> Tensor:
            number, width = alphabet.reshape(-1)[index], logits.shape[-1]
            is_end, is_fill = ends[number][:, :width], filling[number][:, :width]
            if self.penalty:
                logits = torch.where(is_end & ~must[index], logits - self.penalty, logits)
            banned = (is_end & ~may[index] & ~must[index]) | (~is_fill & must[index])
            return some_left(logits.masked_fill(banned, NEG_INF), index, batch, "EndPolicy")

        return self.inner(state, step).then(transform)

    def _places(self, state: State, step: Step, ending: Tensor) -> _Places:
        """From what is committed; `ending` bool (batch, length): the position could hold an end."""
        batch, layout = state.batch, state.batch.layout
        here = ending & state.valid
        ours = here & batch.noisable & ~state.given
        known = here & state.committed
        is_end, is_fill = (_among(state.tokens, _ids(layout, names)) for names in (self.end, self.fill or self.end))
        run = batch.sample * len(layout.names) + batch.alphabet.segment
        follows = _earlier((known & ~is_fill).flip(1), run.flip(1)).flip(1) > 0
        early = _earlier(ours, run) < self.minimum
        time = torch.as_tensor(step.t, dtype=torch.float64, device=state.tokens.device)
        may = ~follows & ~early & (time <= self.until)
        ended = _earlier(known & ours & is_end, run) > 0 if self.tail else torch.zeros_like(here)
        return _Places(may, ended & here)

    def _table(self, layout: Layout, names: tuple[int | str, ...]) -> Tensor:
        """(alphabets, widest alphabet) bool: the symbols that are among the named ids."""
        ids = torch.tensor(_ids(layout, names), dtype=torch.int64)
        legal = [torch.isin(legal_ids(layout, number), ids) for number in range(len(layout.alphabets))]
        return torch.nn.utils.rnn.pad_sequence(legal, batch_first=True)


def _ids(layout: Layout, names: tuple[int | str, ...]) -> list[int]:
    return [layout.vocab.special(name) if isinstance(name, str) else name for name in names]


def _among(tokens: Tensor, ids: list[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(ids, device=tokens.device))


def _earlier(mark: Tensor, run: Tensor) -> Tensor:
    """How many marked positions come earlier in the same run of equal `run` numbers, (batch, length)."""
    before = mark.long().cumsum(1) - mark.long()
    column = torch.arange(run.shape[1], device=run.device).expand_as(run)
    new = torch.ones_like(mark)
    new[:, 1:] = run[:, 1:] != run[:, :-1]
    start = torch.where(new, column, 0).cummax(1).values
    return before - before.gather(1, start)
