"""Image tokenizers on mnist28 and tiles32, and codebooks fitted again (ReFiT) where one collapsed.

    python -m benchmarks.image_codes [--part mnist28|tiles32|refit]      # all three by default

mnist28: the last 2,000 training pictures are validation, the 10,000 test pictures are what is measured. A small classifier,
trained on real pictures, reads the reconstructions. refit: 4,096 codes trained without resetting dead ones, then k-means
codebooks of 1,024 and 4,096 codes for the same encoder; every decoder, the old codebook's too, is trained equally long.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.training import TrainingSettings
from tasks.common.fitting import Reconstruction, fit
from tasks.common.judge import accuracy, train_judge
from tasks.image import page, quality
from tasks.image.settings import Pictures
from tasks.image.sources import read, read_idx
from tasks.image.tokenizer import build, fit_decoder
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig, from_bytes
from tokenizers_vq.refit import latents, refit

DATA = Path(os.environ.get("DISCDIFF_DATA", "data"))
HELD = 2000
DIGITS = ImageTokenizerConfig(
    channels=1, width=32, blocks=1, code_dim=16, codebook_size=512, dead_code=0.1, pixel="l2"
)  # fmt: skip
TILES = ImageTokenizerConfig(channels=3, width=32, blocks=1, code_dim=32, codebook_size=512, dead_code=0.1, pixel="l2")
SHARE = "share of the range"


@dataclass(frozen=True)
class Run:
    """part: mnist28, tiles32, refit or all; digits, tiles, collapsed, decoder: steps of training of `batch` pictures."""

    part: str = "all"
    digits: int = 1500
    tiles: int = 1000
    collapsed: int = 500
    decoder: int = 250
    judge: int = 1200
    batch: int = 32
    seed: int = 1
    out: str = "runs/images"
    save: bool = True


def settings(run: Run, steps: int, rate: float = 2e-3) -> TrainingSettings:
    """Of one training."""
    return TrainingSettings(
        seed=run.seed, steps=steps, batch_size=run.batch, learning_rate=rate, warmup=min(50, steps), progress=False
    )  # fmt: skip


def digits() -> dict[str, Tensor]:
    """mnist28: pictures uint8 (n, 1, 28, 28) and labels, train without the validation part, and test."""
    folder, found = DATA / "mnist28", {}
    for part, name in (("train", "train"), ("test", "t10k")):
        found[part] = torch.from_numpy(read_idx(folder / f"{name}-images-idx3-ubyte.gz").copy())[:, None]
        found[f"{part}_label"] = torch.from_numpy(read_idx(folder / f"{name}-labels-idx1-ubyte.gz").copy()).long()
    return {name: x[:-HELD] if name.startswith("train") else x for name, x in found.items()}


def fresh(folder: Path) -> Path:
    """The folder, without the checkpoints of an earlier run."""
    shutil.rmtree(folder.with_name(f"{folder.name}_training"), ignore_errors=True)
    return folder


def trained(run: Run, config: ImageTokenizerConfig, x: Tensor, steps: int, name: str) -> tuple[ImageTokenizer, float]:
    """A tokenizer, and the CPU seconds that its training took; one that an earlier run finished is taken as it is."""
    folder, done = Path(run.out) / name, Path(run.out) / f"{name}.json"
    wanted = {"steps": steps, "batch": run.batch, "seed": run.seed, "network": config.to_diff_dict()}
    wanted = json.loads(json.dumps(wanted))
    if done.exists() and (found := json.loads(done.read_text(encoding="utf-8")))["run"] == wanted:
        return ImageTokenizer.from_pretrained(folder), found["seconds"]
    began = time.process_time()
    tokenizer = build(config, run.seed)
    made = fit(tokenizer, Reconstruction(), settings(run, steps), quality.Items(x), fresh(folder))
    seconds = time.process_time() - began
    done.write_text(json.dumps({"run": wanted, "seconds": seconds}), encoding="utf-8")
    return made, seconds


def measured(
    run: Run, tokenizer: Any, train: Tensor, x: Tensor, name: str, seconds: float
) -> tuple[list[dict[str, Any]], Tensor]:
    """Figures of a tokenizer on test pictures, its page, and the reconstructions."""
    found, y, codes = quality.figures(tokenizer, train, x, 1000)
    page.write(Path(run.out) / f"{name}.html", name, x, y, codes, tokenizer.codebook_size, found,
               Path(run.out) / f"{name}_training" / "metrics.jsonl")  # fmt: skip
    rows = [
        {"figure": "training", "value": seconds, "unit": "CPU s", "goal": "<= 720"},
        {"figure": "codes used", "value": found["usage"], "goal": ">= 0.9"},
        {"figure": "codes used 10 times or more", "value": found["usage_10"]},
        {"figure": "perplexity", "value": found["perplexity"]},
        {"figure": "error", "value": found["error"], "unit": SHARE},
        {"figure": "error of the mean training picture", "value": found["error_mean_picture"], "unit": SHARE},
        {"figure": "error of the nearest training picture", "value": found["error_nearest_picture"], "unit": SHARE},
    ]
    return rows, y


def mnist28(run: Run) -> None:
    """Acceptance on digits: use of the codes, errors, and a classifier on reconstructions."""
    data = digits()
    tokenizer, seconds = trained(run, DIGITS, data["train"], run.digits, "mnist28")
    rows, y = measured(run, tokenizer, data["train"], data["test"], "mnist28", seconds)
    judge = train_judge(
        from_bytes(data["train"]), data["train_label"], fresh(Path(run.out) / "judge"), steps=run.judge, seed=run.seed, width=24
    )  # fmt: skip
    real = accuracy(judge, from_bytes(data["test"]), data["test_label"])
    made = accuracy(judge, y, data["test_label"])
    rows += [
        {"figure": "classifier on real pictures", "value": 100 * real, "unit": "%"},
        {"figure": "classifier on reconstructions", "value": 100 * made, "unit": "%"},
        {"figure": "classifier, real less reconstructed", "value": 100 * (real - made), "unit": "points", "goal": "<= 1.5"},
    ]  # fmt: skip
    _record(run, "image_mnist28", rows, f"mnist28, 7 x 7 codes of {DIGITS.codebook_size}; 10,000 test pictures")


def tiles32(run: Run) -> None:
    """Acceptance on pixel art."""
    train, x = (
        read(str(DATA / "tiles32" / f"{part}.parquet"), Pictures(source="-"), 3).x for part in ("train", "test")
    )
    tokenizer, seconds = trained(run, TILES, train, run.tiles, "tiles32")
    rows, _ = measured(run, tokenizer, train, x, "tiles32", seconds)
    # 133 test pictures hold 8,512 codes; all splits together show whether a code is dead
    codes, _ = quality.encode(tokenizer, train)
    every = quality.code_figures(codes, tokenizer.codebook_size)["usage"]
    rows.append({"figure": "codes used, training pictures", "value": every, "goal": ">= 0.9"})
    _record(run, "image_tiles32", rows, f"tiles32, 8 x 8 codes of {TILES.codebook_size}; 133 test pictures")


def refitted(run: Run) -> None:
    """Acceptance of ReFiT: usage and error before and after, every decoder trained on equally long."""
    data = digits()
    config = replace(DIGITS, codebook_size=4096, dead_code=0.0, kmeans_init=False)
    old, _ = trained(run, config, data["train"], run.collapsed, "collapsed")
    generator = torch.Generator().manual_seed(run.seed)
    points = latents(old, quality.batches(data["train"]), generator, 1 << 17)
    rows, errors = [], {}
    for name, size in (("old codebook", 0), ("1024 codes", 1024), ("4096 codes", 4096)):
        start = copy.deepcopy(old) if size == 0 else refit(old, points, size, generator)  # fitting changes its network
        if size == 0:
            codes, grid = quality.encode(old, data["test"])
            before = quality.error(data["test"], quality.decode(old, codes, grid))
            rows.append({"figure": f"{name}, as trained: error", "value": before, "unit": SHARE})
        made = fit_decoder(
            start, data["train"], settings(run, run.decoder, 1e-3), fresh(Path(run.out) / f"refit_{size}")
        )
        codes, grid = quality.encode(made, data["test"])
        y = quality.decode(made, codes, grid)
        found = quality.code_figures(codes, made.codebook_size)
        errors[name] = quality.error(data["test"], y)
        goal = "< 0.5" if size == 0 else ">= 0.9"
        rows += [
            {"figure": f"{name}: used 10 times or more", "value": found["usage_10"], "goal": goal},
            {"figure": f"{name}: perplexity", "value": found["perplexity"]},
            {"figure": f"{name}, decoder trained on: error", "value": errors[name], "unit": SHARE},
        ]
        if size:
            gap = errors[name] - errors["old codebook"]
            rows.append(
                {"figure": f"{name}: error less the old codebook's", "value": gap, "unit": SHARE, "goal": "<= 0"}
            )
    _record(run, "image_refit", rows, "mnist28, 10,000 test pictures; k-means of 131,072 training latents")


def _record(run: Run, name: str, rows: list[dict[str, Any]], data: str) -> None:
    if run.save:
        record(name, rows, data=data, seeds=run.seed)
    else:
        for row in rows:
            print(row)


PARTS = {"mnist28": mnist28, "tiles32": tiles32, "refit": refitted}


def main(argv: Sequence[str]) -> None:
    """One part, or all."""
    run: Run = parse("python -m benchmarks.image_codes", argv, {"": Run})[""]
    if run.part != "all" and run.part not in PARTS:
        raise ValueError(f"part is {run.part!r}: choose from {', '.join(PARTS)} or all")
    for name, part in PARTS.items():
        if run.part in ("all", name):
            part(run)


if __name__ == "__main__":
    sys.exit(guarded(main))
