"""Settings of the text task; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked
from discdiff.processes import Absorbing, Interpolating, MaskOrReplace, Process, Uniform
from discdiff.schedules import SCHEDULES
from tasks.text.sources import EMBEDDED, Source

PROCESSES = ("absorbing", "uniform", "mask_or_replace", "interpolating")
ROWS = ("packed", "padded")


@dataclass(frozen=True)
class Corpus:
    """What is learned: a file, JSONL, CSV, `hf:NAME`, or English out of the running Python ("embedded").

    rows: "packed" windows of the joined documents, or "padded", one document per row. valid: another source to evaluate
    on; without it the share `valid_fraction` is kept back. tokenizer: characters, bytes, bpe (with vocab_size) or a
    Hugging Face name or folder. cache: folder of the token files.
    """

    source: str = EMBEDDED
    valid: str | None = None
    valid_fraction: float = 0.05
    document: str | None = None
    text_field: str | None = None
    encoding: str = "utf-8"
    tokenizer: str = "characters"
    vocab_size: int | None = None
    rows: str = "packed"
    boundaries: bool = False
    length: int = 128
    cache: str = "runs/cache"

    def __post_init__(self) -> None:
        checked("rows", self.rows, self.rows in ROWS, f"choose from {', '.join(ROWS)}")
        checked("length", self.length, self.length >= 2, "a row has at least 2 tokens")
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "give a share in (0, 1)")

    def of(self, path: str) -> Source:
        """A source with these options."""
        return Source(path, document=self.document, field=self.text_field, encoding=self.encoding)


@dataclass(frozen=True)
class Network:
    """The transformer's size."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_ratio: float = 8 / 3
    dropout: float = 0.0


@dataclass(frozen=True)
class Method:
    """The diffusion. process: absorbing, uniform, mask_or_replace or interpolating; noise_schedule: a name of
    `discdiff.schedules` for the first two; twin: also train the same network autoregressively with the same budget.
    """

    process: str = "absorbing"
    noise_schedule: str = "linear"
    twin: bool = True

    def __post_init__(self) -> None:
        checked("process", self.process, self.process in PROCESSES, f"choose from {', '.join(PROCESSES)}")
        checked("noise_schedule", self.noise_schedule, self.noise_schedule in SCHEDULES, f"choose from {list(SCHEDULES)}")
        fixed = self.process in ("mask_or_replace", "interpolating")
        checked("noise_schedule", self.noise_schedule, not fixed or self.noise_schedule == "linear",
                f"{self.process} has a schedule of its own: leave it out")  # fmt: skip

    def build(self) -> Process:
        """The process."""
        schedule = SCHEDULES[self.noise_schedule]()
        return {
            "absorbing": lambda: Absorbing(schedule),
            "uniform": lambda: Uniform(schedule),
            "mask_or_replace": MaskOrReplace,
            "interpolating": Interpolating,
        }[self.process]()


@dataclass(frozen=True)
class Output:
    """Where everything goes: model/, twin/, training logs and metrics.json."""

    out: str = "runs/text"


@dataclass(frozen=True)
class Sampler:
    """How to sample. order: "ancestral", "first_hitting", or an order of commits: random, left_to_right, confidence,
    margin, entropy, candidate. steps: 0 means one per position. infill: a text with holes of `hole` characters.
    """

    count: int = 8
    steps: int = 0
    order: str = "ancestral"
    temperature: float = 1.0
    top_k: int = 0
    nucleus: float = 1.0
    infill: str | None = None
    hole: str = "_"
    sample_seed: int = 0
    save: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least one sample")
        checked("steps", self.steps, self.steps >= 0, "0 (one per position) or more")
        checked("hole", self.hole, len(self.hole) == 1, "one character")


@dataclass(frozen=True)
class Judged:
    """How much to evaluate: rows of the validation set (0: all), noise draws per row, samples judged."""

    eval_rows: int = 1000
    eval_draws_per_row: int = 4
    samples: int = 64
    eval_seed: int = 0
