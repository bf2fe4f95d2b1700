"""Molecules as SMILES: the bound in nats per molecule, and of 1,000 samples the shares that are valid, unique, novel.

python -m benchmarks.qm9 [--seconds 600]; needs RDKit and the folder qm9_smiles under DISCDIFF_DATA
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing
from discdiff.training import TrainingSettings, read_metrics
from tasks.text import evaluate, rows
from tasks.text.quality import NGram
from tasks.text.settings import Chosen, Corpus, Network
from tasks.text.training import fit

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data")) / "qm9_smiles"


@dataclass(frozen=True)
class Qm9:
    """seconds of training of the diffusion model, and of the twin after it; count: samples judged; reuse: judge the models
    that an earlier run left in `out`.
    """

    seconds: float = 600.0
    hidden_size: int = 128
    num_layers: int = 4
    batch_size: int = 64
    learning_rate: float = 4e-3
    ema: float = 0.999
    seed: int = 0
    count: int = 1000
    twin: bool = True
    reuse: bool = False
    out: str = "runs/qm9"
    save: bool = True


def molecules(texts: list[str], train: set[str]) -> dict[str, float]:
    """Share RDKit parses, share of distinct molecules among those, share of these that training did not have."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    parsed = [Chem.MolFromSmiles(text) if text else None for text in texts]
    names = [Chem.MolToSmiles(m) for m in parsed if m is not None]
    unique = set(names)
    return {
        "valid": len(names) / len(texts),
        "unique": len(unique) / max(len(names), 1),
        "novel": len(unique - train) / max(len(unique), 1),
    }


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.qm9", argv, {"qm9": Qm9})["qm9"]
    if not (DATA / "train.csv").exists():
        raise ValueError(f"no {DATA / 'train.csv'}: set DISCDIFF_DATA to the folder that holds qm9_smiles")
    corpus = Corpus(
        source=str(DATA / "train.csv"), valid=str(DATA / "valid.csv"), text_field="smiles", rows="padded", length=32,
        cache=f"{settings.out}/cache",
    )  # fmt: skip
    with open(DATA / "train.csv") as file:
        known = {line["smiles"] for line in csv.DictReader(file)}
    tokenizer = rows.build_tokenizer(corpus)
    layout = rows.layout_for(tokenizer, corpus.length)
    train, valid = rows.load_rows(corpus, tokenizer, layout)
    network = Network(settings.hidden_size, settings.num_layers, 4)
    training = TrainingSettings(
        seed=settings.seed, steps=10**6, batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        schedule_by="seconds", max_seconds=settings.seconds, warmup=100, ema=settings.ema, weight_decay=0.02,
        betas=(0.9, 0.98), optimizer="muon", bf16=True, compile=True, log_every=200, progress=False,
    )  # fmt: skip
    figures: list[dict[str, Any]] = []

    def note(name: str, value: float, unit: str, goal: str | None = None) -> None:
        figures.append({"figure": name, "value": value, "unit": unit, "goal": goal})
        print(f"{name:>44}: {value:.4f} {unit}", flush=True)

    for name, process in (("diffusion", Absorbing()), *([("autoregressive twin", None)] if settings.twin else [])):
        folder = Path(settings.out) / name.split()[0]
        if settings.reuse:
            model = DiscDiffModel.from_pretrained(folder).eval()
        else:
            model = fit(layout, network, process, training, train, valid, folder)
        log = read_metrics(folder.with_name(folder.name + "_training") / "metrics.jsonl")[-1]
        note(f"{name}, training", log["seconds"], "s")
        note(f"{name}, training steps", log["step"], "steps")
        where = layout if process else replace(layout, attention="causal")
        batches = rows.batches(valid, where)
        estimate = evaluate.likelihood(model, process, batches, 4, settings.seed)
        note(f"{name}, nats on valid", estimate.mean, "nats per molecule", "<= 17" if process else None)
        note(f"{name}, nats on valid, standard error", estimate.stderr, "nats per molecule")
        if process is None:
            _judge(
                note, name, evaluate.generate_autoregressive(model, where, settings.count, 1), tokenizer, where, known
            )
            continue
        for order, steps in (("ancestral", 32), ("random", 32), ("entropy", 32)):
            sampler = Chosen(order, {"steps": steps}, seed=1)
            tokens = evaluate.generate(model, process, rows.blank(layout, settings.count, model.device), sampler)
            _judge(
                note, f"{name}, {order}, {steps} steps", tokens, tokenizer, layout, known, goals=order == "ancestral"
            )
    eos = layout.vocab.special("EOS")
    grams = NGram(4).fit([train[i]["tokens"][1:] for i in range(len(train))])
    nats = grams.nats([valid[i]["tokens"][1:] for i in range(len(valid))])
    note("4-gram, nats on valid", nats.per_row, "nats per molecule")
    texts = []
    for row in grams.sample(settings.count, 32, 1, eos_id=eos):
        ids = [int(i) for i in row]
        texts.append(tokenizer.decode(ids[: ids.index(eos)] if eos in ids else [i for i in ids if i < eos]))
    for key, value in molecules(texts, known).items():
        note(f"4-gram, {key}", value, "share")
    if settings.save:
        record("qm9_smiles", figures, data="qm9_smiles: train.csv, valid.csv", seeds=[settings.seed])


def _judge(
    note: Any, name: str, tokens: torch.Tensor, tokenizer: Any, layout: Any, known: set[str], goals: bool = False
):
    texts = rows.to_text(tokenizer, layout, tokens)
    wanted = {"valid": ">= 0.45", "unique": ">= 0.9"} if goals else {}
    for key, value in molecules(texts, known).items():
        note(f"{name}, {key}", value, "share", wanted.get(key))


if __name__ == "__main__":
    sys.exit(guarded(main))
