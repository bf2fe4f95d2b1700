"""ActionBins: every code comes back, the error is at most half a step, OpenVLA's ids, and decoding of probabilities."""

import numpy as np
import pytest
import torch
from action_toy import chunks, holes

from tokenizers_vq import check_tokenizer
from tokenizers_vq.action.bins import ActionBins, ActionBinsConfig, openvla_codes, openvla_ids
from tokenizers_vq.action.readout import expectation, mode

X = chunks()
SPACINGS = [{"spacing": "uniform"}, {"spacing": "quantile"}, {"spacing": "openvla", "codebook_size": 255}]


@pytest.mark.parametrize("settings", SPACINGS, ids=lambda s: s["spacing"])
@pytest.mark.parametrize("mask", [None, holes()], ids=["whole", "holes"])
def test_contract(settings, mask):
    tokenizer = ActionBins.fit(X, raw=(6,), mode="range", **settings)
    assert check_tokenizer(tokenizer, X[:64], mask, bound=0.002)["code_agreement"] == 1
    out = tokenizer.encode(X[:64], mask)
    assert out.grid == (10, 7) and out.codes.shape == (64, 70, 1)
    if mask is not None:
        assert torch.equal(out.mask, mask.repeat_interleave(7, 1))
        assert not tokenizer.encode(X[:64], mask & False).mask.any()


@pytest.mark.parametrize("settings", SPACINGS, ids=lambda s: s["spacing"])
def test_every_code_comes_back(settings):
    tokenizer = ActionBins.fit(X, raw=(6,), **settings)
    size = tokenizer.codebook_size
    codes = torch.arange(size)[:, None, None].repeat(1, 70, 1)
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes)).codes, codes)
    torch.testing.assert_close(tokenizer.decode(codes)[:, 3], tokenizer.values().T, atol=3e-5, rtol=0)


def test_error_is_half_a_step_and_full_scale_exact():
    grid = torch.linspace(-1, 1, 5000)[:, None, None].repeat(1, 10, 7)
    uniform = ActionBins(ActionBinsConfig(chunk=10)).eval()
    error = (uniform.decode(uniform.encode(grid).codes) - grid).abs()
    assert error.max() <= 1 / 255 + 1e-6 and error[[0, -1]].max() == 0
    theirs = ActionBins(ActionBinsConfig(chunk=10, spacing="openvla", codebook_size=255)).eval()
    error = (theirs.decode(theirs.encode(grid).codes) - grid).abs()
    assert abs(float(error.max()) - 1 / 255) < 1e-5 and abs(float(error[-1, 0, 0]) - 1 / 255) < 1e-5


def test_quantile_levels_lie_where_the_data_are():
    peaked = X**3

    def middle(spacing):
        return ActionBins.fit(peaked, mode="range", codebook_size=32, spacing=spacing)

    def error(tokenizer):
        return float((tokenizer.decode(tokenizer.encode(peaked).codes) - peaked)[..., :6].abs().mean())

    quantile = middle("quantile")
    assert (quantile.levels.diff(dim=1) > 0).all() and (quantile.levels[:, [0, -1]] == torch.tensor([-1.0, 1.0])).all()
    assert error(quantile) < 0.7 * error(middle("uniform"))


def openvla_reference(actions, vocab_size):
    """ActionTokenizer of openvla/openvla, from its description: 256 edges, token = vocab_size - digitize, 255 centres."""
    edges = np.linspace(-1, 1, 256)
    ids = vocab_size - np.digitize(np.clip(actions, -1, 1), edges)
    centres = (edges[:-1] + edges[1:]) / 2
    return ids, centres[np.clip(vocab_size - ids - 1, 0, 254)]


def test_openvla_ids():
    generator = torch.Generator().manual_seed(0)
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    x = torch.cat([torch.rand(2000, generator=generator, dtype=torch.float64) * 2.2 - 1.1, edges])[: 70 * 32].float()
    x = x.view(-1, 10, 7)
    tokenizer = ActionBins(ActionBinsConfig(chunk=10, spacing="openvla", codebook_size=255)).eval()
    codes = tokenizer.encode(x).codes
    ids, values = openvla_reference(x.double().numpy(), 32000)
    ours = openvla_ids(codes, 32000).view(x.shape).numpy()
    full = x.numpy() >= 1
    assert np.array_equal(ours[~full], ids[~full]) and (ids[full] == ours[full] - 1).all()
    np.testing.assert_allclose(tokenizer.decode(codes).numpy(), values, atol=1e-6)
    assert torch.equal(openvla_codes(torch.from_numpy(ids), 32000), codes.view(x.shape)), "their own 256th id included"
    every = torch.arange(255)
    assert torch.equal(openvla_codes(openvla_ids(every, 32064), 32064), every)
    for bad in (torch.tensor([31743]), torch.tensor([32000])):
        with pytest.raises(ValueError, match="action ids are"):
            openvla_codes(bad, 32000)
    with pytest.raises(ValueError, match="codes"):
        openvla_ids(torch.tensor([255]), 32000)


@pytest.mark.parametrize("spacing", ["uniform", "quantile"])
def test_probabilities(spacing):
    tokenizer = ActionBins.fit(X, raw=(6,), spacing=spacing)
    codes = tokenizer.encode(X[:5]).codes
    sure = torch.nn.functional.one_hot(codes[..., 0], 256).float()
    for how in ("expectation", "mode", "argmax"):
        torch.testing.assert_close(
            tokenizer.decode_probabilities(sure, how), tokenizer.decode(codes), atol=1e-6, rtol=0
        )
    spread = torch.softmax(torch.randn(5, 70, 256, generator=torch.Generator().manual_seed(0)), -1)
    mean = (spread.view(5, 10, 7, 256) * tokenizer.values()).sum(-1)
    torch.testing.assert_close(tokenizer.decode_probabilities(spread), mean, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="probabilities are"):
        tokenizer.decode_probabilities(spread[:, :3])
    with pytest.raises(ValueError, match="expectation, mode, argmax"):
        tokenizer.decode_probabilities(spread, "median")


def test_mode_is_the_heavier_peak_and_not_the_highest_bin():
    values = torch.linspace(-1, 1, 101)
    p = torch.zeros(101)
    p[20:25], p[80] = 0.14, 0.3  # a broad peak of 0.7 and a spike
    assert abs(float(mode(p[None], values)[0]) - float(values[22])) < 1e-6 and p.argmax() == 80
    assert abs(float(expectation(p, values)) - (0.7 * float(values[22]) + 0.3 * float(values[80]))) < 1e-6
    ends = torch.eye(101)[[0, 100]]
    assert mode(ends, values).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="odd"):
        mode(p, values, 4)


def test_soft_decoding_is_differentiable():
    tokenizer = ActionBins.fit(X, raw=(6,), spacing="quantile")
    e = tokenizer.codes_to_embeddings(tokenizer.encode(X[:2]).codes.clamp(1, 254)).requires_grad_()
    tokenizer.decode_embeddings(e + 1e-3).sum().backward()
    assert (e.grad > 0).all()


def test_bad_input():
    for settings, match in (
        ({"spacing": "log"}, "choose from"),
        ({"codebook_size": 1}, "2 levels"),
        ({"spacing": "openvla"}, "255"),
        ({"chunk": 0}, "chunk"),
        ({"mode": "minmax"}, "choose from"),
        ({"spacings": "uniform"}, "did you mean"),
    ):
        with pytest.raises(ValueError, match=match):
            ActionBinsConfig(**settings)
    tokenizer = ActionBins.fit(X, raw=(6,))
    with pytest.raises(ValueError, match=r"takes \(batch, 10, 7\)"):
        tokenizer.encode(X[:, :8])
    with pytest.raises(ValueError, match="mask is"):
        tokenizer.encode(X, torch.ones(3, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="raw dimension 0"):
        ActionBins.fit(9 * X, raw=(0,))
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(torch.full((1, 70, 1), 256))
    padded = X[:4].clone()
    padded[:, 5:] = float("nan")
    assert tokenizer.encode(padded, torch.arange(10).expand(4, -1) < 5).codes.shape == (4, 70, 1)


def test_clipped_values_are_counted():
    tokenizer = ActionBins.fit(X, raw=(6,), mode="range")
    assert not tokenizer.encode(X).aux["clipped"].any()
    beyond = X[:3].clone()
    beyond[1, 2, :2] = 50.0
    assert tokenizer.encode(beyond).aux["clipped"].tolist() == [0, 2, 0]
