"""Sound files: WAV by Python's own module, everything else by soundfile where it is installed."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from discdiff.report.pictures import write_atomically

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au"}
NEEDS = "needs soundfile: pip install 'discdiff[audio]'"


class Unreadable(ValueError):
    """A file that holds no sound that can be read."""


class Audio(NamedTuple):
    """Mono samples (samples,) float32 in [-1, 1], and their rate in hertz."""

    x: np.ndarray
    rate: int


def read_sound(data: str | Path | bytes) -> Audio:
    """A file's or its bytes' sound, channels averaged. Raises Unreadable, a ValueError, for damage and unknown formats."""
    try:
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
    except OSError as error:
        raise Unreadable(str(error)) from error
    try:
        found = _pcm(content)
    except (wave.Error, EOFError, ValueError) as error:
        found = _soundfile(content, error)
    if not np.isfinite(found.x).all():
        raise Unreadable("samples that are no finite numbers")
    if not len(found.x):
        raise Unreadable("no samples")
    return Audio(found.x.clip(-1, 1), found.rate)


def _pcm(content: bytes) -> Audio:
    """WAV of whole numbers, 8, 16, 24 or 32 bits."""
    with wave.open(io.BytesIO(content)) as file:
        width, channels, rate, frames = file.getsampwidth(), file.getnchannels(), file.getframerate(), file.getnframes()
        raw = file.readframes(frames)
    if len(raw) != frames * width * channels:
        raise Unreadable(f"{len(raw)} of {frames * width * channels} bytes: it is cut short")
    if rate < 1:
        raise Unreadable(f"a sample rate of {rate}")
    x: np.ndarray
    if width == 1:
        x = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        x = ((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8) / np.float32(2**23)
    else:
        x = np.frombuffer(raw, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return Audio(x.reshape(-1, channels).mean(1, dtype=np.float32), rate)


def _soundfile(content: bytes, first: Exception) -> Audio:
    if isinstance(first, Unreadable):
        raise first
    try:
        import soundfile
    except ImportError as error:
        raise Unreadable(f"not WAV of whole numbers ({first}); another format {NEEDS}") from error
    try:
        x, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise Unreadable(str(error)) from error
    return Audio(x.mean(1), int(rate))


def wav_bytes(x: Any, rate: int) -> bytes:
    """Samples in [-1, 1] as a mono WAV file of 16 bits."""
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    whole = (x.clip(-1, 1) * 32767).round().astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.tobytes())
    return out.getvalue()


def write_wav(path: str | Path, x: Any, rate: int) -> Path:
    """Write `wav_bytes`; the file is complete or absent."""
    return write_atomically(path, wav_bytes(x, rate))
