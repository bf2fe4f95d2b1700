"""Rows from a corpus that is read as it is trained on: no token file, any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from discdiff.layout import Layout
from tasks.text.sources import Source, iter_documents
from tasks.text.tokenfile import batches
from tasks.text.tokenizer import cutter, encoder


class StreamRows(IterableDataset[dict[str, Any]]):
    """[BOS | window] rows over the documents of a source, joined end to end and each closed by the end token.

    What is left at the end of the source fills no row and is dropped. Raises ValueError, while it is read, for a document
    that gives the mask id.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> None:
        self.source, self.tokenizer, self.layout = source, tokenizer, layout

    def __iter__(self) -> Iterator[dict[str, Any]]:
        vocab, window = self.layout.vocab, self.layout.length - 1
        encode, end, number = encoder(self.tokenizer), np.array([vocab.special("EOS")]), 0
        parts: list[np.ndarray] = []
        size = 0
        for pieces, ends in batches(iter_documents(self.source), cutter(self.tokenizer)):
            for ids, closed in zip(encode(pieces), ends, strict=True):
                found = np.asarray(ids, dtype=np.int64)
                if vocab.mask_id is not None and (found == vocab.mask).any():
                    raise ValueError(f"the text gives the mask id {vocab.mask}: take it out of {self.source.path!r}")
                parts += [found, end] if closed else [found]
                size += len(found) + closed
            if size < window:
                continue
            joined = np.concatenate(parts)
            for start in range(0, size - window + 1, window):
                row = np.concatenate([[vocab.special("BOS")], joined[start : start + window]])
                yield {"tokens": row, "id": number}
                number += 1
            parts, size = [joined[size - size % window :]], size % window
