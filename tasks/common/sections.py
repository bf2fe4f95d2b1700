"""Sections of a command line made of what is declared elsewhere: a tokenizer's configuration, the trainer's settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

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
    """How to sample: a name of `discdiff.PRESETS`, its knobs given as --sampler.KNOB (docs/samplers.md), and a seed."""

    sampler: str = "ancestral"
    sample_seed: int = 0
