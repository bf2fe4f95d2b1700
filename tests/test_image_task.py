"""python -m tasks.image tokenizer train|evaluate|refit, and what its sources take and refuse."""

import gzip
import io
import json
import re
import struct
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from discdiff.cli import guarded
from tasks.image import quality
from tasks.image.settings import Network, Pictures
from tasks.image.sources import load, read, read_idx
from tasks.image.tokenizer import evaluate, refit_command, train
from tokenizers_vq import ImageTokenizer, ImageTokenizerConfig
from tokenizers_vq.image import from_bytes


def pixels(count=24, height=8, width=8, channels=3, seed=0):
    """Two-coloured pictures uint8 (n, height, width, channels)."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.integers(0, 255, (count, 1, 1, channels), dtype=np.uint8), height, 1).repeat(width, 2)
    x[:, : height // 2] //= 3
    return x


def png(array):
    held = io.BytesIO()
    Image.fromarray(array).save(held, "PNG")
    return held.getvalue()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for i, x in enumerate(pixels()):
        (place / ("more" if i % 2 else ".") / f"{i:03}.png").write_bytes(png(x))
    (place / "notes.txt").write_text("no picture")
    return place


def idx(path, array, packed=False):
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return path


def parquet(path, rows):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write_table(pa.table({"image": pa.array([{"bytes": r, "path": None} for r in rows], kind)}), path)
    return path


def fields(source, **changed):
    return Pictures(source=str(source), **changed)


def take(source, channels=3, **changed):
    return read(str(source), fields(source, **changed), channels)


def test_a_folder_is_read_in_order_of_names(folder):
    found = take(folder)
    wanted = np.concatenate([pixels()[::2], pixels()[1::2]]).transpose(0, 3, 1, 2)
    assert found.damaged == [] and np.array_equal(found.x.numpy(), wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    x = pixels(channels=1)[..., 0]
    path = idx(tmp_path / ("x.gz" if packed else "x-ubyte"), x, packed)
    assert np.array_equal(read_idx(path), x)
    assert np.array_equal(take(path, channels=1).x[:, 0].numpy(), x)
    assert take(path, channels=3).x.shape == (24, 3, 8, 8)


def test_parquet_files_and_datasets_agree(tmp_path):
    path = parquet(tmp_path / "x.parquet", [png(x) for x in pixels()])
    wanted = pixels().transpose(0, 3, 1, 2)
    assert np.array_equal(take(path).x.numpy(), wanted)
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png(x), "path": None} for x in pixels()]})
    (tmp_path / "hub").mkdir()
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "hub" / "train.parquet")
    assert np.array_equal(take(f"hf:{tmp_path / 'hub'}").x.numpy(), wanted)
    with pytest.raises(ValueError, match="image_field"):
        take(path, image_field="picture")
    with pytest.raises(ValueError, match="no split 'test'"):
        take(f"hf:{tmp_path / 'hub'}", split="test")


def test_grey_colour_transparency_and_size(tmp_path):
    clear = np.zeros((8, 12, 4), dtype=np.uint8)
    clear[:, 6:] = (255, 0, 0, 255)
    (tmp_path / "a.png").write_bytes(png(clear))
    x = take(tmp_path).x[0]
    assert x[:, 0, 0].tolist() == [255, 255, 255] and x[:, 0, 11].tolist() == [255, 0, 0]
    assert take(tmp_path, channels=1).x.shape == (1, 1, 8, 12)
    assert take(tmp_path, channels=4).x[0, 3, 0, 0] == 0
    assert take(tmp_path, size=4).x.shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="channels is 2"):
        take(tmp_path, channels=2)


def test_damaged_pictures_are_named_counted_and_stop(folder, capsys):
    whole = (folder / "000.png").read_bytes()
    (folder / "000.png").write_bytes(whole[: len(whole) // 2])
    (folder / "002.png").write_bytes(b"")
    (folder / "004.png").write_bytes(b"GIF89a and no more")
    with pytest.raises(ValueError, match=r'3 of 24 pictures.*000\.png.*002\.png.*004\.png.*damaged="skip"'):
        take(folder)
    found = take(folder, damaged="skip")
    assert len(found.x) == 21 and len(found.damaged) == 3
    assert "left out: 3 of 24" in capsys.readouterr().out


def test_sixteen_bits_are_scaled_and_other_depths_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "a.png")
    assert int(take(tmp_path, channels=1).x.max()) == 100
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*b\.tif \(mode F, not 8 or 16 bits"):
        take(tmp_path, channels=1)


def test_damaged_rows_of_parquet_files_are_named(tmp_path):
    path = parquet(tmp_path / "x.parquet", [*(png(x) for x in pixels(3)), b"no picture", None])
    with pytest.raises(ValueError, match=r"2 of 5 pictures.*x\.parquet\[3\].*x\.parquet\[4\]"):
        take(path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.gz", gzip.compress(b"\0\0\x08\x03" + bytes(500), mtime=0)[:-12], "damaged gzip"),
        ("x.gz", b"plain", "damaged gzip"),
        ("x", b"\0\0\x08\x03\0\0", "cut off"),
        ("x", struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 2, 2) + bytes(7), "cut off"),
        ("x", struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 1, 1) + bytes(4), "no picture folder"),
        ("x", struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes(5), "is it the labels"),
        ("x.parquet", b"PAR1 and no more", "no whole parquet file"),
    ],
)
def test_damaged_files(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        take(tmp_path / name)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        take(tmp_path)
    with pytest.raises(ValueError, match="there is no"):
        take(tmp_path / "missing")
    (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
    (tmp_path / "b.png").write_bytes(png(pixels(1, 8, 12)[0]))
    with pytest.raises(ValueError, match="b.png is 8 x 12, .*a.png 8 x 8: give size="):
        take(tmp_path)
    with pytest.raises(ValueError, match="too few"):
        load(fields(tmp_path, size=8, valid_last=2), 3)


def test_what_is_kept_back(folder):
    train_x, valid = load(fields(folder, valid_last=5), 3)
    every = take(folder).x
    assert torch.equal(torch.cat([train_x, valid]), every) and len(valid) == 5
    train_x, valid = load(fields(folder, valid_fraction=0.25), 3)
    assert torch.equal(valid, every[::4]) and len(train_x) == 18
    assert len(load(fields(folder, valid=str(folder)), 3)[1]) == 24


@pytest.mark.parametrize(
    "bad",
    [{"source": ""}, {"valid_fraction": 0.0}, {"valid_last": -1}, {"size": -1}, {"damaged": "maybe"}],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Pictures(**{"source": "x", **bad})


def test_network_knobs_are_those_of_the_configuration():
    config = ImageTokenizerConfig()
    assert all(getattr(config, name) == value for name, value in vars(Network()).items())
    assert {"channels", "strides", "codebook_size", "gan"} <= set(vars(Network()))


def test_errors_of_what_needs_no_codes():
    x = torch.from_numpy(pixels().transpose(0, 3, 1, 2).copy())
    found = quality.baselines(x[:20], x[20:])
    flat, wanted = from_bytes(x[:20]).flatten(1), from_bytes(x[20:]).flatten(1)
    nearest = torch.cdist(wanted, flat).min(1).values.square().mean() / flat.shape[1]
    assert found["error_nearest_picture"] == pytest.approx(float(nearest.sqrt()) / 2, rel=1e-4)
    assert found["error_mean_picture"] == pytest.approx(float((wanted - flat.mean(0)).square().mean().sqrt()) / 2)
    assert quality.error(x, from_bytes(x)) == 0
    assert quality.error(torch.zeros_like(x), torch.ones(x.shape)) == 1


SMALL = [
    "--width",
    "8",
    "--blocks",
    "1",
    "--code_dim",
    "4",
    "--codebook_size",
    "16",
    "--batch_size",
    "8",
    "--progress",
    "false",
]


def run(command, *argv):
    return guarded(partial(command, "test"), [str(a) for a in argv])


def test_train_evaluate_refit(folder, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(train, "--source", folder, "--out", first, "--steps", 20, *SMALL) == 0
    figures = json.loads((first / "metrics.json").read_text())
    assert 0 < figures["error"] < 1 and 0 < figures["usage"] <= 1 and figures["bits_per_pixel"] == 4 / 16
    page = (first / "report.html").read_text()
    assert len(re.findall(r"data:image/png", page)) == 1 and "Training" in page and "Use of the codes" in page
    (first / "metrics.json").unlink()
    assert run(evaluate, first) == 0
    assert json.loads((first / "metrics.json").read_text()) == figures
    argv = ("--codes", 12, "--points", 64, "--out", second, "--steps", 4, "--batch_size", 8, "--progress", "false")
    assert run(refit_command, first, *argv) == 0
    old, new = (ImageTokenizer.from_pretrained(place / "model") for place in (first, second))
    assert new.codebook_size == 12
    for name, x in old.encoder.state_dict().items():
        assert torch.equal(x, new.encoder.state_dict()[name])
    changed = [not torch.equal(x, new.decoder.state_dict()[name]) for name, x in old.decoder.state_dict().items()]
    assert any(changed)
    assert run(refit_command, first, "--out", first) == 2
    assert "the folder to read" in capsys.readouterr().err


def test_bad_commands(folder, tmp_path, capsys):
    assert run(train, "--source", folder, "--out", tmp_path / "x", *SMALL, "--strides", "3") == 2
    assert "multiples of 3, such as 9 x 9" in capsys.readouterr().err
    assert run(evaluate, tmp_path) == 2
    assert "holds no task.json" in capsys.readouterr().err
    assert run(train, "--source", folder, "--codebok_size", 3) == 2
    assert "did you mean --codebook_size" in capsys.readouterr().err
