"""Unified Diffusion VLA (arXiv 2511.01718) on Meta-World's pictures: future picture and actions denoised together, one after
the other, and actions alone, at equal budgets of processor seconds.

    MUJOCO_GL=osmesa python -m benchmarks.unified_vla --seeds 0,1,2 --seconds 300

Of the world a policy is told the sentence, the hand's place and a picture of 64 x 64. `paper` and `released` are trained in two
stages, the first of which takes a third of the budget, and are decoded in several ways by the same weights; `alone` has no
future picture and spends the whole budget on actions. The tokenizer of pictures is trained before, once for all. In `out`:
data and held, demonstrations as LeRobot data sets; pictures; METHOD_SEED, what was trained, and METHOD_SEED.json; cells, every
evaluation; sheets, what is seen, foreseen and true, side by side. What is there is not made again.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.results import record, same_run
from discdiff.cli import guarded, parse
from discdiff.config import checked, read_json
from discdiff.report.pictures import image_grid, write_atomically
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.vla import collect
from tasks.vla.episodes import Episode
from tasks.vla.intervals import difference, interval
from tasks.vla.learning import Loss
from tasks.vla.lerobot import open_dataset, write
from tasks.vla.metaworld import CAP, EASY10, PROPRIO, RATE
from tasks.vla.rollout import Observations, evaluate
from tasks.vla.unified import ROUNDS, UnifiedPolicy
from tasks.vla.unified_design import Unified
from tasks.vla.unified_learning import Rows, codes_of, fit, joint_objective, untrained, world_objective
from tasks.vla.unified_pictures import errors, fit_pictures, foreseen
from tokenizers_vq.image import ImageTokenizer

METHODS = {
    "paper": (Unified(proprio=PROPRIO), ("joint", "separate", "action")),
    "released": (Unified("released", proprio=PROPRIO), ("joint",)),
    "alone": (Unified(decoding="action", future=False, proprio=PROPRIO), ("action",)),
}
FREE = ("methods", "seeds", "save", "out")  # settings that no cell depends on
WORLD = 1 / 3  # share of the budget for the first stage
PACED, SKIPPED, TIMED, SHEET = 10, 3, 5, 8  # steps measured, those before it runs evenly; single calls; rows of a sheet
TRAIN, HELD, TRIED = (
    1000,
    40_000,
    70_000,
)  # first seeds of demonstrations, of those that are never learned, of evaluations


@dataclass(frozen=True)
class Run:
    """seconds, picture_seconds: of the processor, for a policy and for the tokenizer; demonstrations, held: of each task, to
    learn and to measure pictures by; episodes: of each task that are evaluated, of at most `cap` steps; rounds: of denoising,
    of separate decoding for each part; save: keep the figures in docs/results.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = EASY10
    seconds: float = 300.0
    picture_seconds: float = 200.0
    demonstrations: int = 25
    held: int = 3
    episodes: int = 20
    cap: int = 300
    rounds: int = 8
    batch_size: int = 64
    learning_rate: float = 2e-3
    out: str = "runs/unified_vla"
    save: bool = True

    def __post_init__(self) -> None:
        known = 0 < len(set(self.methods)) == len(self.methods) and set(self.methods) <= set(METHODS)
        checked("methods", ",".join(self.methods), known, f"choose from {', '.join(METHODS)}, each once")
        for name in ("seconds", "picture_seconds", "demonstrations", "held", "episodes"):
            checked(name, getattr(self, name), getattr(self, name) > 0, "above 0")


class Bench:
    """Data, trainings and cells in a folder."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, Path(run.out)
        same_run(self.folder, asdict(run), FREE)

    def episodes(self, name: str, each: int, seed: int) -> list[Episode]:
        """Demonstrations with pictures, recorded where they are not there."""
        folder = self.folder / name
        if not folder.is_dir():
            made = (e for t in self.run.tasks for e in collect.record(t, each, seed=seed, pictures=True))
            write(folder, made, RATE, robot_type="sawyer")
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
        folder = self.folder / "pictures"
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory() as spare:
                shown, brief = self.shown, replace(self.settings(0, PACED, "adamw"), save_every=0)
                start = time.process_time()
                fit_pictures(shown, brief, Path(spare) / "pace")
                steps = max(1, round(self.run.picture_seconds * PACED / (time.process_time() - start)))
            print(f"pictures: {steps} steps", flush=True)
            fit_pictures(self.shown, self.settings(0, steps, "adamw"), folder, "auto")
        return ImageTokenizer.from_pretrained(folder)

    @cached_property
    def codes(self) -> torch.Tensor:
        """Of all pictures that are learned."""
        return codes_of(untrained(METHODS["paper"][0], self.shown, self.pictures, 0), self.shown)

    def settings(self, seed: int, steps: int, optimizer: str = "muon") -> TrainingSettings:
        run = self.run
        return TrainingSettings(
            seed=seed, steps=steps, batch_size=run.batch_size, learning_rate=run.learning_rate, warmup=min(50, steps // 10),
            optimizer=optimizer, log_every=min(50, steps), save_every=-(-steps // 4), progress=False, device="cpu",
        )  # fmt: skip

    def pace(self, policy: UnifiedPolicy, world: bool) -> float:
        """Processor seconds of a step, the median over a throw-away training."""
        goal, clock = world_objective() if world else joint_objective(policy, Loss()), _Clock()
        rows, settings = Rows(policy, self.shown, world, self.codes), replace(self.settings(0, PACED), save_every=0)
        with tempfile.TemporaryDirectory() as spare:
            model, options = deepcopy(policy.model).train(), {"callbacks": [clock]}
            DiffusionTrainer(model, settings, goal, rows.layout, rows, output_dir=spare, **options).train()
        return float(np.median(np.diff(clock.at)[SKIPPED:]))

    def policy(self, method: str, seed: int) -> tuple[UnifiedPolicy, dict[str, Any]]:
        """A trained policy and the steps and processor seconds of its training, None where that was interrupted."""
        folder, note = self.folder / f"{method}_{seed}", self.folder / f"{method}_{seed}.json"
        if not note.is_file():
            start = untrained(METHODS[method][0], self.shown, self.pictures, seed)
            pace = folder.with_name(f"{folder.name}_pace.json")  # of an interrupted run, whose steps these are
            if not pace.is_file():
                budget = {"world": WORLD, "joint": 1 - WORLD} if start.settings.future else {"joint": 1.0}
                share = {n: self.run.seconds * x / self.pace(start, n == "world") for n, x in budget.items()}
                _written(pace, {name: max(1, round(x)) for name, x in share.items()})
            steps, codes, begun = read_json(pace), self.codes, time.process_time()
            world = self.settings(seed, steps["world"]) if "world" in steps else None
            fit(start, self.shown, self.settings(seed, steps["joint"]), folder, world=world, resume="auto", codes=codes)
            spent = time.process_time() - begun
            logs = "".join(log.read_text() for log in self.folder.glob(f"{folder.name}_*training/metrics.jsonl"))
            _written(note, {"steps": steps, "seconds": None if "resumed" in logs else spent})
        policy = UnifiedPolicy.from_pretrained(folder)
        policy.model.to("cpu")
        return replace(policy, rounds=replace(ROUNDS, steps=self.run.rounds)), read_json(note)

    def cell(self, method: str, seed: int, decoding: str) -> dict[str, Any]:
        """Success by episode, errors of pictures and time of a call of one decoding of one policy."""
        file = self.folder / "cells" / f"{method}_{seed}_{decoding}.json"
        if file.is_file():
            return read_json(file)
        policy, training = self.policy(method, seed)
        tried = evaluate(
            partial(_asked, policy, decoding), self.run.tasks, range(TRIED, TRIED + self.run.episodes),
            cap=self.run.cap, size=policy.settings.width,
        )  # fmt: skip
        found: dict[str, Any] = {"training": training, "success": [[r.task, r.seed, r.success] for r in tried]}
        if decoding != "action":
            made, seen, true = foreseen(policy, self.others, decoding=decoding)
            found["errors"] = errors(policy, made, seen, true)._asdict()
            self.sheet(f"{method}_{seed}_{decoding}.png", seen, made.future, true)
        found["milliseconds"] = _latency(policy, decoding, self.others[0])
        _written(file, found)
        mean = np.mean([r.success for r in tried])
        note = [found.get("errors"), found["milliseconds"]]
        print(f"{method}, seed {seed}, {decoding}: {mean:.3f} of {len(tried)}, {note}", flush=True)
        return found

    def sheet(self, name: str, seen: np.ndarray, made: Any, true: np.ndarray) -> None:
        """Rows of what is seen, foreseen and true, of moments at even distances."""
        some = np.linspace(0, len(seen) - 1, min(SHEET, len(seen))).round().astype(int)
        grid = image_grid(np.stack([seen[some], made[some], true[some]], 1).reshape(-1, *seen.shape[1:]), 3, 2)
        data = io.BytesIO()
        grid.save(data, "PNG")
        write_atomically(self.folder / "sheets" / name, data.getvalue())


class _Clock(TrainerCallback):
    """Processor time after each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at.append(time.process_time())


def _asked(policy: UnifiedPolicy, decoding: str, shown: Observations) -> np.ndarray:
    assert shown.pictures is not None
    seeds = [(CAP + 1) * seed + call for seed, call in zip(shown.seed, shown.call, strict=True)]
    return policy.predict(shown.proprio, shown.instruction, shown.pictures, seed=seeds, decoding=decoding).actions


def _latency(policy: UnifiedPolicy, decoding: str, shown: Episode) -> float:
    """Processor milliseconds of a call for one row, from picture to picture, the median."""
    spent = []
    for _ in range(TIMED):
        start = time.process_time()
        policy.predict(shown.state[0, :PROPRIO], shown.task, next(iter(shown.pictures.values()))[0], decoding=decoding)
        spent.append(1000 * (time.process_time() - start))
    return float(np.median(spent))


def _written(file: Path, value: Any) -> None:
    write_atomically(file, (json.dumps(value, indent=1) + "\n").encode("utf-8"))


def figures_of(bench: Bench) -> list[dict[str, Any]]:
    """The table, and joint decoding against each other in pairs of episodes."""
    figures: list[dict[str, Any]] = []
    succeeded: dict[str, dict[Any, float]] = {}
    cells = {(m, d, s): bench.cell(m, s, d) for s in bench.run.seeds for m in bench.run.methods for d in METHODS[m][1]}
    for method, decoding in dict.fromkeys((m, d) for m, d, _ in cells):
        found, name = [cells[method, decoding, s] for s in bench.run.seeds], f"{method}, {decoding}"
        pairs = zip(bench.run.seeds, found, strict=True)
        won = succeeded[name] = {(s, task, k): float(ok) for s, each in pairs for task, k, ok in each["success"]}
        rows = dict(zip(("success", "success, low", "success, high"), interval(list(won.values())), strict=True))
        figures += [{"figure": f"{name}: {part}", "value": 100 * x, "unit": "%"} for part, x in rows.items()]
        spent = float(np.mean([each["milliseconds"] for each in found]))
        figures.append({"figure": f"{name}: processor time per chunk", "value": spent, "unit": "ms"})
        if "errors" in found[0]:
            mean = {part: float(np.mean([each["errors"][part] for each in found])) for part in found[0]["errors"]}
            figures += [{"figure": f"{name}: error of pictures {part}", "value": x} for part, x in mean.items()]
            share = mean["predicted"] / mean["copied"]
            figures.append({"figure": f"{name}: predicted over copied", "value": share, "goal": "< 1"})
    for name in [name for name in succeeded if name != "paper, joint" and "paper, joint" in succeeded]:
        off = difference(succeeded["paper, joint"], succeeded[name])
        for part, x in zip(("mean", "low", "high"), off, strict=True):
            figures.append({"figure": f"paper, joint above {name}: {part}", "value": 100 * x, "unit": "points"})
    return figures


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.unified_vla", argv, {"": Run})[""]
    torch.set_num_threads(1)
    figures = figures_of(Bench(run))
    data = (
        f"Meta-World, {len(run.tasks)} tasks x {run.demonstrations} demonstrations with pictures of 64 x 64, {run.episodes} "
        f"episodes of at most {run.cap} steps per task and training, {run.seconds:g} processor s each; errors of pictures on "
        f"{run.held} other demonstrations per task, root mean square as a share of the range; intervals of 95 % by bootstrap"
    )
    if run.save:
        record("unified_vla", figures, data=data, seeds=run.seeds)
    else:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(guarded(main))
