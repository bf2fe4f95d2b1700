"""Scores and read-outs of codes that are numbers: which positions are sure, and the value of every committed one."""

import math

import pytest
import torch
from table_toy import rows_of
from values_toy import ACTIONS, CHUNK, DIM, EVEN, LAYOUT, LEVELS, VALUES, VOCAB, K, hashed, law_of, network, state_of

from discdiff.config import from_dict, to_dict
from discdiff.correctors import Gibbs
from discdiff.denoisers import FunctionDenoiser, ModelDenoiser, PrefixCached, Temperature, draw, prediction, table
from discdiff.kernels import Ancestral, Chain, Commit, Recheck, Remask
from discdiff.kernels.valued import Valued
from discdiff.layout import Layout, make_batch
from discdiff.noise import Noise
from discdiff.rules import Quota
from discdiff.sampling import iterate, sample
from discdiff.scores import Annealed, Candidate, Concentrated, Random, Sure
from discdiff.testing import check_conformance, check_kernel
from discdiff.types import Step
from discdiff.values import CodeValues, matched, near, read_out, soft_label
from tokenizers_vq.action.readout import mode
from tokenizers_vq.action.readout import read_out as peer

# -- the score ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deviation", "mode", "expectation", "matched"])
def test_concentration_by_hand(how, monkeypatch):
    state, score = state_of(), Concentrated(VALUES, how, 0.3)
    index = (state.free).view(-1).nonzero()[:, 0]
    logits, noise = hashed(state, None), Noise.seeded(0, state.valid)
    drawn = table(state.batch, logits).draw(index, noise, statistics=score.statistics)
    assert all(x.shape == index.shape for x in drawn.statistics.values())  # nothing as wide as a codebook is kept
    found = score(state, Step(0, 1.0, 0.5), index, drawn, noise)
    p = law_of(state)
    for row in range(3):
        for column in range(LAYOUT.length):
            law, v = p[row, column], LEVELS[(column - 5) % DIM]
            mean = (law * v).sum()
            if column < 2:
                expected = -math.inf
            elif column < 5:
                expected = float(law.max())  # a picture has no numbers: its confidence
            elif how == "deviation":
                expected = -float((law * (v - mean) ** 2).sum().sqrt())
            elif how == "matched":
                labels = (-((v - v[:, None]) ** 2) / (2 * 0.3**2)).exp()
                expected = max(float(torch.cosine_similarity(law, q, dim=0)) for q in labels)
            else:
                centres = v if how == "mode" else mean[None]
                expected = max(float(law[(v - c).abs() <= 0.3].sum()) for c in centres)
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(prediction, "CPU_CHUNK_BYTES", 4 * K * 5)
    parts = table(state.batch, logits).draw(index, noise, statistics=score.statistics)
    again = score(state, Step(0, 1.0, 0.5), index, parts, noise)
    off = 1e-13 if how == "matched" else 0.0  # a product of matrices rounds by its size
    torch.testing.assert_close(again, found, rtol=off, atol=0)
    for temperature in (0.0, 0.5):  # as all statistics, of the law at temperature 1
        cold = draw(logits[:, 5], torch.full((3,), 0.5).double(), score.own[:1], temperature)
        torch.testing.assert_close(cold.statistics[score.own[0]], found[:, 5])


def test_two_neighbours_are_surer_than_two_far_peaks():
    near, far = torch.full((2, K), -20.0, dtype=torch.float64)
    near[7], near[8], far[0], far[15] = math.log(0.5), math.log(0.5), math.log(0.6), math.log(0.4)
    logits = torch.where(torch.arange(LAYOUT.length)[:, None] % 2 == 0, near, far).expand(1, -1, -1)
    denoiser = FunctionDenoiser(lambda state, step: logits)
    batch = state_of(1).batch
    for score, first in ((Concentrated(VALUES), 0), (Sure("confidence"), 1)):
        half = list(iterate(denoiser, Commit(score), batch, 2))[1][0]
        taken = half.committed[0, ACTIONS].nonzero()[:, 0] + 5
        assert len(taken) == 4 and (taken % 2 == first).all()


def test_one_row_of_numbers_is_one_pass():
    assert (
        len(Concentrated(CodeValues({"action": EVEN.repeat(DIM, 1)})).own) == 1 and len(Concentrated(VALUES).own) == 2
    )
    score = Concentrated(VALUES, "mode", others=Sure("margin"))
    assert not score.peeks and not score.probability and Concentrated(VALUES, "mode").probability
    assert Concentrated(VALUES, others=Candidate()).peeks and not Commit(Concentrated(VALUES)).decide_first
    twice = from_dict(to_dict(VALUES), {"CodeValues": CodeValues})
    assert twice == VALUES and hash(twice) == hash(VALUES) and twice != CodeValues({"action": EVEN})


@pytest.mark.parametrize("how", ["deviation", "mode"])
def test_one_position_at_a_time_is_exact(how):
    score = Concentrated(CodeValues({"text": [-1.0, 0.1, 1.0]}), how, 0.95)
    away = check_kernel(Commit(score))
    assert away < 1.5 and Commit(score).unbiased


# -- the numbers of a run ----------------------------------------------------------------------------------------------------


def test_read_outs_are_the_tokenizers():
    p = torch.randn(50, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(2).softmax(-1)
    for how in ("expectation", "argmax"):
        assert torch.equal(read_out(p, EVEN, how), peer(p, EVEN, how))
    step = 2 / (K - 1)
    assert torch.allclose(read_out(p, EVEN, "mode", 1.5 * step), mode(p, EVEN, 3), atol=1e-12)
    sure = torch.eye(K, dtype=torch.float64)
    for how in ("expectation", "mode", "argmax"):
        assert torch.equal(read_out(sure, LEVELS[1], how, 0.3), LEVELS[1]) or how == "mode"
    assert torch.allclose(read_out(sure, LEVELS[1], "mode", 1e-3), LEVELS[1])


@pytest.mark.parametrize("width", [1e-3, 0.15, 0.5, 3.0])
def test_a_soft_label_is_read_as_the_number_it_is_of(width):
    """At every code, ends included, where its mean is far inside, and between codes; of two peaks as the heavier one."""
    values = CodeValues({"action": LEVELS.tolist(), "other": [-2.0, 5.0]})
    for v, q, size in zip(values.table(), values.labels(width), (K, K, 2), strict=True):
        v, q = v[:size], q[:size, :size]
        assert torch.allclose(q.norm(dim=1), torch.ones(size, dtype=torch.float64))
        step = float(v.diff().max())
        law = soft_label(v, v, width)
        assert (matched(law, v, q) - v).abs().max() <= 0.1 * step
        assert torch.equal(matched(law, v, q)[[0, -1]], v[[0, -1]])
        assert float((read_out(law, v) - v)[0].abs()) > 0.3 * width or width != 0.15 or size != K
        between = torch.linspace(float(v[0]), float(v[-1]), 50, dtype=torch.float64)
        off = (matched(soft_label(v, between, width), v, q) - between).abs() / step
        assert off.max() <= 0.51 and (width < step or off[(between > v[1]) & (between < v[-2])].amax().item() < 0.15)
    v, q = values.table()[0], values.labels(0.15)[0]
    two = 0.6 * soft_label(v, v[2:3], 0.15) + 0.4 * soft_label(v, v[-3:-2], 0.15)
    assert abs(matched(two, v, q) - v[2]) < 0.1 and abs(read_out(two, v) - v[2]) > 0.3


def test_matched_numbers_of_a_run():
    """Of the law by which a token was committed, by the numbers of its own dimension."""
    model, batch = network(), state_of(4).batch
    state, _ = sample(ModelDenoiser(model), Valued(Commit(), VALUES, "matched", 0.15), batch, 1)
    first = VOCAB.range("action")[0]
    p = (model(batch=batch).hidden[:, ACTIONS] @ model.head.weight[first : first + K].T).softmax(-1).double()
    for dim, (v, labels) in enumerate(zip(VALUES.table(), VALUES.labels(0.15), strict=True)):
        found = state.memory["value"][:, ACTIONS].unflatten(1, (CHUNK, DIM))[..., dim].flatten()
        law = p.unflatten(1, (CHUNK, DIM))[:, :, dim].flatten(0, 1)
        assert torch.allclose(found, matched(law, v, labels).detach(), atol=1e-9)
        score = torch.stack([law @ soft_label(v, x[None], 0.15)[0] / soft_label(v, x[None], 0.15).norm() for x in v], 1)
        assert ((found - v[score.argmax(1)]).abs() <= 0.51 * v.diff().max()).all()


@pytest.mark.parametrize("how", ["expectation", "argmax"])
@pytest.mark.parametrize("kernel", [Commit(Sure()), Commit(), Ancestral(), Commit(Concentrated(VALUES))], ids=repr)
def test_one_step_is_the_read_out_of_the_prediction(how, kernel):
    model, batch = network(), state_of(4).batch
    for denoiser in (ModelDenoiser(model), Temperature(ModelDenoiser(model), 0.0)):
        state, info = sample(denoiser, Valued(kernel, VALUES, how), batch, 1)
        hidden = model(batch=batch).hidden[:, ACTIONS]
        first = VOCAB.range("action")[0]
        p = (hidden @ model.head.weight[first : first + K].T).softmax(-1).unflatten(1, (CHUNK, DIM))
        found = state.memory["value"][:, ACTIONS].unflatten(1, (CHUNK, DIM))
        torch.testing.assert_close(found, peer(p, LEVELS, how).detach(), rtol=1e-12, atol=1e-12)
        assert state.memory["value"][:, :5].isnan().all() and list(state.memory) == ["value"]
        assert (info.nfe, info.head_rows) == (1, 4 * (3 + 8 + 8))  # three codes of a picture, eight actions, read again


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("inner", [Commit(Annealed(Sure(), 1.0)), Commit(Concentrated(VALUES)), Ancestral()], ids=repr)
def test_values_are_those_of_the_round_that_committed(inner, nearest):
    given = torch.zeros(6, LAYOUT.length, dtype=torch.bool)
    given[::2, 5:9] = True  # a prefix that is being carried out
    tokens = torch.where(given, VOCAB.range("action")[0] + 3, VOCAB.mask)
    batch = make_batch(LAYOUT, tokens, given=given)
    kernel = Valued(inner, VALUES, nearest=nearest)
    states = [state for state, _ in iterate(FunctionDenoiser(hashed), kernel, batch, 4, seed=2)]
    for before, after in zip(states, states[1:], strict=False):
        value, p, old = (x[:, ACTIONS] for x in (after.memory["value"], law_of(before), before.memory["value"]))
        was, now = before.committed[:, ACTIONS], after.committed[:, ACTIONS]
        expected = peer(p.unflatten(1, (CHUNK, DIM)), LEVELS, "expectation").flatten(1)
        torch.testing.assert_close(value[now & ~was], expected[now & ~was], rtol=1e-12, atol=1e-12)
        assert torch.equal(value[was], old[was]) and value[~now].isnan().all() and (now & ~was).any()
        code = after.batch.symbols(after.tokens)[:, ACTIONS]
        own = LEVELS[torch.arange(8) % DIM].expand(6, -1, -1)
        off = (own - expected[..., None]).abs()
        is_near = off.argmin(-1) == code
        assert bool(is_near[now & ~was].all()) == nearest
    assert torch.equal(states[-1].memory["value"][::2, 5:9], LEVELS[[0, 1, 0, 1], 3].expand(3, -1))
    assert torch.equal(states[-1].tokens[given], tokens[given])


def test_peaks_and_tokens_have_the_values_of_their_codes():
    peaked = FunctionDenoiser(lambda state, step: 1e6 * hashed(state, step))
    batch = state_of(8).batch
    for how in ("expectation", "mode", "argmax", "near", "token"):
        kernel = Valued(Commit(), VALUES, how, window=0.01)
        state, _ = sample(peaked if how != "token" else FunctionDenoiser(hashed), kernel, batch, 3, seed=1)
        own = VALUES.of(state.batch, state.tokens)
        torch.testing.assert_close(state.memory["value"], own, rtol=0, atol=1e-6, equal_nan=True)


def test_near_is_the_mean_around_the_drawn_token():
    """Of two ways of equal weight the one that is drawn, smoothed over its neighbours, whichever of them the draw hit."""
    p = torch.zeros(2, K, dtype=torch.float64)
    p[:, [2, 3, 12, 13]] = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64)
    own = near(p, EVEN, EVEN[[3, 13]], window=0.2)
    both = [(0.2 * EVEN[2] + 0.3 * EVEN[3]) / 0.5, (0.4 * EVEN[12] + 0.1 * EVEN[13]) / 0.5]
    torch.testing.assert_close(own, torch.stack(both))
    assert float(near(p[:1], EVEN, EVEN[[8]], window=0.01)) == float(EVEN[8])  # nothing is likely there
    kernel = Valued(Commit(Random()), VALUES, "near", window=0.3)
    logits = p[0].log().expand(40, LAYOUT.length, K)
    state, _ = sample(FunctionDenoiser(lambda s, step: logits[: len(s.row)]), kernel, state_of(40).batch, 4, seed=2)
    drawn, value = VALUES.of(state.batch, state.tokens)[:, ACTIONS], state.memory["value"][:, ACTIONS]
    for dim, level in enumerate(LEVELS):
        inside = (level - drawn[:, dim::DIM, None]).abs() <= 0.3
        law = p[0] * inside
        torch.testing.assert_close(value[:, dim::DIM], (law * level).sum(-1) / law.sum(-1))
    assert len(drawn.unique()) > 4


def test_tokens_that_are_taken_back_lose_their_value():
    batch = state_of(40).batch
    kernels = (Remask(), Recheck(Commit(Sure()), 0.9, 0.9), Recheck(Commit(Sure()), 0.9, 0.9, rescore="loo"))
    for inner in kernels:
        states = [s for s, _ in iterate(FunctionDenoiser(hashed), Valued(inner, VALUES), batch, 6, seed=3)]
        back = 0
        for before, after in zip(states, states[1:], strict=False):
            has = ~after.memory["value"].isnan()
            assert torch.equal(has[:, ACTIONS], after.committed[:, ACTIONS]) and not has[:, :5].any()
            fresh = (after.committed & ~before.committed)[:, ACTIONS]
            mean = (law_of(before)[:, ACTIONS] * LEVELS[torch.arange(8) % DIM]).sum(-1)
            torch.testing.assert_close(after.memory["value"][:, ACTIONS][fresh], mean[fresh], rtol=1e-12, atol=1e-12)
            back += int((before.committed & ~after.committed).sum())
        assert back > 5, inner
        plain = sample(FunctionDenoiser(hashed), inner, batch, 6, seed=3)[0].tokens
        assert torch.equal(plain, states[-1].tokens)  # remembering changes no token


def test_what_a_corrector_draws_again_has_the_value_of_the_call_that_hid_it():
    batch, calls, kinds = state_of(20).batch, [], [0, 0]

    def spied(state, step):
        calls.append((state, (step.s < step.t).expand(state.tokens.shape)))
        return hashed(state, step)

    kernel, before = Valued(Chain((Commit(), Gibbs(2))), VALUES), None
    for after, _ in iterate(FunctionDenoiser(spied), kernel, batch, 5, seed=3):
        if before is not None:
            settled = before.committed & (after.tokens == before.tokens)
            now, old = after.memory["value"][:, ACTIONS], before.memory["value"][:, ACTIONS]
            assert torch.equal(now[settled[:, ACTIONS]], old[settled[:, ACTIONS]])
            fresh = after.committed & ~settled & (torch.arange(LAYOUT.length) >= 5)
            for row, column in fresh.nonzero().tolist():
                redrawn = bool(before.committed[row, column])
                for state, moves in calls:  # a new token is the predictor's, one drawn again is the corrector's
                    at = (state.row == row).nonzero()[:, 0]
                    hides = len(at) and state.tokens[at[0], column] == VOCAB.mask
                    if hides and bool(moves[at[0], column]) != redrawn:
                        mean = (law_of(state)[at[0], column] * LEVELS[(column - 5) % DIM]).sum()
                assert float(after.memory["value"][row, column]) == pytest.approx(float(mean), abs=1e-12)
                kinds[redrawn] += 1
        before = after
        calls.clear()
    assert min(kinds) > 20


LEFT = CodeValues({"text": [-1.0, -0.5, 0.0, 0.5, 1.0]})  # the text of the layout that conformance is checked on
KERNELS = {
    "valued": Valued(Commit(Sure()), LEFT),
    "nearest": Valued(Commit(Candidate(), Quota()), LEFT, "mode", 0.6, nearest=True),
    "ancestral": Valued(Ancestral(), LEFT, nearest=True),
    "concentrated": Commit(Concentrated(LEFT, others=Random())),
    "both": Valued(Commit(Annealed(Concentrated(LEFT), 0.3)), LEFT),
    "remask": Valued(Remask(), LEFT),
}


@pytest.mark.parametrize("name", KERNELS)
def test_conformance(name):
    check_conformance(KERNELS[name])


def test_the_prefix_cache_changes_no_value():
    layout = Layout(VOCAB, LAYOUT.segments, "prefix")
    model, batch = network(layout).eval(), rows_of(layout)
    batch = batch._replace(tokens=torch.where(batch.free, VOCAB.mask, batch.tokens))
    runs = []
    for denoiser in (ModelDenoiser(model), PrefixCached(ModelDenoiser(model))):
        runs.append(sample(denoiser, Valued(Commit(Concentrated(VALUES)), VALUES, "mode"), batch, 3)[0])
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    torch.testing.assert_close(runs[0].memory["value"], runs[1].memory["value"], rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Concentrated(VALUES, "variance"), "how is 'variance'"),
        (lambda: Concentrated(VALUES, "mode", 0), "window is 0"),
        (lambda: Concentrated({"action": EVEN}), "give CodeValues"),
        (lambda: Concentrated(VALUES, others="confidence"), "give a Score"),
        (lambda: Valued(Commit(), VALUES, "median"), "how is 'median'"),
        (lambda: Valued(Recheck(), VALUES, nearest=True), "nearest is True"),
        (lambda: Valued(Commit(), VALUES, "token", nearest=True), "nearest is True"),
        (
            lambda: sample(
                FunctionDenoiser(hashed), Valued(Commit(), CodeValues({"sound": EVEN})), state_of().batch, 1
            ),
            "with numbers is 'sound'",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
