"""What a sampling run looked like, one frame per step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def to_numpy(value: Any) -> np.ndarray:
    """An array from anything array-like; tensors are known by their `detach`, so torch is never imported."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


@dataclass(frozen=True, eq=False)
class Trace:
    """The states of one row of a run, in order.

    Shapes: `tokens` int (steps, length), `committed` bool (steps, length), `nfe` int (steps,), the network calls of
    each step, or None. Arrays, nested lists and tensors are accepted. Raises ValueError for an empty trace, for
    other dtypes and for shapes that do not agree.
    """

    tokens: np.ndarray
    committed: np.ndarray
    nfe: np.ndarray | None = None

    def __post_init__(self) -> None:
        tokens, committed = to_numpy(self.tokens), to_numpy(self.committed)
        if tokens.ndim != 2 or tokens.size == 0:
            raise ValueError(
                f"tokens have shape {tokens.shape}; give (steps, length) with at least one step and one position"
            )
        if not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"tokens have dtype {tokens.dtype}; give integer ids")
        if committed.shape != tokens.shape:
            raise ValueError(f"committed has shape {committed.shape}, tokens {tokens.shape}; give equal shapes")
        if committed.dtype != np.bool_:
            raise ValueError(f"committed has dtype {committed.dtype}; give booleans, e.g. committed.astype(bool)")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "committed", committed)
        if self.nfe is None:
            return
        nfe = to_numpy(self.nfe)
        if nfe.shape != tokens.shape[:1] or not np.issubdtype(nfe.dtype, np.integer):
            raise ValueError(
                f"nfe has shape {nfe.shape} and dtype {nfe.dtype}; give one integer for each of {len(tokens)} steps"
            )
        object.__setattr__(self, "nfe", nfe)

    @property
    def steps(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def thin(self, frames: int) -> "Trace":
        """At most `frames` evenly spaced frames, the first and the last among them; network calls are added up."""
        if frames < 2:
            raise ValueError(f"frames is {frames}; keep at least 2, the first and the last")
        keep = np.unique(np.linspace(0, self.steps - 1, min(frames, self.steps)).round().astype(int))
        calls = None if self.nfe is None else np.diff(np.cumsum(self.nfe)[keep], prepend=0)
        return Trace(self.tokens[keep], self.committed[keep], calls)


class _Frames:
    """Rows of frames in buffers that double when full, so that a trace is up to date after every step."""

    def __init__(self) -> None:
        self.count, self.has_nfe = 0, True
        self.tokens, self.committed, self.nfe = np.zeros((0, 0), int), np.zeros((0, 0), bool), np.zeros(0, int)

    def add(self, tokens: np.ndarray, committed: np.ndarray, nfe: Any) -> Trace:
        if self.count == 0:
            self.tokens, self.committed = np.zeros((16, len(tokens)), int), np.zeros((16, len(tokens)), bool)
            self.nfe = np.zeros(16, int)
        if len(tokens) != self.tokens.shape[1]:
            raise ValueError(
                f"step {self.count + 1} has length {len(tokens)}, the steps before it {self.tokens.shape[1]}; "
                "record runs of one canvas"
            )
        if self.count == len(self.tokens):
            # New buffers rather than resized ones: traces handed out earlier keep their views.
            self.tokens, self.committed, self.nfe = (
                np.concatenate([part, np.zeros_like(part)]) for part in (self.tokens, self.committed, self.nfe)
            )
        self.has_nfe = self.has_nfe and nfe is not None
        self.tokens[self.count], self.committed[self.count] = tokens, committed
        self.nfe[self.count] = int(nfe) if nfe is not None else 0
        self.count += 1
        end = self.count
        return Trace(self.tokens[:end], self.committed[:end], self.nfe[:end] if self.has_nfe else None)


def watch(
    run: Iterable[tuple[Any, Any]], traces: dict[int, Trace], rows: Sequence[int] = (0,), start: Any = None
) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of `run` unchanged and keep `traces[row]` up to date after each of them.

    `run` yields `(state, info)` as `discdiff.iterate` does: `state.tokens` and `state.committed` (batch, length),
    `info.nfe` the network calls of that step. `start` is the state before the first step and becomes frame 1 with no
    calls. Each step copies the asked rows from the device. Raises ValueError, before the run is started, for a row
    asked twice or already in `traces`, and at the first state for a row outside the batch.
    """
    if len(set(rows)) != len(rows) or any(row in traces for row in rows):
        raise ValueError(
            f"rows {tuple(rows)} repeat or are already in traces {sorted(traces)}; give new, distinct rows"
        )
    return _watch(run, traces, {row: _Frames() for row in rows}, start)


def _watch(
    run: Iterable[tuple[Any, Any]], traces: dict[int, Trace], frames: dict[int, _Frames], start: Any
) -> Iterator[tuple[Any, Any]]:
    def keep(state: Any, nfe: Any) -> None:
        for row, kept in frames.items():
            if not 0 <= row < state.tokens.shape[0]:
                raise ValueError(f"row {row} is outside the batch of {state.tokens.shape[0]}; give 0 <= row < batch")
            traces[row] = kept.add(to_numpy(state.tokens[row]), to_numpy(state.committed[row]), nfe)

    if start is not None:
        keep(start, 0)
    for pair in run:
        state, info = pair
        keep(state, getattr(info, "nfe", None))
        yield pair


def record(run: Iterable[tuple[Any, Any]], row: int = 0, start: Any = None) -> Trace:
    """Run to the end and return the trace of one row; arguments as for `watch`, ValueError if the run has no step."""
    traces: dict[int, Trace] = {}
    for _ in watch(run, traces, (row,), start):
        pass
    if row not in traces:
        raise ValueError("the run yielded no state; give a fresh iterator with at least one step")
    return traces[row]
