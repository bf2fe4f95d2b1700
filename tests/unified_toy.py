"""Tokenizers of every kind that are their own proof: whole numbers written in digits, coarse first."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.unified import Part, Template, UnifiedTokenizer
from tasks.text.tokenizer import characters


class Encoded(NamedTuple):
    codes: Tensor
    mask: Tensor
    grid: tuple[int, ...]


class Digits:
    """Whole numbers (batch, *grid) below size^depth, a slot each; of nobody's class, as any tokenizer may be."""

    def __init__(self, size, depth=1):
        self.codebook_size, self.depth, self.calls = size, depth, 0

    @property
    def powers(self):
        return self.codebook_size ** torch.arange(self.depth).flip(0)

    def encode(self, x, mask=None):
        self.calls += 1
        codes = torch.div(x.flatten(1)[..., None], self.powers, rounding_mode="floor") % self.codebook_size
        return Encoded(codes.long(), torch.ones(codes.shape[:2], dtype=torch.bool), tuple(x.shape[1:]))

    def decode(self, codes, grid=None, mask=None):
        self.calls += 1
        return (codes.clamp(min=0) * self.powers).sum(-1).view(-1, *grid)

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "toy.json").write_text(json.dumps([self.codebook_size, self.depth]))

    @staticmethod
    def load(folder, **options):
        return Digits(*json.loads((Path(folder) / "toy.json").read_text()))


PARTS = {
    "text": Part("text", (8,), variable=True),
    "picture": Part("picture", (3, 4)),
    "sound": Part("sound", (6,), variable=True),
    "motion": Part("motion", (5,), variable=True),
    "actions": Part("actions", (4, 2), axes="th"),
    "state": Part("state", (1, 3), axes="th"),
}
MOST = {"picture": 9, "sound": 5**3, "motion": 4**2, "actions": 11, "state": 7}


def unified(names=tuple(PARTS), **template):
    """The template of some parts over a vocabulary of all of them."""
    kinds = {"picture": (9,), "sound": (5, 3), "motion": (4, 2), "actions": (11,), "state": (7,)}
    tokenizers = {name: Digits(*kind) for name, kind in kinds.items()}
    parts = tuple(PARTS[name] for name in names)
    return UnifiedTokenizer.of(Template(parts, **template), text=characters(["abcdefgh "]), **tokenizers)


def record(seed):
    """A record of all parts; text, sound and motion of its own length, sometimes empty text."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(name, *shape):
        return torch.randint(MOST[name], shape, generator=generator)

    def length(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    letters = torch.randint(9, (length(0, 8),), generator=generator).tolist()
    return {
        "text": "".join("abcdefgh "[i] for i in letters),
        "picture": numbers("picture", 3, 4),
        "sound": numbers("sound", length(1, 6)),
        "motion": numbers("motion", length(1, 5)),
        "actions": numbers("actions", 4, 2),
        "state": numbers("state", 1, 3),
    }


def same(a, b):
    """Whether two records are equal, part by part."""
    return a.keys() == b.keys() and all(
        (torch.equal(x, b[k]) if isinstance(x, Tensor) and isinstance(b[k], Tensor) else x is b[k] or x == b[k])
        for k, x in a.items()
    )
