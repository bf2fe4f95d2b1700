"""A corpus tokenised once into a memory-mapped file of token ids that later runs reuse."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tasks.text.sources import Source, iter_documents
from tasks.text.tokenizer import cutter, encoder, fingerprint

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
        # As plain arrays: np.memmap's own indexing costs more than a row's tokens do.
        self.tokens = np.asarray(np.memmap(self.folder / TOKENS, dtype=self.header["dtype"], mode="r"))
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
            if not target.exists():  # else another writer came first: equal keys, equal content
                raise
        _flush_folder(target.parent)
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


def batches(texts: Iterable[str], cut: Callable[[str], list[str]]) -> Iterator[tuple[list[str], list[bool]]]:
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
        for pieces, ends in batches(texts, cutter(tokenizer)):
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
