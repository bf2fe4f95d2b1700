"""Robot policies on Meta-World: masked diffusion of action tokens and its decoders against autoregressive tokens, parallel L1
and flow matching, all of one trunk, data order and budget of processor seconds.

    MUJOCO_GL=osmesa python -m benchmarks.vla --track easy10,hard10 --seeds 0,1,2 --seconds 200
    python -m benchmarks.vla --track easy10 --part table     # of what there is, without a simulator
    MUJOCO_GL=osmesa python -m benchmarks.vla --track image10 --seconds 500 --out runs/vla_image    # of pictures

Tracks, methods and decoders are those of `benchmarks.vla_tracks`. In `out`: data/TRACK, the demonstrations as LeRobot data
sets; policies/TRACK/METHOD_SEED, what was trained; cells/TRACK/METHOD_SEED/DECODER.json, every episode of an evaluation. What
is there is not made again; a killed recording goes on from its last attempt, a killed training from its last checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from benchmarks.results import same_run
from benchmarks.vla_data import recorded
from benchmarks.vla_table import Cell, Cells, tabled, written
from benchmarks.vla_tracks import METHODS, SENTENCE, SWAPPED, TRACKS, VARIANTS, Swapped, decoders_of, kinds_of
from discdiff.cli import guarded, parse
from discdiff.config import checked, read_json
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.common.improve import fingerprint
from tasks.vla import collect
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss, Rows, fit, objective_of, untrained
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import CAP, Environment, make
from tasks.vla.policy import TASK, ActionPolicy, Decoding
from tasks.vla.rollout import Observations, evaluate
from tasks.vla.sentences import said

PARTS = ("all", "data", "train", "evaluate", "table")
FREE = (
    "track",
    "methods",
    "seeds",
    "part",
    "development",
    "save",
    "out",
)  # no training and no evaluation depends on them
QUICK = 300  # steps after which an episode has failed
ROUNDS, PACED, SKIPPED = 2, 10, 3  # of measuring: times each method is run, its steps, those before it runs evenly
TIMED = 10  # single calls


@dataclass(frozen=True)
class Run:
    """track: by default all but those of pictures, which ask for more seconds; methods: those of them that a track has;
    seconds: processor seconds of each training, by which its steps are chosen; demonstrations: of each task, 0 for the
    track's own; episodes: of each task that are evaluated, development: on which decoders are chosen; full: episodes of
    500 steps, not of 300; save: keep the figures in docs/results.
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"part": PARTS, "track": tuple(TRACKS), "methods": METHODS}

    track: tuple[str, ...] = tuple(name for name, of in TRACKS.items() if not of.policy.picture)
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 200.0
    part: str = "all"
    demonstrations: int = 0
    episodes: int = 20
    development: int = 20
    full: bool = False
    batch_size: int = 128
    learning_rate: float = 3e-3
    out: str = "runs/vla"
    save: bool = True

    def __post_init__(self) -> None:
        for name, known in self.choices.items():
            given = (self.part,) if name == "part" else getattr(self, name)
            ok = 0 < len(set(given)) == len(given) and set(given) <= set(known)
            checked(name, ",".join(given), ok, f"choose from {', '.join(known)}, each once")
        checked("seeds", self.seeds, 0 < len(set(self.seeds)) == len(self.seeds), "at least one, none twice")
        checked("seconds", self.seconds, self.seconds > 0, "above 0")
        checked("demonstrations", self.demonstrations, self.demonstrations >= 0, "0, or more of each task")
        for name in ("episodes", "development"):
            checked(name, getattr(self, name), 1 <= getattr(self, name) <= 10_000, "from 1 to 10000 of each task")


class Bench:
    """Data, policies and cells in a folder. collect, make: as in `tasks.vla`, for other worlds."""

    last, pace = TASK, "pace.json"  # what a trained policy's folder has at the end, and where a track's paces are

    def __init__(
        self, run: Run, make: Callable[[str], Environment] = make, collect: Callable[..., Any] = collect.record
    ) -> None:
        self.run, self.folder, self.make, self.collect = run, Path(run.out), make, collect
        same_run(self.folder, asdict(run), FREE)
        self.cells = Cells(self.folder / "cells", run.episodes, run.development, CAP if run.full else QUICK)

    def methods(self, track: str) -> list[str]:
        """Those of the run that the track has."""
        return [method for method in self.run.methods if method in decoders_of(track)]

    def demonstrations(self, track: str) -> list[Episode]:
        """Of all tasks in turn, recorded where they are not there."""
        of = TRACKS[track]
        source = of.source or track
        count, stored = (self.run.demonstrations or TRACKS[name].demonstrations for name in (track, source))
        folder = self.folder / "data" / source
        if not folder.is_dir():
            start = time.process_time()
            say = partial(print, f"{source}:", flush=True)
            size: dict[str, Any] = {"pictures": True, "size": of.policy.picture} if of.policy.picture else {}
            record = partial(self.collect, episodes=stored, seed=1000, instruction=of.trained, say=say, **size)
            recorded(folder, of.tasks, record)
            say(f"{len(of.tasks)} x {stored} demonstrations, {time.process_time() - start:.0f} processor s")
        data, remedy = open_dataset(folder), f"{str(folder)!r} is of another track: remove it"
        checked("data", len(data), len(data) == stored * len(of.tasks), remedy)
        return list(data.episodes([stored * task + k for task in range(len(of.tasks)) for k in range(count)]))

    def policy(
        self, track: str, method: str, seed: int, shown: Callable[[], list[Episode]]
    ) -> tuple[Any, dict[str, Any]]:
        """A trained policy and what its training took: steps, seconds per step as measured before, processor seconds of the
        training itself, None where it was interrupted. Raises ValueError where it is to be there and is not.
        """
        folder = self.folder / "policies" / track / f"{method}_{seed}"
        note = folder.with_name(f"{folder.name}.json")
        if not (note.is_file() and (folder / self.last).is_file()):
            remedy = "it is not trained: --part train"
            checked("policy", str(folder), self.run.part in ("all", "train"), remedy)
            self._train(track, method, seed, shown(), folder, note)
        return self._load(folder), read_json(note)

    def _train(self, track: str, method: str, seed: int, shown: list[Episode], folder: Path, note: Path) -> None:
        pace = self.paces(track, shown)[method]
        steps = max(1, round(self.run.seconds / pace))
        start = time.process_time()
        whole = self._fit(track, method, seed, shown, steps, folder)
        seconds = time.process_time() - start
        written(note, {"steps": steps, "seconds per step": pace, "seconds": seconds if whole else None})
        print(f"{track}, {method}, seed {seed}: {steps} steps in {seconds:.0f} processor s", flush=True)

    def _fit(self, track: str, method: str, seed: int, shown: list[Episode], steps: int, folder: Path) -> bool:
        """Train a policy into its folder; whether in one go."""
        fit(_untrained(track, method, shown, seed), shown, self._settings(seed, steps), folder, _loss(method), "auto")
        return "resumed" not in (folder.with_name(f"{folder.name}_training") / "metrics.jsonl").read_text("utf-8")

    def _load(self, folder: Path) -> Any:
        policy = ActionPolicy.from_pretrained(folder)
        policy.model.to("cpu")
        return policy

    def _settings(self, seed: int, steps: int, save: int = 4) -> TrainingSettings:
        return TrainingSettings(
            seed=seed, steps=steps, batch_size=self.run.batch_size, learning_rate=self.run.learning_rate, schedule="cosine",
            warmup=min(50, steps // 10), optimizer="muon", log_every=min(50, steps), save_every=-(-steps // save),
            progress=False, device="cpu",
        )  # fmt: skip

    def paces(self, track: str, shown: list[Episode]) -> dict[str, float]:
        """Processor seconds of a step by method, the median over throw-away trainings of all methods in turn, so that another
        load of the machine while one of them was measured gives it no other budget.
        """
        note = self.folder / "policies" / track / self.pace
        held: dict[str, float] = read_json(note) if note.is_file() else {}
        methods = [method for method in self.methods(track) if method not in held]
        timed = {method: self._timed(track, method, shown) for method in methods}
        found: dict[str, list[float]] = {method: [] for method in methods}
        for method in methods * ROUNDS:
            found[method] += np.diff(timed[method]())[SKIPPED:].tolist()
        held |= {method: float(np.median(each)) for method, each in found.items()}
        written(note, held)
        return held

    def _timed(self, track: str, method: str, shown: list[Episode]) -> Callable[[], list[float]]:
        """A throw-away training, which gives the processor time after each of its steps."""
        policy = _untrained(track, method, shown, 0)
        goal, rows = objective_of(policy, _loss(method)), Rows(policy, policy.layout, shown)

        def run() -> list[float]:
            clock, model, brief = _Clock(), deepcopy(policy.model).train(), self._settings(0, PACED, 1)
            with tempfile.TemporaryDirectory() as spare:
                where: dict[str, Any] = {"output_dir": spare, "callbacks": [clock]}
                trainer = DiffusionTrainer(model, brief, goal, policy.layout, rows, **where)
                trainer.train()
            if trainer.stopped_by == "signal":
                raise KeyboardInterrupt
            return clock.at

        return run

    def cell(self, policy: Any, training: dict[str, Any], weights: str, cell: Cell) -> dict[str, Any]:
        """An evaluation, taken as it is where an earlier run left it of the same weights."""
        stored = self.cells.read(cell)
        if stored is not None and stored["weights"] == weights:
            return stored
        tasks, seeds = TRACKS[cell.track].tasks, self.cells.seeds(cell.kind)
        unasked: dict[tuple[str, int], bool] = {}
        make: Callable[[str], Environment] = self.make
        if cell.kind == SWAPPED:
            make = partial(Swapped, unasked=unasked, make=self.make)
        sentence = SENTENCE[cell.kind]
        for task in tasks:
            for seed in seeds:
                policy.lexicon.check(sentence(task, seed))
        start = time.process_time()
        asked, size = partial(_asked, policy, cell.how), TRACKS[cell.track].policy.picture
        rollouts = evaluate(asked, tasks, seeds, cap=self.cells.cap, size=size, instruction=sentence, make=make)
        seconds = time.process_time() - start
        episodes = [
            {part: getattr(r, part) for part in ("task", "seed", "success", "length", "calls")} for r in rollouts
        ]
        for episode in episodes if cell.kind == SWAPPED else ():
            episode["unasked"] = unasked.get((episode["task"], episode["seed"]), False)
        found = {"weights": weights, "training": training, "milliseconds": _latency(policy, cell.how, tasks[0], size)}
        self.cells.write(cell, {**found, "seconds": seconds, "episodes": episodes})
        mean = np.mean([r.success for r in rollouts])
        where = f"{cell.track}, {cell.method}, seed {cell.seed}, {cell.decoder}, {cell.kind}"
        print(f"{where}: {mean:.3f} of {len(rollouts)}, {seconds:.0f} processor s", flush=True)
        return {**found, "episodes": episodes}

    def track(self, track: str) -> None:
        """Everything of a track but its table; all methods of a training seed before the next seed."""
        held: list[Episode] = []

        def shown() -> list[Episode]:
            held.extend([] if held else self.demonstrations(track))
            return held

        if self.run.part in ("all", "data"):
            shown()
        for seed in self.run.seeds if self.run.part != "data" else ():
            for method in self.methods(track):
                policy, training = self.policy(track, method, seed, shown)
                weights = fingerprint(policy.model)
                for name in decoders_of(track)[method] if self.run.part != "train" else ():
                    for kind in kinds_of(track, method):
                        self.cell(policy, training, weights, Cell(track, method, seed, name, kind))


class _Clock(TrainerCallback):
    """Processor time after each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at.append(time.process_time())


def _untrained(track: str, method: str, shown: list[Episode], seed: int) -> ActionPolicy:
    named = VARIANTS[method][0] if method in VARIANTS else method
    return untrained(replace(TRACKS[track].policy, method=named), shown, seed)


def _loss(method: str) -> Loss:
    return VARIANTS[method][1] if method in VARIANTS else Loss()


def _asked(policy: Any, how: Decoding, shown: Observations) -> np.ndarray:
    seeds = [(CAP + 1) * seed + call for seed, call in zip(shown.seed, shown.call, strict=True)]
    state = shown.state[:, : len(policy.scale.middle)]  # what it is told of it
    return np.asarray(policy.predict_action(state, shown.instruction, shown.pictures, seed=seeds, decoding=how))


def _latency(policy: Any, how: Decoding, task: str, size: int) -> float:
    """Processor milliseconds of a call for one row, the median."""
    state, spent = np.asarray(policy.scale.middle, np.float32), []
    picture = np.zeros((size, size, 3), np.uint8) if size else None
    for _ in range(TIMED):
        start = time.process_time()
        policy.predict_action(state, said(task), picture, decoding=how)
        spent.append(1000 * (time.process_time() - start))
    return float(np.median(spent))


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.vla", argv, {"": Run})[""]
    bench = Bench(run)
    for track in run.track:
        if run.part != "table":
            bench.track(track)
        if run.part in ("all", "table"):
            tabled(bench.cells, run, track)


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(main))
