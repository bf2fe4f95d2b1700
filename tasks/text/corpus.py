"""A corpus tokenised once into a memory-mapped file, and the rows that training reads from it.

file = tokenise(Source("corpus.txt"), tokenizer, "cache", eos_id=tokenizer_size)
train, valid = split(file, 0.1, by="stream")
rows = PackedRows(train, length=1024)
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tasks.text.sources import Source, iter_documents
from tasks.text.tokenizer import cutter, encoder, fingerprint

__all__ = ["PackedRows", "PaddedRows", "Part", "Source", "TokenFile", "iter_documents", "split", "tokenise"]

VERSION = 1  # of the file format; part of the cache key
TOKENS, OFFSETS, HEADER = "tokens.bin", "offsets.npy", "header.json"
BATCH = 1 << 20  # characters encoded in one call


class TokenFile:
    """A folder written by `tokenise`, memory-mapped: documents one after another, each closed by `eos_id` where one was set.

    `tokens` (tokens,) uint16 or uint32; `offsets` (documents + 1,) int64, so document i is tokens[offsets[i]:offsets[i + 1]];
    `header` a dict. `len` is the number of tokens.

    Raises ValueError for a folder that is no token file, or whose sizes are not what its header says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.header: dict[str, Any] = json.loads((self.folder / HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(folder)!r} is no token file ({error}): write one with `tokenise`") from error
        self.verify()
        self.tokens = np.memmap(self.folder / TOKENS, dtype=self.header["dtype"], mode="r")
        self.offsets = np.load(self.folder / OFFSETS, mmap_mode="r", allow_pickle=False)

    def verify(self) -> None:
        """Compares version and sizes with the header. Raises ValueError where they differ."""
        remedy = f"delete {str(self.folder)!r} and tokenise again"
        if self.header.get("version") != VERSION:
            raise ValueError(f"token file version {self.header.get('version')}, this code reads {VERSION}: {remedy}")
        size = self.header["tokens"] * np.dtype(self.header["dtype"]).itemsize
        for name, expected in {TOKENS: size, OFFSETS: self.header["offset_bytes"]}.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise ValueError(f"{str(path)!r} has {found} bytes, its header says {expected}: {remedy}")

    def __len__(self) -> int:
        return self.header["tokens"]

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return TokenFile, (self.folder,)  # workers map the file anew instead of being sent its content

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.header["documents"]

    def document(self, number: int) -> np.ndarray:
        """The tokens (length,) of one document, without a copy."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


def tokenise(
    documents: Source | Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    *,
    eos_id: int | None = None,
    forbid: Sequence[int] = (),
    identity: Any = None,
) -> TokenFile:
    """Writes the tokens of `documents` below `folder` and maps them; what was written before with the same key is reused.

    The key hashes the identity of the documents (a `Source`'s own; of a list its content; of another iterable `identity`, a
    JSON value, has to say), the tokenizer, the options and the format version. Writing is atomic: a temporary folder renamed
    at the end, so that a crash leaves at most a hidden folder, and of two writers at once the first wins.

    eos_id: closes every document, for `PackedRows`; it may lie behind the tokenizer's ids.
    forbid: ids that the text must not produce, such as the mask's.

    Raises ValueError for a corpus without tokens, a forbidden id (naming its first document), a text the tokenizer cannot
    encode, and everything that `iter_documents` refuses.
    """
    if eos_id is not None and (eos_id < 0 or eos_id in forbid):
        raise ValueError(f"eos_id {eos_id} must be 0 or more and none of the forbidden {list(forbid)}: choose another")
    facts = {
        "version": VERSION,
        "source": _identity(documents, identity),
        "tokenizer": fingerprint(tokenizer),
        "eos_id": eos_id,
        "forbid": sorted(forbid),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    target = Path(folder) / f"tokens-{key[:24]}"
    if not target.exists():
        vocab_size = max(max(tokenizer.get_vocab().values()), -1 if eos_id is None else eos_id) + 1
        dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        texts = iter_documents(documents) if isinstance(documents, Source) else documents
        with _published(target) as partial:
            offsets = _write_tokens(partial / TOKENS, texts, tokenizer, dtype, eos_id, forbid)
            with (partial / OFFSETS).open("wb") as file:
                np.save(file, offsets)
                _flush(file)
            header = {"dtype": dtype.name, "tokens": int(offsets[-1]), "documents": len(offsets) - 1, "key": key}
            header |= {"vocab_size": vocab_size, "offset_bytes": (partial / OFFSETS).stat().st_size} | facts
            with (partial / HEADER).open("w", encoding="utf-8") as file:
                json.dump(header, file, indent=2)
                _flush(file)
    return TokenFile(target)


def _identity(documents: Source | Iterable[str], identity: Any) -> Any:
    if isinstance(documents, str):
        raise ValueError("documents is one string: give a list of texts, or Source(path) for a file")
    if identity is not None:
        return identity
    if isinstance(documents, Source):
        return documents.identity()
    if not isinstance(documents, Sequence):
        raise ValueError("documents can be read only once: give identity= (what decides them) to name their token file")
    digest = hashlib.sha256()
    for text in documents:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` in one step if the block ends well, and disappears otherwise."""
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush_folder(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
        _flush_folder(target.parent)  # another writer may have come first: equal keys, equal content
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _batches(texts: Iterable[str], cut: Any) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of documents, about `BATCH` characters at a time, each with whether it ends its document."""
    pieces: list[str] = []
    ends: list[bool] = []
    size = 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"document {number} is a {type(text).__name__}, not a string: yield texts")
        parts = cut(text)
        for rank, piece in enumerate(parts, 1):
            pieces.append(piece)
            ends.append(rank == len(parts))
            size += len(piece) + 1  # the 1 bounds the number of empty documents in a batch
            if size >= BATCH:
                yield pieces, ends
                pieces, ends, size = [], [], 0
    if pieces:
        yield pieces, ends


def _write_tokens(
    path: Path,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    dtype: np.dtype,
    eos_id: int | None,
    forbid: Sequence[int],
) -> np.ndarray:
    """Writes the tokens and returns the offsets (documents + 1,)."""
    encode = encoder(tokenizer)
    offsets = [np.zeros(1, np.int64)]
    documents = total = 0
    with path.open("wb") as file:
        for pieces, ends in _batches(texts, cutter(tokenizer)):
            encoded = encode(pieces)
            closing = np.array(ends)
            sizes = np.fromiter(map(len, encoded), np.int64, len(encoded)) + (closing & (eos_id is not None))
            stops = sizes.cumsum()
            buffer = np.empty(stops[-1], dtype)
            for ids, start in zip(encoded, stops - sizes):
                buffer[start : start + len(ids)] = ids
            if eos_id is not None:
                buffer[stops[closing] - 1] = eos_id
            if len(forbid) and (hits := np.flatnonzero(np.isin(buffer, forbid))).size:
                number = documents + int(np.searchsorted(stops[closing], hits[0], side="right"))
                token = int(buffer[hits[0]])
                name = f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})"
                remedy = (
                    "take that text out, or set tokenizer.backend_tokenizer.encode_special_tokens = True to spell it"
                )
                raise ValueError(f"document {number} gives the forbidden token id {name}: {remedy}")
            buffer.tofile(file)
            offsets.append(total + stops[closing])
            documents += int(closing.sum())
            total += int(stops[-1])
        _flush(file)
    if total - documents * (eos_id is not None) <= 0:
        raise ValueError(f"the corpus is empty: {documents} documents without a token; check the source")
    return np.concatenate(offsets)


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
