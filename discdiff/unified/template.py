"""Templates: which parts a sequence has, in which order, and what stands around them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout, Segment, VocabLayout

TASK = "task"
BEGIN, END = ".begin", ".end"
"""What the segments of a part's marks are called behind its name."""


@dataclass(frozen=True)
class Part:
    """A part of a sequence: `grid` slots of a modality ("text", or one that is registered).

    name: its key in records, by default the modality. noised: may be corrupted and sampled; otherwise every record gives
    it. variable: a record may fill fewer slots of the first axis, the rest holds the end token (EOS of text, EOC_m).
    shallow: slots may lack their deeper levels (code -1, NONE_Q). marks: stands between BOM_m and EOM_m (BOS and SEP of
    text). causal, axes: as in `Segment`. Raises ValueError for a grid without slots, and for a dot in the name.
    """

    modality: str
    grid: tuple[int, ...]
    name: str = ""
    noised: bool = True
    variable: bool = False
    shallow: bool = False
    marks: bool = True
    causal: bool = False
    axes: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.modality)
        object.__setattr__(self, "grid", (self.grid,) if isinstance(self.grid, int) else tuple(self.grid))
        checked("modality", self.modality, self.modality not in ("", "special"), "give text or a registered modality")
        checked("name", self.name, "." not in self.name and self.name != TASK, 'dots and "task" belong to the marks')
        whole = all(isinstance(n, int) and n > 0 for n in self.grid)
        checked("grid", self.grid, bool(self.grid) and whole, "give slots per axis, each at least 1")

    @property
    def slots(self) -> int:
        """Slots, levels not counted."""
        return prod(self.grid)

    @property
    def frame(self) -> int:
        """Slots that share a place on the first axis: what is variable comes in so many at a time."""
        return prod(self.grid[1:])

    @property
    def end(self) -> str:
        """The special behind the content of a variable part."""
        return "EOS" if self.modality == "text" else f"EOC_{self.modality}"

    @property
    def extras(self) -> tuple[str, ...]:
        """Specials that are legal beside its codes."""
        return (self.end,) * self.variable + ("NONE_Q",) * self.shallow

    @property
    def around(self) -> tuple[tuple[str, str], ...]:
        """(segment, special) before it and behind it; nothing without marks."""
        begin, close = ("BOS", "SEP") if self.modality == "text" else (f"BOM_{self.modality}", f"EOM_{self.modality}")
        return ((self.name + BEGIN, begin), (self.name + END, close)) if self.marks else ()


@dataclass(frozen=True)
class Template:
    """Parts in order, behind the tag of a task ("t2i", "vla", "joint", ...; "" for none).

    attention: one of `discdiff.layout.ATTENTION`. packed: the levels of a slot share one network slot. Raises ValueError
    for no parts, and for a name that repeats.
    """

    parts: tuple[Part, ...]
    task: str = ""
    attention: str = "full"
    packed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        names = [part.name for part in self.parts]
        fits = bool(names) and len(set(names)) == len(names)
        checked("parts", names, fits, "give at least one, each with a name of its own")

    def part(self, name: str) -> Part:
        """The part of that name."""
        for part in self.parts:
            if part.name == name:
                return part
        raise ValueError(f"unknown part {name!r}: the template has {', '.join(p.name for p in self.parts)}")

    @property
    def specials(self) -> dict[str, str]:
        """Segment of one slot -> the special it always holds."""
        tag = {TASK: f"TASK_{self.task}"} if self.task else {}
        return tag | dict(around for part in self.parts for around in part.around)

    def layout(self, vocab: VocabLayout) -> Layout:
        """The layout: a segment per part under its name, and one of a single slot per mark."""

        def mark(name: str) -> Segment:
            return Segment(name, "special", (1,), noised=False)

        found = [mark(TASK)] if self.task else []
        for p in self.parts:
            own = Segment(p.name, p.modality, p.grid, p.noised, p.causal, p.extras, p.axes)
            begin, end = (mark(name) for name, _ in p.around) if p.marks else (None, None)
            found += [s for s in (begin, own, end) if s is not None]
        return Layout(vocab, tuple(found), self.attention, self.packed)

    def blank(self, layout: Layout) -> Tensor:
        """(length,) ids: the specials in their places, the mask where a part may be."""
        row = torch.full((layout.length,), layout.vocab.mask)
        for name, special in self.specials.items():
            row[layout.columns(name)] = layout.vocab.special(special)
        return row
