"""Caches: the exact ones change no token and feed less, the approximate ones are measured, the impossible ones refused."""

from dataclasses import asdict, dataclass

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Chain,
    Commit,
    DiscDiffConfig,
    DiscDiffModel,
    FirstHitting,
    Info,
    Layout,
    Modality,
    ModelDenoiser,
    Quota,
    Segment,
    Sure,
    Temperature,
    Threshold,
    Uniform,
    VocabLayout,
    make_batch,
    row_seeds,
    sample,
)
from discdiff.denoisers import ClassifierFree
from discdiff.denoisers.caches import (
    ApproximateDualCached,
    ApproximatePrefixCached,
    BlockCached,
    PrefixCached,
    SkipUnchanged,
)
from discdiff.kernels import Kernel, Recheck
from discdiff.processes import MaskOrReplace
from discdiff.scores import LeftToRight

VOCAB = VocabLayout(6, (Modality("code", 5, depth=2),))
PROMPT, TEXT = Segment("prompt", "text", (4,), noised=False), Segment("text", "text", (12,))
CODES = Segment("code", "code", (3,))
LAYOUTS = {
    "full": Layout(VOCAB, (PROMPT, TEXT)),
    "prefix": Layout(VOCAB, (PROMPT, TEXT), "prefix"),
    "hybrid": Layout(VOCAB, (PROMPT, TEXT, CODES), "hybrid"),
    "packed": Layout(VOCAB, (PROMPT, CODES, TEXT), "prefix", packed=True),
    "blocks": Layout(VOCAB, (PROMPT, TEXT), "block_causal", block=4),
    "told": Layout(VOCAB, (PROMPT, TEXT), "told_block_causal", block=3),
    "causal": Layout(VOCAB, (PROMPT, TEXT), "causal"),
}
EXACT = [
    ("prefix", PrefixCached),
    ("packed", PrefixCached),
    ("hybrid", PrefixCached),
    ("hybrid", BlockCached),
    ("blocks", PrefixCached),
    ("blocks", BlockCached),
    ("told", BlockCached),
    ("causal", BlockCached),
]
KERNELS = {
    "ancestral": Ancestral(),
    "uniform": Ancestral(Uniform()),
    "mask_or_replace": Ancestral(MaskOrReplace()),
    "site": Ancestral(site=lambda log_p, asked: 1.2 * log_p),
    "commit": Commit(Sure()),
    "threshold": Commit(Sure(), Threshold(0.5)),
    "edit": Commit(Sure(), edit=0.2),
    "first_hitting": FirstHitting(),
    "chain": Chain((Commit(Sure("margin")), Ancestral())),
    "loo": Recheck(Commit(Sure()), 0.6, 0.9, share=0.3, rescore="loo"),  # a call with copies of each row
}


def network(time: bool = False) -> DiscDiffModel:
    config = DiscDiffConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        vocab=asdict(VOCAB),
        initializer_range=0.3,
        time_conditioning=time,
        max_depth=2,
    )
    return DiscDiffModel.seeded(config, 0, torch.float64).eval()


MODEL, TIMED = network(), network(True)


def rows(name: str, count: int = 5, pad: bool = False, given: bool = False):
    """Different prompts; `pad` drops slots of some rows; `given` fixes some positions to come."""
    layout = LAYOUTS[name]
    place = torch.arange(layout.length).expand(count, -1)
    number = torch.arange(count)[:, None]
    blank = make_batch(layout, torch.full(place.shape, VOCAB.mask))
    known = ~blank.noisable | ((place + 2 * number) % 5 == 0) & given & (number > 0)
    tokens = torch.where(known, blank.ids((3 * number + place) % blank.alphabet.size), VOCAB.mask)
    valid = (place >= number % 3) & (place < layout.length - number % 2) if pad else None
    return make_batch(layout, tokens, valid=valid, given=known & blank.noisable)


class Fed:
    """Counts what enters the network."""

    def __init__(self, model):
        self.calls, self.rows, self.slots = 0, 0, 0
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        batch, columns = kwargs["batch"], kwargs.get("columns")
        self.calls, self.rows = self.calls + 1, self.rows + len(batch.tokens)
        self.slots += len(batch.tokens) * (len(batch.lead) if columns is None else len(columns))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def pair(kind, kernel, batch, steps=8, model=MODEL, shift=False, **settings):
    """Tokens and info, step by step, without and with a cache, the latter's counts checked against what was fed."""
    plain, slow = sample(ModelDenoiser(model, shift=shift), kernel, batch, steps, callback=lambda *_: None, **settings)
    with Fed(model) as fed:
        cached, fast = sample(kind(ModelDenoiser(model, shift=shift)), kernel, batch, steps, **settings)
    assert (fast.nfe, fast.network_rows) == (fed.calls, fed.rows)
    if not batch.layout.packed:
        assert fast.fed == fed.slots
    return plain.tokens, cached.tokens, slow, fast


APPROXIMATE = (ApproximatePrefixCached, ApproximateDualCached)
MAIN = (("prefix", PrefixCached), ("blocks", BlockCached))
CASES = [(*case, k) for case in EXACT for k in KERNELS if case in MAIN or k in ("ancestral", "uniform", "threshold")]


@pytest.mark.parametrize("name, kind, kernel", CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_exact_caches_change_no_token(name, kind, kernel):
    clock = Blocks(4) if name in ("blocks", "hybrid") else None
    plain, cached, slow, fast = pair(kind, KERNELS[kernel], rows(name), seed=5, clock=clock, steps=10)
    assert torch.equal(plain, cached) and len(plain.unique(dim=0)) == 5
    assert fast.fed < slow.fed and fast.nfe == slow.nfe


@pytest.mark.parametrize("name, kind", EXACT, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_padding_given_tokens_and_rows_alone(name, kind):
    batch = rows(name, pad=name != "packed", given=True)
    for kernel in (Ancestral(), Commit(Sure(), Threshold(0.5))):
        plain, cached, _, _ = pair(kind, kernel, batch, seed=5, clock=Blocks(4))
        assert torch.equal(plain, cached)
        for row in (0, 3):
            one = torch.tensor([row])
            alone, info = sample(
                kind(ModelDenoiser(MODEL)), kernel, batch.rows(one), 8, seed=row_seeds(5, 5)[one], clock=Blocks(4)
            )
            assert torch.equal(alone.tokens, cached[one])


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("steps", [3, 16])
def test_sampling_blocks_of_any_size(size, steps):
    """The clock's blocks need not be the network's, nor the steps fall between them."""
    for kernel in (Ancestral(), Commit(Sure())):
        plain, cached, slow, fast = pair(BlockCached, kernel, rows("blocks"), steps, seed=2, clock=Blocks(size))
        assert torch.equal(plain, cached) and fast.fed < slow.fed


def test_networks_that_know_the_time():
    for name, kind in (("prefix", PrefixCached), ("blocks", BlockCached)):
        for kernel in (Ancestral(), Commit(Sure(), Threshold(0.4)), FirstHitting()):
            plain, cached, slow, fast = pair(kind, kernel, rows(name), 12, TIMED, seed=3, clock=Blocks(4))
            assert torch.equal(plain, cached) and fast.fed < slow.fed


def test_shifted_networks_and_autoregression():
    """The slot before a finished block predicts the next block's first position: it is fed again."""
    for name, kind in (("prefix", PrefixCached), ("blocks", BlockCached), ("causal", BlockCached)):
        plain, cached, slow, fast = pair(
            kind, Commit(LeftToRight()), rows(name), 12, shift=True, seed=3, clock=Blocks(4)
        )
        assert torch.equal(plain, cached) and fast.fed < slow.fed
    plain, cached, _, fast = pair(BlockCached, Commit(LeftToRight()), rows("causal"), 16, shift=True, clock=Blocks(1))
    assert torch.equal(plain, cached)
    assert fast.nfe == 12 and fast.fed == 5 * (4 + 11), "prompt and tokens once, the usual decoding with a cache"


def test_exact_costs():
    _, _, slow, fast = pair(PrefixCached, Commit(Sure()), rows("prefix"), 12)
    assert (slow.fed, fast.fed) == (5 * 12 * 16, 5 * (4 + 12 * 12))
    _, _, slow, fast = pair(BlockCached, Commit(Sure()), rows("blocks"), 16, clock=Blocks(4))
    assert fast.nfe == slow.nfe == 12 and fast.fed == 5 * (4 * 12 + 3 * 4), "each finished block once, with the next"


@dataclass(frozen=True)
class Retake(Kernel):
    """Masks one position of an early, finished block again and draws it anew: what a cache must notice."""

    process: Absorbing = Absorbing()

    def __call__(self, denoiser, state, step, noise):
        where = (torch.arange(state.tokens.shape[1]) == 5) & (step.t < 0.5) & (state.row % 2 == 0)[:, None]
        masked = state._replace(tokens=torch.where(where, VOCAB.mask, state.tokens), committed=state.committed & ~where)
        again = Commit(Sure())(
            denoiser, masked, step._replace(s=torch.where(where, 0.0, step.s), t=where + step.t), noise
        )
        return again[0], again[1]._replace(committed=0)


def test_a_changed_token_makes_what_saw_it_stale():
    batch = rows("blocks", 40)
    kernel = Chain((Commit(Sure()), Retake()))
    plain, cached, _, _ = pair(BlockCached, kernel, batch, 32, seed=1, clock=Blocks(4))
    assert torch.equal(plain, cached)

    @dataclass(frozen=True)
    class Blind(BlockCached):
        def known(self, run, state, step):
            run.seen.fill_(-2)  # forgets what the stored slots were made from
            return super().known(run, state, step)

    _, wrong, _, _ = pair(Blind, kernel, batch, 32, seed=1, clock=Blocks(4))
    assert not torch.equal(plain, wrong)


def test_a_cache_where_later_slots_are_seen_would_be_wrong():
    """The control of the tests above: on full attention the same cache changes tokens, which is why it is refused."""

    @dataclass(frozen=True)
    class Forced(PrefixCached):
        def units(self, layout):
            return (torch.arange(layout.length) >= layout.prefix).long()

    plain, cached, _, _ = pair(Forced, Commit(Sure()), rows("full"), 12, seed=1)
    assert not torch.equal(plain, cached)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_caches(kind):
    layout = Layout(VOCAB, (TEXT,))
    batch = make_batch(layout, torch.full((16, 12), VOCAB.mask))
    for kernel in (Ancestral(), Commit(Sure())):
        plain, cached, _, _ = pair(kind, kernel, batch, 12, seed=4)
        assert torch.equal(plain, cached), "the block is the whole row"
    batch = rows("full", 32)
    agree = {}
    for size in (4, 16):
        plain, cached, slow, fast = pair(kind, Commit(Sure()), batch, 16, seed=4, clock=Blocks(size))
        agree[size] = float((plain == cached)[:, 4:].float().mean())
        assert fast.nfe == slow.nfe and fast.fed < slow.fed
        again, _ = sample(
            kind(ModelDenoiser(MODEL)), Commit(Sure()), batch.rows(torch.tensor([7])), 16,
            seed=row_seeds(4, 32)[7:8], clock=Blocks(size),
        )  # fmt: skip
        assert torch.equal(again.tokens[0], cached[7]), "a row depends on its neighbours"
    print(f"{kind.__name__}: tokens as without a cache {agree}, positions fed {fast.fed} of {slow.fed}")
    assert 0.3 < agree[4] < 1, "random weights, one changed token changes all that follow"


def test_approximate_costs():
    """A block of 4 begins with one full call; Fast-dLLM's counts."""
    batch, settings = rows("full"), {"clock": Blocks(4), "steps": 16}
    _, _, _, dual = pair(ApproximateDualCached, Commit(Sure()), batch, **settings)
    _, _, _, prefix = pair(ApproximatePrefixCached, Commit(Sure()), batch, **settings)
    assert dual.fed == 5 * 3 * (16 + 3 * 4) and prefix.fed == 5 * 3 * (16 + 3 * (12 + 8 + 4) // 3)
    padded = rows("full", pad=True, given=True)
    for kind in APPROXIMATE:
        state, _ = sample(kind(ModelDenoiser(MODEL)), Ancestral(), padded, 8, clock=Blocks(4))
        assert state.committed.all() and (state.tokens == padded.tokens)[padded.given].all()


@dataclass(frozen=True)
class Looking(Kernel):
    """Asks at every position at every step and commits one of them only every other step."""

    process: Absorbing = Absorbing()

    def __call__(self, denoiser, state, step, noise):
        after, info = Commit(Sure(), Quota())(denoiser, state, step, noise)
        waits = (step.index % 2 == 0) & (step.s > 0)
        tokens = torch.where(waits, state.tokens, after.tokens)
        committed = torch.where(waits, state.committed, after.committed)
        return after._replace(tokens=tokens, committed=committed), info._replace(committed=0)


@pytest.mark.parametrize("wrap", [lambda d: d, PrefixCached], ids=["plain", "prefix"])
def test_skip_unchanged(wrap):
    batch = rows("prefix", given=True)
    plain, skipped, slow, fast = pair(lambda d: SkipUnchanged(wrap(d)), Looking(), batch, 12, seed=2)
    assert torch.equal(plain, skipped) and fast.nfe <= slow.nfe // 2 + 1 and fast.head_rows == slow.head_rows
    late = Ancestral(site=lambda log_p, asked: log_p)
    plain, skipped, slow, fast = pair(lambda d: SkipUnchanged(wrap(d)), late, batch, 64, seed=2)
    assert torch.equal(plain, skipped) and fast.network_rows < 0.4 * slow.network_rows
    one = torch.tensor([3])
    alone, _ = sample(SkipUnchanged(wrap(ModelDenoiser(MODEL))), late, batch.rows(one), 64, seed=row_seeds(2, 5)[one])
    assert torch.equal(alone.tokens, skipped[one])


def test_wrappers_go_outside():
    batch = rows("blocks")
    runs = [
        sample(Temperature(d, 0.7), Commit(Sure()), batch, 12, seed=6, clock=Blocks(4))[0].tokens
        for d in (ModelDenoiser(MODEL), BlockCached(ModelDenoiser(MODEL)))
    ]
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match="around Temperature.*right around a ModelDenoiser"):
        BlockCached(Temperature(ModelDenoiser(MODEL), 0.7))


@pytest.mark.parametrize(
    "name, kind", [*MAIN, ("prefix", SkipUnchanged)], ids=lambda x: x if isinstance(x, str) else x.__name__
)
def test_guidance_runs_each_pass_on_a_cache_of_its_own(name, kind):
    batch, settings = rows(name, given=True), {"seed": 6, "clock": Blocks(4)}
    for kernel in (Ancestral(), Commit(Sure(), Threshold(0.5))):
        plain, slow = sample(ClassifierFree(ModelDenoiser(MODEL), 1.5), kernel, batch, 12, **settings)
        cached, fast = sample(ClassifierFree(kind(ModelDenoiser(MODEL)), 1.5), kernel, batch, 12, **settings)
        assert torch.equal(plain.tokens, cached.tokens) and (fast.fed < slow.fed or kind is SkipUnchanged)


@dataclass(frozen=True)
class AskBehind(Kernel):
    """Asks at the first free position, whatever moves."""

    process: Absorbing = Absorbing()

    def __call__(self, denoiser, state, step, noise):
        state, info = Commit(Sure())(denoiser, state, step, noise)
        denoiser(state, step).draw(torch.tensor([4]), noise)
        return state, info


def test_refusals():
    plain = ModelDenoiser(MODEL)
    cases = [
        (PrefixCached(plain), "full", "attention 'full'.*attention='prefix'"),
        (BlockCached(plain), "full", "attention 'full'.*attention='block_causal'"),
        (BlockCached(plain), "prefix", None),
        (SkipUnchanged(PrefixCached(plain)), "full", "attention 'full' with a prefix of 4"),
    ]
    with Fed(MODEL) as fed:
        for denoiser, name, message in cases:
            if message is None:
                denoiser.start(rows(name))
                continue
            with pytest.raises(ValueError, match=message):
                sample(denoiser, Commit(Sure()), rows(name), 4)
        no_prompt = make_batch(Layout(VOCAB, (TEXT,), "prefix"), torch.full((1, 12), VOCAB.mask))
        with pytest.raises(ValueError, match="prefix of 0 positions"):
            PrefixCached(plain).start(no_prompt)
        with pytest.raises(ValueError, match="FirstHitting|Ancestral or Commit"):
            sample(ApproximateDualCached(plain), FirstHitting(), rows("full"), 12)
        assert fed.calls == 0, "refused before the first network call"
    with pytest.raises(ValueError, match="time_conditioning=True"):
        SkipUnchanged(ModelDenoiser(TIMED))
    with pytest.raises(ValueError, match="call start"):
        sample(Started(BlockCached(plain)), Commit(Sure()), rows("blocks"), 4)
    with pytest.raises(ValueError, match="does not move"):
        sample(BlockCached(plain), AskBehind(), rows("blocks"), 12, clock=Blocks(4))
    with pytest.raises(ValueError, match="repeat in a call that stores them: ask about the rows themselves first"):
        sample(Twice(BlockCached(plain)), Commit(Sure()), rows("blocks"), 4)


class Started:
    """Forgets to start what is inside."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def start(self, batch):
        return self

    def __call__(self, state, step):
        return self.inner(state, step)


class Twice(Started):
    """Asks for every row twice."""

    def start(self, batch):
        return Twice(self.inner.start(batch))

    def __call__(self, state, step):
        return self.inner(state.repeat(2), step._replace(**{k: getattr(step, k).repeat(2, 1) for k in "ts"}))


def test_no_call_costs_nothing():
    run = SkipUnchanged(ModelDenoiser(MODEL))
    batch = rows("prefix")
    _, info = sample(run, Looking(), batch, 2)
    assert info.nfe == 1 and isinstance(info, Info)
