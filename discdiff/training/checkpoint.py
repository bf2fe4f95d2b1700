"""Checkpoints that survive: a folder appears whole under its final name or not at all, and is checked before it is used.

Written to `.tmp-checkpoint-STEP-PID`, every file and folder fsynced, `manifest.json` (size and SHA-256 of each file) last,
then renamed to `checkpoint-STEP`, then the pointer file `LATEST` replaced by a rename. Files are safetensors and JSON.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from discdiff.manifest import DamageError, check_room, not_written, seal, sync, write_text
from discdiff.manifest import verify as verify_manifest

logger = logging.getLogger(__name__)

LATEST = "LATEST"
_NAME = re.compile(r"checkpoint-(\d+)(-replaced)?")
_TEMPORARY = re.compile(r"\.tmp-(?:checkpoint-\d+|LATEST)-(\d+)(-old)?")


class CheckpointError(DamageError):
    """A checkpoint that is incomplete, damaged, or not of the run that wants it."""


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders, complete or not, newest first."""
    found = [
        (m, path) for path in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for m, path in sorted(found, key=lambda x: (int(x[0][1]), x[0][2] is None), reverse=True)]


def verify(checkpoint: str | Path, hashes: bool = True) -> dict[str, Any]:
    """The manifest of a complete checkpoint. Raises CheckpointError naming the first file that is absent or differs.

    Sizes are always compared, SHA-256 with `hashes` (about 1 s per GB).
    """
    path = Path(checkpoint)
    try:
        manifest = verify_manifest(path, hashes)
        step = manifest.get("step")
        if not isinstance(step, int):
            raise DamageError(f"{path}: the step in its manifest is {step!r}")
    except (DamageError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
    return manifest


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a folder, None if there is none; what is skipped is logged."""
    for path in checkpoints(folder):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("skipped: %s", error)
    return None


def write_checkpoint(
    folder: str | Path,
    step: int,
    write: Callable[[Path], None],
    *,
    size: int,
    keep: int = 2,
    manifest: Mapping[str, Any],
) -> Path:
    """Have `write` fill a folder, seal it as `checkpoint-STEP`, and delete all but the `keep` newest complete ones.

    size: bytes about to be written; `manifest`: what else to note. Raises OSError naming path and bytes if 1.2 times the
    size does not fit or writing fails, in which case nothing but the older checkpoints remains.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    final = root / f"checkpoint-{step}"
    check_room(final, size, "make room or lower keep")
    temporary = root / f".tmp-checkpoint-{step}-{os.getpid()}"
    try:
        temporary.mkdir()
        write(temporary)
        seal(temporary, closed=("*.safetensors", "*.json"), **manifest, step=step)
        _publish(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, Exception):
            raise not_written(final, error, size) from error
        raise
    try:
        pointer = root / f".tmp-{LATEST}-{os.getpid()}"
        write_text(pointer, final.name + "\n")
        pointer.replace(root / LATEST)
        sync(root)
        prune(root, keep, final)
    except OSError as error:
        raise not_written(root / LATEST, error) from error
    return final


def prune(folder: Path, keep: int, newest: Path) -> None:
    """Delete what is older than the `keep` (2 or more) newest complete checkpoints; never `newest`, the one just written."""
    complete = 0
    for path in checkpoints(folder):
        if complete >= max(keep, 2) and path != newest:
            _remove(path)
            continue
        try:
            verify(path, hashes=False)
            complete += 1
        except CheckpointError:
            logger.warning("%s is incomplete and does not count among the kept ones", path)


def _publish(temporary: Path, final: Path) -> None:
    """Rename into place; one of the same step steps aside under a name that the reader also knows."""
    aside = final.with_name(final.name + "-replaced")
    if final.exists():
        _remove(aside)
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    _remove(aside)


def _remove(path: Path) -> None:
    """Delete a folder; renamed first, so that being stopped half way leaves no half checkpoint under a valid name."""
    if path.exists():
        step = _NAME.fullmatch(path.name)
        doomed = path.with_name(f".tmp-checkpoint-{step[1] if step else 0}-{os.getpid()}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Delete what processes that no longer live left behind."""
    for path in root.glob(".tmp-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            logger.info("removing %s of a process that is gone", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
