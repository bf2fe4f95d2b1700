"""Losses that are no finite numbers: the rows they are of stop, the first is named, and no other row notices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Failures:
    """Rows (n,), by number in the run, one of whose terms was not finite: `when` (n,), the inner step or -1, and which one."""

    def __init__(self, row: Tensor) -> None:
        self.row = row
        self.when, self.term = torch.full_like(row, -1), torch.zeros_like(row)

    def note(self, count: int, values: Tensor, active: Tensor) -> Tensor:
        """Which of the `active` rows (n,) go on, of what inner step `count` gave, (terms, n)."""
        wrong = ~torch.isfinite(values)
        broken = active & wrong.any(0)
        self.when = torch.where(broken, count, self.when)
        self.term = torch.where(broken, wrong.long().argmax(0), self.term)
        return active & ~broken

    def warn(self, names: Sequence[str], label: str, kept: str = "the table before it") -> bool:
        """Whether there are any; if so, a RuntimeWarning names the first, and what is kept."""
        found = (self.when >= 0).nonzero()[:, 0].tolist()
        if not found:
            return False
        first, others = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"{label}the term {names[int(self.term[first])]!r} of row {int(self.row[first])}{others} is not finite at inner "
            f"step {int(self.when[first])}: {kept} is kept; lower the rate, or look at the operator",
            RuntimeWarning,
            stacklevel=4,
        )
        return True


class Costs:
    """Losses that are sums of terms, infinite where a term is not a finite number; `warn` tells of it, once for all of them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.wrong: Tensor | int = 0
        self.count = 0

    def __call__(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Terms (n,) to their sums (n,) float64."""
        values = torch.stack(list(terms.values())).double()
        wrong = ~torch.isfinite(values)
        self.names, self.count, self.wrong = list(terms), self.count + values.shape[1], self.wrong + wrong.sum(1)
        return torch.where(wrong.any(0), torch.inf, values.sum(0))

    def warn(self, label: str) -> None:
        """A RuntimeWarning for each term that was not finite somewhere."""
        found = self.wrong.tolist() if isinstance(self.wrong, Tensor) else []
        for name, count in zip(self.names, found, strict=True):
            if count:
                message = (
                    f"{label}the term {name!r} is not finite for {count} of {self.count} data, which are never taken"
                )
                warnings.warn(f"{message}; look at the operator", RuntimeWarning, stacklevel=4)
