"""Codes that are numbers: what the ids of a modality stand for, and one number read out of a law over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout, TokenBatch

READ_OUTS = ("expectation", "mode", "argmax")

Row = tuple[float, ...]


@dataclass(frozen=True, repr=False)
class CodeValues:
    """The numbers that codes stand for, by modality: `CodeValues({"action": tokenizer.levels})`.

    A modality's numbers are (codes,), or (period, codes) where the positions of its segments take turns, as those of a chunk
    (step, dim) do over dim; each row rises. Any unit will do, but widths and windows are in it: with normalised actions in
    [-1, 1] one width suits every dimension. Raises ValueError for numbers that are not finite or do not rise, and, where a
    layout is met, for a modality that it does not have, a codebook of another size, a period that does not divide a segment,
    and noised segments with symbols that are no numbers (extras, a mask id inside the range).
    """

    numbers: Mapping[str, Any]

    def __post_init__(self) -> None:
        checked("numbers", self.numbers, isinstance(self.numbers, Mapping) and len(self.numbers) > 0, "name a modality")
        object.__setattr__(self, "numbers", {name: _rows(name, given) for name, given in self.numbers.items()})

    def __hash__(self) -> int:
        return hash(tuple(self.numbers))

    def __repr__(self) -> str:
        sizes = (f"{name}: {len(rows)} x {len(rows[0])}" for name, rows in self.numbers.items())
        return f"CodeValues({', '.join(sizes)})"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The distinct rows of numbers of all modalities; equal levels of all dimensions are one row."""
        return tuple(dict.fromkeys(row for rows in self.numbers.values() for row in rows))

    def table(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
        """`rows` as (rows, widest codebook), nan behind the last code of a smaller one; built once."""
        key = f"table@{device}@{dtype}"
        if key not in self.__dict__:
            widest = max(map(len, self.rows))
            padded = [row + (math.nan,) * (widest - len(row)) for row in self.rows]
            with torch.inference_mode(False):  # a table made inside inference mode could never meet a gradient
                self.__dict__[key] = torch.tensor(padded, dtype=torch.float64).to(device, dtype)
        return self.__dict__[key]

    def labels(self, width: float, device: torch.device | str = "cpu") -> Tensor:
        """The soft labels of every code, of length 1: (rows, codes, codes of the label), float64, 0 behind; built once."""
        key = f"labels@{width}@{device}"
        if key not in self.__dict__:
            found = self.table().new_zeros(*self.table().shape, self.table().shape[1])
            for row, v in enumerate(self.table().unbind()):
                v = v[v.isfinite()]
                found[row, : len(v), : len(v)] = unit_labels(v, width)
            self.__dict__[key] = found.to(device)
        return self.__dict__[key]

    def check(self, layout: Layout) -> None:
        """Raise ValueError unless the numbers fit the layout."""
        _places(self, layout, "cpu")

    def at(self, batch: TokenBatch, index: Tensor | None = None) -> Tensor:
        """Which row of `table` the codes of each position are read by, -1 for none: (batch, length), or (n,) at flat sites."""
        place = _places(self, batch.layout, str(batch.tokens.device))
        return place[batch.slot if index is None else batch.slot.reshape(-1)[index]]

    def of(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        """The numbers of global ids (batch, length), float64; nan at masks and where an id is no number."""
        place, code, table = self.at(batch), batch.symbols(tokens), self.table(tokens.device)
        inside = (place >= 0) & (code >= 0) & (code < table.shape[1])
        found = table[place.clamp(min=0), code.clamp(0, table.shape[1] - 1)]
        return torch.where(inside, found, math.nan)


def _rows(name: str, given: Any) -> tuple[Row, ...]:
    try:
        table = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"numbers of {name!r} are no table: give (codes,) or (period, codes); {error}") from error
    table = table[None] if table.ndim == 1 else table
    shaped = table.ndim == 2 and table.shape[0] >= 1 and table.shape[1] >= 2
    checked(f"numbers of {name!r}", tuple(table.shape), shaped, "give (codes,) or (period, codes), at least 2 codes")
    rises = bool(table.isfinite().all()) and bool((table.diff(dim=1) > 0).all())
    least = float(table.diff(dim=1).min())
    checked(f"least step of the numbers of {name!r}", least, rises, "give finite numbers that rise, such as levels")
    return tuple(tuple(row) for row in table.tolist())


@functools.lru_cache(maxsize=64)
def _places(values: CodeValues, layout: Layout, device: str) -> Tensor:
    """`at` by slot, (length,) int64."""
    modalities = {segment.modality for segment in layout.segments}
    place = torch.full((layout.sequence,), -1)
    for name, rows in values.numbers.items():
        checked("modality with numbers", name, name in modalities, f"segments of the layout are {sorted(modalities)}")
        codes = layout.vocab.range(name)[1]
        checked(f"codes of {name!r} with numbers", len(rows[0]), len(rows[0]) == codes, f"give {codes}, one per code")
        number = torch.tensor([values.rows.index(row) for row in rows])
        for segment in layout.segments:
            if segment.modality != name:
                continue
            columns = layout.columns(segment.name)
            divides = len(columns) % len(rows) == 0
            what = f"rows of numbers of {name!r}"
            checked(
                what, len(rows), divides, f"a divisor of the {len(columns)} positions of {segment.name!r} is needed"
            )
            if segment.noised:
                alphabets = {int(n) for n in layout.tables().alphabet[columns]}
                plain = not segment.extras and all(layout.banned(n) is None for n in alphabets)
                checked(
                    f"extras of {segment.name!r}", segment.extras, plain, "no extras nor mask in the range: no numbers"
                )
            place[columns] = number[torch.arange(len(columns)) % len(rows)]
    return place.repeat(layout.length // layout.sequence).to(device)


def read_out(p: Tensor, values: Tensor, how: str = "expectation", window: float = 0.05) -> Tensor:
    """One number of a law p (n, codes) over `values`, (codes,) or (n, codes): (n,).

    "expectation" sum_c p_c v_c; "mode" the mean within +- window of the code around which most probability lies (lowest among
    ties), so that of two separate peaks the heavier one counts alone; "argmax" the likeliest code's. Raises ValueError for
    another `how`.
    """
    checked("how", how, how in READ_OUTS, f"choose from {', '.join(READ_OUTS)}")
    if how == "expectation":
        return (p * values).sum(-1)
    if how == "argmax":
        return values.expand_as(p).gather(-1, p.argmax(-1, keepdim=True))[..., 0]
    return near(
        p, values, values.expand_as(p).gather(-1, around(p, values, window).argmax(-1, keepdim=True))[:, 0], window
    )


def near(p: Tensor, values: Tensor, centre: Tensor, window: float = 0.05) -> Tensor:
    """The mean of a law p (n, codes) within +- window of numbers (n,): (n,); the number itself where no code is likely."""
    share = p * ((values - centre[:, None]).abs() <= window)
    total = share.sum(-1)
    return torch.where(total > 0, (share * values).sum(-1) / total.clamp(min=1e-300), centre)


def soft_label(values: Tensor, number: Tensor, width: float) -> Tensor:
    """q(c) ~ exp(-(v_c - number)^2 / (2 width^2)) over `values`, (codes,) or (n, codes), for numbers (n,): (n, codes)."""
    width = max(width, torch.finfo(values.dtype).tiny)  # 0 / 0 would be no label
    return (-0.5 * ((values - number[:, None]) / width).square()).softmax(-1)


def unit_labels(values: Tensor, width: float) -> Tensor:
    """The soft label of every one of `values` (codes,), divided by its length: (codes, codes of the label)."""
    q = soft_label(values, values, width)
    return q / q.norm(dim=1, keepdim=True)


def matched(p: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """The number whose soft label is most like a law p (n, codes), argmax_v <p, q_v> / |q_v|: (n,); values (codes,), labels
    (codes, codes) of length 1, of every code.

    It gives a label's own number, to a small part of a step, also where the label is cut off at an end of the range and means
    and windows lie inside of it; and of two separate peaks it takes one. Between codes it is the top of a parabola through
    the three best. A matched filter.
    """
    score, last = p @ labels.mT, p.shape[1] - 1
    best = score.argmax(-1, keepdim=True)
    a, b, c = (score.gather(-1, (best + side).clamp(0, last)) for side in (-1, 0, 1))
    top = 0.5 * (a - c) / (a - 2 * b + c).clamp(max=-torch.finfo(p.dtype).tiny)
    shift = torch.where((best > 0) & (best < last), top.clamp(-0.5, 0.5), 0.0)
    here, beside = (values.expand_as(p).gather(-1, each) for each in (best, best + shift.sign().long()))
    return torch.lerp(here, beside, shift.abs())[:, 0]


def around(p: Tensor, values: Tensor, window: float) -> Tensor:
    """Probability within +- window of every code's number, (n, codes) -> (n, codes)."""
    below = torch.nn.functional.pad(p.cumsum(-1), (1, 0))
    low, high = (torch.searchsorted(values, values + d * window, right=d > 0).expand_as(p) for d in (-1, 1))
    return below.gather(-1, high) - below.gather(-1, low)
