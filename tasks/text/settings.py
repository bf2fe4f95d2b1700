"""Settings of the text task; the command line derives its flags from these fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from discdiff.clocks import Blocks
from discdiff.config import checked
from discdiff.processes import Absorbing, Interpolating, MaskOrReplace, Process, Uniform
from discdiff.sampling import Grid, Sampler, preset, sampler
from discdiff.schedules import SCHEDULES
from tasks.text.sources import EMBEDDED, HUB, Source

PROCESSES = ("absorbing", "uniform", "mask_or_replace", "interpolating")
ROWS = ("packed", "padded")


@dataclass(frozen=True)
class Corpus:
    """What is learned: a file, JSONL, CSV, `hf:NAME` of `datasets`, or English out of the running Python ("embedded").

    document: of a text file, the whole "file", a "line", or a block between "blank" lines. text_field: the key or column
    that holds the text. dataset_config, split: for `hf:`. valid, valid_split: another source, or another split of it, to
    evaluate on; without them the share `valid_fraction` is kept back. tokenizer: characters, bytes, bpe (with vocab_size),
    or a Hugging Face name or folder. rows: "packed" windows of `length` tokens over the joined documents, with `boundaries`
    that attention does not cross, or "padded", one document per row. cache: folder of the token files.
    """

    source: str = EMBEDDED
    valid: str | None = None
    valid_split: str | None = None
    valid_fraction: float = 0.05
    document: str | None = None
    text_field: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    encoding: str = "utf-8"
    tokenizer: str = "characters"
    vocab_size: int | None = None
    rows: str = "packed"
    boundaries: bool = False
    length: int = 128
    cache: str = "runs/cache"

    def __post_init__(self) -> None:
        checked("rows", self.rows, self.rows in ROWS, f"choose from {', '.join(ROWS)}")
        checked("boundaries", self.boundaries, not self.boundaries or self.rows == "packed", "it goes with packed rows")
        checked("length", self.length, self.length >= 4, "a row has at least 4 tokens")
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "give a share in (0, 1)")
        hub = (self.valid or self.source).startswith(HUB)
        checked("valid_split", self.valid_split, self.valid_split is None or hub, f"it goes with a source {HUB}NAME")

    @property
    def ends(self) -> bool:
        """Whether a row sampled after this corpus ends at its first end token; else a window may hold several documents."""
        return self.rows == "padded" or self.boundaries

    @property
    def train_source(self) -> Source:
        """Where the training text comes from."""
        return self._source(self.source, self.split)

    @property
    def valid_source(self) -> Source | None:
        """Where the validation text comes from; None where a share of the training source is kept back."""
        if self.valid is None and self.valid_split is None:
            return None
        return self._source(self.valid or self.source, self.valid_split)

    def _source(self, path: str, split: str | None) -> Source:
        options = {"document": self.document, "field": self.text_field, "encoding": self.encoding}
        return Source(path, name=self.dataset_config, split=split, **options)  # type: ignore[arg-type]


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
        known = ", ".join(SCHEDULES)
        checked("noise_schedule", self.noise_schedule, self.noise_schedule in SCHEDULES, f"choose from {known}")
        fixed = self.process in ("mask_or_replace", "interpolating") and self.noise_schedule != "linear"
        checked("noise_schedule", self.noise_schedule, not fixed, f"{self.process} has its own: leave it out")

    def build(self) -> Process:
        """The process."""
        if self.process in ("absorbing", "uniform"):
            kind = Absorbing if self.process == "absorbing" else Uniform
            return kind(SCHEDULES[self.noise_schedule]())
        return MaskOrReplace() if self.process == "mask_or_replace" else Interpolating()


@dataclass(frozen=True)
class Output:
    """Where everything goes: task.json, tokenizer/, model/, twin/, checkpoints beside them, and metrics.json."""

    out: str = "runs/text"


@dataclass(frozen=True)
class Drawing:
    """How to sample: a name of `discdiff.PRESETS`, its knobs given as --sampler.KNOB (docs/samplers.md), and a seed.

    grid: name of a schedule that `distill` saved, in place of equal steps.
    """

    sampler: str = "ancestral"
    sample_seed: int = 0
    grid: str = ""

    def __post_init__(self) -> None:
        preset(self.sampler)


class Chosen(NamedTuple):
    """A sampler by its name and knobs, and the seed of its run; parts are knobs that are no plain data, such as an energy."""

    name: str = "ancestral"
    knobs: Mapping[str, Any] = MappingProxyType({})
    seed: int = 0
    grid: Grid | None = None
    parts: Mapping[str, Any] = MappingProxyType({})

    def build(self, process: Process, block: int = 0) -> Sampler:
        """The sampler of a model with that process, one block after another where its layout has blocks.

        Raises ValueError where the sampler needs another process.
        """
        made = sampler(self.name, process, self.grid, **{**self.knobs, **self.parts})
        return replace(made, clock=Blocks(block)) if block and made.clock is None else made

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        grid = None if self.grid is None else json.loads(self.grid.to_json())
        return {"name": self.name, "knobs": dict(self.knobs), "seed": self.seed, "grid": grid}


@dataclass(frozen=True)
class Request:
    """What to sample. infill: a text in which every run of `hole` characters is filled, one token per character; prompt: the
    beginning of the text, or what the user says to a model tuned on conversations; save: a file of JSON lines; report: an
    HTML page that plays the first sample.
    """

    count: int = 8
    infill: str | None = None
    prompt: str | None = None
    hole: str = "_"
    save: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least one sample")
        checked("hole", self.hole, len(self.hole) == 1, "one character")
        checked("prompt", self.prompt, self.prompt is None or self.infill is None, "it does not go with infill")


@dataclass(frozen=True)
class Judged:
    """How much to evaluate: rows of the validation set (0: all), noise draws per row, samples judged."""

    eval_rows: int = 1000
    eval_draws_per_row: int = 4
    samples: int = 64
    eval_seed: int = 0

    def __post_init__(self) -> None:
        checked("eval_rows", self.eval_rows, self.eval_rows >= 0, "0 (all) or more")
        checked("eval_draws_per_row", self.eval_draws_per_row, self.eval_draws_per_row >= 1, "at least 1")
        checked("samples", self.samples, self.samples >= 1, "at least 1")
