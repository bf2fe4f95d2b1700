"""The audio task: files, sources, pages and its commands."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from discdiff.cli import guarded
from tasks.audio import files, page, sources
from tasks.audio.__main__ import MAIN
from tasks.audio.codec import windows
from tasks.audio.generate import Told
from tasks.audio.settings import Generator, Sounds
from tokenizers_vq import AudioTokenizer, AudioTokenizerConfig

RATE = 8000


def tone(seconds: float = 0.25, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def folder(path: Path, labels: str = "ab", each: int = 3, rate: int = RATE) -> Path:
    for label in labels:
        for n in range(each):
            files.write_wav(
                path / label / f"{n}.wav", tone(0.1 + 0.05 * n, rate, 200 + 300 * labels.index(label)), rate
            )
    return path


def parquet(path: Path, rows: int = 4) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sound = {"bytes": files.wav_bytes(tone(), RATE), "path": "a.wav"}
    pq.write_table(pa.table({"audio": [sound] * rows, "label": list(range(rows)), "speaker": ["x"] * rows}), path)
    return path


# ---- files


def test_wav_round_trip(tmp_path: Path) -> None:
    x = tone()
    audio = files.read_sound(files.write_wav(tmp_path / "a.wav", x, RATE))
    assert audio.rate == RATE and np.abs(audio.x - x).max() < 1 / 16000
    with wave.open(str(tmp_path / "a.wav")) as file:  # as any player sees it
        assert (file.getnchannels(), file.getsampwidth(), file.getnframes()) == (1, 2, len(x))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_of_every_width_and_two_channels(width: int) -> None:
    x = tone()
    scaled = np.round(x * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    scaled = scaled + 128 if width == 1 else scaled
    both = np.stack([scaled, scaled], 1).reshape(-1)
    raw = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in both)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(RATE)
        file.writeframes(raw)
    audio = files.read_sound(out.getvalue())
    assert len(audio.x) == len(x) and np.abs(audio.x - x).max() < 2.0 ** (2 - 8 * min(width, 3))


def test_damaged_files_are_named_not_guessed(tmp_path: Path) -> None:
    good = files.wav_bytes(tone(), RATE)
    for content in (b"", b"no sound at all", good[:40], good[:-100]):
        with pytest.raises(files.Unreadable):
            files.read_sound(content)
    with pytest.raises(files.Unreadable, match="missing"):
        files.read_sound(tmp_path / "missing.wav")


def test_flac_and_what_is_said_without_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile", reason="needs soundfile, of discdiff[audio]")
    soundfile.write(tmp_path / "a.flac", tone(), RATE)
    assert np.abs(files.read_sound(tmp_path / "a.flac").x - tone()).max() < 1 / 16000
    soundfile.write(tmp_path / "float.wav", tone(), RATE, subtype="FLOAT")
    assert np.array_equal(files.read_sound(tmp_path / "float.wav").x, tone())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(files.Unreadable, match=r"pip install 'discdiff\[audio\]'"):
        files.read_sound(tmp_path / "a.flac")
    files.read_sound(files.wav_bytes(tone(), RATE))  # what Python itself reads


# ---- sources


def test_folders_label_by_name(tmp_path: Path) -> None:
    clips = sources.read(str(folder(tmp_path)), Sounds(source="x", seconds=0.3))
    assert clips.columns == {"label": list("aaabbb")} and clips.x.shape == (6, 2400)
    assert clips.mask.sum(1).tolist() == [800, 1200, 1600] * 2
    power = (clips.x.square().sum(1) / clips.mask.sum(1)).sqrt()
    assert torch.allclose(power, torch.full((6,), 0.1), rtol=1e-4) and not clips.x[~clips.mask].any()


def test_metadata_says_more(tmp_path: Path) -> None:
    folder(tmp_path, "a", 2)
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerows([("file_name", "label", "speaker"), ("a/1.wav", "one", "eva"), ("a/0.wav", "two", "jo")])
    clips = sources.read(str(tmp_path), Sounds(source="x"))
    assert clips.columns == {"label": ["one", "two"], "speaker": ["eva", "jo"]}
    assert clips.mask.sum(1).tolist() == [1200, 800]
    with pytest.raises(ValueError, match="nothing is said of 'accent'"):
        clips.column("accent")
    files.write_wav(tmp_path / "a" / "2.wav", tone(), RATE)
    with pytest.raises(ValueError, match=r"1 sounds, the first .*2\.wav', have no row"):
        sources.read(str(tmp_path), Sounds(source="x"))


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet")
    clips = sources.read(str(path), Sounds(source="x"))
    assert clips.columns == {"label": ["0", "1", "2", "3"], "speaker": ["x"] * 4}
    with pytest.raises(ValueError, match="audio_field="):
        sources.read(str(path), Sounds(source="x", audio_field="sound"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        sources.read(str(tmp_path / "bad.parquet"), Sounds(source="x"))


def test_other_rates_are_resampled_with_a_notice_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, "a", 1, 16000)
    clips = sources.read(str(tmp_path), Sounds(source="x"))
    assert clips.mask.sum() == 800
    assert "resampled to 8000 Hz: 1 of 16000 Hz" in capsys.readouterr().out
    spectrum = torch.fft.rfft(clips.x[0, :800]).abs()
    assert int(spectrum.argmax()) * RATE / 800 == 200  # the tone is where it was
    with pytest.raises(ValueError, match=r"16000 samples per second, not 8000: give sample_rate=16000"):
        sources.read(str(tmp_path), Sounds(source="x", other_rate="refuse"))


def test_damaged_empty_and_missing_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "s", "a", 2)
    (tmp_path / "s" / "a" / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"1 of 3 sounds .*bad\.wav"):
        sources.read(str(tmp_path / "s"), Sounds(source="x"))
    clips = sources.read(str(tmp_path / "s"), Sounds(source="x", damaged="skip"))
    assert len(clips.x) == 2 and "bad.wav" in clips.damaged[0]
    assert "left out: 1 of 3" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no sound"):
        sources.read(str(tmp_path / "empty"), Sounds(source="x"))
    with pytest.raises(ValueError, match="there is no"):
        sources.read(str(tmp_path / "nowhere"), Sounds(source="x"))


def test_long_sounds_are_cut_and_shares_kept_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, valid = sources.load(Sounds(source=str(folder(tmp_path)), seconds=0.12, valid_fraction=0.34))
    assert (len(train.x), len(valid.x)) == (4, 2) and train.x.shape[1] == 960
    assert "cut to 0.12 s: 4 of 6 sounds" in capsys.readouterr().out
    silent = sources.levelled(torch.zeros(10), -20.0)
    assert not silent.any()
    click = torch.zeros(1000)
    click[0] = 0.01
    assert float(sources.levelled(click, -20.0).max()) == pytest.approx(0.99)  # as loud as its peak allows


def test_telephone_keys_have_their_two_tones() -> None:
    keys = list(sources.telephone_keys(10, RATE))
    for name, audio, said in keys:
        spectrum = np.abs(np.fft.rfft(audio.x, 8000))
        low, high = spectrum[600:1000].argmax() + 600, spectrum[1100:1600].argmax() + 1100
        wanted = sources.KEYS[said["label"]]
        assert abs(low - wanted[0]) <= 4 and abs(high - wanted[1]) <= 4, name
    assert all(np.array_equal(a[1].x, b[1].x) for a, b in zip(keys, sources.telephone_keys(10, RATE)))


def test_windows_hold_every_sample_of_sound() -> None:
    clips = sources.read("embedded", Sounds(embedded=20))
    rows = windows(clips, 1024)
    whole = float(clips.x.square().sum())
    kept = float(rows.columns["x"].square().sum())
    assert 0.98 * whole < kept <= whole * 1.0001
    assert (rows.columns["mask"].sum(1) >= 128).all()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Sounds, {"source": ""}, "source is ''"),
        (Sounds, {"seconds": 0.0}, "seconds is 0.0"),
        (Sounds, {"loudness": 3.0}, "loudness is 3.0"),
        (Sounds, {"other_rate": "guess"}, "other_rate is 'guess'"),
        (Sounds, {"damaged": "hide"}, "damaged is 'hide'"),
        (Generator, {"condition": ()}, "condition is"),
        (Generator, {"depth": -1}, "depth is -1"),
    ],
)
def test_refuses_impossible_settings(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


# ---- what a model is told


def test_conditions_come_from_rows_alike() -> None:
    clips = sources.read("embedded", Sounds(embedded=40))
    clips.columns["half"] = ["first"] * 20 + ["second"] * 20
    told = Told.of(clips, ("label", "half"))
    assert told.size == 12
    condition, lengths = told.alike(["3"] * 20, 0)
    assert condition[:, 0].unique().tolist() == [3] and condition[:, 1].unique().tolist() == [10, 11]
    assert set(lengths.tolist()) <= set(clips.mask.sum(1)[3::10].tolist())
    assert torch.equal(told.alike(["3"] * 20, 0)[1], lengths)
    with pytest.raises(ValueError, match="the model knows 0, 1"):
        told.alike(["eleven"], 0)


# ---- pages


def test_players_hold_their_sounds() -> None:
    x = torch.from_numpy(tone())
    html = page.players([page.Heard("<b>", x)], RATE)
    assert "<b>" not in html and "&lt;b&gt;" in html
    data = html.split("data:audio/wav;base64,")[1].split('"')[0]
    assert np.abs(files.read_sound(base64.b64decode(data)).x - tone()).max() < 1 / 16000
    picture = np.asarray(page.picture(x, RATE))
    loud = picture[page.WAVE :].astype(int).sum(-1)
    assert picture.shape == (page.WAVE + 80, page.WIDTH, 3)
    row = int(loud.mean(1).argmax())
    high = np.asarray(page.picture(torch.from_numpy(tone(hertz=2000.0)), RATE))[page.WAVE :].astype(int).sum(-1)
    assert int(high.mean(1).argmax()) < row  # higher tones further up


# ---- commands


def test_commands_from_training_to_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec, model, out = tmp_path / "tokenizer", tmp_path / "model", tmp_path / "samples"
    source = ["--embedded", "40", "--seconds", "0.4"]
    small = ["--width", "16", "--blocks", "1", "--code_dim", "8", "--codebook_size", "16", "--num_quantizers", "2"]
    small += ["--strides", "4", "--steps", "6", "--batch_size", "8", "--progress", "false", "--warmup", "1"]
    assert guarded(MAIN, ["tokenizer", "train", *source, *small, "--out", str(codec)]) == 0, capsys.readouterr().err
    figures = json.loads((codec / "metrics.json").read_text())
    assert {"snr_1", "snr_2", "mel_distance_2", "perplexity", "bits_per_second"} <= set(figures)
    assert (codec / "report.html").read_text().count("<audio") == 8
    size = ["--hidden_size", "16", "--num_layers", "1", "--num_heads", "2", "--warmup", "1"]
    size += ["--steps", "4", "--batch_size", "8", "--progress", "false", "--depth", "1"]
    assert guarded(MAIN, ["train", "--tokenizer", str(codec), *size, "--out", str(model)]) == 0, capsys.readouterr().err
    page_file = tmp_path / "seven.html"
    few = ["--sampler.steps", "4"]
    asked = ["--label", "7", "--count", "2", "--out", str(out), "--report", str(page_file)]
    assert guarded(MAIN, ["sample", str(model), *asked, *few]) == 0, capsys.readouterr().err
    first, again = (files.read_sound(out / "sample_1.wav") for _ in range(2))
    assert first.rate == RATE and len(first.x) > 1000 and np.array_equal(first.x, again.x)
    assert page_file.read_text().count("<audio") == 2
    assert guarded(MAIN, ["evaluate", str(model), "--judge_steps", "5", *few]) == 0, capsys.readouterr().err
    found = json.loads((model / "metrics.json").read_text())
    assert all(0 <= found[name] <= 1 for name in ("real", "from_codes", "samples", "shuffled", "read"))
    AudioTokenizer(AudioTokenizerConfig(codebook_size=8, width=16)).save_pretrained(tmp_path / "other" / "model")
    for part in ("codes", "task.json"):
        (tmp_path / "other" / part).symlink_to(model / part)
    capsys.readouterr()
    for argv, message in (
        (["sample", str(tmp_path / "other"), "--label", "7"], "as the tokenizer beside the model has"),
        (["sample", str(model), "--label", "x"], "the model knows 0, 1"),
        (["sample", str(codec), "--label", "7"], "holds no audio model"),
        (["tokenizer", "evaluate", str(tmp_path)], "holds no audio tokenizer"),
        (["train", "--tokenizer", str(codec), "--sample_rate", "16000", "--out", str(model)], "8000, as the tokenizer"),
        (
            ["train", "--tokenizer", str(codec), "--depth", "5", "--out", str(tmp_path / "m")],
            "at most the tokenizer's 2",
        ),
        (["tokenizer", "train", "--hop", "0", "--out", str(tmp_path / "t")], "hop is 0"),
        (["tokenizer", "train", "--sorce", "x"], "did you mean --source"),
    ):
        assert guarded(MAIN, argv) == 2
        assert message in capsys.readouterr().err, argv
