"""PixelTokenizer is lossless and refuses what it cannot hold."""

import pytest
import torch

from tokenizers_vq import PixelTokenizer, check_tokenizer


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_round_trip(patch):
    tokenizer = PixelTokenizer.of(patch=patch)
    x = torch.randint(17, (5, 8, 8), generator=torch.Generator().manual_seed(0))
    codes = tokenizer.encode(x).codes
    assert codes.shape == tokenizer.token_shape(x.shape)
    assert torch.equal(tokenizer.decode(codes), x)
    assert check_tokenizer(tokenizer, x, bound=0.0)["code_agreement"] == 1


def test_depth_is_the_patch_row_by_row():
    x = torch.arange(64).reshape(1, 8, 8) % 17
    assert PixelTokenizer.of(patch=2).encode(x).codes[0, 1].tolist() == [2, 3, 10, 11]


@pytest.mark.parametrize(
    "bad",
    [
        torch.full((1, 8, 8), 17),
        torch.full((1, 8, 8), -1),
        torch.zeros(1, 8, 8),
        torch.zeros(1, 7, 8, dtype=torch.long),
    ],
)
def test_bad_pictures(bad):
    with pytest.raises(ValueError, match="pictures are"):
        PixelTokenizer.of().encode(bad)


@pytest.mark.parametrize("settings", [{"levels": 1}, {"patch": 3}, {"patch": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError):
        PixelTokenizer.of(**settings)
