"""benchmarks.posterior: cells of a toy base that are made once, and its table and goals from planted cells."""

import dataclasses
import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from picture_toy import quiet  # noqa: F401  (acts by itself)

from benchmarks import posterior, posterior_bound, posterior_cost, posterior_table, results
from benchmarks.posterior import BESIDE, LINEAR, METHODS, TASKS, Base, Run, Tried, regressed
from benchmarks.posterior_table import STEPS, closed, current, rows
from discdiff.anchoring import Descent
from discdiff.cli import guarded
from discdiff.metrics import psnr
from tasks.image import generate, quality
from tasks.inverse import RandomInpainting, measure
from tokenizers_vq.image import from_bytes, to_bytes

FEW = {
    "prior": Tried("prior", 3, knobs={"sampler": "ancestral"}),
    "aps": Tried("aps", 2, {"steps": 3, "warm": False, "rank": "prior"}),
    "aps_anchored": Tried("aps", 2, {"steps": 3, "warm": False}),
    "sgdd": Tried("sgdd", 2, {"steps": 2, "moves": 5}),
    "g2d2": Tried("g2d2", 2, {"steps": 2}, distance="l2"),
}


@pytest.fixture
def toy(picture_model, monkeypatch, tmp_path):
    """What `main` is told after a toy base took the place of the digits' and few steps that of the methods'."""
    trained = generate.opened(picture_model("vq_diffusion"))
    train, held = generate.load_said(trained.pictures, 3)
    judge = torch.nn.Linear(2, 1)
    base = Base(trained, train, held.rows(torch.arange(len(held.x)) % 2 == 0), judge, lambda x: F.avg_pool2d(x, 4))
    assert len(base.held.x) >= 4
    monkeypatch.setitem(posterior.BASES, "mnist28", lambda run: base)
    monkeypatch.setattr(posterior, "METHODS", dict(FEW))
    monkeypatch.setattr(posterior_table, "record", functools.partial(results.record, folder=tmp_path / "results"))
    argv = ["--tasks", "sr,inpaint", "--methods", ",".join(FEW), "--count", "4", "--regression", "8"]
    return base, [*argv, "--out", str(tmp_path / "run")]


def made(folder):
    """Cells by task and method, and when they were written."""
    files = sorted((folder / "run" / "mnist28" / "cells").glob("*/*.json"))
    return {(file.parent.name, file.stem): (json.loads(file.read_text()), file.stat().st_mtime_ns) for file in files}


def test_cells_are_made_once(toy, monkeypatch, tmp_path, capsys):
    base, argv = toy
    assert guarded(posterior.main, argv) == 0, capsys.readouterr().err
    first = made(tmp_path)
    assert first.keys() == {(task, name) for task in ("sr", "inpaint") for name in (*BESIDE, *FEW)}
    for (_, name), (cell, _) in first.items():
        assert [len(values) for values in cell["figures"].values()] == [4] * 4
        assert cell["sigma"] == posterior.SIGMA and len({cell[part] for part in posterior_table.MODELS}) == 3
        rows_of = {"prior": (3, 0), "aps": (2, 6), "aps_anchored": (2, 6), "ceiling": (0, 0), "regression": (0, 0)}
        if name in rows_of:
            assert (cell["cost"]["network rows"], cell["cost"]["decoded rows"]) == rows_of[name]
    x = base.held.x[torch.linspace(0, len(base.held.x) - 1, 4).long()]
    back = quality.decode(base.trained.tokenizer, *quality.encode(base.trained.tokenizer, x)).clamp(-1, 1)
    ceiling = first["inpaint", "ceiling"][0]["figures"]
    assert ceiling["psnr"] == pytest.approx(psnr(back, from_bytes(x)).tolist())
    assert ceiling["psnr"] == first["sr", "ceiling"][0]["figures"]["psnr"]
    assert first["sr", "prior"][0]["figures"]["psnr"] == first["inpaint", "prior"][0]["figures"]["psnr"]
    page = (tmp_path / "results.md").read_text()
    assert "posterior_mnist28" in page and "sr: anchored re-masking" in page and "4 test pictures" in page

    with monkeypatch.context() as patch:
        for name in ("restore", "regressed"):
            patch.setattr(posterior, name, None)  # whoever calls it raises
        assert guarded(posterior.main, argv) == 0 and made(tmp_path) == first
        assert guarded(posterior.main, [*argv, "--part", "table"]) == 0 and made(tmp_path) == first
        assert guarded(posterior.main, [*argv, "--tasks", "sr"]) == 0 and made(tmp_path) == first
        assert "inpaint, aps" in (tmp_path / "results.md").read_text()  # one task alone does not drive the others out
    monkeypatch.setitem(posterior.METHODS, "aps", replace(FEW["aps"], steps=3))
    capsys.readouterr()
    assert guarded(posterior.main, [*argv, "--save", "false"]) == 0
    again = made(tmp_path)
    assert {key for key in first if again[key] != first[key]} == {("sr", "aps"), ("inpaint", "aps")}
    assert (
        again["sr", "aps"][0]["cost"]["network rows"] == 3
        and "sr: anchored re-masking: difference" in capsys.readouterr().out
    )


def test_other_settings_are_refused(toy, monkeypatch, tmp_path, capsys):
    base, argv = toy
    argv = [*argv, "--tasks", "inpaint", "--methods", "prior,aps", "--regression", "0", "--save", "false"]

    def refused(message, *more):
        code, error = guarded(posterior.main, [*argv, *more]), capsys.readouterr().err
        return code == 2 and message in error and error.count("\n") == 1

    assert refused("it has no cells of mnist28", "--part", "table") and not (tmp_path / "run").exists()
    assert refused("count is 99: there are", "--count", "99") and not (tmp_path / "run").exists()
    assert guarded(posterior.main, argv) == 0 and set(made(tmp_path)) == {
        ("inpaint", name) for name in ("ceiling", "prior", "aps")
    }
    assert refused("seed 0", "--seed", "1") and refused("count 4", "--count", "3", "--part", "table")
    assert guarded(posterior.main, [*argv, "--methods", "prior"]) == 0  # what no cell depends on
    other = {name: x + 0.01 if x.is_floating_point() else x for name, x in base.trained.model.state_dict().items()}
    with torch.no_grad():
        base.judge.weight += 1
    assert refused("has cells of several", "--methods", "prior")  # its features are others
    base.trained.model.load_state_dict(other)
    assert refused("has cells of several", "--methods", "prior")  # the other method's are of the model before
    assert guarded(posterior.main, argv) == 0
    assert len({cell[part] for cell, _ in made(tmp_path).values() for part in ("weights", "judge")}) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ("sr", "srr")}, "tasks is 'sr,srr': choose from sr, gaussian"),
        ({"tasks": ("sr", "sr")}, "each once"),
        ({"methods": ()}, "methods is '': choose from prior, aps"),
        ({"methods": ("asp",)}, "methods is 'asp'"),
        ({"data": "mnist"}, "data is 'mnist': choose from mnist28, tiles32"),
        ({"part": "some"}, "part is 'some': choose from all, table"),
        ({"count": 1}, "at least 2 pictures"),
        ({"regression": -1}, "0 for none"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Run(**wrong)


def test_the_defaults_open_what_the_benchmark_of_captions_makes():
    assert Run().tokenizer == posterior_cost.Run().tokenizer == posterior.image_captions.Run().tokenizer


def test_methods_and_steps_are_known():
    assert {name for _, after, before in STEPS for name in (after, before)} <= METHODS.keys()
    ours = {*posterior_table.OURS, *posterior_table.ANEW, *posterior_table.BESIDE}
    assert {*ours, *posterior_table.RIVALS, "aps"} == METHODS.keys()
    assert set(TASKS) - set(LINEAR) == {"hdr"} and set(posterior_table.CLOSED) <= set(LINEAR)
    for name, (_, after, before) in zip(("rank", "beta", "warm"), STEPS):  # each step changes one thing
        ours, theirs = (METHODS[each].options for each in (after, before))
        assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} == {name}
    own, sure, warm = (METHODS[name] for name in ("aps_own", "aps_sure", "aps_warm"))  # and the last ones the kernel
    assert replace(own, knobs=warm.knobs) == replace(sure, knobs=warm.knobs) == warm
    assert [each.knobs["sampler"] for each in (warm, sure, own)] == ["maskgit", "confidence", "ancestral"]
    spec = {METHODS[name].knobs["noise"] for name in ("aps", "aps_anchored", "aps_anchored_kl", "aps_warm")}
    assert spec == {0.0}  # the order of the paper has no chance in it
    anew, averaged = METHODS["aps_anew"], METHODS["aps_averaged"]
    assert (
        averaged == replace(anew, options={**anew.options, "average": 0.5}) and anew.knobs["sampler"] == "remdm_rescale"
    )
    assert (
        anew.steps * anew.options["steps"] == METHODS["g2d2"].steps * METHODS["g2d2"].options["steps"]
    )  # rows decoded
    plain = {name: how for name, how in METHODS.items() if "g2d2" not in name}
    assert {(how.distance, how.weight) for how in plain.values()} == {("gaussian", 1.0)}
    assert METHODS["g2d2"].distance == METHODS["g2d2_calibrated"].distance == "gaussian"
    for name, twin in (("aps_calibrated", sure), ("g2d2_calibrated", METHODS["g2d2"])):
        assert METHODS[name] == replace(twin, calibrated=True)


def test_what_a_cell_says_of_itself(monkeypatch):
    """Also what is not said: a default that changes makes a cell another one."""
    before = {name: posterior.noted("sr", name) for name in (*METHODS, *BESIDE)}
    assert before["aps_warm"]["settings"]["options"]["rate"] == Descent().rate
    assert before["ceiling"] != before["regression"] and before["ceiling"]["sigma"] == 0.05
    other = dataclasses.make_dataclass("Other", [("rate", float, 0.7), ("steps", int, 3), ("warm", bool, True)])
    how = Tried("aps", 15, {"steps": 30})
    monkeypatch.setitem(posterior.METHODS, "aps_warm", how)
    monkeypatch.setitem(posterior.SAMPLERS, "aps", replace(posterior.SAMPLERS["aps"], options=other))
    assert posterior.noted("sr", "aps_warm")["settings"]["options"] == {"rate": 0.7, "steps": 30, "warm": True}


def test_regression():
    """It learns to undo a measurement, and leaves the global dice alone."""
    shade = torch.linspace(0, 250, 40).byte()
    train = shade[:, None, None, None].expand(-1, 1, 4, 4)
    operator, x = RandomInpainting(0.7), from_bytes(train[5::10])
    y, before = measure(operator, x), torch.get_rng_state()
    found = regressed(operator, train, y, Run(regression=100))
    assert torch.equal(torch.get_rng_state(), before) and psnr(found, x).mean() > psnr(y, x).mean() + 3
    assert torch.equal(
        regressed(operator, train, y, Run(regression=2)), regressed(operator, train, y, Run(regression=2))
    )


# -- the table -------------------------------------------------------------------------------------------------------------


def plant(folder, task, **values):
    """A cell per method, of these PSNRs, made as one of `task` is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in values.items():
        figures = {
            "psnr": each,
            "ssim": [0.5] * len(each),
            "features": [0.1] * len(each),
            "measurement": [0.05] * len(each),
        }
        cell = {**dict.fromkeys(posterior_table.MODELS, "w"), **posterior.noted(task, name), "figures": figures}
        cell["cost"] = {"processor s": 2.0, "network rows": 15}
        (folder / f"{name}.json").write_text(json.dumps(cell))


def read(folder):
    """Cells (task -> name -> cell), and what is left out."""
    return current(folder, TASKS, (*BESIDE, *METHODS), posterior.noted)


def found(folder, task):
    """As if the cells of sr were those of `task`."""
    cells = read(folder)[0].get("sr", {})
    return {row["figure"].removeprefix(f"{task}: "): row for row in rows(cells, task, LINEAR)}


def verdicts(table):
    return {name: results.reached(row["value"], row["goal"]) for name, row in table.items() if "goal" in row}


RUNGS = {"aps": [10.0, 20.0, 30.0], "aps_anchored": [11.0, 21.0, 31.0], "aps_anchored_kl": [10.0, 21.0, 33.0]}
IN_DECIBEL, IN_ERROR = "share of the gap from prior to ceiling in dB", "share of the gap in squared error"


def test_goals_reached(tmp_path):
    sr = tmp_path / "sr"
    plant(sr, "sr", **RUNGS, aps_warm=[12.0, 23.0, 35.0], prior=[1.0, 2.0, 3.0], ceiling=[15.0, 25.0, 38.0])
    plant(sr, "sr", sgdd=[11.5, 22.0, 34.0], best_of=[36.0, 3.0, 3.0], regression=[14.0, 24.0, 37.0])
    table = found(tmp_path, "inpaint")
    step = [table[f"anchored re-masking: {part}"]["value"] for part in ("difference", "lower bound", "upper bound")]
    assert step == pytest.approx([1, 1, 1])  # paired: pictures are 10 dB apart, the methods are not
    step = [
        table[f"KL to the network's table: {part}"]["value"] for part in ("lower bound", "difference", "upper bound")
    ]
    assert step == pytest.approx([-1, 1 / 3, 2])
    assert not any("own steps" in name for name in table)  # it is not there
    lead = "aps_warm against sgdd, the best rival"
    assert table[f"{lead}: difference"]["value"] == pytest.approx(2.5 / 3)
    assert verdicts(table) == {f"{lead}: lower bound": True, IN_DECIBEL: True}
    assert table[f"{IN_DECIBEL}, low"]["value"] < table[IN_DECIBEL]["value"] < table[f"{IN_DECIBEL}, high"]["value"]
    assert table[IN_DECIBEL]["value"] == pytest.approx((70 - 6) / (78 - 6))
    assert table["share of the gap in dB that the regression closes"]["value"] == pytest.approx((75 - 6) / (78 - 6))
    assert table["inpaint, aps: psnr"]["value"] == 20 and table["inpaint, aps: psnr, low"]["value"] < 20
    assert table["inpaint, aps: processor s"]["value"] == 2
    hdr = found(tmp_path, "hdr")  # not linear, and no goal for the gap
    assert verdicts(hdr) == {} and IN_DECIBEL in hdr and not any("best rival" in name for name in hdr)
    gaussian = verdicts(found(tmp_path, "gaussian"))
    assert gaussian == {f"{lead}: lower bound": True}


def test_both_ways_of_re_masking_are_asked(tmp_path):
    """Codes that are all decided anew have the same goals, beside the surest first."""
    planted = {"aps_sure": [12.0, 14.0], "aps_averaged": [18.0, 18.5], "svdd": [15.0, 15.0]}
    plant(tmp_path / "sr", "sr", **planted, prior=[10.0, 10.0], ceiling=[20.0, 20.0])
    table = found(tmp_path, "sr")
    lead = "{} against svdd, the best rival: lower bound"
    share = f"sr, aps_averaged: {IN_DECIBEL}"
    assert verdicts(table) == {
        lead.format("aps_sure"): False,
        lead.format("aps_averaged"): True,
        IN_DECIBEL: False,
        share: True,
    }
    assert table[share]["value"] == pytest.approx(0.825)


def test_goals_missed(tmp_path, capsys):
    folder = tmp_path / "run" / "mnist28"
    planted = {"aps_anchored": [15.0, 15.0], "prior": [10.0, 10.0], "ceiling": [20.0, 20.0], "svdd": [14.0, 15.5]}
    plant(folder / "cells" / "sr", "sr", **planted)
    table = found(folder / "cells", "sr")
    lead = "aps_anchored against svdd, the best rival"
    assert verdicts(table) == {f"{lead}: lower bound": False, IN_DECIBEL: False}
    assert table[IN_DECIBEL]["value"] == pytest.approx(0.5)
    assert table[IN_ERROR]["value"] == pytest.approx((0.1 - 10**-1.5) / (0.1 - 0.01))
    assert table[f"{IN_DECIBEL}, low"]["value"] == table[f"{IN_DECIBEL}, high"]["value"] == pytest.approx(0.5)
    cells = {name: {"figures": {"psnr": [p]}} for name, p in (("prior", 9), ("ceiling", 19), ("a", 9))}
    assert closed(cells, "a") == (0, 0, 0)
    (folder / "run.json").write_text(json.dumps({"data": "mnist28", "count": 2, "regression": 400, "seed": 0}))
    argv = ["--part", "table", "--count", "2", "--save", "false", "--out", str(tmp_path / "run")]
    assert guarded(posterior.main, argv) == 0
    said = capsys.readouterr().out
    assert "from prior to ceiling in dB: 0.5  (>= 0.75, missed)" in said


def test_only_what_is_there(tmp_path):
    assert read(tmp_path / "none") == ({}, []) and rows({}, "sr", LINEAR) == []
    plant(tmp_path / "sr", "sr", prior=[1.0, 2.0], ceiling=[3.0, 4.0], sgdd=[2.0, 3.0])
    assert not verdicts(found(tmp_path, "sr")) and "sr, sgdd: psnr" in found(tmp_path, "sr")
    plant(tmp_path / "sr", "sr", aps_warm=[5.0], aps=[1.0])
    with pytest.raises(ValueError, match="of one method only"):
        found(tmp_path, "sr")


def test_cells_made_otherwise_are_left_out(tmp_path, monkeypatch):
    """Of other settings, of an operator or noise of before, of methods that are no more, and without a digest."""
    plant(tmp_path / "sr", "sr", prior=[1.0], aps=[2.0], sgdd=[3.0])
    plant(tmp_path / "hdr", "sr", prior=[1.0])  # of another operator
    plant(tmp_path / "sr", "sr", gone=[1.0])
    file = tmp_path / "sr" / "sgdd.json"
    cell = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in cell.items() if name != "judge"}))
    monkeypatch.setitem(posterior.METHODS, "aps", replace(METHODS["aps"], steps=3))
    cells, stale = read(tmp_path)
    assert {task: set(here) for task, here in cells.items()} == {"sr": {"prior"}}
    assert stale == ["sr/aps", "sr/gone", "sr/sgdd", "hdr/prior"]
    monkeypatch.setattr(posterior, "SIGMA", 0.1)
    assert read(tmp_path)[0] == {}


def test_the_share_of_the_gap_has_its_interval():
    """Against the bootstrap's own standard error by the delta method: nearly normal for 400 pictures."""
    rng = np.random.default_rng(1)
    x = {"prior": rng.normal(10, 2, 400), "ceiling": rng.normal(25, 1, 400), "a": rng.normal(20, 3, 400)}
    cells = {name: {"figures": {"psnr": values.tolist()}} for name, values in x.items()}
    share = closed(cells, "a")
    gap = x["ceiling"].mean() - x["prior"].mean()
    residual = (x["a"] - x["prior"]) - share.mean * (x["ceiling"] - x["prior"])
    error = residual.std() / gap / 400**0.5
    assert share.mean == pytest.approx((x["a"].mean() - x["prior"].mean()) / gap)
    assert (share.high - share.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert share == closed(cells, "a") != closed(cells, "a", squared=True)


def test_bound(toy, monkeypatch, tmp_path, capsys):
    """The network's pictures are made once; told in codes they are what the tokenizer makes of them."""
    base, _ = toy
    monkeypatch.setattr(posterior_bound, "record", functools.partial(results.record, folder=tmp_path / "results"))
    argv = ["--tasks", "sr", "--count", "4", "--steps", "8", "--method", "aps", "--out", str(tmp_path / "bound")]
    assert guarded(posterior_bound.main, argv) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "results" / "posterior_bound_mnist28.json").read_text())
    value = {row["figure"]: row["value"] for row in found["figures"]}
    cells = {name: json.loads(file.read_text())["figures"]["psnr"] for name in ("prior", "ceiling")
             for file in (tmp_path / "bound").glob(f"*/cells/sr/{name}.json")}  # fmt: skip
    low, high = (float(np.mean(cells[name])) for name in ("prior", "ceiling"))
    assert value["sr: three quarters of the gap from prior to ceiling"] == pytest.approx(low + 0.75 * (high - low))
    kept = torch.load(tmp_path / "bound" / "mnist28" / "sr.pt", weights_only=True)
    x = from_bytes(base.held.x[torch.linspace(0, len(base.held.x) - 1, 4).long()])
    assert value["sr, network: psnr"] == pytest.approx(float(psnr(kept, x).mean()), abs=1e-5)
    told = quality.decode(base.trained.tokenizer, *quality.encode(base.trained.tokenizer, to_bytes(kept)))
    coded = float(psnr(told.clamp(-1, 1), x).mean())
    assert value["sr, its pictures by the tokenizer's codes: psnr"] == pytest.approx(coded, abs=1e-5)
    share = (coded - low) / (high - low)
    assert value["sr, its pictures by the tokenizer's codes: share of the gap in dB"] == pytest.approx(share, abs=1e-5)
    assert "sr, its pictures measured whole, aps: psnr" in value
    monkeypatch.setattr(posterior_bound, "regressed", None)  # not called again
    assert guarded(posterior_bound.main, argv) == 0, capsys.readouterr().err
    assert torch.equal(torch.load(tmp_path / "bound" / "mnist28" / "sr.pt", weights_only=True), kept)


@pytest.mark.parametrize("given", [{"steps": 0}, {"method": "best"}, {"tasks": ("blur",)}])
def test_bound_refuses(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        posterior_bound.Run(**given)
