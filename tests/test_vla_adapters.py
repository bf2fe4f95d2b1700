"""A policy behind others' interfaces: the same actions as its own, their shapes and conventions, and what they refuse."""

import ast
import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import actions as benchmark
from discdiff.sampling import generate
from tasks.vla import serve
from tasks.vla.adapters import LeRobotPolicy, OpenPiPolicy, environments
from tasks.vla.adapters.environments import Calvin, Libero, Simpler, Sticky
from tasks.vla.adapters.pictures import shown
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss, untrained
from tasks.vla.policy import Decoding, Policy

RANDOM = np.random.default_rng(0)
CHUNK, DIM, STATE, SIZE = 4, 3, 5, 16
SMALL = Policy(chunk=CHUNK, codebook_size=16, hidden_size=32, num_layers=1, num_heads=2)
SAYS = ["push the block", "open the drawer"]
STATES, ACTIONS = RANDOM.normal(size=(12, STATE)).astype("f4"), RANDOM.uniform(-1, 1, (12, DIM)).astype("f4")
SHOWN = [Episode(STATES, ACTIONS, task) for task in SAYS]
TINY = benchmark.Size(32, 2, 2, prefix=9, chunk=2, dim=3, levels=8, words=20)
DRAWN = Decoding(steps=2, read="token", temperature=1.0)


def made(**settings):
    policy = untrained(replace(SMALL, **settings), SHOWN, seed=1)
    policy.model.eval()
    return policy


POLICY = made()


def lerobot_batch(rows=2):
    state = torch.randn(rows, STATE, generator=torch.Generator().manual_seed(3))
    return {"observation.state": state, "task": (SAYS * rows)[:rows]}


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
    short, narrow = {"prev_chunk_left_over": left}, {"prev_chunk_left_over": left[..., :2]}
    for told in ({"inference_delay": 2}, short, short | {"inference_delay": 4}, narrow | {"inference_delay": 1}):
        with pytest.raises(ValueError, match="inference_delay|prev_chunk_left_over"):
            policy.predict_action_chunk(batch, **told)


@pytest.mark.parametrize("method", ["masked", "autoregressive"])
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


def test_numbers_cannot_leave_padded_steps_out():
    policy = LeRobotPolicy(made(method="parallel"))
    batch = lerobot_batch() | {"action": torch.rand(2, CHUNK, DIM)}
    assert policy(batch | {"action_is_pad": torch.zeros(2, CHUNK, dtype=torch.bool)})[0].requires_grad
    with pytest.raises(ValueError, match="windows"):
        policy(batch | {"action_is_pad": torch.tensor([[False, False, False, True]] * 2)})


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
    split = {"observation.state": told["observation.state"][:, :2], "task": SAYS}
    split["observation.environment_state"] = told["observation.state"][:, 2:]
    keys = ("observation.state", "observation.environment_state")
    own = LeRobotPolicy(POLICY).predict_action_chunk(lerobot_batch())
    assert torch.equal(LeRobotPolicy(POLICY, state=keys).predict_action_chunk(split), own)
    fewer = lerobot_batch() | {"task": SAYS[:1]}
    for broken, match in (({"task": SAYS}, "observation.state"), (fewer, "2 sentences"), (split, "state")):
        with pytest.raises(ValueError, match=match):
            LeRobotPolicy(POLICY).predict_action_chunk(broken)


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
    for wrong in (picture[..., :2], picture.astype(float), picture / 0.5 / 255, picture.astype("i8"), picture[0]):
        with pytest.raises(ValueError, match="give|floats"):
            shown("p", wrong)


def corner(height, width):
    """Dark but for its first pixel."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[0, 0] = 200
    return picture


def matrix(rotation):
    """Axis times angle to a matrix, by the exponential of its cross product."""
    x, y, z = rotation
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)).numpy()


def test_rotations():
    for _ in range(20):
        r = RANDOM.normal(size=3)
        w, *xyz = environments.quaternion(r)
        np.testing.assert_allclose(matrix(environments.axis_angle(np.array([*xyz, w]))), matrix(r), atol=1e-12)
        angles = RANDOM.uniform(-1.5, 1.5, 3)
        turn = environments.turned(angles)
        about = [matrix(a * axis) for a, axis in zip(angles, np.eye(3))]
        whole = about[2] @ about[1] @ about[0]  # roll first, about fixed axes
        np.testing.assert_allclose(matrix(environments.axis_angle(np.roll(turn, -1))), whole, atol=1e-12)
        np.testing.assert_allclose(environments.euler(turn), angles, atol=1e-9)
        np.testing.assert_allclose(environments.rotated(turn, r), whole @ r, atol=1e-12)
    assert not environments.axis_angle(np.array([0.0, 0, 0, 1])).any()
    turned = environments.axis_angle(np.array([0.0, 0, 0.6, -0.8]))  # as robosuite: an angle beyond pi stays one
    assert turned[2] == pytest.approx(2 * np.arccos(-0.8)) and turned[2] > np.pi


def test_libero():
    obs = {
        "agentview_image": corner(8, 8), "robot0_eye_in_hand_image": corner(8, 8),
        "robot0_eef_pos": [0.1, 0.2, 0.3], "robot0_eef_quat": [np.sin(0.25), 0, 0, np.cos(0.25)],
        "robot0_gripper_qpos": [0.04, -0.04],
    }  # fmt: skip
    seen = Libero().observation(obs)
    np.testing.assert_allclose(seen.state, [0.1, 0.2, 0.3, 0.5, 0, 0, 0.04, -0.04], atol=1e-6)
    assert seen.state.shape == (8,) and set(seen.pictures) == {"agent", "wrist"}
    assert all(x[-1, -1, 0] == 200 and x.sum() == 600 for x in seen.pictures.values())
    assert Libero(size=4).observation(obs).pictures["agent"].shape == (4, 4, 3)
    action = np.array([0.5, -2, 0, 0, 0, 0.1, 0.9])
    assert Libero().action(action).tolist() == [0.5, -1, 0, 0, 0, 0.1, 0.9] and Libero().waiting()[6] == -1
    opened = Libero("opened")
    assert opened.action(action)[6] == -1 and opened.action(action * 0)[6] == 1  # 1 is open: the environment's is -1
    assert opened.stored(opened.waiting())[6] == 1
    for x in (action * 0, np.r_[action[:6] * 0, 1]):
        assert np.array_equal(opened.stored(opened.action(x)), x)
    blind = {k: x for k, x in obs.items() if k != "agentview_image"}
    for broken, match in (({**obs, "robot0_eef_quat": [1, 0]}, "4 finite"), (blind, "agentview")):
        with pytest.raises(ValueError, match=match):
            Libero().observation(broken)
    for call, match in ((lambda: Libero().action(action[:6]), "7 finite"), (lambda: Libero("closed"), "signed")):
        with pytest.raises(ValueError, match=match):
            call()


def test_calvin():
    views = {"rgb_static": corner(20, 20), "rgb_gripper": corner(8, 8)}
    robot = np.arange(15.0)
    for obs in ({"rgb_obs": views, "robot_obs": robot}, {**views, "robot_obs": robot}):
        seen = Calvin().observation(obs)
        assert seen.state.tolist() == robot.tolist() and seen.pictures["static"][0, 0, 0] == 200
        assert seen.pictures["wrist"].shape == (8, 8, 3)
    action = np.array([0.5, -2, 0, 0, 0, 0.1, 0.3])
    assert Calvin().action(action).tolist() == [0.5, -1, 0, 0, 0, 0.1, 1] and Calvin().action(-action)[6] == -1
    place, angles, gripper = Calvin(absolute=True).action(action)
    assert place.tolist() == [0.5, -2, 0] and angles.shape == (3,) and gripper.tolist() == [1]
    np.testing.assert_allclose(Calvin(absolute=True).stored((place, angles, gripper)), [*action[:6], 1])
    np.testing.assert_allclose(Calvin().stored(Calvin().action(action)), Calvin().action(action))
    with pytest.raises(ValueError, match="15 finite"):
        Calvin().observation({**views, "robot_obs": robot[:7]})


def test_simpler():
    half = np.sqrt(0.5)
    base, hand = [1, 0, 0, half, 0, 0, half], [1, 2, 0.5, half, 0, 0, half]  # the base looks along y
    obs = {
        "agent": {"base_pose": base}, "extra": {"tcp_pose": hand},
        "image": {"3rd_view_camera": {"rgb": corner(8, 8)}, "overhead_camera": {"rgb": corner(8, 10)}},
    }  # fmt: skip
    seen = Simpler().observation(obs)
    np.testing.assert_allclose(seen.state, [2, 0, 0.5, 0, 0, 0], atol=1e-6)
    assert seen.pictures["third"].shape == (8, 8, 3) and seen.pictures["third"][0, 0, 0] == 200
    google = Simpler("google").observation(obs)
    assert google.state.shape == (7,) and google.pictures["third"].shape == (8, 10, 3)
    action = np.array([0.1, 0, 0, 0.2, -0.1, 0.3, 0.7])
    given = Simpler().action(action)
    assert given.shape == (7,) and given[6] == 1 and Simpler().action(action * 0)[6] == -1
    np.testing.assert_allclose(Simpler().stored(given), [*action[:6], 1], atol=1e-6)
    for call, match in (
        (lambda: Simpler("google").action(action), "one per episode"),
        (lambda: Simpler("google").stored(given), "differences"),
        (lambda: Simpler("franka"), "widowx"),
        (lambda: Simpler().observation({"agent": {"base_pose": base}, "image": obs["image"]}), "'extra'"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_the_google_gripper_goes_on_for_fifteen_steps():
    sticky = Sticky()
    opened = [1.0, 1.0, 0.0, *[0.0] * 20]
    given = [Simpler("google").action(np.r_[np.zeros(6), x], sticky)[6] for x in opened]
    assert given == [0, 0, *[1.0] * 15, *[0.0] * 6]  # closing is 1
    assert [Sticky()(1.0), sticky(0.3), sticky(1.0)] == [0, -0.3, -0.7]


def png(size):
    file = io.BytesIO()
    Image.fromarray(corner(size, size)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    return TestClient(serve.application(made(picture=SIZE)))


ASK = {"state": [0.5] * STATE, "instruction": SAYS[0], "picture": png(SIZE), "seed": 3}


def test_the_server_acts_as_the_policy(client):
    policy = made(picture=SIZE)
    answer = client.post("/act", json=ASK)
    own = policy.predict_action(np.full(STATE, 0.5), SAYS[0], corner(SIZE, SIZE), seed=3)
    assert answer.status_code == 200 and np.array_equal(np.float32(answer.json()["actions"]), own)
    assert 0 < answer.json()["timings"]["policy_ms"] <= answer.json()["timings"]["total_ms"]
    kept = client.post("/act", json=ASK | {"prefix": [[0.25] * DIM]}).json()["actions"]
    assert kept[0] == [0.25] * DIM and len(kept) == CHUNK
    seeds = [client.post("/act", json={**ASK, "seed": None}).json()["seed"] for _ in range(2)]
    assert seeds[1] == seeds[0] + 1
    assert client.post("/act", json=ASK | {"picture": png(40), "seed": 2**63 - 1}).status_code == 200
    health = client.get("/health").json()
    assert health["status"] == "ok" and (health["chunk"], health["dim"], health["state"]) == (CHUNK, DIM, STATE)


WRONG = [
    ({"state": None}, "state"), ({"state": [0.5] * 4}, "state"), ({"state": ["x"] * STATE}, "finite"),
    ({"state": [10**400] * STATE}, "finite"), ({"instruction": 3}, "instruction"), ({"picture": None}, "picture"),
    ({"picture": "%%"}, "no PNG"), ({"picture": base64.b64encode(b"GIF89a").decode()}, "no PNG"),
    ({"picture": png(SIZE)[:60]}, "no PNG"), ({"prefix": [[0.1] * 2]}, "prefix"), ({"prefix": [[0.1], 2]}, "prefix"),
    ({"prefix": [[0.1] * DIM] * 9}, "prefix"), ({"seed": -1}, "seed"), ({"seed": True}, "seed"),
    ({"unnorm_key": "bridge"}, "unnorm_key"), ({"sead": 1}, "did you mean 'seed'"),
]  # fmt: skip


def test_what_is_said_wrongly_is_a_400(client):
    answers = [(client.post("/act", json=ASK | change), change, match) for change, match in WRONG]
    assert [(c, a.text) for a, c, match in answers if a.status_code != 400 or match not in a.json()["error"]] == []


def test_bodies_that_are_no_objects_and_no_fastapi(client, monkeypatch):
    for content in (b"{", b"[1]", b"", b'{"state": [NaN]}'):
        answer = client.post("/act", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    with pytest.raises(ValueError, match=r"pip install 'discdiff\[serve\]'"):
        serve.application(POLICY)


def test_the_ways_that_are_timed_make_what_the_library_makes():
    model = benchmark.network(TINY)
    row = benchmark.start(model, 4)
    made = generate(model, row, "confidence", steps=3, temperature=0.0)[0]
    assert torch.equal(made, benchmark.sampled(benchmark.sampling(model, 3), model, row, 3))
    with pytest.raises(RuntimeError, match="3 network calls instead of 4"):
        benchmark.sampled(benchmark.sampling(model, 3), model, row, 4)
    model = benchmark.network(TINY, causal=True)
    row = benchmark.start(model, 4)
    made = generate(model, row, "left_to_right", temperature=0.0)[0]
    assert torch.equal(made, benchmark.sampled(benchmark.one_by_one(model), model, row, 6))
    assert torch.equal(made, benchmark.left_to_right(model, row))
    assert not torch.equal(made[:, 9:], benchmark.left_to_right(model, benchmark.start(model, 5))[:, 9:])


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_plain_passes_are_those_of_the_network(packed):
    model = benchmark.network(TINY, packed)
    row, columns = benchmark.start(model, 4), torch.arange(2 if packed else 6) + 9
    whole = model.hidden(row)
    model.attend = kept = benchmark.Kept(model, 15)
    before = model.hidden(row, columns=torch.arange(9))
    kept.count, kept.store = 9, False
    behind = model.hidden(row, columns=columns)
    model.attend = None
    torch.testing.assert_close(torch.cat([before, behind], 1), whole, rtol=1e-5, atol=1e-5)


def test_figures_are_ratios_of_one_round():
    out = benchmark.rounds(1, TINY, steps=(2,))
    assert len(out) == 1 and all(x > 0 for x in out[0].values())
    one = {benchmark.LIBRARY: 9.0, benchmark.PLAIN: 6.0}
    for name in (benchmark.FLAT, benchmark.PACKED):
        parts = {"prefix": 1.0, "chunk": 0.5, (2, False): 2.5, (2, True): 3.0, (16, False): 10.0, (16, True): 12.0}
        one |= {(name, *(key if isinstance(key, tuple) else (key,))): x for key, x in parts.items()}
    rows = benchmark.figures([one, {key: 2 * x for key, x in one.items()}, one], steps=(2, 16))
    found = {row["figure"]: (row["value"], row.get("goal")) for row in rows}
    assert len(found) == len(rows) and found["autoregression, plain loop: time"][0] == 6000
    assert found["56 slots, 2 steps: autoregression / it"] == (pytest.approx(2.4), ">= 1")
    assert found["56 slots, 2 steps: it / its bound"] == (pytest.approx(1.25), "<= 1.15")
    assert found["56 slots, 16 steps: autoregression / it"] == (pytest.approx(0.6), None)
    assert found["56 slots, 2 steps, read out: it / its bound"] == (pytest.approx(1.5), None)
