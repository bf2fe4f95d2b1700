"""scikit-learn's bundled handwritten digits with short captions, as rows of one token sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from discdiff.layout import Layout, Modality, Segment, VocabLayout
from discdiff.noise import CORRUPT, Noise
from tasks.demo.codecs import LEVELS, SIDE, Codec

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("here is number {}", "the handwritten digit {}", "{} written by hand", "somebody drew number {}")
LEXICON = tuple(dict.fromkeys(" ".join(TEMPLATES).replace("{}", "").split())) + WORDS
CAPTION = 4  # words of a caption
HELD_OUT, VALIDATION = 360, 240


@dataclass(frozen=True, eq=False)
class Form:
    """The sequence [caption | image], `where` its parts lie, and the codec of its pictures."""

    codec: Codec
    where: Layout

    @classmethod
    def of(cls, codec: Codec) -> Form:
        """One word per slot of the caption, and all levels of a picture's slot packed into one."""
        vocab = VocabLayout(len(LEXICON), (Modality("image", codec.codebook_size, depth=codec.depth),))
        segments = (Segment("caption", "text", (CAPTION,)), Segment("image", "image", codec.grid))
        return cls(codec, Layout(vocab, segments, packed=True))

    def rows(self, images: Tensor, texts: list[str]) -> Tensor:
        """Token rows `(n, length)` of images with captions."""
        codes = self.where.vocab.to_global(self.codec.encode(images), "image")
        return torch.cat([caption_ids(texts), codes.flatten(1)], 1)

    def images_of(self, tokens: Tensor) -> Tensor:
        """Images `(n, 8, 8)` of token rows without masks."""
        ids = tokens[:, self.where.columns("image")].reshape(len(tokens), -1, self.codec.depth)
        return self.codec.decode(self.where.vocab.to_local(ids, "image"))

    def places(self) -> Tensor:
        """The column that each pixel comes from, `(8, 8)`."""
        return self.codec.places(self.where.columns("image").reshape(-1, self.codec.depth))


@dataclass(frozen=True)
class Digits:
    """images (n, 8, 8) int64 of 0..16 and labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load(part: str = "test", seed: int = 0) -> tuple[Digits, Digits]:
    """Training digits and those held out of them, stratified by digit: 360 for the "test", or 240 of the others for the
    "validation", on which settings are chosen without a look at the test.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    kept, labels = data.images.astype(np.int64), data.target.astype(np.int64)
    for count in (HELD_OUT, VALIDATION)[: 1 + (part == "validation")]:
        kept, held, labels, names = train_test_split(kept, labels, test_size=count, random_state=seed, stratify=labels)
    return Digits(*map(torch.from_numpy, (kept, labels))), Digits(*map(torch.from_numpy, (held, names)))


def warp(images: Tensor, copies: int, seed: int = 0) -> Tensor:
    """`copies` of every image, slightly turned, scaled, sheared and shifted, `(n * copies, 8, 8)`, first copies first."""
    rows = len(images) * copies
    noise = Noise.seeded(seed, torch.ones(rows, 1, dtype=torch.bool))
    turn, stretch, shear, dy, dx = (2 * noise.uniform(CORRUPT, channels=5)[:, 0] - 1).unbind(-1)
    angle, scale = turn * 0.09, 1 + stretch * 0.045
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rotation = torch.stack([cos, -sin + 0.055 * shear, dx * 0.066, sin, cos, dy * 0.066], -1).reshape(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(rotation, [rows, 1, SIDE, SIDE], align_corners=False)
    source = images.double().repeat(copies, 1, 1)[:, None]
    moved = torch.nn.functional.grid_sample(source, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return moved[:, 0].round().long().clamp(0, LEVELS - 1)


def caption_ids(texts: list[str]) -> Tensor:
    """Word ids of captions, `(n, CAPTION)`."""
    return torch.tensor([[LEXICON.index(word) for word in text.split()] for text in texts])


def captions(labels: Tensor) -> list[str]:
    """A caption for every label, templates in turn."""
    return [TEMPLATES[i % len(TEMPLATES)].format(WORDS[int(y)]) for i, y in enumerate(labels)]


def read(ids: Tensor) -> str:
    """Text of one row of caption ids; what is no word (a mask) shows as an underscore."""
    return " ".join(LEXICON[int(i)] if int(i) < len(LEXICON) else "_" for i in ids)


def label_of(text: str) -> int:
    """The digit a caption names; -1 if it names none, or several."""
    named = [WORDS.index(word) for word in text.split() if word in WORDS]
    return named[0] if len(named) == 1 else -1


def training_images(digits: Digits, copies: int, seed: int) -> Tensor:
    """Real images, then `copies` warped ones of each."""
    return torch.cat([digits.images, warp(digits.images, copies, seed)]) if copies else digits.images


class CaptionedDigits:
    """Training rows: real images and warped copies, a caption template drawn per row and copy."""

    def __init__(self, form: Form, digits: Digits, copies: int, seed: int) -> None:
        labels = digits.labels.repeat(1 + copies)
        noise = Noise.seeded(seed + 1, torch.ones(len(labels), 1, dtype=torch.bool))
        template = (noise.uniform(CORRUPT)[:, 0] * len(TEMPLATES)).long().tolist()
        texts = [TEMPLATES[k].format(WORDS[y]) for k, y in zip(template, labels.tolist(), strict=True)]
        self.tokens = form.rows(training_images(digits, copies, seed), texts)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index]}
