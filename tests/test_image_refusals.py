"""python -m tasks.image: what is refused, before anything is lost."""

import dataclasses
import functools
import io
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from picture_toy import CODEC, FEW, QUIET, SMALL, picture, quiet, run  # noqa: F401  (quiet acts by itself)
from PIL import Image

from tasks.image import commands, judged, tokenizer
from tasks.image.generate import drawn, opened
from tasks.image.settings import Pictures
from tasks.image.sources import Read, load_said, read
from tokenizers_vq import ImageTokenizer, ImageTokenizerConfig

# -- what is refused -------------------------------------------------------------------------------------------------------

once = functools.cache(opened)


@pytest.fixture
def kept(picture_model, monkeypatch):
    """As `picture_model`, its folders read once for all."""
    monkeypatch.setattr(commands, "opened", once)
    return picture_model


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--condition", "rde"), "no training caption has 'rde' (did you mean 'red'?)"),
        (("--condition", "dark blue red"), "caption is 'dark blue red': at most 2 words are read"),
        (("--count", "0"), "count is 0: at least 1"),
        (("--sampler", "ancestal"), "did you mean 'ancestral'?"),
        (("--sampler.stepz", "4"), "did you mean --sampler.steps?"),
        (("--sampler.nucleus", "1.5"), "nucleus is 1.5: a share in (0, 1]"),
        (("--sampler.steps", "many"), "'many' is no int"),
        (("--conditon", "red"), "did you mean --condition?"),
    ],
)
def test_bad_requests(kept, argv, message, capsys):
    folder = kept("vq_diffusion")
    assert run(commands.sample, folder, *argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--hole", "0.5,0,0.5,1"), "hole is (0.5, 0.0, 0.5, 1.0): left < right and top < bottom, shares in [0, 1]"),
        (("--hole", "0.6,0,0.5,1"), "left < right"),
        (("--hole", "0,0.2,1,0.1"), "top < bottom"),
        (("--hole", "0,0,1.1,1"), "shares in [0, 1]"),
        (("--hole", "0,0,1"), "hole is (0.0, 0.0, 1.0)"),
        (("--hole", "a,0,1,1"), "'a' is no float"),
        (("--picture", "valid:99"), "picture is 'valid:99': there are 10 validation pictures"),
        (("--picture", "valid:-1"), "give a file, or valid:N"),
        (("--picture", "nowhere.png"), "picture is 'nowhere.png': give a file, or valid:N"),
        (("--picture", "16.png"), "picture is (16, 16): the model makes grids of (3, 3) codes"),
        (("--picture", "13.png"), "pictures are 13 x 13: height and width must be multiples of 4, such as 12 x 12"),
        (("--picture", "cut.png"), "1 of 1 pictures of 'cut.png' cannot be read"),
        (("--picture", "floats.tif"), "mode F, not 8 or 16 bits a channel"),
        (("--condition", "green"), "no training caption has 'green'"),
    ],
)
def test_bad_holes_and_pictures(kept, argv, message, tmp_path, capsys, monkeypatch):
    folder = kept("vq_diffusion")
    monkeypatch.chdir(tmp_path)
    for size in (13, 16):
        picture(9, 9, 0, size).save(f"{size}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "16.png").read_bytes()[:300])
    Image.fromarray(np.zeros((12, 12), dtype=np.float32)).save("floats.tif")
    assert run(commands.inpaint, folder, *argv, "--out", "filled") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "filled").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--method", "vqdiffusion"),
            "method is 'vqdiffusion': choose from vq_diffusion, vq_paper, vq_released, vq_ddm, maskgit",
        ),
        (
            ("--tokenizer", "nowhere"),
            "tokenizer is 'nowhere', which holds none: finish python -m tasks.image tokenizer",
        ),
        (("--condition", "colour"), """condition is 'colour': give "label", or """),
        (("--source", "flat"), "put every picture into a folder named by its label, or add metadata.csv"),
        (("--source", "empty"), "'empty' holds no picture"),
        (("--source", "nowhere"), "there is no 'nowhere': give a folder, an idx or parquet file"),
        (("--source", "cut"), "1 of 2 pictures of 'cut' cannot be read"),
        (("--source", "mixed"), "give size= to cut all pictures to one square"),
        (("--source", "mixed", "--size", "10"), "pictures are 10 x 10: height and width must be multiples of 4"),
        (("--source", "deep"), "mode F, not 8 or 16 bits"),
        (("--hidden_size", "15"), "hidden_size is 15 and num_heads 2"),
        (("--words", "0"), "words is 0: at least one word"),
        (("--dropped", "2"), "dropped is 2.0: a share of the rows in [0, 1]"),
        (("--valid_last", "40"), "too few to keep 40 back"),
        (("--valid-last", "40"), "source is ''"),
        (("--methode", "vq_ddm"), "did you mean --method?"),
    ],
)
def test_bad_trainings(picture_root, argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, sizes in {"flat": "", "empty": "", "cut": "a", "mixed": "ab", "deep": "a"}.items():
        (tmp_path / name / sizes[:1]).mkdir(parents=True)
    picture(9, 9, 0).save("flat/a.png")
    for n in range(2):
        picture(9, 9, 0).save(f"cut/a/{n}.png")
        picture(9, 9, 0, 12 + 4 * n).save(f"mixed/a/{n}.png")
    (tmp_path / "cut/a/1.png").write_bytes((tmp_path / "cut/a/0.png").read_bytes()[:300])
    Image.fromarray(np.zeros((12, 12), dtype=np.float32)).save("deep/a/a.tif")
    flags = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--tokenizer": picture_root / "codec", "--out": "out"}
    if "--valid_last" in argv:
        flags["--source"] = picture_root / "pictures"
    flags |= dict(zip(argv[::2], argv[1::2], strict=True))
    assert run(commands.train, *(word for pair in flags.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "codes").exists()


def test_parts_that_do_not_belong_together(picture_model, tmp_path, capsys):
    folder = tmp_path / "swapped"
    shutil.copytree(picture_model("vq_diffusion"), folder)
    config = opened(folder).tokenizer.config
    other = ImageTokenizerConfig(channels=3, width=8, blocks=1, code_dim=4, strides=(2, 2), codebook_size=8)
    shutil.rmtree(folder / "model")
    ImageTokenizer(other).save_pretrained(folder / "model")
    for command in (commands.sample, commands.inpaint, judged.evaluate):
        capsys.readouterr()
        assert config.codebook_size == 16 and run(command, folder) == 2
        error = capsys.readouterr().err
        assert "codes is '1 levels of 16': 1 levels of 8, as the tokenizer beside the model has" in error
    shutil.copytree(picture_model("vq_diffusion"), folder, dirs_exist_ok=True)
    weights = folder / "codes" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert run(commands.sample, folder, "--condition", "red") == 2
    assert "is damaged: model.safetensors should have" in capsys.readouterr().err
    for command in (commands.sample, commands.inpaint, judged.evaluate):
        assert run(command, tmp_path) == 2 and "holds no picture model" in capsys.readouterr().err


def test_a_model_that_is_told_nothing(picture_root, tmp_path, capsys):
    folder = tmp_path / "untold"
    argv = ("--tokenizer", picture_root / "codec", "--condition", "", *SMALL, "--out", folder)
    assert run(commands.train, *argv) == 0
    assert opened(folder).lexicon.words == ("", "?")
    assert run(commands.sample, folder, "--count", 1, "--out", tmp_path / "s", *FEW) == 0
    assert run(commands.sample, folder, "--condition", "red") == 2
    assert "no training caption has 'red'" in capsys.readouterr().err
    assert run(judged.evaluate, folder) == 2
    assert "a model that is told nothing cannot be judged by what it was told" in capsys.readouterr().err
    assert run(judged.evaluate, folder, "--samples", 5) == 2 and "samples is 5: at least 6" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(picture_root, picture_model, tmp_path, capsys):
    folder = tmp_path / "held"
    shutil.copytree(picture_model("vq_diffusion"), folder)
    argv = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--tokenizer": picture_root / "codec", "--out": folder}
    assert run(commands.train, *(w for pair in argv.items() for w in pair)) == 0
    held = (folder / "task.json").read_bytes()
    for other in ({"--method": "vq_released"}, {"--condition": ""}, {"--dropped": "0.5"}):
        assert run(commands.train, *(w for pair in (argv | other).items() for w in pair)) == 2
        assert "holds a model of other settings, pictures or codes" in capsys.readouterr().err
    codec = tmp_path / "codec"
    shutil.copytree(picture_root / "codec", codec)
    tokenizer_of = ImageTokenizer.from_pretrained(codec / "model")
    with torch.no_grad():
        next(tokenizer_of.parameters()).add_(1.0)
    tokenizer_of.save_pretrained(picture_root / "codec" / "model")
    try:
        assert run(commands.train, *(w for pair in argv.items() for w in pair)) == 2
    finally:
        shutil.rmtree(picture_root / "codec")
        shutil.copytree(codec, picture_root / "codec")
    assert (folder / "task.json").read_bytes() == held


def test_nothing_said_is_the_null_condition(picture_model):
    trained = opened(picture_model("vq_diffusion"))
    trained.model.double()
    free = drawn(trained, ["red"] * 4, steps=2, guidance=0.0)[1]
    assert torch.equal(drawn(trained, [""] * 4, steps=2)[1], free)
    assert not torch.equal(drawn(trained, ["red"] * 4, steps=2)[1], free)


def test_a_judge_of_other_values_is_refused(picture_model, tmp_path, capsys):
    folder = tmp_path / "held"
    shutil.copytree(picture_model("vq_diffusion"), folder)
    for left in folder.glob("judge.*"):
        left.unlink()
    few = ("--samples", 6, "--judge_steps", 2, "--sampler.steps", 2)
    assert run(judged.evaluate, folder, *few) == 0
    assert run(judged.evaluate, folder, *few) == 0  # the same one is taken as it is
    for changed in (("--judge_steps", 3), ("--judge_seed", 1)):
        capsys.readouterr()
        assert run(judged.evaluate, folder, *few, *changed) == 2
        assert "it learned other pictures, or otherwise: remove it" in capsys.readouterr().err
    (folder / "judge.safetensors").write_bytes(b"no weights")
    assert run(judged.evaluate, folder, *few) == 2
    assert "is no judge of these 2 values: remove it" in capsys.readouterr().err
    judged.save_model(judged.Judge(2, 3, 5, 32), str(folder / "judge.safetensors"))
    assert run(judged.evaluate, folder, *few) == 2
    assert "is no judge of these 2 values: remove it" in capsys.readouterr().err


def test_a_model_is_not_trained_over_its_tokenizer_or_on_a_model(picture_root, picture_model, capsys):
    codec = picture_root / "codec"
    assert run(commands.train, "--tokenizer", codec, *SMALL, "--out", codec) == 2
    assert "that is the tokenizer's: give another folder" in capsys.readouterr().err
    model = picture_model("vq_diffusion")
    assert run(commands.train, "--tokenizer", model, *SMALL, "--out", picture_root / "other") == 2
    assert "that is a model: give what tokenizer train wrote" in capsys.readouterr().err


def test_a_tokenizer_of_other_pictures_is_not_taken_for_this_one(picture_root, tmp_path, capsys):
    folder, source = tmp_path / "codec", picture_root / "pictures"
    shutil.copytree(picture_root / "codec", folder)
    before = (folder / "task.json").read_bytes()
    assert run(tokenizer.train, "--source", source / "red", "--steps", 10, *CODEC, "--out", folder) == 2
    assert "it holds a tokenizer of other settings" in capsys.readouterr().err
    assert (folder / "task.json").read_bytes() == before
    fitted = ("--codes", 8, "--steps", 2, *QUIET, "--out", tmp_path / "fitted")
    assert run(tokenizer.refit_command, picture_root / "codec", *fitted) == 0
    assert run(tokenizer.refit_command, picture_root / "codec", *fitted, "--rounds", 3) == 2
    assert "it holds a tokenizer of other settings than its refit.json" in capsys.readouterr().err


def test_nothing_said_needs_rows_that_were_told_nothing(picture_model):
    trained = opened(picture_model("vq_diffusion"))
    never = dataclasses.replace(trained, generator=dataclasses.replace(trained.generator, dropped=0.0))
    for conditions, knobs in ((["red"], {"guidance": 2.0}), ([""], {})):
        with pytest.raises(ValueError, match="dropped is 0.0: nothing was said in no row of training"):
            drawn(never, conditions, steps=2, **knobs)
    drawn(never, ["red"], steps=2, guidance=2.0, unprompted="absent")


def test_what_is_said_of_every_picture_is_one_text(tmp_path):
    pixels = io.BytesIO()
    picture(10, 10, 0).save(pixels, "PNG")
    for said in (["red", None], [["a", "b"], ["c"]]):
        table = pyarrow.table({"image": [pixels.getvalue()] * 2, "label": said})
        pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="says nothing that can be read"):
            read(str(tmp_path / "x.parquet"), Pictures(source="-"), 3, "label")
    picture(10, 10, 0).save(tmp_path / "a.png")
    for text, found in (("\ufefffile_name,text\na.png,red\n", ["red"]), ("file_name,text\na.png\n", None)):
        (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
        if found is None:
            with pytest.raises(ValueError, match="says nothing that can be read"):
                read(str(tmp_path), Pictures(source="-"), 3, "text")
        else:
            assert read(str(tmp_path), Pictures(source="-"), 3, "text").said == found


def test_pictures_to_judge_come_from_all_over_the_validation_part(picture_root):
    train, valid = load_said(Pictures(source=str(picture_root / "pictures"), valid_fraction=0.25), 3, "label")
    some = judged.asked(train, valid, 6)
    assert len(some.x) == 6 and set(some.said) == {"red", "dark blue"}
    for part, message in (
        (valid.rows(torch.arange(len(valid.x)) < 5), "keep at least 6 pictures back"),
        (Read(valid.x[..., :8], [], valid.said), r"the training pictures are \(3, 12, 12\)"),
        (Read(valid.x, [], ["green"] * len(valid.x)), "labels is \\['green'\\]: no training picture has them"),
    ):
        with pytest.raises(ValueError, match=message):
            judged.asked(train, part, 6)
