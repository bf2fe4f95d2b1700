"""A given text with holes: which tokens are known, which are sampled, and the text put together again."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from discdiff.config import checked
from discdiff.layout import Layout, TokenBatch, make_batch
from tasks.text.chat import render
from tasks.text.rows import text_of, to_text
from tasks.text.tokenizer import encoder

TAILS = ("ends", "free", "absent")


class Infill:
    """`text` whose runs of the character `hole` are sampled, one token per character; the rest is given.

    tail: what follows the text in its row, as the model was trained: "ends", end tokens (padded rows); "free", more text
    (packed rows, where a window runs on); "absent", nothing (packed rows with boundaries). Raises ValueError for a text
    without a hole, one that gives the mask id, and one longer than a row.
    """

    def __init__(
        self, layout: Layout, tokenizer: PreTrainedTokenizerFast, text: str, hole: str = "_", tail: str = "free"
    ) -> None:
        checked("tail", tail, tail in TAILS, f"choose from {', '.join(TAILS)}")
        self.layout, self.tokenizer, mask = layout, tokenizer, layout.vocab.mask
        encode = encoder(tokenizer)
        self.parts: list[tuple[str | None, list[int]]] = []  # (given text, its ids) or (None, masks)
        for is_hole, symbols in itertools.groupby(text, lambda symbol: symbol == hole):
            run = "".join(symbols)
            ids = [mask] * len(run) if is_hole else [int(i) for i in encode([run])[0]]
            if not is_hole and mask in ids:
                raise ValueError(f"{run!r} gives the mask id {mask}: write holes as {hole!r}, the rest without it")
            self.parts.append((None if is_hole else run, ids))
        self.ids = [i for _, ids in self.parts for i in ids]
        room = layout.length - 1
        if mask not in self.ids or len(self.ids) > room:
            count = self.ids.count(mask)
            raise ValueError(
                f"{text!r} has {len(self.ids)} tokens, {count} of them in holes {hole!r}: give at least one hole, and at "
                f"most the {room} tokens of a row"
            )
        vocab = layout.vocab
        self.tail = {"ends": vocab.special("EOS"), "free": vocab.mask, "absent": vocab.pad}[tail]

    def batch(self, count: int, device: Any = "cpu") -> TokenBatch:
        """`count` rows with everything but the holes (and a free tail) given."""
        vocab, length = self.layout.vocab, self.layout.length
        row = [vocab.special("BOS"), *self.ids] + [self.tail] * (length - 1 - len(self.ids))
        tokens = torch.tensor([row] * count, device=device)
        valid = tokens != vocab.pad if self.tail == vocab.pad else None
        return make_batch(self.layout, tokens, valid=valid, given=tokens != vocab.mask)

    def texts(self, tokens: Tensor) -> list[str]:
        """The text of each sampled row, its given parts exactly as they were given."""
        return [self._joined(row) for row in tokens[:, 1:].tolist()]

    def _joined(self, row: list[int]) -> str:
        out, at = "", 0
        for given, ids in self.parts:
            out += text_of(self.tokenizer, self.layout, row[at : at + len(ids)]) if given is None else given
            at += len(ids)
        return out


class Continuation:
    """What follows a given beginning of a row: of a text, or of a conversation by the tokenizer's chat template.

    Raises ValueError for a beginning that leaves no room in a row, or gives the mask id.
    """

    def __init__(self, layout: Layout, tokenizer: PreTrainedTokenizerFast, text: str, chat: bool) -> None:
        self.layout, self.tokenizer, mask = layout, tokenizer, layout.vocab.mask
        said = render(tokenizer, [{"role": "user", "content": text}], ask=True) if chat else text
        self.ids = [int(i) for i in encoder(tokenizer)([said])[0]]
        room = layout.length - 1
        if len(self.ids) >= room:
            raise ValueError(f"the prompt has {len(self.ids)} tokens, a row {room}: nothing is left to write")
        if mask in self.ids:
            raise ValueError(f"the prompt {text!r} gives the mask id {mask}: take --infill for holes")

    def batch(self, count: int, device: Any = "cpu") -> TokenBatch:
        """`count` rows with the beginning given and the rest masked."""
        vocab, length = self.layout.vocab, self.layout.length
        row = [vocab.special("BOS"), *self.ids] + [vocab.mask] * (length - 1 - len(self.ids))
        tokens = torch.tensor([row] * count, device=device)
        given = torch.arange(length, device=device).expand_as(tokens) <= len(self.ids)
        return make_batch(self.layout, tokens, given=given)

    def texts(self, tokens: Tensor) -> list[str]:
        """What was written, up to its end token."""
        return to_text(self.tokenizer, self.layout, tokens[:, len(self.ids) :])
