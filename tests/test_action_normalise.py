"""Statistics of actions: OpenVLA's file, constant dimensions, clipping, and the way back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from action_toy import chunks

from tokenizers_vq.action.base import held, identity
from tokenizers_vq.action.normalise import ActionStatistics, Normaliser, read_statistics, write_statistics

X = chunks().flatten(0, 1)


@pytest.mark.parametrize("mode", ["quantile", "range", "mean_std"])
def test_round_trip(mode):
    normaliser = Normaliser(ActionStatistics.of(X, raw=(6,)), mode)
    y, clipped = normaliser.normalise(X)
    assert y.dtype == torch.float32 and y.abs().max() <= 1
    back = normaliser.restore(y)
    torch.testing.assert_close(back[~clipped], X[~clipped], atol=1e-6, rtol=1e-5)
    assert (back[clipped] - X[clipped]).abs().min() > 0 if clipped.any() else mode != "quantile"
    assert torch.equal(y[:, 6], X[:, 6]), "a raw dimension stays as it is"


def test_quantiles_are_openvla_s_formula():
    statistics = ActionStatistics.of(X)
    low, high = np.quantile(X.double().numpy(), (0.01, 0.99), axis=0)
    np.testing.assert_allclose([statistics.q01, statistics.q99], [low, high])
    y = Normaliser(statistics).normalise(X).values.double().numpy()
    np.testing.assert_allclose(y, np.clip(2 * (X.numpy() - low) / (high - low) - 1, -1, 1), atol=1e-6)


def test_statistics_far_from_zero_keep_their_digits():
    x = 1e4 + X.double()
    normaliser = Normaliser(ActionStatistics.of(x), "range")
    middle, half = normaliser.affine
    torch.testing.assert_close(middle - half, x.amin(0), atol=1e-7, rtol=0)
    near = Normaliser(ActionStatistics.of(X), "range").normalise(X).values
    torch.testing.assert_close(normaliser.normalise(x).values, near, atol=1e-4, rtol=0)


def test_share_of_clipped_values():
    clipped = Normaliser(ActionStatistics.of(X)).normalise(X[:, :6].repeat(1, 2)[:, :7]).clipped
    assert 0.01 < clipped[:, :6].double().mean() < 0.03
    with pytest.raises(ValueError, match=r"dimension 0 beyond .*clip"):
        Normaliser(ActionStatistics.of(X), clip="error").normalise(2 * X)
    Normaliser(ActionStatistics.of(X), "range", clip="error").normalise(X)


@pytest.mark.parametrize("constant", [0.0, 4e-14, 1.0, -3e5])
def test_constant_dimensions(constant):
    """Of button-press demonstrations the gripper's quantiles are 4e-16 and 4e-14: dividing by their difference explodes."""
    x = X.clone().double()
    x[:, 2] = constant + 1e-14 * torch.rand(len(x), dtype=torch.float64)
    normaliser = Normaliser(ActionStatistics.of(x))
    y, clipped = normaliser.normalise(x)
    assert y[:, 2].abs().max() < 1e-3 and not clipped[:, 2].any()
    torch.testing.assert_close(normaliser.restore(y)[:, 2].double(), x[:, 2], atol=1e-6, rtol=1e-6)
    surprise = x[:1].clone()
    surprise[:, 2] += 1
    assert normaliser.normalise(surprise).clipped[0, 2], "another value than the constant is clipped, and counted"
    naive = 2 * (surprise[0, 2] - x[:, 2].min()) / (x[:, 2].max() - x[:, 2].min() + 1e-30) - 1
    assert naive.abs() > 1e10 or constant == -3e5, "what a plain division gives"


def test_a_gripper_that_hardly_moves_keeps_its_two_places():
    x = X.clone()
    x[:, 6] = -1.0
    x[:5, 6] = 1.0  # fewer than one in a hundred
    y = Normaliser(ActionStatistics.of(x)).normalise(x).values
    assert set(y[:, 6].tolist()) == {-1.0, 1.0}


def test_statistics_file(tmp_path):
    entry = {"mean": [0.1, 0.2], "std": [1, 2], "max": [3, 4], "min": [-3, -4], "q01": [-2.5, -3], "q99": [2.5, 3]}
    file = tmp_path / "dataset_statistics.json"
    other = {**entry, "mask": [True, False], "count": 7}
    full = {"bridge": {"action": other, "proprio": entry, "num_transitions": 7}, "fractal": {"action": entry}}
    file.write_text(json.dumps(full))
    found = read_statistics(file, "bridge")
    assert found.mask == (True, False) and found.q01 == (-2.5, -3.0) and found.dim == 2
    assert read_statistics(file, "fractal").mask == (True, True)
    with pytest.raises(ValueError, match="bridge.*fractal"):
        read_statistics(file)
    with pytest.raises(ValueError, match="no 'libero'"):
        read_statistics(file, "libero")
    write_statistics(tmp_path / "own.json", {"mine": ActionStatistics.of(X, raw=(6,))})
    assert read_statistics(tmp_path / "own.json") == ActionStatistics.of(X, raw=(6,)), "every digit survives"
    (tmp_path / "bad.json").write_text('{"a": 1}')
    for bad in ("bad.json", "absent.json"):
        with pytest.raises(ValueError, match="no statistics file"):
            read_statistics(tmp_path / bad)


def test_bad_statistics_and_actions():
    good = ActionStatistics.of(X)
    with pytest.raises(ValueError, match="q99"):
        replace(good, q01=good.q99, q99=good.q01)
    with pytest.raises(ValueError, match="one number for each"):
        replace(good, mean=(0.0,))
    with pytest.raises(ValueError, match="finite"):
        replace(good, mean=(float("nan"),) * 7)
    with pytest.raises(ValueError, match=r"missing"):
        ActionStatistics.from_dict({"q01": [0.0]})
    broken = X.clone()
    broken[3, 1] = float("nan")
    for read in (ActionStatistics.of, Normaliser(good).normalise):
        with pytest.raises(ValueError, match=r"not finite, the first at \(3, 1\)"):
            read(broken)
    with pytest.raises(ValueError, match="7 dimensions"):
        Normaliser(good).normalise(X[:, :3])
    with pytest.raises(ValueError, match="choose from"):
        Normaliser(good, mode="minmax")
    with pytest.raises(ValueError, match="choose from"):
        Normaliser(good, clip="never")
    with pytest.raises(ValueError, match="dimensions 0..6"):
        ActionStatistics.of(X, raw=(7,))
    assert identity(3).mask == (False,) * 3


def test_steps_after_the_end_stand_still():
    y = torch.arange(5.0)[None, :, None].repeat(3, 1, 1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    assert held(y, mask)[..., 0].tolist() == [[0, 1, 2, 2, 2], [2, 2, 2, 2, 4], [0, 0, 0, 0, 0]]
