"""The table and the goals of `benchmarks.posterior`, of the cells that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import reached, record
from discdiff.config import checked
from tasks.vla.intervals import Interval, difference, interval

STEPS = (  # of the ablation, each against the one before
    ("anchored re-masking", "aps_anchored", "aps"),
    ("KL to the network's table", "aps_anchored_kl", "aps_anchored"),
    ("warm start", "aps_warm", "aps_anchored_kl"),
    ("the model's own steps", "aps_own", "aps_warm"),
)
OURS = ("aps_warm", "aps_anchored_kl", "aps_anchored")  # the first that is there
RIVALS = ("prior", "g2d2", "sgdd", "svdd", "svdd_best", "gradient", "best_of")
CLOSED = ("sr", "inpaint")
UNITS = {"psnr": "dB", "ssim": "", "features": "", "measurement": ""}


def written_table(folder: Path, run: Any, linear: tuple[str, ...]) -> None:
    """Print all rows, and record them where there are any."""
    figures = [row for task in run.tasks for row in rows(folder / task, task, linear)]
    for row in figures:
        goal = row.get("goal")
        verdict = f" ({goal}, {'reached' if reached(row['value'], goal) else 'missed'})" if goal else ""
        print(f"{row['figure']}: {row['value']:.4g} {row['unit']}{verdict}")
    if run.save and figures:
        data = (
            f"{run.data}: {run.count} test pictures per task, noise .05; intervals of 95 % by bootstrap over pictures"
        )
        record(f"posterior_{run.data}", figures, data=data, seeds=(run.seed,))


def rows(folder: Path, task: str, linear: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of every cell of a task, the steps of the ablation as paired differences, and the goals."""
    cells = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    models = len({cell["weights"] for cell in cells.values()})
    checked(
        "models", models, models <= 1, f"{str(folder)!r} has cells of several: make all methods again, or give --out"
    )
    found: list[dict[str, Any]] = []
    for name, cell in cells.items():
        for key, values in cell["figures"].items():
            mean = interval(values)
            found.append(_row(f"{task}, {name}: {key}", mean.mean, UNITS[key]))
            found += [
                _row(f"{task}, {name}: {key}, low", mean.low, UNITS[key]),
                _row(f"{task}, {name}: {key}, high", mean.high, UNITS[key]),
            ]
        for key, value in cell["cost"].items():
            found.append(_row(f"{task}, {name}: {key}", value, ""))
    for title, after, before in STEPS:
        if {after, before} <= cells.keys():
            found += _difference(f"{task}: {title}", gain(cells, after, before))
    ours = next((name for name in OURS if name in cells), None)
    if ours is None:
        return found
    there = [name for name in RIVALS if name in cells]
    if task in linear and there:
        best = max(there, key=lambda name: np.mean(cells[name]["figures"]["psnr"]))
        for name in (ours, *({"aps_own"} & cells.keys())):
            title = f"{task}: {name} against {best}, the best rival"
            found += _difference(title, gain(cells, name, best), "> 0" if name == ours else None)
    if {"prior", "ceiling"} <= cells.keys():
        goal = ">= 0.75" if task in CLOSED else None
        found.append(_row(f"{task}: share of the gap from prior to ceiling in dB", closed(cells, ours), "", goal))
        found.append(_row(f"{task}: share of the gap in squared error", closed(cells, ours, True), ""))
        if "regression" in cells:
            share = closed(cells, "regression")
            found.append(_row(f"{task}: share of the gap in dB that the regression closes", share, ""))
    return found


def gain(cells: dict[str, Any], first: str, second: str) -> Interval:
    """By how much the PSNR of the first is above, in dB."""
    pair = ({str(i): x for i, x in enumerate(cells[name]["figures"]["psnr"])} for name in (first, second))
    return difference(*pair)  # type: ignore[arg-type]


def closed(cells: dict[str, Any], name: str, squared: bool = False) -> float:
    """Which share of the way from the prior's sample to the tokenizer's own reconstruction a method goes."""

    def at(each: str) -> float:
        values = np.array(cells[each]["figures"]["psnr"])
        return float(np.mean(10 ** (-values / 10) if squared else values))

    return (at(name) - at("prior")) / (at("ceiling") - at("prior"))


def _difference(title: str, found: Interval, low: str | None = None) -> list[dict[str, Any]]:
    return [
        _row(f"{title}: difference", found.mean, "dB"),
        _row(f"{title}: lower bound", found.low, "dB", low),
        _row(f"{title}: upper bound", found.high, "dB"),
    ]


def _row(figure: str, value: float, unit: str, goal: str | None = None) -> dict[str, Any]:
    return {"figure": figure, "value": float(value), "unit": unit, **({"goal": goal} if goal else {})}
