"""DCTBins: an orthonormal transform, fixed length, local errors, low frequencies first."""

import pytest
import torch
from action_toy import chunks, holes

from tokenizers_vq import check_tokenizer
from tokenizers_vq.action.dct import DCTBins, DCTBinsConfig, dct_matrix

X = chunks()


@pytest.mark.parametrize("mask", [None, holes()], ids=["whole", "holes"])
@pytest.mark.parametrize("settings", [{}, {"frequencies": 4, "codebook_size": 63}], ids=["all", "four"])
def test_contract(settings, mask):
    tokenizer = DCTBins.fit(X, raw=(6,), mode="range", **settings)
    measured = check_tokenizer(tokenizer, X[:64], mask, bound=0.12 if settings else 0.02)
    assert measured["code_agreement"] == 1
    assert tokenizer.encode(X[:64], mask).mask.all(), "every slot speaks of the whole chunk"


@pytest.mark.parametrize("steps", [1, 2, 8, 25])
def test_orthonormal(steps):
    d = dct_matrix(steps).double()
    torch.testing.assert_close(d @ d.T, torch.eye(steps, dtype=torch.float64), atol=1e-6, rtol=0)


def test_as_scipy():
    fft = pytest.importorskip("scipy.fft", reason="scipy shows the same transform")
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double()
    theirs = torch.from_numpy(fft.dct(x.numpy(), type=2, axis=0, norm="ortho"))
    torch.testing.assert_close(dct_matrix(12).double() @ x, theirs, atol=1e-6, rtol=0)


def test_a_constant_chunk_is_one_coefficient():
    c = DCTBins(DCTBinsConfig(chunk=9, dim=2)).coefficients(torch.full((1, 9, 2), 0.3))
    torch.testing.assert_close(c[0, 0], torch.full((2,), 0.3 * 3))
    assert c[0, 1:].abs().max() < 1e-6


def test_truncation_keeps_the_best_low_frequencies():
    def error(frequencies):
        tokenizer = DCTBins.fit(X[..., :6], mode="range", frequencies=frequencies)
        assert tokenizer.token_shape((3, 10, 6)) == (3, frequencies * 6, 1)
        return float((tokenizer.decode(tokenizer.encode(X[..., :6]).codes) - X[..., :6]).square().mean().sqrt())

    errors = [error(n) for n in (1, 2, 3, 5, 10)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.1 * errors[0]


def test_one_wrong_code_stays_in_its_dimension():
    tokenizer = DCTBins.fit(X, raw=(6,), mode="range")
    codes = tokenizer.encode(X[:1]).codes
    wrong = codes.clone()
    wrong[0, 2 * 7 + 3] += 20  # frequency 2 of dimension 3
    change = (tokenizer.decode(wrong) - tokenizer.decode(codes))[0].abs().amax(0)
    assert change[3] > 0 and change.count_nonzero() == 1


def test_bounds_and_what_lies_beyond():
    tokenizer = DCTBins.fit(X, raw=(6,), mode="range")
    assert not tokenizer.encode(X).aux["clipped_coefficients"].any(), "the bounds are those of the data"
    shaken = X * torch.tensor([1.0, -1.0]).repeat(5)[:, None]  # the highest frequency
    assert tokenizer.encode(shaken).aux["clipped_coefficients"].any()
    tight = DCTBins.fit(X, raw=(6,), mode="range", share=0.9)
    assert (tight.bound <= tokenizer.bound + 1e-6).all() and tight.encode(X).aux["clipped_coefficients"].any()
    assert (tokenizer.bound > 0).all()


def test_expectation_is_linear_in_the_coefficients():
    tokenizer = DCTBins.fit(X, raw=(6,), mode="range")
    codes = tokenizer.encode(X[:4]).codes
    sure = torch.nn.functional.one_hot(codes[..., 0], 255).float()
    torch.testing.assert_close(tokenizer.decode_probabilities(sure, "mode"), tokenizer.decode(codes), atol=1e-6, rtol=0)
    both = (sure + sure.roll(2, -1)) / 2
    shifted = tokenizer.decode_embeddings(tokenizer.codes_to_embeddings(codes) + 2 / 254)
    torch.testing.assert_close(
        tokenizer.decode_probabilities(both)[..., :6], shifted.clamp(-1, 1)[..., :6], atol=2e-2, rtol=0
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"frequencies": 11}, "frequencies"), ({"codebook_size": 64}, "odd"), ({"share": 0}, "share")],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        DCTBins.fit(X, raw=(6,), **settings)
