"""VQ-Diffusion's schedules as published and as released, and what its strided posterior leaves to the last step."""

import math

import pytest
import torch

from discdiff.denoisers import FunctionDenoiser
from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.processes import Absorbing, MaskOrReplace, Uniform, vq_paper, vq_released
from discdiff.sampling import sampler
from discdiff.sampling import sampler as build
from discdiff.testing import noise_floor, total_variation
from tasks.common.methods import METHODS, method_of

# -- schedules: as published, as released ----------------------------------------------------------------------------------

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)
WORDS, SLOTS = 5, 40
UNSURE = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, WORDS, dtype=torch.float64))


def empty(rows):
    layout = Layout(VocabLayout(text_size=WORDS), (Segment("x", "text", (SLOTS,)),))
    return make_batch(layout, torch.full((rows, SLOTS), layout.vocab.mask))


def test_the_released_schedule_is_absorbing_and_only_under_its_name():
    for size in (2, 1024):
        replaced = [size * process.marginal(TIMES, size).token for process in (vq_released(), vq_paper())]
        assert torch.allclose(replaced[0], torch.full_like(TIMES, 1e-6), rtol=1e-6, atol=0)
        assert torch.allclose(replaced[1], 0.1 * TIMES, atol=1e-12)
    named = {name: method_of(name).process for name in METHODS}
    assert named["vq_released"] == vq_released() and named["vq_diffusion"] == vq_paper() == MaskOrReplace()
    assert [name for name, process in named.items() if process == vq_released()] == ["vq_released"]
    assert named["maskgit"] == Absorbing() and isinstance(named["vq_ddm"], Uniform) and named["autoregressive"] is None
    with pytest.raises(ValueError, match="method is 'vq': choose from vq_diffusion, vq_paper, vq_released, vq_ddm"):
        method_of("vq")


@pytest.mark.parametrize("steps", [11, 26])
@pytest.mark.parametrize("process", [vq_paper(), vq_released()], ids=["paper", "released"])
def test_the_strided_posterior_leaves_no_jump_at_the_last_step(process, steps):
    batch, rows = empty(300), 300
    hidden = [
        float((state.tokens == batch.layout.vocab.mask).double().mean())
        for state, _ in build("ancestral", process, steps=steps).iterate(UNSURE, batch, seed=3)
    ]
    assert len(hidden) == steps + 1 and hidden[-1] == 0
    for n, found in enumerate(hidden[:-1]):
        if n:  # the first state is the all-masked one; noise at time 1 is drawn with the first step
            wanted = float(process.marginal(torch.tensor(1 - n / steps, dtype=torch.float64), WORDS).mask)
            assert abs(found - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / (rows * SLOTS)) + 1e-4, n
    assert hidden[-2] < 0.1


@pytest.mark.parametrize(("skip", "calls", "left"), [(3, 26, 0.24), (9, 11, 0.66)])
def test_the_released_fast_sampling_does_leave_one(skip, calls, left):
    """Restated: at index i of 100 it takes the one-step posterior of index i - skip, so a call removes one step's masks."""
    process, last = vq_released(), 99
    visited = [*range(last, -1, -1 - skip)]
    visited += [0] if visited[-1] else []
    assert len(visited) == calls

    def still_masked(moves):
        log_x0, x = torch.full((1, WORDS), 1 / WORDS, dtype=torch.float64).log(), torch.tensor([WORDS])
        return math.prod(float(process.log_posterior(log_x0, x, t / last, s / last)[0, -1].exp()) for t, s in moves)

    shifted = [i - skip if i > skip else i for i in visited[:-1]]
    assert round(still_masked([(i, i - 1) for i in shifted]), 2) == left
    strided = still_masked([(t, s) for t, s in zip(visited[:-1], visited[1:], strict=True)])
    assert strided == pytest.approx(
        9e-6 / 0.99999, rel=1e-3
    )  # the same calls at their stride: the schedule's own share


@pytest.mark.parametrize("process", [vq_paper(), vq_released()], ids=["paper", "released"])
def test_a_visible_code_is_never_masked_again(process):  # 6.4 (iv)
    log_x0 = torch.randn(WORDS, WORDS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for t, s in ((1.0, 0.7), (0.6, 0.1), (0.05, 0.0)):
        law = process.log_posterior(log_x0, torch.arange(WORDS), t, s).exp()
        assert (law[:, -1] == 0).all() and torch.allclose(law.sum(-1), torch.ones(WORDS, dtype=torch.float64))


def test_purity_of_unsure_predictions_is_the_random_order():  # 6.4 (ii)
    rows, places = 4000, 5
    layout = Layout(VocabLayout(text_size=WORDS), (Segment("x", "text", (places,)),))
    batch = make_batch(layout, torch.full((rows, places), layout.vocab.mask))

    def pairs(name, **knobs):
        """Law of the first two positions that are filled."""
        states = [state for state, _ in sampler(name, steps=places, **knobs).iterate(UNSURE, batch, seed=1)]
        first, second = (((b.committed & ~a.committed).long().argmax(1)) for a, b in zip(states[:2], states[1:3]))
        return torch.bincount(first * places + second, minlength=places**2).double() / rows

    even = (1 - torch.eye(places, dtype=torch.float64)).flatten() / (places * (places - 1))
    for law in (pairs("purity", sharpen=0.0), pairs("random")):
        assert total_variation(law, even) < 1.5 * noise_floor(even, rows)
    assert (
        total_variation(pairs("purity", sharpen=0.0, noise=0.0), even) > 0.5
    )  # control: without noise one order is left
