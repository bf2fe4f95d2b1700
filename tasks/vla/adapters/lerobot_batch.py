"""What is in a batch of LeRobot, by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from discdiff.config import checked

STATE, IMAGES, IMAGE = "observation.state", "observation.images.", "observation.image"
_BESIDE = ("_is_pad", "_depth")  # endings of keys that begin as a camera's and hold none of its pictures


def tensor_of(batch: Mapping[str, Any], key: str) -> Tensor:
    """The tensor of that key. Raises ValueError where there is none."""
    checked("batch", sorted(batch), isinstance(batch.get(key), Tensor), f"it needs a tensor {key!r}")
    found: Tensor = batch[key]
    return found


def camera_of(batch: Mapping[str, Any], wanted: str) -> str:
    """The key of a camera's pictures, "" for the only one. Raises ValueError where it is not there, or several are."""
    keys = sorted(key for key in batch if key == IMAGE or key.startswith(IMAGES))
    found = {key.removeprefix(IMAGES).removeprefix("observation."): key for key in keys if not key.endswith(_BESIDE)}
    camera = wanted or next(iter(found), "")
    fits = camera in found and (wanted != "" or len(found) == 1)
    checked("camera", wanted, fits, f"the batch has those of {list(found)}: name one of them")
    return found[camera]
