"""The benchmark of latency: what it times makes what the library makes, and its figures are ratios of one round."""

import pytest
import torch

from benchmarks import actions as benchmark
from discdiff.sampling import generate

TINY = benchmark.Size(32, 2, 2, prefix=9, chunk=2, dim=3, levels=8, words=20)


def test_the_ways_that_are_timed_make_what_the_library_makes():
    model = benchmark.network(TINY)
    row = benchmark.start(model, 4)
    made = generate(model, row, "confidence", steps=3, temperature=0.0)[0]
    assert torch.equal(made, benchmark.sampled(benchmark.sampling(model, 3), model, row, 3))
    with pytest.raises(RuntimeError, match="3 network calls instead of 4"):
        benchmark.sampled(benchmark.sampling(model, 3), model, row, 4)
    model = benchmark.network(TINY, causal=True)
    row = benchmark.start(model, 4)
    made = generate(model, row, "left_to_right", temperature=0.0)[0]
    assert torch.equal(made, benchmark.sampled(benchmark.one_by_one(model), model, row, 6))
    assert torch.equal(made, benchmark.left_to_right(model, row))
    assert not torch.equal(made[:, 9:], benchmark.left_to_right(model, benchmark.start(model, 5))[:, 9:])


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_the_plain_passes_are_those_of_the_network(packed):
    model = benchmark.network(TINY, packed)
    row, columns = benchmark.start(model, 4), torch.arange(2 if packed else 6) + 9
    whole = model.hidden(row)
    model.attend = kept = benchmark.Kept(model, 15)
    before = model.hidden(row, columns=torch.arange(9))
    kept.count, kept.store = 9, False
    behind = model.hidden(row, columns=columns)
    model.attend = None
    torch.testing.assert_close(torch.cat([before, behind], 1), whole, rtol=1e-5, atol=1e-5)


def test_figures_are_ratios_of_one_round():
    out = benchmark.rounds(1, TINY, steps=(2,))
    assert len(out) == 1 and all(x > 0 for x in out[0].values())
    one = {benchmark.LIBRARY: 9.0, benchmark.PLAIN: 6.0}
    for name in (benchmark.FLAT, benchmark.PACKED):
        parts = {"prefix": 1.0, "chunk": 0.5, (2, False): 2.5, (2, True): 3.0, (16, False): 10.0, (16, True): 12.0}
        one |= {(name, *(key if isinstance(key, tuple) else (key,))): x for key, x in parts.items()}
    rows = benchmark.figures([one, {key: 2 * x for key, x in one.items()}, one], steps=(2, 16))
    found = {row["figure"]: (row["value"], row.get("goal")) for row in rows}
    assert len(found) == len(rows) and found["autoregression, plain loop: time"][0] == 6000
    assert found["56 slots, 2 steps: autoregression / it"] == (pytest.approx(2.4), ">= 1")
    assert found["56 slots, 2 steps: it / its bound"] == (pytest.approx(1.25), "<= 1.15")
    assert found["56 slots, 16 steps: autoregression / it"] == (pytest.approx(0.6), None)
    assert found["56 slots, 2 steps, read out: it / its bound"] == (pytest.approx(1.5), None)
