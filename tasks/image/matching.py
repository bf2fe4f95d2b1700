"""A small judge of pictures and captions: two towers, trained so that a picture lies nearest to its own caption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from discdiff.config import checked, read_json
from discdiff.noise import MASK, ORDER, Noise
from discdiff.training import TrainingSettings
from tasks.common.fitting import fit
from tasks.common.judge import Judge
from tasks.common.words import Lexicon
from tasks.image.quality import Items, batches
from tasks.image.sources import Read

_WORDS = 0x57  # a path of its own for the words that are hidden


class Matcher(nn.Module):
    """Pictures (n, channels, height, width) in [-1, 1] and word ids (n, length) to unit vectors (n, size) each.

    The picture's are of `Judge`, the caption's of the mean of its words' embeddings: the order of words does not matter.
    """

    def __init__(self, lexicon: Lexicon, channels: int, width: int = 32, size: int = 64) -> None:
        super().__init__()
        self.lexicon = lexicon
        self.channels = channels
        self.picture = Judge(2, channels, size, width)
        self.words = nn.Embedding(len(lexicon.words), size)
        self.text = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))

    def pictures(self, x: Tensor) -> Tensor:
        """Vectors of pictures."""
        return F.normalize(self.picture(x), dim=1)

    def captions(self, ids: Tensor) -> Tensor:
        """Vectors of captions; id 0 is no word."""
        held = (ids != 0)[..., None].to(self.words.weight.dtype)
        mean = (self.words(ids) * held).sum(1) / held.sum(1).clamp(min=1)
        return F.normalize(self.text(mean), dim=1)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.pictures(x), self.captions(ids)


def moved(x: Tensor, flip: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) moved by whole pixels, one amount each (n,), the edge repeated, and mirrored where
    flip (n,).
    """
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) - right[:, None]).clamp(0, width - 1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return x[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Matching:
    """The objective of a `Matcher`: the mean of both cross-entropies of which caption is of which picture of the batch.

    -sum_j q_ij log softmax_j(<a_i, b_j> / temperature), q_i uniform over the captions equal to i's own, and the same with
    pictures and captions exchanged. hidden: share of the words read as unknown, so that a held-out caption's unknown words
    mean something; shift: pixels that pictures are moved by at most, half of them mirrored. Source: Radford et al.
    (arXiv 2103.00020) figure 3.
    """

    temperature: float = 0.1
    hidden: float = 0.1
    shift: int = 2

    def __post_init__(self) -> None:
        checked("temperature", self.temperature, self.temperature > 0, "above 0")
        checked("hidden", self.hidden, 0 <= self.hidden < 1, "a share of the words in [0, 1)")
        checked("shift", self.shift, self.shift >= 0, "pixels, 0 or more")

    def __call__(
        self, model: Any, inputs: Mapping[str, Tensor], noise: Noise, time: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, ids = inputs["x"], inputs["ids"]
        flip, down, right = (noise.child(i).row_uniform(ORDER) for i in range(3))
        whole = 2 * self.shift + 1
        x = moved(x, flip < 0.5, *((u * whole).long() - self.shift for u in (down, right)))
        hidden = noise.child(_WORDS).uniform(MASK, channels=ids.shape[1])[:, 0] < self.hidden
        a, b = model(x, torch.where(hidden & (ids != 0), 1, ids))
        same = (ids[:, None] == ids[None]).all(-1).to(a.dtype)
        same = same / same.sum(1, keepdim=True)
        logits = a @ b.T / self.temperature
        nats = -((same * logits.log_softmax(1)).sum(1) + (same * logits.T.log_softmax(1)).sum(1)) / 2
        return nats.mean(), {"row_loss": nats.detach()}


def fit_matcher(
    train: Read,
    lexicon: Lexicon,
    folder: str | Path,
    steps: int = 600,
    seed: int = 0,
    batch: int = 128,
    width: int = 32,
) -> Matcher:
    """A judge of uint8 pictures and what is said of them, kept in `folder`; one of the same settings is taken as it is.

    Raises ValueError where all captions read the same words.
    """
    folder = Path(folder)
    ids = lexicon.ids(train.said)
    distinct = len(ids.unique(dim=0))
    checked("captions", train.said[:3], distinct > 1, "at least two that differ, so that pictures can be told apart")
    wanted: dict[str, Any] = {"words": list(lexicon.words), "length": lexicon.length, "channels": train.x.shape[1]}
    wanted |= {
        "pictures": len(train.x),
        "sha256": train.digest(),
        "steps": steps,
        "seed": seed,
        "batch": min(batch, len(ids)),
        "width": width,
    }
    weights, settings = folder / "matcher.safetensors", folder / "matcher.json"
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)  # of the first weights and of dropout
        matcher = Matcher(lexicon, train.x.shape[1], width)
        if settings.is_file() and read_json(settings) == wanted:
            load_model(matcher, weights)
            return matcher.eval()
        shutil.rmtree(folder.with_name(f"{folder.name}_training"), ignore_errors=True)
        training = TrainingSettings(
            seed=seed, steps=steps, batch_size=min(batch, len(ids)), learning_rate=2e-3, warmup=min(50, steps // 5), ema=0.99,
            weight_decay=0.05, progress=False,
        )  # fmt: skip
        fit(matcher, Matching(), training, Items(train.x, ids=ids), folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(matcher, str(weights))
    settings.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    return matcher


def _vectors(matcher: Matcher, x: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Vectors of pictures, and word ids of their captions. Raises ValueError where they do not fit."""
    checked("captions", len(captions), len(captions) == len(x) > 0, f"one for each of {len(x)} pictures, at least one")
    checked("pictures", x.dtype, x.dtype == torch.uint8, "torch.uint8 (n, channels, height, width)")
    fits = x.ndim == 4 and x.shape[1] == matcher.channels
    checked("pictures", tuple(x.shape), fits, f"(n, {matcher.channels}, height, width), as the judge was trained on")
    device = next(matcher.parameters()).device
    return torch.cat([matcher.pictures(part.to(device)) for part in batches(x)]), matcher.lexicon.ids(captions).to(
        device
    )


@torch.no_grad()
def scores(matcher: Matcher, x: Tensor, captions: Sequence[str]) -> Tensor:
    """Cosine (n,) of each uint8 picture with its caption, in [-1, 1]; words no training caption has are read as unknown."""
    a, ids = _vectors(matcher, x, captions)
    return (a * matcher.captions(ids)).sum(1).cpu()


@torch.no_grad()
def retrieval(matcher: Matcher, x: Tensor, captions: Sequence[str], k: int = 1) -> float:
    """Share of uint8 pictures whose own caption is among the k that score best, of all that are given.

    Captions that read the same words are one; a caption that ties with the own one counts as better.
    """
    a, ids = _vectors(matcher, x, captions)
    distinct, own = ids.unique(dim=0, return_inverse=True)
    checked("k", k, 1 <= k <= len(distinct), f"from 1 to the {len(distinct)} captions that differ")
    score = a @ matcher.captions(distinct).T
    better = (score >= score.gather(1, own[:, None])).sum(1) - 1
    return float((better < k).double().mean())
