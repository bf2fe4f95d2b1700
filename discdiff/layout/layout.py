"""Layout: which segment sits where in the sequence, what each position may hold, where it is, and whom it may see."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.layout.vocab import SPECIALS, VocabLayout

ATTENTION = (
    "full",
    "causal",
    "prefix",
    "hybrid",
    "omni",
    "frame_causal",
    "isolated",
    "block_causal",
    "told_block_causal",
)
_BLOCKED = ("block_causal", "told_block_causal")
_AXES = {1: "t", 2: "hw", 3: "thw"}


@dataclass(frozen=True)
class Segment:
    """A named run of slots of one modality ("text", "special", or registered in the vocabulary).

    shape: slots per axis; axes names them ("s" text index on all rotary axes, else letters of t, h, w), by default from
    the number of axes. noised: may be corrupted and sampled. causal: left-to-right inside. extras: names of specials
    that are legal beside the range (EOS, EOC_m, ...).
    """

    name: str
    modality: str
    shape: tuple[int, ...]
    noised: bool = True
    causal: bool = False
    extras: tuple[str, ...] = ()
    axes: str = ""

    def __post_init__(self) -> None:
        if not self.shape or any(n < 1 for n in self.shape):
            raise ValueError(f"segment {self.name}: shape {self.shape} needs at least one axis, each of length >= 1")
        axes = self.axes or ("s" if self.modality in ("text", "special") else _AXES.get(len(self.shape), ""))
        if len(axes) != len(self.shape) or len(set(axes)) != len(axes) or (axes != "s" and set(axes) - set("thw")):
            raise ValueError(
                f"segment {self.name}: axes {axes!r} do not name the {len(self.shape)} axes of {self.shape}: "
                "give letters of t, h, w, each once, or s alone"
            )
        if len(set(self.extras)) != len(self.extras):
            raise ValueError(f"segment {self.name}: extras {self.extras} repeat a name: an id is one symbol")
        object.__setattr__(self, "axes", axes)
        if self.noised and self.modality == "special":
            raise ValueError(f"segment {self.name}: specials are never noised; set noised=False")

    @property
    def slots(self) -> int:
        """Slots of the segment, depths not counted."""
        return prod(self.shape)


class Tables(NamedTuple):
    """What a layout knows of each of its positions; all (length,) unless said."""

    segment: Tensor  # number of the segment
    span: Tensor  # number of the attention span: a segment, a frame or a block
    alphabet: Tensor  # number of the legal id range
    pool: Tensor  # modality (0 text and specials, then as registered): one pool is ranked together
    noised: Tensor  # bool
    depth: Tensor  # level in the slot, coarse first
    network: Tensor  # network slot a position is read from
    positions: Tensor  # (length, 5): seq, t, h, w, q
    local: Tensor  # (length, 3): t, h, w within the segment; 0 for text, whose places mean nothing by themselves
    first: Tensor  # first legal id
    size: Tensor  # number of legal symbols, extras included
    lead: Tensor  # (network slots,) first position of each network slot
    visible: Tensor  # (spans, spans) bool: row span may attend to column span
    causal: Tensor  # (spans,) bool


@dataclass(frozen=True)
class Layout:
    """One sequence of segments over one vocabulary; tokens are flat `(batch, length)` global ids, depth fastest.

    attention is one of `ATTENTION`; block (positions per block) goes with "block_causal", whose blocks are counted from the
    first position, and "told_block_causal", from the first noised segment: those before it are a block by themselves; packed:
    the depths of a slot share one network slot; is_doubled: see `doubled`, which makes it.
    Raises ValueError for names that repeat, an unknown attention, and blocks that do not divide what they are counted in.
    """

    vocab: VocabLayout
    segments: tuple[Segment, ...]
    attention: str = "full"
    packed: bool = False
    block: int = 0
    is_doubled: bool = False

    def __post_init__(self) -> None:
        names = [s.name for s in self.segments]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"segments {names}: give at least one, each with a name of its own")
        if self.attention not in ATTENTION:
            raise ValueError(f"unknown attention {self.attention!r}: choose from {', '.join(ATTENTION)}")
        for s in self.segments:
            if s.modality != "special":
                self.vocab.range(s.modality)  # raises for an unknown modality
            for extra in s.extras:
                if self.vocab.special(extra) == self.vocab.mask:
                    raise ValueError(f"segment {s.name}: extra {extra} is the mask id, which no slot may generate")
        if (self.attention in _BLOCKED) != (self.block > 0):
            raise ValueError(
                f"attention {self.attention!r} with block={self.block}: a block size goes with block_causal"
            )
        counted = max(0, self.sequence - self.origin)
        if self.block and (counted % self.block or not counted or self.packed):
            behind = " behind what is told" if self.origin else ""
            raise ValueError(f"block {self.block} must divide the {counted} positions{behind}, with packed=False")
        if self.is_doubled and not self.block:
            raise ValueError(f"is_doubled with attention {self.attention!r}: use doubled(block), which sets all three")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the segments in order."""
        return tuple(s.name for s in self.segments)

    def depth(self, segment: Segment) -> int:
        """Levels per slot."""
        return 1 if segment.modality in ("text", "special") else self.vocab.modality(segment.modality).depth

    @cached_property
    def sequence(self) -> int:
        """Positions of one copy of the sequence."""
        return sum(s.slots * self.depth(s) for s in self.segments)

    @property
    def length(self) -> int:
        """Positions of a row: `sequence`, twice that when doubled."""
        return self.sequence * (2 if self.is_doubled else 1)

    def columns(self, name: str) -> Tensor:
        """Positions of a segment in the row, `(slots * depth,)` int64 (of the first copy when doubled)."""
        if name not in self.names:
            raise ValueError(f"unknown segment {name!r}: this layout has {', '.join(self.names)}")
        hit = self.tables().segment[: self.sequence] == self.names.index(name)
        return hit.nonzero()[:, 0]

    @cached_property
    def alphabets(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """The distinct legal id sets: (first id, ids in the range, extra ids)."""
        found = dict.fromkeys(self._legal(s, j) for s in self.segments for j in range(self.depth(s)))
        return tuple(found)

    @cached_property
    def drawn(self) -> tuple[int, ...]:
        """Numbers of the alphabets that noised segments draw from."""
        tables = self.tables()
        return tuple(int(i) for i in tables.alphabet[tables.noised].unique())

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The distinct numbers of legal symbols."""
        return tuple(int(n) for n in self.tables().size.unique())

    @cached_property
    def pools(self) -> tuple[int, ...]:
        """Numbers of the modalities that noised segments belong to."""
        tables = self.tables()
        return tuple(int(i) for i in tables.pool[tables.noised].unique())

    def banned(self, alphabet: int) -> int | None:
        """Column of the mask id inside an alphabet's range (a mask within the text ids is never generated)."""
        first, count, _ = self.alphabets[alphabet]
        inside = first <= self.vocab.mask < first + count
        return self.vocab.mask - first if inside else None

    def _legal(self, s: Segment, level: int) -> tuple[int, int, tuple[int, ...]]:
        special = s.modality == "special"
        first, size = (self.vocab.text_size, SPECIALS) if special else self.vocab.range(s.modality, level)
        extras = (self.vocab.special(name) for name in s.extras)
        return first, size, tuple(i for i in extras if not first <= i < first + size)  # an end token may be a text id

    def tables(self, device: torch.device | str = "cpu") -> Tables:
        """The per-position tables on a device, built once."""
        key = f"tables@{device}"
        if key not in self.__dict__:
            with torch.inference_mode(False):  # tables made inside inference mode could never meet a gradient
                self.__dict__[key] = Tables(*(x.to(device) for x in self._build()))
        return self.__dict__[key]

    @cached_property
    def prefix(self) -> int:
        """Positions before the first noised segment, all where none is."""
        if not any(s.noised for s in self.segments):
            return self.length
        told = itertools.takewhile(lambda s: not s.noised, self.segments)
        return sum(s.slots * self.depth(s) for s in told)

    @property
    def origin(self) -> int:
        """Position from which blocks are counted."""
        return self.prefix if self.attention == "told_block_causal" else 0

    def prefix_cacheable(self) -> bool:
        """True iff no position of the prefix may see a later one, so that caching its keys and values is exact."""
        tables, split = self.tables(), self.prefix
        before, after = tables.span[:split].unique(), tables.span[split:].unique()
        return (
            split > 0 and not bool(tables.visible[before][:, after].any()) and not bool(torch.isin(before, after).any())
        )

    @cached_property
    def open(self) -> bool:
        """Everything may see everything."""
        tables = self.tables()
        return bool(tables.visible.all()) and not bool(tables.causal.any())

    def doubled(self, block: int) -> Layout:
        """Block diffusion's training layout (arXiv 2503.09573): [noised copy | clean copy] of the sequence.

        A noised block sees itself and the clean blocks before it; a clean block sees itself and those before it.
        """
        attention = self.attention if self.attention in _BLOCKED else "block_causal"
        return replace(self, attention=attention, block=block, is_doubled=True)

    def _build(self) -> Tables:
        columns: dict[str, list[Tensor]] = {name: [] for name in Tables._fields[:11]}
        pools = {m.name: i + 1 for i, m in enumerate(self.vocab.modalities)}
        base, network = 0, 0
        for number, s in enumerate(self.segments):
            depth = self.depth(s)
            slot = torch.arange(s.slots).repeat_interleave(depth)
            level = torch.arange(depth).repeat(s.slots)
            coordinate = dict(zip(s.axes, torch.unravel_index(slot, s.shape), strict=True))
            zero = torch.zeros_like(slot)
            thw = [base + coordinate.get("s", coordinate.get(axis, zero)) for axis in "thw"]
            legal = [self._legal(s, j) for j in range(depth)]
            alphabet = torch.tensor([self.alphabets.index(a) for a in legal])[level]
            columns["segment"].append(torch.full_like(slot, number))
            columns["alphabet"].append(alphabet)
            columns["pool"].append(torch.full_like(slot, pools.get(s.modality, 0)))
            columns["noised"].append(torch.full_like(slot, s.noised, dtype=torch.bool))
            columns["depth"].append(level)
            columns["network"].append(network + (slot if self.packed else torch.arange(len(slot))))
            columns["positions"].append(torch.stack([base + slot, *thw, level], -1))
            columns["local"].append(torch.stack([coordinate.get(axis, zero) for axis in "thw"], -1))
            columns["first"].append(torch.tensor([a[0] for a in legal])[level])
            columns["size"].append(torch.tensor([a[1] + len(a[2]) for a in legal])[level])
            columns["span"].append(coordinate["t"] if self.attention == "frame_causal" and "t" in coordinate else zero)
            base += max(s.shape) if "s" not in s.axes else s.slots
            network += s.slots if self.packed else len(slot)
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        joined["span"], visible, causal = self._spans(joined["segment"], joined["span"])
        if self.is_doubled:
            joined, visible, causal = self._double(joined, visible, causal)
        new_slot = torch.ones_like(joined["network"], dtype=torch.bool)
        new_slot[1:] = joined["network"].diff() != 0
        return Tables(**joined, lead=new_slot.nonzero()[:, 0], visible=visible, causal=causal)

    def _spans(self, segment: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Span of each position, who sees whom among spans, and which spans are causal inside."""
        if self.block:
            block = torch.arange(self.sequence - self.origin) // self.block + bool(self.origin)
            span = torch.cat([torch.zeros(self.origin, dtype=torch.int64), block])
            n = int(span[-1]) + 1
            return span, torch.ones(n, n, dtype=torch.bool).tril(), torch.zeros(n, dtype=torch.bool)
        pairs, span = torch.unique(torch.stack([segment, frame]), dim=1, return_inverse=True)
        owner = [self.segments[int(i)] for i in pairs[0]]
        text = torch.tensor([s.modality in ("text", "special") for s in owner])
        noised = torch.tensor([s.noised for s in owner])
        causal = torch.tensor([s.causal for s in owner])
        everything = torch.ones(len(owner), len(owner), dtype=torch.bool)
        if self.attention == "causal":
            return span, everything.tril(), torch.ones_like(causal)
        if self.attention == "prefix":
            return span, noised[:, None] | ~noised[None, :], causal
        if self.attention in ("hybrid", "omni"):
            return span, everything.tril(), text | causal
        if self.attention == "frame_causal":
            return span, everything.tril(), causal
        if self.attention == "isolated":
            return span, text[None, :].expand_as(everything) | torch.eye(len(owner), dtype=torch.bool), causal
        return span, everything, causal

    def _double(
        self, joined: dict[str, Tensor], visible: Tensor, causal: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        n = len(causal)
        twice = {name: torch.cat([x, x]) for name, x in joined.items()}
        twice["span"][self.sequence :] += n
        twice["network"][self.sequence :] += self.sequence
        twice["noised"][self.sequence :] = False
        blank = torch.zeros_like(visible)
        before = visible.tril(-1)
        rows = [torch.cat([torch.eye(n, dtype=torch.bool), before], 1), torch.cat([blank, visible], 1)]
        return twice, torch.cat(rows), torch.cat([causal, causal])
