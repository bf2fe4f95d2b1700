"""The inner loop: a table of codes moved towards a measurement, without a gradient through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.anchoring.adam import Adam, dot
from discdiff.anchoring.canvas import NEVER, Canvas, forbidden, limits
from discdiff.anchoring.failures import Failures
from discdiff.anchoring.soft import Measured
from discdiff.config import checked

_LOOK = 8  # inner steps between looks at whether all rows have stopped


class Fit(NamedTuple):
    """logits (m, codes) of the sites, those of the least loss that was seen; embeddings (n, slots, d) of what they expect;
    losses (inner steps, n), nan where a row had stopped; decoded: rows that were decoded.
    """

    logits: Tensor
    embeddings: Tensor
    losses: Tensor
    decoded: int


@dataclass(frozen=True)
class Descent:
    """Adam on the logits phi of a table, p = softmax(phi), from those of the network, at a rate that falls to 0 as a cosine:

        loss(decode(e + sg(Q(e) - e))) + beta * sum_sites KL(p || p_network),    e = E_p[embedding].

    Q is the nearest legal code that the network does not forbid, left out with quantised=False; steps: tables that are decoded,
    the first of them where it begins; rate: of learning, at first; beta: nats; a row stops where its loss has not fallen by the
    share `tolerance` for `patience` steps (tolerance 0: never). The gradient of the table is closed-form, p * (G - <p, G>) with
    G_c = <dloss/de, e_c> + beta log p_c / p_network,c, so that beyond the table and p there are its gradient, Adam's two
    averages, and the table of least loss, which is the fit. Rows do not know of one another. The inner loop of APS (arXiv
    2510.02291), as far as it is public.

    A row whose loss is not a finite number stops there, and a RuntimeWarning names step and term.
    """

    steps: int = 100
    rate: float = 0.3
    beta: float = 0.0
    quantised: bool = True
    tolerance: float = 0.0
    patience: int = 10
    decay: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 2, "at least two: where it begins, and a table that was moved")
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
        begin instead of there, overwritten.
        """
        phi, within = prior.clamp(min=NEVER) if start is None else start.clamp_(min=NEVER), limits(prior)
        adam, failures, owner = Adam(phi, self.rate, self.decay), Failures(canvas.row), canvas.owner
        active = torch.ones_like(canvas.row, dtype=torch.bool)
        least, since = phi.new_full(active.shape, torch.inf), torch.zeros_like(canvas.row)
        best, kept = least, phi.clone()
        # written again and again: new pages cost more than the sums
        p, grad = torch.empty_like(phi), torch.empty_like(phi)
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        g = canvas.known
        for count in range(self.steps):
            if count and count % _LOOK == 0 and not bool(active.any()):
                break
            if count:
                canvas.pull(g, grad, self.beta)
                project(p, grad)
                adam.rate = self.rate * (1 + math.cos(math.pi * (count - 1) / (self.steps - 1))) / 2
                adam.move(grad, active[owner, None], count - 1)
            torch.softmax(phi, -1, out=p)
            terms, g = slope(canvas, p, measured, self.quantised, within)
            if self.beta:
                terms["kl"] = self.beta * _per_row(away(p, prior, grad), canvas)
            loss = torch.stack(list(terms.values())).sum(0)
            losses.append(torch.where(active, loss, torch.nan))
            terms["gradient"] = g.flatten(1).abs().sum(1)
            active = failures.note(count, torch.stack(list(terms.values())), active)
            lower = active & (loss < least)
            least = torch.where(lower, loss, least)
            torch.where(lower[owner, None], phi, kept, out=kept)
            if self.tolerance:
                better = loss < best - self.tolerance * best.abs().clamp(max=1e30)
                best, since = torch.where(better, loss, best), torch.where(better, 0, since + 1)
                active = active & (since < self.patience)
        failures.warn(list(terms), label, "the best table before it")
        if within is not None:
            kept.masked_fill_(forbidden(prior), -torch.inf)
        return Fit(kept, canvas.expect(torch.softmax(kept, -1, out=p)), torch.stack(losses), len(active) * len(losses))


def slope(
    canvas: Canvas, p: Tensor, measured: Measured, quantised: bool = True, within: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms (n,) of what a table p (m, codes) decodes to, and the gradient of their sum in its embeddings (n, slots, d):
    at the nearest legal code, passed on to the expectation as it is (straight through); within: as for `Canvas.legal`.
    """
    e = canvas.expect(p)
    if quantised:
        e = canvas.soft.embed(canvas.legal(e, within))
    with torch.enable_grad():
        e = e.requires_grad_()
        terms = measured.terms(canvas.soft.decode(e), canvas.row)
        (g,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), e)
    return {name: value.detach() for name, value in terms.items()}, g


def away(p: Tensor, prior: Tensor, out: Tensor) -> Tensor:
    """KL(p || exp(prior)) (m,) of tables (m, codes), with log p - prior left in `out`, 0 where p is."""
    torch.log(p, out=out).sub_(prior).nan_to_num_(0.0, 0.0, 0.0)
    return dot(p, out)[:, 0]


def project(p: Tensor, grad: Tensor) -> None:
    """The gradient in p of a softmax made that in its logits, in place: p * (G - <p, G>)."""
    grad.sub_(dot(p, grad)).mul_(p)


def _per_row(values: Tensor, canvas: Canvas) -> Tensor:
    return values.new_zeros(len(canvas.row)).index_add_(0, canvas.owner, values)
