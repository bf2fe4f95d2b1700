"""python -m tasks.text train|finetune|sample|generate|evaluate|likelihood|energy|distill: text diffusion on your own corpus.

python -m tasks.text train --source book.txt --steps 5000 --out runs/book
python -m tasks.text sample runs/book --count 4 --sampler remdm_cap --sampler.steps 64 --sampler.eta 0.04
python -m tasks.text sample runs/book --infill "It was the ____ of times"
python -m tasks.text evaluate runs/book
python -m tasks.text finetune gpt2-folder --source book.txt --out runs/tuned    # docs/finetuning.md
python -m tasks.text distill runs/book --steps 8        # a schedule of few steps, for sample --grid kl_8
python -m tasks.text energy runs/book --steps 2000      # a critic of whole rows, for --sampler edlm --sampler.energy learned
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded, parse, take
from discdiff.config import checked
from discdiff.processes import Absorbing
from discdiff.report import Report, TextView, Trace, watch
from discdiff.sampling import knobs
from discdiff.training import TrainingSettings
from tasks.common.improve import load_grid
from tasks.text import evaluate as quality
from tasks.text import rows as text_rows
from tasks.text.extras import load_energy
from tasks.text.finetune import finetune
from tasks.text.folder import Trained, check_text, is_chat, load_model, load_task, save_task
from tasks.text.improve import distill, energy
from tasks.text.infill import Continuation, Infill
from tasks.text.jobs import generate, likelihood
from tasks.text.settings import Chosen, Corpus, Drawing, Judged, Method, Network, Output, Request
from tasks.text.training import config_for, fit, objective_for


def train(prog: str, argv: Sequence[str]) -> None:
    """Train, then the twin, then evaluate both. An interrupted run goes on when the command is repeated."""
    sections = {"corpus": Corpus, "network": Network, "method": Method, "training": TrainingSettings}
    chosen = parse(prog, argv, {**sections, "judged": Judged, "output": Output})
    corpus, network, method, training = (chosen[name] for name in sections)
    folder, process = Path(chosen["output"].out), method.build()
    tokenizer = text_rows.build_tokenizer(corpus)
    layout = text_rows.layout_for(tokenizer, corpus.length)
    masks_only = layout.vocab.mask_id is None or isinstance(process, Absorbing)
    checked(
        "process", method.process, masks_only, "the tokenizer's mask is a text id, which only absorbing never draws"
    )
    config_for(layout, network, process)  # refuses impossible sizes before the corpus is tokenised
    train_rows, valid_rows = text_rows.load_rows(corpus, tokenizer, layout)
    print(f"{len(train_rows):,} training rows and {len(valid_rows):,} validation rows of {corpus.length} tokens")
    save_task(folder, {"corpus": corpus, "network": network, "method": method}, tokenizer)
    for name, kind in (("model", process), *([("twin", None)] if method.twin else [])):
        print(f"training {folder / name}: {method.process if kind else 'autoregressive, same budget'}", flush=True)
        fit(layout, network, kind, training, train_rows, valid_rows, folder / name, resume="auto")
    _evaluate(folder, chosen["judged"], _chosen(prog, [], Drawing(), folder))


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Evaluate a trained folder."""
    chosen, sampler = _parse(prog, argv, {"judged": Judged})
    _evaluate(Path(chosen["folder"]), chosen["judged"], sampler)


def _parse(prog: str, argv: Sequence[str], sections: dict[str, type]) -> tuple[dict[str, Any], Chosen]:
    """The settings of a command that samples from a folder, and its sampler."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {**sections, "drawing": Drawing}, ("folder",))
    return chosen, _chosen(prog, inside, chosen["drawing"], Path(chosen["folder"]))


def _chosen(prog: str, flags: Sequence[str], drawing: Drawing, folder: Path) -> Chosen:
    section = {"sampler": knobs(drawing.sampler)}
    given = parse(f"{prog} --sampler {drawing.sampler}", flags, section, prefix="sampler.")
    named, grid = asdict(given["sampler"]), load_grid(folder, drawing.grid)
    parts = {"energy": load_energy(folder, named["energy"])} if isinstance(named.get("energy"), str) else {}
    return Chosen(drawing.sampler, named, drawing.sample_seed, grid, parts)


def _evaluate(folder: Path, judged: Judged, sampler: Chosen) -> None:
    """Print, and write to metrics.json, the figures of the model, its twin, and the validation text itself."""
    check_text(folder)
    corpus, tokenizer = load_task(folder)
    padded = corpus.rows == "padded"
    trained = {"model": load_model(folder / "model")}
    if (folder / "twin").exists():
        trained["twin"] = load_model(folder / "twin")
    for model, layout, process in trained.values():
        objective_for(process, model.config.prediction, layout.block)  # refused before the corpus is read
    _, valid = text_rows.load_rows(corpus, tokenizer, trained["model"].layout)
    samples = {name: _samples(each, judged, sampler) for name, each in trained.items()}
    figures: dict[str, dict[str, float]] = {}
    for name, (model, layout, process) in trained.items():
        rows = text_rows.batches(valid, layout, judged.eval_rows, model.device)
        estimate = quality.likelihood(model, process, rows, judged.eval_draws_per_row, judged.eval_seed)
        figures[name] = quality.report(estimate, rows, tokenizer, padded)
        samples["data"] = torch.cat([batch.tokens for batch in rows])[: judged.samples]
    for name, tokens in samples.items():
        part = figures.setdefault(name, {})
        if "twin" in trained:
            twin = trained["twin"]
            part |= quality.judge(text_rows.judged_rows(twin.layout, tokens, corpus.ends), twin.model)
        part |= quality.diversity(text_rows.judged_rows(trained["model"].layout, tokens, corpus.ends))
    finite = {name: {k: v if math.isfinite(v) else None for k, v in part.items()} for name, part in figures.items()}
    report = {**finite, "judged": asdict(judged), "sampler": sampler.to_dict()}
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'':>24}" + "".join(f"{name:>12}" for name in figures))
    for key in dict.fromkeys(key for part in figures.values() for key in part):
        print(f"{key:>24}" + "".join(f"{part[key]:12.4f}" if key in part else " " * 12 for part in figures.values()))


def _samples(trained: Trained, judged: Judged, sampler: Chosen) -> Tensor:
    model, layout, process = trained
    if process is None:
        return quality.generate_autoregressive(model, layout, judged.samples, sampler.seed)
    return quality.generate(model, process, text_rows.blank(layout, judged.samples, model.device), sampler)


def sample(prog: str, argv: Sequence[str]) -> None:
    """Sample or infill: printed, and where asked saved as JSON lines and as a page that plays the first sample."""
    chosen, sampler = _parse(prog, argv, {"request": Request})
    request, folder = chosen["request"], Path(chosen["folder"])
    corpus, tokenizer = load_task(folder)
    model, layout, process = load_model(folder / "model")
    assert process is not None
    read: Callable[[Tensor], list[str]]
    if request.prompt is not None:
        begun = Continuation(layout, tokenizer, request.prompt, is_chat(folder))
        batch, read = begun.batch(request.count, model.device), begun.texts
    elif request.infill is None:
        batch = text_rows.blank(layout, request.count, model.device)
        read = partial(text_rows.to_text, tokenizer, layout, cut=corpus.ends, between="\n")
    else:
        tail = "ends" if corpus.rows == "padded" else "absent" if corpus.boundaries else "free"
        infill = Infill(layout, tokenizer, request.infill, request.hole, tail)
        batch, read = infill.batch(request.count, model.device), infill.texts
    traces: dict[int, Trace] = {}
    tokens = batch.tokens
    for state, _ in watch(quality.run(model, process, batch, sampler), traces):
        tokens = state.tokens
    texts = read(tokens)
    for text in texts:
        print(text + "\n" + "-" * 40)
    if request.save is not None:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        Path(request.save).parent.mkdir(parents=True, exist_ok=True)
        Path(request.save).write_text(lines, encoding="utf-8")
    if request.report is not None:
        columns = layout.columns("text").numpy()
        view = TextView("text", columns, lambda token: text_rows.text_of(tokenizer, layout, [token]))
        subtitle = f"{sampler.name}, {traces[0].steps - 1} steps"
        print(Report("discdiff sample", subtitle).player(traces[0], [view]).save(request.report))


MAIN = commands(
    "python -m tasks.text",
    {
        "train": train,
        "finetune": finetune,
        "sample": sample,
        "generate": generate,
        "evaluate": evaluate,
        "likelihood": likelihood,
        "energy": energy,
        "distill": distill,
    },
)

if __name__ == "__main__":
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(MAIN))
