"""Models for the comparisons of energies and learned samplers: every one on one half of the rows.

    python -m benchmarks.halves [--data molecules|text] [--models absorbing,judge] [--steps 4000]

Seven minutes each on one core for molecules (qm9_smiles), twice that for text (bible_kjv, 64 characters a row). Denoisers
and energies see the even rows of the training file, the judge only the odd ones. A model that is there is not trained again.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, Uniform, vq_paper
from discdiff.training import TrainingSettings
from tasks.text import rows
from tasks.text.settings import Corpus, Network
from tasks.text.training import fit

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data"))
CORPORA: dict[str, dict[str, Any]] = {
    "molecules": {
        "source": str(DATA / "qm9_smiles" / "train.csv"), "valid": str(DATA / "qm9_smiles" / "valid.csv"),
        "text_field": "smiles", "rows": "padded", "length": 32,
    },
    "text": {"source": str(DATA / "bible_kjv" / "bible.txt"), "document": "file", "length": 64},
}  # fmt: skip
MODELS: dict[str, tuple[Any, int, Network]] = {
    "absorbing": (Absorbing(), 0, Network(128, 4, 4)),
    "judge": (None, 1, Network(128, 4, 4)),
    "energy": (None, 0, Network(128, 4, 4)),
    "energy_small": (None, 0, Network(64, 2, 2)),
    "uniform": (Uniform(), 0, Network(128, 4, 4)),
    "mask_or_replace": (vq_paper(), 0, Network(128, 4, 4)),
}
"""Process, None being autoregressive, the half it is trained on, and the size."""


@dataclass(frozen=True)
class Halves:
    """data: molecules or text; models: some of MODELS, with commas between; out: "" is runs/halves/DATA."""

    data: str = "molecules"
    models: str = ",".join(MODELS)
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 4e-3
    ema: float = 0.999
    seed: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        checked("data", self.data, self.data in CORPORA, f"choose from {', '.join(CORPORA)}")
        unknown = [name for name in self.models.split(",") if name not in MODELS]
        checked("models", unknown, not unknown, f"choose from {', '.join(MODELS)}")

    @property
    def folder(self) -> Path:
        """Where the models are."""
        return Path(self.out or f"runs/halves/{self.data}")


class Half:
    """Every second row, from `first`."""

    def __init__(self, whole: Any, first: int) -> None:
        self.whole, self.first = whole, first

    def __len__(self) -> int:
        return (len(self.whole) - self.first + 1) // 2

    def __getitem__(self, index: int) -> Any:
        return self.whole[2 * index + self.first]


def corpus(data: str, folder: str | Path) -> Corpus:
    """The corpus, tokenised once into `folder`. Raises ValueError where it is not there."""
    if not Path(CORPORA[data]["source"]).exists():
        raise ValueError(f"no {CORPORA[data]['source']}: set DISCDIFF_DATA to the folder that holds it")
    return Corpus(**CORPORA[data], cache=f"{folder}/cache")


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.halves", argv, {"halves": Halves})["halves"]
    text = corpus(settings.data, settings.folder)
    tokenizer = rows.build_tokenizer(text)
    layout = rows.layout_for(tokenizer, text.length)
    train, valid = rows.load_rows(text, tokenizer, layout)
    training = TrainingSettings(
        seed=settings.seed, steps=settings.steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        warmup=100, ema=settings.ema, weight_decay=0.02, betas=(0.9, 0.98), optimizer="muon", bf16=True, compile=True,
        log_every=200, progress=False,
    )  # fmt: skip
    for name in settings.models.split(","):
        folder = settings.folder / name
        if not (folder / "config.json").exists():
            process, half, network = MODELS[name]
            fit(layout, network, process, training, Half(train, half), valid, folder, resume="auto")
        model = DiscDiffModel.from_pretrained(folder)
        print(f"{name}: {model.num_parameters():,} parameters in {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
