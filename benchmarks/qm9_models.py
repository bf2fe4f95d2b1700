"""Models of qm9_smiles for the comparisons of energies and learned samplers: every one on one half of the molecules.

    python -m benchmarks.qm9_models [--models absorbing,judge] [--steps 4000]      # eight minutes each on one core

The denoisers and the energy's autoregressive model see the even rows of the training file, the judge only the odd ones.
A model that is there is not trained again.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discdiff.cli import guarded, parse
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, Uniform, vq_paper
from discdiff.training import TrainingSettings
from tasks.text import rows
from tasks.text.settings import Corpus, Network
from tasks.text.training import fit

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data")) / "qm9_smiles"
MODELS: dict[str, tuple[Any, int]] = {
    "absorbing": (Absorbing(), 0),
    "judge": (None, 1),
    "energy": (None, 0),
    "uniform": (Uniform(), 0),
    "mask_or_replace": (vq_paper(), 0),
}
"""Process, None being autoregressive, and the half it is trained on."""


@dataclass(frozen=True)
class Halves:
    """models: some of absorbing, judge, energy, uniform, mask_or_replace, with commas between."""

    models: str = ",".join(MODELS)
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 4e-3
    ema: float = 0.999
    seed: int = 0
    hidden_size: int = 128
    num_layers: int = 4
    out: str = "runs/qm9_halves"


class Half:
    """Every second row, from `first`."""

    def __init__(self, whole: Any, first: int) -> None:
        self.whole, self.first = whole, first

    def __len__(self) -> int:
        return (len(self.whole) - self.first + 1) // 2

    def __getitem__(self, index: int) -> Any:
        return self.whole[2 * index + self.first]


def corpus(out: str | Path) -> Corpus:
    """The molecules, one a row, in rows of 32 characters."""
    if not (DATA / "train.csv").exists():
        raise ValueError(f"no {DATA / 'train.csv'}: set DISCDIFF_DATA to the folder that holds qm9_smiles")
    return Corpus(
        source=str(DATA / "train.csv"), valid=str(DATA / "valid.csv"), text_field="smiles", rows="padded", length=32,
        cache=f"{out}/cache",
    )  # fmt: skip


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.qm9_models", argv, {"halves": Halves})["halves"]
    text = corpus(settings.out)
    tokenizer = rows.build_tokenizer(text)
    layout = rows.layout_for(tokenizer, text.length)
    train, valid = rows.load_rows(text, tokenizer, layout)
    network = Network(settings.hidden_size, settings.num_layers, 4)
    training = TrainingSettings(
        seed=settings.seed, steps=settings.steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        warmup=100, ema=settings.ema, weight_decay=0.02, betas=(0.9, 0.98), optimizer="muon", bf16=True, compile=True,
        log_every=200, progress=False,
    )  # fmt: skip
    for name in settings.models.split(","):
        folder = Path(settings.out) / name
        if not (folder / "config.json").exists():
            process, half = MODELS[name]
            fit(layout, network, process, training, Half(train, half), valid, folder, resume="auto")
        model = DiscDiffModel.from_pretrained(folder)
        print(f"{name}: {model.num_parameters():,} parameters in {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
