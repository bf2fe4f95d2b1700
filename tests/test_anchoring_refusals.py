"""What does not fit is refused by name, before the first network call."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import (
    CONFIDENT,
    FEW,
    METHODS,
    ROWS,
    SLOTS,
    Counted,
    batch_of,
    measured_of,
    operator,
    soft_of,
    tokenizer,
)

from discdiff import (
    Absorbing,
    Ancestral,
    Anchored,
    ClassifierFree,
    Descent,
    Measured,
    PerSegment,
    Relaxed,
    Selected,
    SoftDecode,
    SplitGibbs,
    StarTable,
    Steered,
    Uniform,
    best_of,
    sample,
)
from discdiff.layout import Segment, make_batch
from discdiff.sampling.sampler import Sampler
from tokenizers_vq.action.fast import Fast

SOFT = soft_of("vq")
GOOD = measured_of(SOFT)
NAN, INF = float("nan"), float("inf")


def told(name, *parts):
    return pytest.raises(ValueError, match=".*".join((name, *parts)))


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (lambda **x: Measured(operator, GOOD.y, **x), "distance", ["l3", "L1"]),
        (lambda **x: Measured(operator, GOOD.y, **x), "sigma", [0.0, -1.0, NAN, INF]),
        (lambda **x: Measured(operator, GOOD.y, **x), "weight", [0.0, NAN]),
        (lambda **x: Measured(operator, GOOD.y, **x), "perceptual_weight", [-1.0]),
        (Descent, "steps", [0, -3, 1]),
        (Descent, "rate", [0.0, -1.0, NAN, INF]),
        (Descent, "beta", [-0.1, NAN, INF]),
        (Descent, "tolerance", [1.0, -0.1, NAN]),
        (Descent, "patience", [0]),
        (Descent, "decay", [(1.0, 0.9), (0.9, -0.1)]),
        (Relaxed, "steps", [0]),
        (Relaxed, "rate", [0.0, INF]),
        (Relaxed, "kl", [-1.0, NAN]),
        (Relaxed, "rate_span", [INF]),
        (Relaxed, "kl_span", [NAN]),
        (lambda **x: Anchored(Counted(), SOFT, GOOD, **x), "likelihood", ["exact"]),
        (lambda **x: Anchored(Counted(), SOFT, GOOD, **x), "take", ["nearest", "argmax"]),
        (lambda **x: Anchored(Counted(), SOFT, GOOD, **x), "rank", ["both"]),
        (lambda **x: Steered(Counted(), SOFT, GOOD, **x), "scale", [NAN, INF]),
        (lambda **x: Selected(CONFIDENT, SOFT, GOOD, **x), "count", [0]),
        (lambda **x: Selected(CONFIDENT, SOFT, GOOD, **x), "alpha", [-1.0, INF, NAN]),
        (lambda **x: SplitGibbs(Uniform(), SOFT, GOOD, **x), "steps", [0]),
        (lambda **x: SplitGibbs(Uniform(), SOFT, GOOD, **x), "moves", [-1]),
        (lambda **x: SplitGibbs(Uniform(), SOFT, GOOD, **x), "potential", ["released"]),
        (
            lambda **x: SplitGibbs(soft=SOFT, measured=GOOD, **x),
            "process",
            [Absorbing(), PerSegment({"code": Uniform()})],
        ),
        (lambda **x: best_of(Sampler(CONFIDENT), Counted(), batch_of(SOFT), SOFT, GOOD, **x), "count", [0]),
    ],
)
def test_options_out_of_range(kind, name, values):
    for value in values:
        with told(f"{name} is"):
            kind(**{name: value})


def run(name, soft=SOFT, measured=GOOD, batch=None):
    """That a method refuses, and that the network was not asked."""
    network = Counted()
    try:
        METHODS[name](network, batch_of(SOFT) if batch is None else batch, soft, measured, 3)
    finally:
        assert not network.calls


ALL = ("anchored", "anchored, exact tilt", "star", "steered", "selected", "gibbs", "best")


@pytest.mark.parametrize("name", ALL)
def test_measurements_that_do_not_fit(name):
    with told("operator is", r"\(1, 12\)", r"one row of the measurement y is \(1, 7\)"):
        run(name, measured=replace(GOOD, y=torch.zeros(ROWS, 7)))
    with told("operator is", r"\(12,\)"):
        run(name, measured=replace(GOOD, operator=lambda x: operator(x).flatten()))
    with told("y is 3", "the run has 4 rows"):
        run(name, measured=replace(GOOD, y=GOOD.y[:3]))
    with told("perceptual is", "a number per row"):
        run(name, measured=replace(GOOD, perceptual=lambda made, y: (made - y).square().mean()))
    with told("y is 2", "not finite"):
        replace(GOOD, y=torch.tensor([[NAN, 1.0, INF]]))


@pytest.mark.parametrize("name", ALL)
def test_tokenizers_that_do_not_fit(name):
    with told("segment is 'pixels'", "words, code"):
        run(name, soft=replace(SOFT, segment="pixels"))
    with told("codebook is", r"\(1, 16, 4\)", "depth 1 and .12. codes"):
        run(name, soft=soft_of("lfq"))
    with told("codebook is", r"\(2, 12, 4\)", "depth 1"):
        run(name, soft=soft_of("rvq"))
    layout = replace(batch_of(SOFT).layout, segments=(Segment("words", "text", (2,)), Segment("code", "code", (4,))))
    short = make_batch(layout, torch.full((ROWS, 6), layout.vocab.mask))
    with pytest.raises(RuntimeError):  # the operator's own words, about data of another size
        run(name, batch=short)
    with told("length is 9", "one whole sample of 7"):
        longer = batch_of(SOFT)
        more = {
            n: torch.nn.functional.pad(getattr(longer, n), (0, 2))
            for n in ("tokens", "valid", "given", "slot", "sample")
        }
        run(name, batch=longer._replace(**more))


def test_tokenizers_without_a_soft_decode():
    """No embeddings at all; a decoder that is not written; FAST, through whose merges no gradient passes."""

    class Bytes:
        def decode(self, codes):
            return codes

    with told(
        "tokenizer is 'Bytes'", "differentiable in embeddings", "codebook, decode_embeddings, embeddings_to_codes"
    ):
        SoftDecode.of(Bytes(), "code")
    bare = tokenizer("vq")
    bare.decode_embeddings = lambda e, grid=None: (_ for _ in ()).throw(NotImplementedError("not written"))
    for name in ("anchored", "gibbs"):
        with told("tokenizer is 'Linear'", "differentiable in embeddings"):
            run(name, soft=SoftDecode.of(bare, "code"))
    draw = torch.Generator().manual_seed(0)
    fast = Fast.fit(torch.rand(30, 4, 2, generator=draw), mode="range", scale=5, vocabulary=64)
    soft = SoftDecode.of(fast, "code")
    batch = batch_of(soft, slots=fast.token_shape((1, 4, 2))[1], given=False)
    flat = Measured(lambda x: x.flatten(1), torch.zeros(ROWS, 8))
    for name in ("anchored", "anchored, exact tilt", "star", "steered", "selected"):
        with told("decode is", "a soft decode is needed"):
            run(name, soft, flat, batch)
    assert len(METHODS["best"](Counted(), batch, soft, flat, 3)[0].tokens) == ROWS  # codes alone are decoded
    with told("codebook is"):
        SoftDecode(torch.zeros(3, 4), operator, operator, "code")


def test_operators_that_pass_no_gradient_go_with_those_that_need_none():
    rounded = replace(GOOD, operator=lambda x: operator(x).round().detach())
    for name in ("anchored", "star", "steered"):
        with told("operator is 'function'", "no gradient passes", "Selected, SplitGibbs or best_of"):
            run(name, measured=rounded)
    for name in ("anchored, exact tilt", "selected", "gibbs", "best"):
        assert bool(METHODS[name](Counted(), batch_of(SOFT), SOFT, rounded, 3)[0].committed.all())


def test_what_is_left_to_the_kernel_or_the_caller():
    batch = batch_of(SOFT)
    network = ClassifierFree(Counted(), 2.0, level="posterior")
    for wrapped in (Anchored(network, SOFT, GOOD, FEW), Steered(network, SOFT, GOOD)):
        with told("posterior", "x0"):
            sample(wrapped, CONFIDENT, batch, 4)
    with told("3 seeds for a batch of 4 rows"):
        sample(StarTable(Counted(), SOFT, GOOD, Relaxed(seed=[1, 2, 3])), Ancestral(), batch, 4)
    assert SLOTS == 5 and Anchored(Counted(), SOFT).kind == "own" and Anchored(Counted("cavity"), SOFT).kind == "cavity"
