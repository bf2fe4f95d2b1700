"""A noise-contrastive energy on top of a trained denoiser: can it tell held-out rows from what the denoiser draws?

    python -m benchmarks.nce [--data molecules|text] [--steps 1500]      # needs the models of benchmarks.halves

The energy starts from the denoiser's weights and sees the same half of the rows; its loss starts at 2 log 2 = 1.386 and
can fall only as far as the factorised draws of many tokens at once differ from data.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.halves import MODELS, Half, corpus
from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.energy import EnergyModel, NoiseContrastive
from discdiff.models import DiscDiffModel
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.text import rows
from tasks.text.training import config_for, objective_for


@dataclass(frozen=True)
class Nce:
    """data: molecules or text; models: folder of `benchmarks.halves`, "" is runs/halves/DATA; out: the energy's folder, ""
    is `nce` or `nce_small` beside the models; small: a network of an eighth of the denoiser's size, from random weights;
    valid: held-out rows, 0 is all; save: record the figures.
    """

    data: str = "molecules"
    models: str = ""
    out: str = ""
    small: bool = False
    steps: int = 1500
    batch_size: int = 64
    negatives: int = 1
    learning_rate: float = 2e-3
    ema: float = 0.99
    valid: int = 0
    draws: int = 1
    seed: int = 0
    save: bool = True


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.nce", argv, {"nce": Nce})["nce"]
    models = Path(settings.models or f"runs/halves/{settings.data}")
    if not (models / "absorbing" / "config.json").exists():
        raise ValueError(f"no denoiser in {models}: run python -m benchmarks.halves first")
    text = corpus(settings.data, models)
    tokenizer = rows.build_tokenizer(text)
    layout = rows.layout_for(tokenizer, text.length)
    train, valid = rows.load_rows(text, tokenizer, layout)
    held = [valid[i] for i in range(min(settings.valid or len(valid), len(valid)))]
    training = TrainingSettings(
        seed=settings.seed, steps=settings.steps, batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        warmup=min(100, settings.steps), ema=settings.ema, weight_decay=0.02, betas=(0.9, 0.98), optimizer="muon",
        bf16=True, compile=True, eval_batch_size=128, eval_draws=settings.draws, log_every=50, progress=False,
    )  # fmt: skip
    own = "nce_small" if settings.small else "nce"
    out = Path(settings.out or models / own)
    process, half, _ = MODELS["absorbing"]
    denoiser = DiscDiffModel.from_pretrained(models / "absorbing").eval().requires_grad_(False)
    trunk = denoiser
    if settings.small:
        trunk = DiscDiffModel.seeded(config_for(layout, MODELS["energy_small"][2], process), settings.seed)
    energy = EnergyModel.from_denoiser(trunk, settings.seed)
    objective = NoiseContrastive(denoiser, objective_for(process), settings.negatives)
    checkpoints = out.with_name(f"{out.name}_training")
    trainer = DiffusionTrainer(energy, training, objective, layout, Half(train, half), held, output_dir=checkpoints)
    denoiser.to(trainer.args.device)
    before = trainer.evaluate()
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(out)
    after = trainer.evaluate()
    figures = []
    for name, found, goal in (("before", before, None), ("after", after, "< 1.386")):
        chance = found["eval_accuracy"]
        figures += [
            {"figure": f"held-out loss, {name}", "value": found["eval_loss"], "unit": "nats", "goal": goal},
            {"figure": f"its standard error, {name}", "value": found["eval_loss_error"], "unit": "nats"},
            {"figure": f"held-out accuracy, {name}", "value": chance, "unit": "share, ties half"},
            {
                "figure": f"its standard error, {name} (at most)",
                "value": math.sqrt(chance * (1 - chance) / len(held)),
                "unit": "share",
            },
        ]
    figures.append({"figure": "training", "value": trainer.seconds, "unit": "s"})
    figures.append({"figure": "parameters", "value": energy.num_parameters()})
    for figure in figures:
        print(figure, flush=True)
    if settings.save:
        end, data = {"molecules": ("", "qm9_smiles"), "text": ("_text", "bible_kjv, 64 characters a row")}[
            settings.data
        ]
        record(own + end, figures, data=f"{data}; trained on even rows, {len(held)} held-out rows", seeds=settings.seed)


if __name__ == "__main__":
    sys.exit(guarded(main))
