"""Train, evaluate and re-fit an image tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.cli import parse
from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.training import TrainingSettings
from tasks.common.fitting import Reconstruction, fit
from tasks.image import page
from tasks.image.quality import Items, batches, encode, figures
from tasks.image.settings import Network, Output, Pictures, Refit
from tasks.image.sources import load
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.refit import decoder_loss, freeze_codes, latents, refit

DEFAULTS = TrainingSettings(steps=1500, batch_size=64, learning_rate=1e-3)


@dataclass(frozen=True)
class Decoding:
    """The objective of a decoder alone: `losses` on `x` and on what it makes of `codes`."""

    grid: tuple[int, ...]

    def __call__(
        self, model: Any, inputs: Mapping[str, Tensor], noise: Any, time: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out = decoder_loss(getattr(model, "module", model), inputs["x"], inputs["codes"], self.grid)
        return out.loss, {name: x.detach() for name, x in out.losses.items()}


def build(config: ImageTokenizerConfig, seed: int) -> ImageTokenizer:
    """A new tokenizer whose first weights are a function of the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return ImageTokenizer(config)


def fit_decoder(
    tokenizer: ImageTokenizer, x: Tensor, settings: TrainingSettings, folder: Path, resume: str | None = None
) -> Any:
    """The tokenizer with its decoder trained on uint8 pictures; their codes, of the frozen encoder, are computed once."""
    codes, grid = encode(tokenizer.eval(), x)
    freeze_codes(tokenizer)
    return fit(tokenizer, Decoding(grid), settings, Items(x, codes=codes), folder, resume=resume)


def train(prog: str, argv: Sequence[str]) -> None:
    """Train and evaluate. An interrupted run goes on when the command is repeated."""
    sections = {"pictures": Pictures, "network": Network, "training": _training(), "output": Output}
    chosen = parse(prog, argv, sections)
    folder, settings = Path(chosen["output"].out), chosen["training"].settings()
    config = ImageTokenizerConfig(**asdict(chosen["network"]))
    tokenizer = build(config, settings.seed)
    x, valid = load(chosen["pictures"], config.channels)
    for part in (x, valid):
        tokenizer.token_shape(tuple(part.shape))
    print(f"{len(x):,} training and {len(valid):,} validation pictures of {x.shape[2]} x {x.shape[3]}", flush=True)
    _noted(folder, "task.json", json.dumps(to_dict(chosen["pictures"]), indent=2) + "\n")
    tokenizer = fit(tokenizer, Reconstruction(), settings, Items(x), folder / "model", resume="auto")
    _report(folder, tokenizer, x, valid, "Image tokenizer")


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Figures and page of a trained folder, on its validation pictures or another source."""
    folder = Path(parse(prog, argv, {"": _Nothing}, ("folder",))["folder"])
    tokenizer, x, valid = _opened(folder)
    _report(folder, tokenizer, x, valid, "Image tokenizer")


def refit_command(prog: str, argv: Sequence[str]) -> None:
    """k-means of a trained folder's latents in the place of its codebook, then the decoder trained on with them."""
    sections = {"refit": Refit, "training": _training(steps=500, learning_rate=5e-4), "output": Output}
    chosen = parse(prog, argv, sections, ("folder",))
    folder, source, settings = Path(chosen["output"].out), Path(chosen["folder"]), chosen["training"].settings()
    if folder.resolve() == source.resolve():
        raise ValueError(f"out is {str(folder)!r}, the folder to read: give another")
    tokenizer, x, valid = _opened(source)
    generator = torch.Generator().manual_seed(settings.seed)
    wanted = chosen["refit"]
    _noted(folder, "task.json", (source / "task.json").read_text(encoding="utf-8"))
    learned = hashlib.sha256((source / "model" / "model.safetensors").read_bytes()).hexdigest()
    _noted(folder, "refit.json", json.dumps({**asdict(wanted), "sha256": learned}, indent=2) + "\n")
    points = latents(tokenizer, batches(x), generator, wanted.points)
    new = refit(tokenizer, points, wanted.codes or tokenizer.codebook_size, generator, wanted.rounds)
    new = fit_decoder(new, x, settings, folder / "model", resume="auto")
    _report(folder, new, x, valid, "Image tokenizer, codebook fitted again")


def _noted(folder: Path, name: str, text: str) -> None:
    """Write a note of a run. Raises ValueError where the folder holds one of other settings, which would go on as that one."""
    begun = any((folder / part).is_dir() for part in ("model", "model_training"))
    same = not begun or ((folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text)
    checked("out", str(folder), same, f"it holds a tokenizer of other settings than its {name} would say: give another")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Nothing:
    """No settings."""


def _training(**changed: Any) -> Any:
    """TrainingSettings with this task's defaults, as a section of a command line."""
    import dataclasses

    start = replace(DEFAULTS, **changed)

    def settings(self: Any) -> TrainingSettings:
        return TrainingSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainingSettings)})

    made = [(f.name, f.type, dataclasses.field(default=getattr(start, f.name))) for f in dataclasses.fields(start)]
    return dataclasses.make_dataclass("Training", made, frozen=True, namespace={"settings": settings})


def _opened(folder: Path) -> tuple[ImageTokenizer, Tensor, Tensor]:
    if not (folder / "task.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no task.json: give a folder that `tokenizer train` wrote")
    pictures = from_dict(read_json(folder / "task.json"), {"Pictures": Pictures})
    tokenizer = ImageTokenizer.from_pretrained(folder / "model")
    return (tokenizer, *load(pictures, tokenizer.config.channels))


def _report(folder: Path, tokenizer: ImageTokenizer, x: Tensor, valid: Tensor, title: str) -> None:
    """Print the figures, write them to metrics.json, and the page."""
    found, y, codes = figures(tokenizer, x, valid)
    (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:>24}{value:12.4f}")
    log = folder / "model_training" / "metrics.jsonl"
    print(page.write(folder / "report.html", title, valid, y, codes, tokenizer.codebook_size, found, log))
