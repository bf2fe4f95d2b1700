"""The inner loop: a table of codes moved towards a measurement, without a gradient through the network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.anchoring.canvas import Canvas
from discdiff.anchoring.soft import Measured
from discdiff.config import checked

_EPS = 1e-8
_LOOK = 8  # inner steps between looks at whether all rows have stopped


class Fit(NamedTuple):
    """logits (m, codes) of the sites; embeddings (n, slots, d) of what they expect; losses (inner steps, n), nan where a row
    had stopped; decoded: rows that were decoded.
    """

    logits: Tensor
    embeddings: Tensor
    losses: Tensor
    decoded: int


@dataclass(frozen=True)
class Descent:
    """Adam on the logits phi of a table, p = softmax(phi), from those of the network:

        loss(decode(e + sg(Q(e) - e))) + beta * sum_sites KL(p || p_network),    e = E_p[embedding].

    Q is the nearest legal code, left out with quantised=False; steps: of the inner loop; rate: of learning; beta: nats; a row
    stops where its loss has not fallen by the share `tolerance` for `patience` steps (tolerance 0: never). The gradient of the
    table is closed-form, p * (G - <p, G>) with G_c = <dloss/de, e_c> + beta log p_c / p_network,c, so that beyond the table
    there are its gradient and Adam's two averages. Rows do not know of one another. The inner loop of APS (arXiv 2510.02291),
    as far as it is public.

    A row whose loss is not a finite number stops with the table it had before, and a RuntimeWarning names step and term.
    """

    steps: int = 100
    rate: float = 0.3
    beta: float = 0.0
    quantised: bool = True
    tolerance: float = 0.0
    patience: int = 10
    decay: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "at least one inner step")
        checked("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        checked("beta", self.beta, 0 <= self.beta < math.inf, "0 or more")
        checked("tolerance", self.tolerance, 0 <= self.tolerance < 1, "a share of the loss in [0, 1)")
        checked("patience", self.patience, self.patience >= 1, "at least one step")
        checked("decay", self.decay, all(0 <= d < 1 for d in self.decay), "two numbers in [0, 1)")

    @torch.no_grad()
    def __call__(
        self, canvas: Canvas, prior: Tensor, measured: Measured, label: str = "", start: Tensor | None = None
    ) -> Fit:
        """The fit of log probabilities `prior` (m, codes), as the network gives them, to what was measured; start: where to
        begin instead of there.
        """
        phi = (prior if start is None else start).clamp(min=-1e4)  # 0 * inf is no number
        first, second = torch.zeros_like(phi), torch.zeros_like(phi)
        rows, owner = len(canvas.row), canvas.owner
        active = torch.ones(rows, dtype=torch.bool, device=phi.device)
        failed = torch.full((rows,), -1, dtype=torch.int64, device=phi.device)
        best, since = phi.new_full((rows,), torch.inf), torch.zeros(rows, dtype=torch.int64, device=phi.device)
        losses: list[Tensor] = []
        names: list[str] = []
        culprit = failed.clone()
        for count in range(self.steps):
            if count % _LOOK == 0 and count and (self.tolerance or _broken(failed)) and not bool(active.any()):
                break
            p = phi.softmax(-1)
            terms, g = slope(canvas, p, measured, self.quantised)
            names, values = list(terms), torch.stack(list(terms.values()))
            pull = canvas.pull(g)
            if self.beta:
                pull += self.beta * (p.log().clamp(min=-1e4) - prior.clamp(min=-1e4))
                kl = _per_row(torch.where(p > 0, p * (p.log() - prior), 0.0).sum(-1), owner, rows)
                names, values = [*names, "kl"], torch.cat([values, self.beta * kl[None]])
            pull -= (p * pull).sum(-1, keepdim=True)
            pull *= p
            whole = torch.cat([values, _per_row(pull.abs().sum(-1), owner, rows)[None]])
            broken = active & ~torch.isfinite(whole).all(0)
            failed = torch.where(broken, count, failed)
            culprit = torch.where(broken, (~torch.isfinite(whole)).long().argmax(0), culprit)
            loss = values.sum(0)
            losses.append(torch.where(active, loss, torch.nan))
            active = active & ~broken
            better = loss < best - self.tolerance * best.abs().clamp(max=1e30)
            best, since = torch.where(better, loss, best), torch.where(better, 0, since + 1)
            if self.tolerance:
                active = active & (since < self.patience)
            go = active[owner, None]
            first.copy_(torch.where(go, first.lerp(pull, 1 - self.decay[0]), first))
            second.copy_(torch.where(go, second.lerp(pull.square_(), 1 - self.decay[1]), second))
            phi -= torch.where(go, self._move(first, second, count), 0.0)
        if _broken(failed):
            self._undo(phi, first, second, failed[owner], failed, culprit, [*names, "gradient"], label)
        return Fit(phi, canvas.expect(phi.softmax(-1)), torch.stack(losses), rows * len(losses))

    def _move(self, first: Tensor, second: Tensor, count: int | Tensor) -> Tensor:
        one, two = (1 - d ** (count + 1) for d in self.decay)
        return self.rate * (first / one) / ((second / two).sqrt() + _EPS)

    def _undo(
        self, phi: Tensor, first: Tensor, second: Tensor, when: Tensor, failed: Tensor, culprit: Tensor,
        names: list[str], label: str,
    ) -> None:  # fmt: skip
        """Take back the last move of rows whose loss it broke: the averages are still those of that move."""
        moved = (when > 0)[:, None]
        phi += torch.where(moved, self._move(first, second, (when - 1).clamp(min=0)[:, None].double()).to(phi), 0.0)
        row = int((failed >= 0).nonzero()[0])
        term, step, more = names[int(culprit[row])], int(failed[row]), int((failed >= 0).sum()) - 1
        others = f" and of {more} other rows" if more else ""
        warnings.warn(
            f"{label}the term {term!r} of row {row}{others} is not finite at inner step {step}: the table before it is "
            "kept; lower the rate, or look at the operator",
            RuntimeWarning,
            stacklevel=3,
        )


def slope(
    canvas: Canvas, p: Tensor, measured: Callable | Measured, quantised: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms (n,) of what a table p (m, codes) decodes to, and the gradient of their sum in its embeddings (n, slots, d):
    at the nearest legal code, passed on to the expectation as it is (straight through).
    """
    e = canvas.expect(p)
    if quantised:
        e = canvas.soft.embed(canvas.soft.quantise(e))
    with torch.enable_grad():
        e = e.requires_grad_()
        terms = measured.terms(canvas.soft.decode(e), canvas.row)  # type: ignore[union-attr]
        (g,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), e)
    return {name: value.detach() for name, value in terms.items()}, g


def _broken(failed: Tensor) -> bool:
    return bool((failed >= 0).any())


def _per_row(values: Tensor, owner: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows).index_add_(0, owner, values)
