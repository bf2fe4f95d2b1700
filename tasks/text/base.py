"""What fine-tuning starts from: a folder of ours, a public checkpoint, or any stock model of Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from discdiff.checkpoints import load
from discdiff.config import checked
from discdiff.models import Network
from tasks.text import tokenizer as tokenizers

SHIFTS = ("auto", "true", "false")


@dataclass(frozen=True)
class Base:
    """How a checkpoint is read. shift: "auto" is what it was trained with (stock decoders: true, their heads predict the
    next token), or true or false; tokenizer_path: where the tokenizer lies, "" is beside the checkpoint.
    """

    shift: str = "auto"
    tokenizer_path: str = ""

    def __post_init__(self) -> None:
        checked("shift", self.shift, self.shift in SHIFTS, f"choose from {', '.join(SHIFTS)}")

    @property
    def shifted(self) -> bool | None:
        """The shift, None for the checkpoint's own."""
        return None if self.shift == "auto" else self.shift == "true"


def load_base(path: str, base: Base) -> tuple[Network, PreTrainedTokenizerFast]:
    """A network and its tokenizer. Raises ValueError where one of them is missing or they do not fit each other."""
    folder = Path(path)
    tokenizer = tokenizers.load(
        base.tokenizer_path or (folder / "tokenizer" if (folder / "tokenizer").is_dir() else path)
    )
    options: dict[str, Any] = {} if base.shifted is None else {"shift": base.shifted}
    model = load(
        folder / "model" if (folder / "model" / "config.json").exists() else path, tokenizer=tokenizer, **options
    )
    size = max(tokenizer.get_vocab().values()) + 1
    if size > model.vocab.text_size:
        raise ValueError(
            f"the tokenizer of {path!r} has ids up to {size - 1}, the model {model.vocab.text_size} of text: "
            "give the tokenizer it was trained with, by --tokenizer_path"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
