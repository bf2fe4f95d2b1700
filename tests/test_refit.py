"""k-means finds what is there, its seeds follow the law of k-means++, and a codebook fitted again is used and no worse."""

import math

import pytest
import torch
from image_toy import SMALL, shapes

from tokenizers_vq import ImageTokenizer, ImageTokenizerConfig, check_tokenizer
from tokenizers_vq.metrics import code_counts, usage
from tokenizers_vq.refit import decoder_loss, freeze_codes, kmeans, latents, refit, seeds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(count=40, each=100, dim=6, noise=0.02):
    g = generator(5)
    centres = torch.randn(count, dim, generator=g) * 4
    return centres, centres.repeat_interleave(each, 0) + noise * torch.randn(count * each, dim, generator=g)


def test_seeds_follow_the_law_of_kmeans_plus_plus():
    """Three centres of six points on a line: frequencies against the enumerated law, and against a uniform choice."""
    points = torch.tensor([[0.0], [1.0], [3.0], [3.5], [8.0], [9.0]])
    law: dict[frozenset[int], float] = {}
    gaps = (points - points.T).square().double()
    for a in range(6):
        for b in range(6):
            p = 1 / 6 * gaps[a, b] / gaps[a].sum()
            left = torch.minimum(gaps[a], gaps[b])
            for c in range(6):
                share = float(p * left[c] / left.sum()) if p > 0 else 0.0
                if share:
                    key = frozenset((a, b, c))
                    law[key] = law.get(key, 0.0) + share
    draws, found = 4000, dict.fromkeys(law, 0)
    g = generator()
    for _ in range(draws):
        chosen = seeds(points, 3, g)
        found[frozenset(int((points == x).nonzero()[0, 0]) for x in chosen)] += 1
    distance = sum(abs(found[key] / draws - p) for key, p in law.items()) / 2
    uniform = sum(abs(1 / math.comb(6, 3) - p) for p in law.values()) / 2
    assert distance < 0.03 < uniform


def test_kmeans_finds_the_clusters():
    centres, points = clusters()
    means = kmeans(points, len(centres), generator())
    assert float(torch.cdist(centres, means.centres).min(1).values.max()) < 0.05
    assert means.counts.tolist() == [100] * len(centres)
    within = points - points.view(40, 100, 6).mean(1).repeat_interleave(100, 0)
    assert means.error == pytest.approx(float(within.square().sum(1).mean()), rel=1e-3)


def test_kmeans_is_keyed_leaves_no_centre_empty_and_improves_on_its_seeds():
    points = torch.randn(2000, 3, generator=generator(1))
    first, again = (kmeans(points, 100, generator(7)) for _ in range(2))
    assert torch.equal(first.centres, again.centres)
    assert not torch.equal(first.centres, kmeans(points, 100, generator(8)).centres)
    assert int(first.counts.min()) > 0 and int(first.counts.sum()) == 2000
    assert first.error < 0.9 * kmeans(points, 100, generator(7), rounds=0).error


def test_a_shift_far_from_the_origin_costs_no_precision():
    centres, points = clusters()
    assert kmeans(points + 100, 40, generator()).error == pytest.approx(kmeans(points, 40, generator()).error, rel=0.05)


@pytest.mark.parametrize(
    ("points", "size", "words"),
    [
        (torch.randn(5, 2), 6, "size is 6 for 5 points"),
        (torch.randn(5, 2), 0, "size is 0"),
        (torch.randn(5), 1, "give finite floats"),
        (torch.full((5, 2), float("nan")), 2, "give finite floats"),
        (torch.zeros(5, 2, dtype=torch.long), 2, "give finite floats"),
        (torch.arange(3.0)[:, None].repeat(9, 2), 4, "only 3 points are distinct"),
    ],
)
def test_bad_points(points, size, words):
    with pytest.raises(ValueError, match=words):
        kmeans(points, size, generator())


def collapsed():
    """A tokenizer trained without resetting dead codes."""
    torch.manual_seed(0)
    settings = {"channels": 1, **SMALL, "codebook_size": 256, "dead_code": 0.0, "kmeans_init": False}
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**settings)).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 4e-3)
    for step in range(40):
        optimizer.zero_grad()
        tokenizer(shapes(12, seed=step)).loss.backward()
        optimizer.step()
    return tokenizer.eval()


def test_refit_brings_a_collapsed_codebook_back(tmp_path):
    old = collapsed()
    x = torch.cat([shapes(64, seed=s) for s in (100, 101)])
    points = latents(old, x.split(32), generator())
    assert points.shape == (128 * 8, SMALL["code_dim"])
    new = refit(old, points, 32, generator())

    def used(tokenizer):
        return float(usage(code_counts(tokenizer.encode(x).codes, tokenizer.codebook_size)).mean())

    assert used(old) < 0.5 and used(new) >= 0.9
    h = old.encode_latents(x).h
    assert torch.equal(h, new.encode_latents(x).h)  # the encoder is the same

    def gap(tokenizer):
        return float((h.detach() - tokenizer.codes_to_embeddings(tokenizer.quantize(h))).square().sum(-1).mean())

    assert gap(new) < gap(old)
    before = float((new.decode(new.encode(x).codes, (2, 4)) - x).square().mean())
    codes = new.encode(x).codes
    freeze_codes(new)
    kept = {name: p.clone() for name, p in new.state_dict().items() if not name.startswith("decoder.")}
    optimizer = torch.optim.Adam([p for p in new.parameters() if p.requires_grad], 4e-3)
    new.train()
    for _ in range(30):
        optimizer.zero_grad()
        decoder_loss(new, x, codes, (2, 4)).loss.backward()
        optimizer.step()
    new.eval()
    assert all(torch.equal(p, new.state_dict()[name]) for name, p in kept.items())
    assert float((new.decode(codes, (2, 4)) - x).square().mean()) < before
    assert check_tokenizer(new, x[:4], bound=1.0)["code_agreement"] == 1


def test_refit_of_residual_levels():
    torch.manual_seed(0)
    settings = {"channels": 1, **SMALL, "quantizer": "rvq", "num_quantizers": 3}
    old = ImageTokenizer(ImageTokenizerConfig(**settings)).eval()
    x = shapes(64)
    points = latents(old, [x], generator())
    new = refit(old, points, 16, generator())
    assert new.codebook.shape == (3, 16, SMALL["code_dim"]) and new.config.codebook_size == 16
    errors = []
    for depth in (1, 2, 3):
        codes = new.quantize(points[None])[..., :depth]
        errors.append(float((points - new.codes_to_embeddings(codes)).square().sum(-1).mean()))
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


def test_refit_goes_on_training_where_it_was():
    """The averages behind the codebook are set too: one training step moves it little."""
    old = collapsed()
    x = shapes(64, seed=3)
    new = refit(old, latents(old, [x], generator()), 16, generator()).train()
    before = new.codebook.clone()
    new(x)
    assert torch.allclose(new.codebook, before, atol=0.02 * float(before.abs().max()))


def test_latents_are_a_uniform_subset():
    old = ImageTokenizer(ImageTokenizerConfig(**{"channels": 1, **SMALL})).eval()
    x = shapes(16)
    every = latents(old, [x], generator())
    some = latents(old, x.split(3), generator(), most=40)
    assert some.shape == (40, SMALL["code_dim"])
    assert float(torch.cdist(some, every).min(1).values.max()) < 1e-3
    with pytest.raises(ValueError, match="no latents"):
        latents(old, [], generator())


@pytest.mark.parametrize(
    "changed",
    [
        {"quantizer": "fsq", "levels": (4, 4), "codebook_size": 16, "code_dim": 2},
        {"quantizer": "rvq", "num_quantizers": 2, "shared_codebook": True},
    ],
)
def test_what_cannot_be_refitted(changed):
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**{"channels": 1, **SMALL, **changed}))
    with pytest.raises(ValueError, match="refit needs"):
        refit(tokenizer, torch.randn(100, tokenizer.config.code_dim), 8, generator())
