"""Rules: how many positions a step commits, against a restatement that goes row by row, and editing of committed tokens."""

import math

import pytest
import torch

from discdiff import (
    Absorbing,
    Blocks,
    Commit,
    CosineMD4,
    EntropyBound,
    Factor,
    FunctionDenoiser,
    Geometric,
    Layout,
    Modality,
    Noise,
    Quota,
    Random,
    Segment,
    Stable,
    Sure,
    Temperature,
    Threshold,
    UserScore,
    VocabLayout,
    iterate,
    make_batch,
    sample,
)
from discdiff.denoisers import LOG_PROBS
from discdiff.rules import Ranked
from discdiff.schedules import Arccos
from discdiff.scores import SCORES, Critic, DepthPrefix
from discdiff.testing import Toy, check_conformance, check_kernel, noise_floor, total_variation
from discdiff.types import Step

VOCAB = VocabLayout(6, (Modality("image", 9), Modality("action", 5)))
PICTURE, MOVES = Segment("image", "image", (3, 3)), Segment("action", "action", (5,), axes="t")
LAYOUT = Layout(VOCAB, (Segment("prompt", "text", (2,), noised=False), PICTURE, MOVES))
ROWS, STEPS = 6, 5


def batch_of(given=False, pad=0):
    """Prompt, nine image slots, five actions; row 0 stays free, padding of `pad` slots on the right."""
    tokens = torch.full((ROWS, LAYOUT.length), VOCAB.mask)
    tokens[:, :2] = 1
    known = torch.zeros(tokens.shape, dtype=torch.bool)
    if given:
        known[1, 2:6], known[2, 11:15], known[3, 4::3] = True, True, True
        tokens = torch.where(known, LAYOUT.tables().first, tokens)
    slot, valid = torch.arange(LAYOUT.length).expand(ROWS, -1), torch.ones_like(known)
    tokens, known, slot, valid = (torch.nn.functional.pad(x, (0, pad)) for x in (tokens, known, slot, valid))
    return make_batch(LAYOUT, tokens, given=known, valid=valid, slot=slot)


def net(state):
    """Logits that depend on the row's tokens; some places are much surer than others."""
    place, visible = state.valid.long().cumsum(1), torch.where(state.valid, state.tokens, 0)
    context = (visible * (1 + place % 5)).sum(1, keepdim=True) % 23
    wave = torch.sin((context + 7.7 * place)[..., None] * 12.9898 + torch.arange(9, dtype=torch.float64) * 78.233)
    return wave * (1 + (place * 5 % 11) + context % 3)[..., None]


NET = FunctionDenoiser(lambda state, step: net(state))


def predictions(state):
    """Plain probabilities: [row][column] -> tensor (K,)."""
    size = state.batch.alphabet.size
    logits = net(state)
    return [[logits[r, i, : size[r, i]].softmax(0) for i in range(size.shape[1])] for r in range(len(size))]


def wanted(name, rule, p, past, order, free, hidden, s):
    """How many of `order` (best first) a rule takes, or which, for one row and pool."""
    best = [float(p[i].max()) for i in order]
    if name.startswith("quota"):
        stay = math.floor(sum(1 - float(rule.curve.alpha(s[i])) if s[i] > 0 else 0.0 for i in free) + 1e-6)
        return order[: max(0, len(hidden) - stay)]
    if name == "threshold":
        return [i for i, c in zip(order, best) if c >= rule.tau]
    if name == "factor":
        return order[
            : max((n for n in range(1, len(order) + 1) if (n + 1) * (1 - best[n - 1]) < rule.factor), default=0)
        ]
    if name == "bound":
        h = [-float((p[i] * p[i].log()).sum()) for i in order]
        return order[: max(k for k in range(1, len(order) + 1) if sum(h[: k - 1]) <= rule.gamma)]
    stable = []
    for i, c in zip(order, best):
        seen = past.get(i, [])
        moved = [float((b * (b.log() - a.log())).sum()) for a, b in zip(seen, seen[1:])][-rule.history :]
        if c >= rule.tau and len(moved) == rule.history and all(m < rule.eps for m in moved):
            stable.append(i)
    return stable


RULES = {
    "quota": (Sure(), Quota(CosineMD4())),
    "quota of another curve": (Sure(), Quota(Geometric(0.3, 5.0))),
    "threshold": (Sure(), Threshold(0.8)),
    "factor": (Sure(), Factor(1.0)),
    "bound": (Sure("entropy"), EntropyBound(0.4)),
    "stable": (Sure(), Stable(0.5, 0.8, 1)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize(("given", "pad", "clock"), [(False, 0, None), (True, 3, None), (True, 2, Blocks(6))])
def test_restated_row_by_row(name, jointly, given, pad, clock):
    score, rule = RULES[name]
    kernel, batch = Commit(score, rule, jointly=jointly), batch_of(given, pad)
    states = [state for state, _ in iterate(NET, kernel, batch, STEPS if clock is None else 9, clock=clock, seed=3)]
    pool = LAYOUT.tables().pool[batch.slot]
    past, extra = [{} for _ in range(ROWS)], 0
    for now, after in zip(states, states[1:]):
        p = predictions(now)
        for row in range(ROWS):
            expected = set()
            moving = (batch.free & ~now.committed & (after.time < now.time))[row]
            for i in moving.nonzero()[:, 0].tolist():
                past[row].setdefault(i, []).append(p[row][i])
            for group in [{1, 2}] if jointly else [{1}, {2}]:
                here = [i for i in range(batch.tokens.shape[1]) if int(pool[row, i]) in group]
                free = [i for i in here if batch.free[row, i]]
                order, s = [i for i in here if moving[i]], after.time[row]
                if not order:
                    continue
                key = {
                    i: -float((q * q.log()).sum()) if name == "bound" else -float(q.max()) for i, q in enumerate(p[row])
                }
                order.sort(key=lambda i: (s[i] > 0, key[i]))
                hidden = [i for i in free if not now.committed[row, i]]
                chosen = set(wanted(name, rule, p[row], past[row], order, free, hidden, s))
                extra += len(chosen - set(order[:1])) * bool(s[order[0]] > 0)
                expected |= chosen | {order[0]} | {i for i in order if s[i] <= 0}
            assert set((after.committed & ~now.committed)[row].nonzero()[:, 0].tolist()) == expected
            assert torch.equal(after.tokens[row][now.committed[row]], now.tokens[row][now.committed[row]])  # I2
    assert extra > (5 if clock is None else 0)  # the rule took more than the one that must go
    assert bool(states[-1].committed.all())


def ranked(values, statistic, eligible=None):
    """One row whose statistic is given, ranked by it."""
    layout = Layout(VocabLayout(3), (Segment("x", "text", (len(values),)),))
    batch = make_batch(layout, torch.full((1, len(values)), layout.vocab.mask))
    state = next(iterate(NET, Commit(), batch, 1))[0]
    table = torch.tensor([values], dtype=torch.float64)
    here = torch.ones_like(state.committed) if eligible is None else torch.tensor([eligible])
    place = torch.where(here, table, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return Ranked(state, Step(0, state.time, state.time / 2), torch.ones_like(here), here, place, {statistic: table})


@pytest.mark.parametrize(
    ("rule", "values", "count"),
    [
        (EntropyBound(0.1), [0.0, -0.1, -0.2, -0.9], 3),  # T20: a cumulated sum minus its largest term would say 2
        (EntropyBound(0.0), [-0.2, 0.0, -0.3, 0.0], 3),  # two that are certain and the one that comes next
        (EntropyBound(9.0), [-0.2, -0.1], 2),
        (Factor(1.0), [0.99, 0.98, 0.5], 2),  # T21: the released loop says 3
        (Factor(1.0), [0.9, 0.2], 1),  # the released loop says 2
        (Factor(1.0), [0.5, 0.4], 0),
        (Factor(1.0), [0.7, 0.7, 0.8], 2),  # 2 * .2 < 1, 3 * .3 < 1, 4 * .3 > 1
        (Threshold(0.9), [0.9, 0.89, 0.95], 2),
    ],
)
def test_counts_of_rules(rule, values, count):
    assert int(rule(ranked(values, rule.statistics[0])).sum()) == count


def test_positions_that_wait_are_not_counted():
    open_ = [True, False, True, False]
    assert rule_places(EntropyBound(0.1), [-0.1, 0.0, -0.9, 0.0], "entropy", open_) == [0, 2]
    assert rule_places(Factor(1.0), [0.99, 1.0, 0.2, 1.0], "confidence", open_) == [0]


def rule_places(rule, values, statistic, eligible):
    return rule(ranked(values, statistic, eligible))[0].nonzero()[:, 0].tolist()


def test_factor_counts_the_least_confident_of_any_order():
    tables = ranked([0.2, 0.99, 0.98], "confidence")
    backwards = tables._replace(place=torch.tensor([[0, 1, 2]]))  # the unsure one is ranked first
    assert not Factor(1.0)(backwards).any() and int(Factor(1.0)(tables).sum()) == 2


def test_entropy_bound_of_zero_is_exact_and_takes_certain_tokens_along():
    law = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    first = torch.tensor([[0.3, 0.05, 0.1], [0.02, 0.2, 0.08], [0.1, 0.05, 0.1]], dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            law[a, b, (a + b) % 3, (a - b) % 3] = first[a, b]  # two tokens tell the others
    joint, rows = Toy(law.reshape(-1)), 20000
    kernel = Commit(Sure("entropy"), EntropyBound(0.0))
    state, info = sample(joint.denoiser(Absorbing()), kernel, joint.batch(rows), 4, seed=1)
    assert total_variation(joint.law(state.tokens), joint.p) < 1.5 * noise_floor(joint.p, rows) and info.nfe < 4
    assert check_kernel(kernel) < 1.5  # nothing is certain there: one by one
    assert check_kernel(Commit(Sure("entropy"), EntropyBound(2.0))) > 10


def test_stable_waits_for_its_history():
    one = torch.tensor([0.95, 0.03, 0.02], dtype=torch.float64).log()
    layout = Layout(VocabLayout(3), (Segment("x", "text", (8,)),))
    batch = make_batch(layout, torch.full((3, 8), layout.vocab.mask))
    still = FunctionDenoiser(lambda state, step: one.expand(*state.tokens.shape, 3))
    moving = FunctionDenoiser(lambda state, step: one.roll(int(step.t[0, 0] * 8)).expand(*state.tokens.shape, 3))
    for denoiser, rule, expected in (
        (still, Stable(history=2), [1, 1, 6]),
        (still, Stable(history=4), [1, 1, 1, 1, 4]),
        (still, Stable(tau=0.96), [1] * 8),
        (moving, Stable(), [1] * 8),
    ):
        states = [state for state, _ in iterate(denoiser, Commit(Sure(), rule), batch, 8)]
        counts = torch.stack([state.committed.sum(1) for state in states]).diff(dim=0)
        assert counts[: len(expected)].T.tolist() == [expected] * 3
    assert states[0].memory["stable_log_probs"].dtype == torch.float32


def test_a_score_that_says_nothing_still_gets_on():
    batch, nothing = (
        batch_of(given=True),
        UserScore(lambda s, step, index, drawn, noise: torch.full(index.shape, -torch.inf)),
    )
    states = [state for state, _ in iterate(NET, Commit(nothing, Threshold(1.0), jointly=True), batch, 20)]
    left = torch.stack([(batch.free & ~state.committed).sum(1) for state in states])
    assert torch.equal(left[1:], (left[:-1] - 1).clamp(min=0)[: len(left) - 1])


def test_halton_counts():
    """Arccos: after the share r of a run 2/pi arcsin(r) of the slots are revealed, and at least one per step."""
    layout = Layout(VOCAB, (Segment("image", "image", (8, 8)),))
    batch = make_batch(layout, torch.full((2, 64), VOCAB.mask))
    states = [state for state, _ in iterate(NET, Commit(SCORES["lattice"], Quota(Arccos())), batch, 32)]
    found = torch.stack([state.committed.sum(1) for state in states], 1)[0].tolist()
    assert found == [64 - math.floor(64 * (1 - 2 / math.pi * math.asin(k / 32)) + 1e-6) for k in range(33)]
    assert all(n >= k for k, n in enumerate(found))


SCORED = {**SCORES, "depth": DepthPrefix(Sure("margin")), "critic": Critic(lambda s, step: -(s.tokens % 7).double())}
ALL = {"quota": Quota(CosineMD4()), "threshold": Threshold(0.4), "factor": Factor(2.0), "bound": EntropyBound(2.0)}
ALL["stable"] = Stable(0.2, 9.0, 1)


@pytest.mark.parametrize("score", SCORED)
@pytest.mark.parametrize("rule", ALL)
def test_conformance(score, rule):
    check_conformance(Commit(SCORED[score], ALL[rule]))


@pytest.mark.parametrize("rule", ALL)
def test_conformance_with_blocks_and_editing(rule):
    check_conformance(Commit(Sure(), ALL[rule], jointly=True), 9, clock=Blocks(5))
    check_conformance(Commit(Sure(), ALL[rule], edit=0.2), 9)


def test_only_a_fixed_quota_claims_to_be_unbiased():
    assert Commit(Sure()).unbiased and Commit(Sure()).final and Commit().decide_first
    for kernel in (Commit(Sure(), Threshold()), Commit(Sure(), edit=0.9), Commit(SCORES["candidate"])):
        assert not kernel.unbiased
    assert not Commit(Random(), Threshold()).decide_first and not Commit(edit=0.9).decide_first
    assert Commit(Sure("margin"), Stable()).statistics == ("margin", "confidence", LOG_PROBS)
    assert check_kernel(Commit(Sure(), Threshold(0.3))) > 5  # taking several at once has its price


# -- editing -----------------------------------------------------------------------------------------------------------


def edited(edit, sure=0.95, t=0.5, s=0.25):
    """One step on a row: columns 0, 1 given, 2, 3 committed, 4..7 masked; all visible tokens wrong, 0 is right."""
    layout = Layout(VocabLayout(3), (Segment("x", "text", (8,)),))
    tokens = torch.full((4, 8), layout.vocab.mask)
    tokens[:, :4] = 2
    given = torch.zeros(4, 8, dtype=torch.bool)
    given[:, :2] = True
    batch = make_batch(layout, tokens, given=given)
    right = torch.tensor([sure, (1 - sure) / 2, (1 - sure) / 2], dtype=torch.float64).log()
    denoiser = Temperature(FunctionDenoiser(lambda state, step: right.expand(4, 8, 3)), 1.0)
    kernel = Commit(Sure(), Quota(), edit=edit)
    state = next(iterate(denoiser, kernel, batch, 1))[0]
    committed = torch.arange(8).expand(4, 8) < 4
    time = torch.where(given, 0.0, torch.full((4, 8), t, dtype=torch.float64))
    state = state._replace(tokens=tokens, committed=committed, time=time)
    step = Step(0, time, torch.where(given, 0.0, torch.full_like(time, s)))
    return state, *kernel(denoiser, state, step, Noise.seeded(0, batch.valid).step(0))


def test_a_wrong_committed_token_is_replaced_and_a_given_one_never():
    before, after, info = edited(0.9, sure=1 - 1e-12)
    assert (after.tokens[:, 2:4] == 0).all() and (after.tokens[:, :2] == 2).all()
    newly = after.committed & ~before.committed
    assert int(info.committed) == int(newly.sum()) == 4 * 3 and after.committed[:, :4].all()  # 6 s = 1.5: one stays
    assert info.head_rows == 4 * 6 and info.nfe == 1
    assert torch.equal(
        after.tokens == after.batch.layout.vocab.mask, ~after.committed
    )  # the sure one that must wait stays masked


def test_what_is_not_sure_or_not_asked_for_is_not_edited():
    for before, after, _ in (edited(0.97, sure=0.95), edited(None, sure=1 - 1e-12)):
        assert torch.equal(after.tokens[:, :4], before.tokens[:, :4])
    before, after, info = edited(0.9, t=0.0, s=0.0)  # at time 0 nothing moves any more
    assert torch.equal(after.tokens, before.tokens) and info.nfe == 0


def test_editing_asks_a_cavity_network_for_its_own_opinion():
    """The certain law of one sequence, one token planted wrong in a run: only an editing run ends with the right one."""
    p = torch.zeros(81, dtype=torch.float64)
    p[47] = 1.0
    law = Toy(p)

    def opinion(state, step):  # what each position's neighbours say, whatever it holds itself
        return (
            torch.nn.functional.one_hot(law.table[47], 3).double().log().clamp(min=-50).expand(*state.tokens.shape, 3)
        )

    class Planted(Commit):
        def __call__(self, denoiser, state, step, noise):
            state, info = super().__call__(denoiser, state, step, noise)
            if step.index == 0:
                first = state.committed.long().argmax(1, keepdim=True)
                wrong = (law.table[47].expand_as(state.tokens).gather(1, first) + 1) % 3
                state = state._replace(tokens=state.tokens.scatter(1, first, wrong))
            return state, info

    for edit, right in ((None, False), (0.9, True)):
        denoiser = FunctionDenoiser(opinion, kind="cavity")
        last, info = sample(denoiser, Planted(Sure(), edit=edit), law.batch(5), 4)
        assert bool((last.tokens == law.table[47]).all(1).eq(right).all()) and int(info.committed) == 20


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(0.0), "tau is 0.0"),
        (lambda: Threshold(1.5), "tau is 1.5"),
        (lambda: Factor(0.0), "factor is 0.0"),
        (lambda: EntropyBound(-0.1), "gamma is -0.1"),
        (lambda: EntropyBound(math.nan), "gamma is nan"),
        (lambda: Stable(tau=2.0), "tau is 2.0"),
        (lambda: Stable(eps=0.0), "eps is 0.0"),
        (lambda: Stable(history=0), "history is 0"),
        (lambda: Quota("cosine"), "give a Schedule"),
        (lambda: Commit(Sure(), CosineMD4()), "give a Rule"),
        (lambda: Commit("confidence"), "give a Score"),
        (lambda: Commit(Sure), "give a Score"),
        (lambda: Commit(edit=0.0), "edit is 0.0"),
        (lambda: Commit(edit=1.1), "edit is 1.1"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
