"""python -m tasks.image train|sample|inpaint|evaluate: every method end to end, its laws, and what is refused."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_toy import EACH, FEW, SMALL, few, quiet, run  # noqa: F401  (quiet acts by itself)
from PIL import Image

from discdiff.denoisers import Unprompted, process_of
from discdiff.models import DiscDiffModel
from discdiff.sampling.sampler import CACHES
from tasks.common import generation
from tasks.common.methods import method_of
from tasks.common.sections import Drawing, sampler_of
from tasks.image import commands, generate, judged
from tasks.image.generate import drawn, opened, touched
from tasks.image.settings import Judged
from tasks.image.sources import Read
from tokenizers_vq import load_tokenizer

# -- end to end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EACH)
def test_train_sample_and_fill_in(picture_model, method, tmp_path, capsys):
    folder = picture_model(method)
    asked = (folder, "--condition", "red", "--count", 3, "--out", tmp_path / "a", "--sampler.steps", few(method))
    assert run(commands.sample, *asked, "--report", tmp_path / "a.html") == 0, capsys.readouterr().err
    files = sorted((tmp_path / "a").iterdir())
    assert [f.name for f in files] == ["sample_1.png", "sample_2.png", "sample_3.png"]
    assert Image.open(files[0]).size == (12, 12) and "data:image/png" in (tmp_path / "a.html").read_text()
    made, codes = drawn(opened(folder), ["red"] * 3, steps=few(method))
    assert all(np.array_equal(np.asarray(Image.open(f)).transpose(2, 0, 1), x) for f, x in zip(files, made.numpy()))
    assert codes.shape == (3, 9, 1) and not torch.equal(
        codes, drawn(opened(folder), ["red"] * 3, seed=9, steps=few(method))[1]
    )
    assert (
        run(
            commands.inpaint,
            folder,
            "--condition",
            "red",
            "--count",
            2,
            "--out",
            tmp_path / "f",
            "--sampler.steps",
            few(method),
        )
        == 0
    )
    assert sorted(f.name for f in (tmp_path / "f").iterdir()) == ["filled_1.png", "filled_2.png", "report.html"]


@pytest.mark.parametrize("method", EACH)
def test_known_codes_never_change(picture_model, method):
    trained = opened(picture_model(method))
    codes = torch.randint(0, 16, (6, 9, 1), generator=torch.Generator().manual_seed(0))
    known = ~touched(trained.grid, (0.4, 0.0, 1.0, 0.5))[None].expand(6, -1)
    assert int(known[0].sum()) == 9 - 2 * 2
    said = ["red"] * 6
    out, other = (drawn(trained, said, seed, codes=codes, known=known, steps=few(method))[1] for seed in (0, 1))
    assert torch.equal(out[known], codes[known]) and torch.equal(other[known], codes[known])
    free = drawn(trained, said, steps=few(method))[1]
    assert not torch.equal(free[known], codes[known])  # control: left to itself the model makes others
    assert not torch.equal(out[~known], codes[~known]) and not torch.equal(out[~known], other[~known])


@pytest.mark.parametrize("method", EACH)
def test_what_is_saved_samples_alike(picture_model, method, tmp_path):
    trained = opened(picture_model(method))
    trained.model.save_pretrained(tmp_path / "model")
    trained.tokenizer.save_pretrained(tmp_path / "codec")
    again = generate.Trained(
        load_tokenizer(tmp_path / "codec"),
        DiscDiffModel.from_pretrained(tmp_path / "model").eval(),
        trained.lexicon,
        trained.pictures,
        trained.generator,
    )
    said = ["red", "dark blue", "red"]
    for found, wanted in zip(
        drawn(again, said, 3, steps=few(method)), drawn(trained, said, 3, steps=few(method)), strict=True
    ):
        assert torch.equal(found, wanted)
    wanted = method_of(method)
    assert wanted.causal or process_of(again.model) == wanted.process
    assert again.model.config.time_conditioning == wanted.timed and again.model.config.prediction == wanted.prediction


def test_rows_do_not_depend_on_how_many_are_drawn_at_once(picture_model):
    trained = opened(picture_model("vq_diffusion"))
    trained.model.double()  # the last bits of float32 depend on the shape of a batch
    said = ["red", "dark blue", "red", "red", "dark blue"]
    whole = drawn(trained, said, 4, steps=4)[1]
    assert torch.equal(drawn(trained, said, 4, steps=4, batch=2)[1], whole)
    assert torch.equal(drawn(trained, said[2:3], 6, steps=4)[1], whole[2:3])


def test_evaluate(picture_model, capsys):
    folder = picture_model("vq_diffusion")
    assert run(judged.evaluate, folder, "--samples", 8, "--judge_steps", 12, *FEW) == 0, capsys.readouterr().err
    found = json.loads((folder / "metrics.json").read_text())
    shares = {"accuracy", "precision", "recall", "coverage", "accuracy_real", "accuracy_reconstructed"}
    assert shares | {"standard_error", "fid", "density", "fid_reconstructed"} == set(found)
    assert all(0 <= found[name] <= 1 for name in shares) and found["fid"] > 0 and found["density"] >= 0
    assert found["accuracy_real"] > 0.9  # red and blue are told apart, so the judge was given the right labels
    assert found["standard_error"] == pytest.approx(math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 8))
    page = (folder / "report.html").read_text()
    assert "Samples" in page and "Real pictures" in page and (folder / "judge.safetensors").is_file()


def test_a_label_that_no_training_picture_has():
    judge = judged.Judge(2, 3, 2, 4)
    x = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    assert judged.share(judge, ["a", "b"], x, ["a"] * 6)[0] in (0, 1)
    with pytest.raises(ValueError, match=r"labels is \['c', 'd'\]: no training picture has them"):
        judged.share(judge, ["a", "b"], x, list("abccda"))
    with pytest.raises(ValueError, match=r"labels is \['a'\]: between 2 and 1000 values"):
        judged.fit_judge(Read(x, [], ["a"] * 6), Path("judge"), Judged())


def test_a_repeated_and_an_interrupted_training_go_on(picture_root, picture_model, tmp_path, monkeypatch, capsys):
    whole = picture_model("vq_diffusion") / "codes" / "model.safetensors"
    before, folder = whole.read_bytes(), tmp_path / "interrupted"
    argv = ("--tokenizer", picture_root / "codec", "--method", "vq_diffusion", *SMALL, "--out")
    assert run(commands.train, *argv, picture_model("vq_diffusion")) == 0 and whole.read_bytes() == before
    step = generation.DiffusionTrainer.training_step

    def interrupted(trainer, *arguments):
        if trainer.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *arguments)

    monkeypatch.setattr(generation.DiffusionTrainer, "training_step", interrupted)
    assert run(commands.train, *argv, folder) == 130
    monkeypatch.undo()
    assert not (folder / "codes").exists() and [f.name for f in (folder / "codes_training").glob("check*")]
    capsys.readouterr()
    assert run(commands.sample, folder, "--condition", "red") == 2
    assert "holds no picture model: run python -m tasks.image train --out it, to its end" in capsys.readouterr().err
    assert run(commands.train, *argv, folder) == 0
    assert '"resumed": true' in (folder / "codes_training" / "metrics.jsonl").read_text()
    assert (folder / "codes" / "model.safetensors").read_bytes() == before  # as if it had never been interrupted


# -- laws ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "hole", "rows"),
    [
        ((2, 4), (0.5, 0.0, 1.0, 1.0), ["..##", "..##"]),
        ((2, 4), (0.5, 0.0, 0.75, 0.5), ["..#.", "...."]),
        ((3, 3), (0.4, 0.0, 1.0, 0.5), [".##", ".##", "..."]),  # 0.4 is inside the second column, 0.5 the second row
        ((4, 2), (0.0, 0.3, 0.5, 0.31), ["..", "#.", "..", ".."]),
        ((2, 2), (0.0, 0.0, 1.0, 1.0), ["##", "##"]),
        ((1, 4), (0.25, 0.0, 0.2501, 1.0), [".#.."]),
    ],
)
def test_what_a_hole_touches(grid, hole, rows):
    assert touched(grid, hole).tolist() == [mark == "#" for row in rows for mark in row]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_keys_and_values_change_no_token(picture_model, monkeypatch, guidance):
    trained, used = opened(picture_model("autoregressive")), []
    trained.model.double()
    monkeypatch.setitem(CACHES, "block", lambda inner, plain=CACHES["block"]: used.append(1) or plain(inner))
    said = ["red", "dark blue"] * 2
    cached = drawn(trained, said, 5, guidance=guidance)[1]
    assert used
    used.clear()
    assert torch.equal(drawn(trained, said, 5, guidance=guidance, cache="none")[1], cached) and not used
    codes = torch.randint(0, 16, (4, 9, 1), generator=torch.Generator().manual_seed(1))
    known = torch.tensor([True, False, True, True, False, False, True, False, True]).expand(4, -1)
    filled = [
        drawn(trained, said, 5, codes=codes, known=known, guidance=guidance, cache=c)[1] for c in ("block", "none")
    ]
    assert torch.equal(*filled) and not torch.equal(filled[0], cached)


@pytest.mark.parametrize("method", ["vq_diffusion", "vq_ddm", "maskgit"])
def test_blocks_are_made_one_after_the_other(picture_model, method):
    """Codes do not depend on later ones, and keys and values of finished blocks change no code."""
    trained, said = opened(picture_model(method, 3)), ["red", "dark blue"] * 3
    trained.model.double()
    layout = generation.layout_of(trained.model)
    assert layout.block == 3 and len(layout.tables().span.unique()) == 4  # what is said, and three blocks
    made = drawn(trained, said, 5, steps=6)[1]
    assert torch.equal(drawn(trained, said, 5, steps=6, cache="none")[1], made)
    guided = [drawn(trained, said, 5, steps=6, guidance=2.5, cache=c)[1] for c in ("block", "none")]
    assert torch.equal(*guided) and not torch.equal(guided[0], made)
    assert not torch.equal(drawn(trained, said, 6, steps=6)[1], made)
    codes = torch.randint(0, 16, (6, 9, 1), generator=torch.Generator().manual_seed(1))
    last = drawn(trained, said, 5, codes=codes, known=torch.arange(9).expand(6, -1) >= 6, steps=4)[1]
    assert torch.equal(last[:, 6:], codes[:, 6:]) and torch.equal(last[:, :3], made[:, :3])


def test_blocks_that_fit_no_picture(picture_root, picture_model, capsys):
    asked = ("--tokenizer", picture_root / "codec", *SMALL, "--out", picture_root / "blocks")
    assert run(commands.train, *asked, "--block", 4) == 2
    assert "block 4 must divide the 9 positions behind what is told" in capsys.readouterr().err
    assert run(commands.train, *asked, "--block", 3, "--method", "autoregressive") == 2
    assert "block is 3: autoregressive makes one code after the other" in capsys.readouterr().err
    assert run(commands.train, *asked, "--block", -1) == 2
    assert "block is -1: codes that are made together" in capsys.readouterr().err


@pytest.mark.parametrize("method", EACH)
def test_guidance_of_one_is_none_and_of_zero_forgets_the_condition(picture_model, method):
    trained = opened(picture_model(method))
    trained.model.double()

    def codes(label, **knobs):
        return drawn(trained, [label] * 4, steps=few(method), **knobs)[1]

    plain = codes("red")
    assert torch.equal(codes("red", guidance=1.0), plain)
    assert not torch.equal(codes("red", guidance=3.0), plain) and not torch.equal(codes("dark blue"), plain)
    free = codes("red", guidance=0.0)
    assert torch.equal(codes("dark blue", guidance=0.0), free)
    # without its condition the model sees the NULL it was trained with
    assert torch.equal(codes("red", guidance=0.0, unprompted="null"), free)
    assert not torch.equal(codes("red", guidance=0.0, unprompted="mask"), free)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_autoregressive_model_makes_one_code_after_the_other(picture_model, guidance):
    trained = opened(picture_model("autoregressive"))
    with pytest.raises(ValueError, match="steps is 4: 0 or 9: one code after the other"):
        drawn(trained, ["red"], steps=4, guidance=guidance)
    with pytest.raises(ValueError, match="sampler is 'ancestral': an autoregressive model is sampled by left_to_right"):
        drawn(trained, ["red"], sampler="ancestral", guidance=guidance)


def test_known_codes_are_seen_without_the_condition(picture_model, monkeypatch):
    """Guidance takes away what was said, not the codes that are given."""
    trained, seen = opened(picture_model("vq_diffusion")), []
    inner = Unprompted.__call__
    monkeypatch.setattr(Unprompted, "__call__", lambda self, state: seen.append(inner(self, state)) or seen[-1])
    codes, known = torch.full((1, 9, 1), 5), torch.arange(9)[None] < 4
    drawn(trained, ["red"], codes=codes, known=known, steps=2, guidance=2.0)
    layout = generation.layout_of(trained.model)
    words, first = layout.segments[0].slots, layout.vocab.range("image")[0]
    for state in seen:
        assert (state.tokens[:, :words] == layout.vocab.special("NULL")).all()
        assert (state.tokens[:, words : words + 4] == first + 5).all()
    assert seen


@pytest.mark.parametrize("method", ["vq_diffusion", "vq_ddm"])
def test_truncation_to_one_code_is_greedy(picture_model, method):
    trained = opened(picture_model(method))
    said = ["red"] * 4
    one = drawn(trained, said, steps=4, nucleus=1e-6)[1]
    assert torch.equal(one, drawn(trained, said, steps=4, top_k=1)[1])
    assert not torch.equal(one, drawn(trained, said, steps=4)[1])


def test_knobs_of_the_command_line(picture_model):
    trained = opened(picture_model("maskgit"))
    found = sampler_of(
        "test", ["--sampler.top-k", "3", "--sampler.nucleus=0.86"], Drawing("", 7), trained.sampler
    )  # what is not said is left to the preset
    assert found == {"sampler": "maskgit", "seed": 7, "top_k": 3, "nucleus": 0.86}
