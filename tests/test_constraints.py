"""Constraints hold at every step, for every process, kernel, row and padding, and impossible ones are refused."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Commit,
    FirstHitting,
    FunctionDenoiser,
    Interpolating,
    Layout,
    Modality,
    Nucleus,
    PerSegment,
    Segment,
    Sure,
    TopK,
    Uniform,
    VocabLayout,
    iterate,
    make_batch,
    sample,
)
from discdiff.denoisers import Allowed, Banned, EndPolicy, Wrapper, template
from discdiff.noise import mix, row_seeds
from discdiff.scores import LeftToRight
from discdiff.testing import check_conformance
from discdiff.testing.conformance import _batch, _hashed, conformance_layout

LAYOUT = conformance_layout()  # prompt 2, "left" 4 of text, "right" 4 x 2 of codes with an end token
VOCAB = LAYOUT.vocab
CODE, END = VOCAB.range("code", 0)[0], VOCAB.special("EOC_code")
MIXED = PerSegment({"left": Absorbing(), "right": Uniform()})
SETS = {2: {0, 3}, 4: {1}, 6: {CODE + 2, END}, 9: set(range(CODE + 7, CODE + 9)), 13: {CODE + 13}}


def repr_name(part):
    return "-".join(
        [type(part).__name__, *(type(getattr(part, n)).__name__ for n in ("process", "score") if hasattr(part, n))]
    )


@dataclass(frozen=True)
class Wrapped:
    """A kernel that wraps its denoiser, to put wrappers through `check_conformance`."""

    inner: Any
    wrap: Any

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, denoiser, state, step, noise):
        return self.inner(self.wrap(denoiser).start(state.batch), state, step, noise)


def as_mask(sets, layout=LAYOUT):
    mask = torch.ones(layout.length, layout.vocab.total, dtype=torch.bool)
    for position, ids in sets.items():
        mask[position] = False
        mask[position, list(ids)] = True
    return mask


def empty(rows, layout=LAYOUT):
    tokens = torch.full((rows, layout.length), layout.vocab.mask)
    tokens[:, :2] = 1
    return make_batch(layout, tokens)


def cavity():
    return replace(_hashed(), kind="cavity")


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), Interpolating(), MIXED], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("denoiser", [_hashed, cavity])
def test_allowed_ids_at_every_process(process, denoiser):
    batch = empty(40)
    states = [s for s, _ in iterate(Allowed(denoiser(), SETS), Ancestral(process), batch, 9, seed=3)]
    free, _ = sample(denoiser(), Ancestral(process), batch, 9, seed=3)
    for position, ids in SETS.items():
        found = set(states[-1].tokens[:, position].tolist())
        assert found <= ids and (len(ids) == 1 or len(found) > 1)
        assert not set(free.tokens[:, position].tolist()) <= ids  # without the constraint other ids appear
    assert torch.equal(
        sample(Allowed(denoiser(), as_mask(SETS)), Ancestral(process), batch, 9, seed=3)[0].tokens, states[-1].tokens
    )


@pytest.mark.parametrize("kernel", [Ancestral(), Ancestral(MIXED), Commit(Sure()), FirstHitting()], ids=repr_name)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: Allowed(inner, SETS),
        lambda inner: Banned(Allowed(inner, as_mask(SETS)), (3, END, VOCAB.mask)),
        lambda inner: EndPolicy(inner, ("EOC_code",), minimum=3),
        lambda inner: Nucleus(EndPolicy(Banned(inner, (2,)), ("EOC_code",), until=0.5, penalty=1.0), 0.9),
    ],
    ids=["allowed", "both", "end", "nest"],
)
def test_conformance(kernel, wrap):
    check_conformance(Wrapped(kernel, wrap))


@pytest.mark.parametrize(
    "kernel", [Ancestral(), Ancestral(Uniform()), FirstHitting(), Commit(LeftToRight())], ids=repr_name
)
@pytest.mark.parametrize("masks", [False, True])
def test_rows_of_their_own(kernel, masks):
    """Kernels that decide first ask for some rows only: a row's sets must stay its own."""
    lines = [{2 + r % 4: {r % 5, (r + 1) % 5}, 6 + r: {VOCAB.range("code", r % 2)[0] + r % 7}} for r in range(8)]
    lines[5] = {}
    batch, seeds = empty(8), row_seeds(5, 8)
    chosen = torch.stack([as_mask(line) for line in lines]) if masks else lines
    state, info = sample(Allowed(_hashed(), chosen), kernel, batch, 30, seed=seeds)
    if isinstance(kernel, Ancestral):
        assert info.network_rows < 8 * info.nfe  # some rows were left out
    for row, line in enumerate(lines):
        alone, _ = sample(Allowed(_hashed(), line), kernel, empty(1), 30, seed=seeds[row : row + 1])
        assert torch.equal(alone.tokens[0], state.tokens[row])
        assert all(int(state.tokens[row, position]) in ids for position, ids in line.items())
    other, _ = sample(Allowed(_hashed(), chosen[::-1] if not masks else chosen.flip(0)), kernel, batch, 30, seed=seeds)
    assert not torch.equal(other.tokens, state.tokens)


def test_positions_are_the_layouts_not_columns():
    for pad in ((3, 0), (0, 3)):
        batch = _batch(pad)
        sets = {p: ids for p, ids in SETS.items() if bool(_batch().free[:, p].all())} or {2: {0, 3}}
        state, _ = sample(Allowed(_hashed(), sets), Ancestral(), batch, 6, seed=1)
        for position, ids in sets.items():
            here = (batch.slot == position) & batch.free
            assert set(state.tokens[here].tolist()) <= ids


def test_banned_everywhere_and_never_drawn():
    ids = (0, 4, CODE, CODE + 9, END)
    state, _ = sample(Banned(_hashed(), ids), Ancestral(), empty(60), 8, seed=2)
    free, _ = sample(_hashed(), Ancestral(), empty(60), 8, seed=2)
    moved = state.batch.free
    assert not torch.isin(state.tokens[moved], torch.tensor(ids)).any()
    assert all(bool((free.tokens[moved] == one).any()) for one in ids)


def test_the_mask_and_ids_beyond_the_tokenizer_are_never_drawn():
    vocab = VocabLayout(text_size=7, mask_id=5)  # the mask inside the text, the embedding padded to 384 rows
    layout = Layout(vocab, (Segment("text", "text", (5,)),))
    keen = FunctionDenoiser(lambda state, step: torch.arange(vocab.total).double().expand(*state.tokens.shape, -1))
    batch = make_batch(layout, torch.full((300, 5), 5))
    for denoiser in (keen, Banned(keen, (6,)), Allowed(keen, as_mask({}, layout)), Allowed(keen, {0: {1, 2}})):
        tokens = sample(denoiser, Ancestral(), batch, 3, seed=1)[0].tokens
        assert bool(((tokens >= 0) & (tokens < 7) & (tokens != 5)).all())
    assert not bool((sample(Banned(keen, (6,)), Ancestral(), batch, 3, seed=1)[0].tokens == 6).any())


def never(state, step):
    raise AssertionError("the network was asked")


@pytest.mark.parametrize(
    "wrap, message",
    [
        (lambda d: Allowed(d, {2: set()}), r"no token at row 0, position 2 \(segment 'left'\)"),
        (lambda d: Allowed(d, as_mask({7: {1}})), r"position 7 \(segment 'right'\)"),  # 1 is a text id
        (lambda d: Allowed(d, {2: {CODE}}), f"id {CODE} is not legal at position 2"),
        (lambda d: Allowed(d, {2: {VOCAB.mask}}), "the mask excepted"),
        (lambda d: Allowed(d, {14: {1}}), r"position 14 does not exist.*0\.\.13"),
        (lambda d: Allowed(d, {0: {1}}), "'prompt', which is not noised"),
        (lambda d: Allowed(d, [{2: {1}}]), "1 rows for a batch of 3"),
        (lambda d: Allowed(d, torch.ones(14, 7, dtype=torch.bool)), r"\(14, 7\): give a bool"),
        (lambda d: Banned(d, (-1,)), "-1"),
        (lambda d: Banned(d, tuple(range(5))), r"Banned leaves no token.*'left'"),
        (lambda d: EndPolicy(d), "EOS"),
    ],
)
def test_refused_before_the_run(wrap, message):
    with pytest.raises(ValueError, match=message):
        sample(wrap(FunctionDenoiser(never)), Ancestral(), empty(3), 4)


@pytest.mark.parametrize("knobs", [{"minimum": -1}, {"until": 1.5}, {"penalty": float("inf")}, {"end": ()}])
def test_end_policies_that_make_no_sense(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        EndPolicy(FunctionDenoiser(never), **knobs)


@pytest.mark.parametrize(
    "denoiser",
    [
        Allowed(TopK(_hashed(), 1), {p: {0} for p in range(2, 6)}),
        Allowed(Banned(_hashed(), (1,)), {3: {1}}),
        EndPolicy(Allowed(_hashed(), {p: {END} for p in (6, 8, 10, 12)}), ("EOC_code",), minimum=4),
    ],
)
def test_contradictions_are_errors_not_nan(denoiser):
    with pytest.raises(ValueError, match=r"no token is left at row \d, position \d.*loosen"):
        sample(denoiser, Ancestral(), empty(3), 4)


def test_a_started_constraint_of_a_wrapper_chain():
    denoiser = Nucleus(Allowed(_hashed(), SETS), 0.9)
    assert isinstance(denoiser.start(empty(2)).inner, Wrapper) and denoiser.reads == () and denoiser.kind == "own"
    state, step = next(iter(iterate(_hashed(), Ancestral(), empty(2), 3)))[0], None
    now = Allowed(_hashed(), {2: {3}})(state, step).log_probs(torch.tensor([2]))  # works without a start, too
    assert now.exp().tolist() == [[0, 0, 0, 1, 0]]


# -- templates -----------------------------------------------------------------------------------------------------


def test_template():
    batch, sets = template(empty(30), "A-?B", {"A": 4, "B": (2,), "-": None, "?": range(3)}, "left")
    assert sets == {4: frozenset(range(3))} and batch.given.sum(1).tolist() == [2] * 30
    state, _ = sample(Allowed(_hashed(), sets), Ancestral(), batch, 5, seed=1)
    left = state.tokens[:, 2:6]
    assert (left[:, 0] == 4).all() and (left[:, 3] == 2).all() and set(left[:, 2].tolist()) == {0, 1, 2}
    assert len(set(left[:, 1].tolist())) > 3
    whole = [None, None, 1, None, {0, 1}, None, *[None] * 8]
    assert template(empty(1), whole)[1] == {4: frozenset({0, 1})}
    padded, _ = template(_batch((2, 0)), [3, None, None, None], segment="left")
    assert bool((padded.tokens[padded.slot == 2][padded.valid[padded.slot == 2]] == 3).all())
    assert not bool(padded.given[~padded.valid].any())


@pytest.mark.parametrize(
    "pattern, classes, message",
    [
        ("AB", {"A": 0, "B": 1}, "each of 4 positions"),
        ("AAAX", {"A": 0}, "pattern is 'X'.*'A'"),
        ([CODE, None, None, None], None, f"id {CODE} is not legal at position 2"),
        ([None, None, None, {VOCAB.mask, 1}], None, "the mask excepted"),
    ],
)
def test_templates_that_do_not_fit(pattern, classes, message):
    with pytest.raises(ValueError, match=message):
        template(empty(2), pattern, classes, "left")


# -- ends ----------------------------------------------------------------------------------------------------------

TEXT = VocabLayout(text_size=4, modalities=(Modality("code", 3),))
EOS, SEP = TEXT.special("EOS"), TEXT.special("SEP")
STORY = Layout(TEXT, (Segment("story", "text", (8,), extras=("EOS", "SEP")), Segment("code", "code", (3,))))


def eager(state, step):
    """EOS has probability 1/2 everywhere, SEP 1/10."""
    return torch.tensor([0.1, 0.1, 0.1, 0.1, 0.5, 0.1]).log().expand(*state.tokens.shape, 6)


def story(rows, prompt=()):
    tokens, known = torch.full((rows, 11), TEXT.mask), torch.zeros(rows, 11, dtype=torch.bool)
    for i, token in enumerate(prompt):
        tokens[:, i], known[:, i] = token, True
    return make_batch(STORY, tokens, given=known)


def ends(tokens):
    """Per row: where the first EOS stands (8 = nowhere), and whether anything but EOS follows."""
    is_end = tokens[:, :8] == EOS
    first = torch.where(is_end.any(1), is_end.long().argmax(1), 8)
    return first, bool((~is_end & (torch.arange(8) > first[:, None])).any())


@pytest.mark.parametrize("kernel", [Commit(), Commit(LeftToRight()), FirstHitting(), Commit(Sure())], ids=repr_name)
def test_one_by_one_only_ends_follow_an_end(kernel):
    plain, _ = sample(FunctionDenoiser(eager), kernel, story(200), 11, seed=4)
    assert ends(plain.tokens)[1]
    denoiser = EndPolicy(FunctionDenoiser(eager), minimum=2)
    first, broken = ends(sample(denoiser, kernel, story(200), 11, seed=4)[0].tokens)
    assert not broken and int(first.min()) >= 2 and (first == 2).any() and len(first.unique()) > 2


def test_prompts_do_not_end_the_answer():
    batch = story(200, (1, EOS, 2))
    state, _ = sample(EndPolicy(FunctionDenoiser(eager), minimum=2), Commit(), batch, 11, seed=4)
    rest = state.tokens[:, 3:8]
    assert not (rest[:, :2] == EOS).any() and (rest[:, 2] == EOS).any() and len(rest.unique(dim=0)) > 20
    given = torch.zeros(200, 11, dtype=torch.bool)
    given[:, 6] = True
    infill = make_batch(STORY, torch.where(given, 3, TEXT.mask), given=given)
    state, _ = sample(EndPolicy(FunctionDenoiser(eager)), Commit(), infill, 11, seed=4)
    assert not (state.tokens[:, :6] == EOS).any() and (state.tokens[:, 7] == EOS).any()  # a given word still follows


def test_time_penalty_filling_and_no_tail():
    def run(**knobs):
        return sample(EndPolicy(FunctionDenoiser(eager), **knobs), Commit(), story(500), 11, seed=4)[0].tokens[:, :8]

    late = [
        s
        for s, _ in iterate(EndPolicy(FunctionDenoiser(eager), until=0.4, tail=False), Commit(), story(500), 11, seed=4)
    ]
    early = [bool((s.tokens == EOS).any()) for s in late]
    assert not any(early[:7]) and early[-1]  # steps start at 1, 10/11, ..., the first at most 0.4 is 4/11
    share = [float((run(tail=False, penalty=x)[:, -1] == EOS).double().mean()) for x in (0.0, 2.0)]
    rare = 0.5 * 0.1353 / (0.5 * 0.1353 + 0.5)
    assert share[0] == pytest.approx(0.5, abs=0.07) and share[1] == pytest.approx(rare, abs=0.05)
    filled = run(fill=("SEP",))
    first, _ = ends(filled)
    after = filled[torch.arange(8) > first[:, None]]
    assert set(after.tolist()) == {SEP} and int(first.min()) < 3
    assert ends(run(tail=False))[0].unique().numel() > 2


def test_packed_samples_and_parallel_steps():
    slot, sample_of = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]), torch.tensor([[0] * 5 + [1] * 4])
    rows, tokens = 300, torch.full((300, 9), TEXT.mask)
    batch = make_batch(STORY, tokens, slot=slot.repeat(rows, 1), sample=sample_of.repeat(rows, 1))
    state, _ = sample(EndPolicy(FunctionDenoiser(eager), minimum=1), Commit(), batch, 9, seed=1)
    two = state.tokens[:, 5:]
    assert not (state.tokens[:, 0] == EOS).any() and not (two[:, 0] == EOS).any()
    assert ((state.tokens[:, 4] == EOS) & (two[:, 1] != EOS)).any()  # one sample's end is not the other's
    at_once, _ = sample(EndPolicy(FunctionDenoiser(eager)), Commit(), story(200), 1, seed=4)
    assert ends(at_once.tokens)[1]  # documented: positions of one step do not see each other


def test_hashed_rows_are_not_constant():
    """The stand-in network really varies by row and position, else the tests above would prove little."""
    state = next(iter(iterate(_hashed(), Ancestral(), empty(3), 2)))[0]
    table = _hashed()(state, None).log_probs(torch.arange(2, 6))
    assert len(table.unique(dim=0)) == 4 and int(mix(torch.tensor(1))) != 1
