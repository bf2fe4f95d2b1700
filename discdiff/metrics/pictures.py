"""Distances between pictures and what they should be, one value per picture, differentiable, computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked


def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal to noise ratio 10 log10(span^2 / mean (x - y)^2) of x and y (batch, ...), in decibel, (batch,).

    span: of the values, 2 for pictures in [-1, 1]; nothing is clipped. inf for equal pictures. Raises ValueError for other
    shapes, no floats, span <= 0.
    """
    _check(x, y, span)
    error = (x.double() - y.double()).flatten(1).square().mean(1)
    return 10 * torch.log10(span**2 / error)


def ssim(
    x: Tensor, y: Tensor, span: float = 2.0, window: int = 7, sigma: float | None = None, black: float = -1.0
) -> Tensor:
    """Structural similarity of pictures (batch, channels, height, width), (batch,): 1 for equal ones, may be below 0.

    (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)), c1 = (0.01 span)^2, c2 = (0.03 span)^2, of
    means m and covariances s in every window that lies inside, averaged over windows and channels. m counts from `black`:
    with values of both signs a picture and its negative would be alike. sigma None: plain windows, unbiased covariances,
    scikit-image's default; else weights of a Gaussian of that deviation in pixels and its biased covariances, window=11,
    sigma=1.5 in the paper. Raises ValueError as `psnr` does, for even windows and ones wider than the picture.
    Source: Wang et al., Image quality assessment (IEEE TIP 2004).
    """
    _check(x, y, span)
    checked("shape of pictures", tuple(x.shape), x.ndim == 4, "give (batch, channels, height, width)")
    checked("window", window, window >= 3 and window % 2 == 1, "an odd number of pixels, at least 3")
    size = tuple(x.shape[2:])
    checked("window", window, window <= min(size), f"at most the sides of pictures of {size[0]} x {size[1]}")
    checked("sigma", sigma, sigma is None or sigma > 0, "pixels above 0, or None")
    x, y = x.double() - black, y.double() - black
    if sigma is None:
        weights, unbiased = x.new_full((window,), 1 / window), window**2 / (window**2 - 1)
    else:
        away = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
        weights, unbiased = torch.softmax(-0.5 * (away / sigma) ** 2, 0), 1.0

    def mean(z: Tensor) -> Tensor:
        rows = F.conv2d(z.flatten(0, 1)[:, None], weights[None, None, :, None])
        return F.conv2d(rows, weights[None, None, None]).unflatten(0, z.shape[:2])

    a, b = mean(x), mean(y)
    over_x, over_y, both = (
        unbiased * (mean(p * q) - m * n) for p, q, m, n in ((x, x, a, a), (y, y, b, b), (x, y, a, b))
    )
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (over_x + over_y + c2))
    return alike.flatten(1).mean(1)


def feature_distance(x: Tensor, y: Tensor, features: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> Tensor:
    """Squared distance of unit-normalised features of x and y (batch, ...), (batch,), in [0, 4].

    |u(x) - u(y)|^2 over the width, mean over places and layers, u = f / |f|; features: (batch, ...) -> (batch, width,
    *places), or a sequence of such layers. LPIPS (arXiv 1801.03924) eq. 1 with all weights 1, and any network. Raises
    ValueError for other shapes, no floats, and features that are not one row per picture.
    """
    _check(x, y, 1.0)
    found = []
    for layers in (features(x), features(y)):
        found.append([layers] if isinstance(layers, Tensor) else list(layers))
    checked("layers of features", len(found[0]), len(found[0]) == len(found[1]) > 0, "give at least one")
    each = []
    for f, g in zip(*found, strict=True):
        shape = tuple(f.shape)
        fits = f.shape == g.shape and f.ndim >= 2 and len(f) == len(x)
        checked("shape of features", shape, fits, f"(batch, width, *places), {len(x)} rows, the same for x and y")
        u, v = (F.normalize(h.double(), dim=1, eps=1e-12) for h in (f, g))
        each.append((u - v).square().sum(1).reshape(len(x), -1).mean(1))
    return torch.stack(each).mean(0)


def _check(x: Tensor, y: Tensor, span: float) -> None:
    shapes = tuple(x.shape), tuple(y.shape)
    checked("shapes of x and y", shapes, shapes[0] == shapes[1] and x.ndim >= 2 and x.numel() > 0, "give equal ones")
    floats = x.is_floating_point() and y.is_floating_point()
    checked("dtypes of x and y", (x.dtype, y.dtype), floats, "give floats, and the span of their values")
    checked("span", span, span > 0, "largest minus smallest possible value")
