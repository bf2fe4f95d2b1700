"""Keyed noise: every uniform is a pure function of (row seed, step, path, stream, logical position), and behaves as one."""

import pytest
import torch

from discdiff.layout import Layout, Segment, VocabLayout, pack
from discdiff.noise import CORRUPT, LATENT, MASK, ORDER, PRIOR, TIME, TOKEN, WAKE, Noise, mix, row_seeds

STREAMS = (WAKE, ORDER, CORRUPT, PRIOR, TIME, MASK, LATENT, *range(TOKEN, TOKEN + 8), *range(TOKEN + 64, TOKEN + 70))


def full(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.bool)


def test_uniforms_are_odd_multiples_inside_the_open_interval():
    u = Noise.seeded(3, full(100, 1000)).uniform(TOKEN)
    scaled = u * 2.0**53
    assert u.dtype == torch.float64
    assert bool((scaled == scaled.round()).all()) and bool((scaled.long() % 2 == 1).all())
    assert float(u.min()) > 0 and float(u.max()) < 1
    ones = torch.stack([(scaled.long() >> bit) & 1 for bit in range(1, 53)]).double().mean((1, 2))
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / u.numel() ** 0.5  # all 52 random bits are used
    for bits, value in ((0, 2.0**-53), (2**52 - 1, 1 - 2.0**-53)):  # the extreme counters keep clear of 0 and 1
        assert float((2 * torch.tensor(bits) + 1).double() * 2.0**-53) == value


def test_a_row_does_not_depend_on_its_batch():
    whole, valid = Noise.seeded(7, full(5, 9)), full(5, 9)
    alone = Noise.seeded(row_seeds(7, 5)[2:3], valid[2:3])
    picked = whole.rows(torch.tensor([4, 2]))
    assert torch.equal(row_seeds(7, 5)[:3], row_seeds(7, 3))
    for path in (lambda n: n, lambda n: n.step(3), lambda n: n.step(3).child(1), lambda n: n.child(2).child(0)):
        u = path(whole).uniform(WAKE)
        assert torch.equal(path(alone).uniform(WAKE)[0], u[2])
        assert torch.equal(path(picked).uniform(WAKE), u[[4, 2]])
        assert torch.equal(path(alone).row_uniform(TIME)[0], path(whole).row_uniform(TIME)[2])
        assert torch.equal(path(whole.repeat(3)).uniform(WAKE)[::3], u)  # copy 0 is the row itself


def test_sites_and_channels_agree_with_the_full_table():
    noise = Noise.seeded([5, 6, 8], full(3, 7)).step(1)
    index = torch.tensor([20, 0, 8])
    assert torch.equal(noise.uniform(WAKE, index), noise.uniform(WAKE).reshape(-1)[index])
    wide = noise.uniform(LATENT, channels=4)
    assert wide.shape == (3, 7, 4)
    assert torch.equal(noise.uniform(LATENT, index, 4), wide.reshape(-1, 4)[index])
    assert wide.unique().numel() == wide.numel()
    assert torch.equal(noise.normal(LATENT, 4, index), noise.normal(LATENT, 4).reshape(-1, 4)[index])


def test_padding_and_gaps_change_nothing():
    """The logical position counts the valid slots: padding left, right or between leaves a row's draws as they are."""
    plain = Noise.seeded(11, full(2, 5)).step(2).uniform(TOKEN)
    for columns in ((0, 1, 2, 3, 4), (3, 4, 5, 6, 7), (0, 2, 3, 6, 7)):
        valid = torch.zeros(2, 8, dtype=torch.bool)
        valid[:, list(columns)] = True
        padded = Noise.seeded(11, valid).step(2).uniform(TOKEN)
        assert torch.equal(padded[valid].view(2, 5), plain)


def test_packed_rows_draw_apart_and_padding_there_is_invisible():
    layout = Layout(VocabLayout(text_size=10), (Segment("x", "text", (6,)),))
    rows = [torch.arange(4), torch.arange(3)]
    short, wide = (pack(layout, rows, n) for n in (7, 12))
    a, b = (Noise.seeded(5, batch.valid).uniform(TOKEN) for batch in (short, wide))
    assert torch.equal(a[short.valid], b[wide.valid])
    assert a[short.valid].unique().numel() == 7
    alone = Noise.seeded(5, full(1, 4)).uniform(TOKEN)
    assert torch.equal(a[0, :4], alone[0])  # the first sample of a row keeps the noise it has alone


def test_no_two_paths_share_a_uniform():
    """Roots, steps, children, grandchildren, copies and streams: every one of 100,000 uniforms is its own."""
    root = Noise.seeded(0, full(3, 5))
    paths = [root, *(root.step(k) for k in range(-1, 60)), *(root.child(k) for k in range(20))]
    paths += [root.step(k).child(i) for k in range(15) for i in range(10)]
    paths += [root.child(k).step(i) for k in range(5) for i in range(5)]
    paths += [root.step(1).child(k).child(i) for k in range(6) for i in range(6)]
    drawn = [path.uniform(stream).flatten() for path in paths for stream in STREAMS]
    drawn += [path.row_uniform(stream) for path in paths for stream in STREAMS]
    copies = root.step(99).repeat(50)
    drawn += [copies.uniform(stream).flatten() for stream in STREAMS]
    drawn += [path.repeat(8).rows(torch.tensor([1, 5, 7, 9])).uniform(WAKE).flatten() for path in paths]
    everything = torch.cat(drawn)
    assert len(paths) > 250 and everything.numel() > 100_000
    assert everything.unique().numel() == everything.numel()


def test_rows_of_different_seeds_share_nothing():
    drawn = torch.cat([Noise.seeded(seed, full(64, 8)).uniform(WAKE).flatten() for seed in range(-200, 200)])
    assert drawn.unique().numel() == drawn.numel()


def test_mix_is_a_bijection_of_64_bits():
    """Undone by hand: the inverse multipliers and the shifts run backwards."""
    x = torch.cat([torch.arange(-500, 500), row_seeds(1, 1000)])

    def unshift(y: int, bits: int) -> int:
        out = y
        for _ in range(64 // bits + 1):
            out = y ^ (out >> bits)
        return out

    inverse = [pow(m % 2**64, -1, 2**64) for m in (-7723592293110705685, -4658895280553007687)]
    for before, after in zip(x.tolist(), mix(x).tolist(), strict=True):
        y = unshift(after % 2**64, 31) * inverse[0] % 2**64
        y = unshift(y, 27) * inverse[1] % 2**64
        assert unshift(y, 30) == before % 2**64


def test_seeds_ints_sequences_generators_and_refusals():
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    first = row_seeds(generator, 3)
    assert torch.equal(first, row_seeds(torch.Generator().manual_seed(4), 3))
    assert not torch.equal(first, row_seeds(generator, 3))  # the generator moves on
    noise = Noise.seeded(torch.Generator().manual_seed(4), full(3, 6))
    assert torch.equal(noise.uniform(WAKE), Noise.seeded(first, full(3, 6)).uniform(WAKE))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator was never touched
    assert row_seeds([1, -2], 2).tolist() == [1, -2]
    with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
        row_seeds([1, 2], 3)
    for wrong in (True, 1.5, None):
        with pytest.raises(ValueError, match="give an int"):
            row_seeds(wrong, 1)


def test_training_noise_is_keyed_by_seed_epoch_and_sample():
    epoch, sample, valid = torch.tensor([2, 2, 3]), torch.tensor([10, 11, 10]), full(3, 6)
    u = Noise.training(1, epoch, sample, valid).uniform(CORRUPT)
    order = torch.tensor([2, 0])
    again = Noise.training(1, epoch[order], sample[order], valid[order]).uniform(CORRUPT)
    assert torch.equal(again, u[order])  # any rank, worker or order
    keys = [(seed, e, i) for seed in (0, 1) for e in range(12) for i in range(12)]
    drawn = [Noise.training(s, torch.tensor([e]), torch.tensor([i]), valid[:1]).uniform(CORRUPT) for s, e, i in keys]
    everything = torch.cat(drawn)
    assert everything.unique().numel() == everything.numel()


def test_uniformity_over_twenty_million_draws():
    """Both tails at level 1e-6 (20 expected each) and 1000 bins, within 5 standard deviations."""
    low = high = 0
    counts = torch.zeros(1000, dtype=torch.int64)
    total = 20_000_000
    for chunk in range(40):
        u = Noise.seeded(chunk, full(50, 10_000)).step(chunk).uniform(chunk % 3).flatten()
        low += int((u < 1e-6).sum())
        high += int((u > 1 - 1e-6).sum())
        counts += torch.bincount((u * 1000).long(), minlength=1000)
    expected = total * 1e-6
    assert abs(low - expected) < 5 * expected**0.5 and abs(high - expected) < 5 * expected**0.5
    chi = float(((counts - total / 1000) ** 2 / (total / 1000)).sum())
    assert abs(chi - 999) < 5 * (2 * 999) ** 0.5


def test_neighbouring_keys_are_uncorrelated():
    """Positions, rows, steps, children, streams, epochs, samples and seeds next to each other, within 5 sigma."""
    rows, length = 500, 500
    noise = Noise.seeded(1, full(rows, length))
    u = noise.uniform(TOKEN)
    ids, zero = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    trained = Noise.training(1, zero, ids, full(rows, length)).uniform(TOKEN)
    pairs = {
        "position 1": (u[:, 1:], u[:, :-1]),
        "position 2": (u[:, 2:], u[:, :-2]),
        "position 64": (u[:, 64:], u[:, :-64]),
        "row": (u[1:], u[:-1]),
        "step": (noise.step(0).uniform(TOKEN), noise.step(1).uniform(TOKEN)),
        "child": (noise.child(0).uniform(TOKEN), noise.child(1).uniform(TOKEN)),
        "parent": (u, noise.child(0).uniform(TOKEN)),
        "stream": (u, noise.uniform(TOKEN + 1)),
        "seed": (u, Noise.seeded(2, full(rows, length)).uniform(TOKEN)),
        "seed given per row": (u[:2], Noise.seeded([0, 1], full(2, length)).uniform(TOKEN)),
        "epoch": (trained, Noise.training(1, zero + 1, ids, full(rows, length)).uniform(TOKEN)),
        "sample": (trained[1:], trained[:-1]),
    }
    for name, (a, b) in pairs.items():
        a, b = a.flatten(), b.flatten()
        correlation = 12 * float(((a - 0.5) * (b - 0.5)).mean())
        same_cell = float(((a * 8).floor() == (b * 8).floor()).double().mean())  # dependence a correlation misses
        assert abs(correlation) * a.numel() ** 0.5 < 5, name
        assert abs(same_cell - 1 / 8) < 5 * (7 / 64 / a.numel()) ** 0.5, name


def test_normals_have_the_moments_of_a_normal():
    z = Noise.seeded(2, full(100, 1000)).normal(LATENT, 10).flatten()
    n = z.numel()
    assert bool(torch.isfinite(z).all()) and z.dtype == torch.float64
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) < 5 * (variance / n) ** 0.5, power


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to compare its bits with the CPU's")
def test_bits_are_those_of_the_cpu():
    for stream in (WAKE, TOKEN + 3):
        here, there = (Noise.seeded(9, full(64, 512).to(d)).step(5).child(1) for d in ("cpu", "cuda"))
        assert torch.equal(here.uniform(stream), there.uniform(stream).cpu())
        assert torch.equal(here.row_uniform(stream), there.row_uniform(stream).cpu())
        assert torch.equal(here.repeat(3).uniform(stream), there.repeat(3).uniform(stream).cpu())
