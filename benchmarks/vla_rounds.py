"""Few rounds of robot policies where there are several ways: chosen by an energy of whole chunks, at learned times, or in the
order of what is surest: by the likeliest level's probability (confidence), by its lead over the second (gap), or by how near to
one another the likely numbers lie (narrowest first).

    MUJOCO_GL=osmesa python -m benchmarks.vla_rounds --seeds 0,1,2     # of the policies that benchmarks.vla left in `out`

A way draws (temperature 1) and reads the numbers near what was drawn, or where its name says so takes the likeliest levels and
reads expectations. An energy learns to tell demonstrated chunks from those drawn in their place; times are learned from
observations of the demonstrations. In `out`: rounds/TRACK_SEED, the policy with both; rounds/TRACK_SEED/cells/WAY.json, its
episodes. What is there of the same weights is not made again, and a killed training goes on. About 25 minutes of one core.
"""

from __future__ import annotations

import json
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
from tasks.common.improve import ENERGY, Distillation, fingerprint, learn_grid
from tasks.vla import rollout
from tasks.vla.design import Decoding
from tasks.vla.episodes import Episode
from tasks.vla.improve import fit_energy, unmade
from tasks.vla.intervals import difference, interval
from tasks.vla.judged import acting
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import Environment, make
from tasks.vla.policy import TASK, ActionPolicy

K, FEW, MANY, TEACHER = 8, 4, 16, 32
DRAWN: dict[str, Any] = {"read": "near", "temperature": 1.0}
PLAIN = {n: f"ancestral, {n} round{'s' * (n > 1)}" for n in (1, 2, 4, 8)}
ORDERS = {"confidence": ("confidence", ""), "gap": ("margin", ""), "narrowest first": ("confidence", "deviation")}
WAYS: dict[str, Decoding] = {
    **{name: Decoding("ancestral", n, **DRAWN) for n, name in PLAIN.items()},
    **{f"energy, {n} rounds": Decoding("edlm", n, **DRAWN, knobs={"energy": "learned", "k": K}) for n in (2, 4)},
    "learned times (kl), 4 rounds": Decoding("ancestral", FEW, **DRAWN, grid=f"kl_{FEW}"),
    "learned rates (LSD), 4 rounds": Decoding("ancestral", FEW, **DRAWN, grid=f"normalised_{FEW}"),
    **{
        f"{order}, {n} rounds{name}": Decoding(sampler, n, rank=rank, **read)
        for order, (sampler, rank) in ORDERS.items()
        for name, read in {"": DRAWN, ", expectation": {"read": "expectation"}}.items()
        for n in (FEW, MANY)
    },
}
AGAINST = {  # the same draw in as many rounds, plain or by confidence
    "energy, 2 rounds": PLAIN[2],
    "energy, 4 rounds": PLAIN[4],
    "learned times (kl), 4 rounds": PLAIN[4],
    "learned rates (LSD), 4 rounds": PLAIN[4],
    "confidence, 4 rounds": PLAIN[4],
    **{
        f"{order}, {way}": f"confidence, {way}"
        for order in list(ORDERS)[1:]
        for way in (f"{n} rounds{name}" for name in ("", ", expectation") for n in (FEW, MANY))
    },
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


def improved(run: Run, seed: int, shown: Callable[[], list[Episode]]) -> tuple[ActionPolicy, float | None]:
    """A policy with an energy and learned times, and the processor seconds of the energy, None where it was interrupted."""
    kept = Path(run.out) / "policies" / run.track / f"masked_{seed}"
    checked("out", str(kept), (kept / TASK).is_file(), "no policy there: run benchmarks.vla on that track first")
    folder = Path(run.out) / "rounds" / f"{run.track}_{seed}"
    note, base = folder / "learned.json", fingerprint(ActionPolicy.from_pretrained(kept).model)
    if not note.is_file() or read_json(note)["weights"] != base:
        shutil.copytree(
            kept, folder, dirs_exist_ok=True
        )  # what is learned already stays: it says of which weights it is
        policy, episodes = ActionPolicy.from_pretrained(folder), shown()
        settings = TrainingSettings(
            seed=seed, steps=run.steps, batch_size=64, learning_rate=2e-3, warmup=min(30, run.steps), ema=0.99,
            optimizer="muon", log_every=100, save_every=-(-run.steps // 4), progress=False, device="cpu",
        )  # fmt: skip
        start = time.process_time()
        fit_energy(policy, episodes, settings, folder)
        seconds = time.process_time() - start
        whole = "resumed" not in (folder / f"{ENERGY}_training" / "metrics.jsonl").read_text(encoding="utf-8")
        rows = unmade(policy, episodes, run.rows, seed)
        for objective in ("kl", "normalised"):
            how = Distillation(FEW, TEACHER, objective, rows=run.rows, seed=seed)
            learn_grid(denoiser_of(policy.model), process_of(policy.model), rows, how, folder)
        written(note, {"weights": base, "seconds": seconds if whole else None})
    return ActionPolicy.from_pretrained(folder), read_json(note)["seconds"]


def key(policy: ActionPolicy, how: Decoding) -> dict[str, Any]:
    """What a cell is the result of."""
    found: dict[str, Any] = {"weights": fingerprint(policy.model), "decoding": asdict(how)}
    if how.grid:
        found["grid"] = asdict(policy.grids[how.grid])
    if how.sampler == "edlm" and policy.energy is not None:
        found["energy"] = fingerprint(policy.energy.model)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def tried(
    run: Run, seed: int, name: str, policy: ActionPolicy, make: Callable[[str], Environment]
) -> dict[tuple[Any, ...], float]:
    """Percent of success by (training, task, seed of the episode), taken as it is where it is there of the same weights."""
    file = (
        Path(run.out) / "rounds" / f"{run.track}_{seed}" / "cells" / f"{re.sub('[^a-z0-9]+', '_', name.lower())}.json"
    )
    mine = key(policy, WAYS[name])
    if not file.is_file() or read_json(file).get("key") != mine:
        seeds = range(FIRST[EVALUATION], FIRST[EVALUATION] + run.episodes)
        found = rollout.evaluate(acting(policy, WAYS[name]), TRACKS[run.track].tasks, seeds, cap=run.cap, make=make)
        written(file, {"key": mine, "episodes": [[r.task, r.seed, r.success] for r in found]})
        print(f"seed {seed}, {name}: {np.mean([r.success for r in found]):.3f} of {len(found)}", flush=True)
    return {(seed, task, number): 100.0 * success for task, number, success in read_json(file)["episodes"]}


def table(found: dict[str, dict[tuple[Any, ...], float]], seconds: Sequence[float | None]) -> list[dict[str, Any]]:
    """Success of every way, and what an energy, learned times or an order change, 95 % bootstrap intervals beside."""
    known = [each for each in seconds if each is not None]
    rows = [{"figure": "an energy: training", "value": float(np.mean(known)), "unit": "processor s"}] if known else []
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
