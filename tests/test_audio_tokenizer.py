"""The tokenizer of sound: its contract, its two kinds of features, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_vq import AudioTokenizer, AudioTokenizerConfig, check_tokenizer, load_tokenizer
from tokenizers_vq.metrics import signal_to_noise
from tokenizers_vq.spectra import mel_distance

SIZE = {"width": 32, "blocks": 1, "code_dim": 16, "codebook_size": 8, "num_quantizers": 3, "hop": 32, "window": 256}


def tones(rows: int, samples: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Decaying tones of different pitch and length, and their masks."""
    dice = torch.Generator().manual_seed(seed)
    pitch = 150 * 2 ** (2 * torch.rand(rows, 1, generator=dice))
    t = torch.arange(samples) / 8000
    x = 0.3 * torch.sin(2 * math.pi * pitch * t) * torch.exp(-8 * t)
    lengths = torch.randint(samples // 2, samples + 1, (rows, 1), generator=dice)
    mask = torch.arange(samples) < lengths
    return x * mask, mask


def trained(features: str, steps: int, quantizer: str = "rvq") -> AudioTokenizer:
    torch.manual_seed(0)
    plain = {} if quantizer == "rvq" else {"quantizer": quantizer, "num_quantizers": 1, "quantizer_dropout": False}
    tokenizer = AudioTokenizer(AudioTokenizerConfig(**{**SIZE, "features": features, **plain})).train()
    rate = 3e-3 if features == "log_mel" else 6e-3
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / (0.3 * steps)))
    for step in range(steps):
        x, mask = tones(16, seed=step)
        optimizer.zero_grad()
        tokenizer(x, mask).loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        decay.step()
    return tokenizer.eval()


@pytest.fixture(scope="module")
def waveform() -> AudioTokenizer:
    return trained("waveform", 80)


@pytest.fixture(scope="module")
def log_mel() -> AudioTokenizer:
    return trained("log_mel", 80)


@pytest.mark.parametrize("masked", [False, True])
def test_contract_of_waveforms(waveform: AudioTokenizer, masked: bool) -> None:
    x, mask = tones(6, seed=1000)
    silence = float(x.square().mean().sqrt())
    found = check_tokenizer(waveform, x, mask if masked else None, bound=0.8 * silence)
    assert found["perplexity"] > 2


@pytest.mark.parametrize("masked", [False, True])
def test_contract_of_spectrograms(log_mel: AudioTokenizer, masked: bool) -> None:
    sounds, mask = tones(6, seed=1000)
    x = log_mel.spectrogram(sounds)
    frames = mask.unflatten(1, (-1, 32)).any(-1)
    spread = float((x - x.mean((0, 1))).square().mean().sqrt())
    found = check_tokenizer(log_mel, x, frames if masked else None, bound=0.8 * spread)
    assert found["perplexity"] > 2
    if masked:
        return
    codes = log_mel.encode(sounds)
    assert torch.equal(codes.codes, log_mel.encode(x).codes)  # samples or their spectrogram


def test_contract_of_one_level() -> None:
    x, _ = tones(6, seed=1000)
    check_tokenizer(trained("waveform", 30, "vq"), x, bound=float(x.square().mean().sqrt()))


def test_sound_of_spectrograms_is_nearer_than_silence(log_mel: AudioTokenizer) -> None:
    x, mask = tones(4, seed=1000)
    out = log_mel.encode(x, mask)
    y = log_mel.sound(out.codes, out.grid, out.mask)
    assert y.shape == x.shape and float(y.abs().max()) <= 1
    far, silent = (mel_distance(x, z, 8000, mask=mask).mean() for z in (y, torch.zeros_like(x)))
    assert far < 0.5 * silent, (far, silent)


def test_any_number_of_samples(waveform: AudioTokenizer) -> None:
    x, _ = tones(2)
    for samples in (1, 63, 64, 65, 1000):
        out = waveform.encode(x[:, :samples])
        assert tuple(out.codes.shape) == waveform.token_shape((2, samples)) == (2, math.ceil(samples / 64), 3)
        assert waveform.decode(out.codes, out.grid, out.mask).shape == (2, out.codes.shape[1] * 64)
    waveform.train()
    loss = waveform(x[:, :1000]).loss  # lengths of data and reconstruction differ
    waveform.eval()
    assert torch.isfinite(loss)


def test_silence_stays_silent(waveform: AudioTokenizer) -> None:
    x, mask = tones(2)
    mask = mask & (torch.arange(1024) < 256)
    out = waveform.encode(x, mask)
    assert out.mask.sum(1).tolist() == [4, 4]
    assert not waveform.decode(out.codes, out.grid, out.mask)[:, 256:].any()


def test_depth_improves_sound(waveform: AudioTokenizer) -> None:
    x, _ = tones(8, seed=1000)
    out = waveform.encode(x)
    ratio = [float(signal_to_noise(x, waveform.decode(out.codes[..., :d])).mean()) for d in (1, 2, 3)]
    assert ratio[0] < ratio[1] < ratio[2], ratio
    assert ratio[2] > 2


def test_rate_is_slots_per_second_and_saved(waveform: AudioTokenizer, tmp_path: Path) -> None:
    assert waveform.config.rate == 8000 / 64
    waveform.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, AudioTokenizer) and loaded.config.rate == 125.0 and loaded.config.strides == (2,)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 100), "mono sound"),
        (torch.zeros(2, 0), "mono sound"),
        (torch.zeros(2, 100, dtype=torch.int16), "divided by 32768"),
        (torch.full((2, 100), 3.0), r"span 3..3"),
        (torch.full((2, 100), math.nan), "span nan"),
    ],
)
def test_refuses_other_data(waveform: AudioTokenizer, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        waveform.encode(x)


def test_refuses_other_masks_and_codes(waveform: AudioTokenizer) -> None:
    x, _ = tones(2)
    with pytest.raises(ValueError, match="one value per sample"):
        waveform.encode(x, torch.ones(2, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"span 0..8"):
        waveform.decode(torch.tensor([[[0, 8]]]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": "mel"}, "features is 'mel'"),
        ({"hop": 0}, "hop is 0"),
        ({"window": 16}, "window is 16"),
        ({"strides": ()}, "strides is"),
        ({"level": 0.0}, "level is 0.0"),
        ({"quantizer": "none"}, "quantizer is 'none'"),
        ({"layers": 1, "heads": 5}, "width is 32"),
        ({"sample_rat": 8000}, "did you mean 'sample_rate'"),
    ],
)
def test_refuses_impossible_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioTokenizerConfig(**{**SIZE, **values})
