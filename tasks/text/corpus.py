"""The rows that training reads from a corpus tokenised once: packed windows or one padded document each.

file = tokenise(Source("corpus.txt"), tokenizer, "cache", eos_id=len(tokenizer))
train, valid = split(file, 0.1, by="stream")
rows = PackedRows(train, length=1024)
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.text.sources import Source, iter_documents
from tasks.text.tokenfile import TokenFile, tokenise

__all__ = ["PackedRows", "PaddedRows", "Part", "Source", "TokenFile", "iter_documents", "split", "tokenise"]


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a token file: `documents` (n,) numbers in the file, `starts` (n,) and `lengths` (n,) of what is taken of each."""

    file: TokenFile
    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        if not self.lengths.sum():
            raise ValueError("a part of the corpus holds no token: use a larger corpus or another fraction")

    @classmethod
    def of(cls, data: "TokenFile | Part") -> "Part":
        """The whole of a token file; a part is returned as it is."""
        if isinstance(data, Part):
            return data
        offsets = np.asarray(data.offsets)
        return cls(data, np.arange(data.documents), offsets[:-1], np.diff(offsets))

    def take(self, chosen: np.ndarray) -> "Part":
        """The documents at the places `chosen`, indices or mask."""
        return Part(self.file, self.documents[chosen], self.starts[chosen], self.lengths[chosen])


def split(data: TokenFile | Part, fraction: float, *, by: str = "documents", seed: int = 0) -> tuple[Part, Part]:
    """(train, valid), with about `fraction` of the documents or of the tokens in valid.

    by: "documents" puts the documents of smallest hash of (seed, number) into valid, each whole; "stream" its last tokens,
        cutting a document in two where it must.

    Raises ValueError for a fraction outside (0, 1), an unknown `by`, and where a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction {fraction} must lie between 0 and 1, such as 0.1")
    part = Part.of(data)
    if by == "documents":
        count = round(fraction * len(part.documents))
        if not 0 < count < len(part.documents):
            remedy = "give more documents, or by='stream'"
            raise ValueError(f"{fraction} of {len(part.documents)} documents leaves one side empty: {remedy}")
        valid = np.zeros(len(part.documents), bool)
        valid[np.argsort(_hash(part.documents, seed), kind="stable")[:count]] = True
        return part.take(~valid), part.take(valid)
    if by != "stream":
        raise ValueError(f"by is {by!r}: give 'documents' or 'stream'")
    stops = part.lengths.cumsum()
    cut = int(stops[-1]) - round(fraction * int(stops[-1]))
    before = np.clip(cut - (stops - part.lengths), 0, part.lengths)  # tokens of each document that train takes
    train = Part(part.file, part.documents, part.starts, before)
    valid_part = Part(part.file, part.documents, part.starts + before, part.lengths - before)
    return train.take(train.lengths > 0), valid_part.take(valid_part.lengths > 0)


def _hash(numbers: np.ndarray, seed: int) -> np.ndarray:
    """64-bit SplitMix finaliser (Steele, Lea, Flood 2014) of (seed, number), uint64."""
    digest = hashlib.sha256(str(seed).encode()).digest()
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest[:8], "little"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class PackedRows:
    """Consecutive windows of `length` tokens over the documents, joined end to end; a document may run over several rows.

    Row i is {"tokens" (length,) int64, "sample" (length,) int64: the number of the document within the row from 0 on, all 0
    without `boundaries`, "id": i}. The tokens at the end that fill no row are dropped, unless `pad_id` is given: then they
    are a last padded row, every row has "valid" (length,) bool, and padding carries the number of the last document.

    Raises ValueError for a corpus shorter than one row.
    """

    def __init__(
        self, data: TokenFile | Part, length: int, *, boundaries: bool = True, pad_id: int | None = None
    ) -> None:
        part = Part.of(data)
        self.part = part.take(part.lengths > 0)
        self.stops = self.part.lengths.cumsum()
        self.length, self.boundaries, self.pad_id = length, boundaries, pad_id
        if length < 1:
            raise ValueError(f"length {length} must be at least 1")
        if not len(self):
            remedy = "use a larger corpus, a smaller length, or pad_id= to keep the incomplete row"
            raise ValueError(f"the corpus has {self.stops[-1]} tokens, fewer than a row of {length}: {remedy}")

    def __len__(self) -> int:
        tokens = int(self.stops[-1])
        return tokens // self.length if self.pad_id is None else -(-tokens // self.length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _row(index, len(self))
        first = index * self.length
        last = min(first + self.length, int(self.stops[-1]))
        low, high = np.searchsorted(self.stops, [first, last - 1], side="right")
        here = slice(low, high + 1)
        counts = np.diff(np.minimum(self.stops[here], last), prepend=first)  # tokens of each document in this row
        # From a place in the joined documents to the place in the file.
        shifts = self.part.starts[here] + self.part.lengths[here] - self.stops[here]
        if (shifts == shifts[0]).all():  # neighbours in the file too
            tokens = self.part.file.tokens[first + shifts[0] : last + shifts[0]].astype(np.int64)
        else:
            tokens = self.part.file.tokens[np.arange(first, last) + np.repeat(shifts, counts)].astype(np.int64)
        sample = np.repeat(np.arange(len(counts)), counts) if self.boundaries else np.zeros(last - first, np.int64)
        row = {"tokens": tokens, "sample": sample, "id": index}
        if self.pad_id is None:
            return row
        missing = self.length - len(tokens)
        row["valid"] = np.arange(self.length) < len(tokens)
        row["tokens"] = np.pad(tokens, (0, missing), constant_values=self.pad_id)
        row["sample"] = np.pad(sample, (0, missing), mode="edge")
        return row


class PaddedRows:
    """One document a row, closed by `eos_id` and padded: for short documents such as molecules.

    Row i is {"tokens" (length,) int64, "sample" (length,) int64, all 0, "valid" (length,) bool, which includes the end token,
    "id": the number of the document in the file}. `truncate` keeps the first `length` tokens of a longer document, which has
    then no end token.

    Raises ValueError for a document that does not fit (naming it and its length), for a file whose documents already
    are closed, and for a padding id that is the end token's.
    """

    def __init__(
        self, data: TokenFile | Part, length: int, pad_id: int, eos_id: int, *, truncate: bool = False
    ) -> None:
        self.part = Part.of(data)
        self.length, self.pad_id, self.eos_id = length, pad_id, eos_id
        closed = self.part.file.header["eos_id"]
        if closed is not None:
            raise ValueError(f"the documents end in token {closed} already: tokenise without eos_id for padded rows")
        if pad_id == eos_id:
            raise ValueError(f"pad_id and eos_id are both {pad_id}: use two ids, since only the end token is learned")
        long = np.flatnonzero(self.part.lengths + 1 > length)
        if long.size and not truncate:
            number, size = self.part.documents[long[0]], self.part.lengths[long[0]]
            which = f"document {number} has {size} tokens, {size + 1} with its end token ({long.size} such documents)"
            raise ValueError(f"{which}, more than the length {length}: raise length, or set truncate=True")

    def __len__(self) -> int:
        return len(self.part.documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = _row(index, len(self))
        start, size = self.part.starts[index], int(self.part.lengths[index])
        tokens = np.full(self.length, self.pad_id, np.int64)
        kept = min(size, self.length)
        tokens[:kept] = self.part.file.tokens[start : start + kept]
        tokens[size : size + 1] = self.eos_id
        return {
            "tokens": tokens,
            "sample": np.zeros(self.length, np.int64),
            "valid": np.arange(self.length) <= size,
            "id": int(self.part.documents[index]),
        }


def _row(index: int, rows: int) -> int:
    if not -rows <= index < rows:
        raise IndexError(f"row {index} of {rows}")
    return int(index) % rows
