"""Inner loops that stop early, losses that are no numbers, and how much memory an inner step takes."""

import math
import re
import warnings
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
    state_of,
)
from torch.utils._python_dispatch import TorchDispatchMode

from discdiff import Anchored, Descent, Measured, Relaxed, SoftDecode, Steered, sample
from discdiff.anchoring import Canvas
from discdiff.anchoring.descent import slope
from discdiff.noise import Noise
from discdiff.testing import Toy
from discdiff.types import Step

SOFT = soft_of("vq")


def canvas_of(rows=ROWS, soft=SOFT):
    state = state_of(batch_of(soft, rows))
    canvas = Canvas.of(soft, state)
    return canvas, canvas.prior(Counted()(state, Step(0, state.time, state.time * 0)))


# -- early stop


@pytest.mark.parametrize("quantised", [True, False])
def test_rows_stop_one_by_one(quantised):
    """Each as it would alone: after `patience` steps that gained too little. Where it stopped it has no losses."""
    canvas, prior = canvas_of(6)
    measured = measured_of(SOFT, 6)
    descent = Descent(200, 0.3, quantised=quantised, tolerance=0.03, patience=5)
    fit = descent(canvas, prior, measured)
    ran = (~torch.isnan(fit.losses)).sum(0).tolist()
    assert len(set(ran)) > 1 and max(ran) <= len(fit.losses) < max(ran) + 8 and fit.decoded == 6 * len(fit.losses)
    whole = Descent(200, 0.3, quantised=quantised)(canvas, prior, measured).losses
    for row, count in enumerate(ran):
        mine = fit.losses[:count, row]
        assert torch.equal(mine, whole[:count, row]) and bool(torch.isnan(fit.losses[count:, row]).all())
        best, since = math.inf, []  # the rule, step by step
        for loss in whole[:, row].tolist():
            better = loss < best - (0.03 * best if best < math.inf else 0)
            best, since = (loss, [*since, 0]) if better else (best, [*since, since[-1] + 1])
        assert since.index(5) + 1 == count


def test_without_a_tolerance_nothing_stops():
    canvas, prior = canvas_of()
    assert len(Descent(37)(canvas, prior, measured_of(SOFT)).losses) == 37


@pytest.mark.parametrize("rate", [0.3, 30.0])
@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_the_fit_is_the_table_of_least_loss(kind, rate):
    """Of those that were decoded, row by row; at a rate that is too high it is neither the last nor the first."""
    soft = soft_of(kind)
    canvas, prior = canvas_of(6, soft)
    measured = measured_of(soft, 6)
    fit = Descent(20, rate, tolerance=0.01, patience=4)(canvas, prior, measured)
    again = measured(soft.data(canvas.legal(fit.embeddings)), canvas.row)
    least = fit.losses.nan_to_num(math.inf).amin(0)
    assert torch.allclose(again, least) and torch.allclose(canvas.expect(fit.logits.softmax(-1)), fit.embeddings)
    assert rate < 1 or bool(((least < fit.losses[0]) & (least < fit.losses[4])).any())


# -- numbers that are none

BOOK = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)
LINE = SoftDecode(BOOK.view(1, 3, 1), lambda e: e.flatten(1), lambda e: (e - BOOK).abs().argmin(-1, keepdim=True), "x")
TARGET = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)


def line(target=TARGET):
    """One open position a row; the first row is to go to 3, the second to -1."""
    state = state_of(Toy(torch.ones(3, dtype=torch.float64) / 3, 3, 1).batch(len(target)))
    canvas = Canvas.of(LINE, state._replace(row=torch.arange(len(target)) + 5))
    return canvas, torch.zeros(len(target), 3, dtype=torch.float64).log_softmax(-1)


def breaks(x):
    return torch.where(x > 1.5, torch.nan, x)


def of(operator, target=TARGET, **more):
    rows = torch.cat([torch.zeros(5, 1, dtype=torch.float64), target])  # of the run; the canvas has the last ones
    return Measured(operator, rows, **{"distance": "l2", **more})


def test_a_row_that_breaks_keeps_its_best_table_and_harms_no_other():
    canvas, prior = line()
    descent = Descent(40, 0.3, quantised=False)
    told = r"step 2: the term 'l2' of row 5 is not finite at inner step \d+: the best table before it is kept"
    with pytest.warns(RuntimeWarning, match=told):
        fit = descent(canvas, prior, of(breaks), "step 2: ")
    count = int((~torch.isnan(fit.losses[:, 0])).sum())
    assert 1 < count < 40 and int((~torch.isnan(fit.losses[:, 1])).sum()) == 40
    assert 1.0 < float(fit.embeddings[0]) <= 1.5
    assert float(3 - fit.embeddings[0]) == pytest.approx(float(fit.losses[:count, 0].min()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = descent(*line(TARGET[1:]), Measured(breaks, torch.full((6, 1), -1.0, dtype=torch.float64), "l2"))
    assert torch.allclose(fit.logits[1], alone.logits[0], atol=1e-12) and float(fit.embeddings[1]) < -0.95


def test_the_first_of_several_terms_is_named():
    canvas, prior = line()

    def perceptual(made, y):
        return (breaks(made) - y)[:, 0].abs()

    with pytest.warns(RuntimeWarning, match="'perceptual' of row 5 is not finite"):
        Descent(40, 0.3, quantised=False)(canvas, prior, of(lambda x: x, perceptual=perceptual))
    with pytest.warns(RuntimeWarning, match="'gradient' of row 5 and 1 more is not finite at inner step 0"):
        symmetric = prior.clone()
        symmetric[:] = torch.tensor([0.0, -torch.inf, -math.log(3.0)], dtype=torch.float64).log_softmax(-1)  # E = 0
        fit = Descent(40, 0.3, quantised=False)(canvas, symmetric, of(lambda x: x.abs().sqrt()))
    assert torch.allclose(fit.logits.softmax(-1), symmetric.exp())


def test_tables_of_rivals_survive_as_well():
    canvas, prior = line()
    noise = Noise.seeded(0, torch.ones(2, 1, dtype=torch.bool))
    relaxed = Relaxed(steps=12, rate=1.0, rate_span=0.0)
    with pytest.warns(RuntimeWarning, match="step 1: the term 'l2' of row 5 is not finite"):
        table = relaxed(canvas, prior, of(breaks), torch.ones(2), noise, "step 1: ")
    whole = relaxed(canvas, prior, of(lambda x: x), torch.ones(2), noise)
    assert bool(torch.isfinite(table).all()) and torch.allclose(table[1], whole[1])
    state = state_of(batch_of(SOFT))
    nan = Measured(lambda x: operator(x) * torch.where(x[:, :1, 0] > x[1, 0, 0], 1.0, torch.nan), measured_of(SOFT).y)
    with pytest.warns(RuntimeWarning, match="step 0: the term 'gaussian' of row "):
        made = Steered(Counted(), SOFT, nan)(state, Step(0, state.time, state.time * 0))
    sites = torch.arange(2 + 1, 2 + SLOTS) + state.tokens.shape[1]  # of row 1, which is one of those that break
    plain = Counted()(state, Step(0, state.time, state.time * 0))
    assert torch.allclose(made.log_probs(sites), plain.log_probs(sites))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_comes_to_an_end(method):
    """An operator that gives no numbers for most data: tokens are legal at the end all the same."""
    measured = measured_of(SOFT)
    hurt = replace(
        measured, operator=lambda x: operator(torch.where(x.amax((1, 2), keepdim=True) < 1.3, x, x * torch.nan))
    )
    state, _ = method(Counted(), batch_of(SOFT), SOFT, hurt, 3)
    assert bool((state.batch.symbols(state.tokens) < state.batch.alphabet.size).all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["anchored, exact tilt", "selected", "gibbs", "best"])
def test_losses_that_are_not_finite_are_told(name, bad):
    """Step and term, each term once a step; what has such a loss is never taken where there is anything else."""
    good = measured_of(SOFT)
    hurt = replace(good, perceptual=lambda made, y: torch.where(made[:, 0] > made[:, 1], 1.0, bad).to(made))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state, _ = METHODS[name](Counted(), batch_of(SOFT), SOFT, hurt, 3)
    said = [str(each.message) for each in told]
    step = "after the last step" if name == "best" else r"step \d"
    assert said and all(re.match(rf"{step}: the term 'perceptual' is not finite for \d+ of \d+ data", x) for x in said)
    assert len(said) == len(set(said)) <= 4
    if name == "best" and bad != torch.inf:  # three draws of a row
        plain, _ = METHODS[name](
            Counted(),
            batch_of(SOFT),
            SOFT,
            replace(hurt, perceptual=lambda made, y: torch.where(made[:, 0] > made[:, 1], 1.0, 1e6).to(made)),
            3,
        )
        assert torch.equal(plain.tokens, state.tokens)


# -- memory


class Wide(TorchDispatchMode):
    """The most tensors of at least `size` numbers that were alive at once, beside those there before."""

    def __init__(self, size):
        super().__init__()
        self.size, self.alive, self.most, self.made = size, {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= self.size * x.element_size():
                storage = x.untyped_storage()
                self.made += storage._cdata not in self.alive
                self.alive[storage._cdata] = storage._weak_ref()
        self.alive = {k: w for k, w in self.alive.items() if not torch.UntypedStorage._expired(w)}
        self.most = max(self.most, len(self.alive))
        return out


@pytest.mark.parametrize("forbids", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_an_inner_step_makes_nothing_as_wide_as_the_vocabulary(kind, beta, forbids):
    """Alive at once are logits, the best of them, probabilities, gradient and Adam's two averages, whatever the steps; nothing
    else is as large as a quarter of the table. Real codebooks, of slots of which a level is known, too.
    """
    soft = soft_of(kind, codebook_size=300)
    batch = batch_of(soft, slots=1400 // soft.depth, given=False)
    state = state_of(batch)
    known = state.committed.clone()
    known[:, 2:300:2] = True
    canvas = Canvas.of(soft, state._replace(committed=known, tokens=torch.where(known, 7, batch.tokens)))
    draw = torch.Generator().manual_seed(0)
    prior = torch.randn(len(canvas.index), 300, generator=draw, dtype=torch.float64)
    if forbids:
        prior[:, ::3] = -torch.inf
    prior, made = prior.log_softmax(-1), []
    measured = Measured(lambda x: x[:, :2, 0], torch.zeros(ROWS, 2, dtype=torch.float64))
    for steps in (2, 5):
        with Wide(prior.numel() // 4) as wide:
            Descent(steps, beta=beta, tolerance=1e-9)(canvas, prior, measured)
        made.append(wide.made)
        assert wide.most == 6 + forbids  # at the end, where they are forbidden
    assert made[0] == made[1] == 6 + forbids


def test_the_decoder_is_asked_once_per_inner_step():
    calls = []
    soft = replace(SOFT, decode=lambda e: calls.append(len(e)) or SOFT.decode(e))
    canvas, prior = canvas_of(soft=soft)
    assert FEW(canvas, prior, measured_of(SOFT)).decoded == sum(calls) and calls == [ROWS] * FEW.steps
    p = prior.exp()
    assert slope(canvas, p, measured_of(SOFT))[1].shape == (ROWS, SLOTS, 4) and not p.requires_grad


def test_watch_sees_every_fit():
    seen = []
    batch = batch_of(SOFT)
    network = Anchored(Counted(), SOFT, measured_of(SOFT), FEW, watch=lambda *told: seen.append(told))
    _, info = sample(network, CONFIDENT, batch, 4, seed=1)
    assert [step.index for _, step, _ in seen] == [0, 1, 2, 3]
    assert sum(fit.decoded for *_, fit in seen) == info.decoded
