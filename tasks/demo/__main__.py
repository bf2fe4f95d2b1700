"""python -m tasks.demo: train on captions and digits together, then draw, read and fill in; writes runs/demo/.

On two CPU cores about four minutes; a GPU is used when there is one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from discdiff.cli import guarded, parse
from discdiff.config import checked, to_dict
from discdiff.layout import Layout
from tasks.demo import digits, judge, page


@dataclass(frozen=True)
class Demo:
    """seed: of data order, noise and samples; seconds: of training; count: images per figure; out: folder."""

    seed: int = 0
    seconds: float = 190.0
    steps: int = 0
    count: int = 500
    warped: int = 7
    conditional: float = 0.7
    batch_size: int = 64
    learning_rate: float = 2e-3
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        checked("seconds", self.seconds, self.seconds > 0 or self.steps > 0, "give seconds of training, or steps")
        checked("count", self.count, self.count >= 20, "at least 20 images, two per digit")


def train(demo: Demo, where: Layout, data: Any) -> Any:
    """The trained model, with its averaged weights."""
    from discdiff.maskers import Independent
    from discdiff.models import DiscDiffConfig, DiscDiffModel
    from discdiff.objectives import Elbo
    from discdiff.processes import Absorbing
    from discdiff.training import DiffusionTrainer, TrainingSettings

    config = DiscDiffConfig(
        vocab=json.loads(where.vocab.to_json()), layout=to_dict(where), process=to_dict(Absorbing()),
        hidden_size=demo.hidden_size, num_layers=demo.num_layers, num_heads=demo.num_heads,
        max_length=64, max_depth=digits.PIXELS.depth,
    )  # fmt: skip
    model = DiscDiffModel.seeded(config, demo.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data):,} training rows", flush=True)
    by_time = {"max_seconds": demo.seconds, "schedule_by": "seconds", "steps": 10**6}
    settings = TrainingSettings(
        seed=demo.seed, batch_size=demo.batch_size, learning_rate=demo.learning_rate, warmup=50, ema=0.998,
        weight_decay=0.05, betas=(0.9, 0.98), log_every=25, **({"steps": demo.steps} if demo.steps else by_time),
    )  # fmt: skip
    objective = Elbo(masker=Independent(demo.conditional))
    trainer = DiffusionTrainer(model, settings, objective, where, data, output_dir=f"{demo.out}/training")
    trainer.train()
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(f"{demo.out}/model")
    return DiscDiffModel.from_pretrained(f"{demo.out}/model").to(trainer.args.device).eval()


def run(demo: Demo) -> dict[str, float]:
    """Train, measure, report; returns what goes to metrics.json."""
    from discdiff.training import read_metrics

    began = time.monotonic()
    folder = Path(demo.out)
    folder.mkdir(parents=True, exist_ok=True)
    where = digits.layout()
    train_digits, test_digits = digits.load()
    data = digits.CaptionedDigits(where, train_digits, demo.warped, demo.seed)
    model = train(demo, where, data)
    trained = time.monotonic() - began
    print(f"trained in {trained:.0f} s; reading, drawing and judging", flush=True)
    figures = judge.figures(model, where, train_digits, test_digits, demo.seed, demo.count)
    log = [e for e in read_metrics(folder / "training" / "metrics.jsonl") if "loss" in e]
    curve = {"loss": ([e["seconds"] for e in log], [e["loss"] for e in log])}
    path = page.write(folder, model, where, test_digits, figures, curve, demo.seed)
    figures |= {"train_seconds": trained, "seconds": time.monotonic() - began, "training_steps": log[-1]["step"]}
    report = {**figures, "settings": asdict(demo)}
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:>30}: {value:.4f}")
    print(f"report: {path}")
    return figures


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run."""
    run(replace(parse("python -m tasks.demo", argv, {"demo": Demo})["demo"]))


if __name__ == "__main__":
    sys.exit(guarded(main))
