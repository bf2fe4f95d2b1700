"""How well restorations fit: to the measurement beside its noise, and to the original where it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.metrics import psnr, ssim
from tasks.image import posterior, quality
from tasks.image.generate import Trained
from tasks.inverse import Gaussian, Masked, Operator, Poisson, measure
from tokenizers_vq.image import from_bytes


def off(operator: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of A(x) - y (n,) over what was measured, in units of y: about the noise's sigma for the truth."""
    away = (operator(x) - y.to(x)).flatten(1).double()
    count = away.shape[1]
    if isinstance(operator, Masked):
        count = int(operator.kept(tuple(x.shape), x.device).expand(x.shape[1:]).sum())
    return (away.square().sum(1) / count).sqrt()


def calibrated(
    trained: Trained, operator: Operator, noise: Gaussian | Poisson, pictures: Tensor, seed: int = 0
) -> float:
    """The sigma of a Gaussian data term to which what the tokenizer loses is noise, too: the root mean square of
    A(decode(encode(x))) - y over pictures x (n, channels, height, width) uint8 that are not the ones to be found, such as
    those of training; y: measured of x, with `noise` by `seed`. By the noise alone a fit follows y to where no codes lead.
    """
    checked("pictures", len(pictures), len(pictures) >= 1, "at least one")
    codes, grid = quality.encode(trained.tokenizer, pictures)
    y = measure(operator, from_bytes(pictures), noise, seed)
    with torch.no_grad():
        return float(off(operator, quality.decode(trained.tokenizer, codes, grid), y).square().mean().sqrt())


def figures(operator: Callable[[Tensor], Tensor], y: Tensor, pictures: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Of every picture in [-1, 1]: its name, psnr in dB and ssim where there is an "original", and `off`."""
    truth, rows = pictures.get("original"), []
    for name, x in pictures.items():
        many, wrong = len(x) > 1, off(operator, x, y)
        for n, each in enumerate(x[:, None]):
            row: dict[str, Any] = {"picture": f"{name} {n + 1}" if many else name, "psnr": None, "ssim": None}
            if truth is not None and name != "original":
                row["psnr"] = float(psnr(each, truth))
                side = min(truth.shape[2:])
                window = min(7, side - 1 + side % 2)
                row["ssim"] = float(ssim(each, truth, window=window)) if window >= 3 else None
            rows.append({**row, "measurement_error": float(wrong[n])})
    return rows


class Shown(NamedTuple):
    """Pictures that were expected on the way (k, channels, height, width), their times, and the numbers and measurement errors
    of all predictions.
    """

    pictures: Tensor
    times: list[float]
    errors: list[float]


@dataclass
class Trail:
    """What a run expects of its first picture, of several draws the one it keeps, at every prediction; `see` is told."""

    times: list[float] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)

    def see(self, row: Tensor, time: Tensor, embeddings: Tensor) -> None:
        here = (row == 0).nonzero()[:1, 0]
        if len(here):
            self.times.append(float(time[here[0]]))
            self.embeddings.append(embeddings[here[0]])

    @torch.no_grad()
    def shown(
        self,
        trained: Trained,
        operator: Callable[[Tensor], Tensor] | None = None,
        y: Tensor | None = None,
        most: int = 12,
    ) -> Shown | None:
        """At most `most` of them, from the first to the last; None where there was no prediction."""
        if not self.embeddings:
            return None
        soft = posterior.soft_of(trained)
        x = torch.cat([soft.decode(part).cpu() for part in torch.stack(self.embeddings).split(64)]).clamp(-1, 1)
        errors = [] if operator is None or y is None else off(operator, x, y).tolist()
        some = torch.linspace(0, len(x) - 1, min(most, len(x))).round().long()
        return Shown(x[some], [self.times[n] for n in some.tolist()], errors)
