"""A stock decoder, trained autoregressively and then adapted to masked diffusion, against masked diffusion from scratch.

    python -m benchmarks.adapt [--seeds 0,1,2] [--steps 200,400,1000]      # novels19c, 64 characters a row
    python -m benchmarks.adapt --seeds 3,4,5 --steps 400 --name adapt_confirmed     # one budget, seeds not looked at before

All diffusion runs have the same network (Qwen3's, from transformers), settings and noise; the adapted ones start from the
autoregressive weights, whose own cost stands beside, and have half the steps; they read off each place's own token, as those
from scratch do, no longer the next one. A comparison counts where training from
scratch ends at least 15 % below the entropy of the character frequencies. A finished training is not repeated: an
interrupted run of this script goes on.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.models import HostedModel
from discdiff.objectives import Autoregressive
from discdiff.processes import Absorbing
from discdiff.training import DiffusionTrainer, TrainingSettings, read_metrics
from tasks.text import rows
from tasks.text.finetune import rows_layout
from tasks.text.quality import NGram, unigram_entropy
from tasks.text.settings import Corpus
from tasks.text.training import objective_for

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data")) / "novels19c"
LENGTH, GRAMS = 64, 4_000_000  # characters that the n-grams are counted on
AR = "autoregressive"
BELOW = 0.85  # of the unigram entropy: training from scratch that learned no more than that proves nothing


@dataclass(frozen=True)
class Adapt:
    """steps: budgets from scratch, each twice that of adapting; pretraining: autoregressive steps, at a learning rate of
    their own; evals: bounds measured on the way; valid: rows they are measured on.
    """

    seeds: str = "0,1,2"
    steps: str = "200,400,1000"
    pretraining: int = 2000
    evals: int = 10
    valid: int = 500
    hidden_size: int = 96
    num_layers: int = 3
    batch_size: int = 64
    learning_rate: float = 5e-3
    pretraining_rate: float = 2e-3
    optimizer: str = "muon"
    out: str = "runs/adapt"
    name: str = "adapt"  # of the record
    save: bool = True

    @property
    def budgets(self) -> list[int]:
        """Steps from scratch."""
        return [int(n) for n in self.steps.split(",")]


def stock(vocab_size: int, settings: Adapt, seed: int) -> Any:
    """A Qwen3 of that size with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    width = settings.hidden_size
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=settings.num_layers, num_attention_heads=width // 32,
        num_key_value_heads=width // 32, head_dim=32, intermediate_size=8 * width // 3 // 32 * 32,
        max_position_embeddings=LENGTH + 1, tie_word_embeddings=True, initializer_range=width**-0.5, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


class Bench:
    """The corpus, its rows, and the trainings of a seed."""

    def __init__(self, settings: Adapt) -> None:
        self.settings, self.folder = settings, Path(settings.out)
        if not (DATA / "train.txt.gz").exists():
            raise ValueError(f"no novels in {str(DATA)!r}: set DISCDIFF_DATA to the folder that holds novels19c")
        source, valid = str(DATA / "train.txt.gz"), str(DATA / "valid.txt")
        corpus = Corpus(source=source, valid=valid, length=LENGTH, cache=str(self.folder / "cache"))
        self.tokenizer = rows.build_tokenizer(corpus)
        self.layout = rows_layout(self.model(0), LENGTH)
        self.train, held = rows.load_rows(corpus, self.tokenizer, self.layout)
        self.held = [held[i] for i in range(0, len(held), max(1, len(held) // settings.valid))][: settings.valid]

    def model(self, seed: int, shift: bool = False) -> Any:
        """The stock model as a network of the library."""
        size = len(self.tokenizer)
        host = stock(size, self.settings, seed)
        return HostedModel.from_host(host, vocab_size=size, shift=shift, process=Absorbing(), max_length=LENGTH + 1)

    def fit(
        self, name: str, model: Any, objective: Any, layout: Any, seed: int, steps: int
    ) -> list[tuple[int, float, float]]:
        """(step, validation nats per position, seconds) along one training."""
        s, folder = self.settings, self.folder / f"{name}-{seed}"
        rate = s.pretraining_rate if name == AR else s.learning_rate
        training = TrainingSettings(
            seed=seed, steps=steps, batch_size=s.batch_size, learning_rate=rate, warmup=10,
            weight_decay=0.02, betas=(0.9, 0.98), eval_every=max(1, steps // s.evals), eval_batch_size=128,
            eval_draws=2, log_every=100, progress=False, schedule="cosine", optimizer=s.optimizer,
        )  # fmt: skip
        trainer = DiffusionTrainer(model, training, objective, layout, self.train, self.held, output_dir=folder)
        trainer.train("auto")
        if trainer.stopped_by == "signal":
            raise KeyboardInterrupt
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line]
        found = [(int(x["step"]), float(x["eval_loss"]), float(x["seconds"])) for x in lines]
        print(f"{name}, seed {seed}: " + " ".join(f"{step}:{loss:.3f}" for step, loss, _ in found), flush=True)
        return found

    def all(self, seed: int) -> dict[str, list[tuple[int, float, float]]]:
        """Autoregressive, and for every budget adapted from it in half the steps, and from scratch."""
        objective, causal = objective_for(Absorbing()), replace(self.layout, attention="causal")
        trained = self.model(seed, shift=True)
        found = {
            f"{AR}, {self.settings.pretraining}": self.fit(
                AR, trained, Autoregressive(), causal, seed, self.settings.pretraining
            )
        }
        for steps in self.settings.budgets:
            adapted, scratch = self.model(seed), self.model(seed)
            adapted.load_state_dict(trained.state_dict())
            found[f"adapted, {steps // 2}"] = self.fit(
                f"adapted-{steps // 2}", adapted, objective, self.layout, seed, steps // 2
            )
            found[f"scratch, {steps}"] = self.fit(f"scratch-{steps}", scratch, objective, self.layout, seed, steps)
        return found

    def grams(self) -> dict[str, float]:
        """Nats per character of what has to be beaten, on the same validation rows."""
        text = [self.train[i]["tokens"][1:] for i in range(min(len(self.train), GRAMS // LENGTH))]
        valid = [row["tokens"][1:] for row in self.held]
        found = {"unigram": unigram_entropy(np.concatenate(text))}
        for order in (3, 6):
            found[f"{order}-gram"] = NGram(order).fit(text).nats(valid).per_row / LENGTH
        return found


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.adapt", argv, {"adapt": Adapt})["adapt"]
    bench, seeds = Bench(settings), [int(x) for x in settings.seeds.split(",")]
    per = (LENGTH + 1) / LENGTH  # the loss counts BOS among the positions
    figures: list[dict[str, Any]] = []

    def note(name: str, value: float, unit: str, goal: str | None = None) -> None:
        figures.append({"figure": name, "value": value, "unit": unit, "goal": goal})
        print(figures[-1], flush=True)

    grams = bench.grams()
    for name, value in grams.items():
        note(name, value, "nats per character")
    note("parameters", bench.model(0).num_parameters(), "weights")
    curves: dict[int, Any] = {}
    for seed in seeds:
        found = curves[seed] = bench.all(seed)
        last = {name: curve[-1][1] * per for name, curve in found.items()}
        for name, value in last.items():
            note(f"seed {seed}: {name} steps", value, "nats per character")
            note(f"seed {seed}: {name} steps, training", found[name][-1][2], "s")
        for steps in settings.budgets:
            scratch, adapted = last[f"scratch, {steps}"], last[f"adapted, {steps // 2}"]
            note(f"seed {seed}: scratch, {steps} steps / unigram", scratch / grams["unigram"], "ratio", f"<= {BELOW}")
            note(
                f"seed {seed}: adapted, {steps // 2} steps / scratch, {steps} steps", adapted / scratch, "ratio", "<= 1"
            )
    (bench.folder / "curves.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    if settings.save:
        record(settings.name, figures, data="novels19c, characters, 64 a row", seeds=seeds)


if __name__ == "__main__":
    sys.exit(guarded(main))
