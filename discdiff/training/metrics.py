"""metrics.jsonl: one line per report, only ever appended to, readable after any crash and across resumptions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discdiff.manifest import not_written


class MetricsLog:
    """Appends lines {"step", "epoch", "seconds", ...} to a file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, **values: Any) -> None:
        """One line; a number that JSON does not have is written as a string ("nan", "inf").

        Raises OSError naming the file and the bytes that are free.
        """
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self._append(json.dumps(plain).encode() + b"\n")
        except OSError as error:
            raise not_written(self.path, error) from error

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            torn = False
            if file.tell():
                file.seek(-1, 2)
                torn = file.read(1) != b"\n"  # a line cut short by a crash stays alone on its own
            file.write((b"\n" if torn else b"") + line)


def read_metrics(path: str | Path) -> list[Mapping[str, Any]]:
    """The reports of the surviving run: torn lines are left out, and those past the step a later resumption began at."""
    kept: list[Mapping[str, Any]] = []
    for line in Path(path).read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "resumed" in entry:
            kept = [x for x in kept if x["step"] <= entry["step"]]
        else:
            kept.append(entry)
    return kept
