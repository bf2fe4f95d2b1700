"""python -m tasks.image train|sample|inpaint|evaluate: every method end to end, its laws, and what is refused."""

import functools
import json
import math
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from discdiff.cli import guarded
from discdiff.denoisers import FunctionDenoiser, process_of
from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, MaskOrReplace, Uniform, vq_paper, vq_released
from discdiff.sampling import sampler
from discdiff.sampling import sampler as build
from discdiff.sampling.sampler import CACHES
from discdiff.testing import noise_floor, total_variation
from tasks.common import generation
from tasks.common.methods import METHODS, method_of
from tasks.image import generate, judged, tokenizer
from tasks.image.generate import drawn, opened, touched
from tasks.image.settings import Drawing, Judged
from tasks.image.sources import Read
from tokenizers_vq import ImageTokenizer, ImageTokenizerConfig, load_tokenizer

QUIET = ("--batch_size", "8", "--progress", "false", "--warmup", "1")
CODEC = ("--width", "8", "--blocks", "1", "--code_dim", "4", "--codebook_size", "16", "--strides", "2,2", *QUIET)
SMALL = ("--hidden_size", "16", "--num_layers", "1", "--num_heads", "2", "--steps", "6", *QUIET)
FEW = ("--sampler.steps", "4")


def run(command, *argv):
    return guarded(partial(command, "test"), [str(a) for a in argv])


def picture(red, blue, seed, size=12):
    x = np.random.default_rng(seed).integers(0, 60, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(x + np.array([red, 0, blue], dtype=np.uint8))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No bars while weights are read, as the command has it: an error is then the only line."""
    disable_progress_bar()
    yield
    enable_progress_bar()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 red pictures and 20 blue ones, a folder each, and a tokenizer of them."""
    place = tmp_path_factory.mktemp("image")
    for label, colour in (("red", (180, 20)), ("dark blue", (20, 120))):
        (place / "pictures" / label).mkdir(parents=True)
        for n in range(20):
            picture(*colour, n).save(place / "pictures" / label / f"{n:02}.png")
    source = ("--source", place / "pictures", "--valid_fraction", 0.25)
    assert run(tokenizer.train, *source, "--steps", 10, *CODEC, "--out", place / "codec") == 0
    return place


@pytest.fixture(scope="module")
def model(root):
    """Folder of a model by its method, trained at the first request."""

    def trained(method):
        folder = root / method
        if not folder.is_dir():
            argv = ("--tokenizer", root / "codec", "--method", method, *SMALL, "--out", folder)
            assert run(generate.train, *argv) == 0
        return folder

    return trained


EACH = [
    m if m != "vq_released" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS
]  # as vq_diffusion, but masks


# -- end to end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EACH)
def test_train_sample_and_fill_in(model, method, tmp_path, capsys):
    folder = model(method)
    asked = (folder, "--condition", "red", "--count", 3, "--out", tmp_path / "a", *FEW)
    assert run(generate.sample, *asked, "--report", tmp_path / "a.html") == 0, capsys.readouterr().err
    files = sorted((tmp_path / "a").iterdir())
    assert [f.name for f in files] == ["sample_1.png", "sample_2.png", "sample_3.png"]
    assert Image.open(files[0]).size == (12, 12) and "data:image/png" in (tmp_path / "a.html").read_text()
    made, codes = drawn(opened(folder), ["red"] * 3, steps=4)
    assert all(np.array_equal(np.asarray(Image.open(f)).transpose(2, 0, 1), x) for f, x in zip(files, made.numpy()))
    assert codes.shape == (3, 9, 1) and not torch.equal(codes, drawn(opened(folder), ["red"] * 3, seed=9, steps=4)[1])
    assert run(generate.inpaint, folder, "--condition", "red", "--count", 2, "--out", tmp_path / "f", *FEW) == 0
    assert sorted(f.name for f in (tmp_path / "f").iterdir()) == ["filled_1.png", "filled_2.png", "report.html"]


@pytest.mark.parametrize("method", EACH)
def test_known_codes_never_change(model, method):
    trained = opened(model(method))
    codes = torch.randint(0, 16, (6, 9, 1), generator=torch.Generator().manual_seed(0))
    known = ~touched(trained.grid, (0.4, 0.0, 1.0, 0.5))[None].expand(6, -1)
    assert int(known[0].sum()) == 9 - 2 * 2
    said = ["red"] * 6
    out, other = (drawn(trained, said, seed, codes=codes, known=known, steps=4)[1] for seed in (0, 1))
    assert torch.equal(out[known], codes[known]) and torch.equal(other[known], codes[known])
    free = drawn(trained, said, steps=4)[1]
    assert not torch.equal(free[known], codes[known])  # control: left to itself the model makes others
    assert not torch.equal(out[~known], codes[~known]) and not torch.equal(out[~known], other[~known])


@pytest.mark.parametrize("method", EACH)
def test_what_is_saved_samples_alike(model, method, tmp_path):
    trained = opened(model(method))
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
    for found, wanted in zip(drawn(again, said, 3, steps=4), drawn(trained, said, 3, steps=4), strict=True):
        assert torch.equal(found, wanted)
    wanted = method_of(method)
    assert wanted.causal or process_of(again.model) == wanted.process
    assert again.model.config.time_conditioning == wanted.timed and again.model.config.prediction == wanted.prediction


def test_rows_do_not_depend_on_how_many_are_drawn_at_once(model):
    trained = opened(model("vq_diffusion"))
    trained.model.double()  # the last bits of float32 depend on the shape of a batch
    said = ["red", "dark blue", "red", "red", "dark blue"]
    whole = drawn(trained, said, 4, steps=4)[1]
    assert torch.equal(drawn(trained, said, 4, steps=4, batch=2)[1], whole)
    assert torch.equal(drawn(trained, said[2:3], 6, steps=4)[1], whole[2:3])


def test_evaluate(model, capsys):
    folder = model("vq_diffusion")
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


def test_a_repeated_and_an_interrupted_training_go_on(root, model, tmp_path, monkeypatch, capsys):
    whole = model("vq_diffusion") / "codes" / "model.safetensors"
    before, folder = whole.read_bytes(), tmp_path / "interrupted"
    argv = ("--tokenizer", root / "codec", "--method", "vq_diffusion", *SMALL, "--out")
    assert run(generate.train, *argv, model("vq_diffusion")) == 0 and whole.read_bytes() == before
    step = generation.DiffusionTrainer.training_step

    def interrupted(trainer, *arguments):
        if trainer.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *arguments)

    monkeypatch.setattr(generation.DiffusionTrainer, "training_step", interrupted)
    assert run(generate.train, *argv, folder) == 130
    monkeypatch.undo()
    assert not (folder / "codes").exists() and [f.name for f in (folder / "codes_training").glob("check*")]
    capsys.readouterr()
    assert run(generate.sample, folder, "--condition", "red") == 2
    assert "holds no picture model: run python -m tasks.image train --out it, to its end" in capsys.readouterr().err
    assert run(generate.train, *argv, folder) == 0
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
def test_keys_and_values_change_no_token(model, monkeypatch, guidance):
    trained, used = opened(model("autoregressive")), []
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


@pytest.mark.parametrize("method", EACH)
def test_guidance_of_one_is_none_and_of_zero_forgets_the_condition(model, method):
    trained = opened(model(method))
    trained.model.double()

    def codes(label, **knobs):
        return drawn(trained, [label] * 4, steps=2, **knobs)[1]

    plain = codes("red")
    assert torch.equal(codes("red", guidance=1.0), plain)
    assert not torch.equal(codes("red", guidance=3.0), plain) and not torch.equal(codes("dark blue"), plain)
    free = codes("red", guidance=0.0)
    assert torch.equal(codes("dark blue", guidance=0.0), free)
    # without its condition the model sees the NULL it was trained with
    assert torch.equal(codes("red", guidance=0.0, unprompted="null"), free)
    assert not torch.equal(codes("red", guidance=0.0, unprompted="mask"), free)


@pytest.mark.parametrize("method", ["vq_diffusion", "vq_ddm"])
def test_truncation_to_one_code_is_greedy(model, method):
    trained = opened(model(method))
    said = ["red"] * 4
    one = drawn(trained, said, steps=4, nucleus=1e-6)[1]
    assert torch.equal(one, drawn(trained, said, steps=4, top_k=1)[1])
    assert not torch.equal(one, drawn(trained, said, steps=4)[1])


def test_knobs_of_the_command_line(model):
    trained = opened(model("maskgit"))
    found = generate.sampler_of(
        "test", ["--sampler.top-k", "3", "--sampler.nucleus=0.86"], Drawing("", 7), trained
    )  # what is not said is left to the preset
    assert found == {"sampler": "maskgit", "seed": 7, "top_k": 3, "nucleus": 0.86}


# -- schedules: as published, as released ----------------------------------------------------------------------------------

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)
WORDS, SLOTS = 5, 40
UNSURE = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, WORDS, dtype=torch.float64))


def empty(rows):
    layout = Layout(VocabLayout(text_size=WORDS), (Segment("x", "text", (SLOTS,)),))
    return make_batch(layout, torch.full((rows, SLOTS), layout.vocab.mask))


def test_the_released_schedule_is_absorbing_and_only_under_its_name():
    for size in (2, 1024):
        replaced = [size * process.marginal(TIMES, size).token for process in (vq_released(), vq_paper())]
        assert torch.allclose(replaced[0], torch.full_like(TIMES, 1e-6), rtol=1e-6, atol=0)
        assert torch.allclose(replaced[1], 0.1 * TIMES, atol=1e-12)
    named = {name: method_of(name).process for name in METHODS}
    assert named["vq_released"] == vq_released() and named["vq_diffusion"] == vq_paper() == MaskOrReplace()
    assert [name for name, process in named.items() if process == vq_released()] == ["vq_released"]
    assert named["maskgit"] == Absorbing() and isinstance(named["vq_ddm"], Uniform) and named["autoregressive"] is None
    with pytest.raises(ValueError, match="method is 'vq': choose from vq_diffusion, vq_released, vq_ddm"):
        method_of("vq")


@pytest.mark.parametrize("steps", [11, 26])
@pytest.mark.parametrize("process", [vq_paper(), vq_released()], ids=["paper", "released"])
def test_the_strided_posterior_leaves_no_jump_at_the_last_step(process, steps):
    batch, rows = empty(300), 300
    hidden = [
        float((state.tokens == batch.layout.vocab.mask).double().mean())
        for state, _ in build("ancestral", process, steps=steps).iterate(UNSURE, batch, seed=3)
    ]
    assert len(hidden) == steps + 1 and hidden[-1] == 0
    for n, found in enumerate(hidden[:-1]):
        if n:  # the first state is the all-masked one; noise at time 1 is drawn with the first step
            wanted = float(process.marginal(torch.tensor(1 - n / steps, dtype=torch.float64), WORDS).mask)
            assert abs(found - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / (rows * SLOTS)) + 1e-4, n
    assert hidden[-2] < 0.1


@pytest.mark.parametrize(("skip", "calls", "left"), [(3, 26, 0.24), (9, 11, 0.66)])
def test_the_released_fast_sampling_does_leave_one(skip, calls, left):
    """Restated: at index i of 100 it takes the one-step posterior of index i - skip, so a call removes one step's masks."""
    process, last = vq_released(), 99
    visited = [*range(last, -1, -1 - skip)]
    visited += [0] if visited[-1] else []
    assert len(visited) == calls

    def still_masked(moves):
        log_x0, x = torch.full((1, WORDS), 1 / WORDS, dtype=torch.float64).log(), torch.tensor([WORDS])
        return math.prod(float(process.log_posterior(log_x0, x, t / last, s / last)[0, -1].exp()) for t, s in moves)

    shifted = [i - skip if i > skip else i for i in visited[:-1]]
    assert round(still_masked([(i, i - 1) for i in shifted]), 2) == left
    strided = still_masked([(t, s) for t, s in zip(visited[:-1], visited[1:], strict=True)])
    assert strided == pytest.approx(
        9e-6 / 0.99999, rel=1e-3
    )  # the same calls at their stride: the schedule's own share


@pytest.mark.parametrize("process", [vq_paper(), vq_released()], ids=["paper", "released"])
def test_a_visible_code_is_never_masked_again(process):  # 6.4 (iv)
    log_x0 = torch.randn(WORDS, WORDS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for t, s in ((1.0, 0.7), (0.6, 0.1), (0.05, 0.0)):
        law = process.log_posterior(log_x0, torch.arange(WORDS), t, s).exp()
        assert (law[:, -1] == 0).all() and torch.allclose(law.sum(-1), torch.ones(WORDS, dtype=torch.float64))


def test_purity_of_unsure_predictions_is_the_random_order():  # 6.4 (ii)
    rows, places = 4000, 5
    layout = Layout(VocabLayout(text_size=WORDS), (Segment("x", "text", (places,)),))
    batch = make_batch(layout, torch.full((rows, places), layout.vocab.mask))

    def pairs(name, **knobs):
        """Law of the first two positions that are filled."""
        states = [state for state, _ in sampler(name, steps=places, **knobs).iterate(UNSURE, batch, seed=1)]
        first, second = (((b.committed & ~a.committed).long().argmax(1)) for a, b in zip(states[:2], states[1:3]))
        return torch.bincount(first * places + second, minlength=places**2).double() / rows

    even = (1 - torch.eye(places, dtype=torch.float64)).flatten() / (places * (places - 1))
    for law in (pairs("purity", sharpen=0.0), pairs("random")):
        assert total_variation(law, even) < 1.5 * noise_floor(even, rows)
    assert (
        total_variation(pairs("purity", sharpen=0.0, noise=0.0), even) > 0.5
    )  # control: without noise one order is left


# -- what is refused -------------------------------------------------------------------------------------------------------

once = functools.cache(opened)


@pytest.fixture
def kept(model, monkeypatch):
    """As `model`, its folders read once for all."""
    monkeypatch.setattr(generate, "opened", once)
    return model


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
    assert run(generate.sample, folder, *argv) == 2
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
    assert run(generate.inpaint, folder, *argv, "--out", "filled") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "filled").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--method", "vqdiffusion"),
            "method is 'vqdiffusion': choose from vq_diffusion, vq_released, vq_ddm, maskgit",
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
def test_bad_trainings(root, argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, sizes in {"flat": "", "empty": "", "cut": "a", "mixed": "ab", "deep": "a"}.items():
        (tmp_path / name / sizes[:1]).mkdir(parents=True)
    picture(9, 9, 0).save("flat/a.png")
    for n in range(2):
        picture(9, 9, 0).save(f"cut/a/{n}.png")
        picture(9, 9, 0, 12 + 4 * n).save(f"mixed/a/{n}.png")
    (tmp_path / "cut/a/1.png").write_bytes((tmp_path / "cut/a/0.png").read_bytes()[:300])
    Image.fromarray(np.zeros((12, 12), dtype=np.float32)).save("deep/a/a.tif")
    flags = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--tokenizer": root / "codec", "--out": "out"}
    if "--valid_last" in argv:
        flags["--source"] = root / "pictures"
    flags |= dict(zip(argv[::2], argv[1::2], strict=True))
    assert run(generate.train, *(word for pair in flags.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "codes").exists()


def test_parts_that_do_not_belong_together(model, tmp_path, capsys):
    folder = tmp_path / "swapped"
    shutil.copytree(model("vq_diffusion"), folder)
    config = opened(folder).tokenizer.config
    other = ImageTokenizerConfig(channels=3, width=8, blocks=1, code_dim=4, strides=(2, 2), codebook_size=8)
    shutil.rmtree(folder / "model")
    ImageTokenizer(other).save_pretrained(folder / "model")
    for command in (generate.sample, generate.inpaint, judged.evaluate):
        capsys.readouterr()
        assert config.codebook_size == 16 and run(command, folder) == 2
        error = capsys.readouterr().err
        assert "codes is '1 levels of 16': 1 levels of 8, as the tokenizer beside the model has" in error
    shutil.copytree(model("vq_diffusion"), folder, dirs_exist_ok=True)
    weights = folder / "codes" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert run(generate.sample, folder, "--condition", "red") == 2
    assert "is damaged: model.safetensors should have" in capsys.readouterr().err
    for command in (generate.sample, generate.inpaint, judged.evaluate):
        assert run(command, tmp_path) == 2 and "holds no picture model" in capsys.readouterr().err


def test_a_model_that_is_told_nothing(root, tmp_path, capsys):
    folder = tmp_path / "untold"
    argv = ("--tokenizer", root / "codec", "--condition", "", *SMALL, "--out", folder)
    assert run(generate.train, *argv) == 0
    assert opened(folder).lexicon.words == ("", "?")
    assert run(generate.sample, folder, "--count", 1, "--out", tmp_path / "s", *FEW) == 0
    assert run(generate.sample, folder, "--condition", "red") == 2
    assert "no training caption has 'red'" in capsys.readouterr().err
    assert run(judged.evaluate, folder) == 2
    assert "a model that is told nothing cannot be judged by what it was told" in capsys.readouterr().err
    assert run(judged.evaluate, folder, "--samples", 5) == 2 and "samples is 5: at least 6" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(root, model, tmp_path, capsys):
    folder = tmp_path / "held"
    shutil.copytree(model("vq_diffusion"), folder)
    argv = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--tokenizer": root / "codec", "--out": folder}
    assert run(generate.train, *(w for pair in argv.items() for w in pair)) == 0
    held = (folder / "task.json").read_bytes()
    for other in ({"--method": "vq_released"}, {"--condition": ""}, {"--dropped": "0.5"}):
        assert run(generate.train, *(w for pair in (argv | other).items() for w in pair)) == 2
        assert "holds a model of other settings, pictures or codes" in capsys.readouterr().err
    codec = tmp_path / "codec"
    shutil.copytree(root / "codec", codec)
    tokenizer_of = ImageTokenizer.from_pretrained(codec / "model")
    with torch.no_grad():
        next(tokenizer_of.parameters()).add_(1.0)
    tokenizer_of.save_pretrained(root / "codec" / "model")
    try:
        assert run(generate.train, *(w for pair in argv.items() for w in pair)) == 2
    finally:
        shutil.rmtree(root / "codec")
        shutil.copytree(codec, root / "codec")
    assert (folder / "task.json").read_bytes() == held


def test_nothing_said_is_the_null_condition(model):
    trained = opened(model("vq_diffusion"))
    trained.model.double()
    free = drawn(trained, ["red"] * 4, steps=2, guidance=0.0)[1]
    assert torch.equal(drawn(trained, [""] * 4, steps=2)[1], free)
    assert not torch.equal(drawn(trained, ["red"] * 4, steps=2)[1], free)


def test_a_judge_of_other_values_is_refused(model, tmp_path, capsys):
    folder = tmp_path / "held"
    shutil.copytree(model("vq_diffusion"), folder)
    few = ("--samples", 6, "--judge_steps", 2, "--sampler.steps", 2)
    (folder / "judge.safetensors").write_bytes(b"no weights")
    assert run(judged.evaluate, folder, *few) == 2
    assert "is no judge of these 2 values: remove it" in capsys.readouterr().err
    judged.save_model(judged.Judge(2, 3, 5, 32), str(folder / "judge.safetensors"))
    assert run(judged.evaluate, folder, *few) == 2
    assert "is no judge of these 2 values: remove it" in capsys.readouterr().err
