"""The cells that `benchmarks.vla` keeps, and the table and the goals that follow from them.

Which decoder stands for a method in a comparison is chosen by its success on development seeds, never on those evaluated. The
peers of `benchmarks.vla_peers` are listed where one of their cells is there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import vla_tracks
from benchmarks.results import reached, record
from benchmarks.vla_tracks import DEVELOPMENT, EVALUATION, FIRST, PEERS, SWAPPED, TRACKS, decoders_of
from tasks.vla.design import UNUSED, Decoding
from tasks.vla.intervals import Interval, difference, interval

Choice = tuple[str, str]  # method, decoder
LEVEL = ("matched", "matched by match", "expectation")  # read-outs that are to lose nothing by more rounds
OURS = ("masked", "masked_narrow")  # the better one on development seeds is what is compared with others
USUAL = Decoding(read="expectation")  # what a cell's key leaves out: it may not change with what is usual for policies


@dataclass(frozen=True)
class Cell:
    """One evaluation: a decoder of a policy on a track."""

    track: str
    method: str
    seed: int
    decoder: str
    kind: str = EVALUATION

    @property
    def how(self) -> Decoding:
        """Its decoding."""
        return decoders_of(self.track)[self.method][self.decoder]

    @property
    def file(self) -> Path:
        """Where it is kept in a folder of cells."""
        slug = re.sub(r"[^a-z0-9]+", "_", self.decoder.lower())
        return Path(
            self.track, f"{self.method}_{self.seed}", f"{slug}{'' if self.kind == EVALUATION else f'.{self.kind}'}.json"
        )


@dataclass(frozen=True)
class Cells:
    """The cells in a folder, of so many episodes per task of at most `cap` steps; those of other settings count as missing."""

    folder: Path
    episodes: int = 20
    development: int = 5
    cap: int = 300

    def seeds(self, kind: str) -> range:
        """Of the episodes."""
        return range(FIRST[kind], FIRST[kind] + (self.development if kind == DEVELOPMENT else self.episodes))

    def key(self, cell: Cell) -> dict[str, Any]:
        """What a cell is the result of, beside the weights; of the decoding, what its method takes and is not as in `USUAL`."""
        seeds, tasks = self.seeds(cell.kind), list(TRACKS[cell.track].tasks)
        taken = [f.name for f in fields(cell.how) if f.name not in UNUSED[vla_tracks.base_of(cell.method)]]
        how = {name: getattr(cell.how, name) for name in taken}
        how = {name: value for name, value in how.items() if value != getattr(USUAL, name)}
        return {**asdict(cell), "decoding": how, "tasks": tasks, "first": seeds[0], "each": len(seeds), "cap": self.cap}

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What `write` was given, None where there is nothing of that kind."""
        file = self.folder / cell.file
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return stored if stored is not None and stored["key"] == self.key(cell) else None

    def write(self, cell: Cell, found: Mapping[str, Any]) -> None:
        """Keep a cell: `episodes`, a list of {task, seed, success, length, calls}, and what else was measured."""
        written(self.folder / cell.file, {"key": self.key(cell), **found})

    def all(
        self, track: str, choice: Choice, seeds: Iterable[int], kind: str = EVALUATION
    ) -> list[dict[str, Any]] | None:
        """The cells of all trainings, None where one is missing."""
        found = [self.read(Cell(track, choice[0], seed, choice[1], kind)) for seed in seeds]
        return None if None in found or not found else found  # type: ignore[return-value]

    def success(
        self, track: str, choice: Choice | None, seeds: Iterable[int], kind: str = EVALUATION, of: str = "success"
    ) -> dict[Any, float] | None:
        """Percent by (seed of the training, task, seed of the episode), None where a cell is missing."""
        found = None if choice is None else self.all(track, choice, seeds, kind)
        if found is None:
            return None
        return {(c["key"]["seed"], e["task"], e["seed"]): 100.0 * e[of] for c in found for e in c["episodes"]}

    def chosen(self, track: str, method: str, seeds: Iterable[int], steps: range = range(1, 1000)) -> Choice | None:
        """The decoder, among those of so many steps, of most success on development seeds, the first of equals; of one alone
        that one; None where a cell is missing.
        """
        seeds, each = list(seeds), decoders_of(track)[method]
        choices = [(method, name) for name, how in each.items() if how.steps in steps]
        if len(choices) == 1:
            return choices[0]
        return self.best(track, choices, seeds, DEVELOPMENT)

    def best(
        self, track: str, choices: Sequence[Choice | None], seeds: Iterable[int], kind: str = EVALUATION
    ) -> Choice | None:
        """The choice of most success, the first of equals; None where a cell of any of them is missing."""
        seeds = list(seeds)
        found = [self.success(track, choice, seeds, kind) for choice in choices]
        means = [None if x is None else float(np.mean(list(x.values()))) for x in found]
        return None if None in means else choices[means.index(max(means))]  # type: ignore[type-var]

    def methods(self, track: str, seeds: Iterable[int]) -> dict[str, Mapping[str, Decoding]]:
        """The decoders of each method of a track, and of those peers of which a cell is there."""
        every, seeds = decoders_of(track), list(seeds)
        there = {
            m for m in PEERS.keys() & every for s in seeds if any(self.read(Cell(track, m, s, n)) for n in every[m])
        }
        return {method: each for method, each in every.items() if method not in PEERS or method in there}


def written(file: Path, data: Any) -> None:
    """Replace a JSON file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def table(cells: Cells, track: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Figures of every decoder, None where a cell is missing."""
    rows: list[dict[str, Any]] = []
    of = TRACKS[track]
    for method, each in cells.methods(track, seeds).items():
        trained: Any = None
        for name in each:
            found, success = cells.all(track, (method, name), seeds), cells.success(track, (method, name), seeds)
            trained = trained or found
            row = f"{method}, {name}"
            if found is None or success is None:
                rows.append({"figure": f"{row}: success", "value": None, "unit": "%"})
                continue
            mean = interval(list(success.values()))
            shown: dict[str, tuple[float, str]] = {
                "success": (mean.mean, "%"),
                "low": (mean.low, "%"),
                "high": (mean.high, "%"),
            }
            for part, unit in (("length", "steps"), ("calls", "")):
                shown[part] = float(np.mean([e[part] for c in found for e in c["episodes"]])), unit
            shown["one call"] = float(np.mean([c["milliseconds"] for c in found])), "processor ms"
            for kind in of.kinds[1:]:
                other = cells.success(track, (method, name), seeds, kind)
                shown |= {} if other is None else {kind: (float(np.mean(list(other.values()))), "%")}
                if kind == SWAPPED and other is not None:
                    unasked = cells.success(track, (method, name), seeds, kind, "unasked") or {}
                    shown["unasked"] = float(np.mean(list(unasked.values()))), "%"
            for task in of.tasks:
                shown[task] = float(np.mean([x for key, x in success.items() if key[1] == task])), "%"
            rows += [
                {"figure": f"{row}: {key}", "value": round(x, 2), "unit": unit} for key, (x, unit) in shown.items()
            ]
        for part, unit in (("steps", ""), ("seconds per step", "processor s"), ("seconds", "processor s")):
            known = [c["training"][part] for c in trained or [] if c["training"].get(part) is not None]
            value = float(np.mean(known)) if known else None
            rows.append({"figure": f"training of {method}: {part}", "value": value, "unit": unit})
    return rows


def goals(cells: Cells, track: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Comparisons of the chosen decoders as paired differences in points, with what is asked of them; None where a cell is
    missing.
    """
    rows: list[dict[str, Any]] = []
    plain, least = track in vla_tracks.UNIMODAL, TRACKS[track].least
    methods = cells.methods(track, seeds)
    best = {method: cells.chosen(track, method, seeds) for method in methods}

    def against(
        title: str, first: Choice | None, second: Choice | None, mean: str = "", low: str = "", high: str = ""
    ) -> None:
        one, two = (cells.success(track, choice, seeds) for choice in (first, second))
        found = Interval(np.nan, np.nan, np.nan) if one is None or two is None else difference(one, two)
        parts = (("difference", found.mean, mean), ("lower bound", found.low, low), ("upper bound", found.high, high))
        named = f"{title}: {_named(first)} against {_named(second)}"
        rows.extend(_row(f"{named}: {part}", value, "points", goal) for part, value, goal in parts)

    mine = cells.best(track, [best[method] for method in OURS if method in methods], seeds, DEVELOPMENT)
    ours = cells.success(track, mine, seeds)
    mean = np.nan if ours is None else float(np.mean(list(ours.values())))
    rows.append(_row(f"chosen, {_named(mine)}: success", mean, "%", f">= {least:g}" if least else ""))
    reads = ("matched", "matched by match", "expectation", "argmax", "sampled, read near")
    for method, read in ((m, r) for m in ("masked", "masked_narrow", "masked_exact") for r in reads):
        many, one = f"16 steps, {read}", f"1 step, {read.removesuffix(' by match')}"  # of one round there is no order
        if {many, one} <= methods.get(method, {}).keys():
            asked = ">= -2" if plain and method == "masked" and read in LEVEL else ""
            against("more steps", (method, many), (method, one), low=asked)
    for peer in ("parallel", "flow"):
        apart = track == "multimodal" and peer == "parallel"
        near = plain or (track, peer) == ("image10", "parallel")
        low = ">= -3" if near else "> 0" if apart else ""
        against(f"peer {peer}", mine, best[peer], ">= 10" if apart else "", low)
    left = (">= 5", "> 0") if plain or track == "multimodal" else ("", "")
    against("peer autoregressive", mine, best["autoregressive"], *left)
    for peer in (method for method in methods if method in PEERS):
        against(f"peer {peer}", mine, best[peer])
    if track == "easy10":  # the best of those evaluated: what choosing it there gives is the peer's
        others = [best[method] for method in methods if not method.startswith("masked")]
        against("best peer", mine, cells.best(track, others, seeds), high=">= -3")
    for method in ("masked", "masked_narrow", "masked_exact", "masked_plain", "autoregressive_jitter"):
        if method in methods and (mine is None or method != mine[0]):
            against(f"variant {method}", mine, best[method])
    for method in [m for m in OURS if m in methods] if track == "multimodal" else ():
        more, once = (cells.chosen(track, method, seeds, steps) for steps in (range(2, 1000), range(1, 2)))
        against("more steps than one", more, once, low="> 0" if mine is None or method == mine[0] else "")
    missing = sum(
        cells.read(Cell(track, method, seed, name, kind)) is None
        for method, each in methods.items()
        for name in each
        for seed in seeds
        for kind in vla_tracks.kinds_of(track, method)
    )
    return [*rows, _row("cells missing", missing, "", "== 0")]


def tabled(cells: Cells, run: Any, track: str) -> None:
    """Print the table and the goals of a track, and record them; nothing is recorded where no cell is there.
    run: of `benchmarks.vla`.
    """
    of = TRACKS[track]
    figures = [*table(cells, track, run.seeds), *goals(cells, track, run.seeds)]
    lines: dict[str, list[str]] = {}
    for row in figures:
        of_what, part = row["figure"].rpartition(": ")[::2]
        value, goal = row["value"], row.get("goal")
        verdict = "" if goal is None or value is None else ", reached" if reached(value, goal) else ", missed"
        shown = "missing" if value is None else f"{value:.4g} {row['unit']}".rstrip()
        lines.setdefault(of_what, []).append(f"{part} {shown}" + (f" ({goal}{verdict})" if goal else ""))
    for of_what, parts in lines.items():
        print(f"{track}: {of_what}: {', '.join(parts)}".replace(" : ", " "))
    known = [row for row in figures if row["value"] is not None]
    if run.save and len(known) > 1:
        count, told = run.demonstrations or of.demonstrations, of.policy
        seen = (
            f" told by pictures of {told.picture} x {told.picture} and {told.proprio} numbers" if told.picture else ""
        )
        data = (
            f"Meta-World {track}: {len(of.tasks)} tasks x {count} demonstrations{seen}, {run.episodes} episodes of at most "
            f"{cells.cap} steps per task and training, {run.seconds:g} processor s each; intervals of 95 % by bootstrap; "
            f"decoders chosen on {run.development} other episodes per task"
        )
        record(f"vla_{track}", known, data=data, seeds=run.seeds)


def _named(choice: Choice | None) -> str:
    return "(not chosen)" if choice is None else f"{choice[0]} ({choice[1]})"


def _row(figure: str, value: float, unit: str, goal: str) -> dict[str, Any]:
    return {"figure": figure, "value": None if np.isnan(value) else value, "unit": unit, "goal": goal or None}
