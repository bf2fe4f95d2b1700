"""ImageTokenizer keeps the contract, learns, plays its game with one optimizer, and refuses what is no picture."""

from functools import cache

import pytest
import torch
from image_toy import SMALL, shapes

from tokenizers_vq import ImageTokenizer, ImageTokenizerConfig, check_tokenizer
from tokenizers_vq.adversarial import PatchDiscriminator, hinge
from tokenizers_vq.image import from_bytes, to_bytes


def trained(steps=50, **changed):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**{"channels": 1, **SMALL, **changed})).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 4e-3)
    for step in range(steps):
        optimizer.zero_grad()
        tokenizer(shapes(12, tokenizer.config.channels, seed=step)).loss.backward()
        optimizer.step()
    return tokenizer.eval()


small = cache(trained)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"channels": 3, "layers": 1, "heads": 2, "pixel": "l2"},
        {"quantizer": "rvq", "num_quantizers": 3},
        {"quantizer": "fsq", "levels": (8, 5, 5), "codebook_size": 200, "code_dim": 3},
        {"gan": 0.05, "gan_width": 8},
    ],
    ids=["vq", "attention", "rvq", "fsq", "gan"],
)
def test_contract(changed):
    tokenizer = trained(**changed) if changed else small()
    x = shapes(6, tokenizer.config.channels, seed=999)
    plain = float((x - x.mean()).square().mean().sqrt())
    measured = check_tokenizer(tokenizer, x, bound=0.8 * plain)
    assert measured["perplexity"] > 2


def test_any_size_and_grid():
    tokenizer = small()
    for height, width in ((4, 4), (8, 24), (32, 12)):
        x = shapes(2, 1, 40, 40)[..., :height, :width]
        out = tokenizer.encode(x)
        assert out.grid == (height // 4, width // 4)
        assert tokenizer.decode(out.codes, out.grid).shape == x.shape
    square = tokenizer.encode(shapes(2, 1, 16, 16))
    assert torch.equal(tokenizer.decode(square.codes), tokenizer.decode(square.codes, square.grid))
    with pytest.raises(ValueError, match="no grid"):
        tokenizer.decode(torch.zeros(1, 6, 1, dtype=torch.long))


def test_decoded_pictures_stay_in_range_and_the_soft_path_has_a_gradient():
    tokenizer = small()
    assert tokenizer.decode(torch.arange(32).view(1, 32, 1), (4, 8)).abs().max() <= 1
    e = tokenizer.codes_to_embeddings(torch.zeros(1, 4, 1, dtype=torch.long)).requires_grad_()
    tokenizer.decode_embeddings(e).sum().backward()
    assert e.grad.abs().sum() > 0


def test_bytes_are_lossless():
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_bytes(levels)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_bytes(x), levels)
    assert torch.equal(to_bytes(torch.tensor([-3.0, 3.0])), torch.tensor([0, 255], dtype=torch.uint8))
    with pytest.raises(ValueError, match="give uint8"):
        from_bytes(x)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(1, 3, 8, 8), "takes \\(batch, 1"),
        (torch.zeros(8, 8), "takes \\(batch, 1"),
        (torch.zeros(1, 1, 8, 9), "multiples of 4, such as 8 x 8"),
        (torch.zeros(1, 1, 0, 8), "multiples of 4"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "from_bytes"),
        (torch.full((1, 1, 8, 8), 200.0), "span 200..200"),
        (torch.full((1, 1, 8, 8), float("nan")), "span nan"),
    ],
)
def test_bad_pictures(bad, words):
    with pytest.raises(ValueError, match=words):
        small().encode(bad)


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match="mask"):
        small().encode(torch.zeros(1, 1, 8, 8), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    "bad",
    [
        {"strides": ()},
        {"strides": (0,)},
        {"channels": 0},
        {"width": 18, "layers": 1},
        {"pixel": "l3"},
        {"gan": -1.0},
        {"perceptual": float("nan")},
        {"quantizer": "none"},
        {"chanels": 1},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ImageTokenizerConfig(**{**SMALL, **bad})


def test_the_checkpoint_of_another_codebook_is_refused(tmp_path):
    small().save_pretrained(tmp_path)
    other = ImageTokenizerConfig(**{"channels": 1, **SMALL, "codebook_size": 16})
    with pytest.raises(ValueError, match="another tokenizer"):
        ImageTokenizer.from_pretrained(tmp_path, config=other)


def test_perceptual_distance_is_injected_weighted_and_not_saved():
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**{"channels": 1, **SMALL, "perceptual": 0.5}))
    x = shapes(2)
    with pytest.raises(ValueError, match="set_perceptual"):
        tokenizer(x)
    features = torch.nn.Conv2d(1, 4, 3)
    tokenizer.set_perceptual(lambda a, b: (features(a) - features(b)).square().mean((1, 2, 3)))
    wanted = 0.5 * (features(x) - features(x + 0.1)).square().mean()
    assert torch.allclose(tokenizer.losses(x, x + 0.1)["perceptual"], wanted)
    tokenizer.set_perceptual(features)
    assert not any(p is q for p in tokenizer.parameters() for q in features.parameters())


def test_hinge_gradients_go_where_they_belong():
    torch.manual_seed(0)
    judge = PatchDiscriminator(1, 4)
    x, y = shapes(2, 1, 8, 8), shapes(2, 1, 8, 8, seed=1).requires_grad_()
    generator, discriminator = hinge(judge, x, y)
    real, false = judge(x), judge(y)
    assert torch.allclose(generator, -false.mean(), atol=1e-6)
    assert torch.allclose(discriminator, ((1 - real).relu().mean() + (1 + false).relu().mean()) / 2, atol=1e-6)
    generator.backward(retain_graph=True)
    assert y.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())
    y.grad = None
    discriminator.backward()
    assert y.grad is None and all(p.grad.abs().sum() > 0 for p in judge.parameters() if p.ndim > 1)


def test_one_optimizer_plays_both_sides():
    """With the reconstruction fixed the discriminator alone learns: its loss falls below that of one that cannot tell."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**{"channels": 1, **SMALL, "gan": 0.1, "gan_width": 8}))
    optimizer = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    x = shapes(8)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    for _ in range(40):
        optimizer.zero_grad()
        losses = tokenizer.losses(x, blurred)
        sum(losses.values()).backward()
        optimizer.step()
    assert float(losses["discriminator"].detach()) < 0.5
