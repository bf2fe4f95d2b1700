"""Blur that is not linear: any network, and a small one of our own that learns it in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from discdiff.config import checked
from discdiff.report.pictures import write_atomically
from tasks.inverse.base import Operator
from tasks.inverse.pictures import MotionBlur, convolved

GAMMA = 2.2  # a screen's value is light ** (1 / GAMMA)


@dataclass(frozen=True)
class NonlinearBlur(Operator):
    """network(x), any differentiable function of pictures in [-1, 1] that takes every picture by itself.

    network: a callable (batch, channels, height, width) -> (batch, ...), used as it is, or the file of a `BlurNet`
    (`save_blur`). The literature's is a network of BKSE (arXiv 2104.00317) whose weights are not ours to give.
    Raises ValueError for files that hold no `BlurNet`, and for results that are no tensor of as many rows.
    """

    network: str | Callable[[Tensor], Tensor] = ""
    blur: Callable[[Tensor], Tensor] = field(init=False, repr=False, compare=False)
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        fits = callable(self.network) or (isinstance(self.network, str) and self.network != "")
        checked("network", self.network, fits, "give a callable, or a file that save_blur wrote")
        object.__setattr__(self, "blur", load_blur(self.network) if isinstance(self.network, str) else self.network)

    def apply(self, x: Tensor) -> Tensor:
        if isinstance(self.network, str) and isinstance(self.blur, nn.Module):
            self.blur.to(x.device, x.dtype)
        y = self.blur(x)
        rows = len(y) if isinstance(y, Tensor) and y.ndim else type(y).__name__
        checked("result of the network", rows, rows == len(x), f"a tensor of {len(x)} rows")
        return y


class BlurNet(nn.Module):
    """Blur of each channel by itself with `kernel` (size, size), a code of `width` numbers standing for it.

    f(K(W k) * g(x)): g and f learned curves, f seeing 3 x 3 pixels, and W, K learned maps from a kernel to its code and back,
    in the plan of BKSE (arXiv 2104.00317), where both are deep networks. Raises ValueError for other kernels.
    """

    kernel: Tensor

    def __init__(self, size: int = 9, width: int = 48, curve: int = 16) -> None:
        super().__init__()
        checked("size", size, size >= 1 and size % 2 == 1, "an odd number of pixels")
        checked("width, curve", (width, curve), min(width, curve) >= 1, "at least 1 each")
        self.settings = {"size": size, "width": width, "curve": curve}
        self.before, self.after = _curve(curve, 1), _curve(curve, 3)
        self.code, self.basis = nn.Linear(size * size, width), nn.Linear(width, size * size)
        centre = torch.zeros(size, size)
        centre[size // 2, size // 2] = 1
        self.register_buffer("kernel", centre)

    def forward(self, x: Tensor, kernels: Tensor | None = None) -> Tensor:
        """Pictures (batch, channels, height, width) to blurred ones, kernels (batch, size, size) in place of its own."""
        kernels = self.kernel[None] if kernels is None else kernels
        size = (len(kernels), *self.kernel.shape)
        fits = tuple(kernels.shape) == size and len(kernels) in (1, len(x))
        checked("shape of kernels", tuple(kernels.shape), fits, f"(1 or {len(x)}, {size[1]}, {size[2]})")
        k = self.basis(self.code(kernels.flatten(1))).view(kernels.shape)
        each = x.flatten(0, 1)[:, None]
        light = convolved((each + self.before(each)).view(x.shape), k).flatten(0, 1)[:, None]
        return (light + self.after(light)).view(x.shape)


def _curve(width: int, size: int) -> nn.Sequential:
    first = nn.Conv2d(1, width, size, padding=size // 2, padding_mode="replicate")
    return nn.Sequential(first, nn.LeakyReLU(), nn.Conv2d(width, width, 1), nn.LeakyReLU(), nn.Conv2d(width, 1, 1))


def gamma_blur(x: Tensor, kernels: Tensor) -> Tensor:
    """What `BlurNet` learns: x in [-1, 1] blurred as light, 2 (k * ((x + 1) / 2)^GAMMA)^(1 / GAMMA) - 1."""
    light = convolved(((x + 1) / 2).clamp(0, 1) ** GAMMA, kernels)
    return 2 * light.clamp(0, 1) ** (1 / GAMMA) - 1


def train_blur(
    pictures: Tensor | None = None,
    *,
    steps: int = 300,
    size: int = 9,
    intensity: float = 0.5,
    kernels: int = 128,
    batch: int = 16,
    seed: int = 0,
) -> BlurNet:
    """A `BlurNet` trained on `gamma_blur` with `kernels` kernels of `MotionBlur`; its own is another, that of `seed`.

    pictures (n, channels, height, width) in [-1, 1], or None for random fields of 32 x 32. A function of the arguments; the
    global generator is left as it was. Raises ValueError for pictures of another shape or range and for numbers below 1.
    """
    for name, value in (("steps", steps), ("kernels", kernels), ("batch", batch)):
        checked(name, value, value >= 1, "at least 1")
    draw = torch.Generator().manual_seed(seed)
    if pictures is None:
        pictures = random_fields(512, draw)
    fits = pictures.ndim == 4 and pictures.numel() > 0 and float(pictures.abs().max()) <= 1 + 1e-3
    checked("pictures", tuple(pictures.shape), fits, "(n, channels, height, width), values in [-1, 1]")
    bank = torch.stack([MotionBlur(size, intensity, seed + 1 + n).kernel() for n in range(kernels)]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlurNet(size)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5 * (1 + math.cos(math.pi * n / steps)))
    for _ in range(steps):
        x = pictures[torch.randint(len(pictures), (batch,), generator=draw)].float()
        k = bank[torch.randint(len(bank), (batch,), generator=draw)]
        loss = F.mse_loss(net(x, k), gamma_blur(x, k))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
    net.kernel.copy_(MotionBlur(size, intensity, seed).kernel())
    return net.eval().requires_grad_(False)


def random_fields(n: int, generator: torch.Generator, side: int = 32) -> Tensor:
    """Pictures (n, 1, side, side) in [-1, 1] of soft and of sharp blots on grey."""
    coarse = torch.randn(n, 1, side // 4, side // 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic")
    sharpness, shift = 8 * torch.rand(n, 1, 1, 1, generator=generator), torch.randn(n, 1, 1, 1, generator=generator)
    return torch.tanh(sharpness * (smooth + 0.5 * shift))


def save_blur(net: BlurNet, path: str | Path) -> Path:
    """Write a `BlurNet` to a safetensors file, whole or not at all."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in net.state_dict().items()}
    settings = {name: str(value) for name, value in net.settings.items()}
    return write_atomically(path, save(tensors, metadata={"type": "BlurNet", **settings}))


def load_blur(path: str | Path) -> BlurNet:
    """Inverse of `save_blur`. Raises ValueError naming the file where it is missing or holds anything else."""
    try:
        with safe_open(str(path), "pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if told.pop("type", None) != "BlurNet":
            raise ValueError("its header names no BlurNet")
        net = BlurNet(**{name: int(value) for name, value in told.items()})
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} holds no BlurNet ({error}): give a file that save_blur wrote") from error
    return net.eval().requires_grad_(False)
