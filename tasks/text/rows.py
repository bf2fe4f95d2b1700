"""From a corpus to rows of the library's layout: [BOS | text], and back to strings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.training import collate, token_batch
from tasks.text import tokenizer as tokenizers
from tasks.text.corpus import PackedRows, PaddedRows, iter_documents, split, tokenise
from tasks.text.settings import Corpus

BATCH = 64


def layout_for(tokenizer: PreTrainedTokenizerFast, length: int, attention: str = "full") -> Layout:
    """[BOS | text of `length` tokens, the end token legal beside the text ids]."""
    size = max(tokenizer.get_vocab().values()) + 1
    mask = tokenizer.mask_token_id
    vocab = VocabLayout(size, mask_id=mask)
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
        if self.boundaries:
            sample = np.concatenate([[0], row["sample"]])
            fresh = np.flatnonzero(np.diff(row["sample"], prepend=-1))
            slot = np.arange(len(tokens)) - np.repeat(fresh, np.diff(np.append(fresh, len(tokens))))
            out |= {"sample": sample, "slot": np.concatenate([[0], 1 + slot])}
        return out


def build_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """The tokenizer the corpus asks for, made from the training text where it has to be made."""
    texts = None
    if corpus.tokenizer in ("characters", "bpe"):
        texts = iter_documents(corpus.of(corpus.source))
    return tokenizers.build(corpus.tokenizer, texts, corpus.vocab_size)


def load_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> tuple[TextRows, TextRows]:
    """Training and validation rows; tokenised once, then reused."""
    vocab = layout.vocab
    eos = None if corpus.rows == "padded" else vocab.special("EOS")
    forbid = () if vocab.mask_id is None else (vocab.mask,)
    file = tokenise(corpus.of(corpus.source), tokenizer, corpus.cache, eos_id=eos, forbid=forbid)
    if corpus.valid is None:
        by = "stream" if file.documents < 20 else "documents"
        parts = split(file, corpus.valid_fraction, by=by)
    else:
        parts = file, tokenise(corpus.of(corpus.valid), tokenizer, corpus.cache, eos_id=eos, forbid=forbid)
    train, valid = (_rows(part, corpus, vocab) for part in parts)
    return TextRows(train, layout), TextRows(valid, layout)


def _rows(part: Any, corpus: Corpus, vocab: VocabLayout) -> PackedRows | PaddedRows:
    if corpus.rows == "padded":
        return PaddedRows(part, corpus.length, vocab.pad, vocab.special("EOS"))
    return PackedRows(part, corpus.length, boundaries=corpus.boundaries)


def batches(rows: Any, layout: Layout, limit: int = 0, device: Any = "cpu", size: int = BATCH) -> list[TokenBatch]:
    """The first `limit` rows (0: all) as batches."""
    count = min(limit, len(rows)) if limit else len(rows)
    items = [rows[i] for i in range(count)]
    parts = [items[i : i + size] for i in range(0, count, size)]
    return [token_batch(layout, {k: v for k, v in collate(part).items() if k != "id"}).to(device) for part in parts]


def blank(layout: Layout, count: int, device: Any = "cpu") -> TokenBatch:
    """`count` rows of BOS and masks."""
    tokens = torch.full((count, layout.length), layout.vocab.mask, device=device)
    tokens[:, 0] = layout.vocab.special("BOS")
    return make_batch(layout, tokens)


def holes(layout: Layout, tokenizer: PreTrainedTokenizerFast, text: str, hole: str, count: int, device: Any) -> TokenBatch:
    """`count` rows in which `text` is given but for its runs of the hole character, one masked token per character of a
    run; what follows the text is closed by end tokens. Raises ValueError for a text without holes or too long.
    """
    pieces: list[int] = []
    mask = layout.vocab.mask
    for part in _runs(text, hole):
        pieces += [mask] * len(part) if part.startswith(hole) else list(tokenizer.encode(part, add_special_tokens=False))
    room = layout.length - 1
    if mask not in pieces or len(pieces) > room:
        raise ValueError(
            f"{text!r} has {pieces.count(mask)} holes of {hole!r} and {len(pieces)} tokens: give at least one hole, "
            f"and at most {room} tokens"
        )
    closed = [layout.vocab.special("BOS"), *pieces] + [layout.vocab.special("EOS")] * (room - len(pieces))
    tokens = torch.tensor([closed] * count, device=device)
    return make_batch(layout, tokens, given=tokens != mask)


def _runs(text: str, hole: str) -> list[str]:
    runs: list[str] = []
    for c in text:
        if runs and (runs[-1][0] == hole) == (c == hole):
            runs[-1] += c
        else:
            runs.append(c)
    return runs


def to_text(tokenizer: PreTrainedTokenizerFast, layout: Layout, tokens: Tensor, cut: bool = True) -> list[str]:
    """Strings of token rows, without BOS; `cut` ends a row at its first end token, else end tokens are left out."""
    eos, out = layout.vocab.special("EOS"), []
    for row in tokens[:, 1:].tolist():
        ids = row[: row.index(eos)] if cut and eos in row else [i for i in row if i != eos]
        out.append(tokenizer.decode([i for i in ids if i < layout.vocab.text_size and i != layout.vocab.mask]))
    return out


def save_task(folder: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    """The corpus settings and the tokenizer beside the weights."""
    from discdiff.config import to_dict

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "corpus.json").write_text(json.dumps(to_dict(corpus), indent=2) + "\n")


def load_task(folder: Path) -> tuple[Corpus, PreTrainedTokenizerFast]:
    """Inverse of `save_task`. Raises ValueError for a folder that `python -m tasks.text train` did not write."""
    from discdiff.config import from_dict

    path = folder / "corpus.json"
    if not path.exists():
        raise ValueError(f"{str(folder)!r} has no corpus.json: give the folder that `python -m tasks.text train` wrote")
    return from_dict(json.loads(path.read_text()), {"Corpus": Corpus}), tokenizers.load(folder / "tokenizer")
