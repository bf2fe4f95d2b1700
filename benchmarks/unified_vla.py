"""Unified Diffusion VLA (arXiv 2511.01718) on Meta-World's pictures: future picture and actions denoised together, against one
after the other and against actions alone, all of one trunk, data order and budget of processor seconds.

    MUJOCO_GL=osmesa python -m benchmarks.unified_vla --seeds 0,1,2
    python -m benchmarks.unified_vla --part table     # of what there is, without a simulator

Of the world a policy is told the sentence, the hand's place and a picture of 64 x 64. Those that foresee are trained in two
stages, the first of which, the world, takes a third of the budget; `alone` spends all of it on actions. In `out`: data and
held, demonstrations as LeRobot data sets; pictures, their tokenizer, once for all; NAME_SEED, what was trained;
cells/METHOD_SEED/DECODING.json, every episode of an evaluation, and the page of what was foreseen beside it. What is there is
not made again; a killed recording goes on from its last attempt, a killed training from its last checkpoint. By default, data
and tokenizer take about 5 minutes of one core, and each seed about 33.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.results import FOLDER, record, same_run
from benchmarks.unified_vla_table import table
from benchmarks.vla_data import recorded
from benchmarks.vla_table import written
from discdiff.cli import guarded, parse
from discdiff.config import checked, read_json
from discdiff.training import TrainingSettings
from tasks.vla import collect, unified_page
from tasks.vla.design import Policy
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import CAP, PROPRIO, Environment, make
from tasks.vla.rollout import Observations, evaluate
from tasks.vla.unified import ROUNDS, UnifiedPolicy
from tasks.vla.unified_design import Unified
from tasks.vla.unified_learning import codes_of, fit, fit_world, untrained
from tasks.vla.unified_pictures import errors, fit_pictures, foreseen, seen_by
from tokenizers_vq.image import ImageTokenizer

METHODS = {
    "unified": Unified(),
    "separate": Unified(decoding="separate"),
    "alone": Unified(decoding="action"),
    "released": Unified("released"),
}
WORLDS = {"world_paper": Unified(), "world_released": Unified("released")}
WAYS = {"unified": ("joint", "separate"), "separate": ("separate",), "alone": ("action",), "released": ("joint",)}
TOLD = Policy(proprio=PROPRIO)
PARTS = ("all", "table")
FREE = ("methods", "seeds", "part", "save", "out")  # settings that no cell depends on
WORLD = 1 / 3  # share of the budget for the first stage
SHORT, LONG, ROUNDS_PACED = 2, 12, 2  # steps of the two trainings whose difference is a pace; times both are run
TIMED = 10  # single calls
TRAIN, HELD, TRIED = 1000, 40_000, 50_000  # seeds of the first episode: learned, never learned, of evaluations


@dataclass(frozen=True)
class Run:
    """seconds, picture_seconds: of the processor, for each policy and for the tokenizer; demonstrations, held: of each task, to
    learn and to measure pictures by; episodes: of each task that are evaluated, of at most `cap` steps; rounds: of denoising,
    of separate decoding for each part; picture_batch, picture_rate: rows of a step and learning rate of the tokenizer; save:
    keep the figures in docs/results, otherwise in `out`.
    """

    methods: tuple[str, ...] = ("unified", "separate", "alone")
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = ("push", "reach")
    part: str = "all"
    seconds: float = 600.0
    picture_seconds: float = 240.0
    demonstrations: int = 50
    held: int = 5
    episodes: int = 40
    cap: int = 300
    rounds: int = 8
    batch_size: int = 16
    learning_rate: float = 2e-3
    picture_batch: int = 8
    picture_rate: float = 3e-3
    out: str = "runs/unified_vla"
    save: bool = True

    def __post_init__(self) -> None:
        checked("part", self.part, self.part in PARTS, f"choose from {', '.join(PARTS)}")
        known = 0 < len(set(self.methods)) == len(self.methods) and set(self.methods) <= set(METHODS)
        checked("methods", ",".join(self.methods), known, f"choose from {', '.join(METHODS)}, each once")
        checked("seeds", self.seeds, 0 < len(set(self.seeds)) == len(self.seeds), "at least one, none twice")
        for name in ("seconds", "picture_seconds", "demonstrations", "held", "episodes"):
            checked(name, getattr(self, name), getattr(self, name) > 0, "above 0")


class Bench:
    """Data, trainings and cells in a folder. make, collect: as in `tasks.vla`, for other worlds."""

    def __init__(
        self, run: Run, make: Callable[[str], Environment] = make, collect: Callable[..., Any] = collect.record
    ) -> None:
        self.run, self.folder, self.make, self.collect = run, Path(run.out), make, collect
        same_run(self.folder, asdict(run), FREE)

    def episodes(self, name: str, each: int, seed: int) -> list[Episode]:
        """Demonstrations with pictures, recorded where they are not there."""
        folder = self.folder / name
        if not folder.is_dir():
            recorded(folder, self.run.tasks, partial(self.collect, episodes=each, seed=seed, pictures=True))
        return list(open_dataset(folder).episodes())

    @cached_property
    def shown(self) -> list[Episode]:
        """What is learned."""
        return self.episodes("data", self.run.demonstrations, TRAIN)

    @cached_property
    def others(self) -> list[Episode]:
        """What pictures are measured by."""
        return self.episodes("held", self.run.held, HELD)

    @cached_property
    def pictures(self) -> ImageTokenizer:
        """The tokenizer of all policies, of the demonstrations that are learned."""
        folder, shown = self.folder / "pictures", self.shown
        if not (folder / "config.json").is_file():
            pace = self.paces({"pictures": lambda steps, spare: fit_pictures(shown, self.drawing(steps, 0), spare)})
            steps, begun = max(1, round(self.run.picture_seconds / pace["pictures"])), time.process_time()
            fit_pictures(shown, self.drawing(steps), folder, "auto")
            print(f"pictures: {steps} steps in {time.process_time() - begun:.0f} processor s", flush=True)
        return ImageTokenizer.from_pretrained(folder)

    @cached_property
    def codes(self) -> Tensor:
        """Of all pictures that are learned."""
        return codes_of(untrained(Unified(), self.shown, self.pictures, 0, TOLD), self.shown)

    def paces(self, trainings: Mapping[str, Callable[[int, Path], object]]) -> dict[str, float]:
        """Processor seconds of a step of trainings, each called with steps and a folder: what the steps of a longer run take
        beyond a shorter one. All are run in turn, so that another load of the machine while one of them is measured gives it
        no other budget. What was measured before stays.
        """
        note = self.folder / "pace.json"
        held: dict[str, float] = read_json(note) if note.is_file() else {}
        spent = {name: 0.0 for name in trainings if name not in held}
        for name in list(spent)[:1]:  # what only the first training of a process takes
            with tempfile.TemporaryDirectory() as spare:
                trainings[name](SHORT, Path(spare) / "pace")
        for name in list(spent) * ROUNDS_PACED:
            for steps, sign in ((SHORT, -1), (LONG, 1)):
                with tempfile.TemporaryDirectory() as spare:
                    begun = time.process_time()
                    trainings[name](steps, Path(spare) / "pace")
                    spent[name] += sign * (time.process_time() - begun)
        held |= {name: max(x, 1e-3) / (ROUNDS_PACED * (LONG - SHORT)) for name, x in spent.items()}
        written(note, held)
        return held

    def settings(self, steps: int, parts: int = 4, seed: int = 0) -> TrainingSettings:
        """Of a policy; checkpoints at the end of each part of its steps, or with 0 none."""
        return TrainingSettings(
            seed=seed, steps=steps, batch_size=self.run.batch_size, learning_rate=self.run.learning_rate,
            warmup=min(50, steps // 10), optimizer="muon", log_every=min(50, steps), progress=False, device="cpu",
            save_every=-(-steps // parts) if parts else 0,
        )  # fmt: skip

    def drawing(self, steps: int, parts: int = 4) -> TrainingSettings:
        """Of the tokenizer."""
        run, usual = self.run, self.settings(steps, parts)
        return replace(usual, batch_size=run.picture_batch, learning_rate=run.picture_rate, optimizer="adamw")

    def start(self, name: str, seed: int) -> UnifiedPolicy:
        """A policy before its first stage."""
        return untrained((METHODS | WORLDS)[name], self.shown, self.pictures, seed, TOLD)

    def stage(
        self,
        name: str,
        codes: Tensor,
        start: UnifiedPolicy | None,
        steps: int,
        folder: Path,
        parts: int = 0,
        seed: int = 0,
    ) -> UnifiedPolicy:
        """A policy after a stage, from `start` or from its first weights."""
        train, settings = fit_world if name in WORLDS else fit, self.settings(steps, parts, seed)
        return train(start or self.start(name, seed), self.shown, settings, folder, resume="auto", codes=codes)

    def trained(self, name: str, seed: int) -> tuple[UnifiedPolicy, dict[str, Any]]:
        """A policy after a stage, and what that took: steps, seconds per step as measured before, processor seconds, None
        where it was interrupted, and of a second stage the same of its world.
        """
        folder, note = self.folder / f"{name}_{seed}", self.folder / f"{name}_{seed}.json"
        if not note.is_file():
            start, share, world = self.start(name, seed), WORLD if name in WORLDS else 1.0, None
            if name in METHODS and start.settings.foresees:
                first, world = self.trained(f"world_{start.settings.attention}", seed)
                start, share = replace(first, settings=start.settings), 1 - WORLD
            worlds = dict.fromkeys(f"world_{METHODS[m].attention}" for m in self.run.methods if METHODS[m].foresees)
            pace = self.paces({n: partial(self.stage, n, self.codes, None) for n in (*worlds, *self.run.methods)})[name]
            steps, begun = max(1, round(share * self.run.seconds / pace)), time.process_time()
            self.stage(name, self.codes, start, steps, folder, 4, seed)
            spent = time.process_time() - begun
            log = (folder.with_name(f"{folder.name}_training") / "metrics.jsonl").read_text(encoding="utf-8")
            known = None if "resumed" in log else spent
            written(note, {"steps": steps, "seconds per step": pace, "seconds": known, "world": world})
            print(f"{name}, seed {seed}: {steps} steps in {spent:.0f} processor s", flush=True)
        policy = UnifiedPolicy.from_pretrained(folder)
        policy.model.to("cpu")
        told = replace(policy.told, decoding=replace(ROUNDS, steps=self.run.rounds))
        return replace(policy, told=told), read_json(note)

    def cell(self, method: str, seed: int, decoding: str) -> dict[str, Any] | None:
        """Every episode of one decoding of one policy, errors of pictures and time of a call; None where it is not there and
        nothing is to be run.
        """
        file = self.folder / "cells" / f"{method}_{seed}" / f"{decoding}.json"
        if file.is_file():
            return read_json(file)
        if self.run.part == "table":
            return None
        (policy, training), run, begun = self.trained(method, seed), self.run, time.process_time()
        asked, size = partial(_asked, policy, decoding), policy.settings.width
        seeds = range(TRIED, TRIED + run.episodes)
        rollouts = evaluate(asked, run.tasks, seeds, cap=run.cap, size=size, make=self.make)
        kept = ("task", "seed", "success", "length", "calls")
        found: dict[str, Any] = {
            "training": training,
            "seconds": time.process_time() - begun,
            "milliseconds": _latency(policy, decoding, self.others[0]),
            "episodes": [{part: getattr(r, part) for part in kept} for r in rollouts],
        }
        looked = foreseen(policy, self.others, decoding=decoding)
        if policy.settings.foresees:
            found["errors"] = errors(policy, looked)._asdict()
        success = float(np.mean([r.success for r in rollouts]))
        told = {"success": f"{success:.1%}", "processor ms per chunk": found["milliseconds"]}
        told |= {f"error, {part}": x for part, x in found.get("errors", {}).items()}
        unified_page.write(file.with_suffix(".html"), policy, decoding, told, looked, self.others[0])
        written(file, found)
        where = f"{method}, seed {seed}, {decoding}"
        print(f"{where}: {success:.3f} of {len(rollouts)}, {found['seconds']:.0f} processor s", flush=True)
        return found


def _asked(policy: UnifiedPolicy, decoding: str, shown: Observations) -> np.ndarray:
    assert shown.pictures is not None
    seeds = [(CAP + 1) * seed + call for seed, call in zip(shown.seed, shown.call, strict=True)]
    return policy.predict(shown.proprio, shown.instruction, shown.pictures, seed=seeds, decoding=decoding).actions


def _latency(policy: UnifiedPolicy, decoding: str, shown: Episode) -> float:
    """Processor milliseconds of a call for one row, from picture to actions, the median."""
    spent = []
    for _ in range(TIMED):
        start = time.process_time()
        policy.predict(shown.state[0, :PROPRIO], shown.task, seen_by(shown)[0], decoding=decoding)
        spent.append(1000 * (time.process_time() - start))
    return float(np.median(spent))


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.unified_vla", argv, {"": Run})[""]
    bench = Bench(run)
    cells = {(m, d): [bench.cell(m, s, d) for s in run.seeds] for m in run.methods for d in WAYS[m]}
    data = (
        f"Meta-World {', '.join(run.tasks)}: {run.demonstrations} demonstrations each with pictures of 64 x 64, {run.episodes} "
        f"episodes of at most {run.cap} steps per task and training, {run.seconds:g} processor s each; errors of pictures on "
        f"{run.held} other demonstrations per task, root mean square as a share of the range; intervals of 95 % by bootstrap"
    )
    record(
        "unified_vla",
        table(cells, run.seeds),
        data=data,
        seeds=run.seeds,
        folder=FOLDER if run.save else bench.folder / "results",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(main))
