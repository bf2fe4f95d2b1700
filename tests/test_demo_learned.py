"""The demo on the codes of a tokenizer that it trains first: end to end, loaded again, and refused where it must be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from discdiff.cli import guarded
from discdiff.report import record
from discdiff.report.views import image_frames
from tasks.demo import __main__ as command
from tasks.demo import codecs, digits, page, tasks
from tasks.demo.settings import Demo
from tokenizers_vq import load_tokenizer

SMALL = {
    "tokenizer": "learned",
    "codes": 16,
    "tokenizer_steps": 6,
    "steps": 4,
    "count": 20,
    "warped": 0,
    "batch_size": 8,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def data():
    return digits.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished demo."""
    out = tmp_path_factory.mktemp("learned")
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    assert guarded(command.main, [*flags, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def opened(folder):
    return tasks.opened(folder)


def test_figures_and_report(folder):
    figures = json.loads((folder / "metrics.json").read_text())
    assert 0 < figures["reconstruction_error"] < 0.5 and 0 <= figures["classifier_accuracy_on_reconstructions"] <= 1
    assert figures["classifier_accuracy_on_real"] > 0.97 and figures["training_steps"] == SMALL["steps"]
    assert figures["seconds"] > figures["tokenizer_seconds"] + figures["train_seconds"] > figures["train_seconds"]
    text = (folder / "report.html").read_text()
    assert ">Pictures that come back from their codes</h2>" in text and "4 x 4 codes of 16" in text
    assert text.count('class="dd dd-player"') == 2 and text.count("<img ") == 4
    assert "classifier accuracy on reconstructions" in text


def test_a_finished_folder_loads_back(folder, opened):
    model, form = opened
    tokenizer = load_tokenizer(folder / "tokenizer")
    assert (tokenizer.codebook_size, tokenizer.depth, form.codec.grid) == (16, 1, (4, 4))
    again = tasks.opened(folder)
    labels = torch.arange(10)
    images = tasks.draw(model, form, labels, 8, seed=1)
    assert images.shape == (10, 8, 8) and images.dtype == torch.int64 and 0 <= images.min() <= images.max() < 17
    assert torch.equal(images, tasks.draw(*again, labels, 8, seed=1))
    assert not torch.equal(images, tasks.draw(*again, labels, 8, seed=2))


def test_only_training_digits_teach_the_tokenizer(tmp_path, data, monkeypatch):
    seen = []

    def trained(codec, images, *_):
        seen.append(images)
        raise KeyboardInterrupt

    monkeypatch.setattr(codecs, "trained", trained)
    assert guarded(lambda _: command.run(Demo(**{**SMALL, "warped": 1}, out=str(tmp_path))), []) == 130
    assert torch.equal(seen[0][: len(data[0])], data[0].images) and len(seen[0]) == 2 * len(data[0])


def test_codes_and_pictures(opened, data):
    _, form = opened
    images, texts = data[1].images[:9], digits.captions(data[1].labels[:9])
    tokens = form.rows(images, texts)
    codes = form.codec.encode(images)
    assert tokens.shape == (9, 4 + 16) and codes.shape == (9, 16, 1) and codes.unique().numel() > 1
    back = form.images_of(tokens)
    assert torch.equal(back, form.codec.decode(codes)) and torch.equal(tokens, form.rows(images, texts))
    x = codecs.scaled(torch.tensor([[[0, 8, 16]]]))
    assert x.tolist() == [[[[-1.0, 0.0, 1.0]]]]


def test_a_player_shows_the_picture_of_its_codes(opened):
    model, form = opened
    *_, (state, _) = tasks.draw_run(model, form, ["here is number two"], 8, 3)
    trace = record(tasks.draw_run(model, form, ["here is number two"], 8, 3))
    frames = image_frames(trace, page.views(form)[1])
    assert frames.shape[1:] == (8, 8, 4) and not frames[0, :, :, 3].all() and frames[-1, :, :, 3].all()
    assert (frames[-1, :, :, 0] == page.grey(form.images_of(state.tokens.cpu()))[0]).all()
    held = frames[..., 3].reshape(len(frames), 4, 2, 4, 2)
    assert (held == held[:, :, :1, :, :1]).all()  # a cell appears as one


def test_what_is_hidden_is_hidden_from_the_encoder_too(opened, data):
    model, form = opened
    images, texts = data[1].images[:8], digits.captions(data[1].labels[:8])
    other = images.clone()
    other[:, 4:] = 16 - other[:, 4:]
    assert not torch.equal(form.rows(images, texts)[:, 4:12], form.rows(other, texts)[:, 4:12])  # cells see neighbours
    batch = tasks.fill_batch(model, form, images, texts, slice(4, 8))
    assert torch.equal(batch.tokens, tasks.fill_batch(model, form, other, texts, slice(4, 8)).tokens)
    assert not batch.free[:, :12].any() and batch.free[:, 12:].all()
    odd = tasks.fill_batch(model, form, images, texts, slice(3, 4))  # half of a cell: all of it is made anew
    assert odd.free[0].nonzero().flatten().tolist() == list(range(8, 12))
    filled = tasks.fill(model, form, images, texts, slice(4, 8), 4, seed=0)
    assert filled.shape == images.shape and 0 <= filled.min() <= filled.max() < 17


def test_an_interrupted_demo_keeps_its_tokenizer(folder, tmp_path, data):
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(folder / "tokenizer_training", tmp_path / "tokenizer_training")
    codec, cost = command.codec_for(Demo(**{**SMALL, "tokenizer_steps": 99}, out=str(tmp_path)), data[0])
    images = data[1].images[:9]
    assert torch.equal(codec.encode(images), codecs.opened(folder / "tokenizer").encode(images))
    assert cost["tokenizer_seconds"] > 0
    for changed in ({"codes": 17}, {"tokenizer": "pixels"}):
        with pytest.raises(ValueError, match="tokenizer is 'learned, 16 codes': an interrupted run left this"):
            command.codec_for(Demo(**{**SMALL, **changed}, out=str(tmp_path)), data[0])


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tasks.opened(tmp_path)
    codecs.Pixels.new().tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="4 levels of 17.: the model beside it learned .* 1 levels of 16"):
        tasks.opened(tmp_path)
    codecs.untrained(17, seed=0).tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="1 levels of 17.: the model beside it"):
        tasks.opened(tmp_path)
