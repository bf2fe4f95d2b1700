"""What `python -m tasks.text train` leaves in its folder: task.json, tokenizer/, model/, and twin/ where one was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from discdiff.config import from_dict, to_dict
from discdiff.layout import LAYOUTS, Layout
from discdiff.models import DiscDiffModel
from discdiff.processes import TYPES, Process
from discdiff.training import checkpoints
from tasks.text import tokenizer as tokenizers
from tasks.text.settings import Corpus, Method, Network

TASK = "task.json"
_KINDS: dict[str, type] = {"Corpus": Corpus, "Network": Network, "Method": Method}


class Trained(NamedTuple):
    """A model with its layout and its process, None for an autoregressive twin."""

    model: DiscDiffModel
    layout: Layout
    process: Process | None


def save_task(
    folder: Path, corpus: Corpus, network: Network, method: Method, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Settings and tokenizer beside the weights. Raises ValueError where `folder` holds checkpoints of other settings."""
    path, settings = folder / TASK, {"corpus": to_dict(corpus), "network": to_dict(network), "method": to_dict(method)}
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
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_task(folder: Path) -> tuple[Corpus, PreTrainedTokenizerFast]:
    """The corpus and its tokenizer. Raises ValueError for a folder that `python -m tasks.text train` did not write."""
    settings = from_dict(_read(folder / TASK), _KINDS)
    return settings["corpus"], tokenizers.load(folder / "tokenizer")


def load_model(folder: Path) -> Trained:
    """A trained model, on the GPU where there is one. Raises ValueError where training has not ended yet."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{str(folder)!r} holds no model: repeat the train command, which goes on where it stopped")
    model = DiscDiffModel.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if model.config.layout is None:
        raise ValueError(f"the model in {str(folder)!r} holds no layout: it was not trained by this task")
    process = model.config.process
    return Trained(model, from_dict(model.config.layout, LAYOUTS), from_dict(process, TYPES) if process else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no settings in {str(path)!r} ({error}): give a folder that train wrote") from error
