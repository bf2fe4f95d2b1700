"""Classifier-free guidance of the prediction against laws that are known exactly, and what it costs."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Commit,
    FunctionDenoiser,
    Grid,
    Interpolating,
    Nucleus,
    PerSegment,
    Temperature,
    TopK,
    Uniform,
    iterate,
    sample,
)
from discdiff.denoisers import ClassifierFree, NullFeatures, Prediction, Unprompted, guidance_schedule, mix
from discdiff.kernels.guidance import PosteriorGuidance
from discdiff.testing import Toy, check_conformance, noise_floor, total_variation, toy
from discdiff.testing.conformance import _batch, _hashed
from discdiff.types import Step
from tests.test_constraints import Wrapped, empty

INF = float("inf")
COND, FREE = (torch.tensor(p, dtype=torch.float64) for p in ((0.7, 0.2, 0.1), (0.3, 0.4, 0.3)))
ONE = Toy(COND, symbols=3, length=1)
JOINT = toy()


@dataclass(frozen=True)
class Two:
    """A network of two tables, told apart by the feature `label`; counts calls and rows."""

    given: torch.Tensor = field(default_factory=lambda: COND)
    free: torch.Tensor = field(default_factory=lambda: FREE)
    calls: list = field(default_factory=list)

    def __call__(self, state, step):
        label = state.batch.features.get("label", torch.zeros(len(state.row)))
        self.calls.append(len(state.row))
        p = torch.where(label[:, None] > 0, self.given, self.free)
        return p.log()[:, None].expand(*state.tokens.shape, 3)


NULL = NullFeatures({"label": torch.tensor(0.0)})


def labelled(rows):
    return ONE.batch(rows)._replace(features={"label": torch.ones(rows)})


def geometric(scale):
    law = COND**scale * FREE ** (1 - scale)
    return law / law.sum()


def state_of(batch, t=1.0):
    return next(iter(iterate(_hashed(), Ancestral(), batch, 2)))[0]._replace(time=batch.free * torch.tensor(t).double())


def step_of(state, t=1.0, s=0.5, **knobs):
    return Step(0, *(torch.full(state.tokens.shape, x, dtype=torch.float64) for x in (t, s)), **knobs)


# -- level x0 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, cost", [(2.5, (1, 6)), (1.0, (1, 3)), (0.0, (1, 3)), (-0.5, (1, 6)), (0.3, (1, 6))])
@pytest.mark.parametrize("dropped", [NULL, NullFeatures({"label": None})])
@pytest.mark.parametrize("by_step", [False, True])
def test_the_mixture_and_its_cost(scale, cost, dropped, by_step):
    two, state = Two(), state_of(labelled(3))
    guided = ClassifierFree(FunctionDenoiser(two), 7.0 if by_step else scale, dropped)
    prediction = guided(state, step_of(state, guidance=scale if by_step else None))
    if dropped is not NULL and cost[1] == 6:
        cost = (2, 6)  # the features differ: two calls
    law = prediction.log_probs(torch.arange(3)).exp()
    assert torch.allclose(law, geometric(scale).expand(3, 3), atol=1e-12)
    assert (len(two.calls), sum(two.calls)) == cost == prediction.info[:2] and prediction.info.fed == cost[1]


def test_scale_one_and_zero_are_exact():
    state = state_of(labelled(3))
    index, plain = torch.arange(3), FunctionDenoiser(Two())
    for scale, other in ((1.0, state), (0.0, NULL(state))):
        law = ClassifierFree(plain, scale, NULL)(state, step_of(state)).log_probs(index)
        assert torch.equal(law, plain(other, step_of(other)).log_probs(index))
    assert not torch.equal(ClassifierFree(plain, 1.001, NULL)(state, step_of(state)).log_probs(index), law)


def test_impossible_stays_impossible_and_is_never_nan():
    given = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    free = torch.tensor([[0.5, 0.0, 0.5, 0.0]]).log()
    for scale in (-1.0, 0.0, 0.5, 1.0, 3.0):
        assert mix(given, free, scale).softmax(-1).tolist() == [[1, 0, 0, 0]]
    apart = Two(torch.tensor([1.0, 0, 0]), torch.tensor([0, 0.5, 0.5]))
    with pytest.raises(ValueError, match="no token is left at row 0, position 0.*ClassifierFree"):
        sample(ClassifierFree(FunctionDenoiser(apart), 2.0, NULL), Ancestral(), labelled(3), 2)
    state, _ = sample(ClassifierFree(FunctionDenoiser(apart), 1.0, NULL), Ancestral(), labelled(3), 2)
    assert state.tokens.tolist() == [[0]] * 3


def test_truncation_goes_outside():
    """Two of three tokens are kept of the guided law; cut inside, each pass loses a token of its own."""
    state = state_of(labelled(1))
    inner = FunctionDenoiser(Two(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])))
    law = torch.tensor([0.5, 0.3, 0.2]) ** 2 / torch.tensor([0.1, 0.3, 0.6])
    outside = TopK(ClassifierFree(inner, 2.0, NULL), 2)(state, step_of(state)).log_probs(torch.tensor([0])).exp()[0]
    assert torch.allclose(outside, law * torch.tensor([1, 1, 0]) / law[:2].sum())
    inside = ClassifierFree(TopK(inner, 2), 2.0, NULL)(state, step_of(state)).log_probs(torch.tensor([0])).exp()[0]
    assert inside.tolist() == [0, 1, 0]


def test_sampling_follows_the_grid():
    scales = guidance_schedule("constant", (1.0, 0.0), 3.0)
    found = {}
    for name, guided, grid in (
        ("own", ClassifierFree(FunctionDenoiser(Two()), 3.0, NULL), 1),
        ("grid", ClassifierFree(FunctionDenoiser(Two()), 1.0, NULL), Grid((1.0, 0.0), guidance=scales)),
        ("off", ClassifierFree(FunctionDenoiser(Two()), 1.0, NULL), 1),
    ):
        state, _ = sample(guided, Ancestral(), labelled(20000), grid, seed=1)
        found[name] = total_variation(ONE.law(state.tokens), geometric(3.0)) / noise_floor(geometric(3.0), 20000)
    assert found["own"] == found["grid"] < 2 and found["off"] > 20
    with pytest.raises(ValueError, match="guidance"):
        sample(FunctionDenoiser(Two()), Ancestral(), labelled(2), Grid((1.0, 0.0), guidance=scales))


def test_schedules():
    times = Grid.uniform(4).times
    assert guidance_schedule("constant", times, 3.0) == (3.0,) * 4
    assert guidance_schedule("ramp", times, 3.0) == pytest.approx((1.0, 1.5, 2.0, 2.5))
    assert guidance_schedule("early", times, 3.0) == (3.0, 3.0, 3.0, 1.0)
    assert guidance_schedule("late", times, 3.0, t0=0.6) == (1.0, 1.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="cosine"):
        guidance_schedule("cosine", times, 3.0)
    two = Two()
    guided = ClassifierFree(FunctionDenoiser(two), 9.0, NULL)
    _, info = sample(guided, Ancestral(), labelled(50), Grid(times, guidance=guidance_schedule("early", times, 3.0)))
    assert info.nfe == len(two.calls) and info.network_rows == sum(two.calls) < 2 * 50  # the last step makes one pass


@pytest.mark.parametrize("process", [Uniform(), Interpolating(), Absorbing()], ids=lambda p: type(p).__name__)
def test_cavity_and_own_predictions_mix_alike(process):
    """The present token's evidence is the same in both passes: own(mix of cavities) = mix of owns."""
    given, free = (JOINT.denoiser(process, "cavity"), Toy(JOINT.p.flip(0)).denoiser(process, "cavity"))
    owns = (JOINT.denoiser(process), Toy(JOINT.p.flip(0)).denoiser(process))
    runs = [
        sample(ClassifierFree(one, 2.0, lambda state: state, other), Ancestral(process), JOINT.batch(300), 6, seed=2)[0]
        for one, other in ((given, free), owns)
    ]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    plain = sample(given, Ancestral(process), JOINT.batch(300), 6, seed=2)[0]
    assert not torch.equal(plain.tokens, runs[0].tokens)


def test_unprompted_guides_by_the_prompt():
    """Of two free positions one is asked: log p = g log p(x | prompt) + (1 - g) log p(x), both from the joint table."""
    prompt, times = {0: 1, 2: 2}, []

    def exact(state, step):
        times.append(step.t)
        x = state.batch.symbols(state.tokens)
        return JOINT.posterior(x, (x == 3).double(), Absorbing())

    state = state_of(JOINT.batch(2, prompt))
    step = step_of(state)._replace(t=state.free * 0.5)
    law = ClassifierFree(FunctionDenoiser(exact), 1.7)(state, step).log_probs(torch.tensor([1, 7])).exp()
    assert times[0].tolist() == [[0, 0.5, 0, 0.5]] * 2 + [[1, 0.5, 1, 0.5]] * 2  # a masked prompt is all noise
    for place, found in ((1, law[0]), (3, law[1])):
        given = torch.stack([JOINT.conditional(prompt)[JOINT.table[:, place] == v].sum() for v in range(3)])
        free = torch.stack([JOINT.p[JOINT.table[:, place] == v].sum() for v in range(3)])
        expected = given**1.7 * free**-0.7
        assert torch.allclose(found, expected / expected.sum(), atol=1e-12)


def test_unprompted_masks_or_hides_what_never_moves():
    batch = _batch((2, 0))
    state = state_of(batch)._replace(tokens=torch.where(batch.valid, 1, batch.layout.vocab.pad))
    prompt, fixed = batch.slot < 2, batch.valid & ~batch.free
    masked = Unprompted()(state)
    assert torch.equal(masked.tokens != state.tokens, fixed) and torch.equal(masked.valid, state.valid)
    only = Unprompted(("prompt",))(state)
    assert torch.equal(only.tokens != state.tokens, fixed & prompt) and bool((fixed & ~prompt).any())
    hidden = Unprompted(("prompt",), how="absent")(state)
    assert torch.equal(hidden.valid, state.valid & ~prompt) and not hidden.batch.unrestricted
    null = Unprompted(how="null")(state)
    assert torch.equal(null.tokens == batch.layout.vocab.special("NULL"), fixed) and torch.equal(null.time, state.time)
    with pytest.raises(ValueError, match="how is 'hide'"):
        Unprompted(how="hide")
    with pytest.raises(ValueError, match="caption.*prompt, left, right"):
        Unprompted(("caption",))(state)
    with pytest.raises(ValueError, match="'label'"):
        NULL(state)


@pytest.mark.parametrize(
    "kernel", [Ancestral(), Ancestral(Uniform()), Commit()], ids=lambda k: type(k.process).__name__
)
@pytest.mark.parametrize("level", ["x0", "posterior"])
@pytest.mark.parametrize("how", ["mask", "null", "absent"])
def test_conformance(kernel, level, how):
    if level == "posterior":
        if not isinstance(kernel, Ancestral):
            return
        kernel = replace(kernel, site=PosteriorGuidance(kernel.process))
    check_conformance(Wrapped(kernel, lambda inner: ClassifierFree(inner, 1.5, Unprompted(how=how), level=level)))


def test_one_call_equals_two():
    batch, kernel = _batch(), Ancestral(PerSegment({"left": Absorbing(), "right": Uniform()}))
    one = ClassifierFree(Temperature(_hashed(), 0.7), 2.0)
    two = ClassifierFree(Temperature(_hashed(), 0.7), 2.0, other=Temperature(_hashed(), 0.7))
    (a, first), (b, second) = (sample(Nucleus(d, 0.9), kernel, batch, 6, seed=1) for d in (one, two))
    assert torch.equal(a.tokens, b.tokens) and first.network_rows == second.network_rows and second.nfe == 2 * first.nfe
    assert not torch.equal(
        sample(Nucleus(Temperature(_hashed(), 0.7), 0.9), kernel, batch, 6, seed=1)[0].tokens, a.tokens
    )


@dataclass
class Cached:
    """A denoiser that owns the cache of one run: the prompt it was started with."""

    prompt: torch.Tensor | None = None
    kind: str = "own"
    needs_time: bool = False
    reads: tuple[str, ...] = ()

    def start(self, batch):
        return Cached(batch.tokens[:, 0].clone())

    def __call__(self, state, step):
        assert torch.equal(state.tokens[:, 0], self.prompt[state.row])
        return _hashed()(state, step)


def test_each_pass_has_its_own_run():
    batch = empty(4)
    state, info = sample(ClassifierFree(Nucleus(Cached(), 0.9), 2.0), Ancestral(), batch, 5, seed=1)
    again, _ = sample(ClassifierFree(Nucleus(_hashed(), 0.9), 2.0), Ancestral(), batch, 5, seed=1)
    assert torch.equal(state.tokens, again.tokens) and info.nfe % 2 == 0


def test_latents_are_guided_too():
    def network(state, step):
        label = state.batch.features["label"]
        table = COND.log().expand(*state.tokens.shape, 3)
        return Prediction(state.batch, lambda index, number: table[:, 0][index], latents={"z": label[:, None] + 1})

    state = state_of(labelled(2))
    found = ClassifierFree(FunctionDenoiser(network), 3.0, NULL)(state, step_of(state)).latents["z"]
    assert found.tolist() == [[4.0], [4.0]]  # 1 + 3 (2 - 1)


def test_refused():
    plain = FunctionDenoiser(Two())
    for make, message in (
        (lambda: ClassifierFree(plain, INF), "inf"),
        (lambda: ClassifierFree(plain, 2.0, level="logits"), "x0, posterior"),
        (lambda: ClassifierFree(plain, other=replace(plain, kind="cavity")), "kind own.*cavity"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
