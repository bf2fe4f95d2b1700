"""Settings of the action task; the command line derives its flags from these fields."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass
from typing import Any

from discdiff.config import checked
from tokenizers_vq.action.base import ActionTokenizer, ActionTokenizerConfig
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.action.chunks import ChunkTokenizer
from tokenizers_vq.action.dct import DCTBins
from tokenizers_vq.action.fast import Fast
from tokenizers_vq.config import TokenizerConfig

EMBEDDED = "embedded"
DAMAGED = ("stop", "skip")
KINDS: dict[str, type[ActionTokenizer]] = {"bins": ActionBins, "dct": DCTBins, "fast": Fast, "chunks": ChunkTokenizer}
FOUND = {"statistics", "dim", "merges"}  # in the data


@dataclass(frozen=True)
class Actions:
    """What is tokenised: an npz or parquet file, a folder of them, or "embedded", `episodes` of a small world's expert.

    A file holds `action_field` (frames, dim) and `episode_field` (frames,), whose frames are cut into chunks, a new one
    every `stride` steps; or chunks themselves, `action_field` (rows, chunk, dim), with a `mask` (rows, chunk) where some
    steps are no data. valid_fraction: share of the episodes, the last ones, to evaluate on. statistics: a
    dataset_statistics.json, with its `key`, instead of statistics of the actions. damaged: "stop" at files that cannot be
    read, or "skip" them.
    """

    source: str = EMBEDDED
    episodes: int = 400
    data_seed: int = 0
    stride: int = 1
    valid_fraction: float = 0.1
    action_field: str = "action"
    episode_field: str = "episode_index"
    statistics: str = ""
    key: str | None = None
    damaged: str = "stop"

    def __post_init__(self) -> None:
        checked("episodes", self.episodes, self.episodes >= 2, "at least 2, one of them to evaluate on")
        checked("stride", self.stride, self.stride >= 1, "steps from one chunk to the next, at least 1")
        checked("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "give a share in (0, 1)")
        checked("damaged", self.damaged, self.damaged in DAMAGED, f"choose from {', '.join(DAMAGED)}")


@dataclass(frozen=True)
class Output:
    """Where everything goes: task.json, model/, metrics.json and report.html."""

    out: str = "runs/actions"


def knobs(kind: str) -> Any:
    """A frozen dataclass of what a kind of tokenizer takes: its configuration's fields and the keywords of its `fit`, each
    declared there and only there.
    """
    tokenizer = KINDS[kind]
    config = tokenizer.config_class
    sources = [ActionTokenizerConfig, config, *([TokenizerConfig] if kind == "chunks" else [])]
    hints = {n: h for c in sources for n, h in inspect.get_annotations(c, eval_str=True).items() if n not in FOUND}
    hints = {n: h for n, h in hints.items() if n not in ("model_type", "modality", "rate")}
    hints = {n: h for n, h in hints.items() if n != "quantizer" or kind == "chunks"}
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    make = getattr(tokenizer, "of" if kind == "chunks" else "fit")
    named = typing.get_type_hints(make)
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name != "statistics":
            hints[name], defaults[name] = named[name], parameter.default
    fields = [(name, hint, dataclasses.field(default=defaults[name])) for name, hint in hints.items()]
    made = dataclasses.make_dataclass("Network", fields, frozen=True)
    made.__doc__ = config.__doc__
    return made
