"""benchmarks.vla on pictures, end to end in a toy world, and the peers of benchmarks.vla_peers with a toy network."""

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import results, vla, vla_peers
from benchmarks.vla_peers_lerobot import network, observed, untrained
from benchmarks.vla_table import Cell, goals, table
from benchmarks.vla_tracks import EVALUATION, FIRST, METHODS, PEERS, TRACKS, kinds_of
from tasks.vla import collect
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import CAMERA
from tasks.vla.policy import Decoding, Policy
from tasks.vla.rollout import Observations
from tasks.vla.sentences import said

TASKS = ("drawer-open", "drawer-close")


class Lit:
    """A hand that is done beyond 1 on the side where pictures are lit, which the state says beyond its first 4 numbers."""

    drawn = 0

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        drawn = np.random.default_rng(seed)
        self.full, self.seed = drawn.uniform(-0.1, 0.1, 39), seed
        self.full[38] = self.side = drawn.choice([-1.0, 1.0])
        return self.full.astype(np.float32)

    def step(self, action):
        self.full[18:36] = self.full[:18]
        self.full[0] += 0.1 * action[0]
        return self.full.astype(np.float32), True if self.side * self.full[0] >= 1 else None

    def picture(self, size):
        Lit.drawn += 1
        seen = np.tile(np.linspace(0, 40, size).astype(np.uint8)[None, :, None], (size, 1, 3))
        half = slice(size // 2, None) if self.side > 0 else slice(0, size // 2)
        seen[:, half] += 200
        return seen

    def close(self):
        pass


def expert(task):
    return lambda full: np.array([full[38], 0, 0, 0.0])


def recorded(task, episodes, **how):
    return collect.record(task, episodes, make=Lit, expert=expert, **how)


def settings(out, **more):
    return {
        "seeds": (0,),
        "seconds": 0.01,
        "demonstrations": 2,
        "episodes": 2,
        "out": str(out),
        **more,
    }


@pytest.fixture
def small(monkeypatch):
    """Tracks of two tasks, small networks, and few steps to measure by."""
    told = Policy(chunk=2, picture=16, proprio=4, hidden_size=16, num_layers=1, num_heads=2, codebook_size=16)
    monkeypatch.setitem(TRACKS, "image10", replace(TRACKS["image10"], tasks=TASKS, policy=told))
    monkeypatch.setitem(TRACKS, "easy10", replace(TRACKS["easy10"], tasks=TASKS))
    for name, value in (("PACED", 3), ("SKIPPED", 1), ("ROUNDS", 1), ("TIMED", 1), ("QUICK", 16)):
        monkeypatch.setattr(vla, name, value)


def test_pictures_from_data_to_the_table(tmp_path, small, monkeypatch):
    monkeypatch.setattr(vla, "QUICK", 4)
    run = vla.Run(track=("image10",), development=1, batch_size=4, save=False, **settings(tmp_path))
    bench = vla.Bench(run, make=Lit, collect=recorded)
    bench.track("image10")
    stored = open_dataset(tmp_path / "data" / "image10")
    first = next(stored.episodes([0]))
    assert list(first.pictures) == [CAMERA] and first.pictures[CAMERA].shape == (len(first), 16, 16, 3)
    assert np.array_equal(first.pictures[CAMERA][0], _seen(1000)) and first.task == said("drawer-open")
    assert [each.name for each in sorted((tmp_path / "cells" / "image10").iterdir())] == [
        "autoregressive_0", "flow_0", "masked_0", "parallel_0"
    ]  # fmt: skip
    files = {p.name for p in (tmp_path / "cells" / "image10" / "masked_0").iterdir()}
    several = {f"{n}_step{'s' * (n > 1)}_matched" for n in (1, 4, 16)} | {"1_step_argmax"}
    assert files == {f"{name}{kind}.json" for name in several for kind in ("", ".development")}
    policy, training = bench.policy("image10", "masked", 0, list)
    assert policy.settings.picture == 16 and len(policy.scale.middle) == 4 and training["steps"] >= 1
    before = Lit.drawn
    cell = bench.cells.read(Cell("image10", "parallel", 0, "1 pass"))
    bench.track("image10")  # all is there
    assert Lit.drawn == before and len(cell["episodes"]) == 4 and cell["milliseconds"] > 0
    rows = {row["figure"]: row for row in goals(bench.cells, "image10", (0,))}
    assert rows["cells missing"]["value"] == 0 and not any("variant" in name for name in rows)
    asked = {name.split(":")[0]: row["goal"] for name, row in rows.items() if row["goal"] and "missing" not in name}
    assert asked == {"peer parallel": ">= -3"}
    low = next(name for name in rows if name.startswith("peer parallel") and rows[name]["goal"])
    assert low.endswith("lower bound")
    every = [row for row in (*table(bench.cells, "image10", (0,)), *rows.values()) if row["value"] is not None]
    results.record("vla_image10", every, data="toy", seeds=0, command="none", folder=tmp_path / "results")
    assert "masked_plain" not in (tmp_path / "results.md").read_text() and "masked_plain" in METHODS
    assert "image10" not in vla.Run(out=str(tmp_path)).track and kinds_of("image10", "parallel") == (EVALUATION,)


def _seen(seed, size=16):
    world = Lit("")
    world.reset(seed)
    return world.picture(size)


class Looks:
    """A policy that goes where the picture is lit, and counts what else it is shown."""

    lexicon, scale = SimpleNamespace(check=lambda sentence: None), SimpleNamespace(middle=(0.0,) * 4)

    def predict_action(self, state, instruction, pictures, *, seed=0, decoding):
        assert state.shape[-1] == 4 and pictures.dtype == np.uint8 and pictures.shape[-3:] == (16, 16, 3)
        if isinstance(instruction, str):
            return np.zeros((8, 4))
        side = np.sign(pictures[:, :, 8:].mean((1, 2, 3)) - pictures[:, :, :8].mean((1, 2, 3)))
        return np.repeat(side[:, None, None], 8, 1) * np.array([1.0, 0, 0, 0])


def test_a_policy_is_shown_pictures_and_four_numbers(tmp_path, small):
    bench = vla.Bench(vla.Run(**settings(tmp_path, episodes=5)), make=Lit)
    made = bench.cell(Looks(), {}, "w", Cell("image10", "parallel", 0, "1 pass"))["episodes"]
    assert [e["success"] for e in made] == [True] * 10
    sides = {Lit("").reset(seed)[38] for seed in range(FIRST[EVALUATION], FIRST[EVALUATION] + 5)}
    assert sides == {-1.0, 1.0}  # neither could be guessed


class Network(torch.nn.Module):
    """One layer behind the interface of LeRobot's policies."""

    def __init__(self, method, sentences, dim):
        super().__init__()
        shown = observed(method, torch.zeros(1, 39), torch.zeros(1, sentences))
        self.method, self.shape = method, (8 if method == "act" else 16, dim)
        self.layer = torch.nn.Linear(sum(x[0].numel() for x in shown.values()), self.shape[0] * dim)
        preset = SimpleNamespace(build=lambda given: torch.optim.SGD(given, 0.1), grad_clip_norm=10.0)
        self.config = SimpleNamespace(get_optimizer_preset=lambda: preset)
        if method != "act":
            self.config.drop_n_last_frames = 7
            self.diffusion = SimpleNamespace(generate_actions=self.generated, num_inference_steps=0)
        self.get_optim_params = self.parameters

    def predict_action_chunk(self, batch):
        told = torch.cat([batch[name].flatten(1) for name in sorted(batch) if name.startswith("observation")], 1)
        return self.layer(told).view(-1, *self.shape)

    def generated(self, batch, noise):
        assert self.diffusion.num_inference_steps == 10 and noise.shape[1:] == self.shape
        return (self.predict_action_chunk(batch) + noise)[:, 1:9]

    def forward(self, batch):
        return ((self.predict_action_chunk(batch) - batch["action"]) ** 2).mean(), {}


def test_peers_from_training_to_cells(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(vla_peers, "BATCH", 4)
    ours = vla.Run(batch_size=32, save=False, **settings(tmp_path))
    vla.Bench(ours, make=Lit, collect=recorded).demonstrations("easy10")  # the folder is of other trainings, too
    run = vla_peers.Run(track=("easy10",), **settings(tmp_path))
    bench = vla_peers.Bench(run, Lit, recorded, Network)
    bench.track("easy10")
    for method, each in PEERS.items():
        (name,) = each
        cell = bench.cells.read(Cell("easy10", method, 0, name))
        assert len(cell["episodes"]) == 4 and cell["training"]["steps"] >= 1 and cell["training"]["seconds"] > 0
        one, _ = bench.policy("easy10", method, 0, list)
        state = np.random.default_rng(0).normal(size=(3, 39)).astype(np.float32)
        words, seeds = [said(task) for task in (*TASKS, TASKS[0])], [5, 6, 7]
        whole = one.predict_action(state, words, seed=seeds, decoding=each[name])
        assert whole.shape == (3, 8, 4) and np.abs(whole).max() <= 1
        alone = one.predict_action(state[2], words[2], seed=7, decoding=each[name])
        np.testing.assert_allclose(alone, whole[2], atol=1e-6)
        with pytest.raises(ValueError, match="sentence"):
            one.predict_action(state[0], "fly", decoding=Decoding())
    assert json.loads((tmp_path / "policies" / "easy10" / "pace_peers.json").read_text()).keys() == PEERS.keys()
    capsys.readouterr()
    bench.track("easy10")
    assert not capsys.readouterr().out  # nothing is made again
    vla.Bench(ours)  # nor did the folder become another one's
    with pytest.raises(ValueError, match=r"seconds 0\.01"):
        vla_peers.Bench(vla_peers.Run(**settings(tmp_path, seconds=2.0)))
    for wrong in ({"track": ("language",)}, {"track": ("image10",)}, {"methods": ("masked",)}, {"part": "table"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            vla_peers.Run(**wrong)


def test_rows_of_peers_are_those_of_lerobot():
    rng = np.random.default_rng(0)
    shown = [
        Episode(*(rng.uniform(-1, 1, (n, d)).astype(np.float32) for d in (39, 4)), task)
        for n, task in ((9, "b"), (20, "a"))
    ]
    rows = vla_peers.Rows(untrained("diffusion_policy", shown, 0, Network), shown)
    assert len(rows) == 2 + 13  # but for the last 7 frames of each
    begin = rows.batch(torch.tensor([0, 1, 2, 5]))
    everything = np.concatenate([each.action for each in shown])
    low, high = everything.min(0), everything.max(0)
    wanted = [(shown[0], 0), (shown[0], 1), (shown[1], 0), (shown[1], 3)]
    for k, (episode, t) in enumerate(wanted):
        at = np.arange(t - 1, t + 15)
        true = episode.action[at.clip(0, len(episode) - 1)]
        np.testing.assert_allclose(begin["action"][k], 2 * (true - low) / (high - low) - 1, atol=1e-5)
        assert begin["action_is_pad"][k].tolist() == ((at < 0) | (at >= len(episode))).tolist()
    peer = untrained("act", shown, 0, Network)
    plain = vla_peers.Rows(peer, shown)
    batch = plain.batch(torch.tensor([9]))
    assert len(plain) == 29 and batch["observation.environment_state"].tolist() == [[1.0, 0.0]]
    back = batch["action"][0] * torch.tensor(peer.units.spread) + torch.tensor(peer.units.middle)
    np.testing.assert_allclose(back, shown[1].action[:8], atol=1e-5)
    two = observed("diffusion_policy", torch.arange(39.0)[None], torch.ones(1, 2))
    assert two["observation.state"][0].tolist() == [list(range(18, 36)), list(range(18))]
    assert two["observation.environment_state"][0].tolist() == [[36, 37, 38, 1, 1]] * 2


def test_training_of_peers_lowers_the_loss_and_follows_its_seed(monkeypatch):
    monkeypatch.setattr(vla_peers, "BATCH", 8)
    rng = np.random.default_rng(1)
    state = rng.normal(size=(30, 39)).astype(np.float32)
    shown = [Episode(state, np.clip(state[:, :4], -1, 1), "b")]
    made = [untrained("act", shown, seed, Network) for seed in (0, 0, 1)]
    rows = [vla_peers.Rows(peer, shown) for peer in made]

    def loss():
        with torch.no_grad():
            return float(made[0].model(rows[0].batch(torch.arange(30)))[0])

    before = loss()
    drawn = torch.get_rng_state()
    for peer, each, steps in zip(made, rows, (40, 40, 40)):
        assert len(vla_peers.fit(peer, each, steps, 0)) == 40
    assert torch.equal(torch.get_rng_state(), drawn)  # the caller's draws are its own
    assert loss() < 0.9 * before
    weights = [peer.model.layer.weight for peer in made]
    assert torch.equal(*weights[:2]) and not torch.equal(weights[0], weights[2])
    seen = Observations(rng.normal(size=(2, 39)).astype(np.float32), ["b"] * 2, [1, 2], [0, 0])
    assert vla._asked(made[0], Decoding(), seen).shape == (2, 8, 4)


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed")
def test_without_lerobot_the_environment_is_named():
    with pytest.raises(ValueError, match=r"benchmarks\.vla_peers"):
        network("act", 2, 4)
