"""Dense: any finite-time process by its matrices, D3PM's general form; the oracle the closed forms are tested against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from discdiff.processes.base import Process, as_time, ratio
from discdiff.types import Alphabet


@dataclass(frozen=True, eq=False)
class Dense(Process):
    """T row-stochastic matrices Q_1..Q_T, `(T, S, S)` float64, Q[y, z] = Pr(y -> z); symbols and states are the same S.

    Times are i / T. Finite-T only: O(S^2) memory and work (D3PM, arXiv 2107.03006). Raises ValueError for matrices
    whose rows do not sum to 1 within 1e-9.
    """

    matrices: Tensor = None  # type: ignore[assignment]
    size: int = 0

    def __post_init__(self) -> None:
        q = self.matrices
        if q.ndim != 3 or q.shape[1] != q.shape[2] or not 1 <= self.size <= q.shape[1]:
            raise ValueError(
                f"matrices have shape {tuple(q.shape)} for {self.size} symbols: give (T, S, S) with S >= size"
            )
        if bool((q < -1e-12).any()) or float((q.sum(-1) - 1).abs().max()) > 1e-9:
            raise ValueError("every row of every transition matrix must be non-negative and sum to 1")

    @cached_property
    def cumulative(self) -> Tensor:
        """Q_1 ... Q_i for i = 0..T, `(T + 1, S, S)`."""
        total = [torch.eye(self.matrices.shape[1], dtype=torch.float64)]
        for one in self.matrices.double():
            total.append(total[-1] @ one)
        return torch.stack(total)

    @classmethod
    def of(cls, process: Process, size: int, steps: int) -> Dense:
        """The matrices of a closed-form process on the grid i / steps."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        step = process.transition(t[:-1], t[1:], size)
        out = torch.zeros(steps, size + 1, size + 1, dtype=torch.float64)
        out[:, :, :size] = step.token[:, None, None]
        out[:, :, size] = step.mask[:, None]
        out += torch.diag_embed(step.keep[:, None].expand(steps, size + 1))
        if process.mask_absorbing:
            out[:, size] = 0
            out[:, size, size] = 1
        return cls(out, size)

    def __len__(self) -> int:
        return len(self.matrices)

    def index(self, t: float | Tensor) -> Tensor:
        """Grid index of a time."""
        scaled = torch.as_tensor(t, dtype=torch.float64) * len(self)
        if float((scaled - scaled.round()).abs().max()) > 1e-6:
            raise ValueError(f"time {t} is not on the grid of {len(self)} steps")
        return scaled.round().long()

    def between(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Products Q_{s+1} ... Q_t, `(..., S, S)` for times of shape (...), each distinct pair computed once."""
        pair = torch.stack(torch.broadcast_tensors(self.index(s), self.index(t)), -1)
        pairs, inverse = torch.unique(pair.reshape(-1, 2), dim=0, return_inverse=True)
        products = []
        for first, last in pairs.tolist():
            out = torch.eye(self.matrices.shape[1], dtype=torch.float64)
            for one in self.matrices[first:last].double():
                out = out @ one
            products.append(out)
        return torch.stack(products)[inverse].reshape(*pair.shape[:-1], *out.shape)

    def log_marginal(self, log_x0: Tensor, t: float | Tensor) -> Tensor:
        """log sum_v p(v) Q_0t[v, z], `(..., K) -> (..., S)`."""
        total = self.cumulative[self.index(t)][..., : self.size, :]
        return (log_x0.exp()[..., None, :] @ total).squeeze(-2).log()

    def corrupt(self, x0: Tensor, t: float | Tensor, uniform: Tensor, alphabet: int | Alphabet = 0) -> Tensor:
        """x_t ~ q_t(. | x0), by inverse CDF."""
        rows = self.cumulative[self.index(as_time(t, x0)).expand(x0.shape), x0]
        return _inverse_cdf(rows, uniform)

    def prior(self, uniform: Tensor, alphabet: int | Alphabet = 0) -> Tensor:
        """Symbols from the mean of q_1(. | x0) over x0."""
        return _inverse_cdf(self.cumulative[-1][: self.size].mean(0).expand(*uniform.shape, -1), uniform)

    def log_posterior(self, log_x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """log sum_v p(v) q(x_s | x_t, v), mixture form, `(..., K) -> (..., S)`."""
        early, likelihood, step = self._bayes(x, as_time(t, x), as_time(s, x))
        p = log_x0.exp()
        weight = torch.where(p > 0, p / likelihood, 0.0)
        return (step * (weight[..., None, :] @ early).squeeze(-2)).log()

    def hold(self, x: Tensor, t: float | Tensor, s: float | Tensor, alphabet: int | Alphabet = 0) -> Tensor:
        """min over the possible x0 of q(x_s = x_t | x_t, x0)."""
        early, likelihood, step = self._bayes(x, as_time(t, x), as_time(s, x))
        here = x[..., None, None].expand(*early.shape[:-1], 1)
        stay = step.gather(-1, x[..., None]) * early.gather(-1, here).squeeze(-1) / likelihood
        return torch.where(likelihood > 0, stay, 1.0).amin(-1).clamp(0, 1)

    def step(self, x, x0, t, s, uniform, alphabet=0, rate=None) -> Tensor:
        """x_s ~ q(x_s | x_t, x0) by inverse CDF, x_t first."""
        if rate is not None:
            raise ValueError(f"rate {rate}: the dense oracle has no scaled steps; use a closed-form process")
        early, _, step = self._bayes(x, as_time(t, x), as_time(s, x))
        q = step * early.gather(-2, x0[..., None, None].expand(*x0.shape, 1, early.shape[-1])).squeeze(-2)
        q = q / q.sum(-1, keepdim=True)
        stay = q.gather(-1, x[..., None])[..., 0]
        rest = q.scatter(-1, x[..., None], 0.0)
        moved = _inverse_cdf(rest, (uniform - stay) / (1 - stay).clamp(min=1e-300))
        return torch.where((uniform < stay) | (stay >= 1), x, moved)

    def own_shift(self, x: Tensor, t: float | Tensor, alphabet: int | Alphabet = 0) -> Tensor:
        raise ValueError("a dense process has no two-valued likelihood: use a denoiser that predicts the own posterior")

    def finite_loss(
        self, log_x0: Tensor, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, kind: str = "own"
    ) -> Tensor:
        """KL(q(x_s | x_t, x0) || p(x_s | x_t)) in nats, own prediction `(..., K) -> (...)`."""
        if kind != "own":
            raise ValueError(f"kind {kind!r}: the dense oracle takes own predictions")
        return super().finite_loss(log_x0, x0, x, t, s)

    def _bayes(self, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_s(. | v) `(..., K, S)`, q_t(x_t | v) `(..., K)` and Q_ts[., x_t] `(..., S)` at every position."""
        t, s = t.expand(x.shape), s.expand(x.shape)
        early, late = (self.cumulative[self.index(time)][..., : self.size, :] for time in (s, t))
        here = x[..., None, None].expand(*late.shape[:-1], 1)
        step = self.between(s, t)
        into = step.gather(-1, x[..., None, None].expand(*step.shape[:-1], 1)).squeeze(-1)
        return early, late.gather(-1, here).squeeze(-1), into

    def prior_kl(self, size: int = 0, t: float = 1.0) -> Tensor:
        """KL(q_1(. | x0) || mean over x0 of q_1) in nats, `(K,)`: one value per x0."""
        q = self.cumulative[-1][: self.size]
        return torch.xlogy(q, ratio(q, q.mean(0))).sum(-1)


def _inverse_cdf(p: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulated share of p exceeds the uniform, `(..., S), (...) -> (...)`."""
    cdf = p.cumsum(-1)
    target = torch.minimum(uniform * cdf[..., -1], cdf[..., -1] * (1 - 2.0**-52))
    return (cdf <= target[..., None]).sum(-1)
