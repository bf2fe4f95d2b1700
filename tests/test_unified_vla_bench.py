"""benchmarks.unified_vla: a run of one step per training in a world of one line, what is kept, the table from planted cells."""

import json
import time
from dataclasses import replace
from functools import partial

import pytest
from policy_toy import Line, ahead

from benchmarks import unified_vla
from benchmarks.results import record
from benchmarks.unified_vla_table import table
from tasks.image.tokenizer import build
from tasks.vla.collect import record as collect
from tokenizers_vq.image import ImageTokenizerConfig

RUN = unified_vla.Run(
    tasks=("drawer-open",),
    seeds=(0,),
    demonstrations=2,
    held=1,
    episodes=2,
    cap=16,
    rounds=2,
    seconds=1.0,
    batch_size=4,
    save=False,
)
CHOICES = [("unified", "joint"), ("unified", "separate"), ("separate", "separate"), ("alone", "action")]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """With a small network, a tokenizer that nobody trained, and steps so slow that one is all."""
    monkeypatch.setattr(unified_vla, "TOLD", replace(unified_vla.TOLD, hidden_size=16, num_layers=1, num_heads=2))
    monkeypatch.setattr(unified_vla, "TIMED", 1)
    config = ImageTokenizerConfig(width=8, blocks=0, strides=(4, 4), code_dim=4, codebook_size=8, pixel="l2")
    build(config, 0).save_pretrained(tmp_path / "pictures")
    slow = dict.fromkeys((*unified_vla.WORLDS, *unified_vla.METHODS), 1e9)
    (tmp_path / "pace.json").write_text(json.dumps(slow))
    made = partial(collect, make=Line, expert=ahead, say=lambda line: None)
    return unified_vla.Bench(replace(RUN, out=str(tmp_path)), make=Line, collect=made)


def test_a_run_and_what_is_not_made_again(bench, monkeypatch):
    cells = {choice: [bench.cell(choice[0], 0, choice[1])] for choice in CHOICES}
    folder = bench.folder
    for method, decoding in CHOICES:
        (cell,) = cells[method, decoding]
        stored = folder / "cells" / f"{method}_0" / f"{decoding}.json"
        assert json.loads(stored.read_text()) == cell and stored.with_suffix(".html").is_file()
        assert [(e["task"], e["seed"]) for e in cell["episodes"]] == [("drawer-open", 50_000), ("drawer-open", 50_001)]
        assert all(e["calls"] == -(-e["length"] // 8) for e in cell["episodes"]) and cell["milliseconds"] > 0
        assert (cell["training"]["world"] is None, "errors" in cell) == (
            (True, False) if method == "alone" else (False, True)
        )
        assert cell["training"]["steps"] == 1
    shared = {json.dumps(cells[c][0]["training"]["world"], sort_keys=True) for c in CHOICES[:3]}
    assert len(shared) == 1 and (folder / "world_paper_0").is_dir() and not (folder / "world_released_0").exists()
    (folder / "alone_0.json").unlink()  # as where a run was killed
    policy, note = bench.trained("alone", 0)
    assert (note["steps"], note["seconds"]) == (1, None) and policy.told.decoding.steps == 2
    for name in ("fit", "fit_world", "evaluate"):
        monkeypatch.setattr(unified_vla, name, None)
    again = unified_vla.Bench(replace(bench.run, seeds=(0, 1), part="table"))
    assert again.cell("unified", 0, "joint") == cells["unified", "joint"][0]
    assert again.cell("unified", 1, "joint") is None
    with pytest.raises(ValueError, match="rounds 2"):
        unified_vla.Bench(replace(bench.run, rounds=3))
    rows = table(cells, (0,))
    record("unified_vla", rows, data="a line", seeds=(0,), command="none", folder=folder / "results")
    assert "unified, joint against alone, action" in (folder / "results.md").read_text()


def test_a_killed_recording_goes_on(bench, monkeypatch):
    begun = []

    class Watched(Line):
        def reset(self, seed):
            begun.append(seed)
            if len(begun) == 2:
                raise KeyboardInterrupt
            return super().reset(seed)

    monkeypatch.setattr(bench, "collect", partial(collect, make=Watched, expert=ahead, say=lambda line: None))
    with pytest.raises(KeyboardInterrupt):
        bench.episodes("data", 3, 1000)
    assert len(bench.episodes("data", 3, 1000)) == 3 and begun == [1000, 1001, 1001, 1002]
    assert not list(bench.folder.glob("*_parts"))


def planted(share, seed=0, milliseconds=5.0, errors=True, seconds=7.0):
    """A cell in which every k-th of ten episodes succeeded."""
    episodes = [{"task": "t", "seed": i, "success": i < 10 * share, "length": 20 + i, "calls": 3} for i in range(10)]
    world = {"steps": 3, "seconds per step": 0.5, "seconds": 2.0, "world": None} if errors else None
    training = {"steps": 5 + seed, "seconds per step": 0.5, "seconds": seconds, "world": world}
    found = {"training": training, "milliseconds": milliseconds, "episodes": episodes}
    return found | ({"errors": {"predicted": 0.03, "copied": 0.06, "coded": 0.01}} if errors else {})


def test_the_table_is_of_whole_choices_and_of_pairs():
    cells = {
        ("unified", "joint"): [planted(0.8), planted(0.6, 1, 7.0)],
        ("alone", "action"): [planted(0.4, errors=False), planted(0.4, 1, errors=False, seconds=None)],
        ("separate", "separate"): [planted(0.9), None],
    }
    rows = {row["figure"]: row for row in table(cells, (0, 1))}
    shown = {name: row["value"] for name, row in rows.items()}
    assert shown["unified, joint: success"] == 70 and shown["alone, action: success"] == 40
    assert shown["unified, joint: low"] < 70 < shown["unified, joint: high"]
    assert (shown["unified, joint: length"], shown["unified, joint: calls"]) == (24.5, 3)
    assert shown["unified, joint: one call"] == 6 and shown["unified, joint: training"] == 9
    assert shown["unified, joint: predicted over copied"] == 0.5
    assert rows["unified, joint: predicted over copied"]["goal"] == "< 1"
    assert shown["unified, joint: picture coded"] == 0.01 and "alone, action: picture coded" not in shown
    assert "alone, action: training" not in shown  # one of them was interrupted
    assert shown["unified, joint against alone, action: difference"] == 30
    assert (
        0
        < shown["unified, joint against alone, action: low"]
        < 30
        < shown["unified, joint against alone, action: high"]
    )
    assert not any("separate" in name for name in shown) and shown["cells missing"] == 1


def test_a_pace_is_what_more_steps_take(bench):
    (bench.folder / "pace.json").unlink()

    def training(per_step):
        def train(steps, folder):
            end = time.process_time() + 0.03 + per_step * steps
            while time.process_time() < end:
                pass

        return train

    found = bench.paces({"slow": training(0.004), "fast": training(0.001)})
    assert found == {"slow": pytest.approx(0.004, rel=0.3), "fast": pytest.approx(0.001, rel=0.5)}
    assert bench.paces({"slow": None, "fast": None}) == found  # as measured before


def test_what_is_refused():
    for wrong in ({"part": "some"}, {"methods": ("paper",)}, {"seeds": (1, 1)}, {"seconds": 0.0}, {"episodes": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            unified_vla.Run(**wrong)
    assert unified_vla.WAYS.keys() == unified_vla.METHODS.keys()
    for method, settings in unified_vla.METHODS.items():
        assert set(unified_vla.WAYS[method]) <= set(settings.decodings)
