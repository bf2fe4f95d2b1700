"""Codes of latents: ours against a plain chunked matrix product + argmin, and against vector-quantize-pytorch's modules.

    OMP_NUM_THREADS=1 python -m benchmarks.tokenizers [--part speed|ties]

CPU time of one thread; the three take turns in every round, and a figure is the median of the rounds' ratios. Memory is
the largest tensor that a run makes. Where codes differ from the module's, float64 distances say who is nearer, and how
close a call it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from benchmarks.results import record
from discdiff.cli import guarded, parse
from tokenizers_vq.nearest import half_norms, residual_codes

GOAL, TIE = "<= 1.3", "<= 1e-06"
CHUNK = 256  # rows of the plain loop: the best of 16 to 2048 for both sizes of codebook


@dataclass(frozen=True)
class Compared:
    """part: speed, ties or all; dim: of a latent; rounds: of the quick comparisons, slow ones have half or a quarter."""

    part: str = "all"
    dim: int = 256
    rounds: int = 8
    seed: int = 0
    save: bool = True


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that was made within."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:  # a view makes nothing
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


def plain(h: Tensor, codebook: Tensor, norms: Tensor) -> Tensor:
    """What one would write: a matrix product and an argmin per chunk and level."""
    parts = []
    for rest in h.split(CHUNK):
        found = []
        for book, norm in zip(codebook, norms, strict=True):
            found.append(torch.addmm(norm, rest, book.T, alpha=-1).argmin(1))
            rest = rest - book[found[-1]]
        parts.append(torch.stack(found, 1))
    return torch.cat(parts)


def module(depth: int, size: int, dim: int, generator: torch.Generator, fresh: bool = False) -> tuple[Any, Tensor]:
    """The module with a random codebook, each level 0.8 of the one before, and that codebook (depth, size, dim); fresh: it
    keeps the one it was made with.
    """
    book = torch.randn(depth, size, dim, generator=generator) * 0.8 ** torch.arange(depth)[:, None, None]
    if depth == 1:
        made: Any = VectorQuantize(dim=dim, codebook_size=size, rotation_trick=False)
        levels = [made]
    else:
        made = ResidualVQ(dim=dim, num_quantizers=depth, codebook_size=size, rotation_trick=False)
        levels = list(made.layers)
    for level, x in zip(levels, book, strict=True) if not fresh else ():
        level._codebook.embed.copy_(x[None])
    return made.eval(), book


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds."""
    began = time.process_time()
    run()
    return time.process_time() - began


def disagreement(h: Tensor, book: Tensor, ours: Tensor, theirs: Tensor) -> tuple[int, int, float]:
    """Rows whose codes differ, in how many of them ours is farther in float64 at the first level that differs, and the
    largest difference of the squared distances there as a share of the smaller.
    """
    rows = (ours != theirs).any(1).nonzero()[:, 0]
    worse, gap = 0, 0.0
    for row in rows.tolist():
        level = int((ours[row] != theirs[row]).nonzero()[0])
        rest = h[row].double() - sum(book[j, ours[row, j]].double() for j in range(level))
        a, b = ((rest - book[level, codes[row, level]].double()).square().sum() for codes in (ours, theirs))
        worse += int(a > b)
        gap = max(gap, float((a - b).abs() / torch.minimum(a, b)))
    return len(rows), worse, gap


@torch.no_grad()
def compare(depth: int, size: int, count: int, chosen: Compared) -> list[dict[str, Any]]:
    """Ratios of time, largest tensors and disagreements of one setting."""
    generator = torch.Generator().manual_seed(chosen.seed)
    layer, book = module(depth, size, chosen.dim, generator)
    h = torch.randn(count, chosen.dim, generator=generator)
    norms = half_norms(book)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: residual_codes(h, book, norms),
        "plain": lambda: plain(h, book, norms),
        "module": lambda: layer(h[None])[1][0],
    }
    codes, peaks = {}, {}
    for name, run in runs.items():
        with Largest() as largest:
            codes[name] = run().view(count, -1)
        peaks[name] = largest.bytes / 2**20
    assert peaks["ours"] < count * size * 4 / 2**20, "an N x K table was made"
    work = depth * size * count
    rounds = chosen.rounds // (1 if work < 1 << 27 else 2 if work < 1 << 30 else 4)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(max(1, rounds)):
        order = list(runs)[k % 3 :] + list(runs)[: k % 3]
        for name in order:
            times[name].append(timed(runs[name]))
    of = f"{'VQ' if depth == 1 else f'RVQ-{depth}'}, K={size}, N={count}"

    def ratio(name: str) -> float:
        return median(a / b for a, b in zip(times["ours"], times[name], strict=True))

    differ, worse, gap = disagreement(h, book, codes["ours"], codes["module"])
    rows: list[dict[str, Any]] = [
        {"figure": f"{of}: ours / plain", "value": ratio("plain"), "unit": "CPU time", "goal": GOAL},
        {"figure": f"{of}: ours / module", "value": ratio("module"), "unit": "CPU time"},
        {"figure": f"{of}: ours", "value": 1e3 * median(times["ours"]), "unit": "ms"},
        {"figure": f"{of}: largest tensor, ours", "value": peaks["ours"], "unit": "MiB"},
        {"figure": f"{of}: largest tensor, module", "value": peaks["module"], "unit": "MiB"},
        {"figure": f"{of}: rows that differ from the module's", "value": differ},
        {"figure": f"{of}: of these ours is farther in float64", "value": worse},
        {"figure": f"{of}: largest relative gap of a difference", "value": gap, "goal": TIE},
    ]
    for row in rows:
        print(row["figure"], row["value"], flush=True)
    return rows


@torch.no_grad()
def ties(depth: int, size: int, chosen: Compared, count: int = 16384) -> list[dict[str, Any]]:
    """Disagreements on a codebook as it is first drawn, tiny beside the latents, where all codes are nearly as near."""
    torch.manual_seed(chosen.seed)  # the module draws from the global generator
    layer, _ = module(depth, size, chosen.dim, torch.Generator(), fresh=True)
    books = [x._codebook.embed for x in ([layer] if depth == 1 else layer.layers)]
    book, h = torch.cat(books), torch.randn(count, chosen.dim)
    theirs = torch.cat([layer(part[None])[1][0].view(-1, depth) for part in h.split(2048)])
    differ, worse, gap = disagreement(h, book, residual_codes(h, book), theirs)
    of = f"{'VQ' if depth == 1 else f'RVQ-{depth}'}, K={size}, untrained codebook, {count} rows"
    return [
        {"figure": f"{of}: rows that differ from the module's", "value": differ},
        {"figure": f"{of}: of these ours is farther in float64", "value": worse},
        {"figure": f"{of}: largest relative gap of a difference", "value": gap, "goal": TIE},
    ]


def main(argv: Sequence[str]) -> None:
    """All settings."""
    chosen: Compared = parse("python -m benchmarks.tokenizers", argv, {"": Compared})[""]
    torch.set_num_threads(1)
    data = f"random latents and codebooks of {chosen.dim} numbers"
    if chosen.part in ("all", "ties"):
        rows = [row for depth, size in ((1, 1024), (1, 8192), (8, 1024)) for row in ties(depth, size, chosen)]
        _record(chosen, "tokenizers_ties", rows, data)
    if chosen.part in ("all", "speed"):
        settings = [(depth, size, count) for count in (2048, 16384) for depth in (1, 8) for size in (1024, 8192)]
        rows = [row for setting in settings for row in compare(*setting, chosen)]
        _record(chosen, "tokenizers", rows, data)


def _record(chosen: Compared, name: str, rows: list[dict[str, Any]], data: str) -> None:
    if chosen.save:
        record(name, rows, data=data, seeds=chosen.seed)
    else:
        print(*rows, sep="\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
