"""The result files, the page made of them, and the goals they are held against."""

import json
import math

import pytest

from benchmarks import results


@pytest.mark.parametrize(
    ("value", "goal", "expected"),
    [
        (0.96, ">= 0.96", True),
        (0.9599, ">= 0.96", False),
        (17, "<= 17", True),
        (17.5, "<=17", False),
        (1.0, "> 1", False),
        (-1, "< -0.5", True),
        (2e-17, "<= 1e-12", True),
        (0, "== 0", True),
        (1, "== 0", False),
        (5.0, None, None),
    ],
)
def test_goal_is_compared(value, goal, expected):
    assert results.reached(value, goal) is expected


@pytest.mark.parametrize("goal", ["", "0.96", "about 3", ">= ", ">= many", "=> 3", ">= nan", "< inf", ">= 1 or so"])
def test_unreadable_goal_is_refused(goal):
    with pytest.raises(ValueError, match="comparison"):
        results.reached(1.0, goal)


def test_record_writes_figures_and_page(tmp_path, capsys):
    folder = tmp_path / "results"
    figures = [
        {"figure": "accuracy", "value": 0.5, "goal": ">= 0.96"},
        {"figure": "time | run", "value": 12, "unit": "s", "goal": "<= 17"},
        {"figure": "bits per token", "value": 1 / 3, "unit": "bit"},
    ]
    entry = results.record("toy", iter(figures), data="none", seeds=range(3), folder=folder)
    assert json.loads((folder / "toy.json").read_text()) == entry
    assert [row["reached"] for row in entry["figures"]] == [False, True, None]
    assert entry["seeds"] == [0, 1, 2]
    assert entry["command"].startswith("python ")
    assert {"python", "torch", "numpy", "machine", "cpus"} <= set(entry["versions"])
    text = (tmp_path / "results.md").read_text()
    assert text == results.page(folder)
    assert "| accuracy | 0.5 |  | >= 0.96: **missed** |" in text
    assert r"| time \| run | 12 | s | <= 17: reached |" in text
    assert "| bits per token | 0.333333 | bit |  |" in text
    assert "Goals reached: 1 of 2." in text
    assert "time | run = 12 s <= 17: reached" in capsys.readouterr().out
    results.record("first", figures[2:], data="none", seeds=0, command="make it", folder=folder)
    text = (tmp_path / "results.md").read_text()
    assert text.index("## first") < text.index("## toy")
    assert "- command: `make it`" in text
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"results.md", "toy.json", "first.json"}


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("../toy", [{"figure": "a", "value": 1}]),
        ("toy", []),
        ("toy", [{"figure": "a", "value": 1}, {"figure": "a", "value": 2}]),
        ("toy", [{"figure": "a", "value": math.nan}]),
        ("toy", [{"figure": "a", "value": "1"}]),
        ("toy", [{"figure": "a", "value": True}]),
        ("toy", [{"figure": "a"}]),
        ("toy", [{"figure": "a", "value": 1, "target": ">= 1"}]),
        ("toy", [{"figure": "a", "value": 1, "goal": "high"}]),
    ],
)
def test_bad_record_writes_nothing(tmp_path, name, figures):
    with pytest.raises(ValueError):
        results.record(name, figures, data="none", seeds=0, folder=tmp_path / "results")
    assert not list(tmp_path.iterdir())


def test_page_refuses_an_edited_verdict(tmp_path):
    folder = tmp_path / "results"
    results.record("toy", [{"figure": "a", "value": 1, "goal": ">= 2"}], data="none", seeds=0, folder=folder)
    path = folder / "toy.json"
    path.write_text(path.read_text().replace('"reached": false', '"reached": true'))
    with pytest.raises(ValueError, match="reached=True"):
        results.page(folder)


def test_results_page_is_what_the_generator_yields():
    path = results.FOLDER.with_suffix(".md")
    assert path.read_text(encoding="utf-8") == results.page(), (
        "docs/results.md is out of date: python -m benchmarks.results"
    )


def test_figures_that_several_things_share_become_columns(tmp_path):
    named = [{"figure": f"{who}, {n} calls: {what}", "value": n, "unit": unit} for who in ("a", "b") for n in (4, 8)
             for what, unit in (("valid", "share"), ("cost", "calls"))]  # fmt: skip
    goals = [
        {"figure": "a, 16 calls: valid", "value": 1, "goal": ">= 0.5"},
        {"figure": "alone: valid more", "value": 3},
    ]
    results.record("toy", [*named, *goals], data="", seeds=[], folder=tmp_path / "results")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert "|  | valid (share) | cost (calls) |" in lines and "| b, 8 calls | 8 | 8 |" in lines
    assert "| a, 16 calls: valid | 1 |  | >= 0.5: reached |" in lines and "| alone: valid more | 3 |  |  |" in lines
    assert len([line for line in lines if line.startswith("| ")]) == 10


def test_a_folder_of_other_settings_is_not_measured_as_these(tmp_path):
    first = {"steps": 100, "condition": ("label", "speaker"), "save": True}
    results.same_run(tmp_path / "runs", first, ("save",))
    results.same_run(tmp_path / "runs", {**first, "save": False}, ("save",))
    with pytest.raises(ValueError, match="holds trainings with steps 100: give these, or another folder by --out"):
        results.same_run(tmp_path / "runs", {**first, "steps": 200}, ("save",))
    results.same_run(tmp_path / "runs", first, ("save",))  # the note is as it was
