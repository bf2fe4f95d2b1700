"""python -m tasks.image restore|edit: every method end to end, what it does to the measurement, and what is refused."""

import functools
import json
from pathlib import Path

import pytest
import torch
from picture_toy import picture, quiet, run  # noqa: F401  (quiet acts by itself)
from PIL import Image

from discdiff.anchoring import Measured
from tasks.image import generate, posterior, quality, restore
from tasks.image.fidelity import Trail, calibrated, figures, off
from tasks.image.generate import touched
from tasks.image.samplers import METHODS
from tasks.image.style import Style
from tasks.inverse import OPERATORS, Gaussian, RandomInpainting, SuperResolution, measure
from tokenizers_vq.image import from_bytes

once = functools.cache(generate.opened)
FAST = {
    "aps": ("--method.steps", 4, "--sampler.steps", 3),
    "g2d2": ("--method.steps", 3, "--sampler.steps", 3),
    "sgdd": ("--method.steps", 2, "--method.moves", 20, "--sampler.steps", 3),
    "svdd": ("--method.count", 3, "--sampler.steps", 3),
    "gradient": ("--method.scale", 0.5, "--sampler.steps", 3),
    "best_of": ("--method.count", 3, "--sampler.steps", 3),
    "prior": ("--sampler.steps", 3),
}
OPEN = ("--sampler", "remdm_rescale", "--sampler.eta", 0.5, "--method.average", 0.5)  # codes stay open until the end


@pytest.fixture
def kept(picture_model, monkeypatch):
    """As `picture_model`, its folders read once for all."""
    monkeypatch.setattr(generate, "opened", once)
    return picture_model


def red(trained, count=1):
    """A validation picture in [-1, 1], `count` times."""
    x = from_bytes(generate.load_said(trained.pictures, 3)[1].x[-1:])
    return x.expand(count, -1, -1, -1)


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "more"), [*((method, ()) for method in METHODS), ("aps", OPEN)])
def test_restore(kept, method, more, tmp_path, capsys):
    folder = kept("vq_diffusion")
    asked = ("--picture", "valid:3", "--operator", "super_resolution", "--operator.factor", 2, "--count", 2)
    argv = (*asked, "--method", method, *FAST[method], *more, "--condition", "red", "--out", tmp_path)
    assert run(restore.restore, folder, *argv) == 0, capsys.readouterr().err
    names = {"original.png", "measurement.png", "restored_1.png", "restored_2.png", "report.html", "metrics.json"}
    assert {f.name for f in tmp_path.iterdir()} == names
    assert Image.open(tmp_path / "measurement.png").size == (6, 6)
    assert Image.open(tmp_path / "restored_1.png").size == (12, 12)
    page = (tmp_path / "report.html").read_text()
    assert "Before and after" in page and "On the way" in page and "http" not in page.replace("http://www.w3.org", "")
    found = json.loads((tmp_path / "metrics.json").read_text())
    rows = {row["picture"]: row for row in found["rows"]}
    assert set(rows) == {"original", "codes", "restored 1", "restored 2", "mean"} and found["sigma"] == 0.05
    assert 0.02 < rows["original"]["measurement_error"] < 0.08  # of the truth it is the noise
    assert rows["codes"]["psnr"] > 0 and rows["original"]["psnr"] is None and found["nfe"] >= 3
    assert found["seconds"] > 0 and found["network_rows"] >= 2 * 3 and (found["decoded"] > 0) == (method != "prior")
    told = f"{found['nfe']} network calls, {found['network_rows']} rows fed, {found['decoded']} rows decoded"
    assert f"{found['seconds']:.1f} seconds, {told}" in page


def test_calibrated_terms_count_what_the_tokenizer_loses_as_noise(kept, tmp_path, capsys):
    folder = kept("vq_diffusion")
    trained, operator, noise = once(Path(folder)), SuperResolution(2), Gaussian(0.05)
    train = generate.load_said(trained.pictures, 3)[0].x[:8]
    found = calibrated(trained, operator, noise, train, seed=3)
    codes, grid = quality.encode(trained.tokenizer, train)
    away = operator(quality.decode(trained.tokenizer, codes, grid)) - measure(operator, from_bytes(train), noise, 3)
    assert found == pytest.approx(float(away.detach().square().mean().sqrt())) and found > 0.05
    asked = ("--operator.factor", 2, *FAST["aps"], "--out", tmp_path)
    assert run(restore.restore, folder, *asked, "--calibrate", 8) == 0, capsys.readouterr().err
    led = json.loads((tmp_path / "metrics.json").read_text())
    assert led["data_sigma"] > 0.05 == led["sigma"]
    assert run(restore.restore, folder, *asked) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["data_sigma"] == 0.05
    capsys.readouterr()
    for more, told in (
        (("--data.sigma", 0.1), "it finds the --data.sigma"),
        (("--data.distance", "l1"), "it finds the --data.sigma"),
        (("--calibrate", 10**6), "training pictures"),
        (("--calibrate", -1), "training pictures, 0 for none"),
    ):
        assert run(restore.restore, folder, *asked, "--calibrate", 8, *more) == 2
        assert told in capsys.readouterr().err


def test_a_measurement_from_a_file(kept, tmp_path, capsys):
    picture(180, 20, 3, 6).save(tmp_path / "small.png")
    asked = ("--measured", tmp_path / "small.png", "--operator.factor", 2, "--count", 1, *FAST["aps"])
    assert run(restore.restore, kept("maskgit"), *asked, "--out", tmp_path / "a") == 0, capsys.readouterr().err
    names = {"measurement.png", "restored_1.png", "report.html", "metrics.json"}
    assert {f.name for f in (tmp_path / "a").iterdir()} == names
    rows = json.loads((tmp_path / "a" / "metrics.json").read_text())["rows"]
    assert [row["picture"] for row in rows] == ["restored"] and rows[0]["psnr"] is None


def test_edit(kept, tmp_path, capsys):
    folder = kept("vq_diffusion")
    picture(20, 190, 5, 24).save(tmp_path / "blue.png")
    asked = ("--picture", "valid:3", "--hole", "0.5,0,1,1", "--condition", "dark blue", "--count", 2)
    led = ("--reference", tmp_path / "blue.png", "--style.width", 4, "--data.sigma", 0.1, *FAST["aps"])
    for name, more in (("plain", ("--sampler.guidance", 2, "--sampler.steps", 3)), ("led", led)):
        assert run(restore.edit, folder, *asked, *more, "--out", tmp_path / name) == 0, capsys.readouterr().err
        assert {f.name for f in (tmp_path / name).iterdir()} == {"edited_1.png", "edited_2.png", "report.html"}
    assert "distance of style" in (tmp_path / "led" / "report.html").read_text()
    assert "3 network calls, 6 rows fed, 24 rows decoded" in (tmp_path / "led" / "report.html").read_text()
    assert "distance of style" not in (tmp_path / "plain" / "report.html").read_text()


# -- what it does ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("aps", "vq_diffusion"),
        ("aps", "vq_ddm"),
        ("g2d2", "vq_ddm"),
        ("svdd", "maskgit"),
        ("sgdd", "vq_ddm"),
        ("best_of", "autoregressive"),
    ],
)
def test_a_measurement_is_obeyed(kept, method, model):
    trained, operator = once(kept(model)), SuperResolution(2)
    x = red(trained, 8)
    measured = Measured(operator, measure(operator, x))
    options = {
        "aps": {"steps": 30},
        "g2d2": {"steps": 10},
        "svdd": {"count": 6},
        "sgdd": {"steps": 2, "moves": 60},
        "best_of": {"count": 20},
    }
    steps = 0 if model == "autoregressive" else 6
    said = ["red"] * 8
    made = posterior.restore(trained, measured, said, method, steps, options=options.get(method))
    alone = posterior.restore(trained, measured, said, "prior", steps)
    assert made.pictures.shape == x.shape and made.codes.shape == (8, 9, 1) and made.info.decoded > 0
    assert off(operator, made.pictures, measured.y).mean() < 0.95 * off(operator, alone.pictures, measured.y).mean()
    assert alone.info.decoded == 0


def test_rows_of_a_run(kept):
    """Pictures do not depend on how many are made at once, known codes stay, and the prior is what `sample` draws."""
    trained, operator = once(kept("maskgit")), RandomInpainting(0.5)
    measured = Measured(operator, measure(operator, red(trained, 5)))
    codes = torch.randint(0, 16, (5, 9, 1), generator=torch.Generator().manual_seed(0))
    known = ~touched(trained.grid, (0.5, 0, 1, 1)).expand(5, -1)
    said = ["red", "", "dark blue", "red", ""]

    def made(batch, seed=4, method="aps"):
        own = {"aps": {"steps": 3, "take": "sample"}, "g2d2": {"steps": 3}}
        more = {"codes": codes, "known": known, "batch": batch, "options": own.get(method)}
        return posterior.restore(trained, measured, said, method, 3, seed, **more)

    whole = made(32)
    assert torch.equal(made(2).codes, whole.codes) and not torch.equal(made(32, 5).codes, whole.codes)
    assert torch.equal(made(2, method="g2d2").codes, made(32, method="g2d2").codes)
    assert torch.equal(whole.codes[known], codes[known]) and not torch.equal(whole.codes[~known], codes[~known])
    given = {"codes": codes, "known": known, "steps": 3}
    assert torch.equal(made(32, method="prior").codes, generate.drawn(trained, said, 4, **given)[1])


class Seen:
    """What is expected of the first picture: times, and embeddings (predictions, slots, d)."""

    def __init__(self):
        self.trail = Trail()

    @property
    def at(self):
        return torch.stack(self.trail.embeddings)


def nothing(count):
    """An operator that is blind, so that nothing leads: gradients are 0."""
    return Measured(lambda x: 0 * x.mean((1, 2, 3))[:, None], torch.zeros(count, 1))


BLIND = {
    "prior": ({}, {}),
    "best_of": ({"count": 1}, {}),
    "svdd": ({"count": 1}, {}),
    "gradient": ({}, {}),
    "aps": ({"steps": 2, "take": "sample"}, {"sampler": "ancestral"}),
}


@pytest.mark.parametrize("method", BLIND)
@pytest.mark.parametrize("model", ["vq_diffusion", "maskgit", "vq_ddm"])
def test_blocks_without_a_measurement(kept, model, method):
    """What nothing leads is drawn as `sample` draws it: block by block."""
    trained, said = once(kept(model, 3)), ["red", "dark blue", "", "red"]
    options, knobs = BLIND[method]
    made = posterior.restore(trained, nothing(4), said, method, 12, 5, options=options, **knobs)
    assert torch.equal(made.codes, generate.drawn(trained, said, 5, steps=12)[1])
    assert not torch.equal(made.codes, generate.drawn(trained, said, 5, steps=12, block=0, cache="none")[1])


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.blocks])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_blocks_given_a_measurement(kept, method, guidance):
    """One block after the other, with guidance, codes that stay, and a measurement; nothing is told of later blocks."""
    trained, operator, seen = once(kept("vq_diffusion", 3)), SuperResolution(2), Seen()
    measured = Measured(operator, measure(operator, red(trained, 3)))
    options = {"aps": {"steps": 3}, "g2d2": {"steps": 3}, "svdd": {"count": 2}, "best_of": {"count": 2}}
    codes = torch.randint(0, 16, (3, 9, 1), generator=torch.Generator().manual_seed(0))
    known = torch.arange(9).expand(3, -1) < 2
    run = functools.partial(
        posterior.restore, trained, measured, ["red", "dark blue", "red"], method, 6, codes=codes, known=known,
        options=options.get(method), guidance=guidance,
    )  # fmt: skip
    made = run(seen=seen.trail.see)
    whole = run(cache="none")  # blocks that are done are fed once: to svdd, whose children are copies, always
    assert torch.equal(made.codes[known], codes[known]) and torch.equal(made.codes, whole.codes)
    assert (made.info.fed < whole.info.fed) == (method != "svdd")
    assert torch.equal(made.codes, run(batch=1).codes)
    book = posterior.soft_of(trained).codebook[0]
    unsaid = (
        torch.isclose(seen.at, book.mean(0), atol=1e-5).all(-1).sum(1)
    )  # blocks are counted from the first free slot
    assert unsaid[0] == 4 and unsaid[-1] == 0 and (unsaid.diff() <= 0).all() and 1 in unsaid
    assert torch.equal(seen.at[0, :2], book[codes[0, :2, 0]]) and seen.trail.times[0] == 1


@pytest.mark.parametrize("method", ["prior", "best_of", "svdd"])
def test_the_trail_is_of_what_is_kept(kept, method):
    """From left to right, what is expected at the last step holds all codes but the last: those of the picture."""
    trained, operator, seen = once(kept("maskgit")), SuperResolution(2), Seen()
    measured = Measured(operator, measure(operator, red(trained, 2)))
    options = {"svdd": {"count": 5, "alpha": 0.0}, "best_of": {"count": 5}}.get(method)
    run = functools.partial(posterior.restore, trained, measured, ["red"] * 2, steps=9, seed=4, sampler="left_to_right")
    made = run(method=method, seen=seen.trail.see, options=options)
    book = posterior.soft_of(trained).codebook[0]
    assert len(seen.at) == 9 and torch.allclose(seen.at[-1, :8], book[made.codes[0, :8, 0]])
    assert seen.trail.times == pytest.approx([1 - n / 9 for n in range(9)])
    first = run(method="prior").codes  # that of the same seed as the first copy
    assert torch.equal(first[0], made.codes[0]) == (method == "prior")


def test_the_trail_of_an_autoregressive_model(kept):
    trained, seen = once(kept("autoregressive")), Seen()
    made = posterior.restore(trained, nothing(2), ["red"] * 2, "prior", seen=seen.trail.see)
    book = posterior.soft_of(trained).codebook[0]
    assert torch.allclose(seen.at[-1, :8], book[made.codes[0, :8, 0]])
    assert torch.equal(made.codes, generate.drawn(trained, ["red"] * 2)[1])


def test_figures_of_a_masked_measurement():
    """The error is over the pixels that were measured: that of the truth is the noise."""
    operator, x = RandomInpainting(0.7), torch.rand(1, 3, 40, 40) * 2 - 1
    y = measure(operator, x) + operator(0.1 * torch.ones_like(x))
    rows = {
        row["picture"]: row
        for row in figures(operator, y, {"original": x, "restored": torch.stack([x[0], x[0] + 0.2])})
    }
    assert rows["original"]["measurement_error"] == pytest.approx(0.1, rel=1e-5)
    assert rows["restored 2"]["measurement_error"] == pytest.approx(0.1, rel=1e-5) and rows["restored 1"]["ssim"] == 1
    assert rows["restored 2"]["psnr"] == pytest.approx(20, abs=1e-3)  # 10 log10(2^2 / 0.2^2)


def test_style():
    style, draw = Style(2, 4), torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 16, 16, generator=draw, dtype=torch.float64) * 2 - 1
    grams = style.grams(x)
    assert [tuple(g.shape) for g in grams] == [(1, 36), (1, 36)]  # 1, three colours and four filters
    assert torch.allclose(grams[0][0, :4], torch.cat([torch.ones(1), x.mean((0, 2, 3))]).double())
    assert not torch.equal(style(x), Style(2, 4, seed=1)(x)) and torch.equal(style(x), Style(2, 4)(x))
    left = torch.arange(16).expand(16, 16) < 8
    outside = torch.where(torch.arange(16) > 9, 1.0, x)  # far from the region
    assert torch.allclose(style.grams(outside, left)[0], style.grams(x, left)[0])
    assert not torch.allclose(style.grams(outside)[0], style.grams(x)[0])
    near = style.near(x, 2, sigma=0.1)
    z = torch.cat([x, x.flip(1)]).requires_grad_()
    loss = near(z, torch.arange(2))
    loss.sum().backward()
    assert loss[0] < 1e-12 < loss[1] and bool(torch.isfinite(z.grad).all())


def test_a_reference_leads(kept):
    trained, style = once(kept("vq_diffusion")), Style(2, 4)
    measured = style.near(red(trained), 4, sigma=0.02)
    run_of = functools.partial(posterior.restore, trained, measured, ["dark blue"] * 4)
    led, alone = run_of("aps", 4, options={"steps": 20}), run_of("prior", 4)
    here = torch.arange(4)
    assert measured(led.pictures, here).mean() < 0.9 * measured(alone.pictures, here).mean()


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--operator", "super_resolutoin"), "operator is 'super_resolutoin': choose from super_resolution"),
        (("--operator.factr", 4), "did you mean --operator.factor?"),
        (("--operator.factor", 5), "height and width is (12, 12): multiples of factor = 5"),
        (("--operator", "box_inpainting", "--operator.box", "0,0,1,1"), "smaller, it touches all of 12 x 12 pixels"),
        (("--operator", "nonlinear_blur"), "network is '': give a callable, or a file that save_blur wrote"),
        (("--noise.sigma", -1), "sigma is -1.0: a standard deviation of 0 or more"),
        (("--noise", "white"), "noise is 'white': choose from gaussian, poisson"),
        (("--method", "asp"), "method is 'asp': choose from aps, g2d2"),
        (("--method.rat", 1), "did you mean --method.rate?"),
        (("--method.rank", "best"), "rank is 'best': choose from table, prior"),
        (("--method", "svdd", "--method.count", 0), "count is 0: at least one child"),
        (("--method", "g2d2", "--sampler", "halton"), "sampler is 'halton': g2d2 is a sampler of its own"),
        (("--data.distance", "l3"), "distance is 'l3': choose from l1, l2, gaussian"),
        (("--data.sigma", 0), "sigma is 0.0: above 0"),
        (("--sampler", "confidence", "--sampler.stepz", 4), "did you mean --sampler.steps?"),
        (("--condition", "green"), "no training caption has 'green'"),
        (("--picture", "16.png"), "picture is (3, 16, 16): the model makes pictures (3, 12, 12)"),
        (("--measured", "16.png"), "shape of y is (1, 3, 16, 16): it makes (1, 3, 3, 3) of (1, 3, 12, 12)"),
        (("--measured", "none.png"), "there is no file 'none.png'"),
        (("--measured", "16.png", "--picture", "valid:1"), "picture is 'valid:1': a measurement is given already"),
        (("--count", 0), "count is 0: at least 1"),
    ],
)
def test_bad_restorations(kept, argv, message, tmp_path, capsys, monkeypatch):
    folder = kept("vq_diffusion")
    monkeypatch.chdir(tmp_path)
    picture(9, 9, 0, 16).save("16.png")
    trained = once(folder)
    monkeypatch.setattr(type(trained.model), "forward", None)  # no network call
    assert run(restore.restore, folder, *argv, "--out", "restored") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ("maskgit", "sgdd", "process is 'Absorbing': "),
        ("autoregressive", "aps", "an autoregressive model tells of the next code alone: best_of or prior"),
        ("vq_ddm", "confidence", "Commit fills masks: it needs Absorbing, not Uniform"),
    ],
)
def test_methods_that_do_not_fit_the_model(kept, model, method, message, tmp_path, capsys):
    argv = ("--sampler", method) if method not in METHODS else ("--method", method)
    assert run(restore.restore, kept(model), *argv, "--operator.factor", 2, "--out", tmp_path / "restored") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--method", "sgdd"),
            "method is 'sgdd': a round of it changes all codes, the model makes blocks: one of aps, ",
        ),
        (
            ("--sampler", "maskgit"),
            "sampler is 'maskgit': the model makes blocks of 3 codes: take one that has a block",
        ),
        (("--method", "prior", "--sampler", "halton"), "sampler is 'halton': the model makes blocks of 3 codes"),
    ],
)
def test_what_does_not_go_with_blocks(kept, argv, message, tmp_path, capsys, monkeypatch):
    folder = kept("vq_diffusion", 3)
    monkeypatch.setattr(type(once(folder).model), "forward", None)  # no network call
    assert run(restore.restore, folder, "--operator.factor", 2, *argv, "--out", tmp_path / "restored") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--method", "aps"), "method is 'aps': it is led by a picture: give --reference"),
        (("--style.width", 4), "flags is ['--style']: they go with --reference"),
        (("--reference", "none.png"), "there is no file 'none.png'"),
        (("--reference", "tiny.png", "--style.levels", 3), "height and width is (4, 4): at least 12 for 3 levels"),
        (("--hole", "0.5,0,0.5,1"), "left < right"),
    ],
)
def test_bad_edits(kept, argv, message, tmp_path, capsys, monkeypatch):
    folder = kept("vq_diffusion")
    monkeypatch.chdir(tmp_path)
    picture(9, 9, 0, 4).save("tiny.png")
    assert run(restore.edit, folder, *argv, "--out", "edited") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "edited").exists()


def test_the_page_lists_what_there_is():
    text = (Path(__file__).resolve().parents[1] / "docs" / "inverse.md").read_text()
    operators, methods = text.split("## Methods")
    assert all(f"`{name}`" in operators for name in OPERATORS) and all(f"| `{name}` |" in methods for name in METHODS)
