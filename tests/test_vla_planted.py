"""benchmarks.vla_planted: what is planted, that a policy which knows better finds it, and the figures of a run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import vla_planted
from benchmarks.vla_planted import NONE, Run, settings, tried
from benchmarks.vla_tracks import TRACKS
from discdiff.denoisers import denoiser_of
from discdiff.kernels.valued import VALUE
from discdiff.training import TrainingSettings
from tasks.vla.design import Decoding, Policy
from tasks.vla.episodes import Episode
from tasks.vla.improve import hidden, some
from tasks.vla.learning import Loss, Rows, fit, untrained
from tasks.vla.lerobot import write

LEVELS = torch.linspace(-1, 1, 256)[None]


def shown(count=4):
    """Episodes in which the sentence says the only action there is."""
    rng, ways = np.random.default_rng(0), {"push the block": (0.9, -0.9), "open the drawer": (-0.8, 0.2)}
    return [
        Episode(rng.normal(size=(8, 3)).astype("f4"), np.tile(np.float32(way), (8, 1)), task)
        for _ in range(count) for task, way in ways.items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """One that has learned them."""
    shape = Policy(chunk=4, codebook_size=16, hidden_size=32, num_layers=1, num_heads=2)
    few = TrainingSettings(
        steps=60, batch_size=32, optimizer="muon", learning_rate=1e-2, warmup=5, progress=False, device="cpu"
    )
    return fit(
        untrained(shape, shown(), 0), shown(), few, tmp_path_factory.mktemp("planted") / "policy", Loss(jitter=0.0)
    )


@pytest.fixture
def tiny(monkeypatch):
    track = dataclasses.replace(TRACKS["hard10"], tasks=("push", "reach"), demonstrations=4)
    monkeypatch.setitem(TRACKS, "tiny", track)
    return Run(track=("tiny",), method=("masked",), seeds=(0,), frames=12, rounds=8, share=0.3)


def test_what_is_planted(policy, tiny):
    rows = Rows(policy, policy.layout, shown())
    which = some(rows, 12, 0)
    made = policy.sampler_of(Decoding("dd_vla", 8, knobs={"share": 0.0}))
    plant = vla_planted.Planted(made.kernel, policy.values, 4, 0.3, 0.5, 0)
    seen = []

    class Spied(vla_planted.Planted):
        def planted(self, state):
            seen.extend([state, super().planted(state)])
            return seen[-1]

    spied = Spied(*(getattr(plant, f.name) for f in dataclasses.fields(plant)))
    made = dataclasses.replace(made, kernel=spied)
    after, _ = made(denoiser_of(policy.model), hidden(policy, rows, which), which)
    before, changed = seen
    wrong = changed.memory[vla_planted.PLANTED]
    there = (before.committed & before.free).sum(1)
    assert (
        torch.equal(wrong.sum(1), (there * 0.3).ceil().long()) and bool((there < 8).all()) and bool((there > 0).all())
    )
    assert torch.equal(changed.tokens != before.tokens, wrong) and not bool((wrong & ~before.committed).any())
    off = (changed.memory[VALUE] - policy.values.of(before.batch, before.tokens)).abs()
    assert bool((off[wrong] >= 0.5).all())
    assert torch.equal(after.tokens[wrong], changed.tokens[wrong])  # nothing takes them back
    assert torch.equal(after.memory[VALUE][wrong], changed.memory[VALUE][wrong])


def test_a_policy_that_knows_better_takes_them_back(policy, tiny):
    rows, how = Rows(policy, policy.layout, shown()), Decoding("dd_vla", 8)
    found = {
        name: {part: np.mean(x) for part, x in tried(policy, rows, knobs, how, tiny, 0).items()}
        for name, knobs in settings(policy.tokenizer.levels, Loss()).items()
    }
    none, loo = found[NONE], found["loo"]
    assert (none["masked again"], none["corrected"], none["false alarms"]) == (0, 0, 0)
    assert none["error"] > none["error without planting"] + 0.1
    assert loo["corrected"] > 90 and loo["masked again"] > 90 and loo["error"] < none["error"] - 0.1
    assert loo["network rows"] > none["network rows"] == 8


def test_thresholds_fit_what_labels_allow():
    plain, fitted = (settings(LEVELS, Loss(width=width))["loo, fitted"] for width in (0.0, 0.02))
    assert (plain["low"], plain["high"], plain["drop"]) == (0.1, 0.4, 0.3)
    assert fitted["high"] / 0.4 == pytest.approx(0.0078 / (0.02 * (2 * np.pi) ** 0.5), rel=0.02)
    assert settings(LEVELS, Loss())[NONE] == {"share": 0.0}


def test_the_figures_of_a_run(policy, tiny, tmp_path):
    write(tmp_path / "data" / "tiny", shown(), fps=80)
    policy.save_pretrained(tmp_path / "policies" / "tiny" / "masked_0")
    words = f"--track tiny --method masked --seeds 0 --frames 8 --rounds 4 --policies {tmp_path} --out {tmp_path} --save false"
    vla_planted.main(words.split())
    stored = json.loads((tmp_path / "results" / "vla_planted.json").read_text())
    rows = {row["figure"]: row for row in stored["figures"]}
    gain = rows["tiny, masked, loo, more corrected than without, low"]
    assert gain["goal"] == "> 0" and gain["value"] > 50 and rows[f"tiny, masked, {NONE}: corrected"]["value"] == 0
    with pytest.raises(ValueError, match=r"run benchmarks\.vla on that track first"):
        vla_planted.main([*words.split(), "--seeds", "1"])
    for wrong in ({"track": ("image10",)}, {"method": ("flow",)}, {"share": 0.0}, {"off": 1.0}, {"rounds": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Run(**wrong)
