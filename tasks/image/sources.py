"""Pictures from folders, idx files, parquet files and `datasets`, as one uint8 tensor (n, channels, height, width), and what
is said of each.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from discdiff.config import checked
from tasks.image.settings import Pictures

HUB, METADATA = "hf:", "metadata.csv"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class Read(NamedTuple):
    """Pictures uint8 (n, channels, height, width), the names of those that could not be read, and what a column says of
    each picture ("" where none was asked for).
    """

    x: Tensor
    damaged: list[str]
    said: list[str]

    def rows(self, where: Tensor) -> Read:
        """Those where the mask (n,) is True."""
        return Read(self.x[where], self.damaged, [each for each, kept in zip(self.said, where.tolist()) if kept])

    def digest(self) -> str:
        """SHA-256 of the pictures and of what is said of them."""
        return hashlib.sha256(self.x.numpy().tobytes() + json.dumps(self.said).encode()).hexdigest()


def load(pictures: Pictures, channels: int) -> tuple[Tensor, Tensor]:
    """Training and validation pictures. Raises ValueError where one of them is empty."""
    train, valid = load_said(pictures, channels)
    return train.x, valid.x


def load_said(pictures: Pictures, channels: int, column: str = "") -> tuple[Read, Read]:
    """Training and validation pictures with what a column says of them. Raises ValueError where one of them is empty."""
    found = read(pictures.source, pictures, channels, column)
    x = found.x
    if pictures.valid is not None:
        return found, read(pictures.valid, pictures, channels, column)
    held = torch.zeros(len(x), dtype=torch.bool)
    if pictures.valid_last:
        held[-pictures.valid_last :] = True
    else:
        held[:: max(2, round(1 / pictures.valid_fraction))] = True
    if bool(held.all()):
        raise ValueError(
            f"{pictures.source!r} has {len(x)} pictures: too few to keep {int(held.sum())} back, give valid="
        )
    return found.rows(~held), found.rows(held)


def read(source: str, pictures: Pictures, channels: int, column: str = "") -> Read:
    """All pictures of a source. column: of parquet files and `datasets`; of a folder "label", the name of the folder that a
    picture lies in, or a column of its metadata.csv (file_name, ...); of an idx file "label", from the file of labels
    beside it. Raises ValueError for a source that is not there, holds none, or holds damaged ones
    (unless pictures.damaged is "skip"; then they are named), and for pictures of unlike sizes.
    """
    if channels not in MODES:
        raise ValueError(f"channels is {channels}: pictures are read with 1 (grey), 3 (RGB) or 4 (RGBA)")
    path = Path(source)
    if source.startswith(HUB):
        found = _hub(source.removeprefix(HUB), pictures, column)
    elif path.is_dir():
        found = _folder(path, column)
    elif not path.is_file():
        raise ValueError(f"there is no {source!r}: give a folder, an idx or parquet file, or {HUB}NAME")
    elif path.suffix.lower() in SUFFIXES:
        found = iter([(source, partial(_open, path), "")])
    elif path.suffix == ".parquet":
        found = _parquet(path, pictures.image_field, column)
    else:
        array = _idx_pictures(path)
        labels = _idx_labels(path, len(array), column)
        found = ((f"{source}[{i}]", partial(_open, a), labels[i]) for i, a in enumerate(array))
    rows: list[np.ndarray] = []
    damaged: list[str] = []
    said: list[str] = []
    first = ""
    for name, opened, words in found:
        try:
            row = _array(opened(), channels, pictures.size)
        except UNREADABLE as error:
            damaged.append(f"{name} ({error if type(error) is ValueError else type(error).__name__})")
            continue
        first = first or name
        if rows and row.shape != rows[0].shape:
            a, b = ("{1} x {2}".format(*shape) for shape in (row.shape, rows[0].shape))
            raise ValueError(f"{name} is {a}, {first} {b}: give size= to cut all pictures to one square")
        rows.append(row)
        said.append(words)
    if damaged:
        shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        message = f"{len(damaged)} of {len(damaged) + len(rows)} pictures of {source!r} cannot be read: {shown}"
        if pictures.damaged == "stop":
            raise ValueError(f'{message}; mend or remove them, or leave them out with damaged="skip"')
        print(f"left out: {message}")
    if not rows:
        raise ValueError(f"{source!r} holds no picture of {', '.join(sorted(SUFFIXES))}")
    return Read(torch.from_numpy(np.stack(rows)), damaged, said)


Opened = Iterator[tuple[str, Callable[[], Image.Image], str]]


def _array(image: Image.Image, channels: int, size: int) -> np.ndarray:
    """(channels, height, width) uint8; what is transparent is laid on white. Raises ValueError for floats and 32 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, not 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):  # Pillow would cut these at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if channels != 4 and ("A" in image.getbands() or "transparency" in image.info):
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    image = image.convert(MODES[channels])
    if size:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
    array = np.array(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _open(data: Any) -> Image.Image:
    """A picture from its path, its bytes, or what `datasets` and parquet files hold; decoded now, so damage shows here."""
    if isinstance(data, dict):
        data = data["bytes"] if data.get("bytes") is not None else data.get("path")
    if data is None:
        raise ValueError("no picture in this row")
    if isinstance(data, np.ndarray | list):
        return Image.fromarray(_bytes(np.asarray(data)))
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    image.load()
    return image


def _bytes(x: np.ndarray) -> np.ndarray:
    """An array (height, width) or (height, width, 1, 3 or 4) of whole numbers in 0 to 255, as Pillow takes it."""
    if x.ndim not in (2, 3) or not x.size or (x.ndim == 3 and x.shape[2] not in MODES):
        raise ValueError(f"an array {x.shape}, not (height, width) or (height, width, 1, 3 or 4 channels)")
    if x.dtype.kind not in "iu" or x.min() < 0 or x.max() > 255:
        raise ValueError(f"{x.dtype} values {x.min()} to {x.max()}, not whole numbers in 0 to 255")
    return x.astype(np.uint8)[..., 0] if x.shape[2:] == (1,) else x.astype(np.uint8)


def _taken(rows: Any, index: int, field: str) -> Image.Image:
    return _open(rows[index][field])


def _folder(path: Path, column: str) -> Opened:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    said = _metadata(path, files, column)
    for file in files:
        yield str(file), partial(_open, file), said[file]


def _metadata(path: Path, files: list[Path], column: str) -> dict[Path, str]:
    """What a column says of every file of a folder."""
    table = path / METADATA
    if not column or (column == "label" and not table.is_file()):
        bare = [str(file) for file in files if column and file.parent == path]
        checked(column, bare[:1], not bare, f"put every picture into a folder named by its label, or add {METADATA}")
        return {file: file.parent.name if column else "" for file in files}
    rows: list[dict[str, str]] = []
    if table.is_file():
        with table.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    known = list(rows[0]) if rows else []
    has = (
        f"{str(table)!r} has the columns {known}" if known else f'give "label", or {str(table)!r} with file_name and it'
    )
    checked("condition", column, "file_name" in known and column in known, has)
    found = {path / row["file_name"]: _words(row[column], f"{table}, {row['file_name']}") for row in rows}
    missing = [str(file) for file in files if file not in found]
    checked(column, missing[:1], not missing, f"give every picture a row of {METADATA}")
    return found


def _parquet(path: Path, field: str, column: str) -> Opened:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        _check_columns(str(path), file.schema_arrow.names, field, column)
        row = 0
        for batch in file.iter_batches(256, columns=[field, *([column] if column else [])]):
            said = batch.column(1).to_pylist() if column else [""] * len(batch)
            for data, words in zip(batch.column(0).to_pylist(), said, strict=True):
                yield f"{path}[{row}]", partial(_open, data), _words(words, f"{path}[{row}]")
                row += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{str(path)!r} is no whole parquet file ({error}): fetch it again") from error


def _words(said: Any, where: str, names: Sequence[str] | None = None) -> str:
    """What is said of one picture; names: of the numbers that stand for labels."""
    remedy = f"{where} says nothing that can be read: give every picture one text or label"
    if names is None:
        checked("condition", said, isinstance(said, str | int | float), remedy)
        return str(said)
    checked("condition", said, isinstance(said, int) and 0 <= said < len(names), remedy)
    return names[int(said)]


def _check_columns(name: str, known: list[str], field: str, column: str) -> None:
    if field not in known:
        raise ValueError(f"{name!r} has the columns {known}: name one with image_field=")
    checked("condition", column, not column or column in known, f"{name!r} has the columns {known}")


def _hub(name: str, pictures: Pictures, column: str) -> Opened:
    import datasets  # seconds to import, so only where it is used

    try:
        rows = datasets.load_dataset(name, pictures.dataset_config, split=pictures.split)
    except (OSError, ValueError) as error:
        remedy = "check the source, dataset_config= and split=, and the connection"
        raise ValueError(f"datasets finds no split {pictures.split!r} of {name!r} ({error}); {remedy}") from error
    field = pictures.image_field
    _check_columns(name, rows.column_names, field, column)
    said = [""] * len(rows)
    if column:
        names = getattr(rows.features[column], "names", None)  # of a ClassLabel
        said = [_words(each, f"{HUB}{name}[{i}]", names) for i, each in enumerate(rows[column])]
    if isinstance(rows.features[field], datasets.Image):
        rows = rows.cast_column(field, datasets.Image(decode=False))  # damaged ones are then met one by one
    for i in range(len(rows)):
        yield f"{HUB}{name}[{i}]", partial(_taken, rows, i, field), said[i]


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an idx file of bytes, plain or gzipped. Raises ValueError for a damaged file and another type."""
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is a damaged gzip file ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{str(path)!r} is no picture folder, parquet file or idx file of bytes: check the path")
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes]) if len(data) >= 4 + 4 * axes else ()
    size = len(data) - 4 - 4 * axes
    if not shape or size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{str(path)!r} holds {size} bytes for the shape {shape}: it is cut off, fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _idx_pictures(path: Path) -> np.ndarray:
    array = read_idx(path)
    if array.ndim not in (3, 4):
        raise ValueError(f"{str(path)!r} holds {array.shape}, no pictures (n, height, width): is it the labels?")
    return array


def _idx_labels(path: Path, count: int, column: str) -> list[str]:
    """Labels of an idx file of pictures, from the file beside it that is named alike."""
    if not column:
        return [""] * count
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    there = column == "label" and beside != path and beside.is_file()
    checked("condition", column, there, f'an idx file has "label", from a file such as {beside.name} beside it')
    labels = read_idx(beside)
    checked("labels", labels.shape, labels.shape == (count,), f"{path.name} has {count} pictures")
    return [str(each) for each in labels]
