"""Where motions come from: every reader ends in the same `Clips`.

embedded                       stick figures, generated
FOLDER of *.bvh                with metadata.jsonl (file_name, text, label, split) or captions made of the file names
FOLDER with new_joint_vecs     HumanML3D's and KIT-ML's layout: vectors, texts/NAME.txt, train.txt, val.txt, test.txt
FOLDER with skeleton.json      motions.jsonl (id, caption, content or label, split, and start and length in motions.npz, or
                               the .npy or .npz `file`) of positions (frames, joints, 3) in metres, or positions_mm
FOLDER with index.jsonl        channels without a skeleton: key, caption, action or label, split; arrays in the .npz beside it
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked, read_json
from tasks.motion import figures, skeletons
from tasks.motion.clips import TEST, TRAIN, VALID, Clip, Clips, held_out
from tasks.motion.settings import EMBEDDED, Motions
from tokenizers_vq.motion import FrameVectors, Skeleton, read_bvh

_MANY = 20_000  # frames from which the bones' lengths are taken
_SPLITS = {TRAIN: TRAIN, VALID: VALID, "val": VALID, "validation": VALID, "dev": VALID, TEST: TEST}


class _Reader:
    """Runs a reader of one file after the other; a damaged one stops it, or is named and counted."""

    def __init__(self, settings: Motions) -> None:
        self.settings, self.damaged = settings, []  # type: ignore[var-annotated]
        self.short = self.cut = self.unlisted = 0

    def each(self, names: Iterable[str], read: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        for name in names:
            try:
                yield name, read(name)
            except (ValueError, OSError, KeyError, BadZipFile, EOFError) as error:
                message = str(error) if name in str(error) else f"{name!r}: {error}"
                if self.settings.damaged == "stop":
                    raise ValueError(f"{message} (--damaged skip leaves such files out)") from error
                self.damaged.append(message)

    def clips(self, found: Iterable[tuple[str, Tensor, str, str, str]]) -> tuple[Clip, ...]:
        """Motions of fitting length."""
        kept = []
        for name, frames, caption, label, split in found:
            if len(frames) < self.settings.shortest:
                self.short += 1
                continue
            self.cut += len(frames) > self.settings.longest
            kept.append(Clip(name, frames[: self.settings.longest].float(), caption, label, split))
        return tuple(kept)

    @property
    def notes(self) -> tuple[str, ...]:
        told = [(self.short, f"shorter than {self.settings.shortest} frames, left out")]
        told += [(self.cut, f"cut to {self.settings.longest} frames")]
        told += [(self.unlisted, "in none of train.txt, val.txt and test.txt, left out")]
        told += [(len(self.damaged), f"damaged and left out, the first: {(self.damaged or [''])[0]}")]
        return tuple(f"{count} motions are {what}" for count, what in told if count)


def load(settings: Motions, vectors: FrameVectors | None = None) -> Clips:
    """The motions of a source; `vectors`: those of a tokenizer that is to read them, instead of the source's own.

    Raises ValueError for a folder that is none of the known kinds, that is empty, whose files are damaged (unless they are
    skipped) or are not of one skeleton, or of another one than `vectors`.
    """
    reader = _Reader(settings)
    if settings.source == EMBEDDED:
        return _embedded(settings, reader, vectors)
    folder = Path(settings.source)
    if not folder.is_dir():
        raise ValueError(f"source {settings.source!r} is no folder: give one of motions, or {EMBEDDED!r}")
    if (folder / "new_joint_vecs").is_dir():
        return _vectors(folder, settings, reader, vectors)
    if (folder / "skeleton.json").exists():
        return _positions(folder, settings, reader, vectors)
    if (folder / "index.jsonl").exists():
        return _channels(folder, settings, reader, vectors)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.bvh"))
    if files:
        return _bvh(folder, files, settings, reader, vectors)
    raise ValueError(
        f"folder {settings.source!r} holds no motions: *.bvh, new_joint_vecs/, or skeleton.json or index.jsonl is expected"
    )


def _embedded(settings: Motions, reader: _Reader, vectors: FrameVectors | None) -> Clips:
    vectors = _same(vectors, figures.VECTORS, EMBEDDED)
    made = [figures.figure(n) for n in range(settings.embedded)]
    block = len(figures.ACTIONS)
    found = [
        (f"figure_{n:04d}", vectors.process(each.positions), each.caption, each.action, held_out(n // block))
        for n, each in enumerate(made)
    ]
    return Clips(reader.clips(found), vectors, figures.FPS, reader.notes)


def _bvh(folder: Path, files: list[str], settings: Motions, reader: _Reader, vectors: FrameVectors | None) -> Clips:
    told = {row["file_name"]: row for row in _rows(folder / "metadata.jsonl", ("file_name",))}
    read = dict(reader.each(files, lambda name: read_bvh(folder / name)))
    motions: list[tuple[str, Tensor]] = []
    kept: list[int] = []
    skeleton: Skeleton | None = None
    for name, bvh in read.items():
        positions = bvh.positions(settings.unit)
        kept = kept or skeletons.moving(positions)
        if skeleton is not None and (bvh.skeleton.joints, bvh.skeleton.parents) != (skeleton.joints, skeleton.parents):
            raise ValueError(
                f"{name!r} has another skeleton than {files[0]!r}: keep motions of one skeleton in a folder"
            )
        skeleton = bvh.skeleton
        motions.append((name, resampled(positions[:, kept], bvh.fps, settings.fps)))
    checked("motions", len(motions), skeleton is not None, f"no BVH file in {str(folder)!r} can be read")
    assert skeleton is not None
    own = _frames(settings, skeletons.below(skeleton, kept), [p for _, p in motions], vectors, str(folder))
    found = []
    for n, (name, positions) in enumerate(motions):
        row, stem = told.get(name, {}), Path(name).stem
        words = " ".join(re.findall(r"[A-Za-z]+", stem)).lower()
        caption = row.get("text", words)
        label = row.get("label", Path(name).parent.name or words)
        found.append((name, own.process(positions), caption, label, _split(name, row, n)))
    return Clips(reader.clips(found), own, settings.fps, reader.notes)


def _positions(folder: Path, settings: Motions, reader: _Reader, vectors: FrameVectors | None) -> Clips:
    told = read_json(folder / "skeleton.json")
    rows = {row["id"]: row for row in _rows(folder / "motions.jsonl", ("id", "caption"), required=True)}
    packed = _arrays(folder / "motions.npz") if (folder / "motions.npz").exists() else {}
    joints, parents = told.get("joints", ()), told.get("parents", ())

    def read(name: str) -> Tensor:
        row = rows[name]
        arrays = _arrays(folder / row["file"]) if "file" in row else packed
        scale = 0.001 if "positions_mm" in arrays else 1.0
        found = arrays.get("positions_mm", arrays.get("positions"))
        if found is None:
            raise ValueError(f"{name!r} has no array positions (metres) or positions_mm")
        start = int(row.get("start", 0))
        length = int(row.get("length", len(found) - start))
        if not 0 <= start <= start + length <= len(found):
            raise ValueError(f"{name!r} spans frames {start}..{start + length} of {len(found)}")
        part = torch.tensor(np.asarray(found[start : start + length], dtype=np.float64)) * scale
        if part.ndim != 3 or tuple(part.shape[1:]) != (len(joints), 3) or not bool(torch.isfinite(part).all()):
            raise ValueError(
                f"{name!r} is {tuple(part.shape)}, skeleton.json has {len(joints)} joints, or is not finite"
            )
        return resampled(part, float(told.get("fps", settings.fps)), settings.fps)

    motions = list(reader.each(rows, read))
    checked("motions", len(motions), bool(motions), f"none in {str(folder)!r} can be read")
    first = motions[0][1][0]
    bones = first - first[[max(p, 0) for p in parents]]
    skeleton = Skeleton(tuple(joints), tuple(parents), tuple(map(tuple, bones.tolist())))
    own = _frames(settings, skeleton, [p for _, p in motions], vectors, str(folder))
    found = []
    for n, (name, positions) in enumerate(motions):
        row = rows[name]
        label = row.get("label", row.get("content", row["caption"]))
        if len(positions) > 1:
            found.append((name, own.process(positions), row["caption"], label, _split(name, row, n)))
    return Clips(reader.clips(found), own, settings.fps, reader.notes)


def _channels(folder: Path, settings: Motions, reader: _Reader, vectors: FrameVectors | None) -> Clips:
    if vectors is not None:
        raise ValueError(f"{str(folder)!r} holds channels without a skeleton: the tokenizer reads positions of joints")
    rows = {row["key"]: row for row in _rows(folder / "index.jsonl", ("key",), required=True)}
    files = sorted(folder.glob("*.npz"))
    checked("files", len(files), bool(files), f"no .npz beside index.jsonl in {str(folder)!r}")
    arrays = {name: (path, array) for path in files for name, array in _arrays(path).items()}

    def read(name: str) -> Tensor:
        if name not in arrays:
            raise ValueError(f"{name!r} of index.jsonl is in none of the {len(files)} .npz files")
        path, array = arrays[name]
        if array.ndim != 2 or not np.isfinite(array).all():
            raise ValueError(f"{name!r} in {str(path)!r} is {array.shape}: (frames, channels), finite, is expected")
        return torch.tensor(np.asarray(array, dtype=np.float32))

    found = []
    for n, (name, frames) in enumerate(reader.each(rows, read)):
        row = rows[name]
        caption = row.get("caption", row.get("action", name))
        label = row.get("label", row.get("action", caption))
        found.append((name, frames, caption, label, _split(name, row, n)))
    return Clips(reader.clips(found), None, 0.0, reader.notes)


def _vectors(folder: Path, settings: Motions, reader: _Reader, vectors: FrameVectors | None) -> Clips:
    names = sorted(path.stem for path in (folder / "new_joint_vecs").glob("*.npy"))
    checked("motions", len(names), bool(names), f"no .npy in {str(folder / 'new_joint_vecs')!r}")
    splits: dict[str, str] = {}
    for file, split in (("train", TRAIN), ("val", VALID), ("test", TEST)):
        if (folder / f"{file}.txt").exists():
            splits |= dict.fromkeys((folder / f"{file}.txt").read_text(encoding="utf-8").split(), split)
    listed = [name for name in names if name in splits] if splits else names
    reader.unlisted = len(names) - len(listed)
    checked("motions", len(listed), bool(listed), f"the lists of splits in {str(folder)!r} name none of them")

    def read(name: str) -> tuple[Tensor, str]:
        path, text = folder / "new_joint_vecs" / f"{name}.npy", folder / "texts" / f"{name}.txt"
        array = _arrays(path)["positions"]
        if array.ndim != 2 or array.shape[1] not in skeletons.PUBLIC or not np.isfinite(array).all():
            known = " or ".join(map(str, skeletons.PUBLIC))
            raise ValueError(f"{str(path)!r} is {array.shape}: (frames, {known}), finite, is expected")
        lines = text.read_text(encoding="utf-8").splitlines() if text.exists() else [name]
        return torch.tensor(np.asarray(array, dtype=np.float32)), (lines or [name])[0].split("#")[0].strip()

    read_all = list(reader.each(listed, read))
    checked("motions", len(read_all), bool(read_all), f"none in {str(folder)!r} can be read")
    first = read_all[0][1][0]
    plain = skeletons.public(first.shape[1])
    vectors = _same(vectors, plain if vectors else skeletons.with_bones(plain, plain.recover(first)), str(folder))
    found = []
    for n, (name, (frames, caption)) in enumerate(read_all):
        found.append((name, frames, caption, caption, splits[name] if splits else held_out(n)))
    return Clips(reader.clips(found), vectors, settings.fps, reader.notes)


def _frames(
    settings: Motions, skeleton: Skeleton, motions: list[Tensor], vectors: FrameVectors | None, where: str
) -> FrameVectors:
    """The frame vectors of a source's motions, with the mean lengths of its bones."""
    if vectors is not None:
        return _same(vectors, skeleton, where)
    frames = torch.cat(motions)[:_MANY]
    bones = Skeleton.of(skeleton.joints, skeleton.parents, frames)
    if settings.right or settings.left or settings.feet:
        return skeletons.named(bones, settings.right, settings.left, settings.feet)
    return skeletons.guess(bones, frames)


def _split(name: str, row: dict[str, Any], number: int) -> str:
    """What a motion is for, as its row says it or else by its number."""
    told = str(row.get("split", held_out(number)))
    checked("split", told, told in _SPLITS, f"of {name!r}: choose from {', '.join(_SPLITS)}")
    return _SPLITS[told]


def _same(wanted: FrameVectors | None, own: FrameVectors | Skeleton, where: str) -> FrameVectors:
    skeleton = own.skeleton if isinstance(own, FrameVectors) else own
    if wanted is None:
        assert isinstance(own, FrameVectors)
        return own
    if (wanted.skeleton.joints, wanted.skeleton.parents) != (skeleton.joints, skeleton.parents):
        names = [f"{len(s)} joints ({', '.join(s.joints[:3])}, ...)" for s in (skeleton, wanted.skeleton)]
        raise ValueError(f"motions of {where!r} have {names[0]}, the tokenizer reads {names[1]}: train one for them")
    return wanted


def resampled(positions: Tensor, fps: float, wanted: float) -> Tensor:
    """Positions (frames, ...) at another rate, by linear interpolation in time."""
    if abs(fps - wanted) < 1e-3 * wanted:
        return positions
    count = int((len(positions) - 1) * wanted / fps + 1e-6) + 1
    time = torch.arange(count, dtype=torch.float64) * (fps / wanted)
    low = time.floor().long().clamp(max=len(positions) - 1)
    share = (time - low).view(-1, *(1,) * (positions.ndim - 1)).to(positions.dtype)
    return positions[low] * (1 - share) + positions[(low + 1).clamp(max=len(positions) - 1)] * share


def _rows(path: Path, keys: tuple[str, ...], required: bool = False) -> list[dict[str, Any]]:
    """Dictionaries of a file of JSON lines. Raises ValueError naming the line without the keys, or the missing file."""
    if not path.exists():
        if required:
            raise ValueError(f"there is no {str(path)!r}")
        return []
    rows = []
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [key for key in keys if key not in row]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r}, line {at}: {error}") from error
        if missing or not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {at}: no {', '.join(missing)}")
        rows.append(row)
    return rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a .npz, or the one of a .npy as "positions"; never pickles. Raises ValueError naming a damaged file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"positions": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, BadZipFile, KeyError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} cannot be read as arrays: {error}") from error
