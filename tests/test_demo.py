"""The demo end to end with a handful of steps, and its parts: digits, captions, drawing, reading, filling in."""

import json
import re
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from discdiff.cli import guarded
from discdiff.layout import Layout, Modality, Segment, VocabLayout
from discdiff.models import DiscDiffModel
from tasks.demo import __main__ as command
from tasks.demo import codecs, digits, judge, tasks
from tasks.demo.__main__ import Demo

SMALL = [
    "--steps",
    "8",
    "--count",
    "20",
    "--warped",
    "1",
    "--batch_size",
    "16",
    "--hidden_size",
    "32",
    "--num_layers",
    "1",
    "--num_heads",
    "2",
]
PARTS = (
    "Training",
    "Drawn from captions",
    "Captions read from images it never saw",
    "Lower halves filled in",
    "An image appears",
    "A caption appears",
    "All figures",
)


@pytest.fixture(scope="module")
def form():
    return digits.Form.of(codecs.Pixels.new())


@pytest.fixture(scope="module")
def where(form):
    return form.where


@pytest.fixture(scope="module")
def data():
    return digits.load()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished demo."""
    folder = tmp_path_factory.mktemp("demo")
    assert guarded(command.main, [*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def model(run) -> DiscDiffModel:
    return DiscDiffModel.from_pretrained(run / "model").eval()


# ---- the whole


def check_figures(figures: dict) -> None:
    shares = {f"{name}_{steps}" for name in ("digit_accuracy", "training_copies") for steps in (64, 16)}
    for name in ("caption_accuracy", "classifier_accuracy_on_real", *shares):
        assert 0 <= figures[name] <= 1
    assert figures["classifier_accuracy_on_real"] > 0.97  # the judge knows digits
    assert figures["spread_64"] > 0 and figures["spread_16"] > 0
    assert figures["seconds"] > figures["train_seconds"] > 0


def test_metrics(run):
    figures = json.loads((run / "metrics.json").read_text())
    check_figures(figures)
    assert figures["training_steps"] == 8 and figures["settings"]["count"] == 20


def test_the_report_holds_everything(run):
    page = (run / "report.html").read_text()
    assert all(f">{part}</h2>" in page for part in PARTS)
    assert page.count('class="dd dd-player"') == 2 and page.count("<img ") == 3 and page.count("<svg") >= 1
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "http-equiv" not in page  # nothing from elsewhere
    for name in ("drawing.gif", "reading.gif"):
        with Image.open(run / name) as picture:
            assert picture.n_frames > 2


def test_a_finished_run_starts_anew(run):
    first = json.loads((run / "metrics.json").read_text())
    assert guarded(command.main, [*SMALL, "--out", str(run)]) == 0  # instead of refusing the older checkpoints
    again = json.loads((run / "metrics.json").read_text())
    assert "resumed" not in (run / "training" / "metrics.jsonl").read_text()
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in again.items() if "seconds" not in k
    }


def test_a_busy_machine_is_named():
    assert not Demo().hurried(2861) and not Demo(steps=8).hurried(8)
    assert "only 210 training steps in 258 s" in Demo().hurried(210) and "--seconds" in Demo().hurried(210)


def test_an_interrupted_run_goes_on(tmp_path, form, data, monkeypatch):
    demo = Demo(
        steps=8, count=20, warped=0, batch_size=16, hidden_size=32, num_layers=1, num_heads=2, out=str(tmp_path)
    )
    trainer = command.trainer_for(demo, form, digits.CaptionedDigits(form, data[0], 0, 0))
    step = trainer.training_step

    def interrupted(*arguments):
        if trainer.state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(trainer, "training_step", interrupted)
    monkeypatch.setattr(command, "trainer_for", lambda *_: trainer)
    assert guarded(lambda _: command.run(demo), []) == 130
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "training").glob("checkpoint-*")] == ["checkpoint-4"]
    assert command.run(demo)["training_steps"] == 8
    assert '"step": 4, "resumed": true' in (tmp_path / "training" / "metrics.jsonl").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_demo_on_a_gpu(tmp_path):
    figures = command.run(Demo(steps=30, count=20, out=str(tmp_path)))
    check_figures(figures)
    assert all(f">{part}</h2>" in (tmp_path / "report.html").read_text() for part in PARTS)


# ---- what is refused

REFUSED = {
    "--count 19": "count is 19: at least 20 images, two per digit",
    "--seconds 0": "seconds is 0.0: give seconds of training, or steps",
    "--steps -1": "steps is -1",
    "--warped -1": "warped is -1",
    "--conditional 1.5": "conditional is 1.5: a share in [0, 1]",
    "--hidden_size 30 --num_heads 4": "hidden_size is 30 and num_heads 4",
    "--batch_size 0": "batch_size is 0: it must be at least 1",
    "--batch_size 100000": "rows fill no batch of 100000",
    "--learning_rate -1": "learning_rate is -1.0",
    "--tokenizer fixed": 'tokenizer is \'fixed\': choose "pixels" or "learned"',
    "--tokenizer learned --codes 1": "codes is 1: at least 2 codes",
    "--tokenizer learned --tokenizer_steps 0": "tokenizer_steps is 0: at least 1",
    "--tokenizer learned --hidden_size 30 --num_heads 4": "hidden_size is 30 and num_heads 4",
    "--sede 3": "unknown argument --sede: did you mean --seed",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_the_demo_refuses(flags, tmp_path, monkeypatch, capsys):
    def train(*_):
        raise AssertionError("training began")

    monkeypatch.setattr("discdiff.training.DiffusionTrainer.train", train)
    assert guarded(command.main, ["--warped", "0", *flags.split(), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and REFUSED[flags] in line


def test_a_wrong_command_is_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tasks.demo", "--count", "3"])
    monkeypatch.delitem(sys.modules, "tasks.demo.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tasks.demo", run_name="__main__")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err == "error: count is 3: at least 20 images, two per digit\n"


# ---- digits and captions


def test_every_caption_names_its_digit():
    labels = torch.arange(10).repeat_interleave(len(digits.TEMPLATES))
    texts = digits.captions(labels)
    assert len(set(texts)) == len(labels) and [digits.label_of(text) for text in texts] == labels.tolist()
    assert [digits.label_of(text) for text in ("", "a", "sevens", "_ _")] == [-1] * 4


def test_captions_and_images_come_back_from_their_rows(form, where, data):
    images, texts = data[1].images[:9], digits.captions(data[1].labels[:9])
    tokens = form.rows(images, texts)
    assert tokens.shape == (9, where.length) and torch.equal(form.images_of(tokens), images)
    caption = tokens[:, where.columns("caption")]
    assert [digits.read(row) for row in caption] == texts
    assert set(digits.read(torch.full_like(caption[0], where.vocab.mask))) <= {"_", " "}


def test_the_tokens_of_pixels_are_what_they_were(form, data):
    images, texts = data[1].images[:20], digits.captions(data[1].labels[:20])
    words = VocabLayout(len(digits.LEXICON), (Modality("image", 17, depth=4),))
    assert form.where == Layout(
        words, (Segment("caption", "text", (4,)), Segment("image", "image", (4, 4))), packed=True
    )
    patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
    levels = len(digits.LEXICON) + 256 + 17 * torch.arange(4)  # each level has a range of its own after the specials
    tokens = torch.cat([digits.caption_ids(texts), (patches + levels).flatten(1)], 1)
    assert torch.equal(form.rows(images, texts), tokens) and torch.equal(form.images_of(tokens), images)
    columns = 4 + torch.arange(64).view(4, 4, 2, 2).transpose(1, 2).reshape(8, 8)
    assert torch.equal(form.places(), columns)


def test_the_split_is_stratified_and_repeats(data):
    train, test = data
    assert len(test) == 360 and len(train) == 1797 - 360
    assert test.labels.bincount().min() >= 34
    assert torch.equal(digits.load()[1].images, test.images)
    seen = {tuple(image.flatten().tolist()) for image in train.images}
    assert not any(tuple(image.flatten().tolist()) in seen for image in test.images)


def test_warped_copies_stay_pictures_and_repeat(data):
    images = data[0].images[:50]
    warped = digits.warp(images, 2, seed=3)
    assert warped.shape == (100, 8, 8) and warped.dtype == torch.int64
    assert warped.min() >= 0 and warped.max() < codecs.LEVELS
    assert torch.equal(warped, digits.warp(images, 2, seed=3)) and not torch.equal(
        warped, digits.warp(images, 2, seed=4)
    )
    near = (warped - images.repeat(2, 1, 1)).abs().double().mean()
    far = (warped - images.flip(0).repeat(2, 1, 1)).abs().double().mean()
    assert 0.2 < near < 0.6 * far  # changed, and still the same digit


def test_training_rows_say_what_they_show(form, where, data):
    rows = digits.CaptionedDigits(form, data[0], 1, seed=0)
    assert len(rows) == 2 * len(data[0])
    tokens = torch.stack([rows[i]["tokens"] for i in range(len(rows))])
    named = [digits.label_of(digits.read(row)) for row in tokens[:, where.columns("caption")]]
    assert named == data[0].labels.repeat(2).tolist()
    assert torch.equal(form.images_of(tokens[: len(data[0])]), data[0].images)
    texts = {digits.read(row) for row in tokens[:, where.columns("caption")]}
    assert texts == {template.format(word) for template in digits.TEMPLATES for word in digits.WORDS}


# ---- what the weights are asked to do


def test_drawings_are_legal_and_follow_the_seed(model, form):
    labels = torch.arange(10)
    images = tasks.draw(model, form, labels, 16, seed=1)
    assert images.shape == (10, 8, 8) and images.min() >= 0 and images.max() < codecs.LEVELS
    assert torch.equal(images, tasks.draw(model, form, labels, 16, seed=1))
    assert not torch.equal(images, tasks.draw(model, form, labels, 16, seed=2))


def test_readings_leave_the_image_alone(model, form, data):
    images = data[1].images[:5]
    texts = tasks.read(model, form, images)
    assert digits.caption_ids(texts).shape == (5, digits.CAPTION)  # nothing but what captions are made of
    assert texts == tasks.read(model, form, images)  # nothing is drawn: the likeliest letter
    batch = tasks.read_batch(model, form, images)
    assert batch.free.sum(1).tolist() == [digits.CAPTION] * 5
    assert torch.equal(form.images_of(batch.tokens), images)


@pytest.mark.parametrize("rows", [slice(4, 8), slice(0, 3), slice(3, 4)])
def test_filling_changes_no_given_pixel(model, form, data, rows):
    images = data[1].images[:8]
    filled = tasks.fill(model, form, images, digits.captions(data[1].labels[:8]), rows, 8, seed=0)
    hidden = torch.zeros(8, dtype=torch.bool)
    hidden[rows] = True
    assert torch.equal(filled[:, ~hidden], images[:, ~hidden]) and not torch.equal(filled[:, hidden], images[:, hidden])
    assert filled.min() >= 0 and filled.max() < codecs.LEVELS


def test_judges_tell_digits_copies_and_collapse(data):
    train, test = data
    svm = judge.classifier(train)
    assert judge.accuracy(svm, test.images, test.labels) > 0.97
    assert judge.accuracy(svm, test.images, (test.labels + 1) % 10) < 0.02
    half = torch.cat([train.images[:5], digits.warp(train.images[:5], 1)])
    assert judge.copies(half, train.images) == 0.5 and judge.copies(test.images, train.images) == 0
    one = test.images[:1].repeat(20, 1, 1)
    assert judge.spread(one, torch.arange(20) % 10) == 0 < judge.spread(test.images, test.labels)


def test_settings_are_chosen_without_a_look_at_the_test():
    train, held = digits.load("validation")
    everything, test = digits.load()
    assert (len(train), len(held), len(test)) == (1197, 240, 360) and held.labels.bincount().min() >= 23
    parts = sorted(bytes(image.flatten().byte()) for part in (train, held) for image in part.images)
    assert parts == sorted(bytes(image.flatten().byte()) for image in everything.images)
    with pytest.raises(ValueError, match="part is 'train'"):
        Demo(part="train")
