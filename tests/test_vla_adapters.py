"""A policy behind others' interfaces: the same actions as its own, their shapes and conventions, and what they refuse."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_toy import CHUNK, DIM, DRAWN, POLICY, RANDOM, SAYS, SIZE, STATE, lerobot_batch, made

from discdiff.energy import TokenEnergy
from tasks.vla import commands, serve
from tasks.vla.adapters import LeRobotPolicy, OpenPiPolicy, environments
from tasks.vla.adapters.pictures import shown
from tasks.vla.learning import Loss


def test_a_lerobot_policy_says_what_lerobot_asks():
    policy = LeRobotPolicy(POLICY)
    assert policy.config.observation_delta_indices is None and policy.config.action_delta_indices == list(range(CHUNK))
    assert policy.config_class is type(policy.config) and policy.name == policy.config.type
    assert isinstance(policy, torch.nn.Module) and len(policy.get_optim_params()) == len(
        list(POLICY.model.parameters())
    )
    for flags, match in (({"n_action_steps": CHUNK + 1}, "at most"), ({"unnorm_key": "bridge"}, "unnorm_key")):
        with pytest.raises(ValueError, match=match):
            LeRobotPolicy(POLICY, **flags)
    with pytest.raises(TypeError, match="actions_steps"):
        LeRobotPolicy(POLICY, actions_steps=2)


def test_the_chunk_is_the_policys_own_and_noise_is_new_each_time():
    batch, policy = lerobot_batch(), LeRobotPolicy(POLICY, seed=5, decoding=DRAWN)
    found = policy.predict_action_chunk(batch)
    own = POLICY.predict_action(batch["observation.state"].numpy(), batch["task"], seed=[5, 6], decoding=DRAWN)
    assert found.shape == (2, CHUNK, DIM) and np.array_equal(found.numpy(), own)
    assert not torch.equal(policy.predict_action_chunk(batch), found)
    assert torch.equal(LeRobotPolicy(POLICY, seed=5, decoding=DRAWN).predict_action_chunk(batch), found)


def test_the_queue_is_drained_before_the_policy_is_asked_again():
    batch, policy = lerobot_batch(), LeRobotPolicy(POLICY, n_action_steps=3, decoding=DRAWN)
    twin = LeRobotPolicy(POLICY, decoding=DRAWN)
    chunks = [twin.predict_action_chunk(batch) for _ in range(2)]
    drawn = [policy.select_action(batch) for _ in range(5)]
    expected = [*chunks[0].unbind(1)[:3], *chunks[1].unbind(1)[:2]]
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True)) and policy.calls == 4
    with pytest.raises(ValueError, match=r"reset\(\) first"):
        policy.select_action(lerobot_batch(1))
    policy.reset()
    assert policy.select_action(lerobot_batch(1)).shape == (1, DIM)


def test_what_is_left_of_the_last_chunk_is_kept():
    batch, policy = lerobot_batch(), LeRobotPolicy(POLICY)
    left = torch.rand(2, 3, DIM)
    for delay, horizon, kept in ((2, None, 2), (3, 1, 1), (0, None, 0)):
        told = {"prev_chunk_left_over": left, "inference_delay": delay, "execution_horizon": horizon}
        found = policy.predict_action_chunk(batch, **told)
        assert found.shape == (2, CHUNK, DIM) and torch.equal(found[:, :kept], left[:, :kept])
        assert not torch.equal(found[:, kept : kept + 1], left[:, kept : kept + 1])
    one = policy.predict_action_chunk(batch, prev_chunk_left_over=left[0], inference_delay=2)
    assert torch.equal(one[:, :2], left[:1, :2].expand(2, -1, -1))
    undelayed, narrow = {"prev_chunk_left_over": left}, {"prev_chunk_left_over": left[..., :2]}
    for told in ({"inference_delay": -1}, undelayed, narrow | {"inference_delay": 1}):
        with pytest.raises(ValueError, match="inference_delay|prev_chunk_left_over"):
            policy.predict_action_chunk(batch, **told)


def test_a_robot_that_has_run_out_of_actions_gets_a_chunk():
    """LeRobot's queue has no left-over before its first chunk and after `clear`, and a short one when inference was late."""
    batch, left = lerobot_batch(), torch.rand(3, DIM)
    plain = LeRobotPolicy(POLICY).predict_action_chunk(batch)
    for none in (None, left[:0]):
        told = {"prev_chunk_left_over": none, "inference_delay": 2, "execution_horizon": 4}
        assert torch.equal(LeRobotPolicy(POLICY).predict_action_chunk(batch, **told), plain)
    late = LeRobotPolicy(POLICY).predict_action_chunk(batch, prev_chunk_left_over=left, inference_delay=CHUNK + 2)
    assert torch.equal(late[:, :3], left.expand(2, -1, -1)) and late.shape == (2, CHUNK, DIM)


@pytest.mark.parametrize("method", ["masked", "autoregressive", "parallel", "flow"])
def test_padded_steps_are_neither_seen_nor_learned(method):
    batch = lerobot_batch() | {"action": torch.rand(2, CHUNK, DIM) * 2 - 1}
    padded = torch.tensor([[False] * CHUNK, [False, False, True, True]])
    policy, other = made(method=method), batch["action"].clone()
    other[1, 2:] = 9.0

    def loss(action, **more):
        wrapped = LeRobotPolicy(policy, loss=Loss(0.05, 1.0))
        wrapped.zero_grad()
        value, figures = wrapped({**batch, "action": action, **more})
        value.backward()
        assert all(isinstance(each, float) for each in figures.values())
        return value.detach(), policy.model.embed.weight.grad.clone()

    value, gradient = loss(batch["action"], action_is_pad=padded)
    again, same = loss(other, action_is_pad=padded)
    assert torch.equal(value, again) and torch.equal(gradient, same) and float(gradient.abs().sum()) > 0
    assert not torch.equal(loss(batch["action"])[0], loss(batch["action"].flip(1))[0])
    assert not torch.equal(loss(batch["action"])[0], value)
    with pytest.raises(ValueError, match="begin with no step"):
        loss(batch["action"], action_is_pad=~padded)


@pytest.mark.parametrize("method", ["masked", "autoregressive", "parallel", "flow"])
def test_losses_of_rows_have_the_batchs_mean_and_gradient(method):
    batch = lerobot_batch(4) | {"action": torch.rand(4, CHUNK, DIM) * 2 - 1}
    batch["action_is_pad"] = torch.arange(CHUNK) >= torch.tensor([4, 2, 3, 1])[:, None]
    policy, found = made(method=method), {}
    for reduction in ("mean", "none"):
        wrapped = LeRobotPolicy(policy, loss=Loss(0.05, 1.0), seed=3)
        wrapped.zero_grad()
        loss, figures = wrapped(batch, reduction=reduction)
        loss.mean().backward()
        gradient = torch.cat([w.grad.flatten() for w in wrapped.get_optim_params() if w.grad is not None])
        found[reduction] = loss.detach(), gradient, figures
    assert found["mean"][0].shape == () and found["none"][0].shape == (4,) and found["none"][0].std() > 0
    torch.testing.assert_close(found["none"][0].mean(), found["mean"][0])
    torch.testing.assert_close(found["none"][1], found["mean"][1], atol=1e-6, rtol=1e-4)
    assert found["none"][2] == pytest.approx(found["mean"][2], rel=1e-4)
    with pytest.raises(ValueError, match="mean or none"):
        LeRobotPolicy(policy)(batch, reduction="sum")


def test_a_policy_is_kept_with_its_configuration_and_goes_on_with_new_noise(tmp_path):
    batch = lerobot_batch() | {"action": torch.rand(2, CHUNK, DIM) * 2 - 1}
    policy = LeRobotPolicy(
        made(), seed=5, decoding=DRAWN, n_action_steps=2, loss=Loss(0.1), state=("observation.state",)
    )
    first, seen = policy(batch)[0], policy.predict_action_chunk(batch)
    policy.save_pretrained(tmp_path)
    again = LeRobotPolicy.from_pretrained(tmp_path)
    assert again.config == policy.config and (again.calls, again.trained) == (2, 1)
    loss, chunk = again(batch)[0], again.predict_action_chunk(batch)
    assert torch.equal(loss, policy(batch)[0]) and not torch.equal(loss, first)
    assert torch.equal(chunk, policy.predict_action_chunk(batch)) and not torch.equal(chunk, seen)
    anew = LeRobotPolicy(made(), seed=5, decoding=DRAWN, loss=Loss(0.1))
    anew.load_state_dict(policy.state_dict())
    assert torch.equal(anew(batch)[0], policy(batch)[0]) and int(anew.calls) == 4
    assert LeRobotPolicy.from_pretrained(tmp_path, seed=6).config.seed == 6
    own = LeRobotPolicy(made(), decoding=replace(DRAWN, knobs={"energy": TokenEnergy(len)}))
    with pytest.raises(ValueError, match="only Python has"):
        own.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "lerobot.json").write_text("{}")
    with pytest.raises(ValueError, match="let save_pretrained write it"):
        LeRobotPolicy.from_pretrained(tmp_path)
    (tmp_path / "lerobot.json").unlink()
    assert LeRobotPolicy.from_pretrained(tmp_path).config == LeRobotPolicy(made()).config


def test_ranks_share_no_noise(monkeypatch):
    batch = lerobot_batch() | {"action": torch.rand(2, CHUNK, DIM) * 2 - 1}
    some = Loss(full=0.0)  # rows that are hidden wholly are alike
    alone = LeRobotPolicy(POLICY, loss=some)(batch)[0]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        found.append(LeRobotPolicy(POLICY, loss=some)(batch)[0])
    assert len({float(loss.detach()) for loss in (*found, alone)}) == 3


def test_processors_are_found_by_name_and_change_nothing():
    config = LeRobotPolicy(POLICY).config
    module = sys.modules[type(config).__module__]  # where LeRobot looks
    before, behind = getattr(module, f"make_{config.type}_pre_post_processors")(config, dataset_stats=None)
    batch = lerobot_batch()
    found = before(batch)
    assert found.keys() == batch.keys() and found["task"] == batch["task"]
    state = batch["observation.state"]
    assert torch.equal(found["observation.state"], state) and torch.equal(behind(state), state)
    assert hasattr(module, type(config).__name__.removesuffix("Config") + "Policy")
    there = before.__class__("meta")(batch)
    assert there["observation.state"].device.type == "meta" and config.device == "cpu"


def test_cameras_and_states_by_key():
    policy = made(picture=SIZE)
    picture = torch.rand(2, 3, 24, 32)
    told = lerobot_batch() | {"observation.images.top": picture, "observation.images.top_is_pad": torch.zeros(2, 1)}
    assert LeRobotPolicy(policy).predict_action_chunk(told).shape == (2, CHUNK, DIM)
    two = told | {"observation.images.wrist": 1 - picture}
    for camera in ("", "left"):
        with pytest.raises(ValueError, match="name one"):
            LeRobotPolicy(policy, camera=camera).predict_action_chunk(two)
    named = [LeRobotPolicy(policy, camera=name).predict_action_chunk(two) for name in ("top", "wrist")]
    assert not torch.equal(*named)
    depth = {"observation.images.top_depth": torch.rand(2, 1, 24, 32)}
    only = lerobot_batch() | depth | {"observation.image": picture}  # as LeRobot's Meta-World and PushT have it
    for camera in ("", "image"):
        assert torch.equal(LeRobotPolicy(policy, camera=camera).predict_action_chunk(only), named[0])
    split = {"observation.state": told["observation.state"][:, :2], "task": SAYS}
    split["observation.environment_state"] = told["observation.state"][:, 2:]
    keys = ("observation.state", "observation.environment_state")
    own = LeRobotPolicy(POLICY).predict_action_chunk(lerobot_batch())
    assert torch.equal(LeRobotPolicy(POLICY, state=keys).predict_action_chunk(split), own)
    fewer = lerobot_batch() | {"task": SAYS[:1]}
    for broken, match in (({"task": SAYS}, "observation.state"), (fewer, "2 sentences"), (split, "state")):
        with pytest.raises(ValueError, match=match):
            LeRobotPolicy(POLICY).predict_action_chunk(broken)


def test_a_policy_is_told_the_leading_numbers_of_a_state():
    policy, batch = made(proprio=2), lerobot_batch()
    state = batch["observation.state"].numpy()
    own = policy.predict_action(state[:, :2], SAYS)
    assert np.array_equal(LeRobotPolicy(policy).predict_action_chunk(batch).numpy(), own)
    assert LeRobotPolicy(policy).config.state_dim == 2
    for seen in (state[0], state[0, :2]):
        served = OpenPiPolicy(policy).infer({"observation/state": seen, "prompt": SAYS[0]})
        np.testing.assert_allclose(served["actions"], own[0], rtol=0, atol=1e-6)  # another batch, other last bits
    for wrong in (state[0, :1], state[0, :0]):
        with pytest.raises(ValueError, match=r"give \(1, 2\)"):
            OpenPiPolicy(policy).infer({"observation/state": wrong, "prompt": SAYS[0]})
    with pytest.raises(ValueError, match="give"):
        LeRobotPolicy(POLICY).predict_action_chunk({**batch, "observation.state": torch.zeros(2, STATE + 1)})


def test_nothing_of_others_is_imported():
    folder = Path(environments.__file__).parent
    for path in [*folder.glob("*.py"), Path(serve.__file__)]:
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in top}
        assert not names & {"lerobot", "openpi", "openpi_client", "libero", "calvin_env", "simpler_env", "fastapi"}


def test_infer_as_openpi_does():
    policy = made(picture=SIZE)
    served = OpenPiPolicy(policy, seed=7, decoding=DRAWN)
    picture = RANDOM.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    obs = {"observation/state": np.ones(STATE), "observation/image": picture, "prompt": SAYS[0]}
    first = served.infer(obs)
    own = policy.predict_action(np.ones(STATE), SAYS[0], picture, seed=7, decoding=DRAWN)
    assert np.array_equal(first["actions"], own) and first["policy_timing"]["infer_ms"] > 0
    assert not np.array_equal(served.infer(obs)["actions"], own)
    assert np.array_equal(served.infer(obs, seed=7)["actions"], own)
    floats = {**obs, "observation/image": (picture / 255).transpose(2, 0, 1)}
    assert np.array_equal(served.infer(floats, seed=7)["actions"], own)
    kept = served.infer(obs, prefix=np.full((2, DIM), 0.25))["actions"]
    assert (kept[:2] == 0.25).all() and kept.shape == (CHUNK, DIM)
    assert served.metadata["action_horizon"] == CHUNK and served.reset() is None
    blind = {key: obs[key] for key in ("observation/state", "prompt")}
    for broken, match in ((blind, "it needs observation/image"), ({**obs, "prompt": SAYS}, "one sentence")):
        with pytest.raises(ValueError, match=match):
            served.infer(broken)


def test_pictures_of_all_kinds():
    picture = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(shown("p", picture), picture)
    assert np.array_equal(shown("p", (picture / 255).transpose(2, 0, 1).astype("f4")), picture)
    assert shown("p", picture, 4).shape == (4, 4, 3) and shown("p", picture * 0 + 7, 4).max() == 7
    middle = picture[:, 1:7].reshape(3, 2, 3, 2, 3).mean((1, 3))  # undistorted, as pictures are trained on
    assert np.abs(shown("p", picture, 3) - middle).max() <= 1
    assert np.array_equal(shown("p", picture, 3), commands.square(picture, 3))
    for wrong in (picture[..., :2], picture.astype(float), picture / 0.5 / 255, picture.astype("i8"), picture[0]):
        with pytest.raises(ValueError, match="give|floats"):
            shown("p", wrong)
