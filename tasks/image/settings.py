"""Settings of the image task; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked
from tasks.common.methods import METHODS
from tasks.common.sections import codec, training
from tokenizers_vq.image import ImageTokenizerConfig

DAMAGED = ("stop", "skip")


@dataclass(frozen=True)
class Pictures:
    """What is learned: a folder of pictures, an idx file (also .gz), a parquet file, or `hf:NAME` of `datasets`.

    valid: another source to evaluate on; without it the last `valid_last` pictures are kept back, or where that is 0 every
    k-th, a share of `valid_fraction`. image_field: column of parquet files and `datasets`; dataset_config, split: for `hf:`.
    size: pictures are cut to a square and scaled to it, 0 for as they are, all of one size. damaged: "stop" at pictures
    that cannot be read, or "skip" them.
    """

    source: str = ""
    valid: str | None = None
    valid_fraction: float = 0.05
    valid_last: int = 0
    image_field: str = "image"
    dataset_config: str | None = None
    split: str = "train"
    size: int = 0
    damaged: str = "stop"

    def __post_init__(self) -> None:
        checked("source", self.source, self.source != "", "give a folder, an idx or parquet file, or hf:NAME")
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction <= 0.5, "give a share in (0, 0.5]")
        checked("valid_last", self.valid_last, self.valid_last >= 0, "a number of pictures, 0 for a share of them")
        checked("size", self.size, self.size >= 0, "pixels per side, or 0 for as they are")
        checked("damaged", self.damaged, self.damaged in DAMAGED, f"choose from {', '.join(DAMAGED)}")


Network = codec("Network", ImageTokenizerConfig, ("modality", "rate", "perceptual"))  # a distance cannot be typed


@dataclass(frozen=True)
class Output:
    """Where everything goes: task.json, model/, checkpoints beside it, metrics.json and report.html."""

    out: str = "runs/image"


@dataclass(frozen=True)
class Refit:
    """codes: of the new codebook, 0 for as many as before; points: latents that k-means sees; rounds: of Lloyd."""

    codes: int = 0
    points: int = 1 << 17
    rounds: int = 25

    def __post_init__(self) -> None:
        checked("codes", self.codes, self.codes >= 0, "codes of the new codebook, 0 for as many as before")
        checked("points", self.points, self.points >= 1, "latents that k-means sees")
        checked("rounds", self.rounds, self.rounds >= 1, "at least one round of Lloyd")


@dataclass(frozen=True)
class Generator:
    """The model of codes. tokenizer: folder that `tokenizer train` wrote; condition: what it is told of a picture, a column
    (docs/images.md) or "" for nothing; words: of a condition at most; method: vq_diffusion, vq_paper, vq_released, vq_ddm,
    maskgit or autoregressive; block: codes that are made together, each block given those before it, 0 for all of them;
    dropped: share of rows trained without their condition; auxiliary: weight of VQ-Diffusion's second loss; hidden_size,
    num_layers, num_heads, dropout: its size.
    """

    tokenizer: str = "runs/image"
    condition: str = "label"
    words: int = 16
    method: str = "vq_diffusion"
    block: int = 0
    dropped: float = 0.1
    auxiliary: float = 0.05
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checked("method", self.method, self.method in METHODS, f"choose from {', '.join(METHODS)}")
        checked("words", self.words, self.words >= 1, "at least one word")
        checked("block", self.block, self.block >= 0, "codes that are made together, 0 for all of them")
        checked("dropped", self.dropped, 0 <= self.dropped <= 1, "a share of the rows in [0, 1]")


Training = training(steps=3000, batch_size=64, learning_rate=1e-3, warmup=100, weight_decay=0.05, ema=0.998)


@dataclass(frozen=True)
class ModelOutput:
    """Where everything goes: task.json, the tokenizer, the model codes/ with its checkpoints, metrics.json, report.html."""

    out: str = "runs/pictures"


@dataclass(frozen=True)
class Request:
    """What to sample: `count` pictures of a condition. out: a folder for PNG files; report: a page that shows them made.
    Drawn anew, up to `tries` times in all, are pictures that the model itself holds for the condition, and not for one of
    `unlike`, with a probability below `surely`; or, alone, those nearer to a training picture than the share `apart` of what
    is usual for real ones that were not learned.
    """

    condition: str = ""
    count: int = 8
    surely: float = 0.0
    unlike: tuple[str, ...] = ()
    apart: float = 0.0
    tries: int = 3
    out: str = "runs/samples"
    report: str | None = None

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least 1")
        checked("surely", self.surely, 0 <= self.surely <= 1, "a probability in [0, 1]")
        both = bool(self.surely) == bool(self.unlike)
        checked("unlike", ",".join(self.unlike), both, "name the other conditions beside --surely, and with it only")
        checked("apart", self.apart, self.apart >= 0, "a share of the usual distance, 0 for any")
        checked("apart", self.apart, not (self.apart and self.surely), "one reason at a time: leave it or surely out")
        checked("tries", self.tries, self.tries >= 1, "at least 1")


@dataclass(frozen=True)
class Hole:
    """What to fill in. picture: a file, or "valid:N" for validation picture N; hole: left, top, right, bottom as shares of
    width and height, whatever it touches is made anew; condition: what is said of the picture.
    """

    picture: str = "valid:0"
    hole: tuple[float, float, float, float] = (0.5, 0.0, 1.0, 1.0)
    condition: str = ""
    count: int = 4
    out: str = "runs/filled"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hole", tuple(self.hole))
        left, top, right, bottom = self.hole
        fits = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        checked("hole", self.hole, fits, "left < right and top < bottom, shares in [0, 1]")
        checked("count", self.count, self.count >= 1, "at least 1")


@dataclass(frozen=True)
class Restoration:
    """What to restore. picture: a file, or "valid:N"; operator: of `tasks.inverse.PICTURES`, its fields as --operator.FIELD;
    noise: gaussian or poisson, as --noise.FIELD, drawn by noise_seed; measured: a picture file that is the measurement
    itself, in place of a picture that is measured. method: of `tasks.image.samplers.METHODS`, its options as --method.FIELD;
    data term as --data.FIELD, sampler as --sampler.KNOB; calibrate: by how many training pictures the data term's sigma
    learns what the tokenizer loses, 0 for the noise alone. condition: what is said of the picture; count: of restorations.
    """

    picture: str = "valid:0"
    measured: str = ""
    operator: str = "super_resolution"
    noise: str = "gaussian"
    noise_seed: int = 0
    method: str = "aps"
    calibrate: int = 0
    condition: str = ""
    count: int = 1
    out: str = "runs/restored"

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least 1")
        alone = not self.measured or self.picture == type(self).picture
        checked("picture", self.picture, alone, "a measurement is given already: leave one of the two out")
        checked("calibrate", self.calibrate, self.calibrate >= 0, "training pictures, 0 for none")


@dataclass(frozen=True)
class Guide:
    """What leads an edit beside its condition. reference: a picture file whose style the hole takes on, features as
    --style.FIELD, "" for none; method: of `tasks.image.samplers.METHODS`, "" for aps with a reference and prior without.
    """

    reference: str = ""
    method: str = ""


@dataclass(frozen=True)
class Judged:
    """How much to evaluate: pictures drawn, steps of the judge's training, its seed."""

    samples: int = 1000
    judge_steps: int = 1500
    judge_seed: int = 0

    def __post_init__(self) -> None:
        checked("samples", self.samples, self.samples >= 6, "at least 6, that each has five neighbours")
        checked("judge_steps", self.judge_steps, self.judge_steps >= 1, "at least 1")


@dataclass(frozen=True)
class Nothing:
    """No settings."""
