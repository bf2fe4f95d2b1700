"""python -m tasks.text train|sample|evaluate: text diffusion on your own corpus.

python -m tasks.text train --source book.txt --length 128 --max_seconds 300 --steps 100000 --out runs/book
python -m tasks.text sample runs/book --count 4 --steps 64
python -m tasks.text sample runs/book --infill "It was the ____ of times"
python -m tasks.text evaluate runs/book
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from discdiff.cli import commands, guarded, parse
from discdiff.config import from_dict
from tasks.text import evaluate as quality
from tasks.text import rows as text_rows
from tasks.text.settings import Corpus, Judged, Method, Network, Output, Sampler


def train(argv: Sequence[str]) -> None:
    """Train, then the twin, then evaluate both."""
    from discdiff.training import TrainingSettings
    from tasks.text.training import fit

    sections = {"corpus": Corpus, "network": Network, "method": Method, "training": TrainingSettings, "output": Output}
    chosen = parse("python -m tasks.text train", argv, {**sections, "judged": Judged})
    corpus, method, folder = chosen["corpus"], chosen["method"], Path(chosen["output"].out)
    process = method.build()
    tokenizer = text_rows.build_tokenizer(corpus)
    layout = text_rows.layout_for(tokenizer, corpus.length)
    train_rows, valid_rows = text_rows.load_rows(corpus, tokenizer, layout)
    print(f"{len(train_rows):,} training rows and {len(valid_rows):,} validation rows of {corpus.length} tokens")
    text_rows.save_task(folder, corpus, tokenizer)
    for name, kind in (("model", process), *([("twin", None)] if method.twin else [])):
        print(f"training {folder / name}: {method.process if kind else 'autoregressive twin, same budget'}", flush=True)
        fit(layout, chosen["network"], kind, chosen["training"], train_rows, valid_rows, folder / name, resume="auto")
    _evaluate(folder, chosen["judged"], Sampler())


def evaluate(argv: Sequence[str]) -> None:
    """Evaluate a trained folder."""
    chosen = parse("python -m tasks.text evaluate", argv, {"judged": Judged, "sampler": Sampler}, ("folder",))
    _evaluate(Path(chosen["folder"]), chosen["judged"], chosen["sampler"])


def _load(folder: Path, name: str = "model") -> tuple[Any, Any, Any]:
    """A model with its layout and process (None for a twin)."""
    from discdiff.models import DiscDiffModel
    from discdiff.processes import TYPES
    from tasks.text.training import layout_of

    model = DiscDiffModel.from_pretrained(folder / name)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    process = model.config.process
    return model, layout_of(model.config), from_dict(process, TYPES) if process else None


def _evaluate(folder: Path, judged: Judged, sampler: Sampler) -> None:
    corpus, tokenizer = text_rows.load_task(folder)
    figures: dict[str, Any] = {}
    twin = _load(folder, "twin") if (folder / "twin").exists() else None
    for name in ("model", *(["twin"] if twin else [])):
        model, layout, process = _load(folder, name)
        _, valid = text_rows.load_rows(corpus, tokenizer, layout)
        batches = text_rows.batches(valid, layout, judged.eval_rows, model.device)
        texts = [text for b in batches for text in text_rows.to_text(tokenizer, layout, b.tokens, corpus.rows == "padded")]
        estimate = quality.likelihood(model, process, batches, judged.eval_draws_per_row, judged.eval_seed)
        figures[name] = quality.report(estimate, batches, texts)
        if name == "model":
            tokens = quality.generate(model, process, text_rows.blank(layout, judged.samples, model.device), sampler)
        else:
            tokens = quality.generate_autoregressive(model, layout, judged.samples, judged.eval_seed)
        if twin:
            figures[name] |= quality.judge(tokens, twin[0], twin[1], tokenizer)
    (folder / "metrics.json").write_text(json.dumps({**figures, "sampler": asdict(sampler)}, indent=2) + "\n")
    keys = dict.fromkeys(key for part in figures.values() for key in part)
    print(f"{'':>24}" + "".join(f"{name:>12}" for name in figures))
    for key in keys:
        print(f"{key:>24}" + "".join(f"{part.get(key, float('nan')):12.4f}" for part in figures.values()))


def sample(argv: Sequence[str]) -> None:
    """Sample or infill, printed (and saved as JSON lines, and as a player)."""
    chosen = parse("python -m tasks.text sample", argv, {"sampler": Sampler}, ("folder",))
    sampler, folder = chosen["sampler"], Path(chosen["folder"])
    _, tokenizer = text_rows.load_task(folder)
    model, layout, process = _load(folder)
    if sampler.infill is None:
        batch = text_rows.blank(layout, sampler.count, model.device)
    else:
        batch = text_rows.holes(layout, tokenizer, sampler.infill, sampler.hole, sampler.count, model.device)
    texts = text_rows.to_text(tokenizer, layout, quality.generate(model, process, batch, sampler))
    for text in texts:
        print(text + "\n" + "-" * 40)
    if sampler.save:
        Path(sampler.save).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    if sampler.report:
        _player(model, process, batch, replace(sampler), tokenizer, layout)


def _player(model: Any, process: Any, batch: Any, sampler: Sampler, tokenizer: Any, layout: Any) -> None:
    from discdiff.report import Report, TextView, record
    from discdiff.sampling import iterate

    def symbol(token: int) -> str:
        return tokenizer.decode([token]) if token < layout.vocab.text_size else ""

    steps = sampler.steps or int(batch.free.sum(1).max())
    run = iterate(quality.denoiser_for(model, sampler), quality.kernel_for(sampler.order, process), batch, steps,
                  seed=sampler.sample_seed)  # fmt: skip
    trace = record(run)
    view = TextView("text", layout.columns("text").numpy(), symbol)
    print(Report("discdiff sample", f"{sampler.order}, {steps} steps").player(trace, [view]).save(str(sampler.report)))


if __name__ == "__main__":
    sys.exit(guarded(commands("python -m tasks.text", {"train": train, "sample": sample, "evaluate": evaluate})))
