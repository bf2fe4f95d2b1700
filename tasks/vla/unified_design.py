"""What a unified policy is made of: its settings, its layout and its network."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from torch import Tensor

from discdiff.config import checked, to_dict
from discdiff.layout import Layout, Modality, Segment, VocabLayout
from discdiff.models import DiscDiffConfig
from tasks.common.words import Lexicon
from tasks.vla.policy import ACTION, SAY, STATE
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.image import ImageTokenizer

ATTENTION, DECODING = ("paper", "released"), ("joint", "separate", "action")
IMAGE, PICTURE, FUTURE = "image", "picture", "future"


@dataclass(frozen=True)
class Unified:
    """attention: "paper" (instruction, state, picture, future picture and actions each see themselves and what is before
    them, so that no picture ever sees an action) or "released" (both pictures and the actions are one block in which
    everything sees everything). decoding: "joint" (future picture and actions in the same rounds), "separate" (first the
    whole picture, then the actions) or "action" (the actions alone, the future picture stays masked). future: False leaves it
    out of the layout, for a policy of actions alone. detail: a predicted picture is what is seen now plus the change of what
    the codes stand for, so that what codes cannot tell stays; False: what the codes stand for alone. width: of the pictures;
    chunk, codebook_size, proprio, hidden_size, num_layers, num_heads: as in `policy.Policy`.
    """

    attention: str = "paper"
    decoding: str = "joint"
    future: bool = True
    detail: bool = True
    width: int = 64
    chunk: int = 8
    codebook_size: int = 256
    proprio: int = 0
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4

    def __post_init__(self) -> None:
        checked("attention", self.attention, self.attention in ATTENTION, f"choose from {', '.join(ATTENTION)}")
        self.check(self.decoding)
        for name in ("width", "chunk"):
            checked(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        checked("proprio", self.proprio, self.proprio >= 0, "numbers of the state, 0 for all")

    def check(self, decoding: str) -> None:
        """Raise ValueError for a decoding that is none, or that needs a future picture where there is none."""
        checked("decoding", decoding, decoding in DECODING, f"choose from {', '.join(DECODING)}")
        checked("decoding", decoding, self.future or decoding == "action", "without a future picture only 'action'")


def layout_of(settings: Unified, tokenizer: ActionBins, pictures: ImageTokenizer, lexicon: Lexicon) -> Layout:
    """[instruction | state | picture | future picture | actions], the last two noised, packed: one slot per cell and step.

    As released the picture belongs to the block of what is noised, all of which see one another, and is given instead.
    """
    side = settings.width // pictures.stride
    pictures.token_shape((1, 3, settings.width, settings.width))  # raises for a width that is not whole cells
    actions = Modality(ACTION, settings.codebook_size, tokenizer.config.dim)
    vocab = VocabLayout(len(lexicon.words), (actions, Modality(IMAGE, pictures.codebook_size, pictures.depth)))
    merged = settings.attention == "released"
    segments = [
        Segment(SAY, "text", (lexicon.length,), noised=False, causal=True),
        Segment(STATE, "text", (1,), noised=False),
        Segment(PICTURE, IMAGE, (side, side), noised=merged),
        *([Segment(FUTURE, IMAGE, (side, side))] if settings.future else []),
        Segment(ACTION, ACTION, (settings.chunk,), axes="t"),
    ]
    return Layout(vocab, tuple(segments), attention="prefix" if merged else "hybrid", packed=True)


def given_of(layout: Layout) -> Tensor:
    """(length,) bool: the picture that is seen never moves."""
    return layout.tables().segment == layout.names.index(PICTURE)


def config_of(settings: Unified, layout: Layout, states: int) -> DiscDiffConfig:
    """The network's configuration; states: numbers of a state that it is told."""
    return DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()), layout=to_dict(layout), hidden_size=settings.hidden_size,
        num_layers=settings.num_layers, num_heads=settings.num_heads, initializer_range=settings.hidden_size**-0.5,
        max_length=len(layout.tables().lead), max_depth=max(layout.depth(s) for s in layout.segments),
        features={STATE: {"segment": STATE, "shape": [states]}},
    )  # fmt: skip


def without_actions(layout: Layout) -> Layout:
    """The layout of the world alone."""
    return replace(layout, segments=tuple(s for s in layout.segments if s.name != ACTION))
