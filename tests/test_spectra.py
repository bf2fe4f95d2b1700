"""Spectra against closed forms."""

import math

import numpy as np
import pytest
import torch

from tokenizers_vq import spectra

RATE = 8000


def sine(hertz: float, samples: int = 4000, rate: int = RATE, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate)[None]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("samples", [256, 250, 1])
def test_lapped_cosines_are_orthonormal_and_invert(samples: int) -> None:
    x = noise(3, samples)
    c = spectra.lapped_cosines(x, 32)
    assert c.shape == (3, -(-samples // 32) + 1, 32)
    assert torch.allclose(spectra.from_lapped_cosines(c)[:, :samples], x, atol=1e-12)
    assert torch.allclose(c.square().sum((1, 2)), x.square().sum(1), rtol=1e-12)  # Parseval


def test_framed_and_overlapped_are_adjoint() -> None:
    x, f = noise(2, 160), noise(2, 10, 64)
    framed = spectra.framed(x, 64, 16)
    assert framed.shape == f.shape
    assert torch.allclose((framed * f).sum(), (x * spectra.overlapped(f, 16)).sum())
    with pytest.raises(ValueError, match="windows of 63"):
        spectra.framed(x, 63, 16)


def test_a_sine_has_its_amplitude_in_its_bin() -> None:
    s = spectra.stft(sine(500.0), 256, 64).abs()  # bin 16 of 31.25 Hz
    assert s.shape == (1, 129, 63)
    inner = s[0, :, 4:-4]
    assert torch.allclose(inner[16], torch.full_like(inner[16], 0.5), atol=1e-9)
    assert torch.allclose(inner[15], torch.full_like(inner[15], 0.25), atol=1e-9)  # of a Hann window
    assert float(inner[20:].max()) < 1e-9


def test_istft_inverts() -> None:
    x = noise(2, 640)
    assert torch.allclose(spectra.istft(spectra.stft(x, 256, 64), 256, 64), x, atol=1e-10)


def test_mel_scale_and_filters() -> None:
    hertz = torch.tensor([0.0, 700.0, 4000.0], dtype=torch.float64)
    assert torch.allclose(
        spectra.to_mel(hertz), torch.tensor([0, 2595 * math.log10(2), 2146.0645], dtype=torch.float64)
    )
    assert torch.allclose(spectra.from_mel(spectra.to_mel(hertz)), hertz)
    filters = spectra.mel_filters(RATE, 1024, 20)
    inside = filters[:, 40:-40].sum(0)
    middles = filters.argmax(1)
    between = filters[:, middles[0] : middles[-1]].sum(0)
    assert torch.allclose(between, torch.ones_like(between), atol=1e-5)  # neighbours add up to one
    assert inside.min() > 0 and filters.min() == 0 and filters.max() <= 1
    with pytest.raises(ValueError, match="without a bin"):
        spectra.mel_filters(RATE, 64, 60)
    with pytest.raises(ValueError, match="Hz"):
        spectra.mel_filters(RATE, 256, 20, 0.0, 5000.0)


def test_mel_distance_of_a_gain_is_the_gain() -> None:
    x = noise(2, 4096).clamp(-3, 3) / 4
    for gain in (0.5, 0.1):
        found = spectra.mel_distance(x, gain * x, RATE)
        assert torch.allclose(found, torch.full_like(found, -20 * math.log10(gain)), atol=1e-6)
    assert torch.equal(spectra.mel_distance(x, x, RATE), torch.zeros(2, dtype=torch.float64))


def test_mel_distance_sees_only_what_is_data() -> None:
    x, mask = noise(2, 2048) / 4, torch.arange(2048)[None] < torch.tensor([[2048], [1024]])
    y = torch.where(mask, 0.5 * x, noise(2, 2048).flip(0))
    found = spectra.mel_distance(x, y, RATE, mask=mask)
    assert torch.allclose(found, torch.full_like(found, 20 * math.log10(2)), atol=1e-6)


def test_griffin_lim_brings_the_spectrum_back() -> None:
    x = sine(440.0) + sine(1320.0, amplitude=0.2)
    s = spectra.stft(x, 256, 64).abs()
    y = spectra.griffin_lim(s, 256, 64)
    wrong = spectra.griffin_lim(s, 256, 64, iterations=0)  # control: first phases
    far = [float((spectra.stft(z, 256, 64).abs() - s).norm() / s.norm()) for z in (y, wrong)]
    assert far[0] < 0.1 < 0.3 < far[1], far
    both = spectra.griffin_lim(torch.cat([s, 2 * s]), 256, 64)
    assert torch.allclose(both[:1], y, atol=1e-8)  # rows do not depend on each other


def test_magnitudes_have_the_mels_they_came_from() -> None:
    x = noise(1, 4096) / 4
    mel = spectra.log_mel(x, RATE, 256, 64, 40)
    filters = spectra.mel_filters(RATE, 256, 40).double()
    back = 20 * torch.log10(filters @ spectra.magnitudes(mel, RATE, 256, 200)).mT
    assert float((back - mel).abs().mean()) < 0.5


@pytest.mark.parametrize(("rate", "to"), [(16000, 8000), (8000, 16000), (44100, 8000), (11025, 8000), (8001, 8000)])
def test_resampled_sine_is_the_sine(rate: int, to: int) -> None:
    x = sine(700.0, rate // 4, rate)
    y = spectra.resample(x, rate, to)
    assert y.shape[1] == math.ceil(x.shape[1] * to / rate)
    inner = slice(to // 40, -to // 40)
    assert torch.allclose(y[:, inner], sine(700.0, y.shape[1], to)[:, inner], atol=2e-6)


def test_resampling_removes_what_the_rate_cannot_hold() -> None:
    y = spectra.resample(sine(5000.0, 4000, 16000), 16000, 8000)
    naive = sine(5000.0, 4000, 16000)[:, ::2]  # control: aliases to 3000 Hz
    assert float(y[:, 200:-200].abs().max()) < 1e-4 < 0.4 < float(naive.abs().max())
    x = noise(2, 100)
    assert spectra.resample(x, RATE, RATE) is x
    with pytest.raises(ValueError, match="sample rates"):
        spectra.resample(x, 0, RATE)


def test_resampling_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(2, 1500)
    whole = spectra.resample(x, 11025, 8000)
    monkeypatch.setattr(spectra, "PIECE", 100)
    assert torch.equal(spectra.resample(x, 11025, 8000), whole)
    assert np.isfinite(whole.numpy()).all()
