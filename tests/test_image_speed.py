"""The twin's plain loops draw what the library draws, and the figures say what was timed."""

import pytest
import torch

from benchmarks import image_speed
from benchmarks.image_speed import BLOCKS, CACHES, NO_CACHE, Job, Kept, Size
from discdiff.noise import TOKEN, Noise
from discdiff.sampling import generate

SMALL = Size(hidden_size=32, num_layers=2, num_heads=2, codebook=40, strata=3)


@pytest.fixture(scope="module")
def twin():
    model = image_speed.network("autoregressive", 4, SMALL)
    with torch.no_grad():  # so that it does not just repeat what it sees
        model.embed.weight.mul_(0.5)
    return model


def uniforms(batch, seed):
    """Those that the library's sampler draws codes by: one step per place."""
    rows, length = batch.tokens.shape
    noise, out = Noise.seeded(seed, batch.valid), torch.zeros(batch.tokens.shape, dtype=torch.float64)
    for place in range(1, length):
        out[:, place] = noise.step(place - 1).uniform(TOKEN, torch.arange(rows) * length + place)
    return out


def test_plain_loops_draw_what_the_library_draws(twin):
    batch = image_speed.start(twin, 3)
    uniform = uniforms(batch, 5)
    made = image_speed.left_to_right(twin, batch, uniform, cached=False)
    assert torch.equal(made, image_speed.left_to_right(twin, batch, uniform, cached=True))
    for knobs in ({}, {"cache": "block", "block": 1}):
        assert torch.equal(made, generate(twin, batch, "left_to_right", seed=5, **knobs)[0])
    assert (made[:, 0] == 0).all() and len(made[:, 1:].unique()) > 5
    other = image_speed.left_to_right(twin, batch, uniforms(batch, 6), cached=False)
    assert (other != made)[:, 1:].any(1).all()  # control: other uniforms


def test_a_cache_that_forgets_draws_other_codes(twin, monkeypatch):
    batch = image_speed.start(twin, 3)
    uniform = uniforms(batch, 5)
    made = image_speed.left_to_right(twin, batch, uniform, cached=True)

    def blind(self, module, query, key, value):
        return value

    monkeypatch.setattr(Kept, "__call__", blind)
    assert not torch.equal(made, image_speed.left_to_right(twin, batch, uniform, cached=True))


def test_the_library_feeds_the_whole_row_without_a_cache(twin):
    batch = image_speed.start(twin, 1)
    fed = {
        name: generate(twin, batch, "left_to_right", **knobs)[1].fed
        for name, knobs in {"none": {}, "block": {"cache": "block", "block": 1}}.items()
    }
    assert fed["none"] == 16 * 17 and fed["block"] < 3 * 16


@pytest.mark.parametrize("length, strata", [(196, 32), (1024, 32), (5, 32), (7, 7), (16, 3)])
def test_prefixes_stand_for_all_lengths(length, strata):
    drawn = [image_speed.prefixes(length, strata, seed) for seed in range(20)]
    for parts in drawn:
        begins = torch.tensor([0] + [width for _, width in parts]).cumsum(0).tolist()
        assert begins[-1] == length and len(parts) == min(length, strata)
        assert all(a < n <= b for (n, _), a, b in zip(parts, begins, begins[1:], strict=False))
    positions = sum(n * width for parts in drawn for n, width in parts) / len(drawn)
    assert positions == pytest.approx(length * (length + 1) / 2, rel=0.15 if strata == 3 else 0.02)
    assert strata >= length or drawn[0] != drawn[1]


def test_bound():
    assert Job(32).bound(16) == 1025 / 32
    twin = 1024 * 1025 / 2
    assert Job(32).bound(16) == twin / (1024 * 16)


def test_every_figure_has_its_own_name_and_the_goals_are_those_of_batch_one():
    job = Job(4, 2, (1, 2))
    found = image_speed.figures(job, image_speed.rounds(job, 2, SMALL))
    names = [row["figure"] for row in found]
    assert len(names) == len(set(names)) and all(row["value"] > 0 for row in found)
    assert all(row.get("goal") is None for row in found)


def test_blocks_are_timed_beside_and_feed_less():
    job = Job(4, 1, (2, 8), block=4)
    name = BLOCKS.format(4)
    assert job.ways[name] == (4, [8])  # one step for each of four blocks would be the least
    found = {row["figure"]: row for row in image_speed.figures(job, image_speed.rounds(job, 1, SMALL))}
    against = found[f"4x4, batch 1, {name}, 8 steps: twin with a cache / it"]
    assert against["value"] > 0 and against.get("goal") is None  # more steps than an eighth of the codes
    fed = {}
    for block, knobs in {0: {}, 4: {"cache": "block", "block": 4}}.items():
        model = image_speed.network("vq_diffusion", 4, SMALL, block)
        fed[block] = generate(model, image_speed.start(model, 1), "ancestral", steps=8, **knobs)[1].fed
    assert fed == {0: 8 * 17, 4: 8 * 4 + 1 + 3 * 4}, "what is told and finished blocks once"


def test_ratios_are_of_one_round():
    job = Job(32, 1, (16, 256))
    one = {NO_CACHE: 320.0, CACHES[0]: 9.0, CACHES[1]: 6.0}
    for name in image_speed.METHODS:
        one |= {(name, 16): 4.0, (name, 256): 64.0}
    twice = {name: 2 * value for name, value in one.items()}
    found = {row["figure"]: row for row in image_speed.figures(job, [one, twice, one])}
    head = "32x32, batch 1, VQ-Diffusion, 16 steps: "
    speed, share = found[head + "twin without a cache / it"], found[head + "that, as a share of the bound"]
    assert (speed["value"], speed["goal"]) == (80.0, ">= 15") and share["value"] == pytest.approx(80 / (1025 / 32))
    assert share["goal"] == ">= 0.7" and found[head + "twin with a cache / it"]["goal"] == "> 1"
    assert found[head + "twin with a cache / it"]["value"] == 1.5
    late = found["32x32, batch 1, VQ-Diffusion, 256 steps: twin with a cache / it"]
    assert late["goal"] is None and late["value"] == pytest.approx(6 / 64)  # beyond L / 8
    even = found["32x32, batch 1, VQ-Diffusion: steps that take as long as the twin with a cache"]
    assert even["value"] == pytest.approx(256 * 6 / 64)
    assert all(row.get("goal") is None for name, row in found.items() if "MaskGIT" in name)
