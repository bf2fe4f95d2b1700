"""python -m tasks.demo: train on captions and digits together, then draw, read and fill in; writes runs/demo/.

On two CPU cores under five minutes; a GPU is used when there is one. `--tokenizer learned` codes the digits by a small
tokenizer that it trains first. An interrupted run goes on when the command is repeated, a finished one starts anew.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from discdiff.cli import guarded, parse
from discdiff.config import checked, to_dict
from tasks.demo import codecs, digits, judge, page, tasks
from tasks.demo.codecs import Codec
from tasks.demo.digits import Digits, Form
from tasks.demo.settings import Demo

LOG_EVERY = 25


def codec_for(demo: Demo, train_digits: Digits) -> tuple[Codec, dict[str, float]]:
    """The codec of the pictures, its tokenizer saved, and what training it took; one that an interrupted run finished is
    taken as it is.
    """
    from discdiff.training import read_metrics

    folder = Path(demo.out) / "tokenizer"
    if folder.exists():
        codec = codecs.opened(folder)
        fits = codec.kind == demo.tokenizer and (codec.kind == "pixels" or codec.codebook_size == demo.codes)
        have = f"{codec.kind}, {codec.codebook_size} codes"
        remedy = f"an interrupted run left this in {str(folder)!r}: go on with the same, or start in another out"
        checked("tokenizer", have, fits, remedy)
    elif demo.tokenizer == "pixels":
        codec = codecs.Pixels.new()
        codec.tokenizer.save_pretrained(folder)
    else:
        codec = codecs.untrained(demo.codes, demo.seed)
        form = Form.of(codec)
        trainer_for(demo, form, digits.CaptionedDigits(form, train_digits, demo.warped, demo.seed))  # refuses early
        images = digits.training_images(train_digits, demo.warped, demo.seed)
        codec = codecs.trained(codec, images, demo.tokenizer_steps, demo.seed, folder)
    if demo.tokenizer == "pixels":
        return codec, {}
    log = read_metrics(f"{folder}_training/metrics.jsonl")
    return codec, {"tokenizer_seconds": max(entry.get("seconds", 0.0) for entry in log)}


def trainer_for(demo: Demo, form: Form, data: Any) -> Any:
    """The trainer of the demo's model; refuses impossible settings."""
    from discdiff.maskers import Independent
    from discdiff.models import DiscDiffConfig, DiscDiffModel
    from discdiff.objectives import Elbo
    from discdiff.processes import Absorbing
    from discdiff.training import DiffusionTrainer, TrainingSettings

    config = DiscDiffConfig(
        vocab=json.loads(form.where.vocab.to_json()),
        layout=to_dict(form.where),
        process=to_dict(Absorbing()),
        hidden_size=demo.hidden_size,
        num_layers=demo.num_layers,
        num_heads=demo.num_heads,
        max_length=64,
        max_depth=form.codec.depth,
        initializer_range=demo.hidden_size**-0.5,
    )
    model = DiscDiffModel.seeded(config, demo.seed)
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
    objective = Elbo(masker=Independent(demo.conditional))
    return DiffusionTrainer(model, settings, objective, form.where, data, output_dir=f"{demo.out}/training")


def train(demo: Demo, form: Form, data: Any) -> tuple[Any, dict[str, float], list[Any]]:
    """The trained model with its averaged weights, what training took, and its log."""
    from discdiff.training import read_metrics

    trainer = trainer_for(demo, form, data)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size:,} parameters, {len(data):,} training rows", flush=True)
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    steps = trainer.state.global_step
    if warning := demo.hurried(steps):
        print(warning, flush=True)
    trainer.save_model(f"{demo.out}/model")
    model = tasks.opened(demo.out)[0].to(trainer.args.device)
    log = [entry for entry in read_metrics(f"{demo.out}/training/metrics.jsonl") if "loss" in entry]
    return model, {"train_seconds": trainer.seconds, "training_steps": steps}, log


def run(demo: Demo) -> dict[str, float]:
    """Train, measure, report; returns what goes to metrics.json."""
    began = time.monotonic()
    folder = Path(demo.out)
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / "metrics.json"
    if finished.exists():
        for part in ("training", "tokenizer", "tokenizer_training"):
            shutil.rmtree(folder / part, ignore_errors=True)
        finished.unlink()
    train_digits, test_digits = digits.load(demo.part)
    started = time.monotonic()
    codec, cost = codec_for(demo, train_digits)
    form = Form.of(codec)
    data = digits.CaptionedDigits(form, train_digits, demo.warped, demo.seed)
    model, trained, log = train(demo, form, data)
    ended = time.monotonic()
    cost |= trained
    training = cost["train_seconds"] + cost.get("tokenizer_seconds", 0.0)
    earlier = max(0.0, training - (ended - started))  # of training before an interruption
    print(f"trained in {training:.0f} s; reading, drawing and judging", flush=True)
    figures = judge.figures(model, form, train_digits, test_digits, demo.seed, demo.count)
    curve = {"loss": ([entry["seconds"] for entry in log], [entry["loss"] for entry in log])}
    path = page.write(folder, model, form, test_digits, figures, curve, demo.seed)
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
