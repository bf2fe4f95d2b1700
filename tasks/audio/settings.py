"""Settings of the audio task; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked
from tasks.common.sections import codec, training
from tokenizers_vq.audio import AudioTokenizerConfig

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Sounds:
    """What is learned: telephone keys that need no download ("embedded"), a folder of sound files, or a parquet file.

    Of a folder, a file's label is its own folder's name, or a row of metadata.csv (file_name, label, ...) says it; of a
    parquet file, `audio_field` holds the sounds and other columns say what they are. valid: another source to evaluate on;
    without it a share of `valid_fraction` is kept back. embedded: how many telephone keys. sample_rate:
    sounds of another are brought to it, or refused (other_rate "resample", "refuse"). seconds: longer sounds are cut.
    loudness: root mean square in decibel of full scale that all are brought to, "none" for as they are. damaged: "stop" at
    files that cannot be read, or "skip" and name them.
    """

    source: str = EMBEDDED
    valid: str | None = None
    valid_fraction: float = 0.1
    embedded: int = 400
    audio_field: str = "audio"
    sample_rate: int = 8000
    seconds: float = 0.8
    loudness: float | None = -20.0
    other_rate: str = "resample"
    damaged: str = "stop"

    def __post_init__(self) -> None:
        checked("source", self.source, self.source != "", f'give a folder, a parquet file, or "{EMBEDDED}"')
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "give a share in (0, 1)")
        checked("embedded", self.embedded, self.embedded >= 20, "at least 20")
        checked("sample_rate", self.sample_rate, self.sample_rate >= 1000, "samples per second, at least 1000")
        checked("seconds", self.seconds, 0 < self.seconds <= 3600, "above 0, at most 3600")
        quiet = self.loudness is None or -60 <= self.loudness <= 0
        checked("loudness", self.loudness, quiet, "decibel from -60 to 0, or none")
        checked(
            "other_rate", self.other_rate, self.other_rate in ("resample", "refuse"), "choose from resample, refuse"
        )
        checked("damaged", self.damaged, self.damaged in ("stop", "skip"), "choose from stop, skip")

    @property
    def samples(self) -> int:
        """Of the longest sound."""
        return max(1, round(self.seconds * self.sample_rate))


Codec = codec(  # without what the sounds decide
    "Codec", AudioTokenizerConfig, ("modality", "rate", "sample_rate"), strides=(1,), width=192, waveform=0.1, spectral=1.0
)  # fmt: skip


CodecTraining = training(steps=2500, batch_size=16, learning_rate=1e-3, warmup=50, betas=(0.9, 0.99), ema=0.995)
Training = training(steps=2500, batch_size=64, learning_rate=1e-3, warmup=100, weight_decay=0.05, ema=0.998)


@dataclass(frozen=True)
class Windows:
    """Rows a tokenizer is trained on: sounds are cut into windows of so many seconds."""

    window_seconds: float = 0.4

    def __post_init__(self) -> None:
        checked("window_seconds", self.window_seconds, self.window_seconds > 0, "above 0")


@dataclass(frozen=True)
class Generator:
    """The model of codes. tokenizer: folder that `tokenizer train` wrote; condition: columns that it is told, the first being
    what evaluation judges; depth: levels of the tokenizer that it makes, 0 for all; conditional: share of rows trained with
    one side given; hidden_size, num_layers, num_heads, dropout: its size.
    """

    tokenizer: str = "runs/audio/tokenizer"
    condition: tuple[str, ...] = ("label",)
    depth: int = 0
    conditional: float = 0.8
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "condition", tuple(self.condition))
        distinct = bool(self.condition) and len(set(self.condition)) == len(self.condition)
        checked("condition", self.condition, distinct, "at least one column, each once")
        checked("depth", self.depth, self.depth >= 0, "levels, 0 for all")
        checked("conditional", self.conditional, 0 <= self.conditional <= 1, "a share from 0 to 1")


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@dataclass(frozen=True)
class Output:
    """Where everything goes."""

    out: str = "runs/audio/model"


@dataclass(frozen=True)
class TokenizerOutput:
    """Where task.json, the tokenizer model/ with its checkpoints beside it, metrics.json and report.html go."""

    out: str = "runs/audio/tokenizer"


@dataclass(frozen=True)
class Request:
    """What to sample: `count` sounds of a label. out: a folder for WAV files; report: an HTML page that plays them."""

    label: str = ""
    count: int = 4
    out: str = "runs/audio/samples"
    report: str | None = None

    def __post_init__(self) -> None:
        checked("label", self.label, bool(self.label), "say which label to sample")
        checked("count", self.count, self.count >= 1, "at least 1")


@dataclass(frozen=True)
class Judged:
    """How much to evaluate: samples drawn per held-out sound, steps of the judge's training, noisy copies of each real sound
    that it also learns from, its seed.
    """

    copies: int = 1
    judge_steps: int = 1200
    noisy_copies: int = 3
    judge_seed: int = 0

    def __post_init__(self) -> None:
        checked("copies", self.copies, self.copies >= 1, "at least 1")
        checked("judge_steps", self.judge_steps, self.judge_steps >= 1, "at least 1")
        checked("noisy_copies", self.noisy_copies, self.noisy_copies >= 0, "0 or more")
