"""What a LeRobot data set keeps in the columns of its frames: numbers of any shape, and pictures."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from discdiff.config import checked
from tasks.vla.lerobot.layout import INDICES, Feature, Info, Part

MODES = ("RGB", "RGBA", "L", "P", "1")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_numbers(column: pa.ChunkedArray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A column as (frames, *shape). Raises ValueError for missing values and for lists of other lengths."""
    values, frames = column.combine_chunks(), len(column)
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        checked(where, f"{values.null_count} missing values", values.null_count == 0, "leave such episodes out")
        if not _list(values.type):
            break
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        checked(where, f"lists of {lengths[:8]} values", len(lengths) == 1, f"info.json says {shape}")
        values = values.flatten()
    fits = len(values) == frames * math.prod(shape)
    checked(where, f"{len(values)} values of {frames} frames", fits, f"info.json says {shape} of each")
    return values.to_numpy(zero_copy_only=False).reshape(frames, *shape)


def _list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_pictures(column: pa.ChunkedArray, size: tuple[int, int], where: str) -> np.ndarray:
    """A column of encoded pictures as (frames, height, width, 3) uint8. Raises ValueError for damaged and other ones."""
    stored = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    return np.stack([_picture(data, size, f"frame {i}, {where}") for i, data in enumerate(stored.to_pylist())])


def _picture(data: Any, size: tuple[int, int], where: str) -> np.ndarray:
    remedy = "its bytes are not in the data set: embed the pictures"
    checked(where, type(data).__name__, isinstance(data, bytes), remedy)
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = (image.height, image.width), image.mode
            if found[0] == size and image.mode in MODES:
                return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise ValueError(f"{where} is a damaged picture: {error}") from error
    raise ValueError(f"{where} is a picture {found}: {size}, as info.json says, and one of {MODES} can be read")


def agree(part: Part, info: Info, stored: list[str]) -> None:
    """Raise ValueError where a file's columns are not what info.json says, as far as its footer tells."""
    missing = [key for key in (*stored, *INDICES) if key not in part.schema.names]
    checked("columns", missing, not missing, f"they are missing in {str(part.path)!r}, which has {part.schema.names}")
    for key in stored:
        kind, feature = part.schema.field(key).type, info.features[key]
        fits = _holds_bytes(kind) if feature.dtype == "image" else _holds(kind, feature)
        remedy = f"info.json says {feature.dtype} of shape {feature.shape}"
        checked(f"{key} in {str(part.path)!r}", str(kind), fits, remedy)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds(kind: pa.DataType, feature: Feature) -> bool:
    """Numbers or texts; lists of a length that the type does not say are looked at when they are read."""
    lengths: list[int] = []
    while _list(kind) or isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
            continue
        lengths.append(kind.list_size if pa.types.is_fixed_size_list(kind) else 0)
        kind = kind.value_type
    if feature.dtype == "string":
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    plain = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    return plain and (0 in lengths or math.prod(lengths) == math.prod(feature.shape))
