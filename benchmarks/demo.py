"""The demo with three seeds: captions read, digits drawn at 64 and 16 steps, diversity and copies.

python -m benchmarks.demo [--seeds 0,1,2]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.results import record
from discdiff.cli import guarded, parse
from tasks.demo.__main__ import Demo, run

GOALS = {
    "caption_accuracy": ">= 0.96",
    "digit_accuracy_64": ">= 0.93",
    "digit_accuracy_16": ">= 0.93",
    "spread_64": ">= 0.85",
    "spread_16": ">= 0.85",
    "seconds": "<= 300",
}
UNITS = {"seconds": "s", "train_seconds": "s", "training_steps": "steps"}


@dataclass(frozen=True)
class Seeds:
    """Seeds of the runs."""

    seeds: tuple[int, ...] = (0, 1, 2)


def main(argv: Sequence[str]) -> None:
    seeds = parse("python -m benchmarks.demo", argv, {"seeds": Seeds})["seeds"].seeds
    runs = [run(Demo(seed=seed, out=f"runs/demo-{seed}")) for seed in seeds]
    figures = []
    for name in runs[0]:
        values = [one[name] for one in runs]
        unit = UNITS.get(name, "share")
        figures.append({"figure": name, "value": mean(values), "unit": unit, "goal": GOALS.get(name)})
        figures += [
            {"figure": f"{name}, seed {s}", "value": v, "unit": unit} for s, v in zip(seeds, values, strict=True)
        ]
    record("demo", figures, data="scikit-learn digits, 360 held out", seeds=list(seeds))


if __name__ == "__main__":
    sys.exit(guarded(main))
