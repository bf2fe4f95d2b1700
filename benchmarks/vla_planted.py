"""Secondary re-masking against wrong commitments that were planted, with trained policies and without a simulator.

    python -m benchmarks.vla_planted --seeds 0,1,2     # of what benchmarks.vla left in `policies`: minutes of one core

Chunks are decoded by the rounds of `dd_vla` for observations at random frames of demonstrations, where a track leaves some of
such as were not learned. Halfway, a share of each row's committed numbers is replaced by others that are at least `off` away,
of numbers normalised to [-1, 1]; nothing else is changed, so that a run is as sure of them as of those they replace. The other
rounds go on without re-masking, or judge what is committed by what the network says seeing it ("visible") or seeing the row
without it ("loo") as Discrete Diffusion VLA does (arXiv 2508.20072): at the thresholds of `Recheck`, or at those times the most
that the soft labels of training give a level ("fitted"). Each is compared with the same run in which nothing was planted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.results import FOLDER, record
from benchmarks.vla_tracks import TRACKS, VARIANTS
from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.denoisers import denoiser_of
from discdiff.kernels import Kernel
from discdiff.kernels.base import Around
from discdiff.kernels.commit import places
from discdiff.kernels.recheck import COUNT, Recheck
from discdiff.kernels.valued import VALUE
from discdiff.noise import Noise
from discdiff.types import Info, State, Step
from discdiff.values import CodeValues
from tasks.vla.design import ACTION, Decoding
from tasks.vla.improve import hidden, some
from tasks.vla.intervals import difference
from tasks.vla.learning import Loss, Rows
from tasks.vla.lerobot import open_dataset
from tasks.vla.policy import TASK, ActionPolicy

NONE, NEAR = "no re-masking", 0.1  # NEAR: a number is right that is as near as this to that of the run without planting
RESCORES = ("visible", "loo")
PLANTED, BEFORE = "planted", "planted_count"


@dataclass(frozen=True)
class Run:
    """method: whose policies, where a track has them; frames: of demonstrations, per training; rounds: of decoding; share: of a
    row's committed numbers that are replaced after half of them; off: how far away at least; policies: the folder of
    benchmarks.vla; save: keep the figures in docs/results, otherwise in `out`.
    """

    track: tuple[str, ...] = ("hard10", "multimodal", "few10")
    method: tuple[str, ...] = ("masked", "masked_exact")
    seeds: tuple[int, ...] = (0, 1, 2)
    frames: int = 100
    rounds: int = 12
    share: float = 0.25
    off: float = 0.5
    policies: str = "runs/vla"
    out: str = "runs/vla_planted"
    save: bool = True

    def __post_init__(self) -> None:
        known = all(name in TRACKS and not TRACKS[name].policy.picture for name in self.track)
        checked("track", ",".join(self.track), known, "tracks of benchmarks.vla without pictures")
        masked = all(name == "masked" or VARIANTS.get(name, ("",))[0] == "masked" for name in self.method)
        checked("method", ",".join(self.method), masked, "a masked one")
        checked("rounds", self.rounds, self.rounds >= 2, "at least 2")
        checked("share", self.share, 0 < self.share <= 1, "above 0, at most 1")
        checked("off", self.off, 0 < self.off < 1, "above 0 and below 1: of any number there is one that far away")


@dataclass(frozen=True, eq=False)
class Planted(Around):
    """A kernel before whose step `at` some committed numbers of every row are replaced; memory: which ones they were, and how
    often each position had been masked again until then, both (batch, length).
    """

    inner: Kernel
    values: CodeValues
    at: int
    share: float
    off: float
    seed: int

    def init(self, state: State) -> State:
        return self.inner.init(state)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        return self.inner(denoiser, self.planted(state) if step.index == self.at else state, step, noise)

    def planted(self, state: State) -> State:
        """The state with wrong numbers in it."""
        number, here = self.values.of(state.batch, state.tokens), state.free & state.committed
        levels = self.values.table(number.device)[self.values.at(state.batch).clamp(min=0)]  # (batch, length, codes)
        draw = torch.rand(levels.shape, generator=torch.Generator().manual_seed(self.seed)).to(number.device)
        wrong = places(here, draw[..., 0].double()) < (here.sum(1) * self.share).ceil()[:, None]
        wrong &= here
        code = torch.where((levels - number[..., None]).abs() >= self.off, draw, -1.0).argmax(-1)
        tokens = torch.where(wrong, state.batch.ids(code), state.tokens)
        value = torch.where(wrong, self.values.of(state.batch, tokens), state.memory[VALUE])
        memory = {**state.memory, VALUE: value, PLANTED: wrong, BEFORE: state.memory[COUNT]}
        return state._replace(tokens=tokens, memory=memory)


def settings(levels: Tensor, loss: Loss) -> dict[str, dict[str, Any]]:
    """Knobs of `dd_vla` by name; levels (dim, codes): normalised numbers."""
    most, row = 1.0, levels[0].double()
    if loss.width:
        most = float((-0.5 * ((row - row[len(row) // 2]) / loss.width).square()).softmax(0).max())
    fitted = {name: most * getattr(Recheck(), name) for name in ("low", "high", "drop")}
    found: dict[str, dict[str, Any]] = {NONE: {"share": 0.0}}
    for name in RESCORES:
        found |= {name: {"rescore": name}, f"{name}, fitted": {"rescore": name, **fitted}}
    return found


def tried(
    policy: ActionPolicy, rows: Rows, knobs: Mapping[str, Any], how: Decoding, run: Run, seed: int
) -> dict[str, Any]:
    """Per row, percent of the planted numbers that were masked again and that ended right, percent of the others masked again,
    the mean absolute error against the demonstrations with and without planting; and the network's rows with planting.
    """
    which = some(rows, run.frames, seed)
    batch, target = hidden(policy, rows, which).to(policy.model.device), rows.target[which].flatten(1).double()
    made, denoiser = policy.sampler_of(dataclasses.replace(how, knobs=dict(knobs))), denoiser_of(policy.model)
    plant = Planted(made.kernel, policy.values, run.rounds // 2, run.share, run.off, seed)
    columns = policy.layout.columns(ACTION)
    (plain, _), (after, info) = (
        each(denoiser, batch, which) for each in (made, dataclasses.replace(made, kernel=plant))
    )
    memory = {name: x[:, columns].cpu() for name, x in after.memory.items()}
    value, wrong, again = memory[VALUE], memory[PLANTED], memory[COUNT] > memory[BEFORE]
    before = plain.memory[VALUE][:, columns].cpu()
    right = (value - before).abs() <= NEAR
    return {
        "masked again": _share(again, wrong),
        "corrected": _share(right, wrong),
        "false alarms": _share(again, ~wrong),
        "error": (value - target).abs().mean(1).tolist(),
        "error without planting": (before - target).abs().mean(1).tolist(),
        "network rows": info.network_rows / len(which),
    }


def _share(found: Tensor, of: Tensor) -> list[float]:
    """Percent of each row's positions in `of` (batch, positions) that are in `found`."""
    return (100.0 * (found & of).sum(1) / of.sum(1)).tolist()


def table(name: str, found: Mapping[str, Mapping[str, dict[Any, float]]]) -> list[dict[str, Any]]:
    """Figures by setting and part, of rows by (training, row), and what re-masking changes with 95 % bootstrap intervals."""
    units = {"error": "normalised", "error without planting": "normalised", "network rows": "per row"}
    rows: list[dict[str, Any]] = []
    for setting, parts in found.items():
        title = f"{name}, {setting}"
        for part, each in parts.items():
            value = float(np.mean(list(each.values())))
            rows.append({"figure": f"{title}: {part}", "value": value, "unit": units.get(part, "%")})
        if setting == NONE:
            continue
        for what, part, unit in (("more corrected", "corrected", "points"), ("more error", "error", "normalised")):
            more = difference(parts[part], found[NONE][part])
            for bound in ("mean", "low", "high"):
                goal = "> 0" if (part, bound) == ("corrected", "low") else None
                figure = f"{title}, {what} than without, {bound}"
                rows.append({"figure": figure, "value": getattr(more, bound), "unit": unit, "goal": goal})
    return rows


def measured(run: Run, track: str, method: str) -> list[dict[str, Any]]:
    """The table of all trainings of a method on a track. Raises ValueError where one is not there."""
    base, of = Path(run.policies), TRACKS[track]
    source = of.source or track
    stored, learned = TRACKS[source].demonstrations, of.demonstrations
    each = range(learned, stored) if learned < stored else range(stored)
    data = open_dataset(base / "data" / source)
    shown = list(data.episodes([stored * task + k for task in range(len(of.tasks)) for k in each]))
    how = Decoding("dd_vla", run.rounds, "mode" if track == "multimodal" else "expectation")
    loss = VARIANTS[method][1] if method in VARIANTS else Loss()
    found: dict[str, dict[str, dict[Any, float]]] = {}
    for seed in run.seeds:
        folder = base / "policies" / track / f"{method}_{seed}"
        there, remedy = (folder / TASK).is_file(), "no policy there: run benchmarks.vla on that track first"
        checked("policies", str(folder), there, remedy)
        policy = ActionPolicy.from_pretrained(folder)
        rows = Rows(policy, policy.layout, shown)
        for name, knobs in settings(policy.tokenizer.levels, loss).items():
            for part, value in tried(policy, rows, knobs, how, run, seed).items():
                by_row = enumerate(value) if isinstance(value, list) else [(0, value)]
                found.setdefault(name, {}).setdefault(part, {}).update({(seed, i): x for i, x in by_row})
            print(f"{track}, {method}, seed {seed}, {name}: done", flush=True)
    return table(f"{track}, {method}", found)


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.vla_planted", argv, {"": Run})[""]
    pairs = [(track, method) for track in run.track for method in run.method if method in TRACKS[track].decoders]
    checked("method", ",".join(run.method), len(pairs) > 0, f"{', '.join(run.track)} has none of them")
    figures = [row for track, method in pairs for row in measured(run, track, method)]
    data = (
        f"Meta-World {', '.join(run.track)}: {run.frames} frames of demonstrations per training, of few5 and few10 those not "
        f"learned; {run.rounds} rounds, after half of them {run.share:.0%} of the committed numbers replaced by others at "
        f"least {run.off:g} away; right within {NEAR:g} of the run without; intervals of 95 % by bootstrap"
    )
    folder = FOLDER if run.save else Path(run.out) / "results"
    record("vla_planted", figures, data=data, seeds=list(run.seeds), folder=folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()  # of reading weights
    sys.exit(guarded(main))
