"""Guidance by a weaker network against laws that are known exactly, together with a missing prompt, and only at some times."""

import dataclasses

import pytest
import torch

from discdiff import Ancestral, Commit, FunctionDenoiser, Grid, ModelDenoiser, Sure, TopK, sample, sampler
from discdiff.denoisers import Autoguided, ClassifierFree
from discdiff.denoisers.caches import PrefixCached
from discdiff.testing import noise_floor, total_variation
from tests.test_caches import MODEL, network, rows
from tests.test_guidance import COND, FREE, NULL, ONE, Two, geometric, labelled, state_of, step_of

FLAT = torch.tensor((0.4, 0.35, 0.25), dtype=torch.float64)
WEAK = FunctionDenoiser(Two(FLAT, FREE.sqrt() / FREE.sqrt().sum()))


def led(p, w, scale):
    law = p**scale * w ** (1 - scale)
    return law / law.sum()


@pytest.mark.parametrize("scale", [2.5, 1.0, 0.4, -0.5])
def test_the_mixture_and_its_cost(scale):
    two, state = Two(), state_of(labelled(3))
    prediction = Autoguided(FunctionDenoiser(two), WEAK, scale)(state, step_of(state, guidance=9.0))
    law = prediction.log_probs(torch.arange(3)).exp()
    assert torch.allclose(law, led(COND, FLAT, scale).expand(3, 3), atol=1e-12)
    assert prediction.info[:2] == ((1, 3) if scale == 1 else (2, 6)) and two.calls == [3]


def test_both_guidances_at_once():
    """The missing prompt is missing for the weaker network, too; the grid's guidance is that of the prompt."""
    state, index = state_of(labelled(3)), torch.arange(3)
    inside = Autoguided(FunctionDenoiser(Two()), WEAK, 2.0)
    law = led(led(COND, FLAT, 2.0), led(FREE, WEAK.function.free, 2.0), 1.5)
    for guided, told in ((ClassifierFree(inside, 1.5, NULL), None), (ClassifierFree(inside, 7.0, NULL), 1.5)):
        prediction = guided(state, step_of(state, guidance=told))
        assert torch.allclose(prediction.log_probs(index).exp(), law.expand(3, 3), atol=1e-12)
        assert prediction.info[:2] == (2, 12)  # a call of each network, on twice the rows
    assert not torch.allclose(law, geometric(1.5), atol=0.01)
    kept = TopK(inside, 2)(state, step_of(state)).log_probs(index).exp()[0]
    assert kept[led(COND, FLAT, 2.0).argmin()] == 0 and kept.sum() == pytest.approx(1)


def test_samples_follow_the_mixture():
    found = {}
    for name, denoiser in (("led", Autoguided(FunctionDenoiser(Two()), WEAK)), ("alone", FunctionDenoiser(Two()))):
        state, _ = sample(denoiser, Ancestral(), labelled(20000), 2, seed=1)
        wanted = led(COND, FLAT, 2.0)
        found[name] = total_variation(ONE.law(state.tokens), wanted) / noise_floor(wanted, 20000)
    assert found["led"] < 2 and found["alone"] > 10


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_networks_with_caches_of_their_own(scale):
    """Exact caches change nothing, with a missing prompt around them or without."""
    weak, batch = network(), rows("prefix")
    with torch.no_grad():
        for weight in weak.parameters():
            weight *= 0.7
    knobs = {"steps": 6, "weaker": weak, "autoguidance": 1.7, "guidance": scale}
    plain, _ = sampler("confidence", **knobs)(ModelDenoiser(MODEL), batch, 3)
    kept, info = sampler("confidence", cache="prefix", **knobs)(ModelDenoiser(MODEL), batch, 3)
    assert torch.equal(plain.tokens, kept.tokens) and info.nfe == 6 * (2 if scale == 1 else 4)
    alone, _ = sampler("confidence", steps=6, guidance=scale)(ModelDenoiser(MODEL), batch, 3)
    assert not torch.equal(alone.tokens, plain.tokens)
    by_hand = Autoguided(PrefixCached(ModelDenoiser(MODEL)), PrefixCached(ModelDenoiser(weak)), 1.7)
    if scale == 1:
        state, _ = sample(by_hand, Commit(Sure()), batch, 6, seed=3)
        assert torch.equal(state.tokens, kept.tokens)


def test_guidance_at_some_times_only():
    two, batch = Two(), labelled(4)
    times = Grid.uniform(5).times  # steps begin at 1, .8, .6, .4, .2
    scales = (1.0, 1.0, 3.0, 3.0, 1.0)
    own = sampler("ancestral", steps=5, guidance=3.0, guided_from=0.6, guided_to=0.2).common.timed(Grid.uniform(5))
    assert own.guidance == scales and own.times == times
    state, info = sample(ClassifierFree(FunctionDenoiser(two), 9.0, NULL), Ancestral(), batch, own, seed=5)
    assert info.network_rows == sum(two.calls) < 2 * 4 * 5
    whole = sampler("ancestral", steps=5, guidance=3.0)
    assert whole.common.timed(Grid.uniform(5)).guidance == ()
    limited = dataclasses.replace(whole.common, guided_from=0.6)
    with pytest.raises(ValueError, match="guidance of its own"):
        limited.timed(own)
    for wrong, match in (
        ({"guided_from": 0.5}, "no guidance"), ({"guidance": 2.0, "guided_from": 0.2, "guided_to": 0.4}, "second lower"),
        ({"autoguidance": float("nan")}, "autoguidance"), ({"autoguidance": 3.0}, "no weaker network"),
        ({"weaker": "runs/weak"}, "weaker is 'runs/weak': give a network"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            sampler("ancestral", **wrong)


def test_two_kinds_are_refused():
    with pytest.raises(ValueError, match="cavity"):
        Autoguided(FunctionDenoiser(Two(), kind="cavity"), WEAK)
    with pytest.raises(ValueError, match="scale"):
        Autoguided(FunctionDenoiser(Two()), WEAK, float("inf"))
