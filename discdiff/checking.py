"""`discdiff check`: are the files of a folder those that were written; and signing anew what was changed on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from discdiff.manifest import MANIFEST, DamageError, all_files, read_manifest, seal, sealed, sha256, strangers, verify

_UNSIGNED = ("README.md",)  # prose, changed at will
_SHOWN = 8


_USAGE = """usage: discdiff check [--accept] DIR: compare a folder, and all below it, with the manifests there; \
--accept signs it as it now is"""


def check(argv: Sequence[str]) -> None:
    """`discdiff check [--accept] DIR`. Raises ValueError for a folder that is damaged or has nothing to compare with."""
    if {"-h", "--help"} & set(argv):
        return print(_USAGE)
    accept = "--accept" in argv
    words = [word for word in argv if word != "--accept"]
    if len(words) != 1 or words[0].startswith("-"):
        raise ValueError(_USAGE)
    root = Path(words[0])
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}")
    for line in accept_folder(root) if accept else check_folder(root):
        print(line)


def check_folder(root: Path) -> list[str]:
    """One line per manifest at or below a folder, and one of what no manifest covers. Raises DamageError naming all faults."""
    folders = _signed(root)
    if not folders:
        raise ValueError(f"no {MANIFEST} in {root} or below: `discdiff check --accept {root}` signs what is there now")
    lines, faults, covered = [], [], set()
    for folder in folders:
        try:
            files = verify(folder)["files"]
        except DamageError as error:
            faults.append(str(error))
            files = _listed(folder)
        else:
            lines.append(f"{folder}: {len(files)} files are as signed")
        covered |= {folder / name for name in (*files, MANIFEST)}
    if faults:
        raise DamageError("; ".join(faults))
    loose = [name for name in all_files(root) if root / name not in covered and Path(name).name not in _UNSIGNED]
    if loose:
        more = f" and {len(loose) - _SHOWN} more" if len(loose) > _SHOWN else ""
        lines.append(f"{root}: {len(loose)} files are in no manifest: {', '.join(loose[:_SHOWN])}{more}")
    return lines


def accept_folder(root: Path) -> list[str]:
    """Sign anew every folder at or below `root` that has a manifest, `root` itself where none has; one line per change."""
    lines = []
    for folder in _signed(root) or [root]:
        old = read_manifest(folder) if sealed(folder) else None
        if old is None:
            from discdiff.models.saving import CLOSED

            names = [n for n in all_files(folder) if "/" not in n and not n.startswith(".") and n not in _UNSIGNED]
            seal(folder, names, CLOSED)
            lines.append(f"{folder}: signed {', '.join(names) or 'an empty folder'}")
            continue
        names = [*(name for name in old["files"] if (folder / name).is_file()), *strangers(folder, old)]
        changes = _changes(folder, names, old["files"])
        if changes:
            note = {name: value for name, value in old.items() if name not in ("format", "files", "closed", "sha256")}
            seal(folder, names, old.get("closed", ()), **note)
        lines.append(f"{folder}: {', '.join(changes) or 'as signed'}")
    return lines


def _signed(root: Path) -> list[Path]:
    """Folders with a manifest, but for those that an interrupted save left behind."""
    found = sorted(path.parent for path in root.rglob(MANIFEST) if path.is_file())
    return [path for path in found if not any(part.startswith(".tmp-") for part in path.relative_to(root).parts)]


def _changes(folder: Path, names: Sequence[str], old: dict[str, Any]) -> list[str]:
    gone = [f"{name} is gone" for name in old if name not in names]
    new = [f"{name} is new" for name in names if name not in old]
    changed = [f"{n} has changed" for n in names if n in old and sha256(folder / n) != old[n]["sha256"]]
    return [*changed, *new, *gone]


def _listed(folder: Path) -> list[str]:
    try:
        return list(read_manifest(folder)["files"])
    except DamageError:
        return []
