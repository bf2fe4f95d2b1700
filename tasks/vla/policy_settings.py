"""Settings of robot policies; the command line derives its flags from these fields."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from discdiff.config import checked
from tasks.common.sections import training
from tasks.vla.design import Decoding
from tasks.vla.lerobot.layout import ACTION, STATE
from tasks.vla.metaworld import CAP, EASY10, HARD10, LANG, MULTIMODAL
from tasks.vla.sentences import Instruction, held_out, said, varied

WORLD, SHOWN = "world", 200  # the small world, and how many episodes of it where nothing else is said
LANGUAGE = tuple(task for tasks in LANG.values() for task in tasks)
GROUPS = {"easy10": EASY10, "hard10": HARD10, "multimodal": MULTIMODAL, "lang": LANGUAGE}
SENTENCES: dict[str, Instruction] = {"said": said, "varied": varied, "held_out": held_out}


def named(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Tasks by name, groups of `GROUPS` replaced by theirs, each once."""
    return tuple(dict.fromkeys(task for name in tasks for task in GROUPS.get(name, (name,))))


@dataclass(frozen=True)
class Collection:
    """Demonstrations of Meta-World's experts. tasks: names or the groups easy10, hard10, multimodal, lang, separated by commas;
    episodes: of each task; seed: of the first attempt; noise: of what is executed, a standard deviation; pictures: whether
    to keep what the camera sees, `size` pixels wide; ways: what an episode's way is drawn from, none for the usual ones;
    sentences: "said" for one per task, "varied" for one of several; cap: steps of an attempt; out: a new folder.
    """

    tasks: tuple[str, ...] = ("easy10",)
    episodes: int = 50
    seed: int = 1000
    noise: float = 0.1
    pictures: bool = False
    size: int = 64
    ways: tuple[str, ...] = ()
    sentences: str = "said"
    cap: int = CAP
    out: str = "runs/demonstrations"

    def __post_init__(self) -> None:
        checked("tasks", self.tasks, len(self.tasks) > 0, f"name some, or one of {', '.join(GROUPS)}")
        checked("episodes", self.episodes, self.episodes >= 1, "at least 1 of each task")
        checked("sentences", self.sentences, self.sentences in SENTENCES, f"choose from {', '.join(SENTENCES)}")


@dataclass(frozen=True)
class Data:
    """What a policy is trained on. data: a folder with a LeRobot v3 data set, or "world" for a small world's expert; episodes:
    the first so many, 0 for all (of the world 200); data_seed: of the world. Of a data set: state: features that together
    are the state; action: the feature that is done; camera: the name of one, "" for the only one.
    """

    data: str = WORLD
    episodes: int = 0
    data_seed: int = 0
    state: tuple[str, ...] = (STATE,)
    action: str = ACTION
    camera: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", tuple(self.state))
        checked("episodes", self.episodes, self.episodes >= 0, "a number of episodes, 0 for all")
        if self.data == WORLD:
            told = (self.state, self.action, self.camera)
            checked("state, action, camera", told, told == ((STATE,), ACTION, ""), "the small world has its own")
        else:
            checked("data_seed", self.data_seed, self.data_seed == 0, "it is of the small world, give --data world")


Training = training(
    steps=2000, batch_size=128, optimizer="muon", learning_rate=4e-3, warmup=50, ema=0.99, save_every=500
)  # fmt: skip


@dataclass(frozen=True)
class PolicyOutput:
    """Where everything goes: train.json, task.json, model/, tokenizer/, metrics.json and report.html; checkpoints beside it."""

    out: str = "runs/policy"


@dataclass(frozen=True)
class Trial:
    """What a policy is tried on. tasks: of Meta-World, names or groups, none for the small world where it was trained on that;
    seed: of the first episode of each task; episodes: of each task; execute: steps of a chunk that are executed before it is
    asked again, 0 for all; cap: steps after which an episode has failed, 0 for the usual 500 (small world: 80); batch:
    episodes at once; sentences: "said", "varied" or "held_out"; gifs: episodes shown in the report.
    """

    tasks: tuple[str, ...] = ()
    seed: int = 50_000
    episodes: int = 20
    execute: int = 0
    cap: int = 0
    batch: int = 20
    sentences: str = "said"
    gifs: int = 4

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            checked(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("execute", "cap", "gifs"):
            checked(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        checked("sentences", self.sentences, self.sentences in SENTENCES, f"choose from {', '.join(SENTENCES)}")


@dataclass(frozen=True)
class Server:
    """Where a policy answers. host: the address that it listens at, 0.0.0.0 for every one of this computer; port: of it."""

    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        checked("host", self.host, self.host.strip() != "", "an address, such as 127.0.0.1")
        checked("port", self.port, 1 <= self.port < 2**16, "from 1 to 65535")


@dataclass(frozen=True)
class Shot:
    """What a chunk is decoded for. state: numbers as JSON, [0.1, 0.2, ...], with an instruction and where the policy sees a
    picture the file of one; or frame: "episode:frame" of the data it was trained on. prefix: actions that are executed
    already, as JSON; seed: of the noise; unnorm_key: whose units, where the policy has statistics of several data sets.
    """

    state: str = ""
    instruction: str = ""
    picture: str = ""
    frame: str = ""
    prefix: str = ""
    seed: int = 0
    unnorm_key: str | None = None

    def __post_init__(self) -> None:
        told = (self.state != "") + (self.frame != "")
        checked("state and frame", (self.state, self.frame), told == 1, "give one of the two")
        mixed = self.frame != "" and (self.instruction or self.picture)
        checked("frame", self.frame, not mixed, "it has its own instruction and picture")


def decoding(own: Decoding) -> Any:
    """The fields of `Decoding` but the sampler's knobs, with other defaults."""
    hints = typing.get_type_hints(Decoding)
    fields = [(f.name, hints[f.name], dataclasses.field(default=getattr(own, f.name))) for f in dataclasses.fields(own)]
    made = dataclasses.make_dataclass("Decoding", [f for f in fields if f[0] != "knobs"], frozen=True)
    made.__doc__ = Decoding.__doc__
    return made
