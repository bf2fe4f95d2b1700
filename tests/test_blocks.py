"""Block diffusion's objective and the early stop: laws by enumeration, training that lowers the loss, conformance."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Commit,
    CosineMD4,
    DiscDiffConfig,
    DiscDiffModel,
    Elbo,
    FirstHitting,
    FunctionDenoiser,
    Layout,
    Linear,
    MaskOrReplace,
    ModelDenoiser,
    Noise,
    Segment,
    Sure,
    Threshold,
    Uniform,
    VocabLayout,
    make_batch,
    sample,
)
from discdiff.clocks import Shared
from discdiff.denoisers.caches import BlockCached
from discdiff.kernels.early_end import EarlyEnd
from discdiff.maskers import Bernoulli
from discdiff.metrics import nelbo
from discdiff.objectives.blocks import BlockElbo, BlockTimes, doubled
from discdiff.scores import LeftToRight
from discdiff.testing import check_conformance, noise_floor, total_variation, toy

JOINT = toy()
BLOCKED = Layout(JOINT.layout.vocab, JOINT.layout.segments, "block_causal", block=2)


@dataclass
class Output:
    loss: Any
    extras: Any


@dataclass(frozen=True)
class Exact:
    """The toy's exact conditionals on the doubled layout, in the form of a network whose head is the identity.

    A noised position knows the noised tokens of its block and, if `clean`, the clean ones of the blocks before.
    """

    process: Any
    clean: bool = True

    def __call__(self, batch, time, objective):
        assert torch.equal(time > 0, batch.free), "the clean copy, and what is given, is at time 0"
        symbols = batch.symbols(batch.tokens)
        noised, clean = symbols.chunk(2, 1)
        when, tables = time[:, :4], []
        unseen = 0 if isinstance(self.process, Uniform) else 3  # at time 1 it says nothing
        for block in range(2):
            place = torch.div(torch.arange(4), 2, rounding_mode="floor")
            x = torch.where(place < block, clean if self.clean else unseen, torch.where(place == block, noised, unseen))
            t = torch.where(place == block, when, torch.where((place < block) & torch.tensor(self.clean), 0.0, 1.0))
            tables.append(JOINT.posterior(x, t, self.process, "cavity")[:, 2 * block : 2 * block + 2])
        hidden = torch.cat([*tables, torch.zeros(len(symbols), 4, 3)], 1).double()
        return Output(*objective(self, hidden))

    def select(self, hidden, batch, index, shift):
        return hidden.reshape(-1, 3)[index]

    def head_weight(self, first, size, extras=()):
        return torch.eye(3, dtype=torch.float64)


ENTROPY = float(-(JOINT.p * JOINT.p.log()).sum())


@dataclass(frozen=True)
class Chosen:
    """Noise whose uniforms are given."""

    key: torch.Tensor
    position: torch.Tensor
    value: torch.Tensor

    def uniform(self, stream):
        return self.value


def nodes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre points and weights on (0, 1) under a substitution that is flat at both ends."""
    k = torch.arange(1, count, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    v = (values + 1) / 2
    return v**4 * (35 - 84 * v + 70 * v**2 - 20 * v**3), vectors[0] ** 2 * 140 * (v * (1 - v)) ** 3


PROCESSES = [Absorbing(), Absorbing(CosineMD4()), Uniform(), MaskOrReplace(survival=Linear())]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_sum_of_block_bounds_is_the_exact_likelihood(process, monkeypatch):
    """Every sequence, block, time of a quadrature and noisy block: sum_b bound_b(x) = -log p(x), for each x."""
    monkeypatch.setattr("discdiff.objectives.blocks.Noise", lambda key, position: Chosen(key, position, chosen))
    wanted = torch.cartesian_prod(*[torch.arange(4)] * 2)  # the noisy block, 3 = masked
    x0, noisy = JOINT.table.repeat_interleave(16, 0), wanted.repeat(81, 2)
    total = {True: torch.zeros(81).double(), False: torch.zeros(81).double()}
    for block in range(2):
        here = torch.arange(4) // 2 == block
        for time, weight in zip(*nodes(20), strict=True):
            keep, token, mask = (float(x) for x in process.marginal(time, 3))
            same, masked = noisy == x0, noisy == 3
            chance = torch.where(same, keep + token, torch.where(masked, mask, token)).double()[:, here].prod(1)
            level = torch.where(masked, keep + mask / 2, keep + mask + token * (noisy + 0.5))
            seen = chance > 0
            chosen = torch.where(same, 1e-12, level).double().repeat(1, 2)[seen]
            start = ((time - block * 0.6180339887498949) % 1.0).expand(int(seen.sum()))
            batch = make_batch(BLOCKED, x0[seen], given=(~here).expand(int(seen.sum()), -1))
            for clean, sums in total.items() if block else [(True, total[True])]:
                exact = Exact(process, clean)
                _, metrics = BlockElbo(Elbo(process, time_min=0.0))(exact, batch, Noise.seeded(0, batch.valid), start)
                nats = torch.zeros(len(x0)).double().masked_scatter(seen, chance[seen] * metrics["nats"])
                sums += weight * nats.view(81, 16).sum(1)
                if not block:
                    total[False] = total[True].clone()  # the first block has no block before it
    gap = (total[True] + JOINT.p.log()).abs().max()
    control = float((JOINT.p * total[False]).sum()) - ENTROPY
    print(
        f"{process}: largest |bound - NLL| {float(gap):.1e}; without clean blocks the mean is {control:.3f} nats above"
    )
    assert gap < 1e-5 and control > 0.1


SIZE, LENGTH, VOCAB = 4, 16, VocabLayout(5)
TEXT = Layout(VOCAB, (Segment("text", "text", (LENGTH,)),), "block_causal", block=SIZE)


def network(**more) -> DiscDiffModel:
    settings = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab": asdict(VOCAB), **more}
    return DiscDiffModel.seeded(DiscDiffConfig(**settings), 0, more.pop("dtype", torch.float32))


def chain(count: int, seed: int) -> torch.Tensor:
    """Rows of a Markov chain: with 0.85 the next symbol, else any. Unigram entropy log 5, per step 0.53 nats."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 5, (count,), generator=draw)]
    for _ in range(LENGTH - 1):
        jump = torch.rand(count, generator=draw) < 0.15
        rows.append(torch.where(jump, torch.randint(0, 5, (count,), generator=draw), (rows[-1] + 1) % 5))
    return torch.stack(rows, 1)


def test_training_reaches_below_the_unigram_and_samples_with_a_cache():
    model, objective = network(), BlockElbo(Elbo(time_min=0.05))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    data = chain(4096, 0)
    for step in range(120):
        place = torch.arange(step * 48, step * 48 + 48) % len(data)
        batch = make_batch(TEXT, data[place], check=False)
        noise = Noise.training(0, torch.full_like(place, step), place, batch.valid)
        loss, _ = objective(model, batch, noise, torch.frac(place.double() * 0.6180339887498949))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held = make_batch(TEXT, chain(256, 1))
    estimate = nelbo(model, BlockElbo(Elbo(time_min=1e-6)), [held], draws=4)
    source = (math.log(5) - 15 * (0.88 * math.log(0.88) + 0.12 * math.log(0.03))) / LENGTH
    print(f"bound {estimate.per(LENGTH):.3f} nats per token, unigram {math.log(5):.3f}, source {source:.3f}")
    assert estimate.per(LENGTH) < math.log(5) - 0.25
    empty = make_batch(TEXT, torch.full((64, LENGTH), VOCAB.mask))
    state, info = sample(BlockCached(ModelDenoiser(model)), Commit(Sure()), empty, LENGTH, clock=Blocks(SIZE))
    follows = ((state.tokens[:, 1:] - state.tokens[:, :-1]) % 5 == 1).float().mean()
    print(f"successors {follows:.2f} of 0.88, fed {info.fed} of {64 * LENGTH * LENGTH}")
    assert follows > 0.55


TOLD = Segment("told", "text", (3,), noised=False)
BEHIND = Layout(VOCAB, (TOLD, Segment("text", "text", (12,))), "told_block_causal", block=SIZE)


@pytest.mark.parametrize("layout", [TEXT, BEHIND])
def test_training_sees_what_sampling_sees(layout):
    """The hidden states of a noised block in training are those of sampling it after its clean predecessors."""
    model = network(dtype=torch.float64, initializer_range=0.3, time_conditioning=True).double().eval()
    length, blocks = layout.length, layout.tables().span
    clean = chain(3, 2)[:, :length]
    noise = Noise.seeded(0, torch.ones(3, length, dtype=torch.bool))
    seen = {}

    def watch(batch, time, objective):
        seen.update(tokens=batch.tokens, time=time, hidden=model(batch=batch, time=time).hidden)
        return model(batch=batch, time=time, objective=objective)

    loss, metrics = BlockElbo(Elbo(Uniform()))(watch, make_batch(layout, clean), noise, torch.tensor([0.2, 0.5, 0.9]))
    noisy = seen["tokens"][:, :length]
    assert (seen["tokens"][:, length:] == clean).all() and (noisy != clean).any()
    assert torch.allclose(metrics["row_loss"].mean(), loss) and torch.allclose(
        metrics["nats"] / length, metrics["row_loss"]
    )
    for block in range(int(blocks[-1]) + 1):
        known, here = blocks < block, blocks == block
        batch = make_batch(layout, torch.where(known, clean, noisy))
        time = torch.where(known, 0.0, seen["time"][:, :length])
        sampled, trained = model(batch=batch, time=time).hidden, seen["hidden"][:, :length]
        assert torch.allclose(sampled[:, here], trained[:, here], atol=1e-12)
    assert len(seen["time"][0].unique()) == 1 + length // SIZE and (seen["time"][:, length:] == 0).all()


def test_times_of_blocks_are_uniform_and_padding_carries_no_loss():
    batch = doubled(make_batch(TEXT, chain(2, 0)))
    assert batch.layout is doubled(make_batch(TEXT, chain(2, 0))).layout and batch.layout.is_doubled
    t = (torch.arange(1000).double() + 0.5) / 1000
    times = torch.stack([BlockTimes(0.1)(batch, float(one))[0, :LENGTH] for one in t]).sort(0).values
    assert torch.allclose(times, (0.1 + 0.9 * t)[:, None].expand_as(times), atol=2e-3)
    valid = torch.arange(LENGTH).expand(2, -1) < torch.tensor([[16], [9]])
    model, clean = network(initializer_range=0.3).eval(), chain(2, 3)
    noise, time = Noise.seeded(0, valid), torch.tensor([0.4, 0.7])
    found = [
        BlockElbo()(model, make_batch(TEXT, torch.where(valid, clean, other), valid=valid), noise, time)[1]["nats"]
        for other in (VOCAB.pad, 1)
    ]
    assert torch.allclose(*found) and bool((found[0] > 0).all())


def test_refusals_of_the_objective():
    with pytest.raises(ValueError, match="leave clock, masker and shift out"):
        BlockElbo(Elbo(masker=Bernoulli()))
    with pytest.raises(ValueError, match="leave clock, masker and shift out"):
        BlockElbo(Elbo(shift=True))
    assert BlockElbo().elbo.clock == Shared()
    with pytest.raises(ValueError, match="attention 'full'.*block_causal"):
        doubled(make_batch(replace(TEXT, attention="full", block=0), chain(2, 0)))


END = 2  # of the toy's symbols


def ending_law() -> torch.Tensor:
    """The toy's law with everything behind a first END made END."""
    table, p = JOINT.table, torch.zeros_like(JOINT.p)
    ended = (table == END).cumsum(1) > 0
    target = (torch.where(ended, END, table) * 3 ** torch.arange(3, -1, -1)).sum(1)
    return p.index_add(0, target, JOINT.p)


@pytest.mark.parametrize(
    "kernel, steps, clock",
    [(FirstHitting(), 4, None), (Commit(LeftToRight()), 4, None), (Commit(), 4, None), (FirstHitting(), 8, Blocks(2))],
    ids=["first_hitting", "left_to_right", "random", "blocks"],
)
def test_early_end_is_exact_where_only_ends_follow_an_end(kernel, steps, clock):
    draws = 6000
    results = {}
    for name, joint in (("ending", replace(JOINT, p=ending_law())), ("control", JOINT)):
        denoiser = joint.denoiser(Absorbing())
        settings = {"seed": 1, "clock": clock}
        plain, slow = sample(denoiser, kernel, joint.batch(draws), steps, **settings)
        state, fast = sample(denoiser, EarlyEnd(kernel, END), joint.batch(draws), steps, **settings)
        filled = torch.where(state.valid, state.tokens, END)
        law = joint.law(state.batch.symbols(filled))
        results[name] = total_variation(law, joint.p) / noise_floor(joint.p, draws)
        if name == "ending":
            assert torch.equal(filled, plain.tokens), "the very tokens of the run without it"
            assert fast.network_rows < slow.network_rows and fast.head_rows < slow.head_rows
            assert ((state.tokens == VocabLayout(3).pad) == ~state.valid).all() and (~state.valid).any()
    print(f"{type(kernel).__name__}: total variation / noise floor {results}")
    assert results["ending"] < 1.5 and results["control"] > 3


def test_only_a_settled_end_with_nothing_open_before_it_closes():
    """A premature end token, as confidence orders commit it, waits for what is before it; prompts' ends do not count."""
    layout = Layout(VocabLayout(4), (Segment("text", "text", (6,), extras=("EOS",)),))
    eos, mask = layout.vocab.special("EOS"), layout.vocab.mask
    tokens = torch.full((2, 6), mask)
    tokens[:, 0], given = eos, torch.zeros(2, 6, dtype=torch.bool)
    given[:, 0], given[1, 5], tokens[1, 5] = True, True, 3

    def logits(state, step):
        table = torch.full((*state.tokens.shape, 5), -torch.inf, dtype=torch.float64)
        table[..., 1] = 0.0
        table[:, 3] = torch.tensor([-torch.inf] * 4 + [0.0])  # position 3 is the end
        return table

    @dataclass(frozen=True)
    class Order:
        statistics: Any = ()
        needs_draw: bool = False
        peeks: bool = False

        def __call__(self, state, step, index, drawn, noise):
            score = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.5, 0.2], dtype=torch.float64)
            return score.expand(state.tokens.shape)

    states = []
    batch = make_batch(layout, tokens, given=given)
    _, info = sample(
        FunctionDenoiser(logits), EarlyEnd(Commit(Order())), batch, 5, callback=lambda s, i: states.append((s, i))
    )
    # 3 (the end), 2, 1: then 4 and 5 are closed and the run is over
    open_before = [s.valid.all() for s, _ in states]
    last = states[-1][0]
    assert open_before[:3] == [True] * 3 and last.valid.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1]]
    assert last.tokens[1, 5] == 3 and last.tokens[0].tolist() == [eos, 1, 1, eos, layout.vocab.pad, layout.vocab.pad]
    assert info.nfe == 3 and info.network_rows == 6


@pytest.mark.parametrize("token", ["EOC_code", 2])
@pytest.mark.parametrize(
    "kernel",
    [
        Ancestral(), Ancestral(Uniform()), Commit(Sure()), Commit(Sure(), Threshold(0.3)), Commit(Sure(), edit=0.3),
        FirstHitting(),
    ],
    ids=lambda k: type(k).__name__,
)  # fmt: skip
def test_early_end_conforms(kernel, token):
    check_conformance(EarlyEnd(kernel, token), **({} if token == 2 else {"steps": 9, "clock": Blocks(5)}))


def test_refusals_of_the_early_end():
    batch = make_batch(TEXT, torch.full((1, LENGTH), VOCAB.mask))
    calls = []

    def never(state, step):
        calls.append(step)
        return torch.zeros(*state.tokens.shape, 5)

    for token, message in (("EOS", "'EOS'.*legal in none of .'text'.*extras"), ("END", "unknown special"), (99, "99")):
        with pytest.raises(ValueError, match=message):
            sample(FunctionDenoiser(never), EarlyEnd(Commit(), token), batch, 4)
    several = make_batch(TEXT, batch.tokens, sample=(torch.arange(LENGTH) > 7).long()[None])
    with pytest.raises(ValueError, match="several samples"):
        sample(FunctionDenoiser(never), EarlyEnd(Commit(), 2), several, 4)
    assert not calls
