"""Short-time spectra of sound: lapped cosines, mel filters, distances in decibel, Griffin-Lim, and another sample rate."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4  # of a mel magnitude: -80 dB
PIECE = 1 << 16  # samples that `resample` makes at a time


def framed(x: Tensor, size: int, hop: int) -> Tensor:
    """Windows of `size` samples around every hop: (batch, samples) -> (batch, ceil(samples / hop), size).

    Frame t is centred on samples t hop .. (t + 1) hop; what lies beyond the ends is silence. Raises ValueError for a size
    that hop does not divide, or an odd number of hops over.
    """
    if size < hop or (size - hop) % 2:
        raise ValueError(f"windows of {size} samples around hops of {hop}: give size >= hop, both odd or both even")
    frames, side = -(-x.shape[-1] // hop), (size - hop) // 2
    return F.pad(x, (side, frames * hop - x.shape[-1] + side)).unfold(-1, size, hop)


def overlapped(frames: Tensor, hop: int) -> Tensor:
    """The adjoint of `framed`: windows (batch, frames, size) added up to (batch, frames * hop)."""
    size, count = frames.shape[-1], frames.shape[-2]
    whole = (count - 1) * hop + size
    out = F.fold(frames.mT, (1, whole), (1, size), stride=(1, hop))[:, 0, 0]
    side = (size - hop) // 2
    return out[:, side : side + count * hop]


@functools.cache
def _cosines(hop: int) -> Tensor:
    """Rows of the lapped transform (hop, 2 hop): sqrt(2 / hop) w(n) cos(pi / hop (n + 1/2 + hop/2) (k + 1/2)), w a sine."""
    n, k = torch.arange(2 * hop, dtype=torch.float64), torch.arange(hop, dtype=torch.float64)[:, None]
    wave = torch.cos(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5))
    return math.sqrt(2 / hop) * torch.sin(math.pi / (2 * hop) * (n + 0.5)) * wave


def lapped_cosines(x: Tensor, hop: int) -> Tensor:
    """The modified discrete cosine transform: (batch, samples) -> (batch, ceil(samples / hop) + 1, hop), orthonormal.

    Princen & Bradley 1986, with a sine window; `from_lapped_cosines` gives the samples back exactly.
    """
    frames = -(-x.shape[-1] // hop) + 1
    padded = F.pad(x, (hop, frames * hop - x.shape[-1]))
    return padded.unfold(-1, 2 * hop, hop) @ _cosines(hop).to(x).T


def from_lapped_cosines(c: Tensor) -> Tensor:
    """Inverse of `lapped_cosines`: (batch, frames + 1, hop) -> (batch, frames * hop)."""
    frames, hop = c.shape[-2:]
    parts = c @ _cosines(hop).to(c)
    return (parts[:, :-1, hop:] + parts[:, 1:, :hop]).flatten(1)


def stft(x: Tensor, size: int, hop: int) -> Tensor:
    """Complex spectra (batch, size // 2 + 1, frames) of `framed` windows under a Hann window, scaled so that a sine of
    amplitude a at the middle of a bin has magnitude a there.
    """
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    side, frames = (size - hop) // 2, -(-x.shape[-1] // hop)
    padded = F.pad(x, (side, frames * hop - x.shape[-1] + side))
    return torch.stft(padded, size, hop, window=window, center=False, return_complex=True) * (2 / window.sum())


def istft(spectra: Tensor, size: int, hop: int) -> Tensor:
    """The sound (batch, frames * hop) whose `stft` is nearest to these spectra (Griffin & Lim 1984, equation 6)."""
    window = torch.hann_window(size, dtype=spectra.real.dtype, device=spectra.device)
    frames = torch.fft.irfft(spectra.mT / (2 / window.sum()), size) * window
    weight = overlapped(window.square().expand(1, frames.shape[1], size), hop)
    return overlapped(frames, hop) / weight.clamp(min=1e-8)


def to_mel(hertz: Tensor) -> Tensor:
    """2595 log10(1 + f / 700), O'Shaughnessy's scale."""
    return 2595 * torch.log10(1 + hertz / 700)


def from_mel(mel: Tensor) -> Tensor:
    """Inverse of `to_mel`, in hertz."""
    return 700 * (10 ** (mel / 2595) - 1)


@functools.cache
def mel_filters(sample_rate: int, size: int, mels: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangles (mels, size // 2 + 1) of height 1, equally wide in mel, from `low` to `high` hertz (half the rate).

    Raises ValueError where a triangle is too narrow to hold the middle of a bin.
    """
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(f"mel filters from {low} to {high} Hz: give 0 <= low < high <= {sample_rate / 2}")
    ends = to_mel(torch.tensor([low, high], dtype=torch.float64))
    corners = from_mel(torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    empty = (filters.sum(1) == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"{mels} mel filters at {sample_rate} Hz leave number {int(empty[0])} without a bin of windows of {size}: "
            "give fewer filters or longer windows"
        )
    return filters.float()


def log_mel(x: Tensor, sample_rate: int, size: int, hop: int, mels: int) -> Tensor:
    """20 log10 max(sum_f filter(f) |stft(f)|, 1e-4) in decibel of full scale: (batch, samples) -> (batch, frames, mels)."""
    filters = mel_filters(sample_rate, size, mels).to(x)
    return 20 * torch.log10((filters @ stft(x, size, hop).abs()).clamp(min=FLOOR)).mT


def mel_distance(
    x: Tensor, y: Tensor, sample_rate: int, size: int = 256, mels: int = 40, mask: Tensor | None = None
) -> Tensor:
    """Mean |log_mel x - log_mel y| in decibel per row, hop size / 4: (batch, samples) twice -> (batch,).

    mask (batch, samples): frames whose hop holds no data are left out.
    """
    hop = size // 4
    if mask is not None:
        x, y = x.masked_fill(~mask, 0), y.masked_fill(~mask, 0)
    gap = (log_mel(x, sample_rate, size, hop, mels) - log_mel(y, sample_rate, size, hop, mels)).abs().mean(-1)
    if mask is None:
        return gap.mean(-1)
    held = framed(mask.to(gap.dtype), hop, hop).amax(-1)
    return (gap * held).sum(-1) / held.sum(-1).clamp(min=1)


def magnitudes(mel: Tensor, sample_rate: int, size: int, iterations: int = 30) -> Tensor:
    """Magnitudes (batch, size // 2 + 1, frames), not negative, whose `log_mel` comes near `mel` (batch, frames, mels).

    Lee & Seung's multiplicative steps s <- s (W' m) / (W' W s) for |W s - m|^2 from s = W' m.
    """
    filters = mel_filters(sample_rate, size, mel.shape[-1]).to(mel)
    aim = filters.T @ (10 ** (mel.mT / 20))
    found = aim / filters.sum(0, keepdim=True).mT.clamp(min=1)
    for _ in range(iterations):
        found = found * aim / (filters.T @ (filters @ found)).clamp(min=1e-10)
    return found


def griffin_lim(magnitude: Tensor, size: int, hop: int, iterations: int = 60, momentum: float = 0.99) -> Tensor:
    """A sound (batch, frames * hop) with these magnitudes (batch, size // 2 + 1, frames): Griffin & Lim 1984, with the
    momentum of Perraudin et al. 2013. The first phases are the same for every row, so that rows do not depend on each other.
    """
    dice = torch.Generator().manual_seed(0)
    angles = torch.rand(magnitude.shape[1:], generator=dice, dtype=torch.float64).to(magnitude) * (2 * math.pi)
    guess = torch.polar(torch.ones_like(angles), angles).expand_as(magnitude)
    before = torch.zeros_like(guess)
    for _ in range(iterations):
        now = stft(istft(magnitude * guess, size, hop), size, hop)
        push = now + momentum * (now - before)
        guess, before = push / push.abs().clamp(min=1e-12), now
    return istft(magnitude * guess, size, hop)


def resample(x: Tensor, rate: int, to: int, zeros: int = 24, rolloff: float = 0.94) -> Tensor:
    """Sound (batch, samples) of one sample rate at another, ceil(samples * to / rate) samples long.

    y(t) = sum_n x(n) c sinc(c (t - n)) w(t - n), t in old samples, c = rolloff min(1, to / rate) the pass band as a share
    of the old one, w a Kaiser window (beta 14.8) over `zeros` zero crossings (Smith 2002, Digital Audio Resampling).
    """
    if rate < 1 or to < 1:
        raise ValueError(f"sample rates are {rate} and {to}: give positive integers in hertz")
    if rate == to:
        return x
    band = rolloff * min(1.0, to / rate)
    half = math.ceil(zeros / band)
    up = to // math.gcd(rate, to)
    count = -(-x.shape[-1] * to // rate)
    phases = (torch.arange(min(up, count)) * rate % to).double() / to
    offsets = torch.arange(1 - half, half + 1).double()
    t = phases[:, None] - offsets
    window = torch.special.i0(14.8 * (1 - (t / half).square()).clamp(min=0).sqrt()) / torch.special.i0(
        torch.tensor(14.8)
    )
    table = (band * torch.sinc(band * t) * window).to(x)
    padded = F.pad(x, (half - 1, half + 1))
    parts = []
    for start in range(0, count, PIECE):
        n = torch.arange(start, min(start + PIECE, count), device=x.device)
        places = (n * rate // to)[:, None] + torch.arange(2 * half, device=x.device)
        parts.append((padded[:, places] * table[n % up]).sum(-1))
    return torch.cat(parts, 1)
