"""PerSegment: a process of its own for each segment of a layout, itself a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from discdiff.processes.base import Process
from discdiff.processes.families import Absorbing
from discdiff.types import Alphabet

if TYPE_CHECKING:
    from discdiff.layout import Layout


@dataclass(frozen=True)
class PerSegment(Process):
    """`PerSegment({"image": Uniform(), "caption": Absorbing()})`: each position follows its segment's process.

    The segment of a position comes with the `Alphabet` at each call. Every noised segment must be named (`require`, which
    the loop calls, raises ValueError); what is said of positions of other segments has no meaning.
    """

    parts: Mapping[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("PerSegment needs at least one segment: PerSegment({'name': process})")

    def merge(self, alphabet: int | Alphabet, part: Callable[[Process], Tensor]) -> Tensor:
        """`part(process)` of each segment's process at the positions of its segment."""
        if not isinstance(alphabet, Alphabet):
            raise ValueError("PerSegment must know the segments: pass the layout's Alphabet, not a bare size")
        out: Any = None
        for name, process in self.parts.items():
            if name not in alphabet.names:
                raise ValueError(f"PerSegment names {name!r}, the layout has {', '.join(alphabet.names)}")
            value = part(process)
            here = torch.as_tensor(alphabet.segment, device=value.device) == alphabet.names.index(name)
            out = value if out is None else torch.where(_match(here, value), value, out)
        return out

    def require(self, names: tuple[str, ...]) -> None:
        missing = [name for name in names if name not in self.parts]
        if missing:
            raise ValueError(f"no process for segments {missing}: PerSegment has {', '.join(self.parts)}")

    def at(self, alphabet: int | Alphabet) -> Process:
        if not isinstance(alphabet, Alphabet):
            raise ValueError("PerSegment must know the segments: pass the layout's Alphabet, not a bare size")
        number = int(torch.as_tensor(alphabet.segment).reshape(-1)[0])
        self.require((alphabet.names[number],))
        return self.parts[alphabet.names[number]]

    def prior(self, uniform: Tensor, alphabet: int | Alphabet) -> Tensor:
        return self.merge(alphabet, lambda p: p.prior(uniform, alphabet))

    def corrupt(self, x0: Tensor, t: float | Tensor, uniform: Tensor, alphabet: int | Alphabet) -> Tensor:
        return self.merge(alphabet, lambda p: p.corrupt(x0, t, uniform, alphabet))

    def hold(self, x: Tensor, t: float | Tensor, s: float | Tensor, alphabet: int | Alphabet) -> Tensor:
        return self.merge(alphabet, lambda p: p.hold(x, t, s, alphabet))

    def step(self, x, x0, t, s, uniform, alphabet, rate=None) -> Tensor:
        return self.merge(alphabet, lambda p: p.step(x, x0, t, s, uniform, alphabet, rate))

    def own_shift(self, x: Tensor, t: float | Tensor, alphabet: int | Alphabet) -> Tensor:
        return self.merge(alphabet, lambda p: p.own_shift(x, t, alphabet))


def _match(here: Tensor, value: Tensor) -> Tensor:
    return here.reshape(*here.shape, *[1] * (value.ndim - here.ndim)) if here.ndim < value.ndim else here


def check_layout(process: Process, layout: Layout) -> None:
    """Raise ValueError where a process does not fit a layout: a noised segment it does not name, or noise on tokens of a
    segment whose ids include the mask, which such noise would draw.
    """
    process.require(tuple(s.name for s in layout.segments if s.noised))
    for s in layout.segments:
        part = process.parts.get(s.name) if isinstance(process, PerSegment) else process
        inside = s.modality == "text" and layout.vocab.mask < layout.vocab.text_size
        if s.noised and inside and not isinstance(part, Absorbing):
            raise ValueError(
                f"mask_id {layout.vocab.mask} is a text id, which {type(part).__name__} would draw as noise: "
                f"segment {s.name!r} of this vocabulary goes with Absorbing"
            )
