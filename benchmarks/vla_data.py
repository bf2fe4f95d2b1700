"""Demonstrations of a benchmark of robot policies, recorded as a LeRobot data set where it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tasks.vla.episodes import Episode
from tasks.vla.lerobot import write
from tasks.vla.lerobot.layout import INFO
from tasks.vla.metaworld import RATE


def recorded(folder: Path, tasks: Sequence[str], record: Callable[..., Iterable[Episode]]) -> None:
    """Write what `record(task, parts=...)` gives of every task in turn. Until the data set is whole, its attempts are kept in
    FOLDER_parts, from which a killed run goes on; where another process was faster, its data set is taken, which is said.
    """
    parts = folder.with_name(f"{folder.name}_parts")

    def made() -> Iterator[Episode]:
        for task in tasks:
            yield from record(task, parts=parts / task)

    try:
        write(folder, made(), RATE, robot_type="sawyer")
    except (OSError, ValueError):  # the folder is there now, or its parts are gone
        if not (folder / INFO).is_file():
            raise
        print(f"{folder}: another process has recorded it in the meantime: that one is taken", flush=True)
    shutil.rmtree(parts, ignore_errors=True)
