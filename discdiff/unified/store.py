"""References to tokenizers beside a model: discdiff_tokenizers.json; weights stay in folders of their own."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.layout import VocabLayout
from discdiff.manifest import write_json
from discdiff.unified.template import Part, Template

FILE, OWN = "discdiff_tokenizers.json", "tokenizers"
_TYPES: dict[str, type] = {"Part": Part, "Template": Template}
_KEYS = {"vocab", "template", "tokenizers"}


@dataclass(frozen=True)
class Reference:
    """Where a tokenizer is: a folder (relative to the file that names it, or absolute) or a hub name with a revision.

    sha256: of a folder's model.safetensors, which `save` notes and `load` compares; empty where there is none.
    """

    source: str
    revision: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        checked(
            "source", self.source, isinstance(self.source, str) and self.source != "", "give a folder or a hub name"
        )


_TYPES["Reference"] = Reference


def save(unified: Any, folder: Path) -> None:
    """Write the file, and tokenizers without a reference."""
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file: give a folder")
    _check_model(folder, unified.vocab)
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**({} if unified.text is None else {"text": unified.text}), **unified.tokenizers}
    references = {}
    for name, tokenizer in everything.items():
        reference = unified.references.get(name)
        if reference is None:
            reference = Reference(f"{OWN}/{name}")
            tokenizer.save_pretrained(folder / OWN / name)
        references[name] = replace(reference, sha256=_digest(folder / reference.source))
    data = {
        "vocab": json.loads(unified.vocab.to_json()),
        "template": to_dict(unified.template),
        "tokenizers": to_dict(references),
    }
    temporary = folder / f".tmp-{FILE}-{os.getpid()}"
    try:
        write_json(temporary, data)
        temporary.replace(folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, load: Any, load_text: Any = None) -> dict[str, Any]:
    """The fields of the UnifiedTokenizer that `save` wrote."""
    data = read_json(folder / FILE)
    if set(data) != _KEYS:
        raise ValueError(f"{str(folder / FILE)!r} has the keys {sorted(data)}: {sorted(_KEYS)} are expected")
    vocab, template = VocabLayout.from_json(data["vocab"]), from_dict(data["template"], _TYPES)
    references = from_dict(data["tokenizers"], _TYPES)
    typed = isinstance(template, Template) and isinstance(references, dict)
    if not typed or not all(isinstance(r, Reference) for r in references.values()):
        raise ValueError(f"{str(folder / FILE)!r} holds no template and references: let save write it")
    _check_model(folder, vocab)
    found = {}
    for name, reference in references.items():
        inside = folder / reference.source
        path = str(inside) if inside.is_dir() else reference.source
        if reference.sha256 and reference.sha256 != _digest(inside):
            raise ValueError(
                f"the tokenizer of {name!r} in {str(inside)!r} is not the one that was saved, its model.safetensors is "
                "another: bring that back, or save again with this one"
            )
        options = {"revision": reference.revision} if reference.revision else {}
        found[name] = (
            (_text if load_text is None else load_text)(path, **options) if name == "text" else load(path, **options)
        )
    # what lies inside the folder has no place of its own: it is saved again with the next folder
    kept = {name: r for name, r in references.items() if r.source != f"{OWN}/{name}"}
    text = found.pop("text", None)
    return {"vocab": vocab, "template": template, "text": text, "tokenizers": found, "references": kept}


def _digest(folder: Path) -> str:
    """SHA-256 of a folder's weights, empty where it has none."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _text(path: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)


def _check_model(folder: Path, vocab: VocabLayout) -> None:
    """Raise ValueError where a model in the folder has another vocabulary."""
    file = folder / "config.json"
    stored = read_json(file).get("vocab") if file.exists() else None
    if stored is not None and VocabLayout.from_json(stored) != vocab:
        raise ValueError(
            f"the model in {str(folder)!r} has the vocabulary {stored}, the tokenizers have {json.loads(vocab.to_json())}: "
            "these are not the tokenizers it was trained with"
        )
