"""Collect demonstrations and train a policy on them, from the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from discdiff.cli import parse
from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.report.pictures import write_atomically
from tasks.vla import collect as recording
from tasks.vla import metaworld, trial
from tasks.vla.adapters.pictures import square
from tasks.vla.design import Policy
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss, fit, untrained
from tasks.vla.lerobot import open_dataset, write
from tasks.vla.lerobot.writing import free
from tasks.vla.metaworld_ways import ways_of
from tasks.vla.policy import ActionPolicy
from tasks.vla.policy_settings import SENTENCES, SHOWN, WORLD, Collection, Data, PolicyOutput, Training, named

RECIPE, COLLECTED = "train.json", "collect.json"


def collect(prog: str, argv: Sequence[str], make: Any = metaworld.make, expert: Any = metaworld.expert) -> None:
    """Record Meta-World's experts as a LeRobot v3 data set. An interrupted run goes on when the command is repeated: until the
    data set is whole, its episodes are kept in OUT_parts.
    """
    wanted = parse(prog, argv, {"collection": Collection})["collection"]
    tasks = named(wanted.tasks)
    for task in tasks:  # what is wrong with the last one is said before the first one is recorded
        SENTENCES[wanted.sentences](task, 0)
        for way in wanted.ways:
            checked("ways", way, way in ways_of(task), f"{task} is done in {ways_of(task)}")
    folder = free(wanted.out)
    parts = _begun(folder, dataclasses.replace(wanted, tasks=tasks, out=""))

    def recorded(say: Callable[[str], object]) -> Iterator[Episode]:
        for task in tasks:
            yield from recording.record(
                task, wanted.episodes, seed=wanted.seed, noise=wanted.noise, pictures=wanted.pictures, size=wanted.size,
                ways=wanted.ways or None, instruction=SENTENCES[wanted.sentences], cap=wanted.cap, parts=parts / task,
                make=make, expert=expert, say=say,
            )  # fmt: skip

    for _ in recorded(lambda line: print(line, flush=True)):
        pass
    whole, names = parts / "whole", {"action": ["x", "y", "z", "gripper"]}
    shutil.rmtree(whole, ignore_errors=True)
    write(whole, recorded(lambda line: None), metaworld.RATE, robot_type="sawyer", names=names)
    os.replace(whole, folder)
    shutil.rmtree(parts)
    print(folder)


def _begun(folder: Path, recipe: Collection) -> Path:
    """The folder of the parts of a recording, which are of this recipe or not there yet. Raises ValueError for others."""
    parts = folder.with_name(f"{folder.name}_parts")
    text = json.dumps(to_dict(recipe), indent=2) + "\n"
    if parts.is_dir() and any(parts.iterdir()):
        same = (parts / COLLECTED).is_file() and (parts / COLLECTED).read_text(encoding="utf-8") == text
        remedy = "it holds a recording of other settings: repeat those, remove it, or give another folder"
        checked("parts", str(parts), same, remedy)
        print(f"going on with {sum(1 for _ in parts.glob('*/*.npz'))} attempts in {parts}", flush=True)
    write_atomically(parts / COLLECTED, text.encode("utf-8"))
    return parts


def episodes_of(data: Data, picture: int, which: Sequence[int] | None = None) -> list[Episode]:
    """The episodes that a policy is trained on, or some of them; picture: width of the pictures it is shown, 0 for none.

    Raises ValueError for more episodes than there are, and for several cameras of which none is chosen.
    """
    if data.data == WORLD:
        made = trial.demonstrated(data.episodes or SHOWN, data.data_seed, picture)
        return made if which is None else [_one(made, i) for i in which]
    cameras = () if not picture else (data.camera,) if data.camera else None
    opened = open_dataset(data.data, data.state, data.action, cameras)
    there, few = list(opened.cameras), not picture or len(opened.cameras) == 1
    checked("camera", data.camera, few, f"choose one of {there}" if there else "the data set has no pictures")
    checked("episodes", data.episodes, data.episodes <= len(opened), f"there are {len(opened)}")
    some = range(data.episodes or len(opened)) if which is None else which
    return [sized(each, picture) for each in opened.episodes(some, pictures=picture > 0)]


def _one(episodes: list[Episode], index: int) -> Episode:
    checked("episode", index, 0 <= index < len(episodes), f"there are {len(episodes)}, counted from 0")
    return episodes[index]


def sized(episode: Episode, size: int) -> Episode:
    """An episode whose pictures are the middle squares, `size` pixels wide."""
    pictures = {name: np.stack([square(x, size) for x in seen]) for name, seen in episode.pictures.items()}
    return dataclasses.replace(episode, pictures=pictures)


def train(prog: str, argv: Sequence[str]) -> None:
    """Train a policy on demonstrations. An interrupted run goes on when the command is repeated."""
    sections = {"data": Data, "policy": Policy, "loss": Loss, "training": Training, "output": PolicyOutput}
    chosen = parse(prog, argv, sections)
    data, wanted, loss, folder = chosen["data"], chosen["policy"], chosen["loss"], Path(chosen["output"].out)
    loss.check(wanted.method)
    parts = {"data": data, "policy": wanted, "loss": loss}
    text = json.dumps({name: to_dict(part) for name, part in parts.items()}, indent=2) + "\n"
    if (folder / "model").is_dir() or folder.with_name(f"{folder.name}_training").is_dir():
        same = (folder / RECIPE).is_file() and (folder / RECIPE).read_text(encoding="utf-8") == text
        checked("out", str(folder), same, "it holds a policy of other settings or data: give another folder")
    shown = episodes_of(data, wanted.picture)
    policy = untrained(wanted, shown, chosen["training"].seed)
    name = WORLD if data.data == WORLD else Path(data.data).resolve().name
    policy = dataclasses.replace(policy, statistics={name: policy.tokenizer.normaliser.statistics})
    told = f"{policy.lexicon.size:,} words, {sum(p.numel() for p in policy.model.parameters()):,} parameters"
    print(f"{len(shown):,} episodes of {sum(map(len, shown)):,} frames, {told}", flush=True)
    write_atomically(folder / RECIPE, text.encode("utf-8"))
    fit(policy, shown, chosen["training"], folder, loss, resume="auto")
    print(f"trained by {wanted.method}: {folder}")


def opened(folder: Path) -> tuple[ActionPolicy, Data]:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    policy = ActionPolicy.from_pretrained(folder)
    known = (folder / RECIPE).is_file()
    checked("folder", str(folder), known, f"it has no {RECIPE}, which says what the policy was trained on")
    kinds = {"Data": Data, "Policy": Policy, "Loss": Loss}
    return policy, from_dict(read_json(folder / RECIPE), kinds)["data"]
