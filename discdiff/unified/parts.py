"""One part of many records: data to codes with a mask, and codes to data, a group of equal shapes at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.unified.template import Part

ABSENT_LEVEL = -1
"""Code of a level that a slot does not have."""


class Codes(NamedTuple):
    """Local codes (slots, depth) int64, coarse first, and which slots hold content (slots,) bool, None for all of them;
    of many rows with a batch axis in front. A record may hold them in place of the data they stand for.
    """

    codes: Tensor
    mask: Tensor | None = None


def text_codes(part: Part, tokenizer: Any, texts: Sequence[Any]) -> list[Tensor]:
    """Ids of texts, (tokens, 1) each. Raises ValueError for what is no text and for symbols the tokenizer does not know."""
    for row, text in enumerate(texts):
        if not isinstance(text, str | Codes):
            raise ValueError(f"{part.name!r} of record {row} is a {type(text).__name__}: give a string")
    plain = [text for text in texts if isinstance(text, str)]
    found = iter(tokenizer(plain, add_special_tokens=False, truncation=False)["input_ids"] if plain else [])
    unknown = getattr(tokenizer, "unk_token_id", None)
    out = []
    for text in texts:
        if isinstance(text, Codes):
            out.append(_content(part, text))
            continue
        ids = next(found)
        if unknown is not None and unknown in ids:
            raise ValueError(f"{part.name!r} is {text!r}: the tokenizer knows not all of its symbols")
        out.append(torch.tensor(ids, dtype=torch.int64)[:, None])
    return out


def data_codes(part: Part, tokenizer: Any, values: Sequence[Any]) -> list[Tensor]:
    """Codes of raw data, (slots, depth) each; rows of equal shape are encoded together.

    Raises ValueError for another grid than the part's, and for a mask with holes.
    """
    out: dict[int, Tensor] = {i: _content(part, x) for i, x in enumerate(values) if isinstance(x, Codes)}
    raw = {i: torch.as_tensor(x) for i, x in enumerate(values) if i not in out}
    for members in _groups((i, (tuple(x.shape), x.dtype)) for i, x in raw.items()):
        x = torch.stack([raw[i] for i in members]).to(getattr(tokenizer, "device", "cpu"))
        found = tokenizer.encode(x, None)
        _check_grid(part, tuple(found.grid))
        for i, codes, mask in zip(members, found.codes.cpu(), found.mask.cpu(), strict=True):
            out[i] = _content(part, Codes(codes, mask))
    return [out[i] for i in range(len(values))]


def data_values(part: Part, tokenizer: Any, codes: Tensor, mask: Tensor) -> tuple[list[Any], list[bool]]:
    """Raw data of codes (rows, slots, depth) whose content is the mask's (rows, slots) first slots, None where it is empty; and
    which rows were malformed, as a tokenizer says that has `decode_flagged(codes)` -> data, flags (rows,).

    Rows of equally many slots are decoded together.
    """
    counts = mask.sum(1).tolist()
    out: list[Any] = [None] * len(counts)
    malformed = [False] * len(counts)
    flagged = getattr(tokenizer, "decode_flagged", None)
    for members in _groups((i, n) for i, n in enumerate(counts) if n):
        n = counts[members[0]]
        grid = (n // part.frame, *part.grid[1:])
        some = codes[members, :n].to(getattr(tokenizer, "device", "cpu"))
        if flagged is None:
            values, flags = tokenizer.decode(some, grid, None), [False] * len(members)
        else:
            values, flags = flagged(some)
        for i, value, flag in zip(members, values, flags, strict=True):
            out[i], malformed[i] = value.cpu(), bool(flag)
    return out, malformed


def stacked(part: Part, found: Sequence[Tensor], depth: int) -> Codes:
    """Rows of codes filled up to the part's slots, and their masks. Raises ValueError for rows that do not fit."""
    codes = torch.zeros(len(found), part.slots, depth, dtype=torch.int64)
    mask = torch.zeros(len(found), part.slots, dtype=torch.bool)
    for row, x in enumerate(found):
        n = len(x)
        if x.shape != (n, depth) or x.dtype != torch.int64:
            raise ValueError(f"{part.name!r} has {x.dtype} codes {tuple(x.shape)}: give int64 (slots, {depth})")
        if n > part.slots or (n < part.slots and not part.variable):
            remedy = "give the part more slots" if n > part.slots else "make the part variable, or fill it"
            raise ValueError(f"{part.name!r} of record {row} takes {n} slots, the template has {part.slots}: {remedy}")
        codes[row, :n], mask[row, :n] = x, True
    return Codes(codes, mask)


def _groups(keyed: Iterable[tuple[int, Hashable]]) -> Iterator[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for i, key in keyed:
        found.setdefault(key, []).append(i)
    yield from found.values()


def _content(part: Part, given: Codes) -> Tensor:
    """The slots that hold content, which must be the first ones."""
    if given.mask is None:
        return given.codes
    n = int(given.mask.sum())
    if not bool(given.mask[:n].all()):
        raise ValueError(f"{part.name!r} has slots without data before slots with data: content comes first")
    return given.codes[:n]


def _check_grid(part: Part, grid: tuple[int, ...]) -> None:
    fits = len(grid) == len(part.grid) and grid[1:] == part.grid[1:]
    if not fits or (grid[0] != part.grid[0] and not part.variable):
        raise ValueError(f"{part.name!r} is tokenized to a grid of {grid} slots, the template has {part.grid}")
