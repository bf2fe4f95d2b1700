"""Settings of the image task; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked
from tasks.common.sections import codec
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
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "give a share in (0, 1)")
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
