"""Rows of their own length: prompts and padding, blocks counted from the prompt's end, text longer than the model."""

from dataclasses import asdict

import pytest
import torch

from discdiff import (
    Ancestral,
    Commit,
    DiscDiffConfig,
    DiscDiffModel,
    FirstHitting,
    FunctionDenoiser,
    Layout,
    Modality,
    ModelDenoiser,
    Segment,
    Sure,
    VocabLayout,
    iterate,
    make_batch,
    row_seeds,
    sample,
)
from discdiff.denoisers.caches import ApproximateDualCached, BlockCached, PrefixCached
from discdiff.kernels.early_end import EarlyEnd
from discdiff.sampling.lengths import FreeBlocks, prompts, stride_sample
from discdiff.scores import LeftToRight

VOCAB = VocabLayout(7, (Modality("code", 5, depth=2),))
TEXT = Layout(VOCAB, (Segment("text", "text", (16,)),))
PREFIX = Layout(VOCAB, (Segment("prompt", "text", (6,), noised=False), Segment("text", "text", (10,))), "prefix")
CAUSAL = Layout(VOCAB, (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (15,))), "causal")
CONFIG = DiscDiffConfig(hidden_size=32, num_layers=2, num_heads=2, vocab=asdict(VOCAB), initializer_range=0.3)
MODEL = DiscDiffModel.seeded(CONFIG, 0, torch.float64).eval()
TEXTS, LENGTHS = ([1, 2, 3, 4, 5], [6], torch.tensor([2, 2, 0])), (3, 7, 6)


def new_tokens(state, batch):
    return [row[free] for row, free in zip(state.tokens, batch.free, strict=True)]


@pytest.mark.parametrize("layout", [VOCAB, TEXT, PREFIX, CAUSAL], ids=["vocab", "text", "prefix", "causal"])
@pytest.mark.parametrize("kernel", [Ancestral(), Commit(Sure()), FirstHitting()], ids=lambda k: type(k).__name__)
def test_each_row_makes_its_own_number_of_tokens_wherever_it_is_padded(layout, kernel):
    found = {}
    for pad in ("left", "right"):
        batch = prompts(layout, TEXTS, LENGTHS, pad=pad)
        state, _ = sample(ModelDenoiser(MODEL), kernel, batch, 8, seed=3, clock=FreeBlocks(3))
        assert batch.tokens.shape == (3, 9) and (state.tokens[~batch.valid] == VOCAB.pad).all()
        assert [len(x) for x in new_tokens(state, batch)] == list(LENGTHS)
        found[pad] = [row[valid].tolist() for row, valid in zip(state.tokens, batch.valid, strict=True)]
        assert [row[: len(t)] for row, t in zip(found[pad], TEXTS, strict=True)] == [list(map(int, t)) for t in TEXTS]
    assert found["left"] == found["right"]
    for row in range(3):
        alone = prompts(layout, TEXTS[row : row + 1], LENGTHS[row])
        state, _ = sample(
            ModelDenoiser(MODEL), kernel, alone, 8, seed=row_seeds(3, 3)[row : row + 1], clock=FreeBlocks(3)
        )
        assert state.tokens[alone.valid].tolist() == found["left"][row], "a row alone differs"


@pytest.mark.parametrize("pad", ["left", "right"])
def test_caches_of_rows_of_their_own_length(pad):
    blocks = Layout(VOCAB, (Segment("text", "text", (16,)),), "block_causal", block=4)
    for layout, kind in ((PREFIX, PrefixCached), (blocks, BlockCached), (CAUSAL, BlockCached)):
        batch = prompts(layout, TEXTS, LENGTHS, pad=pad)
        for kernel in (Ancestral(), Commit(Sure())):
            (plain, slow), (cached, fast) = (
                sample(d, kernel, batch, 9, seed=1, clock=FreeBlocks(2), callback=lambda *step: None)
                for d in (ModelDenoiser(MODEL), kind(ModelDenoiser(MODEL)))
            )
            assert torch.equal(plain.tokens, cached.tokens) and fast.fed < slow.fed and fast.nfe == slow.nfe
    if pad == "left":
        tokens = []
        for side in ("left", "right"):
            batch = prompts(TEXT, TEXTS, LENGTHS, pad=side)
            denoiser = ApproximateDualCached(ModelDenoiser(MODEL))
            state, _ = sample(denoiser, Commit(Sure()), batch, 9, seed=1, clock=FreeBlocks(2))
            tokens.append(state.tokens[state.valid])
        assert torch.equal(*tokens), "approximate, but the same wherever rows are padded"


def test_what_prompts_makes():
    batch = prompts(PREFIX, TEXTS, LENGTHS)
    assert batch.slot[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8], "new tokens begin behind the prefix"
    assert batch.slot[1, :8].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    long = prompts(PREFIX, [list(range(7)) + [0]], 2)
    assert long.slot.tolist() == [list(range(10))] and long.given[0].tolist() == [True] * 8 + [False] * 2
    whole = prompts(TEXT, [[1, 2]], 14)
    assert whole.unrestricted and not prompts(TEXT, [[1, 2]], 13).unrestricted
    assert prompts(VOCAB, [[], [1]], 4).layout.length == 5
    assert prompts(VOCAB, TEXTS, 2).free.sum(1).tolist() == [2, 2, 2]


def test_free_blocks():
    batch = prompts(TEXT, TEXTS, LENGTHS, pad="left")
    clock = FreeBlocks(3)
    for t, row in ((1.0, [1] * 7), (2 / 3, [0] * 3 + [1] * 4), (0.5, [0] * 3 + [0.5] * 3 + [1]), (0.0, [0] * 7)):
        got = clock(batch, t)[1][batch.free[1]]
        assert torch.allclose(got, torch.tensor(row, dtype=torch.float64), atol=1e-12)
    assert clock(batch, 0.5)[0][batch.free[0]].tolist() == [0.5] * 3, "one block, the whole run"
    for t in (0.15, 0.4, 0.81):
        slope = (clock(batch, t + 1e-6) - clock(batch, t - 1e-6)) / 2e-6
        assert torch.allclose(clock.rate(batch, t)[batch.free], slope[batch.free], atol=1e-6)
    seen = []
    for state, _ in iterate(ModelDenoiser(MODEL), Commit(Sure()), batch, 6, clock=clock):
        open_blocks = [
            {int(i) // 3 for i in (~c[f]).nonzero()[:, 0]} for c, f in zip(state.committed, batch.free, strict=True)
        ]
        partly = [
            [b for b in blocks if bool(c[f][3 * b : 3 * b + 3].any())]
            for blocks, c, f in zip(open_blocks, state.committed, batch.free, strict=True)
        ]
        assert all(not part or part[0] == min(blocks) for part, blocks in zip(partly, open_blocks, strict=True))
        seen.append(open_blocks)
    assert seen[0] == [{0}, {0, 1, 2}, {0, 1}] and seen[-1] == [set()] * 3


def test_text_longer_than_the_model():
    layout = Layout(VOCAB, (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (8,))))
    tokens = torch.full((3, 9), VOCAB.mask)
    tokens[:, 0], tokens[:, 1] = VOCAB.special("BOS"), torch.tensor([1, 2, 3])
    given = torch.arange(9).expand(3, -1) == 1
    batch, settings = make_batch(layout, tokens, given=given), {"stride": 3, "seed": 5}
    windows = []

    def look(state, info):
        windows.append(state.batch.tokens)

    out, info = stride_sample(ModelDenoiser(MODEL), Commit(Sure()), batch, 8, total=16, callback=look, **settings)
    first, cost = sample(ModelDenoiser(MODEL), Commit(Sure()), batch, 8, seed=5)
    assert out.shape == (3, 16) and torch.equal(out[:, :8], first.tokens[:, 1:]) and (out < 7).all()
    assert int(info.committed) == 3 * 15 and info.nfe > cost.nfe
    last = windows[-1]
    assert torch.equal(last[:, 1:-2], out[:, 8:14]) and (last[:, -2:] == VOCAB.mask).all(), (
        "14 .. 16: the rest of a stride"
    )
    assert (last[:, 0] == VOCAB.special("BOS")).all()
    one = torch.tensor([2])
    alone, _ = stride_sample(
        ModelDenoiser(MODEL), Commit(Sure()), batch.rows(one), 8, total=16, stride=3, seed=row_seeds(5, 3)[one]
    )
    assert torch.equal(alone[0], out[2])
    codes = Layout(VOCAB, (Segment("code", "code", (4,)),))
    out, _ = stride_sample(
        ModelDenoiser(MODEL), Ancestral(), make_batch(codes, torch.full((2, 8), VOCAB.mask)), 8, total=7, stride=2
    )
    first, second = VOCAB.range("code", 0)[0], VOCAB.range("code", 1)[0]
    assert out.shape == (2, 14) and (out[:, ::2] - first < 5).all() and (out[:, 1::2] - second >= 0).all()


def test_rounds_have_their_own_noise():
    """With a network that knows nothing the rounds' tails are independent draws, not one draw again and again."""
    flat = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 7))
    batch = make_batch(TEXT, torch.full((400, 16), VOCAB.mask))
    out, _ = stride_sample(flat, Commit(LeftToRight()), batch, 16, total=40, stride=8, seed=1)
    tails = out.view(400, 5, 8)
    for i in range(5):
        for j in range(i):
            assert abs(float((tails[:, i] == tails[:, j]).float().mean()) - 1 / 7) < 0.03


def test_ended_rows_stay_ended():
    layout = Layout(VOCAB, (Segment("text", "text", (6,), extras=("EOS",)),))
    logits = torch.zeros(8)
    logits[7] = 1.0
    flat = FunctionDenoiser(lambda state, step: logits.expand(*state.tokens.shape, 8))
    batch = make_batch(layout, torch.full((60, 6), VOCAB.mask))
    out, info = stride_sample(flat, EarlyEnd(Commit(LeftToRight())), batch, 6, total=30, stride=4)
    eos = VOCAB.special("EOS")
    end = (out == eos).cumsum(1)
    behind = (end - (out == eos).long()) > 0
    assert (out[behind] == VOCAB.pad).all() and (out[~behind] != VOCAB.pad).all() and (end[:, -1] == 1).sum() > 50
    sure = FunctionDenoiser(lambda state, step: (logits * 1e9).expand(*state.tokens.shape, 8))
    out, info = stride_sample(sure, EarlyEnd(Commit(LeftToRight())), batch, 6, total=30, stride=4)
    assert info.nfe == 1 and out.shape == (60, 30) and (out[:, 1:] == VOCAB.pad).all()


def never(state, step):
    raise AssertionError("the network was called")


@pytest.mark.parametrize(
    "texts, lengths, settings, message",
    [
        ([], 3, {}, "no prompts"),
        ([[1]], [2, 3], {}, r"lengths are \[2, 3\] for 1 prompts"),
        ([[1]], 0, {}, "at least 1"),
        ([[1], [1] * 15], 2, {}, "row 1: a prompt of 15 and 2 new tokens reach slot 17, there are 16"),
        ([[1] * 6], 6, {"max_length": 11}, "reach slot 12, there are 11"),
        ([[1]], 3, {"pad": "both"}, "pad is 'both'"),
        ([[9999]], 3, {}, "id 9999"),
    ],
)
def test_refused_prompts(texts, lengths, settings, message):
    with pytest.raises(ValueError, match=message):
        prompts(TEXT, texts, lengths, **settings)


def test_refusals_before_the_first_call():
    batch = prompts(TEXT, TEXTS, LENGTHS)
    run = FunctionDenoiser(never)
    with pytest.raises(ValueError, match="block size 0"):
        FreeBlocks(0)
    with pytest.raises(ValueError, match="block size 17 exceeds the layout's 16"):
        sample(run, Commit(), batch, 4, clock=FreeBlocks(17))
    with pytest.raises(ValueError, match="block size 3 does not divide the 7 positions"):
        sample(run, Commit(), batch, 4, clock=FreeBlocks(3, strict=True))
    FreeBlocks(1, strict=True)(batch, 0.5)
    with pytest.raises(ValueError, match="single slots"):
        prompts(TEXT.doubled(4), [[1]], 3)
    empty = make_batch(TEXT, torch.full((1, 16), VOCAB.mask))
    for total, stride in ((15, 4), (20, 0), (20, 17)):
        with pytest.raises(ValueError, match=f"stride {stride}.*16 slots, total {total}"):
            stride_sample(run, Commit(), empty, 4, total=total, stride=stride)
    with pytest.raises(ValueError, match="without padding"):
        stride_sample(run, Commit(), batch, 4, total=32, stride=4)
