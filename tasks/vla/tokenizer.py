"""Fit or train an action tokenizer, and say what it loses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.cli import parse
from discdiff.config import checked
from discdiff.report import Report
from discdiff.training import TrainingSettings
from tasks.common.fitting import Arrays, Reconstruction
from tasks.common.fitting import fit as train
from tasks.vla.settings import KINDS, Actions, Output, knobs
from tasks.vla.sources import Chunks, load
from tokenizers_vq.action.base import ActionTokenizer
from tokenizers_vq.action.fast import Fast
from tokenizers_vq.action.normalise import read_statistics
from tokenizers_vq.auto import load_tokenizer
from tokenizers_vq.metrics import code_counts, perplexity, usage


def fit(kind: str, prog: str, argv: Sequence[str]) -> None:
    """Fit a tokenizer of one kind to actions, save it and evaluate it on other episodes."""
    sections: dict[str, Any] = {"actions": Actions, "tokenizer": knobs(kind), "output": Output}
    if kind == "chunks":
        sections["training"] = TrainingSettings
    chosen = parse(prog, argv, sections)
    actions, folder = chosen["actions"], Path(chosen["output"].out)
    network = asdict(chosen["tokenizer"])
    task = json.dumps({"actions": asdict(actions), "kind": kind, "network": network}, indent=2) + "\n"
    chunk = network.pop("chunk")
    data, valid = load(actions, chunk)
    print(
        f"{len(data.actions):,} chunks to fit on, {len(valid.actions):,} of other episodes to evaluate on", flush=True
    )
    if actions.statistics:
        network["statistics"] = read_statistics(actions.statistics, actions.key)
    _noted(folder, task)
    tokenizer = make(kind, data, network, chosen.get("training"), folder / "model")
    report(folder, tokenizer, valid)


def _noted(folder: Path, text: str) -> None:
    """Write task.json. Raises ValueError where the folder holds a tokenizer of other settings: it would go on as that one."""
    file = folder / "task.json"
    begun = any((folder / part).is_dir() for part in ("model", "model_training"))
    same = not begun or (file.is_file() and file.read_text(encoding="utf-8") == text)
    checked("out", str(folder), same, "it holds a tokenizer of other settings: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def make(kind: str, data: Chunks, network: dict[str, Any], training: Any, folder: Path) -> ActionTokenizer:
    """A tokenizer of data, saved to a folder; training: of kind "chunks", by gradients."""
    if kind != "chunks":
        found = KINDS[kind].fit(data.actions, data.mask, **network)  # type: ignore[attr-defined]
        folder.parent.mkdir(parents=True, exist_ok=True)
        found.save_pretrained(folder)
        return found
    torch.manual_seed(training.seed)  # of the initial weights, nothing in the library draws from it
    network = {name: value for name, value in network.items() if name != "dim"}
    first = KINDS[kind].of(data.actions, data.mask, **network)  # type: ignore[attr-defined]
    return train(first, Reconstruction(), training, Arrays(x=data.actions, mask=data.mask), folder, resume="auto")


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Evaluate a saved tokenizer, on the episodes that were kept back or on another source."""
    stored = json.loads((Path(_folder(prog, argv)) / "task.json").read_text(encoding="utf-8"))["actions"]
    given = [word for name, value in stored.items() if value is not None for word in (f"--{name}", str(value))]
    chosen = parse(prog, [*given, *argv], {"actions": Actions}, ("folder",))
    folder = Path(chosen["folder"])
    tokenizer = load_tokenizer(folder / "model")
    report(folder, tokenizer, load(chosen["actions"], tokenizer.config.chunk)[1])


def _folder(prog: str, argv: Sequence[str]) -> str:
    folder: str = parse(prog, argv, {"actions": Actions}, ("folder",))["folder"]
    if not (Path(folder) / "task.json").exists():
        raise ValueError(f"{folder!r} holds no action tokenizer: give a folder that `tokenizer fit` wrote")
    return folder


@torch.no_grad()
def measure(tokenizer: Any, chunks: Chunks) -> dict[str, float]:
    """error: root mean square, in units of the normalised range [-1, 1], over steps that are data, and its largest; tokens
    and bits of a chunk; codes in use; share of clipped numbers; of FAST, malformed chunks.
    """
    out = tokenizer.encode(chunks.actions, chunks.mask)
    decoded = tokenizer.decode(out.codes, out.grid, out.mask)
    half = tokenizer.normaliser.affine[1]
    off = ((decoded - chunks.actions).double() / half)[chunks.mask]
    inside = off[~tokenizer.normaliser.normalise(chunks.actions[chunks.mask]).clipped]
    tokens = float(out.mask.sum(1).double().mean()) * tokenizer.depth
    counts = code_counts(out.codes, tokenizer.codebook_size, out.mask)
    found = {
        "error": float(off.square().mean().sqrt()),
        "error_unclipped": float(inside.square().mean().sqrt()),
        "largest": float(inside.abs().max()),
        "tokens": tokens,
        "bits": tokens * math.log2(tokenizer.codebook_size),
        "perplexity": float(perplexity(counts).mean()),
        "usage": float(usage(counts).mean()),
        "clipped": float(out.aux["clipped"].sum() / chunks.mask.sum() / chunks.actions.shape[2]),
    }
    if isinstance(tokenizer, Fast):
        found["malformed"] = float(tokenizer.decode_flagged(out.codes).malformed.double().mean())
    return found


def report(folder: Path, tokenizer: Any, valid: Chunks) -> dict[str, float]:
    """Print the figures, and write metrics.json and report.html."""
    figures = measure(tokenizer, valid)
    for name, value in figures.items():
        print(f"{name:>16} {value:12.6g}")
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    page = Report("Action tokenizer", f"{type(tokenizer).__name__}, chunks of {tokenizer.config.chunk} steps")
    page.figures({name.replace("_", " "): value for name, value in figures.items()})
    rows = valid.mask.all(1).nonzero()[:, 0]
    for row in rows[:: max(1, len(rows) // 3)][:3].tolist():
        given = valid.actions[row : row + 1]
        _curves(page, given[0], tokenizer.decode(tokenizer.encode(given).codes)[0], f"chunk {row}")
    print(page.save(folder / "report.html"))
    return figures


def _curves(page: Report, given: Tensor, decoded: Tensor, title: str) -> None:
    page.heading(title)
    steps = torch.arange(len(given))
    moving = (given.amax(0) - given.amin(0)).topk(min(3, given.shape[1])).indices
    for dimension in moving.sort().values.tolist():
        series = {"given": (steps, given[:, dimension]), "decoded": (steps, decoded[:, dimension])}
        page.curve(series, "step", f"dimension {dimension}")
