"""python -m tasks.demo: train on captions and digits together, then draw, read and fill in; writes runs/demo/.

On two CPU cores under five minutes; a GPU is used when there is one. An interrupted run goes on when the command is
repeated, a finished one starts anew.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from discdiff.cli import guarded, parse
from discdiff.config import checked, to_dict
from discdiff.layout import Layout
from tasks.demo import digits, judge, page

LOG_EVERY = 25


@dataclass(frozen=True)
class Demo:
    """seed: of data order, noise and samples; seconds of training, or a number of steps instead; count: images per
    figure; warped: altered copies of every training image; conditional: share of rows with one part given; part: judge on
    the "test" or, to choose settings, on a "validation" part of the training images; out: folder.
    """

    seed: int = 0
    seconds: float = 258.0
    steps: int = 0
    count: int = 500
    warped: int = 2
    conditional: float = 0.7
    batch_size: int = 64
    learning_rate: float = 4e-3
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    part: str = "test"
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 0, "0 (train for `seconds`) or more")
        checked("seconds", self.seconds, self.seconds > 0 or self.steps > 0, "give seconds of training, or steps")
        checked("count", self.count, self.count >= 20, "at least 20 images, two per digit")
        checked("warped", self.warped, self.warped >= 0, "0 or more")
        checked("part", self.part, self.part in ("test", "validation"), 'choose "test" or "validation"')
        checked("conditional", self.conditional, 0 <= self.conditional <= 1, "a share in [0, 1]")


def trainer_for(demo: Demo, where: Layout, data: Any) -> Any:
    """The trainer of the demo's model; refuses impossible settings."""
    from discdiff.maskers import Independent
    from discdiff.models import DiscDiffConfig, DiscDiffModel
    from discdiff.objectives import Elbo
    from discdiff.processes import Absorbing
    from discdiff.training import DiffusionTrainer, TrainingSettings

    config = DiscDiffConfig(
        vocab=json.loads(where.vocab.to_json()),
        layout=to_dict(where),
        process=to_dict(Absorbing()),
        hidden_size=demo.hidden_size,
        num_layers=demo.num_layers,
        num_heads=demo.num_heads,
        max_length=64,
        max_depth=digits.PIXELS.depth,
        initializer_range=demo.hidden_size**-0.5,
    )
    model = DiscDiffModel.seeded(config, demo.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data):,} training rows", flush=True)
    budget: dict[str, Any] = {"max_seconds": demo.seconds, "schedule_by": "seconds", "steps": 10**6}
    if demo.steps:
        budget = {"steps": demo.steps}
    settings = TrainingSettings(
        seed=demo.seed,
        batch_size=demo.batch_size,
        learning_rate=demo.learning_rate,
        warmup=min(50, budget["steps"]),
        ema=0.995,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        optimizer="muon",
        log_every=min(LOG_EVERY, budget["steps"]),
        **budget,
    )
    objective = Elbo(masker=Independent(demo.conditional, power=0.5))
    return DiffusionTrainer(model, settings, objective, where, data, output_dir=f"{demo.out}/training")


def train(demo: Demo, where: Layout, data: Any) -> tuple[Any, dict[str, float], list[Any]]:
    """The trained model with its averaged weights, what training took, and its log."""
    from discdiff.models import DiscDiffModel
    from discdiff.training import read_metrics

    trainer = trainer_for(demo, where, data)
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(f"{demo.out}/model")
    model = DiscDiffModel.from_pretrained(f"{demo.out}/model").to(trainer.args.device).eval()
    log = [entry for entry in read_metrics(f"{demo.out}/training/metrics.jsonl") if "loss" in entry]
    return model, {"train_seconds": trainer.seconds, "training_steps": trainer.state.global_step}, log


def run(demo: Demo) -> dict[str, float]:
    """Train, measure, report; returns what goes to metrics.json."""
    began = time.monotonic()
    folder = Path(demo.out)
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / "metrics.json"
    if finished.exists():
        shutil.rmtree(folder / "training", ignore_errors=True)
        finished.unlink()
    where = digits.layout()
    train_digits, test_digits = digits.load(demo.part)
    data = digits.CaptionedDigits(where, train_digits, demo.warped, demo.seed)
    started = time.monotonic()
    model, cost, log = train(demo, where, data)
    ended = time.monotonic()
    earlier = max(0.0, cost["train_seconds"] - (ended - started))  # of training before an interruption
    print(f"trained in {cost['train_seconds']:.0f} s; reading, drawing and judging", flush=True)
    figures = judge.figures(model, where, train_digits, test_digits, demo.seed, demo.count)
    curve = {"loss": ([entry["seconds"] for entry in log], [entry["loss"] for entry in log])}
    path = page.write(folder, model, where, test_digits, figures, curve, demo.seed)
    figures |= {**cost, "seconds": earlier + time.monotonic() - began}
    finished.write_text(json.dumps({**figures, "settings": asdict(demo)}, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:>30}: {value:.4f}")
    print(f"report: {path}")
    return figures


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run."""
    run(parse("python -m tasks.demo", argv, {"demo": Demo})["demo"])


if __name__ == "__main__":
    sys.exit(guarded(main))
