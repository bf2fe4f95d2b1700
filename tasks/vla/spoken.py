"""Instructions as ids of a text checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from discdiff.config import checked
from tasks.text import tokenizer as tokenizers

TEXT = "text"


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a `Lexicon` does, of any text: an instruction is at most `length` ids, and -1 behind its end."""

    tokenizer: Any
    length: int

    @classmethod
    def whole(cls, tokenizer: Any, said: Sequence[str], longest: int) -> Self:
        """As long as the longest instruction, at most `longest` ids, 0 for no such bound. Raises ValueError for longer ones."""
        found = cls(tokenizer, longest)
        most = max(said, key=found.count)
        checked("words", longest, not longest or found.count(most) <= longest, f"{most!r} has {found.count(most)} ids")
        return cls(tokenizer, longest or max(1, found.count(most)))

    @cached_property
    def encode(self) -> Any:
        """Texts to their ids."""
        return tokenizers.encoder(self.tokenizer)

    @property
    def size(self) -> int:
        """Ids that there are."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def count(self, text: str) -> int:
        """Ids of an instruction."""
        return len(self.encode([text])[0])

    def ids(self, said: Sequence[str]) -> Tensor:
        """Instructions to ids (n, length), cut or filled with -1."""
        rows = [list(map(int, row))[: self.length] for row in self.encode(list(said))]
        return torch.tensor([row + [-1] * (self.length - len(row)) for row in rows])

    def check(self, text: str) -> None:
        """Raise ValueError for an instruction that is not read to its end; any words are known."""
        checked("instruction", text, self.count(text) <= self.length, f"at most {self.length} ids are read")

    def save_pretrained(self, folder: str | Path) -> None:
        """The tokenizer."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, length: int) -> Self:
        """Raises ValueError for a folder without a tokenizer."""
        return cls(tokenizers.load(folder), length)
