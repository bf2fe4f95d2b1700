"""Manifests: size and SHA-256 of a folder's files in manifest.json, so that damage is seen before anything is used.

A manifest shows accidents: a bit that flipped, a file cut short, swapped or left out. Who can write the folder can also
sign it anew (`discdiff check --accept`): it is no protection from people.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST, FORMAT = "manifest.json", 2
ROOM = 1.2  # free space asked for, as a multiple of what is about to be written
_READABLE = (1, FORMAT)  # 1 had no digest of the manifest itself
_LARGEST = 64 << 20


class DamageError(ValueError):
    """A folder that is incomplete, or holds other bytes than its manifest says."""


def sealed(folder: str | Path) -> bool:
    """Whether a manifest lies in the folder."""
    return (Path(folder) / MANIFEST).exists()


def seal(
    folder: str | Path, names: Iterable[str] | None = None, closed: Sequence[str] = (), **note: Any
) -> dict[str, Any]:
    """Write the manifest of files of a folder (all below it unless named, with "/") and have everything on the disk.

    closed: patterns of names, directly in the folder, that from now on only these files may have. note: what else to
    remember, as JSON. The manifest appears under its name whole or not at all.
    """
    root = Path(folder)
    names = all_files(root) if names is None else sorted(set(names))
    for name in names:
        sync(root / name)
    entries = {name: {"size": (root / name).stat().st_size, "sha256": sha256(root / name)} for name in names}
    manifest = {**note, "format": FORMAT, "closed": list(closed), "files": entries}
    manifest["sha256"] = _digest(manifest)
    temporary = root / f".tmp-{MANIFEST}-{os.getpid()}"
    write_json(temporary, manifest)
    temporary.replace(root / MANIFEST)
    for path in {(root / name).parent for name in names} | {root}:
        sync(path)
    return manifest


def verify(folder: str | Path, hashes: bool = True, up_to: int | None = None) -> dict[str, Any]:
    """The manifest of a folder that is as it says. Raises DamageError naming the first file that is absent or differs,
    or is there though the manifest closes the folder to its name.

    Sizes are always compared; with `hashes` SHA-256 too (about 1 s per GB), of files of at most `up_to` bytes where that
    is given.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    for name, entry in manifest["files"].items():
        file = root / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry["size"]:
            what = "nothing" if found is None else f"{found} bytes"
            raise DamageError(f"{root} is damaged: {name} should have {entry['size']} bytes, found {what}")
        if hashes and (up_to is None or found <= up_to) and sha256(file) != entry["sha256"]:
            raise DamageError(
                f"{root} is damaged: {name} does not have the SHA-256 of its {MANIFEST}. Write it anew or fetch it again; "
                f"where you changed it yourself: discdiff check --accept {root}"
            )
    for name in strangers(root, manifest):
        raise DamageError(
            f"{root} holds {name}, which its {MANIFEST} does not list and loading would read: remove it, or, where you "
            f"put it there yourself: discdiff check --accept {root}"
        )
    return manifest


def strangers(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files directly in a folder that its manifest does not list, under names to which it closes the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    closed = manifest.get("closed", ())
    return [n for n in names if n not in manifest["files"] and any(fnmatch.fnmatchcase(n, c) for c in closed)]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder, its files unread. Raises DamageError where it is absent, damaged or of another format."""
    path = Path(folder) / MANIFEST
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes are no manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, form = manifest["files"], manifest["format"]
        if form not in _READABLE:
            raise DamageError(f"{path} has format {form!r}, this version reads {FORMAT}")
        if not all(isinstance(pattern, str) for pattern in manifest.get("closed", ())):
            raise ValueError("closed is no list of patterns")
        if not all(_is_entry(name, entry) for name, entry in files.items()):
            raise ValueError("an entry of its files is not a plain relative name with size and sha256")
        if (form != 1 or "sha256" in manifest) and manifest.pop("sha256") != _digest(manifest):
            raise ValueError("its own SHA-256 differs")
    except DamageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise DamageError(f"{path.parent} is incomplete or damaged, its {MANIFEST} cannot be read: {why}") from error
    return manifest


def all_files(folder: Path) -> list[str]:
    """Names of all files below a folder, with "/", but for its own manifest."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def check_room(path: Path, size: int, remedy: str) -> None:
    """Raise OSError naming path, bytes needed and bytes free where 1.2 times `size` does not fit."""
    need, free = int(ROOM * size), _free(path)
    if free < need:
        raise OSError(errno.ENOSPC, f"{path} needs {need} bytes, {free} are free: {remedy}", str(path))


def not_written(path: Path, error: Exception, size: int = 0) -> OSError:
    """The error for what could not be written: its path, the bytes of its tensors, why, and the bytes that are free."""
    code = getattr(error, "errno", None) or errno.EIO
    what = f"{path} ({size} bytes of tensors)" if size else str(path)
    said = f"{what} was not written: {error}; {_free(path)} bytes are free there"
    return OSError(code, said, str(path))


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, on the disk before it returns; raises TypeError for what JSON does not hold."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, on the disk before it returns."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Have the file or folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _is_entry(name: str, entry: Any) -> bool:
    inside = bool(name) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return inside and type(entry["size"]) is int and isinstance(entry["sha256"], str)


def _digest(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
