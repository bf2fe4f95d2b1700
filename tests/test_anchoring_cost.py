"""What the cost benchmark counts, on a toy whose multiply-adds are known, and that anchored sampling stays within its goal."""

import pytest
import torch
from anchoring_toy import CONFIDENT, ROWS, SLOTS, batch_of, soft_of
from table_toy import network

from benchmarks.posterior_cost import SHARE, alive, counted, decoding, flops
from discdiff import Anchored, Descent, Measured, ModelDenoiser, SoftDecode, sample

STEPS, INNER, WIDTH, CODES = 3, 5, 64, 12


def toy():
    """A decoder of two layers, 4 -> 64 -> 6 for each slot, and a network."""
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randn(n, generator=draw, dtype=torch.float64) / 4 for n in ((4, WIDTH), (WIDTH, 6)))
    plain = soft_of("vq")
    soft = SoftDecode(plain.codebook, lambda e: torch.tanh(e @ one) @ two, plain.quantise, "code")
    batch = batch_of(soft, given=False)
    model = network(batch.layout.vocab, time_conditioning=False).eval()
    y = torch.randn(ROWS, SLOTS * 6, generator=draw, dtype=torch.float64)
    return soft, batch, ModelDenoiser(model), Measured(lambda x: x.flatten(1), y)


def test_the_run_is_within_its_goal_and_the_counts_are_right():
    soft, batch, plain, term = toy()

    def run(denoiser):
        return lambda: sample(denoiser, CONFIDENT, batch, STEPS)[1]

    anchored = Anchored(plain, soft, term, Descent(INNER))
    table = ROWS * SLOTS * CODES * 8
    figures = {
        row["figure"]: row["value"]
        for row in counted(run(anchored), run(plain), decoding(soft, term, SLOTS), ROWS, table)
    }
    assert figures["decoder passes"] == STEPS * INNER and figures["a table of codes"] == table / 2**20
    pass_ = 2 * ROWS * SLOTS * (4 * WIDTH + WIDTH * 6)  # there and, for the embeddings alone, back
    assert figures["multiply-adds of a decoder pass with gradient"] == pytest.approx(pass_ / 1e9)
    calls = flops(run(plain))
    assert figures["multiply-adds of its network calls"] == pytest.approx(calls / 1e9)
    share, most = figures[SHARE], figures["multiply-adds of the run"] * 1e9
    assert most == pytest.approx(share * (calls + STEPS * INNER * pass_)) and 1 < share <= 1.3
    # at most, of all sites open: codes nearest, expectations, pulls, <p, G>; the last expectation and choice; the first look
    wide, heads = ROWS * SLOTS * CODES, STEPS * ROWS * SLOTS * CODES * 16
    extra = most - calls - STEPS * INNER * pass_
    assert 0 < extra < STEPS * (INNER + 1) * wide * (3 * 4 + 2) + heads + pass_
    one, other = (figures[f"most bytes alive, {name}"] for name in ("the run", "decoding with a gradient"))
    assert figures["most bytes alive, the run against decoding"] == one / other > 1 and one * 2**20 > 6 * table


def test_two_runs_must_be_alike():
    soft, batch, plain, term = toy()
    whole, other = (lambda n=n: sample(plain, CONFIDENT, batch, n)[1] for n in (2, 3))
    with pytest.raises(ValueError, match=r"network rows is \(8, 12\): the two runs differ"):
        counted(whole, other, decoding(soft, term, SLOTS), ROWS, 1)


def test_bytes_that_are_alive_at_once():
    def work():
        a = torch.zeros(1000)
        b = a + 1  # two at once
        del a
        c = b[:500]  # a view costs nothing
        return (c * 2).sum()

    assert 8000 <= alive(work) < 8000 + 64
    weights = torch.zeros(10, 100)
    assert alive(lambda: (weights[:5].mul_(2), weights.T + 0)[1]) == 4000  # what was there is not counted
    assert flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 3 * 5 * 7
