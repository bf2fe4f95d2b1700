"""Text tokenizers: characters, bytes, byte-level BPE trained here, or any of Hugging Face, all `PreTrainedTokenizerFast`.

Ours hold no special tokens: mask, end and padding are ids of the library's vocabulary layout, behind the text ids.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from discdiff.manifest import sealed, verify

KINDS = ("characters", "bytes", "bpe")
PIECE = 1 << 16  # characters; long documents are encoded in pieces of about this size where a cut changes no token
_CHARACTER = r"[\s\S]"
_LARGEST = 1 << 30  # bytes of a tokenizer's file

# Byte-level tokenizers write byte b as a printable character: itself where Latin-1 prints it, else 256 and up (GPT-2).
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + rank): byte for rank, byte in enumerate(_HIDDEN)}


class CharacterTokenizer(PreTrainedTokenizerFast):
    """One token per character; a character outside the vocabulary is a ValueError that names it."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except Exception as error:
            _refuse_unknown(_strings((text, *args[:1], kwargs.get("text_pair"))), self.get_vocab(), error)
            raise


# What save_pretrained writes as the class: AutoTokenizer then finds one it knows, without this module.
CharacterTokenizer.__name__ = PreTrainedTokenizerFast.__name__


def characters(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per distinct character of `texts`, in code point order. Raises ValueError where there is none."""
    seen: set[str] = set()
    for text in _checked(texts):
        seen.update(text)
    if not seen:
        raise ValueError("the texts hold no character to build a vocabulary of: give at least one that is not empty")
    # The unknown token is deliberately not in the vocabulary: the backend then fails instead of dropping a character.
    model = models.WordLevel({symbol: rank for rank, symbol in enumerate(sorted(seen))}, unk_token="<unknown>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    return CharacterTokenizer(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def bytes_() -> PreTrainedTokenizerFast:
    """256 tokens: the id is the value of the UTF-8 byte."""
    backend = Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` tokens trained on `texts` (Sennrich et al., arXiv 1508.07909; GPT-2's).

    Warns where the texts give fewer merges than asked for. Raises ValueError for a `vocab_size` of 256 or less.
    """
    if vocab_size <= 256:
        raise ValueError(f"vocab_size {vocab_size} leaves no merge beyond the 256 bytes: ask for more, or use 'bytes'")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(BYTES), show_progress=False)
    backend.train_from_iterator(_checked(texts), trainer)
    if backend.get_vocab_size() < vocab_size:
        found = backend.get_vocab_size()
        warnings.warn(
            f"the texts give a BPE of {found} tokens, not {vocab_size}: they hold no more pairs", stacklevel=2
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def load(path_or_name: str | Path) -> PreTrainedTokenizerFast:
    """A saved tokenizer of any kind, or one of the Hugging Face hub by name; its special tokens stay as they are.

    Code that lies beside it is never run. Raises ValueError where none is found, its folder is damaged, or it does not run
    on the `tokenizers` library.
    """
    try:
        if sealed(path_or_name):
            verify(path_or_name)
        _check_sizes(Path(path_or_name))
        tokenizer = AutoTokenizer.from_pretrained(path_or_name, trust_remote_code=False)
        if isinstance(tokenizer, PreTrainedTokenizerFast) and _kind(_state(tokenizer)) == "characters":
            tokenizer = CharacterTokenizer.from_pretrained(path_or_name)
        tokenizer("")  # settings that nothing can be encoded with are found now
    except Exception as error:  # of any type: both libraries below raise what their parsers happen to
        remedy = f"give one of {', '.join(KINDS)}, a folder written by save_pretrained, or a name on the hub"
        reason = " ".join(str(error).split())  # transformers writes paragraphs
        raise ValueError(f"no tokenizer loads from {str(path_or_name)!r} ({reason}); {remedy}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{str(path_or_name)!r} is a {type(tokenizer).__name__}: choose one that has a tokenizer.json")
    return tokenizer


def _check_sizes(folder: Path) -> None:
    for path in folder.glob("*.json"):
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes: that is no part of a tokenizer")


def build(kind: str, texts: Iterable[str] | None = None, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer called `kind`: "characters" or "bpe" made from `texts`, "bytes", or else what `load(kind)` finds.

    Raises ValueError where `texts` or, for "bpe", `vocab_size` is missing, and for a `vocab_size` nothing would use.
    """
    if (vocab_size is not None) != (kind == "bpe"):
        raise ValueError(f"vocab_size={vocab_size} with tokenizer {kind!r}: 'bpe' needs one, the others find their own")
    if kind in ("characters", "bpe") and texts is None:
        raise ValueError(f"tokenizer {kind!r} is made from texts: give some")
    if kind == "characters":
        return characters(texts or ())
    if kind == "bpe":
        return bpe(texts or (), vocab_size or 0)
    return bytes_() if kind == "bytes" else load(kind)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides which ids a text gets: equal fingerprints, equal ids."""
    state = _state(tokenizer) | {"encode_special_tokens": tokenizer.backend_tokenizer.encode_special_tokens}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str]], Sequence[Sequence[int] | np.ndarray]]:
    """The function from a list of texts to their token ids: no special tokens added, nothing truncated or padded.

    Characters and bytes are looked up by numpy; the rest runs in `tokenizers`' parallel batch encoder. The function
    raises ValueError for a character that a character tokenizer does not hold.
    """
    state = _state(tokenizer)
    kind = _kind(state)
    if kind == "bytes":
        return lambda texts: [np.frombuffer(text.encode(), np.uint8) for text in texts]
    if kind == "characters":
        vocabulary = tokenizer.get_vocab()
        table = np.full(0x110000, -1, np.int32)
        table[[ord(symbol) for symbol in vocabulary]] = list(vocabulary.values())

        def look_up(texts: list[str]) -> list[np.ndarray]:
            found = [table[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in texts]
            if any(ids.size and ids.min() < 0 for ids in found):
                _refuse_unknown(texts, vocabulary)
            return found

        return look_up
    backend = Tokenizer.from_str(json.dumps(state))  # a copy: an earlier call may have left truncation or padding set
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    return lambda texts: [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def cutter(tokenizer: PreTrainedTokenizerFast, size: int = PIECE) -> Callable[[str], list[str]]:
    """The function that cuts a text into pieces of about `size` characters whose ids, joined, are the whole text's.

    Characters and bytes are cut anywhere; byte-level BPE between words, behind a single newline; other tokenizers never:
    there a whole document is encoded at once.
    """
    state = _state(tokenizer)
    if _kind(state) is not None:
        return lambda text: [text[at : at + size] for at in range(0, len(text), size)] or [text]
    before = state["pre_tokenizer"] or {}
    words = before.get("type") == "ByteLevel" and before["use_regex"] and not before["add_prefix_space"]
    added = any("\n" in token["content"] or token["lstrip"] for token in state["added_tokens"])
    if not words or added or state["normalizer"]:
        return lambda text: [text]
    between = re.compile(r"(?<=[!-~])\n(?=[!-~])")

    def cut(text: str) -> list[str]:
        stops = [0]
        while len(text) - stops[-1] > size and (found := between.search(text, stops[-1] + size)):
            stops.append(found.end())
        return [text[a:b] for a, b in zip(stops, [*stops[1:], len(text)])]

    return cut


def _state(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The backend's JSON without truncation and padding, which calls set and leave behind."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}


def _kind(state: dict[str, Any]) -> str | None:
    """Which of our two tables a tokenizer is, read from its state, so that it holds after save and load."""
    model, before = state["model"], state["pre_tokenizer"] or {}
    if state["added_tokens"] or state["normalizer"]:
        return None
    if model["type"] == "WordLevel" and before.get("pattern") == {"Regex": _CHARACTER}:
        return "characters"
    if before.get("type") == "ByteLevel" and not before["add_prefix_space"] and model.get("merges") == []:
        return "bytes" if model["vocab"] == BYTES else None
    return None


def _checked(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str):
        raise ValueError("texts is one string: give a list of documents, such as [text]")
    return texts


def _strings(nested: Any) -> list[str]:
    if isinstance(nested, str):
        return [nested]
    values = nested.values() if isinstance(nested, dict) else nested if isinstance(nested, list | tuple) else ()
    return [text for value in values for text in _strings(value)]


def _refuse_unknown(texts: Iterable[str], vocabulary: dict[str, int], cause: Exception | None = None) -> None:
    for text in texts:
        for position, symbol in enumerate(text):
            if symbol not in vocabulary:
                name = f"{symbol!r} (U+{ord(symbol):04X}) at position {position}"
                remedy = "build the tokenizer from texts that hold it, or use the kind 'bytes'"
                message = f"character {name} is not among the tokenizer's {len(vocabulary)} characters: {remedy}"
                raise ValueError(message) from cause
