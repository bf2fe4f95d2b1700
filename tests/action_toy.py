"""Smooth chunks of actions with a gripper that is -1 or 1."""

import torch


def chunks(rows=256, chunk=10, dim=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, chunk)[None, :, None]
    size, phase, rate = (torch.rand(rows, 1, dim, generator=g) for _ in range(3))
    x = 0.2 * size * torch.sin(6 * phase + (1 + 3 * rate) * t)
    x[..., -1] = torch.where(x[..., -1] > 0, 1.0, -1.0)
    return x


def holes(rows=64, chunk=10):
    """Rows that end early."""
    length = torch.randint(1, chunk + 1, (rows, 1), generator=torch.Generator().manual_seed(1))
    return torch.arange(chunk) < length
