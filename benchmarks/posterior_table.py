"""The table and the goals of `benchmarks.posterior`, of the cells that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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
    ("the table's surest sites first, equally many per step", "aps_sure", "aps_warm"),
    ("what the tokenizer loses counted as noise", "aps_calibrated", "aps_sure"),
    ("every code anew at every step, four times the steps", "aps_anew", "aps_calibrated"),
    ("codes of the mean of the tables since half time", "aps_averaged", "aps_anew"),
    ("the model's own steps", "aps_own", "aps_sure"),
    ("twice the steps, codes masked again on the way", "aps_again", "aps_own"),
)
OURS = ("aps_calibrated", "aps_sure", "aps_warm", "aps_anchored_kl", "aps_anchored")  # the first that is there
ANEW = (
    "aps_averaged",
    "aps_anew",
)  # too, and asked the same: the table does not rank, chance says what is masked again
BESIDE = ("aps_own", "aps_again")  # which do not go by the surest site: compared, not asked of
RIVALS = (
    "prior", "g2d2", "g2d2_calibrated", "g2d2_l2", "g2d2_l2_deblur", "sgdd",
    "svdd", "svdd_best", "gradient", "gradient_weak", "best_of"
)  # fmt: skip
CLOSED = ("sr", "inpaint")
MODELS = {"weights", "tokenizer", "judge"}  # of which a cell has the digests
UNITS = {"psnr": "dB", "ssim": "", "features": "", "measurement": ""}


Cells = Mapping[str, Mapping[str, Any]]  # by the name of the method


def current(
    folder: Path, tasks: Iterable[str], names: Iterable[str], note: Callable[[str, str], Mapping[str, Any]]
) -> tuple[dict[str, Cells], list[str]]:
    """The cells FOLDER/TASK/NAME.json of all tasks that were made as `note(task, name)` says, and which others there are.

    Raises ValueError for cells of several models: nobody knows which ones are meant.
    """
    found: dict[str, Cells] = {}
    known, stale, models = set(names), [], set()
    for task in tasks:
        here: dict[str, Any] = {}
        for file in sorted((folder / task).glob("*.json")):
            cell = json.loads(file.read_text(encoding="utf-8"))
            if file.stem in known and note(task, file.stem).items() <= cell.items() and cell.keys() >= MODELS:
                here[file.stem] = cell
                models.add(tuple(cell[part] for part in sorted(MODELS)))
            else:
                stale.append(f"{task}/{file.stem}")
        if here:
            found[task] = here
    checked(
        "models",
        len(models),
        len(models) <= 1,
        f"{str(folder)!r} has cells of several: make all methods again, or give --out",
    )
    return found, stale


def written_table(cells: Mapping[str, Cells], run: Any, linear: tuple[str, ...]) -> None:
    """Print all rows of all tasks, and record them where there are any."""
    figures = [row for task, here in cells.items() for row in rows(here, task, linear)]
    for row in figures:
        goal = row.get("goal")
        verdict = f" ({goal}, {'reached' if reached(row['value'], goal) else 'missed'})" if goal else ""
        print(f"{row['figure']}: {row['value']:.4g} {row['unit']}{verdict}")
    if run.save and figures:
        data = (
            f"{run.data}: {run.count} test pictures per task, noise .05; intervals of 95 % by bootstrap over pictures"
        )
        record(f"posterior_{run.data}", figures, data=data, seeds=(run.seed,))


def rows(cells: Cells, task: str, linear: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of every cell of a task, the steps of the ablation as paired differences, and the goals."""
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
    leads = [next((name for name in names if name in cells), None) for names in (OURS, ANEW)]
    there = [name for name in RIVALS if name in cells]
    if task in linear and there and any(leads):
        best = max(there, key=lambda name: np.mean(cells[name]["figures"]["psnr"]))
        for name in filter(None, (*leads, *(each for each in BESIDE if each in cells))):
            title = f"{task}: {name} against {best}, the best rival"
            found += _difference(title, gain(cells, name, best), "> 0" if name in leads else None)
    if {"prior", "ceiling"} <= cells.keys() and any(leads):
        goal = ">= 0.75" if task in CLOSED else None
        for name, title in zip(leads, (task, f"{task}, {leads[1]}"), strict=True):
            if name is not None:
                found += _share(f"{title}: share of the gap from prior to ceiling in dB", closed(cells, name), goal)
                found += _share(f"{title}: share of the gap in squared error", closed(cells, name, True))
        if "regression" in cells:
            share = closed(cells, "regression")
            found += _share(f"{task}: share of the gap in dB that the regression closes", share)
    return found


def gain(cells: Cells, first: str, second: str) -> Interval:
    """By how much the PSNR of the first is above, in dB."""
    pair = ({str(i): x for i, x in enumerate(cells[name]["figures"]["psnr"])} for name in (first, second))
    return difference(*pair)  # type: ignore[arg-type]


def closed(cells: Cells, name: str, squared: bool = False, draws: int = 10_000, seed: int = 0) -> Interval:
    """Which share of the way from the prior's sample to the tokenizer's own reconstruction a method goes, of the means over
    the pictures, and its bootstrap interval of 95 %: percentiles over resamples of the pictures, all three by the same ones.
    """
    x = np.array([cells[each]["figures"]["psnr"] for each in (name, "prior", "ceiling")])
    x = 10 ** (-x / 10) if squared else x
    picked = np.random.default_rng(seed).multinomial(x.shape[1], [1 / x.shape[1]] * x.shape[1], draws) / x.shape[1]

    def share(means: Any) -> Any:
        return (means[0] - means[1]) / (means[2] - means[1])

    low, high = np.quantile(share(x @ picked.T), (0.025, 0.975))
    return Interval(float(share(x.mean(1))), float(low), float(high))


def _share(title: str, found: Interval, goal: str | None = None) -> list[dict[str, Any]]:
    bounds = ((f"{title}, {side}", value) for side, value in (("low", found.low), ("high", found.high)))
    return [_row(title, found.mean, "", goal), *(_row(name, value, "") for name, value in bounds)]


def _difference(title: str, found: Interval, low: str | None = None) -> list[dict[str, Any]]:
    return [
        _row(f"{title}: difference", found.mean, "dB"),
        _row(f"{title}: lower bound", found.low, "dB", low),
        _row(f"{title}: upper bound", found.high, "dB"),
    ]


def _row(figure: str, value: float, unit: str, goal: str | None = None) -> dict[str, Any]:
    return {"figure": figure, "value": float(value), "unit": unit, **({"goal": goal} if goal else {})}
