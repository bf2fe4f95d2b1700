"""Any network trained by the library's trainer on plain arrays: codecs, classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discdiff.config import checked
from discdiff.training import DiffusionTrainer, TrainingSettings
from tokenizers_vq.metrics import code_counts, perplexity


class Arrays:
    """Rows of equally long arrays as a data set: `Arrays(x=pictures, label=labels)`. Raises ValueError for other lengths."""

    def __init__(self, **columns: Tensor) -> None:
        lengths = {name: len(x) for name, x in columns.items()}
        checked("columns", lengths, len(set(lengths.values())) == 1, "all columns need the same number of rows")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: x[index] for name, x in self.columns.items()}


@dataclass(frozen=True)
class Reconstruction:
    """The objective of a tokenizer: its own losses on `x` (and `mask`), with every part and the codes' perplexity reported."""

    def __call__(
        self, model: Any, inputs: Mapping[str, Tensor], noise: Any, time: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(inputs["x"], inputs.get("mask"))
        size = getattr(model, "module", model).codebook_size
        spread = perplexity(code_counts(out.codes, size)).mean()
        return out.loss, {**{name: x.detach() for name, x in out.losses.items()}, "perplexity": spread}


@dataclass(frozen=True)
class Classification:
    """The objective of a judge: cross-entropy of `label` given `x` (and `mask`)."""

    def __call__(
        self, model: Any, inputs: Mapping[str, Tensor], noise: Any, time: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nats = F.cross_entropy(model(inputs["x"], inputs.get("mask")), inputs["label"], reduction="none")
        return nats.mean(), {"row_loss": nats.detach()}


def fit(
    network: nn.Module,
    objective: Any,
    settings: TrainingSettings,
    train: Any,
    folder: str | Path,
    valid: Any = None,
    resume: str | None = None,
) -> Any:
    """The network, trained; checkpoints go to FOLDER_training, the result of one with `save_pretrained` to FOLDER.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint `resume="auto"` goes on from.
    """
    folder = Path(folder)
    checkpoints = folder.with_name(f"{folder.name}_training")
    trainer = DiffusionTrainer(network, settings, objective, None, train, valid, output_dir=checkpoints)
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    if hasattr(network, "save_pretrained"):
        trainer.save_model(folder)
        return type(network).from_pretrained(folder).to(trainer.args.device).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        if trainer.ema is not None:
            for name, parameter in trainer.ema.live.items():
                parameter.copy_(trainer.ema.mean[name])
    return network.eval()
