"""Constraints: tokens that are allowed where, or everywhere banned; impossible tokens get -inf."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.denoisers.wrappers import NEG_INF, Wrapper, some_left
from discdiff.layout import Layout, TokenBatch
from discdiff.types import State, Step

Ids = Collection[int]
Entry = int | Ids | None
"""What a template says of a position: the token, the ids it may take, or nothing."""


class _Sets(NamedTuple):
    """Sets of allowed symbols (sets, widest alphabet) bool, and the set of each position of the layout, (length,) or
    one line per row of the run.
    """

    table: Tensor
    which: Tensor


@dataclass(frozen=True, eq=False)
class _Constrained(Wrapper):
    """A started constraint: the sets are found by the slot and the row's number, whichever rows are asked."""

    sets: _Sets
    name: str

    def __call__(self, state: State, step: Step) -> Prediction:
        batch, (table, which) = state.batch, self.sets

        def transform(logits: Tensor, index: Tensor) -> Tensor:
            slot = batch.slot.reshape(-1)[index]
            if which.ndim == 1:
                number = which[slot]
            else:
                number = which[state.row[torch.div(index, batch.slot.shape[1], rounding_mode="floor")], slot]
            allowed = table[number][:, : logits.shape[-1]]
            return some_left(logits.masked_fill(~allowed, NEG_INF), index, batch, self.name)

        return self.inner(state, step).then(transform)


@dataclass(frozen=True, eq=False)
class Allowed(Wrapper):
    """Only these global ids at these positions of the layout; other positions are free.

    allowed: a mapping {position: ids}, or a bool tensor (length, vocab.total); with one mapping per row, or a bool
    (batch, length, vocab.total), each row has its own. Put truncation outside: `Nucleus(Allowed(model, ...))`.
    Raises ValueError before the run for a position or id that does not exist there, and where nothing is allowed.
    """

    allowed: Mapping[int, Ids] | Sequence[Mapping[int, Ids]] | Tensor

    def start(self, batch: TokenBatch) -> Denoiser:
        layout, allowed = batch.layout, self.allowed
        if isinstance(allowed, Tensor):
            sets = _from_mask(layout, allowed)
        else:
            sets = _from_ids(layout, allowed)
        rows = len(batch.tokens)
        if sets.which.ndim == 2 and len(sets.which) != rows:
            raise ValueError(
                f"allowed has {len(sets.which)} rows for a batch of {rows}: give one per row, or one for all"
            )
        return _started(self.inner, batch, sets, "Allowed")

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.start(state.batch)(state, step)


@dataclass(frozen=True)
class Banned(Wrapper):
    """These global ids nowhere. Raises ValueError for an id outside the vocabulary, and where nothing is left."""

    ids: tuple[int, ...] = ()

    def start(self, batch: TokenBatch) -> Denoiser:
        layout = batch.layout
        outside = [i for i in self.ids if not 0 <= i < layout.vocab.total]
        checked("ids", outside or self.ids, not outside, f"ids of this vocabulary are 0..{layout.vocab.total - 1}")
        table = _blank(layout, len(layout.alphabets))
        for number in range(len(layout.alphabets)):
            legal = legal_ids(layout, number)
            table[number, : len(legal)] = ~torch.isin(legal, torch.tensor(tuple(self.ids), dtype=torch.int64))
        return _started(self.inner, batch, _Sets(table, layout.tables().alphabet), "Banned")

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.start(state.batch)(state, step)


def template(
    batch: TokenBatch, pattern: Sequence[Any], classes: Mapping[str, Entry] | None = None, segment: str | None = None
) -> tuple[TokenBatch, dict[int, Ids]]:
    """A fixed pattern as (batch with given tokens, {position: allowed ids} for `Allowed`).

    One entry per position of the segment (None: of the layout): a global id is given, a collection of ids allowed, None
    free; a letter, of a string or by itself, is looked up in `classes`:
    `template(batch, "AB-99", {"A": 0, "B": 1, "-": None, "9": range(10, 20)})`.
    Raises ValueError for a wrong length, an unknown entry, and an id that is not legal at its position.
    """
    layout = batch.layout
    columns = list(range(layout.length)) if segment is None else layout.columns(segment).tolist()
    checked("pattern", pattern, len(pattern) == len(columns), f"give one entry for each of {len(columns)} positions")
    tokens = torch.full((layout.length,), layout.vocab.mask)
    allowed: dict[int, Ids] = {}
    for position, entry in zip(columns, pattern, strict=True):
        if isinstance(entry, str):
            known = classes or {}
            checked("pattern", entry, entry in known, f"classes has {', '.join(map(repr, known)) or 'no entries'}")
            entry = known[entry]
        if entry is not None:
            ids = frozenset((entry,) if isinstance(entry, int) else entry)
            _check_ids(layout, position, ids)
            if len(ids) == 1:
                tokens[position] = next(iter(ids))
            else:
                allowed[position] = ids
    tokens = tokens.to(batch.tokens.device)[batch.slot]
    fixed = (tokens != layout.vocab.mask) & batch.valid
    return batch._replace(tokens=torch.where(fixed, tokens, batch.tokens), given=batch.given | fixed), allowed


def _started(inner: Any, batch: TokenBatch, sets: _Sets, name: str) -> _Constrained:
    """The constraint of a run, after a look at every position that may move."""
    sets = _Sets(*(x.to(batch.tokens.device) for x in sets))
    some = sets.table.any(-1)[sets.which]
    some = some[batch.slot] if some.ndim == 1 else some.gather(1, batch.slot)
    wrong = batch.free & ~some
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        segment = batch.layout.names[int(batch.alphabet.segment[row, column])]
        raise ValueError(f"{name} leaves no token at row {row}, position {column} (segment {segment!r}): allow one")
    return _Constrained(inner.start(batch), sets, name)


def legal_ids(layout: Layout, number: int) -> Tensor:
    """Global ids of an alphabet's symbols, in order."""
    first, count, extras = layout.alphabets[number]
    return torch.cat([torch.arange(first, first + count), torch.tensor(extras, dtype=torch.int64)])


def _blank(layout: Layout, sets: int) -> Tensor:
    width = max(count + len(extras) for _, count, extras in layout.alphabets)
    return torch.zeros(sets, width, dtype=torch.bool)


def _check_ids(layout: Layout, position: int, ids: Ids) -> None:
    if not isinstance(position, int) or not 0 <= position < layout.length:
        raise ValueError(f"position {position!r} does not exist: the layout has 0..{layout.length - 1}")
    tables = layout.tables()
    name = layout.names[int(tables.segment[position])]
    if not bool(tables.noised[position]):
        raise ValueError(f"position {position} lies in segment {name!r}, which is not noised: nothing is drawn there")
    first, count, extras = layout.alphabets[int(tables.alphabet[position])]
    wrong = [i for i in ids if not (first <= i < first + count or i in extras) or i == layout.vocab.mask]
    if wrong:
        raise ValueError(
            f"id {wrong[0]} is not legal at position {position} (segment {name!r}): "
            f"legal are {first}..{first + count - 1} and extras {list(extras)}, the mask excepted"
        )


def _from_ids(layout: Layout, allowed: Mapping[int, Ids] | Sequence[Mapping[int, Ids]]) -> _Sets:
    """Each distinct set once."""
    lines = [allowed] if isinstance(allowed, Mapping) else list(allowed)
    alphabet = layout.tables().alphabet
    number: dict[tuple[int, frozenset[int] | None], int] = {(a, None): a for a in range(len(layout.alphabets))}
    which = alphabet.repeat(len(lines), 1)
    for row, line in enumerate(lines):
        for position, ids in line.items():
            _check_ids(layout, position, ids)
            key = (int(alphabet[position]), frozenset(ids))
            which[row, position] = number.setdefault(key, len(number))
    table = _blank(layout, len(number))
    for (one, chosen), place in number.items():
        legal = legal_ids(layout, one)
        inside = torch.ones_like(legal, dtype=torch.bool)
        if chosen is not None:
            inside = torch.isin(legal, torch.tensor(sorted(chosen), dtype=torch.int64))
        table[place, : len(legal)] = inside
    return _Sets(table, which[0] if isinstance(allowed, Mapping) else which)


def _from_mask(layout: Layout, allowed: Tensor) -> _Sets:
    """One set per position."""
    shape = (layout.length, layout.vocab.total)
    if allowed.dtype != torch.bool or allowed.ndim not in (2, 3) or tuple(allowed.shape[-2:]) != shape:
        raise ValueError(f"allowed is {allowed.dtype} {tuple(allowed.shape)}: give a bool {shape}, or one per row")
    alphabet = layout.tables().alphabet.to(allowed.device)
    table = _blank(layout, allowed.shape[:-1].numel()).to(allowed.device).view(*allowed.shape[:-1], -1)
    for number in range(len(layout.alphabets)):
        legal, here = legal_ids(layout, number).to(allowed.device), (alphabet == number).nonzero()[:, 0]
        chosen = allowed[..., here, :][..., legal] & (legal != layout.vocab.mask)
        table[..., here, : len(legal)] = chosen
    which = torch.arange(table[..., 0].numel(), device=allowed.device).view(table.shape[:-1])
    return _Sets(table.flatten(0, -2), which)
