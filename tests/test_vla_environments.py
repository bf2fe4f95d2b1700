"""Observations and actions of LIBERO, CALVIN and SimplerEnv: shapes, rotations, which way a gripper closes."""

import numpy as np
import pytest
import torch
from adapter_toy import RANDOM, corner

from tasks.vla.adapters import environments
from tasks.vla.adapters.environments import Calvin, Libero, Simpler, Sticky


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
