"""Sections of a command line made of what is declared elsewhere: a tokenizer's configuration, the trainer's settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from discdiff.cli import parse
from discdiff.sampling import knobs
from discdiff.training import TrainingSettings
from tokenizers_vq.config import TokenizerConfig


def codec(name: str, config: type[TokenizerConfig], without: Collection[str], **changed: Any) -> Any:
    """A frozen dataclass of a configuration's own fields but those that the data decide, some with other defaults."""
    left_out = {f.name for f in dataclasses.fields(PreTrainedConfig)} | set(without)
    ours = [kind for kind in reversed(config.__mro__) if issubclass(kind, TokenizerConfig)]
    hints = {key: hint for kind in ours for key, hint in inspect.get_annotations(kind, eval_str=True).items()}
    own = [f for f in dataclasses.fields(config) if f.name not in left_out]
    fields = [(f.name, hints[f.name], dataclasses.field(default=changed.get(f.name, f.default))) for f in own]
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = config.__doc__
    return made


def training(**changed: Any) -> Any:
    """TrainingSettings with other defaults."""
    own = [f for f in dataclasses.fields(TrainingSettings) if f.name in changed]
    fields = [(f.name, f.type, dataclasses.field(default=changed[f.name])) for f in own]
    return dataclasses.make_dataclass("TrainingSettings", fields, bases=(TrainingSettings,), frozen=True)


@dataclass(frozen=True)
class Drawing:
    """How to sample: a name of `discdiff.PRESETS`, "" for the model's own, its knobs given as --sampler.KNOB
    (docs/samplers.md), and a seed.
    """

    sampler: str = ""
    sample_seed: int = 0


def sampler_of(prog: str, flags: Sequence[str], drawing: Drawing, own: str = "ancestral") -> dict[str, Any]:
    """What a command line says of sampling: the sampler, the knobs it names, the seed; own: the model's own sampler."""
    name = drawing.sampler or own
    given = parse(f"{prog} --sampler {name}", flags, {"sampler": knobs(name)}, prefix="sampler.")["sampler"]
    words = [word.split("=")[0] for word in flags if word.startswith("--sampler.")]
    said = {word.removeprefix("--sampler.").replace("-", "_") for word in words}
    chosen = {key: value for key, value in dataclasses.asdict(given).items() if key in said}
    return {"sampler": name, "seed": drawing.sample_seed, **chosen}
