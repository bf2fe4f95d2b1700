"""The table that follows from the cells of `benchmarks.unified_vla`, and joint denoising against its rivals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.vla.intervals import difference, interval

JOINT = ("unified", "joint")
Choice = tuple[str, str]  # method, decoding
Cell = Mapping[str, Any]


def table(cells: Mapping[Choice, Sequence[Cell | None]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Figures of every choice whose cells, one per training seed, are all there; joint denoising less each other one, paired by
    episodes; and how many cells are missing.
    """
    found = {choice: [cell for cell in each if cell is not None] for choice, each in cells.items()}
    whole = {choice: each for choice, each in found.items() if len(each) == len(seeds)}
    success = {choice: _success(each, seeds) for choice, each in whole.items()}
    rows: list[dict[str, Any]] = []
    for choice, each in whole.items():
        rows += _figures(", ".join(choice), each, list(success[choice].values()))
    for choice, other in success.items():
        if JOINT in success and choice != JOINT:
            name = f"{', '.join(JOINT)} against {', '.join(choice)}"
            off = difference(success[JOINT], other)
            rows += [
                _row(f"{name}: {part}", x, "points") for part, x in zip(("difference", "low", "high"), off, strict=True)
            ]
    missing = sum(cell is None for each in cells.values() for cell in each)
    return [*rows, _row("cells missing", missing, goal="== 0")]


def _figures(name: str, cells: Sequence[Cell], success: Sequence[float]) -> list[dict[str, Any]]:
    rows = [_row(f"{name}: {p}", x, "%") for p, x in zip(("success", "low", "high"), interval(success), strict=True)]
    for part, unit in (("length", "steps"), ("calls", "")):
        rows.append(_row(f"{name}: {part}", _mean(e[part] for cell in cells for e in cell["episodes"]), unit))
    rows.append(_row(f"{name}: one call", _mean(cell["milliseconds"] for cell in cells), "processor ms"))
    if "errors" in cells[0]:
        off = {part: _mean(cell["errors"][part] for cell in cells) for part in cells[0]["errors"]}
        rows += [_row(f"{name}: picture {part}", x) for part, x in off.items()]
        rows.append(_row(f"{name}: predicted over copied", off["predicted"] / off["copied"], goal="< 1"))
    stages = [[stage for stage in (cell["training"], cell["training"]["world"]) if stage] for cell in cells]
    if all(stage["seconds"] is not None for both in stages for stage in both):
        spent = _mean(sum(stage["seconds"] for stage in both) for both in stages)
        rows.append(_row(f"{name}: training", spent, "processor s"))
    return rows


def _success(cells: Sequence[Cell], seeds: Sequence[int]) -> dict[Any, float]:
    """Percent by (seed of the training, task, seed of the episode)."""
    pairs = zip(seeds, cells, strict=True)
    return {(seed, e["task"], e["seed"]): 100.0 * e["success"] for seed, cell in pairs for e in cell["episodes"]}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _row(figure: str, value: float, unit: str = "", goal: str | None = None) -> dict[str, Any]:
    return {"figure": figure, "value": round(value, 4), "unit": unit, "goal": goal}
