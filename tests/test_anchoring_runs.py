"""Whole runs: A3, A5, A6, S2, S3, and what every way of posterior sampling promises of seeds, rows, given tokens and costs."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import (
    CONFIDENT,
    FEW,
    KINDS,
    METHODS,
    ROWS,
    SLOTS,
    Counted,
    batch_of,
    measured_of,
    soft_of,
    state_of,
)

from discdiff import (
    Absorbing,
    Ancestral,
    Anchored,
    Blocks,
    ClassifierFree,
    Commit,
    Descent,
    FirstHitting,
    FunctionDenoiser,
    MaskOrReplace,
    Recheck,
    Relaxed,
    Selected,
    StarShaped,
    StarTable,
    Temperature,
    Uniform,
    iterate,
    sample,
)
from discdiff.denoisers import Unprompted
from discdiff.noise import Noise
from discdiff.sampling.loop import last
from discdiff.scores import Candidate
from discdiff.types import Step

SOFT = soft_of("vq")
KERNELS = {
    "confidence": CONFIDENT,
    "candidate": Commit(Candidate()),
    "ancestral": Ancestral(),
    "first-hitting": FirstHitting(),
    "uniform": Ancestral(Uniform()),
    "mask or replace": Ancestral(MaskOrReplace()),
    "recheck": Recheck(CONFIDENT),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


# -- A3: without the data term


@pytest.mark.parametrize("kind", ["own", "cavity"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_without_a_measurement_nothing_changes(kernel, kind):
    for clock in (None, Blocks(3)):
        batch, found = batch_of(SOFT), []
        for network in (Counted(kind), Anchored(Counted(kind), SOFT, process=kernel.process)):
            found.append(sample(network, kernel, batch, 4, seed=5, clock=clock))
        (plain, cost), (mine, same) = found
        assert torch.equal(mine.tokens, plain.tokens) and same.nfe == cost.nfe and same.decoded == 0


@pytest.mark.parametrize("rank", ["table", "prior"])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_a_data_term_that_weighs_nothing_changes_nothing(kernel, rank):
    """All of the machinery, tables drawn from and ranked by: token for token the plain sampler, guided, in blocks."""
    measured, still = measured_of(SOFT, weight=1e-30), replace(FEW, beta=0.0)
    guided = ClassifierFree(Counted(), 1.7, Unprompted(("words",)))
    for clock, inner, wrap in ((None, guided, None), (Blocks(3), Counted(), lambda x: Temperature(x, 0.7))):
        batch, settings = batch_of(SOFT), {"take": "sample", "rank": rank, "process": kernel.process}
        mine = Anchored(inner, SOFT, measured, still, **settings)
        both = [sample(wrap(x) if wrap else x, kernel, batch, 4, seed=5, clock=clock) for x in (inner, mine)]
        assert torch.equal(both[0][0].tokens, both[1][0].tokens)
        assert both[1][1].decoded > 0 and both[0][1].nfe == both[1][1].nfe


def test_rank_and_take_are_what_they_say():
    """Candidates and statistics of the table, or of the prior, at the sites; the words are left to the network."""
    state, measured = state_of(batch_of(SOFT)), measured_of(SOFT)
    step = Step(0, state.time, state.time * 0)
    plain, fits = Counted()(state, step), []
    for take in ("quantised", "sample"):
        for rank in ("table", "prior"):
            made = Anchored(
                Counted(), SOFT, measured, FEW, take=take, rank=rank, watch=lambda state, step, fit: fits.append(fit)
            )(state, step)
            fit, code, word = (
                fits[-1],
                (~state.given[:, 2:]).reshape(-1),
                torch.arange(ROWS) * state.tokens.shape[1] + 1,
            )
            sites = torch.arange(state.tokens.numel()).view(ROWS, -1)[:, 2:].reshape(-1)[code]
            prior, table = plain.log_probs(sites), fit.logits.log_softmax(-1)
            assert torch.allclose(made.log_probs(sites), table if rank == "table" else prior)
            assert torch.allclose(made.rank(sites, "confidence"), (table if rank == "table" else prior).exp().amax(-1))
            assert torch.allclose(made.log_probs(word), plain.log_probs(word))
            if take == "sample":
                continue
            chosen = SOFT.quantise(fit.embeddings).reshape(-1)[code]
            drawn = made.draw(sites, Noise.seeded(0, state.valid))
            assert torch.equal(state.batch.symbols(drawn.tokens, sites), chosen)
            assert torch.allclose(drawn.log_prob, made.log_probs(sites).gather(-1, chosen[:, None])[:, 0])
            again, log_prob = made.candidates(sites, Noise.seeded(0, state.valid), 3)
            assert bool((again == drawn.tokens[:, None]).all()) and float(log_prob.abs().max()) == 0


# -- A5, A6


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_measurement_gives_the_true_tokens(kind):
    """A5: the operator is the identity, the decoder injective. Of a residual some slots end in sums that are near by: the
    steps of its greedy codes have local minima.
    """
    soft = soft_of(kind)
    measured = measured_of(soft, operator=lambda x: x, sigma=0.1)
    found = Anchored(Counted(), soft, measured, Descent(steps=150, rate=0.5))
    state, _ = sample(found, CONFIDENT, batch_of(soft, given=False), 4, seed=1)
    codes = state.batch.symbols(state.tokens)[:, 2:].view(ROWS, SLOTS, -1)
    right = ((soft.data(codes) - measured.y).abs().amax(-1) < 1e-9).double()  # where it is, so are the codes
    print(f"{kind}: {float(right.mean()):.0%} of the slots")
    assert float(right.mean()) >= (0.8 if kind == "rvq" else 1.0)


@pytest.mark.parametrize("quantised", [True, False])
def test_losses_fall_over_the_inner_loop(quantised):
    """A6, a linear operator: averages over rows and five inner steps never rise by more than a hundredth of the fall."""
    soft, fits = soft_of("lfq"), []
    measured = measured_of(soft, 64)
    network = Anchored(
        Counted(),
        soft,
        measured,
        Descent(steps=40, quantised=quantised),
        watch=lambda state, step, fit: fits.append(fit),
    )
    sample(network, CONFIDENT, batch_of(soft, 64, given=False), 4, seed=1)
    assert len(fits) == 4
    mean = fits[0].losses.mean(1).view(-1, 5).mean(1)
    print(" ".join(f"{x:.2f}" for x in mean))
    assert float(mean[-1]) < 0.5 * float(mean[0])
    assert float(mean.diff().max()) < 0.01 * float(mean[0] - mean[-1])


# -- S2, S3


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_one_child_is_the_base_sampler(kernel):
    """S2."""
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    plain, cost = last(iterate(Counted(), kernel, batch, 4, seed=5))
    mine, same = last(iterate(Counted(), Selected(kernel, SOFT, measured, count=1), batch, 4, seed=5))
    assert torch.equal(plain.tokens, mine.tokens) and cost.nfe == same.nfe and same.decoded == 0


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), MaskOrReplace()], ids=lambda p: type(p).__name__)
def test_an_infinite_kl_is_star_shaped_sampling(process):
    """S3."""
    batch, kernel = batch_of(SOFT), StarShaped(process)
    table = StarTable(Counted(), SOFT, measured_of(SOFT), Relaxed(kl=float("inf")), process)
    plain, cost = sample(Counted(), kernel, batch, 5, seed=5)
    mine, same = sample(table, kernel, batch, 5, seed=5)
    assert torch.equal(plain.tokens, mine.tokens) and cost.nfe == same.nfe and same.decoded == 0
    other, _ = sample(replace(table, relaxed=Relaxed()), kernel, batch, 5, seed=5)
    assert not torch.equal(other.tokens, plain.tokens)


def test_a_token_that_can_only_come_from_itself_is_its_own_origin():
    """Star-shaped sampling of an absorbing process never asks what the network makes of a token it sees."""
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    for wrap in (lambda x: x, lambda x: StarTable(x, SOFT, measured, Relaxed(steps=4))):
        found = []
        for other in (0.0, 9.0):

            def network(state, step, other=other):
                table = Counted()(state, step).logits
                seen = state.tokens != state.batch.layout.vocab.mask
                logits = table(torch.arange(state.tokens.numel()), state.batch.layout.drawn[-1])
                logits = logits.view(*state.tokens.shape, -1)
                return torch.where(seen[..., None], other * torch.cos(logits * 40), logits)

            run = list(iterate(wrap(FunctionDenoiser(network)), StarShaped(), batch, 8, seed=2))
            found.append(run[-1][0].tokens)
            undone = [(a.committed & ~b.committed).any() for (a, _), (b, _) in zip(run, run[1:], strict=False)]
            assert any(undone)  # nothing is final
        assert torch.equal(*found)


def test_a_callback_changes_nothing():
    """Rows do not run ahead under a denoiser that counts its steps."""
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    for network in (Anchored(Counted(), SOFT, measured, FEW), StarTable(Counted(), SOFT, measured)):
        both = [sample(network, Ancestral(), batch, 6, seed=3, callback=f)[0] for f in (None, lambda state, info: None)]
        assert torch.equal(both[0].tokens, both[1].tokens)
