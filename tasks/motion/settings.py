"""Settings of the motion task; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked
from tasks.common.sections import codec
from tokenizers_vq.motion import MotionTokenizerConfig

EMBEDDED = "embedded"
CONDITIONS = ("caption", "label")


@dataclass(frozen=True)
class Motions:
    """What is learned: stick figures that walk, run, wave and turn ("embedded"), or a folder (tasks.motion.sources says which).

    embedded: how many figures. fps: rate to which motions with positions are brought. unit: metres per unit of BVH files,
    which do not say. damaged: "stop" at the first damaged file, or "skip" and count them. shortest, longest: frames; shorter
    motions are left out, longer ones cut. right, left: joints that face each other across the body, feet: joints that touch
    the ground, by name; without them they are found by their names.
    """

    source: str = EMBEDDED
    embedded: int = 480
    fps: float = 20.0
    unit: float = 0.01
    damaged: str = "stop"
    shortest: int = 16
    longest: int = 176
    right: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    feet: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked("damaged", self.damaged, self.damaged in ("stop", "skip"), "choose from stop, skip")
        checked("embedded", self.embedded, self.embedded >= 20, "at least 20 figures")
        checked("fps", self.fps, self.fps > 0, "frames per second, above 0")
        checked("unit", self.unit, self.unit > 0, "metres per unit, above 0")
        checked("shortest", self.shortest, 2 <= self.shortest <= self.longest, f"from 2 to longest = {self.longest}")


Codec = codec(
    "Codec", MotionTokenizerConfig, ("modality", "rate", "channels", "fps", "explicit", "frames"),
    width=96, code_dim=32, blocks=2, decay=0.98, quantizer_dropout=True,
)  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """Rows a tokenizer is trained on: frames of each."""

    window: int = 64

    def __post_init__(self) -> None:
        checked("window", self.window, self.window >= 8, "at least 8 frames")


@dataclass(frozen=True)
class Generator:
    """The model of codes. tokenizer: folder that `tokenizer train` wrote; condition: "caption" or "label"; words: of a
    caption that are read; conditional: share of rows trained with one side given; then the transformer's size.
    """

    tokenizer: str = "runs/motion/tokenizer"
    condition: str = "caption"
    words: int = 12
    conditional: float = 0.8
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        checked("condition", self.condition, self.condition in CONDITIONS, f"choose from {', '.join(CONDITIONS)}")
        checked("words", self.words, self.words >= 1, "at least 1")
        checked("conditional", self.conditional, 0 <= self.conditional <= 1, "a share from 0 to 1")


@dataclass(frozen=True)
class Output:
    """Where everything goes."""

    out: str = "runs/motion/model"


@dataclass(frozen=True)
class TokenizerOutput:
    """Where the tokenizer goes, its checkpoints beside it."""

    out: str = "runs/motion/tokenizer"


@dataclass(frozen=True)
class Request:
    """What to sample: motions of `frames` frames for a caption (or label), `count` of them. out: a folder for BVH files,
    samples.npz and samples.gif; report: an HTML page. rigid: bones of constant length.
    """

    caption: str = ""
    count: int = 4
    frames: int = 80
    rigid: bool = True
    out: str = "runs/motion/samples"
    report: str | None = None

    def __post_init__(self) -> None:
        checked("caption", self.caption, bool(self.caption.strip()), 'say what to sample, such as "a person walks"')
        checked("count", self.count, self.count >= 1, "at least 1")
        checked("frames", self.frames, self.frames >= 4, "at least 4")


@dataclass(frozen=True)
class Judged:
    """How much to evaluate: samples drawn per held-out motion, steps of the judge's training, its seed."""

    copies: int = 2
    judge_steps: int = 600
    judge_seed: int = 0

    def __post_init__(self) -> None:
        checked("copies", self.copies, self.copies >= 1, "at least 1")
        checked("judge_steps", self.judge_steps, self.judge_steps >= 1, "at least 1")
