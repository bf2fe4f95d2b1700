"""How much of a picture a measurement holds, and how much of that a picture's codes can say.

    python -m benchmarks.posterior_bound [--data mnist28|tiles32] [--tasks sr,inpaint] [--steps 4000]

No estimate has a smaller mean squared error than the posterior mean, and a network that is trained by squared error for one
measurement nears it. A sampler answers in codes, not in pixels: so the network's pictures are told in codes, too, by the
tokenizer and by APS, to which they are given as measured whole. Beside them: which PSNR three quarters of the gap from the
prior's sample to the ceiling are (`benchmarks.posterior`). In `out` the network's pictures of each task, made once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import posterior
from benchmarks.posterior import SIGMA, TASKS, Bench, data_term, regressed
from benchmarks.posterior_table import CLOSED, closed
from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.metrics import psnr
from discdiff.report.pictures import write_atomically
from tasks.image import quality
from tasks.image.posterior import restore
from tasks.inverse import Gaussian, RandomInpainting, measure
from tasks.vla.intervals import interval
from tokenizers_vq.image import to_bytes

QUARTERS = 0.75


@dataclass(frozen=True)
class Run:
    """data, models, tokenizer, count, seed: as for `benchmarks.posterior`; steps: of the network's training; method: the row of
    that table which tells pictures in codes.
    """

    data: str = "mnist28"
    models: str = ""
    tokenizer: str = ""
    tasks: tuple[str, ...] = CLOSED
    steps: int = 4000
    method: str = "aps_averaged"
    count: int = 100
    seed: int = 0
    out: str = "runs/posterior_bound"
    save: bool = True

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "training steps, at least 1")
        known = posterior.METHODS
        ok = 0 < len(set(self.tasks)) == len(self.tasks) and set(self.tasks) <= set(TASKS)
        checked("tasks", ",".join(self.tasks), ok, f"choose from {', '.join(TASKS)}, each once")
        checked("method", self.method, self.method in known, f"choose from {', '.join(known)}")


def undone(bench: Bench, task: str, y: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) by the network trained for this task; kept in the bench's folder."""
    file = bench.folder / f"{task}.pt"
    if not file.is_file():
        made, kept = regressed(TASKS[task], bench.train.x, y, bench.run).clamp(-1, 1), io.BytesIO()
        torch.save(made, kept)
        write_atomically(file, kept.getvalue())
    return torch.load(file, weights_only=True)


def in_codes(bench: Bench, x: Tensor, method: str) -> dict[str, Tensor]:
    """Pictures like x that are decoded of codes: the tokenizer's, and a sampler's that sees all of x."""
    trained, how, whole = bench.trained, posterior.METHODS[method], RandomInpainting(0.0)
    told = quality.decode(trained.tokenizer, *quality.encode(trained.tokenizer, to_bytes(x)))
    term, more = data_term(trained, bench.train.x, whole, x, how), {"options": how.options, "batch": 50, **how.knobs}
    made, _, _ = restore(trained, term, [""] * len(x), how.method, how.steps, bench.run.seed, **more)
    return {"its pictures by the tokenizer's codes": told, f"its pictures measured whole, {method}": made}


def figures(bench: Bench, task: str, method: str) -> list[dict[str, Any]]:
    """Of a task."""
    cells = {name: bench.cell(task, name) for name in ("prior", "ceiling")}
    low, high = (interval(cell["figures"]["psnr"]).mean for cell in cells.values())
    found = [_row(f"{task}: three quarters of the gap from prior to ceiling", low + QUARTERS * (high - low), "dB")]
    x = undone(bench, task, measure(TASKS[task], bench.x, Gaussian(SIGMA), bench.run.seed))
    for name, made in {"network": x, **in_codes(bench, x, method)}.items():
        each = psnr(made.clamp(-1, 1), bench.x).double().tolist()
        share = closed({**cells, name: {"figures": {"psnr": each}}}, name)
        for key, unit, values in (("psnr", "dB", interval(each)), ("share of the gap in dB", "", share)):
            sides = zip(("", ", low", ", high"), values, strict=True)
            found += [_row(f"{task}, {name}: {key}{side}", value, unit) for side, value in sides]
    return found


def _row(figure: str, value: float, unit: str) -> dict[str, Any]:
    return {"figure": figure, "value": float(value), "unit": unit}


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.posterior_bound", argv, {"": Run})[""]
    shared = {name: getattr(run, name) for name in ("data", "models", "tokenizer", "tasks", "count", "seed", "out")}
    bench = Bench(posterior.Run(**shared, methods=("prior",), regression=run.steps))
    found = [row for task in run.tasks for row in figures(bench, task, run.method)]
    for row in found:
        print(f"{row['figure']}: {row['value']:.4g} {row['unit']}")
    if run.save:
        data = f"{run.data}: {run.count} test pictures per task, noise {SIGMA}; intervals of 95 % by bootstrap over pictures"
        record(f"posterior_bound_{run.data}", found, data=data, seeds=(run.seed,))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
