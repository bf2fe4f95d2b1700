"""The words every layer shares: what a run carries (`State`), what it reports (`Info`), what a step is told (`Step`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from discdiff.layout import TokenBatch


class Alphabet(NamedTuple):
    """What a position may hold, as symbols 0..size-1, the mask being symbol `size`; fields broadcast to the symbols.

    `segment` numbers the layout's segment a position belongs to and `names` lists the segments; both serve `PerSegment`.
    """

    size: Any
    segment: Any = 0
    names: tuple[str, ...] = ()


class Step(NamedTuple):
    """One step of a grid: from time t to s < t (0 clean, 1 noise); a value of None leaves the part's own field.

    t and s are floats in a grid; the loop hands kernels float64 tensors (batch, length), one time per position.
    """

    index: int  # type: ignore[assignment]
    t: Any
    s: Any
    rate: float | None = None
    score_power: float | None = None
    temperature: float | None = None
    renoise: float | None = None
    guidance: float | None = None


class State(NamedTuple):
    """A run in progress; all tensors share (batch, length).

    tokens int64 global ids; given bool, never moves; valid bool, may shrink (closed after an end token); committed bool
    is data, never inferred from "is not the mask"; time float64 reached per position; row (batch,) int64 number in the
    run; latents and memory hold tensors (batch, ...) by name; batch is the `TokenBatch` with its features.
    """

    tokens: Tensor
    given: Tensor
    valid: Tensor
    committed: Tensor
    time: Tensor
    row: Tensor
    batch: TokenBatch
    latents: dict[str, Tensor]
    memory: dict[str, Tensor]

    @property
    def free(self) -> Tensor:
        """Positions a kernel may move: valid, noisable and not given. Bool (batch, length)."""
        return self.valid & self.batch.noisable & ~self.given

    def close(self, where: Tensor) -> State:
        """Positions that turn out not to exist (after an end token), bool (batch, length): padding from now on."""
        tokens = torch.where(where, self.batch.layout.vocab.pad, self.tokens)
        return self._replace(tokens=tokens, valid=self.valid & ~where, batch=self.batch._replace(unrestricted=False))

    def rows(self, index: Tensor) -> State:
        """The state of the rows `index`."""
        return self._each(lambda x: x[index], self.batch.rows(index))

    def repeat(self, copies: int) -> State:
        """Each row `copies` times in a row."""
        return self._each(lambda x: x.repeat_interleave(copies, 0), self.batch.repeat(copies))

    def _each(self, change: Any, batch: TokenBatch) -> State:
        tensors = {name: change(getattr(self, name)) for name in self._fields[:6]}
        latents, memory = ({name: change(x) for name, x in store.items()} for store in (self.latents, self.memory))
        return State(**tensors, batch=batch, latents=latents, memory=memory)


class Info(NamedTuple):
    """What one step (or, added up, one run) cost and did; a kernel fills what it knows.

    nfe: network calls; network_rows: rows fed over all calls; head_rows: positions for which the head ran; fed: positions
    fed through the trunk; committed: positions newly committed; energy_rows: whole candidates scored by an energy; decoded:
    rows passed through a tokenizer's decoder; entropy: mean nats of the asked predictions; ess: effective sample size of a
    joint proposal, mean over rows. The last two are tensors, so that no step waits for the device.
    """

    nfe: int = 0
    network_rows: int = 0
    head_rows: int = 0
    fed: int = 0
    committed: int | Tensor = 0
    energy_rows: int = 0
    decoded: int = 0
    entropy: Tensor | None = None
    ess: Tensor | None = None

    def merge(self, other: Info) -> Info:
        """Counts added, the newest diagnostics kept."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in self._fields[:7]}
        newest = {name: getattr(self if getattr(other, name) is None else other, name) for name in self._fields[7:]}
        return Info(**counts, **newest)


def per_position(value: float | Tensor, like: Tensor) -> Tensor:
    """A time given as a scalar, per row (batch,) or per position, as float64 broadcastable to `like`."""
    time = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    if time.ndim == 1 and like.ndim == 2:
        if time.shape[0] != like.shape[0]:
            raise ValueError(
                f"{time.shape[0]} times for {like.shape[0]} rows: give a scalar, (batch,) or (batch, length)"
            )
        return time[:, None]
    return time
