"""Losses that are no finite numbers: the rows they are of stop, the first is named, and no other row notices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

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

    def warn(self, names: Sequence[str], label: str) -> bool:
        """Whether there are any; if so, a RuntimeWarning names the first."""
        found = (self.when >= 0).nonzero()[:, 0].tolist()
        if not found:
            return False
        first, others = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"{label}the term {names[int(self.term[first])]!r} of row {int(self.row[first])}{others} is not finite at inner "
            f"step {int(self.when[first])}: the table before it is kept; lower the rate, or look at the operator",
            RuntimeWarning,
            stacklevel=4,
        )
        return True


def finite(loss: Tensor, label: str) -> Tensor:
    """Losses with infinity for what is no number, which a RuntimeWarning counts."""
    wrong = torch.isnan(loss)
    if bool(wrong.any()):
        message = f"{label}{int(wrong.sum())} of {wrong.numel()} losses are no numbers: what they are of is never taken"
        warnings.warn(f"{message}; look at the operator", RuntimeWarning, stacklevel=4)
    return torch.where(wrong, torch.inf, loss)
