"""Early stop: what lies behind a row's first settled end token is closed, and no network call is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.kernels.base import Around, Kernel
from discdiff.layout import Layout
from discdiff.noise import Noise
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class EarlyEnd(Around):
    """A kernel after whose steps everything behind an end token of the same segment is closed (`State.close`).

    The end token is a special's name or an id; it counts where it is settled (committed; with a kernel that may take
    tokens back also at time 0), was not given, and nothing before it in its segment is open. Closed positions hold PAD
    and are not valid; given ones stay. Exact, with closed read as more end tokens, for laws in which only end tokens
    follow an end token; else it cuts off what would have followed. Raises ValueError before the first network call for
    a token that no noised segment may hold, and for rows of several samples.
    """

    inner: Kernel
    token: str | int = "EOS"

    def init(self, state: State) -> State:
        self._segments(state.batch.layout)
        sample = torch.where(state.valid, state.batch.sample, 0)
        if not state.batch.unrestricted and bool((sample > 0).any()):
            raise ValueError("rows hold several samples: EarlyEnd closes the rest of a row, give one sample per row")
        return self.inner.init(state)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        state, info = self.inner(denoiser, state, step, noise)
        behind = self._behind(state)
        # this look at the device keeps the cheap attention of whole rows until a row has really ended
        return (state.close(behind) if bool(behind.any()) else state), info

    def ended(self, state: State) -> Tensor:
        """Rows with an end token that counts, bool (batch,)."""
        return torch.stack([end.any(1) for _, end in self._ends(state)]).any(0)

    def _behind(self, state: State) -> Tensor:
        """Free positions behind an end token, bool (batch, length)."""
        behind = torch.zeros_like(state.free)
        for here, end in self._ends(state):
            behind |= here & (end.cumsum(1) > end.long())
        return behind

    def _ends(self, state: State) -> Iterator[tuple[Tensor, Tensor]]:
        """(free positions, end tokens that count) of each segment that may end, bool (batch, length)."""
        layout, token = state.batch.layout, self._id(state.batch.layout)
        segment = layout.tables(state.tokens.device).segment[state.batch.slot]
        settled = state.committed if self.final else state.committed & (state.time <= 0)
        for number in self._segments(layout):
            here = state.free & (segment == number)
            yield here, here & settled & (state.tokens == token) & ((here & ~settled).cumsum(1) == 0)

    def _id(self, layout: Layout) -> int:
        return layout.vocab.special(self.token) if isinstance(self.token, str) else self.token

    def _segments(self, layout: Layout) -> list[int]:
        """Numbers of the noised segments in which the token is legal."""
        token, tables = self._id(layout), layout.tables()
        legal = [first <= token < first + count or token in extras for first, count, extras in layout.alphabets]
        ends = tables.noised & torch.tensor(legal)[tables.alphabet]
        if not bool(ends.any()) or token == layout.vocab.mask:
            noised = [s.name for s in layout.segments if s.noised]
            raise ValueError(f"end token {self.token!r} (id {token}) is legal in none of {noised}: add it to `extras`")
        return [int(i) for i in tables.segment[ends].unique()]
