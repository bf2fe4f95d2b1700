"""Distances between two sets of features (rows, width), of real and generated data, from any network or none.

All computed in float64. Each depends on the numbers of rows: compare values at equal numbers only, and state them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 1 << 22  # squared distances held at a time


class PrecisionRecall(NamedTuple):
    """Share of fake rows that look real, and share of real rows that the fakes reach."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely real rows surround the fakes (1 for the same law, may exceed it), and share of real rows reached."""

    density: float
    coverage: float


@torch.no_grad()
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to features a (n, d) and b (m, d): FID on the features of Inception.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), S unbiased covariances, in squared units of the features; for n
    below d too. Raises ValueError for one row, other widths, values not finite. Source: Heusel et al. (arXiv 1706.08500) eq. 6.
    """
    a, b = _features(least=2, a=a, b=b)
    root_a, root_b = _root(a), _root(b)
    # with S = R'R, (S_a S_b)^1/2 has the singular values of R_a R_b' as eigenvalues: the roots of those of
    # S_a^1/2 S_b S_a^1/2, but with no square root of rounding where a covariance is singular
    joint = torch.linalg.svdvals(root_a @ root_b.T).sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(apart + root_a.square().sum() + root_b.square().sum() - 2 * joint))


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features real (n, d) and fake (m, d).

    Precision: share of fake rows in the closed ball of some real row, which reaches to its k-th nearest other real row;
    recall: the same with real and fake exchanged. Raises ValueError for k < 1, k >= n or m, other widths, values not
    finite. Source: Kynkaanniemi et al. (arXiv 1904.06991) eq. 1-2.
    """
    real, fake = _features(real=real, fake=fake)
    _check_neighbours(k, real=real, fake=fake)
    return PrecisionRecall(_share(_inside(fake, real, k)[0] > 0), _share(_inside(real, fake, k)[0] > 0))


@torch.no_grad()
def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage of features real (n, d) and fake (m, d), by the balls of the real rows of `precision_recall`.

    Density: (number of pairs of a fake row inside a ball) / (k m), so that one outlier's large ball counts 1/k at most;
    coverage: share of balls that hold a fake row. For one law on both sides their means are 1 and
    1 - prod_{i=1..k} (n - i) / (n + m - i). Raises ValueError for k < 1, k >= n, other widths, values not finite.
    Source: Naeem et al. (arXiv 2002.09797) section 3; its released code takes open balls.
    """
    real, fake = _features(real=real, fake=fake)
    _check_neighbours(k, real=real)
    balls, covered = _inside(fake, real, k)
    return DensityCoverage(float(balls.sum()) / (k * len(fake)), _share(covered))


@torch.no_grad()
def nearest_distances(x: Tensor, reference: Tensor, exclude_self: bool = False) -> Tensor:
    """Distance of each row of x (n, d) to its nearest row of reference (m, d), (n,) float64; 0 for a copy.

    exclude_self: x and reference are the same rows in the same order, and row i is not its own neighbour. Raises ValueError
    for sets that differ in number then, or are one row; for no rows, other widths, values not finite.
    """
    x, reference = _features(x=x, reference=reference)
    if exclude_self and not 2 <= len(x) == len(reference):
        raise ValueError(
            f"exclude_self with {len(x)} rows and a reference of {len(reference)}: give the same rows twice, at least 2"
        )
    found = []
    for start, squared in _squared(x, reference):
        if exclude_self:
            squared.diagonal(start).fill_(math.inf)
        nearest = reference[squared.min(1).indices]
        # anew from the rows: the rounding of a product hides copies
        found.append((x[start : start + len(nearest)] - nearest).norm(dim=1))
    return torch.cat(found)


def memorised(fake: Tensor, train: Tensor, real: Tensor) -> float:
    """Share of fake rows closer to their nearest training row than half the median distance of held-out real rows to theirs.

    fake (n, d), train (m, d), real (r, d) not of the training data. Raises ValueError where that median is 0, for no rows,
    other widths, values not finite.
    """
    _features(fake=fake, train=train, real=real)
    median = float(nearest_distances(real, train).quantile(0.5))
    if median == 0:
        raise ValueError("median distance 0.0 of real to train: give held-out rows that are no copies of training rows")
    return _share(nearest_distances(fake, train) < median / 2)


def _features(least: int = 1, **sets: Tensor) -> list[Tensor]:
    """The named sets in float64, after their checks."""
    first = next(iter(sets))
    for name, x in sets.items():
        if x.ndim != 2:
            raise ValueError(f"{name} of shape {tuple(x.shape)}: features are (rows, width)")
        width = sets[first].shape[1]
        if len(x) < least:
            raise ValueError(f"{name} has {len(x)} rows: at least {least} are needed")
        if x.shape[1] != width:
            raise ValueError(f"{name} has width {x.shape[1]}, {first} {width}: take both from one network")
        bad = (~torch.isfinite(x)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise ValueError(f"{name} holds {float(x[row, column])} at row {row}, column {column}: remove such rows")
    return [x.double() for x in sets.values()]


def _check_neighbours(k: int, **sets: Tensor) -> None:
    for name, x in sets.items():
        if not 1 <= k < len(x):
            raise ValueError(f"k = {k} with {len(x)} rows of {name}: choose 1 <= k < rows")


def _root(x: Tensor) -> Tensor:
    """R (min(n, d), d) with R'R the unbiased covariance of x (n, d)."""
    return torch.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1), mode="r").R


def _squared(x: Tensor, reference: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(start, squared distances (rows, m)) of x[start : start + rows] to all of reference, PIECE numbers at a time."""
    centre = reference.mean(0)  # |x|^2 - 2 x y + |y|^2 loses the digits that all rows share
    shifted = reference - centre
    norms = shifted.square().sum(1)
    rows = max(1, PIECE // len(reference))
    for start in range(0, len(x), rows):
        part = x[start : start + rows] - centre
        yield start, torch.addmm(norms, part, shifted.T, alpha=-2).add_(part.square().sum(1)[:, None])


def _inside(points: Tensor, centres: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Number of balls each point is in, (points,), and whether each ball holds a point, (centres,)."""
    kth = []
    for start, squared in _squared(centres, centres):
        squared.diagonal(start).fill_(math.inf)
        kth.append(squared.topk(k, largest=False).values[:, -1])
    radii = torch.cat(kth)
    # a point exactly at the radius is inside, whatever rounding made of both products
    norms = (centres - centres.mean(0)).square().sum(1)
    radii += 8 * centres.shape[1] * torch.finfo(radii.dtype).eps * (norms + radii)
    balls, covered = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for _, squared in _squared(points, centres):
        inside = squared <= radii
        balls.append(inside.sum(1))
        covered |= inside.any(0)
    return torch.cat(balls), covered


def _share(found: Tensor) -> float:
    """Share of true values."""
    return float(found.double().mean())
