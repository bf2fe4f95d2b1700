"""Output head and loss at the masked positions against full-vocabulary cross-entropy of every position, then masked.

    python -m benchmarks.head_loss [--threads 2]      # Linux; writes docs/results/head_loss.json; about a minute

The trunk is left out: the hidden states are a leaf, and each variant makes the gradients of hidden states and weight.
Time: the variants in turn in one process, median of 5 rounds after one to warm up. Memory: each variant in a process of
its own, highest resident size minus the resident size before, so that buffers inside the matrix library count too and
the hidden states and the weight, held before, do not.
"""

import argparse
import functools
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results import record
from discdiff.objectives.linear_cross_entropy import linear_cross_entropy

VOCAB, BATCH, LENGTH, WIDTHS, SEED, ROUNDS = 50257, 4, 256, (256, 512), 0, 5
MIB = 1 << 20


def problem(width: int, vocab: int = VOCAB, batch: int = BATCH) -> dict[str, Tensor]:
    """Hidden states `(batch * length, width)`, head, targets, and half of the positions masked."""
    generator = torch.Generator().manual_seed(SEED)
    n = batch * LENGTH
    hidden = torch.randn(n, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocab, (n,), generator=generator)
    masked = torch.zeros(n, dtype=torch.bool)
    masked[torch.randperm(n, generator=generator)[: n // 2]] = True
    return dict(hidden=hidden, weight=weight, targets=targets, masked=masked)


def all_positions(hidden: Tensor, weight: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    nats = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    return (nats * masked).sum() / masked.sum()


def masked_positions(hidden: Tensor, weight: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    return F.cross_entropy(hidden[masked] @ weight.t(), targets[masked])


def fused(hidden: Tensor, weight: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
    return linear_cross_entropy(hidden[masked], weight, targets[masked])[0] / masked.sum()


VARIANTS = {"all positions": all_positions, "masked positions, unfused": masked_positions, "fused": fused}


def gradients(variant: str, data: dict[str, Tensor]) -> list[Tensor]:
    """One forward and backward, into fresh `.grad`s as in training."""
    leaves = [data["hidden"], data["weight"]]
    for leaf in leaves:
        leaf.grad = None
    VARIANTS[variant](**data).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def seconds(width: int) -> dict[str, list[float]]:
    data = problem(width)
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for measured in [False] + [True] * ROUNDS:
        for variant in VARIANTS:
            start = time.perf_counter()
            gradients(variant, data)
            if measured:
                times[variant].append(time.perf_counter() - start)
    return times


def difference(width: int) -> float:
    """Largest gradient difference of the fused loss, relative to the largest entry of that gradient."""
    data = problem(width)
    want = gradients("all positions", data)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients("fused", data), want, strict=True))


def resident(field: str) -> int:
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def peak(variant: str, width: int, threads: int) -> int:
    """Bytes by which the resident size grows at its highest; to be called in a fresh process."""
    torch.set_num_threads(threads)
    gradients(variant, problem(width, vocab=64, batch=1))  # loads libraries and starts threads
    data = problem(width)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
    before = resident("VmRSS")
    gradients(variant, data)
    return resident("VmHWM") - before


def figures(width: int, threads: int) -> list[dict]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = dict(zip(VARIANTS, pool.map(functools.partial(peak, width=width, threads=threads), VARIANTS, 1)))
    times = seconds(width)
    median = {variant: statistics.median(times[variant]) for variant in VARIANTS}
    paired = statistics.median(a / b for a, b in zip(times["fused"], times["all positions"], strict=True))
    weight_gradient = VOCAB * width * 4  # the result itself: any variant must hold it
    rows = [
        ("time, fused / all positions", paired, "", "<= 0.6"),
        ("peak memory, fused / all positions", peaks["fused"] / peaks["all positions"], "", "<= 0.3"),
        (
            "the same without the weight gradient itself",
            (peaks["fused"] - weight_gradient) / (peaks["all positions"] - weight_gradient),
            "",
            None,
        ),
        ("largest relative gradient difference", difference(width), "", "<= 1e-5"),
        *((f"time, {variant}", median[variant], "s", None) for variant in VARIANTS),
        *((f"peak memory, {variant}", round(peaks[variant] / MIB, 1), "MiB", None) for variant in VARIANTS),
        ("weight gradient", round(weight_gradient / MIB, 1), "MiB", None),
    ]
    return [
        dict(figure=f"width {width}: {name}", value=value, unit=unit, goal=goal) for name, value, unit, goal in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    if sys.platform != "linux":
        raise SystemExit("the memory of a process is read from /proc: run this on Linux")
    torch.set_num_threads(threads)
    data = (
        f"normal random hidden states and head, vocabulary {VOCAB}, batch {BATCH}, length {LENGTH}, "
        f"half of the positions masked, float32 on the CPU with {threads} threads; forward and backward, trunk excluded"
    )
    record("head_loss", [row for width in WIDTHS for row in figures(width, threads)], data=data, seeds=SEED)


if __name__ == "__main__":
    main()
