"""Few rounds of robot policies where there are several ways: chosen by an energy of whole chunks, or at learned times.

    MUJOCO_GL=osmesa python -m benchmarks.vla_rounds --seeds 0,1,2     # of the policies that benchmarks.vla left in `out`

Every way draws (temperature 1) and reads the numbers near what was drawn. An energy learns to tell demonstrated chunks from
those drawn in their place; times are learned from observations of the demonstrations. In
`out`: rounds/TRACK_SEED, the policy with both; rounds/TRACK_SEED/cells/WAY.json, its episodes. What is there is not made again.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.results import FOLDER, record, same_run
from benchmarks.vla_table import written
from benchmarks.vla_tracks import EVALUATION, FIRST, TRACKS
from discdiff.cli import guarded, parse
from discdiff.config import checked, read_json
from discdiff.denoisers import denoiser_of, process_of
from discdiff.training import TrainingSettings
from tasks.common.improve import Distillation, learn_grid
from tasks.vla import rollout
from tasks.vla.design import Decoding
from tasks.vla.episodes import Episode
from tasks.vla.improve import fit_energy, unmade
from tasks.vla.intervals import difference, interval
from tasks.vla.judged import acting
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import Environment, make
from tasks.vla.policy import TASK, ActionPolicy

K, FEW, TEACHER = 8, 4, 32
DRAWN: dict[str, Any] = {"read": "near", "temperature": 1.0}
PLAIN = {n: f"ancestral, {n} round{'s' * (n > 1)}" for n in (1, 2, 4, 8)}
WAYS: dict[str, Decoding] = {
    **{name: Decoding("ancestral", n, **DRAWN) for n, name in PLAIN.items()},
    "confidence, 4 rounds": Decoding("confidence", FEW, **DRAWN),
    **{f"energy, {n} rounds": Decoding("edlm", n, **DRAWN, knobs={"energy": "learned", "k": K}) for n in (2, 4)},
    "learned times (kl), 4 rounds": Decoding("ancestral", FEW, **DRAWN, grid=f"kl_{FEW}"),
    "learned rates (LSD), 4 rounds": Decoding("ancestral", FEW, **DRAWN, grid=f"normalised_{FEW}"),
}
AGAINST = {  # the same draw in as many plain rounds
    "energy, 2 rounds": PLAIN[2],
    "energy, 4 rounds": PLAIN[4],
    "learned times (kl), 4 rounds": PLAIN[4],
    "learned rates (LSD), 4 rounds": PLAIN[4],
    "confidence, 4 rounds": PLAIN[4],
}


@dataclass(frozen=True)
class Run:
    """steps: of an energy's training; episodes: of each task, of at most `cap` steps; rows: observations
    that times are learned from; save: keep the figures in docs/results, otherwise in `out`.
    """

    track: str = "multimodal"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 500
    episodes: int = 20
    cap: int = 300
    rows: int = 256
    out: str = "runs/vla"
    save: bool = True

    def __post_init__(self) -> None:
        checked("track", self.track, self.track in TRACKS, f"choose from {', '.join(TRACKS)}")
        checked("episodes", self.episodes, self.episodes >= 1, "at least 1 of each task")


def improved(run: Run, seed: int, shown: Callable[[], list[Episode]]) -> tuple[ActionPolicy, float]:
    """A policy with an energy and learned times, and the processor seconds of the energy."""
    kept = Path(run.out) / "policies" / run.track / f"masked_{seed}"
    checked("out", str(kept), (kept / TASK).is_file(), "no policy there: run benchmarks.vla on that track first")
    folder = Path(run.out) / "rounds" / f"{run.track}_{seed}"
    note = folder / "seconds.json"
    if not note.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        policy, episodes = ActionPolicy.from_pretrained(folder), shown()
        settings = TrainingSettings(
            seed=seed, steps=run.steps, batch_size=64, learning_rate=2e-3, warmup=min(30, run.steps), ema=0.99,
            optimizer="muon", log_every=100, progress=False, device="cpu",
        )  # fmt: skip
        start = time.process_time()
        fit_energy(policy, episodes, settings, folder)
        seconds = time.process_time() - start
        rows = unmade(policy, episodes, run.rows, seed)
        for objective in ("kl", "normalised"):
            how = Distillation(FEW, TEACHER, objective, rows=run.rows, seed=seed)
            learn_grid(denoiser_of(policy.model), process_of(policy.model), rows, how, folder)
        written(note, {"seconds": seconds})
    return ActionPolicy.from_pretrained(folder), float(read_json(note)["seconds"])


def tried(
    run: Run, seed: int, name: str, policy: ActionPolicy, make: Callable[[str], Environment]
) -> dict[tuple[Any, ...], float]:
    """Percent of success by (training, task, seed of the episode)."""
    file = (
        Path(run.out) / "rounds" / f"{run.track}_{seed}" / "cells" / f"{re.sub('[^a-z0-9]+', '_', name.lower())}.json"
    )
    if not file.is_file():
        seeds = range(FIRST[EVALUATION], FIRST[EVALUATION] + run.episodes)
        found = rollout.evaluate(acting(policy, WAYS[name]), TRACKS[run.track].tasks, seeds, cap=run.cap, make=make)
        written(file, {"episodes": [[r.task, r.seed, r.success] for r in found]})
        print(f"seed {seed}, {name}: {np.mean([r.success for r in found]):.3f} of {len(found)}", flush=True)
    return {(seed, task, number): 100.0 * success for task, number, success in read_json(file)["episodes"]}


def table(found: dict[str, dict[tuple[Any, ...], float]], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Success of every way, and what an energy or learned times change, 95 % bootstrap intervals beside."""
    rows = [{"figure": "an energy: training", "value": float(np.mean(seconds)), "unit": "processor s"}]
    for name, each in found.items():
        share = interval(list(each.values()))
        for part in ("mean", "low", "high"):
            rows.append({"figure": f"{name}: success, {part}", "value": getattr(share, part), "unit": "%"})
    for name, plain in AGAINST.items():
        apart = difference(found[name], found[plain])
        for part in ("mean", "low", "high"):
            rows.append({"figure": f"{name}, less {plain}: {part}", "value": getattr(apart, part), "unit": "points"})
    return rows


def main(argv: Sequence[str], make: Callable[[str], Environment] = make) -> None:
    run: Run = parse("python -m benchmarks.vla_rounds", argv, {"": Run})[""]
    out = Path(run.out)
    same_run(out / "rounds", asdict(run), ("seeds", "save", "out", "track"))

    def shown() -> list[Episode]:
        return list(open_dataset(out / "data" / (TRACKS[run.track].source or run.track)).episodes())

    found: dict[str, dict[tuple[Any, ...], float]] = {name: {} for name in WAYS}
    seconds = []
    for seed in run.seeds:
        policy, spent = improved(run, seed, shown)
        seconds.append(spent)
        for name in WAYS:
            found[name] |= tried(run, seed, name, policy, make)
    data = f"Meta-World 3.1.1, {run.track}, {run.episodes} episodes of each of {len(TRACKS[run.track].tasks)} tasks"
    folder = FOLDER if run.save else out / "rounds" / "results"
    record("vla_rounds", table(found, seconds), data=data, seeds=list(run.seeds), folder=folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(main))
