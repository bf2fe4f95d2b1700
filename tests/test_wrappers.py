"""Truncation and sharpening: the nucleus without a sort is the sorted one, ties and flat rows included."""

import pytest
import torch

from discdiff import Absorbing, Ancestral, Nucleus, Temperature, sample
from discdiff.denoisers import Sharpen
from discdiff.denoisers.wrappers import _WIDE, _beyond
from discdiff.testing import check_conformance, toy
from discdiff.types import Step
from tests.test_constraints import Wrapped

STEP = Step(0, 1.0, 0.0)
WIDTH = 5000


def by_sort(share, p):
    """What is dropped, by a stable sort in float64."""
    ordered, order = share.double().sort(dim=-1, descending=True, stable=True)
    drop = ordered.cumsum(-1) - ordered >= p
    return torch.zeros_like(drop).scatter(-1, order, drop)


def dyadic(rows):
    """Shares that are multiples of 2^-24, so that every sum of them is exact: `rows` of weights (n, WIDTH) int64."""
    rows = rows * ((1 << 24) // rows.sum(-1, keepdim=True))
    rows[torch.arange(len(rows)), rows.argmax(-1)] += (1 << 24) - rows.sum(-1)
    return (rows.double() / (1 << 24)).float()


def shares():
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(3, WIDTH, generator=draw)
    peaked, tied = torch.ones(1, WIDTH), torch.ones(1, WIDTH)
    peaked[0, 1234] = 1e5
    tied[0, ::7] = 3
    rows = (
        noise[:1] * 100,  # flat
        (1e3 / (1 + torch.arange(WIDTH).float()))[torch.randperm(WIDTH, generator=draw)][None],  # Zipf, a tail of zeros
        noise[1:2] ** 8 * 1000,
        torch.ones(1, WIDTH),  # one tie
        tied,
        peaked,
        noise[2:] * 4,  # few values
    )
    return dyadic(torch.cat(rows).long())


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.25, 0.5, 0.8999, 0.9, 0.95, 0.999, 1 - 2.0**-24])
def test_the_nucleus_is_the_sorted_one(p):
    share = shares()
    assert bool((share.double().sum(-1) == 1).all())
    assert torch.equal(_beyond(share, p), by_sort(share, p))


def test_the_comparison_sees_one_token():
    share = shares()
    kept = [int((~by_sort(share, p)).sum()) for p in (0.9, 0.9002)]
    assert kept[0] < kept[1]  # sums that differ by 2e-4 give other sets, so the equality above says something
    flat = torch.full((1, 4096), 2.0**-12)
    assert torch.equal((~_beyond(flat, 0.5)).nonzero()[:, 1], torch.arange(2048))  # of equals the lowest ids
    assert int((~_beyond(flat, 0.5 + 2.0**-13)).sum()) == 2049  # the crossing token is kept


@pytest.mark.parametrize("width", [5, _WIDE - 1, _WIDE, 20000])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 8.0, 60.0])
def test_logits_of_any_shape(width, scale, p=0.9):
    logits = scale * torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    logits[0, : width // 2], logits[1] = float("-inf"), logits[1].bfloat16().float()
    out = Nucleus(None, p).transform(logits, STEP)
    share, kept = logits.softmax(-1), out > float("-inf")
    assert torch.equal(out[kept], logits[kept])
    least = torch.where(kept, share, 2.0).amin(-1, keepdim=True)
    most = torch.where(kept, -1.0, share).amax(-1, keepdim=True)
    assert bool((most <= least).all())  # the likeliest ones
    mass, edge = (share.double() * kept).sum(-1), least[:, 0].double()
    assert bool((mass > p - 2e-5).all()) and bool((mass - edge < p + 2e-5).all())  # reaches p, not without its last one
    place = torch.arange(width).expand_as(kept)
    equal = share == least
    assert bool(
        (torch.where(equal & kept, place, -1).amax(-1) < torch.where(equal & ~kept, place, width).amin(-1)).all()
    )


def test_nothing_wide_in_float64_and_float64_stays():
    logits = torch.randn(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = Nucleus(None, 0.7).transform(logits, STEP)
    assert out.dtype == torch.float64 and torch.equal(out == float("-inf"), by_sort(logits.softmax(-1), 0.7))
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype in (torch.float64, torch.int64):
                seen.append(result.numel())
            return result

    with Watch():
        Nucleus(None, 0.7).transform(torch.randn(64, 20000, generator=torch.Generator().manual_seed(1)), STEP)
    wide = [n for n in seen if n >= 64 * 20000]
    assert len(wide) <= 1  # the bin of each entry, int64 for scatter_add
    assert 0 < max(n for n in seen if n < 64 * 20000) <= 64 * 1024 * 2


def test_sharpen():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64).log()
    out = Sharpen(None, 2.0).transform(logits + 5, STEP).softmax(-1)  # a constant changes nothing
    expected = torch.stack([row.softmax(-1) ** (1 + 2 * row.exp().max()) for row in logits])
    assert torch.allclose(out, expected / expected.sum(-1, keepdim=True))
    assert torch.equal(Sharpen(None, 0.0).transform(logits, STEP), logits)
    lost = Sharpen(None, 1.0).transform(torch.tensor([[0.0, float("-inf")]]), STEP)
    assert lost.tolist() == [[0.0, float("-inf")]]
    with pytest.raises(ValueError, match="-1.0"):
        Sharpen(None, -1.0)


@pytest.mark.parametrize(
    "wrap", [lambda inner: Sharpen(inner, 1.0), lambda inner: Nucleus(Temperature(inner, 0.8), 0.7)]
)
def test_conformance(wrap):
    check_conformance(Wrapped(Ancestral(), wrap))


def test_sharpening_moves_the_law_towards_modes():
    joint = toy()
    state, _ = sample(Sharpen(joint.denoiser(Absorbing()), 2.0), Ancestral(), joint.batch(2000), 8, seed=1)
    plain, _ = sample(joint.denoiser(Absorbing()), Ancestral(), joint.batch(2000), 8, seed=1)
    assert joint.p @ joint.law(state.tokens) > 1.2 * joint.p @ joint.law(plain.tokens)
