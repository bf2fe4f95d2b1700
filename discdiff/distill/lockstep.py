"""Two or more runs advanced side by side, and their predictions walked together in pieces of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.clocks import Shared
from discdiff.denoisers import Prediction
from discdiff.kernels import Kernel
from discdiff.kernels.base import own_transform, select
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, ORDER, Noise
from discdiff.processes import Absorbing, Dense, PerSegment, Process
from discdiff.sampling.ahead import towards
from discdiff.sampling.grid import Grid
from discdiff.sampling.loop import iterate
from discdiff.types import State, Step

PIECE_BYTES = 16 << 20
"""Log probabilities of one prediction at a time, float32; a wide vocabulary gets few sites per piece."""


class Lane(NamedTuple):
    """One run in progress: the denoiser of the run, its kernel, where it is, and its noise."""

    denoiser: Any
    kernel: Kernel
    state: State
    noise: Noise

    def towards(self, step: Step) -> Step:
        """The step with a time per position."""
        return towards(step, self.state, Shared())

    def predict(self, step: Step) -> Prediction:
        """The own prediction at every row for the step that comes, nothing of it computed beyond the trunk."""
        now = self.towards(step)
        prediction = self.denoiser(self.state, now)
        if self.denoiser.kind == "cavity":
            return prediction.then(own_transform(self.kernel.process, self.state, now))
        return prediction

    def advance(self, step: Step) -> Lane:
        """One step further, with the noise that `sample` gives the step of this number."""
        state, _ = self.kernel(self.denoiser, self.state, self.towards(step), self.noise.step(step.index))
        return self._replace(state=state)


def start(denoiser: Any, kernel: Kernel, batch: TokenBatch, grid: Grid, seed: Any) -> Lane:
    """A run before its first step, after all checks that `iterate` makes before it calls the network."""
    state, _ = next(iterate(denoiser, kernel, batch, grid, seed=seed))
    return Lane(denoiser.start(batch), kernel, state, Noise.seeded(seed, batch.valid))


def perturbed(lane: Lane, share: float) -> Lane:
    """The start with floor(share * free positions) of each row's free positions replaced by other random tokens.

    A mask becomes a random token, which an absorbing run keeps; a token becomes another one (LSD's relaxed objective).
    """
    if share == 0:
        return lane
    state, noise = lane.state, lane.noise.child(0)
    order = torch.where(state.free, noise.uniform(ORDER), 2.0).argsort(1).argsort(1)
    chosen = state.free & (order < (share * state.free.sum(1, keepdim=True)).long())
    x, size = state.batch.symbols(state.tokens), state.batch.alphabet.size
    others = torch.where(x < size, size - 1, size)  # another token than the present one
    drawn = torch.minimum((noise.uniform(CORRUPT) * others).long(), others - 1).clamp(min=0)
    drawn = drawn + ((x < size) & (drawn >= x) & (size > 1))
    tokens = torch.where(chosen, state.batch.ids(drawn), state.tokens)
    committed = state.committed | chosen if lane.kernel.final else state.committed
    return lane._replace(state=state._replace(tokens=tokens, committed=committed))


class Piece(NamedTuple):
    """Flat sites (n,) of one segment and one set of legal ids, and the process there."""

    index: Tensor  # type: ignore[assignment]
    process: Process
    size: int


def pieces(
    batch: TokenBatch, process: Process, index: Tensor, copies: int = 1, limit: int = PIECE_BYTES
) -> Iterator[Piece]:
    """The sites (n,) in pieces, each so short that `copies` float32 tables over its legal ids take `limit` bytes."""
    tables = batch.layout.tables(index.device)
    kind = (tables.segment * len(batch.layout.alphabets) + tables.alphabet)[batch.slot.reshape(-1)[index]]
    for number in kind.unique():
        group = index[kind == number]
        alphabet = batch.sites(group[:1])
        size = int(alphabet.size[0])
        count = max(1, limit // (4 * (size + 1) * copies))
        for places in group.split(count):
            yield Piece(places, process.at(alphabet), size)


def symbols(state: State, index: Tensor) -> Tensor:
    """Symbols at flat sites (n,)."""
    return state.batch.symbols(state.tokens.reshape(-1)[index], index)


def at(time: Tensor, index: Tensor) -> Tensor:
    """Entries of a (batch, length) tensor at flat sites (n,)."""
    return time.reshape(-1)[index]


def shared(one: Lane, other: Lane) -> Iterator[tuple[Piece, Tensor]]:
    """(piece, symbols there) of the free sites that may still move and at which both runs hold the same symbol.

    For an absorbing process these are the sites hidden in both; scores are ratios to the present symbol, so that only
    there can two of them be compared entry by entry.
    """
    free = one.state.free & (one.state.tokens == other.state.tokens)
    for piece in pieces(one.state.batch, one.kernel.process, select(free)):
        x = symbols(one.state, piece.index)
        if isinstance(piece.process, Absorbing):
            hidden = x == piece.size
            piece, x = piece._replace(index=piece.index[hidden]), x[hidden]
        if len(x):
            yield piece, x


def check_process(process: Process) -> None:
    """Raise ValueError for a process without closed-form rates."""
    parts = process.parts.values() if isinstance(process, PerSegment) else (process,)
    for part in parts:
        if not isinstance(part, Process) or isinstance(part, Dense):
            raise ValueError(
                f"{type(part).__name__} has no rates in continuous time: distil with Absorbing, Uniform, MaskOrReplace, "
                "Interpolating or a PerSegment of these"
            )
