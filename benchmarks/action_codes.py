"""What action tokenizers lose, at how many tokens, and what one wrong token does.

    python -m benchmarks.action_codes [--episodes 400] [--steps 500]

On the expert's chunks of 8 x 7 numbers in the small world of tasks.vla, of episodes that no tokenizer was fitted on. Errors
are root mean squares in units of the normalised range [-1, 1], clipped numbers left out. A wrong token is one of a chunk's,
at random, replaced by a code at random.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.training import TrainingSettings
from tasks.vla.settings import Actions
from tasks.vla.sources import Chunks, load
from tasks.vla.tokenizer import make, measure
from tokenizers_vq.action.fast import Fast

CHUNK = 8
FITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "bins, 256 levels": ("bins", {}),
    "bins, OpenVLA's 255": ("bins", {"spacing": "openvla", "codebook_size": 255}),
    "bins, 64 levels": ("bins", {"codebook_size": 64}),
    "bins, 64 at quantiles": ("bins", {"codebook_size": 64, "spacing": "quantile"}),
    "DCT bins, 8 frequencies": ("dct", {}),
    "DCT bins, 4 frequencies": ("dct", {"frequencies": 4}),
    "DCT bins, 2 frequencies": ("dct", {"frequencies": 2}),
    "FAST, scale 5": ("fast", {"scale": 5.0}),
    "FAST, scale 10": ("fast", {"scale": 10.0}),
    "FAST, scale 50": ("fast", {"scale": 50.0, "vocabulary": 2048}),
    "chunks, VQ 256, 4 slots": ("chunks", {"quantizer": "vq", "codebook_size": 256, "num_quantizers": 1}),
    "chunks, RVQ 4 x 256, 4 slots": ("chunks", {"codebook_size": 256, "num_quantizers": 4}),
    "chunks, RVQ 8 x 256, 4 slots": ("chunks", {"codebook_size": 256, "num_quantizers": 8}),
}


@dataclass(frozen=True)
class Measured:
    """episodes: of the expert; steps: of training the learned codes; save: write docs/results/action_codes.json."""

    episodes: int = 400
    steps: int = 500
    seed: int = 0
    save: bool = True


@torch.no_grad()
def wrong_token(tokenizer: Any, chunks: Chunks, seed: int) -> dict[str, float]:
    """What one wrong token changes: root mean square change of the decoded actions, and for FAST malformed chunks."""
    out = tokenizer.encode(chunks.actions, chunks.mask)
    generator = torch.Generator().manual_seed(seed)
    rows, (_, slots, depth) = torch.arange(len(out.codes)), out.codes.shape
    slot = torch.where(out.mask, torch.rand(len(rows), slots, generator=generator), -1.0).argmax(1)
    level = torch.randint(depth, (len(rows),), generator=generator)
    first = 1 if isinstance(tokenizer, Fast) else 0
    wrong = out.codes.clone()
    wrong[rows, slot, level] = torch.randint(first, tokenizer.codebook_size, (len(rows),), generator=generator)
    half = tokenizer.normaliser.affine[1]
    change = (tokenizer.decode(wrong) - tokenizer.decode(out.codes)).double() / half
    found = {"change by a wrong token": float(change.square().mean().sqrt())}
    if isinstance(tokenizer, Fast):
        found["malformed by a wrong token"] = float(tokenizer.decode_flagged(wrong).malformed.double().mean())
    return found


def main(argv: Sequence[str]) -> None:
    """Every tokenizer of `FITTED`, and what must hold of each kind."""
    settings: Measured = parse("python -m benchmarks.action_codes", argv, {"measured": Measured})["measured"]
    train, valid = load(Actions(episodes=settings.episodes, data_seed=settings.seed), CHUNK)
    training = TrainingSettings(
        seed=settings.seed, steps=settings.steps, batch_size=128, learning_rate=1e-3, warmup=50, log_every=250, progress=False,
    )  # fmt: skip
    figures: list[dict[str, Any]] = []
    for name, (kind, chosen) in FITTED.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = make(kind, train, chosen, training, Path(folder) / "model")
        found = measure(tokenizer, valid) | wrong_token(tokenizer, valid, settings.seed)
        print(f"{name:>30} " + "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
        for key, unit in (("error_unclipped", "of the range"), ("tokens", "per chunk"), ("bits", "per chunk")):
            figures.append({"figure": f"{name}: {key.replace('_unclipped', '')}", "value": found[key], "unit": unit})
        figures.append({"figure": f"{name}: change by a wrong token", "value": found["change by a wrong token"]})
        if kind == "fast":
            figures.append(
                {"figure": f"{name}, codes it wrote: malformed", "value": found["malformed"], "goal": "== 0"}
            )
            figures.append(
                {"figure": f"{name}, one token wrong: malformed", "value": found["malformed by a wrong token"]}
            )
            bound = 0.5 / chosen["scale"]
            figures.append(
                {"figure": f"{name}: error over its bound", "value": found["error_unclipped"] / bound, "goal": "<= 1"}
            )
        if kind == "bins" and chosen.get("spacing") != "quantile":
            half_step = 1 / (tokenizer.codebook_size - (0 if "spacing" in chosen else 1))
            over = found["largest"] / half_step
            figures.append({"figure": f"{name}: largest error over half a step", "value": over, "goal": "<= 1.001"})
    figures.append({"figure": "numbers in a chunk", "value": CHUNK * 7})
    if settings.save:
        data = f"{settings.episodes} episodes of the small world's expert, the last tenth held out"
        record("action_codes", figures, data=data, seeds=settings.seed)


if __name__ == "__main__":
    sys.exit(guarded(main))
