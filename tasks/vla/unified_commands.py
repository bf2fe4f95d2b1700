"""Train and try a policy that foresees (Unified Diffusion VLA), from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from discdiff.cli import parse
from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.report.pictures import write_atomically
from discdiff.training import TrainingSettings
from tasks.common.sections import codec, training
from tasks.vla import judged, metaworld, unified_page
from tasks.vla.commands import RECIPE, episodes_of
from tasks.vla.design import Policy, told_state
from tasks.vla.learning import Loss
from tasks.vla.lerobot import open_dataset
from tasks.vla.policy import ActionPolicy
from tasks.vla.policy_settings import SHOWN, WORLD, Data, Trial
from tasks.vla.unified import PICTURES, UnifiedPolicy
from tasks.vla.unified_design import Unified
from tasks.vla.unified_learning import VISION, codes_of, fit, fit_world, joint_objective, untrained
from tasks.vla.unified_pictures import CODEC, blank, errors, fit_pictures, foreseen, seen_by
from tokenizers_vq.image import ImageTokenizerConfig

FIRST = "world"  # folder of the first stage, and the name of its log
Codec: Any = codec("Codec", ImageTokenizerConfig, ("modality", "rate", "perceptual", "channels"), **CODEC)
Last = training(steps=2000, batch_size=16, optimizer="muon", learning_rate=2e-3, warmup=50, save_every=500)


@dataclass(frozen=True)
class Stages:
    """What comes before actions are trained, which themselves go by `TrainingSettings`. picture_steps, picture_batch,
    picture_rate: of the pictures' tokenizer, steps, pictures of a step and learning rate of AdamW; world_steps: of the world,
    all else of which is as of the actions; vision: weight of the future picture's loss beside the actions', per code; held:
    demonstrations that are kept back, at even distances, by which `evaluate` measures pictures.
    """

    picture_steps: int = 2000
    picture_batch: int = 8
    picture_rate: float = 3e-3
    world_steps: int = 1000
    vision: float = VISION
    held: int = 5

    def __post_init__(self) -> None:
        for name in ("picture_steps", "picture_batch", "picture_rate", "world_steps", "vision"):
            checked(name, getattr(self, name), 0 < getattr(self, name) < float("inf"), "above 0")
        checked("held", self.held, self.held >= 1, "at least 1 demonstration to measure by")

    def check(self, unified: Unified) -> None:
        """Raise ValueError for a stage that a policy does not have and that is not as it is by default."""
        told, usual = (self.world_steps, self.vision), (Stages.world_steps, Stages.vision)
        plain = unified.foresees or told == usual
        checked("world_steps, vision", told, plain, f"actions alone have no world to learn: leave them at {usual}")

    def drawing(self, usual: TrainingSettings) -> TrainingSettings:
        """Of the pictures' tokenizer, where that of actions is usual."""
        size, rate = self.picture_batch, self.picture_rate
        return replace(usual, steps=self.picture_steps, batch_size=size, learning_rate=rate, optimizer="adamw")


@dataclass(frozen=True)
class UnifiedOutput:
    """Where everything goes: train.json, unified.json, pictures/, world/, actions/, metrics.json and report.html; checkpoints
    beside each.
    """

    out: str = "runs/unified"


@dataclass(frozen=True)
class Foresight:
    """decoding: "joint", "separate" or "action", "" for what it was trained for."""

    decoding: str = ""


def train(prog: str, argv: Sequence[str]) -> None:
    """Train the tokenizer of pictures, the world and the actions, one after the other; an interrupted run goes on where it was
    when the command is repeated.
    """
    sections = {"data": Data, "unified": Unified, "policy": Policy, "loss": Loss, "codec": Codec, "stages": Stages}
    chosen = parse(prog, argv, {**sections, "training": Last, "output": UnifiedOutput})
    data, stages, settings = chosen["data"], chosen["stages"], chosen["training"]
    folder, config = Path(chosen["output"].out), asdict(chosen["codec"])
    stages.check(chosen["unified"])
    text = json.dumps({name: to_dict(chosen[name]) for name in sections}, indent=2) + "\n"
    log = folder.with_name(f"{folder.name}_training")
    if log.is_dir() or (folder.is_dir() and any(part.is_dir() for part in folder.iterdir())):
        same = (folder / RECIPE).is_file() and (folder / RECIPE).read_text(encoding="utf-8") == text
        checked("out", str(folder), same, "it holds a policy of other settings or data: give another folder")
    kept = held(data, stages.held)
    made = episodes_of(data, chosen["unified"].width)
    shown = [each for i, each in enumerate(made) if i not in kept]
    policy = untrained(chosen["unified"], shown, blank(settings.seed, **config), settings.seed, chosen["policy"])
    joint_objective(policy, chosen["loss"])  # what would be refused after hours is said now, also of what is kept back
    for each in (made[i] for i in kept):
        policy.rows(told_state(each, policy.told.settings)[:1], [each.task], seen_by(each)[:1])
    name = WORLD if data.data == WORLD else Path(data.data).resolve().name
    statistics = {name: policy.told.tokenizer.normaliser.statistics}
    policy = replace(policy, told=replace(policy.told, statistics=statistics))
    told = f"{policy.told.lexicon.size:,} words, {sum(p.numel() for p in policy.model.parameters()):,} parameters"
    print(f"{len(shown):,} episodes of {sum(map(len, shown)):,} frames, {told}", flush=True)
    write_atomically(folder / RECIPE, text.encode("utf-8"))
    codec = fit_pictures(shown, stages.drawing(settings), folder / PICTURES, "auto", **config)
    policy = replace(policy, pictures=codec)
    codes = codes_of(policy, shown)
    print(f"tokenizer of pictures: {folder / PICTURES}", flush=True)
    if policy.settings.foresees:
        first = replace(settings, steps=stages.world_steps)
        policy = fit_world(policy, shown, first, folder / FIRST, "auto", codes)
        print(f"world: {folder / FIRST}", flush=True)
    fit(policy, shown, settings, folder, chosen["loss"], "auto", codes, stages.vision)
    print(f"trained for {policy.settings.decoding} decoding: {folder}")


def held(data: Data, count: int) -> list[int]:
    """Numbers of the demonstrations that are kept back. Raises ValueError where none would be left to learn."""
    there = data.episodes or (
        SHOWN if data.data == WORLD else len(open_dataset(data.data, data.state, data.action, ()))
    )
    checked("held", count, count < there, f"there are {there} demonstrations, and one at least is to be learned")
    return ((np.arange(count) + 0.5) * there / count).astype(int).tolist()


def opened(folder: Path) -> tuple[ActionPolicy, UnifiedPolicy, Data, Stages]:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    policy = UnifiedPolicy.from_pretrained(folder)
    known = (folder / RECIPE).is_file()
    checked("folder", str(folder), known, f"it has no {RECIPE}, which says what the policy was trained on")
    stored = read_json(folder / RECIPE)
    data, stages = (from_dict(stored[name], {"Data": Data, "Stages": Stages}) for name in ("data", "stages"))
    return policy.told, replace(policy, pictures=policy.pictures.to(policy.model.device)), data, stages


def evaluate(prog: str, argv: Sequence[str], make: Any = metaworld.make) -> None:
    """Success, length and calls of episodes, the time of a chunk, and errors of foreseen pictures, into metrics.json and
    report.html.
    """
    sections = {"trial": Trial, "foresight": Foresight}
    folder, chosen, (_, policy, data, stages), how = judged.given(prog, argv, sections, opened)
    wanted, way = chosen["trial"], policy.decoded_by(chosen["foresight"].decoding)
    policy = replace(policy, told=replace(policy.told, decoding=how))
    told, size = policy.told, policy.settings.width
    shown = episodes_of(data, size, held(data, stages.held))

    def predict(*seen: Any, **more: Any) -> np.ndarray:
        return policy.predict(*seen, **more, decoding=way).actions

    act = judged.asking(predict, len(told.scale.middle))
    found = judged.rollouts(act, wanted, data, size, told.tokenizer.config.dim, make)
    one = (told_state(shown[0], told.settings)[0], shown[0].task, seen_by(shown[0])[0])
    looked = foreseen(policy, shown, seed=wanted.seed, decoding=way)
    more = {"ms_per_chunk": judged.latency(lambda: predict(*one))}
    if policy.settings.foresees:
        more |= {f"error_{name}": value for name, value in errors(policy, looked)._asdict().items()}
    said = {"decoding": asdict(how), "foresight": {"decoding": way}, "trial": asdict(wanted)}
    figures, by_task = judged.stored(folder, found, more, **said)
    tiles: dict[str, Any] = {"success": f"{figures['success']:.1%}"}
    tiles |= {"95 % interval": f"{figures['success_low']:.1%} to {figures['success_high']:.1%}"}
    tiles |= {"steps of an episode": figures["length"]} | {name.replace("_", " "): x for name, x in more.items()}
    logs = {"world": folder / f"{FIRST}_training", "actions": folder.with_name(f"{folder.name}_training")}
    logs = {name: log / "metrics.jsonl" for name, log in logs.items()}
    page = folder / "report.html"
    print(unified_page.write(page, policy, way, tiles, looked, shown[0], by_task, found, logs))
