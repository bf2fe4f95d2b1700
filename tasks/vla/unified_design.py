"""What a unified policy is made of beside a policy of actions: its settings and its layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout, Modality, Segment
from tasks.vla.design import ACTION
from tokenizers_vq.image import ImageTokenizer

ATTENTION, DECODING = ("paper", "released"), ("joint", "separate", "action")
IMAGE, PICTURE, FUTURE = "image", "picture", "future"


@dataclass(frozen=True)
class Unified:
    """attention: "paper" (instruction, state, picture, future picture and actions each see themselves and what is before
    them, so that no picture ever sees an action) or "released" (both pictures and the actions are one block in which
    everything sees everything). decoding, which is also what is trained for: "joint" (future picture and actions in the same
    rounds), "separate" (first the whole picture, then the actions) or "action" (actions alone, without a future picture).
    "released" and "separate" together are refused: trained apart, a picture that sees the actions learns beside whole ones,
    which separate decoding only makes later; trained jointly, such a policy is decoded either way.
    keep: a cell of a predicted picture whose codes are those of what is seen keeps what is seen, so that what codes cannot
    tell stays there; False: what the codes stand for everywhere. width: of the pictures.
    """

    attention: str = "paper"
    decoding: str = "joint"
    keep: bool = True
    width: int = 64

    def __post_init__(self) -> None:
        checked("attention", self.attention, self.attention in ATTENTION, f"choose from {', '.join(ATTENTION)}")
        checked("decoding", self.decoding, self.decoding in DECODING, f"choose from {', '.join(DECODING)}")
        checked("width", self.width, self.width >= 1, "pixels, at least 1")
        way = (self.attention, self.decoding)
        remedy = "its picture would learn from actions that separate decoding makes later: take 'joint' or 'paper'"
        checked("attention and decoding", way, way != ("released", "separate"), remedy)

    @property
    def foresees(self) -> bool:
        """Whether there is a future picture."""
        return self.decoding != "action"

    @property
    def decodings(self) -> tuple[str, ...]:
        """Those that the same weights can be decoded by."""
        return ("joint", "separate") if self.foresees else ("action",)


def layout_of(settings: Unified, told: Layout, pictures: ImageTokenizer) -> Layout:
    """The layout `told` of a policy with pictures in it: [instruction | state | picture | future picture | actions], the last
    two noised. As released the picture belongs to the block of what is noised, all of which see one another, and is given
    instead. Raises ValueError for a width that is not whole cells.
    """
    pictures.token_shape((1, 3, settings.width, settings.width))
    side, merged = settings.width // pictures.stride, settings.attention == "released"
    say, state, action = told.segments
    segments = [
        replace(say, causal=True),
        state,
        Segment(PICTURE, IMAGE, (side, side), noised=merged),
        *([Segment(FUTURE, IMAGE, (side, side))] if settings.foresees else []),
        action,
    ]
    vocab = told.vocab.extend(Modality(IMAGE, pictures.codebook_size, pictures.depth))
    return Layout(vocab, tuple(segments), attention="prefix" if merged else "hybrid", packed=told.packed)


def given_of(layout: Layout) -> Tensor:
    """(length,) bool: the picture that is seen never moves."""
    return layout.tables().segment == layout.names.index(PICTURE)


def without_actions(layout: Layout) -> Layout:
    """The layout of the world alone."""
    return replace(layout, segments=tuple(s for s in layout.segments if s.name != ACTION))
