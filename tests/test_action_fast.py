"""FAST: the round trip, its bounds, sequences that are malformed, and merges that are plain data."""

import pytest
import torch
from action_toy import chunks, holes

from tokenizers_vq import check_tokenizer
from tokenizers_vq.action.fast import Fast, FastConfig

X = chunks()
FITTED = Fast.fit(X, raw=(6,), mode="range", scale=10, vocabulary=512)


@pytest.mark.parametrize("mask", [None, holes()], ids=["whole", "holes"])
def test_contract(mask):
    assert check_tokenizer(FITTED, X[:64], mask, bound=0.05)["code_agreement"] == 1


def test_fewer_tokens_than_numbers():
    out = FITTED.encode(X)
    length = out.mask.sum(1).double()
    assert length.mean() < 0.4 * 70 and length.std() > 0, "compressed, and of variable length"
    fresh = FITTED.encode(chunks(seed=5)).mask.sum(1).double()
    assert fresh.mean() < 0.5 * 70
    ends = out.mask.sum(1)
    assert (out.codes[torch.arange(len(X)), ends.clamp(max=69), 0][ends < 70] == 0).all()


@pytest.mark.parametrize("scale", [5.0, 10.0, 30.0])
def test_error_bound(scale):
    """The root mean square error per dimension is at most 0.5 / scale, 1 / (scale sqrt 12) where rounding is even."""
    tokenizer = Fast.fit(X, raw=(6,), mode="range", scale=scale, vocabulary=1024)
    y, _ = tokenizer.normalised(X)
    z, _ = tokenizer.normalised(tokenizer.decode(tokenizer.encode(X).codes))
    error = (y - z).square().mean(1).sqrt()
    assert error.max() <= 0.5 / scale and 0.3 < error.mean() * scale / 12**-0.5 < 1.1


def test_full_scale_is_in_the_alphabet():
    sign = torch.where(torch.rand(64, 10, 7, generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0)
    plain = Fast.fit(sign, scale=20, vocabulary=1024)
    error = (plain.decode(plain.encode(sign).codes) - sign).square().mean(1).sqrt()
    assert error.max() <= 0.5 / 20, "no coefficient of numbers in [-1, 1] is cut"
    assert plain.rounded(torch.ones(1, 10, 7)).max() >= plain.largest - 1, "and the alphabet is no larger than that"


def test_codes_of_the_decoded_are_the_same_coefficients():
    codes = FITTED.encode(X).codes
    once = FITTED.decode(codes)
    keep = once.abs().amax((1, 2)) < 0.99  # nothing was cut to the range on the way
    again = FITTED.encode(once).codes
    y, z = FITTED.normalised(once)[0], FITTED.normalised(FITTED.decode(again))[0]
    inside = (y.abs() < 0.99).all(1).all(1) | keep
    torch.testing.assert_close(FITTED.rounded(y)[inside], FITTED.rounded(z)[inside])


def test_clipped_input_is_counted_and_breaks_the_bound():
    wild = 10 * X[:8]
    wild[..., 6] = X[:8, :, 6]
    out = FITTED.encode(wild)
    assert (out.aux["clipped"] > 0).any()
    assert (FITTED.decode(out.codes) - wild).abs().mean() > 0.05


def test_malformed_sequences_are_full_chunks_with_a_flag():
    codes = FITTED.encode(X[:6]).codes
    good = FITTED.decode_flagged(codes)
    assert not good.malformed.any() and torch.equal(good.actions, FITTED.decode(codes))
    length = (codes[:, :, 0] != 0).sum(1)
    bad = codes.clone()
    bad[0, length[0] - 1] = 0  # too short
    bad[1, length[1]] = 5  # too long
    bad[2] = 0  # empty
    bad[3] = -1  # absent
    bad[4, 0] = 0  # ends before it begins
    found = FITTED.decode_flagged(bad)
    assert found.malformed.tolist() == [True, True, True, True, True, False]
    assert found.actions.shape == (6, 10, 7) and found.actions.isfinite().all()
    assert torch.equal(found.actions[1], good.actions[1]), "what is too long is cut"
    assert torch.equal(found.actions[2], found.actions[3]) and torch.equal(found.actions[2], found.actions[4])
    anything = torch.randint(0, FITTED.codebook_size, (200, 70, 1), generator=torch.Generator().manual_seed(0))
    low, high = X.amin((0, 1)), X.amax((0, 1))
    wild = FITTED.decode_flagged(anything)
    assert wild.malformed.double().mean() > 0.5 and wild.actions.isfinite().all()
    assert ((wild.actions >= low - 1e-5) & (wild.actions <= high + 1e-5)).all(), "never beyond the statistics"
    for strange in (anything[:, :1], anything + FITTED.codebook_size, anything - 10**6):
        more = FITTED.decode_flagged(strange)
        assert more.actions.shape == (200, 10, 7) and more.malformed.all()


def test_what_stands_behind_the_end_or_outside_the_codebook_is_malformed():
    out = FITTED.encode(X[:5])
    codes, mask = out.codes.clone(), out.mask.clone()
    length, good = mask.sum(1), FITTED.decode(out.codes)
    codes[0, length[0] + 1] = 5  # behind a full chunk and its end
    codes[1, length[1]] = FITTED.codebook_size
    codes[2, length[2]] = -7
    codes[3, length[3] :] = -1  # absent
    found = FITTED.decode_flagged(codes)
    assert found.malformed.tolist() == [True, True, True, False, False] and torch.equal(found.actions, good)
    assert torch.equal(FITTED.decode(codes), found.actions), "nothing is raised"
    assert not FITTED.decode_flagged(codes, mask).malformed.any(), "the mask leaves those slots out"
    mask[4, length[4]] = True  # an end that the mask says is data
    assert FITTED.decode_flagged(out.codes, mask).malformed.tolist() == [False] * 4 + [True]


def test_too_few_slots_are_counted():
    short = Fast.fit(X, raw=(6,), mode="range", slots=8)
    out = short.encode(X)
    length = FITTED.encode(X).mask.sum(1)
    assert out.codes.shape[1] == 8 and (out.aux["cut"] > 0).any() and length.max() > 8
    assert short.decode_flagged(out.codes).malformed[out.aux["cut"] > 0].all()


def test_merges_agree_with_the_library(tmp_path):
    """The table of pairs gives the tokens of a model of `tokenizers` trained on the same strings."""
    strings = FITTED.strings(FITTED.rounded(FITTED.normalised(X)[0]))
    assert [FITTED.bpe.decode(row.ids).replace(" ", "") for row in FITTED.bpe.encode_batch(strings[:20])] == strings[
        :20
    ]
    FITTED.save_pretrained(tmp_path / "fast")
    assert sorted(p.name for p in (tmp_path / "fast").iterdir()) == ["config.json", "model.safetensors"]
    again = Fast.from_pretrained(tmp_path / "fast")
    assert again.words == FITTED.words and torch.equal(again.encode(X).codes, FITTED.encode(X).codes)


def test_bad_settings():
    with pytest.raises(ValueError, match="at least .* alphabet"):
        Fast.fit(X, raw=(6,), scale=200, vocabulary=128)
    for settings, match in (({"scale": 0}, "scale"), ({"slots": -1}, "slots"), ({"merges": 1.5}, "merges")):
        with pytest.raises(ValueError, match=match):
            FastConfig(**settings)


def test_no_rows_and_rows_without_data():
    nothing = FITTED.encode(X[:0])
    assert nothing.codes.shape == (0, 70, 1) and FITTED.decode(nothing.codes).shape == (0, 10, 7)
    some = FITTED.encode(X[:2], torch.tensor([[True] * 10, [False] * 10]))
    assert some.mask.any(1).tolist() == [True, False] and not some.codes[1].any()
