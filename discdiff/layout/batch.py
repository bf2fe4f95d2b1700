"""TokenBatch: rows of tokens together with everything their layout says of each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.types import Alphabet

if TYPE_CHECKING:
    from discdiff.layout.layout import Layout


class TokenBatch(NamedTuple):
    """Rows of a layout; tensors are (batch, length) unless said.

    tokens int64 global ids; valid bool, a real slot; given bool, a position that never moves; slot int64, which position
    of the layout this is (restarts per sample when several samples are packed into a row); sample int64, number of the
    sample in the row; unrestricted: every slot valid and one sample per row, so that no per-row mask is needed;
    features: conditioning that is not tokens, tensors (batch, ...) by name.
    """

    layout: Layout
    tokens: Tensor
    valid: Tensor
    given: Tensor
    slot: Tensor
    sample: Tensor
    unrestricted: bool
    features: dict[str, Tensor]

    @property
    def noisable(self) -> Tensor:
        """May be corrupted: the segment is noised. Bool (batch, length)."""
        return self._of(self.layout.tables(self.tokens.device).noised)

    @property
    def free(self) -> Tensor:
        """May move: valid, noisable and not given. Bool (batch, length)."""
        return self.valid & self.noisable & ~self.given

    @property
    def lead(self) -> Tensor:
        """(network slots,) first column of each network slot."""
        if self.layout.packed:
            return self.layout.tables(self.tokens.device).lead
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def positions(self) -> Tensor:
        """(batch, length, 5): seq, t, h, w, q."""
        return self._of(self.layout.tables(self.tokens.device).positions)

    @property
    def alphabet(self) -> Alphabet:
        """Number of legal symbols and segment of every position."""
        tables = self.layout.tables(self.tokens.device)
        return Alphabet(self._of(tables.size), self._of(tables.segment), self.layout.names)

    def within(self, segments: Sequence[str]) -> Tensor:
        """Positions of the named segments, () for all: bool (batch, length). Raises ValueError for an unknown name."""
        names = self.layout.names
        unknown = [name for name in segments if name not in names]
        checked("segments", tuple(segments), not unknown, f"this layout has {', '.join(names)}")
        numbers = [names.index(name) for name in segments or names]
        return torch.isin(self.alphabet.segment, torch.tensor(numbers, device=self.tokens.device))

    def sites(self, index: Tensor) -> Alphabet:
        """`alphabet` at the flat sites `index` (row * length + column)."""
        tables, slot = self.layout.tables(self.tokens.device), self._slots(index)
        return Alphabet(tables.size[slot], tables.segment[slot], self.layout.names)

    def symbols(self, ids: Tensor, index: Tensor | None = None) -> Tensor:
        """Global ids to symbols 0..size-1 (extras last, the mask is `size`); `index` for flat sites."""
        layout, tables = self.layout, self.layout.tables(ids.device)
        slot = self._slots(index)
        out = ids - tables.first[slot]
        for number, (_, count, extras) in enumerate(layout.alphabets):
            for j, extra in enumerate(extras):
                out = torch.where((ids == extra) & (tables.alphabet[slot] == number), count + j, out)
        return torch.where(ids == layout.vocab.mask, tables.size[slot], out)

    def ids(self, symbols: Tensor, index: Tensor | None = None) -> Tensor:
        """Inverse of `symbols`."""
        layout, tables = self.layout, self.layout.tables(symbols.device)
        slot = self._slots(index)
        out = symbols + tables.first[slot]
        for number, (_, count, extras) in enumerate(layout.alphabets):
            for j, extra in enumerate(extras):
                out = torch.where((symbols == count + j) & (tables.alphabet[slot] == number), extra, out)
        return torch.where(symbols == tables.size[slot], layout.vocab.mask, out)

    def source(self, index: Tensor, shift: bool = False) -> Tensor:
        """Flat network slot (row * slots + slot) whose hidden state predicts each flat site.

        `shift`: the slot before, in the same sample; the first slot of a sample predicts itself.
        """
        length = self.tokens.shape[1]
        row, column = torch.div(index, length, rounding_mode="floor"), index % length
        network = self.layout.tables(index.device).network
        slot = network[column] if self.layout.packed else column
        if shift:
            slot = (slot - (network[self._slots(index)] > 0).long()).clamp(min=0)
        return row * len(self.lead) + slot

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index`."""
        return self._each(lambda x: x[index])

    def repeat(self, copies: int) -> TokenBatch:
        """Each row `copies` times in a row."""
        return self._each(lambda x: x.repeat_interleave(copies, 0))

    def to(self, device: torch.device | str) -> TokenBatch:
        """On another device."""
        return self._each(lambda x: x.to(device))

    def _slots(self, index: Tensor | None = None) -> Tensor:
        """`slot`, as one row where all rows have the same; or at the flat sites `index`."""
        slot = self.slot[:1] if self.unrestricted else self.slot
        if index is None:
            return slot
        return slot.reshape(-1)[index % slot.shape[1] if self.unrestricted else index]

    def _of(self, table: Tensor) -> Tensor:
        """What a table of the layout says of every position, (batch, length, ...)."""
        return table[self._slots()].expand(*self.slot.shape, *table.shape[1:])

    def _each(self, change) -> TokenBatch:
        tensors = {name: change(getattr(self, name)) for name in self._fields[1:6]}
        return self._replace(**tensors, features={name: change(x) for name, x in self.features.items()})


def make_batch(
    layout: Layout,
    tokens: Tensor,
    *,
    valid: Tensor | None = None,
    given: Tensor | None = None,
    sample: Tensor | None = None,
    slot: Tensor | None = None,
    features: dict[str, Tensor] | None = None,
    check: bool = True,
) -> TokenBatch:
    """Rows of global ids `(batch, length)` as a TokenBatch; everything is valid and free unless said.

    Raises ValueError for a wrong dtype, shape or device and, with `check`, for a row that is empty, a slot the layout
    does not have, and ids that are neither legal at their position nor the mask (a position that is not free may hold
    any id of the vocabulary, an absent slot anything).
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64:
        what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens are {what}: give int64 global ids of shape (batch, length)")
    rows, length = tokens.shape
    if rows == 0 or length == 0 or (slot is None and length != layout.length):
        raise ValueError(f"tokens have shape {(rows, length)}, the layout wants (batch >= 1, {layout.length})")
    if layout.packed and slot is not None:
        raise ValueError("a layout with packed depth has its slots in order, one sample per row: leave slot None")
    unrestricted = valid is None and sample is None and slot is None
    device = tokens.device
    everywhere = torch.ones(rows, length, dtype=torch.bool, device=device)
    valid = everywhere if valid is None else valid
    given = ~everywhere if given is None else given
    sample = torch.zeros_like(tokens) if sample is None else sample
    slot = torch.arange(length, device=device).expand(rows, length) if slot is None else slot
    booleans, numbers = {"valid": valid, "given": given}, {"sample": sample, "slot": slot}
    for name, x in {**booleans, **numbers}.items():
        kind = torch.bool if name in booleans else torch.int64
        if x.shape != tokens.shape or x.dtype != kind or x.device != device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}: it must be {kind} {tuple(tokens.shape)} on {device}"
            )
    for name, x in (features or {}).items():
        if x.shape[0] != rows:
            raise ValueError(f"feature {name!r} has {x.shape[0]} rows for {rows} rows of tokens")
    batch = TokenBatch(layout, tokens, valid, given, slot, sample, unrestricted, dict(features or {}))
    if check:
        _check_ids(batch)
    return batch


def _check_ids(batch: TokenBatch) -> None:
    tokens, vocab = batch.tokens, batch.layout.vocab
    empty = ~batch.valid.any(1)
    if bool(empty.any()):
        raise ValueError(f"row {int(empty.nonzero()[0])} has no valid slot: drop empty sequences")
    if bool((batch.slot < 0).any()) or bool((batch.slot >= batch.layout.length).any()):
        low, high = int(batch.slot.min()), int(batch.slot.max())
        raise ValueError(f"slots reach from {low} to {high}, the layout has 0..{batch.layout.length - 1}")
    outside = (tokens < 0) | (tokens >= vocab.total)
    symbols, size = batch.symbols(tokens), batch.alphabet.size
    back = batch.ids(torch.minimum(symbols.clamp(min=0), size))  # an id outside the alphabet does not come back
    illegal = (back != tokens) & batch.free
    wrong = (outside | illegal) & batch.valid
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        name = batch.layout.names[int(batch.alphabet.segment[row, column])]
        first, count, extras = batch.layout.alphabets[int(batch.layout.tables().alphabet[int(batch.slot[row, column])])]
        raise ValueError(
            f"id {int(tokens[row, column])} at row {row}, position {column} (segment {name!r}) is illegal: "
            f"allowed are {first}..{first + count - 1}, extras {list(extras)} and the mask {vocab.mask}"
        )


def pack(layout: Layout, samples: Sequence[Tensor], length: int) -> TokenBatch:
    """Samples `(n_i,)` of the layout's first slots packed first-fit into rows of `length`, with document attention.

    Raises ValueError for no samples, one that is empty, not int64, or longer than the layout or the row, and for a layout
    with packed depth.
    """
    if layout.packed:
        raise ValueError("layouts with packed depth put one sample into a row: use packed=False to pack samples")
    if not samples:
        raise ValueError("no samples to pack: give at least one")
    rows: list[list[Tensor]] = []
    room: list[int] = []
    for number, x in enumerate(samples):
        if x.ndim != 1 or x.dtype != torch.int64 or not 0 < len(x) <= min(length, layout.length):
            raise ValueError(
                f"sample {number} is {x.dtype} {tuple(x.shape)}: give int64 ids, 1..{min(length, layout.length)} of them"
            )
        place = next((i for i, free in enumerate(room) if free >= len(x)), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(length)
        rows[place].append(x)
        room[place] -= len(x)
    device = samples[0].device
    tokens = torch.full((len(rows), length), layout.vocab.pad, dtype=torch.int64, device=device)
    slot, sample = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    for i, parts in enumerate(rows):
        used = sum(map(len, parts))
        tokens[i, :used] = torch.cat(parts)
        slot[i, :used] = torch.cat([torch.arange(len(x), device=device) for x in parts])
        sample[i, :used] = torch.cat([torch.full_like(x, j) for j, x in enumerate(parts)])
    return make_batch(layout, tokens, valid=sample >= 0, sample=sample, slot=slot)
