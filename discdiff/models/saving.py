"""Networks into folders: complete or not at all, signed by a manifest, with a model card."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from discdiff.manifest import MANIFEST, all_files, check_room, not_written, seal, sync
from discdiff.models.card import versions, write_card

CLOSED = ("config.json", "generation_config.json", "model.*safetensors", "model.*index.json", "adapter_*")
"""Names that loading would read: in a folder with a manifest they have to be listed there."""

_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def save(model: Any, write: Callable[..., None], folder: Any, sealed: bool, options: dict[str, Any]) -> None:
    """`write`, the save_pretrained of transformers, into a folder that is then moved into place; see `save_pretrained`."""
    if not sealed or options.get("distributed_checkpoint"):
        return write(folder, **options)
    if options.get("variant"):
        raise ValueError(
            f"variant is {options['variant']!r}: a folder holds one set of weights, choose a folder for each"
        )
    main = options.get("is_main_process", True)
    writes = getattr(model, "should_save_on_this_rank", lambda is_main: is_main)  # older versions have no such method
    if not writes(main):
        with tempfile.TemporaryDirectory() as unused:  # takes part in gathering what is sharded
            return write(unused, **options)
    push, target = options.pop("push_to_hub", False), Path(folder).resolve()
    if target.is_file():
        raise ValueError(f"{target} is a file: give a folder")
    size = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    check_room(target, size, "make room, or choose another folder")
    # within a folder that exists: what is above it may be another disk, or not ours to write into
    temporary = (target if target.exists() else target.parent) / f".tmp-{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary, **options)
        names = all_files(temporary)
        write_card(model, temporary, target)
        seal(temporary, names, CLOSED, versions=versions())
        _place(temporary, target)
    except (OSError, SafetensorError) as error:
        raise not_written(target, error, size) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if push:
        known = ("commit_message", "private", "token", "revision", "create_pr", "max_shard_size", "tags")
        chosen = {name: options[name] for name in known if name in options}
        model.push_to_hub(options.get("repo_id", target.name), **chosen)


def _place(temporary: Path, target: Path) -> None:
    """One rename where there was no folder; else file by file, the manifest first.

    From the first file on until the last the manifest does not fit: a mixture of old and new is never taken for whole.
    """
    if not target.exists():
        temporary.rename(target)
        sync(target.parent)
        return
    files = sorted((path.name for path in temporary.iterdir()), key=lambda name: name != MANIFEST)
    for name in files:
        (temporary / name).replace(target / name)
    for path in target.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in files:
            path.unlink()  # of the model that was here before
    sync(target)
