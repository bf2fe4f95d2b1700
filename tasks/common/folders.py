"""What a task's folder holds, and that it goes on only as what it was begun as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discdiff.config import checked, read_json, to_dict

TASK, MODEL, CODES = "task.json", "model", "codes"


def write_task(folder: Path, parts: Mapping[str, Any], source: Path | None = None) -> None:
    """Settings and what else is plain data, as task.json; source: folder of the tokenizer whose codes are learned.

    Raises ValueError where the folder holds what was trained otherwise, or on another tokenizer: it would go on as that.
    """
    path = folder / TASK
    text = json.dumps({name: to_dict(part) for name, part in parts.items()}, indent=2) + "\n"
    copied = path.is_file() and "generator" in read_json(path)  # its tokenizer is a copy, which may be written again
    made = (CODES, f"{CODES}_training", f"{MODEL}_training", *(() if copied else (MODEL,)))
    if any((folder / name).is_dir() for name in made):
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if source is not None:
            weights = [place / MODEL / "model.safetensors" for place in (folder, source)]
            same = same and weights[0].is_file() and weights[0].read_bytes() == weights[1].read_bytes()
        checked("out", str(folder), same, "it holds what was trained with other settings or codes: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
