"""LeRobot's ACT and Diffusion Policy as outer peers of `benchmarks.vla`: the same demonstrations, processor seconds, seeds and
episodes, in the same folder, whose table then has them beside the others.

    MUJOCO_GL=osmesa python -m benchmarks.vla_peers --track easy10,hard10 --seeds 0,1,2 --seconds 200
    python -m benchmarks.vla --track easy10,hard10 --seconds 200 --part table

LeRobot asks for older packages than ours, so take an environment of its own, into which ours are linked by a .pth file, and
there, where our torch is one for the CPU:

    pip install --no-deps lerobot==0.4.4 torchvision==0.28.0 av==15.1.0 termcolor jsonlines toml pyserial cachebox==5.2.3
    pip install --no-deps draccus==0.10.0 mergedeep pyyaml-include==1.4.1 typing-inspect deepdiff==9.1.0 orderly-set
    pip install metaworld==3.1.1 diffusers

LeRobot gives their networks, losses and optimisers; rows come from memory, as its data sets would take longer than the
networks. Their budget is spent in steps of 64 rows, at a learning rate that suits as few steps.
"""

# ruff: noqa: E402 (what transformers finds of torchvision must be mended before anything imports it)
from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

FOUND = importlib.util.find_spec("torchvision")
for where in (FOUND.submodule_search_locations or ()) if FOUND else ():
    try:
        torch.ops.load_library(f"{where}/_C.so")
    except OSError:  # of CUDA, beside a torch for the CPU: its Python code describes two operators that are not there
        LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np
from torch import Tensor, nn

from benchmarks import vla
from benchmarks.vla_peers_lerobot import ABOUT, RECIPES, Peer, load, network, numbers, observed, untrained
from benchmarks.vla_tracks import PEERED, PEERS
from discdiff.cli import guarded, parse
from discdiff.config import read_json
from tasks.vla import collect
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.metaworld import Environment, make

BATCH = 64
PARTS = ("all", "data", "train", "evaluate")
OTHERS = ("development", "batch_size", "learning_rate")  # of the folder's other trainings, which peers do not depend on


@dataclass(frozen=True)
class Run(vla.Run):
    """Those of `benchmarks.vla` that a peer depends on."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"part": PARTS, "track": PEERED, "methods": tuple(PEERS)}

    track: tuple[str, ...] = PEERED
    methods: tuple[str, ...] = tuple(PEERS)
    development: int = field(init=False, default=vla.Run.development)
    batch_size: int = field(init=False, default=vla.Run.batch_size)
    learning_rate: float = field(init=False, default=vla.Run.learning_rate)
    save: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        note = Path(self.out) / "run.json"
        held = read_json(note) if note.is_file() else {}
        for name in OTHERS:
            object.__setattr__(self, name, held.get(name, getattr(self, name)))


class Bench(vla.Bench):
    """As that of `benchmarks.vla`, of peers. network: by method, number of sentences and dimensions of an action."""

    last, pace = ABOUT, "pace_peers.json"

    def __init__(
        self, run: Run, make: Callable[[str], Environment] = make, collect: Callable[..., Any] = collect.record,
        network: Callable[[str, int, int], nn.Module] = network,
    ) -> None:  # fmt: skip
        super().__init__(run, make, collect)
        self.network = network

    def _fit(self, track: str, method: str, seed: int, shown: list[Episode], steps: int, folder: Path) -> bool:
        peer = untrained(method, shown, seed, self.network)
        fit(peer, Rows(peer, shown), steps, seed)
        peer.save(folder)
        return True

    def _load(self, folder: Path) -> Peer:
        return load(folder, self.network)

    def _timed(self, track: str, method: str, shown: list[Episode]) -> Callable[[], list[float]]:
        peer = untrained(method, shown, 0, self.network)
        rows = Rows(peer, shown)
        return lambda: fit(peer, rows, vla.PACED, 0)


class Rows:
    """Demonstrations as LeRobot's data set would give them, all in memory."""

    def __init__(self, peer: Peer, shown: list[Episode]) -> None:
        recipe = RECIPES[peer.method]
        cut = windows(shown, recipe.horizon - recipe.before)
        actions, padded = cut.actions, cut.action_is_pad
        if recipe.before:  # the action of the step before, for which an episode's first action stands at its first step
            first = (cut.frame == 0)[:, None]
            ahead = torch.where(first, actions[:, 0], actions[:, 0].roll(1, 0))
            actions, padded = torch.cat([ahead[:, None], actions], 1), torch.cat([first, padded], 1)
        middle, spread = numbers(peer.units)
        self.told = observed(peer.method, peer.scale(cut.state), peer.lexicon(cut.task))
        self.told |= {"action": (actions - middle) / spread, "action_is_pad": padded}
        length = torch.tensor([len(each) for each in shown])[cut.episode]
        drop = getattr(peer.model.config, "drop_n_last_frames", 0)  # of each episode, as in LeRobot's own training
        self.used = (cut.frame < length - drop).nonzero()[:, 0]

    def __len__(self) -> int:
        return len(self.used)

    def batch(self, which: Tensor) -> dict[str, Tensor]:
        """Some of those that are trained on."""
        return {name: x[self.used[which]] for name, x in self.told.items()}


def fit(peer: Peer, rows: Rows, steps: int, seed: int) -> list[float]:
    """Train by LeRobot's optimiser and clipping, with the learning rate's course of all other methods; the processor time after
    each step.
    """
    model, drawn, at = peer.model.train(), torch.Generator().manual_seed(seed), []
    preset = model.config.get_optimizer_preset()
    optimiser = preset.build(model.get_optim_params())
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    order = torch.zeros(0, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # noise, times and latents are drawn from the global generator
        for _ in range(steps):
            while len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(rows), generator=drawn)])
            loss, _ = model(rows.batch(order[:BATCH]))
            order = order[BATCH:]
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), preset.grad_clip_norm)
            optimiser.step()
            optimiser.zero_grad()
            rate.step()
            at.append(time.process_time())
    model.eval()
    return at


def _rate(step: int, steps: int) -> float:
    """Linear to 1, then half a cosine to 0."""
    warm = min(50, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 + 0.5 * float(np.cos(np.pi * (step - warm) / (steps - warm)))


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.vla_peers", argv, {"": Run})[""]
    bench = Bench(run)
    for track in run.track:
        bench.track(track)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
