"""Rotations as matrices (..., 3, 3) that turn column vectors, and their other forms: quaternions (w first), 6D, Euler
angles and exponential maps, in radians.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AXES = "XYZ"


def matrix_from_quaternion(q: Tensor) -> Tensor:
    """Quaternions (..., 4) of any length but 0, w first, to matrices (..., 3, 3)."""
    w, x, y, z = F.normalize(q, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quaternion_from_matrix(m: Tensor) -> Tensor:
    """Matrices (..., 3, 3) to unit quaternions (..., 4) with w >= 0.

    Each row of the table is 4 q_i q; the one of the largest component is divided by it, so nothing is lost near 180 degrees.
    """
    xx, yy, zz = m.diagonal(dim1=-2, dim2=-1).unbind(-1)
    wx, wy, wz = (m[..., i, j] - m[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    table = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    best = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = F.normalize(table.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :], dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def matrix_from_6d(x: Tensor) -> Tensor:
    """Two independent vectors (..., 6), made orthonormal (Gram, Schmidt), as a matrix's first columns (arXiv 1812.07035)."""
    first, second = x.unflatten(-1, (2, 3)).unbind(-2)
    a = F.normalize(first, dim=-1)
    b = F.normalize(second - (a * second).sum(-1, keepdim=True) * a, dim=-1)
    return torch.stack([a, b, torch.linalg.cross(a, b)], -1)


def sixd_from_matrix(m: Tensor) -> Tensor:
    """The first two columns of matrices (..., 3, 3), one after the other, (..., 6)."""
    return m[..., :2].mT.flatten(-2)


def axis_rotation(angle: Tensor, axis: str) -> Tensor:
    """Rotations (..., 3, 3) by angles (...) about "X", "Y" or "Z"."""
    i = AXES.index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    m = torch.zeros(*angle.shape, 3, 3, dtype=angle.dtype, device=angle.device)
    m[..., i, i] = 1
    m[..., j, j] = m[..., k, k] = angle.cos()
    m[..., k, j], m[..., j, k] = angle.sin(), -angle.sin()
    return m


def matrix_from_euler(angles: Tensor, order: str) -> Tensor:
    """R = R_a R_b R_c of angles (..., len(order)) about the axes a, b, c of `order`, as BVH files write them.

    Raises ValueError for an order that is not of X, Y and Z, or of another length than the angles.
    """
    if angles.shape[-1] != len(order) or set(order) - set(AXES):
        raise ValueError(f"order {order!r} for {angles.shape[-1]} angles: name one of X, Y, Z for each")
    total = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(*angles.shape[:-1], 3, 3)
    for n, axis in enumerate(order):
        total = total @ axis_rotation(angles[..., n], axis)
    return total


def euler_from_matrix(m: Tensor, order: str) -> Tensor:
    """Angles (..., 3) with R = R_a R_b R_c for an order of three different axes; where b is +-90 degrees, c is 0.

    Raises ValueError for another order.
    """
    if sorted(order) != sorted(AXES):
        raise ValueError(f"order {order!r}: give X, Y and Z once each, such as 'ZXY'")
    i, j, k = (AXES.index(axis) for axis in order)
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    sine = (sign * m[..., i, k]).clamp(-1, 1)
    second = torch.atan2(sine, torch.hypot(m[..., i, i], m[..., i, j]))
    first = torch.atan2(-sign * m[..., j, k], m[..., k, k])
    third = torch.atan2(-sign * m[..., i, j], m[..., i, i])
    locked = sine.abs() > 1 - 1e-9 if m.dtype == torch.float64 else sine.abs() > 1 - 1e-6
    alone = torch.atan2(sign * m[..., k, j], m[..., j, j])
    first, third = torch.where(locked, alone, first), torch.where(locked, 0, third)
    return torch.stack([first, second, third], -1)


def matrix_from_expmap(v: Tensor) -> Tensor:
    """Axis times angle (..., 3) to matrices."""
    half = v.norm(dim=-1, keepdim=True) / 2
    return matrix_from_quaternion(torch.cat([half.cos(), v / 2 * torch.sinc(half / torch.pi)], -1))


def expmap_from_matrix(m: Tensor) -> Tensor:
    """Matrices to axis times angle (..., 3), angles up to pi."""
    q = quaternion_from_matrix(m)
    length = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, q[..., :1])
    return torch.where(length > 1e-12, angle / length.clamp(min=1e-12), 2.0) * q[..., 1:]


def between(a: Tensor, b: Tensor) -> Tensor:
    """The smallest rotation (..., 3, 3) of the direction of a (..., 3) into that of b; of opposite ones, any by 180 degrees."""
    a, b = torch.broadcast_tensors(F.normalize(a, dim=-1), F.normalize(b, dim=-1))
    cosine = (a * b).sum(-1, keepdim=True)
    least = F.one_hot(a.abs().argmin(-1), 3).to(a)
    turned = F.normalize(torch.linalg.cross(a, least), dim=-1)
    flat = torch.cat([torch.zeros_like(cosine), turned], -1)
    plain = torch.cat([1 + cosine, torch.linalg.cross(a, b)], -1)
    return matrix_from_quaternion(torch.where(cosine < -1 + 1e-9, flat, plain))
