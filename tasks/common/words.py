"""Captions as the few words that occur in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from discdiff.config import checked

ABSENT, UNKNOWN = "", "?"


def split(text: str) -> list[str]:
    """Words of a caption in lower case; everything but letters, digits, hyphens and apostrophes separates."""
    return re.findall(r"[\w'-]+", text.lower())


@dataclass(frozen=True)
class Lexicon:
    """Words by id, the first two for places without a word and for unknown ones; a caption is `length` ids."""

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        checked(
            "words", self.words[:2], self.words[:2] == (ABSENT, UNKNOWN), "the ids 0 and 1 are of no and unknown words"
        )

    @classmethod
    def of(cls, captions: Sequence[str], longest: int) -> Lexicon:
        """The words of captions, in alphabetical order; as long as the longest caption, at most `longest`."""
        lists = [split(caption) for caption in captions]
        words = sorted({word for each in lists for word in each} - {ABSENT, UNKNOWN})
        return cls((ABSENT, UNKNOWN, *words), max(1, min(longest, max(map(len, lists), default=1))))

    @classmethod
    def whole(cls, said: Sequence[str], longest: int, labels: bool = False, others: Sequence[str] = ()) -> Lexicon:
        """The words of captions that are read to their ends; labels: they are names that must not be confused; others: captions
        that are not learned. Raises ValueError for captions of more than `longest` words, and for labels that have the same.
        """
        most = max((*said, *others), key=lambda each: len(split(each)), default="")
        count = len(split(most))
        checked("words", longest, count <= longest, f"the caption {most!r} has {count}: give --words {count}")
        if labels:
            table: dict[tuple[str, ...], list[str]] = {}
            for label in sorted(set(said)):
                table.setdefault(tuple(split(label)), []).append(label)
            same = [names for words, names in table.items() if len(names) > 1 or not words]
            checked("labels", same[:3], not same, "only letters, digits, - and ' are read, in lower case: rename them")
        return cls.of(said, longest)

    @property
    def size(self) -> int:
        """Ids that there are."""
        return len(self.words)

    def count(self, caption: str) -> int:
        """Ids of a caption."""
        return len(split(caption))

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Captions to ids (n, length), cut or filled."""
        table = {word: i for i, word in enumerate(self.words)}
        rows = [[table.get(word, 1) for word in split(caption)][: self.length] for caption in captions]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])

    def text(self, ids: Tensor) -> list[str]:
        """Ids (n, length) to captions."""
        return [" ".join(self.words[i] for i in row if i and i < len(self.words)) for row in ids.tolist()]

    def check(self, caption: str) -> None:
        """Raise ValueError naming the words that no training caption has, and those nearest to them, and for no words at all;
        an empty caption says nothing.
        """
        checked("caption", caption, not caption.strip() or bool(split(caption)), "it has no word")
        unknown = [word for word in split(caption) if word not in self.words]
        near = [difflib.get_close_matches(word, self.words[2:], n=1) for word in unknown]
        hints = [
            f"{word!r}" + (f" (did you mean {found[0]!r}?)" if found else "") for word, found in zip(unknown, near)
        ]
        checked("caption", caption, not unknown, f"no training caption has {', '.join(hints)}")
        checked("caption", caption, len(split(caption)) <= self.length, f"at most {self.length} words are read")
