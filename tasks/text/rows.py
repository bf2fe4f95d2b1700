"""From a corpus to rows of the library's layout, [BOS | text], and back to strings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.training import collate, token_batch
from tasks.text import tokenizer as tokenizers
from tasks.text.corpus import PackedRows, PaddedRows, Part, TokenFile, iter_documents, split, tokenise
from tasks.text.settings import Corpus

BATCH = 64
FEW = 20  # packed documents fewer than this are cut for validation; more are kept back whole


def layout_for(tokenizer: PreTrainedTokenizerFast, length: int, attention: str = "full") -> Layout:
    """[BOS | text of `length` tokens, the end token legal beside the text ids]."""
    size = max(tokenizer.get_vocab().values()) + 1
    vocab = VocabLayout(size, mask_id=tokenizer.mask_token_id)
    segments = (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (length,), extras=("EOS",)))
    return Layout(vocab, segments, attention=attention)


class TextRows:
    """Rows with a BOS in front. A padded row is filled with end tokens, which are learned like any other token."""

    def __init__(self, rows: PackedRows | PaddedRows, layout: Layout) -> None:
        self.rows, self.vocab = rows, layout.vocab
        self.boundaries = isinstance(rows, PackedRows) and rows.boundaries

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        tokens = row["tokens"]
        if "valid" in row:
            tokens = np.where(row["valid"], tokens, self.vocab.special("EOS"))
        out = {"tokens": np.concatenate([[self.vocab.special("BOS")], tokens]), "id": row["id"]}
        if self.boundaries:  # every document begins at the slot behind BOS, which the first one sees
            sample = row["sample"]
            fresh = np.flatnonzero(np.diff(sample, prepend=-1))
            slot = 1 + np.arange(len(tokens)) - fresh[sample]
            out |= {"sample": np.concatenate([[0], sample]), "slot": np.concatenate([[0], slot])}
        return out


def build_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """The tokenizer the corpus asks for, made from the training text where it has to be made."""
    texts = iter_documents(corpus.train_source) if corpus.tokenizer in ("characters", "bpe") else None
    return tokenizers.build(corpus.tokenizer, texts, corpus.vocab_size)


def load_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> tuple[TextRows, TextRows]:
    """Training and validation rows; tokenised once, then reused."""
    vocab, packed = layout.vocab, corpus.rows == "packed"
    eos, forbid = vocab.special("EOS"), () if vocab.mask_id is None else (vocab.mask,)

    def tokens(source: Any) -> TokenFile:
        return tokenise(source, tokenizer, corpus.cache, eos_id=eos if packed else None, forbid=forbid)

    def rows(part: TokenFile | Part) -> TextRows:
        if packed:
            return TextRows(PackedRows(part, corpus.length, boundaries=corpus.boundaries), layout)
        return TextRows(PaddedRows(part, corpus.length, vocab.pad, eos), layout)

    file = tokens(corpus.train_source)
    if corpus.valid_source is not None:
        return rows(file), rows(tokens(corpus.valid_source))
    by = "stream" if packed and file.documents < FEW else "documents"
    train, valid = split(file, corpus.valid_fraction, by=by)
    return rows(train), rows(valid)


def picked(rows: Any, layout: Layout, numbers: Sequence[int], device: Any = "cpu") -> TokenBatch:
    """The rows of these numbers."""
    columns = collate([rows[i] for i in numbers])
    return token_batch(layout, {k: v for k, v in columns.items() if k != "id"}).to(device)


def batches(rows: Any, layout: Layout, limit: int = 0, device: Any = "cpu", size: int = BATCH) -> list[TokenBatch]:
    """The first `limit` rows (0: all) as batches."""
    count = min(limit, len(rows)) if limit else len(rows)
    return [picked(rows, layout, range(i, min(i + size, count)), device) for i in range(0, count, size)]


def blank(layout: Layout, count: int, device: Any = "cpu") -> TokenBatch:
    """`count` rows of BOS and masks."""
    tokens = torch.full((count, layout.length), layout.vocab.mask, device=device)
    tokens[:, 0] = layout.vocab.special("BOS")
    return make_batch(layout, tokens)


def text_of(tokenizer: PreTrainedTokenizerFast, layout: Layout, ids: list[int]) -> str:
    """The string of token ids, the library's specials left out."""
    return tokenizer.decode([i for i in ids if i < layout.vocab.text_size and i != layout.vocab.mask])


def to_text(
    tokenizer: PreTrainedTokenizerFast, layout: Layout, tokens: Tensor, cut: bool = True, between: str = ""
) -> list[str]:
    """Strings of token rows; `cut` ends a row at its first end token, else its documents are joined by `between`."""
    end, texts = layout.vocab.special("EOS"), []
    for row, length in zip(tokens[:, 1:].tolist(), lengths(layout, tokens, cut).tolist()):
        documents = [list(ids) for ended, ids in groupby(row[:length], end.__eq__) if not ended]
        texts.append(between.join(text_of(tokenizer, layout, ids) for ids in documents))
    return texts


def lengths(layout: Layout, tokens: Tensor, cut: bool) -> Tensor:
    """Tokens of each row (rows,), BOS not counted: all of them, or with `cut` those up to the first end token, included."""
    ends = (tokens[:, 1:] == layout.vocab.special("EOS")) & cut
    return (ends.long().cumsum(1) - ends.long() == 0).sum(1)


def judged_rows(layout: Layout, tokens: Tensor, cut: bool) -> TokenBatch:
    """Token rows as they are judged: with `cut`, what is behind the first end token becomes end tokens and does not count."""
    column = torch.arange(tokens.shape[1], device=tokens.device)
    behind = column > lengths(layout, tokens, cut)[:, None]
    closed = tokens.masked_fill(behind, layout.vocab.special("EOS"))
    return make_batch(layout, closed, valid=~behind if cut else None, check=False)
