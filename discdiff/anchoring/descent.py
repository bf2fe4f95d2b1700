"""The inner loop: a table of codes moved towards a measurement, without a gradient through the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.anchoring.adam import Adam, dot
from discdiff.anchoring.canvas import Canvas
from discdiff.anchoring.failures import Failures
from discdiff.anchoring.soft import Measured
from discdiff.config import checked

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
    and p there are its gradient and Adam's two averages. Rows do not know of one another. Where the measurement sees nothing
    and beta is above 0, Adam wobbles about the network's table until it settles (total variation 0.02 after 10 steps, 0.0002
    after 100). The inner loop of APS (arXiv 2510.02291), as far as it is public.

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
        adam, failures, owner = Adam(phi, self.rate, self.decay), Failures(canvas.row), canvas.owner
        active = torch.ones_like(canvas.row, dtype=torch.bool)
        best, since = phi.new_full(active.shape, torch.inf), torch.zeros_like(canvas.row)
        p, grad = (
            torch.empty_like(phi),
            torch.empty_like(phi),
        )  # written again and again: new pages cost more than the sums
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for count in range(self.steps):
            if count and count % _LOOK == 0 and not bool(active.any()):
                break
            torch.softmax(phi, -1, out=p)
            terms, g = slope(canvas, p, measured, self.quantised)
            if self.beta:
                terms["kl"] = self.beta * _per_row(away(p, prior, grad), canvas)
            canvas.pull(g, grad, self.beta)
            project(p, grad)
            loss = torch.stack(list(terms.values())).sum(0)
            losses.append(torch.where(active, loss, torch.nan))
            terms["gradient"] = g.flatten(1).abs().sum(1)
            active = failures.note(count, torch.stack(list(terms.values())), active)
            if self.tolerance:
                better = loss < best - self.tolerance * best.abs().clamp(max=1e30)
                best, since = torch.where(better, loss, best), torch.where(better, 0, since + 1)
                active = active & (since < self.patience)
            adam.move(grad, active[owner, None], count)
        if failures.warn(list(terms), label):
            adam.undo(failures.when[owner])
        return Fit(phi, canvas.expect(torch.softmax(phi, -1, out=p)), torch.stack(losses), len(active) * len(losses))


def slope(canvas: Canvas, p: Tensor, measured: Measured, quantised: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """The terms (n,) of what a table p (m, codes) decodes to, and the gradient of their sum in its embeddings (n, slots, d):
    at the nearest legal code, passed on to the expectation as it is (straight through).
    """
    e = canvas.expect(p)
    if quantised:
        e = canvas.soft.embed(canvas.legal(e))
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
