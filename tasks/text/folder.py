"""What `python -m tasks.text train` leaves in its folder: task.json, tokenizer/, model/, and twin/ where one was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.layout import LAYOUTS, Layout
from discdiff.manifest import seal, sealed, verify
from discdiff.models import Network, load_network
from discdiff.processes import TYPES, Process
from discdiff.training import checkpoints
from tasks.text import tokenizer as tokenizers
from tasks.text.settings import Corpus

TASK = "task.json"


class Trained(NamedTuple):
    """A model with its layout and its process, None for an autoregressive twin."""

    model: Network
    layout: Layout
    process: Process | None


def save_task(folder: Path, sections: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Settings (frozen dataclasses by name, "corpus" among them) and tokenizer beside the weights; the first rank writes.

    Raises ValueError where `folder` holds checkpoints of other settings.
    """
    if not is_first():
        return
    path, settings = folder / TASK, {name: to_dict(section) for name, section in sections.items()}
    if path.exists() and checkpoints(folder / "model_training"):
        for section, before in _read(path).items():
            for name, value in before.items():
                now = settings.get(section, {}).get(name)
                if value != now and name != "cache":
                    raise ValueError(
                        f"{str(folder)!r} holds checkpoints trained with {name} {value!r}, this run has {now!r}: go on "
                        "with the same, or choose another --out"
                    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    seal(folder / "tokenizer", closed=("[!.]*",))
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    seal(folder, [TASK])


def load_task(folder: Path) -> tuple[Corpus, PreTrainedTokenizerFast]:
    """The corpus and its tokenizer. Raises ValueError for a folder that `python -m tasks.text train` did not write."""
    file = folder / TASK
    corpus = _built(file, "corpus", _read(file).get("corpus"), {"Corpus": Corpus}, Corpus)
    return corpus, tokenizers.load(folder / "tokenizer")


def is_first() -> bool:
    """Whether this process is the one that writes, the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def is_chat(folder: Path) -> bool:
    """Whether the model was tuned on conversations."""
    tuning = _read(folder / TASK).get("tuning")
    return isinstance(tuning, dict) and tuning.get("data") == "chat"


def check_text(folder: Path) -> None:
    """Raise ValueError for a model that was tuned on conversations, for commands that read its corpus as a text."""
    remedy = "it was tuned on conversations, which are no text; metrics.json there has their bound, as finetune left it"
    checked("folder", str(folder), not is_chat(folder), remedy)


def load_model(folder: Path) -> Trained:
    """A trained model, on the GPU where there is one. Raises ValueError where training has not ended yet."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{str(folder)!r} holds no model: repeat the train command, which goes on where it stopped")
    model = load_network(folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if model.config.layout is None:
        raise ValueError(f"the model in {str(folder)!r} holds no layout: it was not trained by this task")
    file = folder / "config.json"
    layout = _built(file, "layout", model.config.layout, LAYOUTS, Layout)
    process = _built(file, "process", model.config.process, TYPES, Process) if model.config.process else None
    return Trained(model, layout, process)


def _built(file: Path, field: str, data: Any, types: Mapping[str, type], kind: type) -> Any:
    try:
        found = from_dict(data, types)
    except ValueError as error:
        raise ValueError(f"{field} in {str(file)!r}: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{field} in {str(file)!r} is {data!r}: expected the settings of a {kind.__name__}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if sealed(path.parent):
            verify(path.parent)
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"no settings in {str(path)!r} ({error}): give a folder that train wrote") from error
