"""A Markov chain whose entropy is known: how close the bound of each process comes after two minutes of training.

python -m benchmarks.markov [--seconds 120] [--processes absorbing,uniform,mask_or_replace,autoregressive]
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.metrics import nelbo
from discdiff.training import TrainingSettings
from tasks.text.settings import Method, Network
from tasks.text.training import fit, objective_for

SYMBOLS, LENGTH = 8, 32
GOALS = {"absorbing": 1.015, "uniform": 1.04, "mask_or_replace": 1.04}


@dataclass(frozen=True)
class Markov:
    """seconds of training per process; rows of training and evaluation data."""

    seconds: float = 120.0
    chain_seed: int = 0
    processes: tuple[str, ...] = ("absorbing", "uniform", "mask_or_replace", "autoregressive")
    train_rows: int = 200_000
    test_rows: int = 2000
    draws: int = 8
    save: bool = True


class Chain:
    """An order-1 chain with rows from Dirichlet(0.3), started from its stationary law."""

    def __init__(self, seed: int) -> None:
        self.step = np.random.default_rng(seed).dirichlet([0.3] * SYMBOLS, SYMBOLS)
        values, vectors = np.linalg.eig(self.step.T)
        stationary = np.real(vectors[:, np.argmax(np.real(values))])
        self.start = stationary / stationary.sum()

    @property
    def unigram(self) -> float:
        """Entropy of one symbol, nats."""
        return float(-(self.start * np.log(self.start)).sum())

    @property
    def rate(self) -> float:
        """Entropy of a symbol given the one before, nats."""
        logs = np.log(np.where(self.step > 0, self.step, 1.0))
        return float(-(self.start[:, None] * self.step * logs).sum())

    @property
    def entropy(self) -> float:
        """Entropy of a row of LENGTH symbols, nats."""
        return self.unigram + (LENGTH - 1) * self.rate

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """Rows (rows, LENGTH) int64."""
        uniform = np.random.default_rng(seed).random((rows, LENGTH))
        out = np.empty((rows, LENGTH), dtype=np.int64)
        out[:, 0] = np.searchsorted(self.start.cumsum(), uniform[:, 0])
        cdf = self.step.cumsum(1)
        for i in range(1, LENGTH):
            out[:, i] = (cdf[out[:, i - 1]] < uniform[:, i : i + 1]).sum(1)
        return out.clip(max=SYMBOLS - 1)

    def nats(self, rows: np.ndarray) -> float:
        """Mean exact NLL of rows, nats: the entropy of this very sample."""
        first, then = np.log(self.start[rows[:, 0]]), np.log(self.step[rows[:, :-1], rows[:, 1:]])
        return float(-(first + then.sum(1)).mean())


def chain_from(seed: int) -> tuple[Chain, int]:
    """The first chain from `seed` on whose unigram entropy is at least 1.4 times its rate."""
    while True:
        chain = Chain(seed)
        if chain.unigram >= 1.4 * chain.rate:
            return chain, seed
        seed += 1


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.markov", argv, {"markov": Markov})["markov"]
    chain, seed = chain_from(settings.chain_seed)
    layout = Layout(
        VocabLayout(SYMBOLS),
        (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (LENGTH,))),
    )
    bos = layout.vocab.special("BOS")

    def rows(count: int, which: int) -> torch.Tensor:
        symbols = torch.from_numpy(chain.sample(count, which))
        return torch.cat([torch.full((count, 1), bos), symbols], 1)

    train = [{"tokens": row} for row in rows(settings.train_rows, 1)]
    test = rows(settings.test_rows, 2)
    truth = chain.nats(test[:, 1:].numpy())
    unigram = float(-np.log(chain.start)[test[:, 1:].numpy()].sum(1).mean())
    print(f"chain seed {seed}: rate {chain.rate:.4f}, unigram {chain.unigram:.4f} nats; row {chain.entropy:.3f} nats, "
          f"these test rows {truth:.3f}")  # fmt: skip
    figures = [
        {"figure": "true nats per row of the test rows", "value": truth, "unit": "nats"},
        {"figure": "unigram nats per row", "value": unigram, "unit": "nats"},
    ]
    network = Network(hidden_size=64, num_layers=3, num_heads=4)
    for name in settings.processes:
        process = None if name == "autoregressive" else Method(name).build()
        training = TrainingSettings(
            seed=0, steps=10**6, batch_size=128, learning_rate=3e-3, schedule_by="seconds", max_seconds=settings.seconds,
            warmup=50, ema=0.999, log_every=200, weight_decay=0.0, betas=(0.9, 0.99), progress=False,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            model = fit(layout, network, process, training, train, None, Path(folder) / "model")
        where = layout if process is not None else dataclasses.replace(layout, attention="causal")
        batches: list[TokenBatch] = [make_batch(where, part) for part in test.split(500)]
        draws = settings.draws if process is not None else 1
        estimate = nelbo(model, objective_for(process), batches, draws=draws)
        print(f"{name:>16}: {estimate}; {estimate.mean / truth:.4f} of the truth", flush=True)
        goal = f"<= {GOALS[name]}" if name in GOALS else None
        ratio = estimate.mean / truth
        figures.append({"figure": f"{name} bound / true entropy", "value": ratio, "unit": "ratio", "goal": goal})
        figures.append({"figure": f"{name} standard error", "value": estimate.stderr / truth, "unit": "ratio"})
    if settings.save:
        record("markov", figures, data=f"order-1 chain, 8 symbols, length 32, chain seed {seed}", seeds=[0])


if __name__ == "__main__":
    sys.exit(guarded(main))
