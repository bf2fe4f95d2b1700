"""Writes measured figures to `docs/results/NAME.json` and the page `docs/results.md` made of all of them.

    python -m benchmarks.results      # docs/results.md from docs/results/*.json

A benchmark calls `record` with what it measured, so that nobody types a figure. A goal is a comparison with a number,
such as ">= 0.96" or "<= 17".
"""

import collections
import importlib.metadata
import json
import math
import operator
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
MANY = 4  # things that share a figure from which they get a table of their own
FIELDS = {"name", "figures", "seeds", "data", "versions", "command", "date"}


def reached(value: float, goal: str | None) -> bool | None:
    """Whether `value` meets `goal`, a comparison with a number; None where there is no goal.

    Raises ValueError for a goal that is not one of >=, <=, >, <, == followed by a finite number.
    """
    if goal is None:
        return None
    match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\S+)\s*", goal)
    try:
        bound = float(match[2]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        raise ValueError(f"goal {goal!r} is no comparison with a number; write one such as '>= 0.96' or '<= 17'")
    return bool(COMPARE[match[1]](value, bound))


def versions() -> dict[str, Any]:
    """The software and the machine a figure was measured with; a package that is not installed is left out."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("torch", "transformers", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {"machine": platform.machine(), "cpus": os.cpu_count()}
    if "torch" in found:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def same_run(folder: Path, settings: Mapping[str, Any], free: Iterable[str]) -> None:
    """Raise ValueError where `folder` holds trainings of other settings: they would be measured as these.

    free: settings that nothing trained depends on. What is compared is kept in run.json.
    """
    ignored = set(free)
    wanted = json.loads(json.dumps({name: value for name, value in settings.items() if name not in ignored}))
    note = folder / "run.json"
    if note.is_file():
        held = json.loads(note.read_text(encoding="utf-8"))
        names = (wanted.keys() | held.keys()) - ignored
        other = sorted(name for name in names if wanted.get(name) != held.get(name))
        if other:
            was = ", ".join(f"{name} {held.get(name)!r}" for name in other)
            raise ValueError(f"{str(folder)!r} holds trainings with {was}: give these, or another folder by --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write(note, json.dumps(wanted, indent=2) + "\n")


def record(
    name: str,
    figures: Iterable[Mapping[str, Any]],
    *,
    data: str,
    seeds: int | Iterable[int],
    command: str | None = None,
    folder: Path = FOLDER,
) -> dict[str, Any]:
    """Writes `folder/NAME.json` atomically, prints its figures, renews the page beside `folder`, returns the entry.

    figures: mappings with "figure" (what was measured), "value" (a finite number) and, where they apply, "unit" and
        "goal" (see `reached`).
    data: what it was measured on. seeds: those of the run.
    command: the one that repeats it, by default this process's own.

    Raises ValueError for a name that is no file name, no figures, an unknown key, two figures of one name, a value that
    is no finite number, or a goal that cannot be read; nothing is written then.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name {name!r} must be lower-case letters, digits, '-' and '_': it names the file")
    rows = [_figure(figure) for figure in figures]
    names = [row["figure"] for row in rows]
    if not rows or len(set(names)) < len(names):
        raise ValueError(f"result {name!r} needs at least one figure and distinct names, got {names}")
    entry = {
        "name": name,
        "figures": rows,
        "seeds": [seeds] if isinstance(seeds, int) else list(seeds),
        "data": data,
        "versions": versions(),
        "command": command or _command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    for row in rows:
        print(f"{name}: {row['figure']} = {_number(row['value'])} {row['unit']} {_verdict(row)}".rstrip())
    write_page(folder)
    return entry


def _figure(figure: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(figure) - {"figure", "value", "unit", "goal"}
    if unknown or not {"figure", "value"} <= set(figure):
        raise ValueError(
            f"a figure has the keys figure, value, unit and goal (the last two optional), got {dict(figure)}"
        )
    value = figure["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"figure {figure['figure']!r} has the value {value!r}: give a finite Python number")
    goal = figure.get("goal")
    return {
        "figure": figure["figure"],
        "value": value,
        "unit": figure.get("unit", ""),
        "goal": goal,
        "reached": reached(value, goal),
    }


def _command() -> str:
    """This process's command line, with the interpreter by name and the repository's files relative to it."""
    arguments = ["python", *sys.orig_argv[1:]]
    return shlex.join(argument.replace(f"{ROOT}{os.sep}", "") for argument in arguments)


def _write(path: Path, text: str) -> None:
    """Replaces `path` in one step, so that a reader or a killed run never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["goal"] is None:
        return ""
    return f"{row['goal']}: {'reached' if row['reached'] else '**missed**'}"


def _load(path: Path) -> dict[str, Any]:
    entry = json.loads(path.read_text(encoding="utf-8"))
    if set(entry) != FIELDS or entry["name"] != path.stem:
        raise ValueError(
            f"{path.name} needs the keys {sorted(FIELDS)} and the name {path.stem!r}: let `record` write it"
        )
    for row in entry["figures"]:
        if row["reached"] != reached(row["value"], row["goal"]):
            raise ValueError(
                f"{path.name}: {row['figure']!r} says reached={row['reached']} for {row['value']} {row['goal']}"
            )
    return entry


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _parts(name: str) -> tuple[str, str]:
    """What a figure is of, and what it is: "8 steps, plain: valid" and "gibbs, 8 evaluations, valid" end in "valid"."""
    head, mark, tail = name.rpartition(": ")
    return (head, tail) if mark else tuple(name.rpartition(", ")[::2])  # type: ignore[return-value]


def _wide(rows: list[Mapping[str, Any]]) -> tuple[list[str], set[str]]:
    """Figures without a goal that several things share, as one table with a column for each; and their names."""
    shared = collections.Counter(_parts(row["figure"])[1] for row in rows if row["goal"] is None)
    chosen = [
        r for r in rows if r["goal"] is None and all(_parts(r["figure"])) and shared[_parts(r["figure"])[1]] >= MANY
    ]
    columns = list(dict.fromkeys(_parts(row["figure"])[1] for row in chosen))
    if len(columns) < 2:
        return [], set()
    table: dict[str, dict[str, str]] = {}
    units: dict[str, set[str]] = {column: set() for column in columns}
    for row in chosen:
        of, what = _parts(row["figure"])
        table.setdefault(of, {})[what] = _number(row["value"])
        units[what].add(row["unit"])
    heads = [c + (f" ({units[c].copy().pop()})" if len(units[c]) == 1 and units[c] != {""} else "") for c in columns]
    lines = [_line(("", *heads)), "| --- |" + " ---: |" * len(columns)]
    lines += [_line((of, *(found.get(column, "") for column in columns))) for of, found in table.items()]
    return [*lines, ""], {row["figure"] for row in chosen}


def _section(entry: Mapping[str, Any]) -> list[str]:
    wide, shown = _wide(entry["figures"])
    lines = [f"## {entry['name']}", ""]
    single = [row for row in entry["figures"] if row["figure"] not in shown]
    if single:
        lines += ["| figure | value | unit | goal |", "| --- | ---: | --- | --- |"]
    for row in single:
        lines.append(_line((row["figure"], _number(row["value"]), row["unit"], _verdict(row))))
    lines += ["", *wide] if single and wide else wide
    facts = {
        "data": entry["data"],
        "seeds": ", ".join(str(seed) for seed in entry["seeds"]),
        "command": f"`{entry['command']}`",
        "versions": ", ".join(f"{key} {value}" for key, value in entry["versions"].items()),
        "date": entry["date"],
    }
    lines = lines if lines[-1] == "" else [*lines, ""]
    return [*lines, *(f"- {key}: {value}" for key, value in facts.items() if value), ""]


def page(folder: Path = FOLDER) -> str:
    """The Markdown page of every result in `folder`, sorted by name.

    Raises ValueError for a file that `record` would not have written: other keys, or a "reached" its value denies.
    """
    entries = [_load(path) for path in sorted(folder.glob("*.json"))]
    goals = [row["reached"] for entry in entries for row in entry["figures"] if row["goal"] is not None]
    lines = [
        "# Results",
        "",
        "Made by `python -m benchmarks.results` from `docs/results/*.json`, each written by the script that measured.",
        f"Goals reached: {sum(goals)} of {len(goals)}.",
        "",
    ]
    for entry in entries:
        lines += _section(entry)
    return "\n".join(lines).rstrip() + "\n"


def write_page(folder: Path = FOLDER) -> Path:
    """Writes `page(folder)` beside `folder`, docs/results.md for docs/results, and returns its path."""
    path = folder.with_suffix(".md")
    _write(path, page(folder))
    return path


if __name__ == "__main__":
    print(f"written: {os.path.relpath(write_page())}")
