"""Frames of an episode from a video file that several episodes share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

NEEDS = "pip install 'discdiff[video]' decodes it; cameras=() reads none, or names those to read"


def can_decode() -> bool:
    """Whether the extra that decodes videos is installed."""
    return find_spec("av") is not None


def read_video(path: Path, begin: float, frames: int, fps: float) -> np.ndarray:
    """The pictures (frames, height, width, 3) uint8 nearest to begin, begin + 1 / fps, ... seconds.

    Raises ValueError naming the file where it is missing, cannot be decoded or lacks some of them.
    """
    import av

    if not path.is_file():
        raise ValueError(f"{str(path)!r} is missing: copy the data set again")
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(round(begin / stream.time_base), stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                step = round((frame.time - begin) * fps)
                if step >= frames:
                    break
                if step >= 0:
                    found[step] = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{str(path)!r} cannot be decoded: {error}") from error
    missing = sorted(set(range(frames)) - set(found))
    if missing:
        raise ValueError(
            f"{str(path)!r} lacks {len(missing)} of the {frames} frames from {begin:.6g} s on at {fps:.6g} frames per "
            f"second, the first at {begin + missing[0] / fps:.6g} s: damaged, or of another rate"
        )
    return np.stack([found[step] for step in range(frames)])
