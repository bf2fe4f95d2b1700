"""Trying policies in many environments at once, and intervals of what comes out."""

import numpy as np
import pytest
from line_toy import Line

from tasks.vla.intervals import difference, interval
from tasks.vla.rollout import Observations, evaluate, successes


def wander(shown: Observations) -> np.ndarray:
    """Chunks of 3, each row from its seed and call alone."""
    assert shown.state.dtype == np.float32 and shown.proprio.shape == (len(shown.seed), 4)
    rows = zip(shown.seed, shown.call, shown.instruction, strict=True)
    chunks = [np.random.default_rng([s, c, len(w)]).uniform(-1, 1.6, (3, 4)) for s, c, w in rows]
    return np.stack(chunks) + 0.2 * shown.state[:, :1, None]


def test_an_episode_does_not_depend_on_the_others():
    Line.built = Line.closed = 0
    tasks, seeds = ("reach", "push", "door-open"), range(12)
    alone = evaluate(wander, tasks, seeds, make=Line, batch=1, cap=40)
    assert Line.built == 3 and Line.closed == 3
    assert [(r.task, r.seed) for r in alone] == [(t, s) for t in tasks for s in seeds]
    assert 0 < sum(r.success for r in alone) < 36 and len({r.length for r in alone}) > 5
    for batch in (5, 36, 99):
        together = evaluate(wander, tasks, seeds, make=Line, batch=batch, cap=40)
        assert together == alone and all(np.array_equal(a.path, b.path) for a, b in zip(alone, together))
    assert Line.built == Line.closed
    assert evaluate(wander, ("push",), (3, 1), make=Line, cap=40) == [alone[15], alone[13]]
    for r in alone:
        assert r.calls == -(-r.length // 3) and r.path.shape == (r.length + 1, 3)
        assert r.success == (r.path[-1, 0] >= 1) and (r.length == 40 or abs(r.path[-1, 0]) >= 1)
    assert successes(alone, 4)[4, "reach", 0] == alone[0].success


def test_calls_are_batched_and_chunks_executed():
    sizes = []

    def policy(shown):
        sizes.append(len(shown.seed))
        assert shown.call == [len(sizes) - 1] * 4 and shown.pictures.shape == (4, 8, 8, 3)
        return np.full((4, 5, 4), 0.1)

    found = evaluate(
        policy, ("reach",), range(4), make=Line, cap=12, execute=2, size=8, keep={("reach", 2)}, keep_size=9
    )
    assert sizes == [4] * 6 and {(r.length, r.calls, r.success) for r in found} == {(12, 6, False)}
    assert [r.frames is not None for r in found] == [False, False, True, False]
    assert found[2].frames.shape == (4, 9, 9, 3)  # at the start and each fourth step


def test_what_a_policy_may_not_do():
    for actions, match in (
        (np.zeros((2, 3, 5)), "2, chunk, 4"),
        (np.zeros((1, 3, 4)), "2, chunk, 4"),
        (np.zeros((2, 3, 4)), "at least 8"),
        (np.full((2, 8, 4), np.nan), "64: of them are not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            evaluate(lambda shown, a=actions: a, ("reach",), (0, 1), make=Line, execute=8)
    for wrong in ({"cap": 0}, {"cap": 501}, {"batch": 0}, {"execute": -1}, {"keep": [("reach", 5)]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            evaluate(wander, ("reach",), (0, 1), make=Line, **wrong)
    with pytest.raises(ValueError, match="none of them twice"):
        evaluate(wander, ("reach", "reach"), (0,), make=Line)


def test_intervals():
    rng = np.random.default_rng(1)
    x = (rng.random(600) < 0.8).astype(float)
    found = interval(x)
    half = 1.96 * np.sqrt(x.mean() * (1 - x.mean()) / 600)
    assert found.mean == x.mean() and found == interval(x)
    assert abs(found.low - (x.mean() - half)) < 0.004 and abs(found.high - (x.mean() + half)) < 0.004
    assert interval([1.0] * 9) == (1, 1, 1) and interval(x, level=0.5).high < found.high
    better = np.where(rng.random(600) < 0.05, 1.0, x)  # nearly the same episodes fail
    first, second = ({("task", i): v for i, v in enumerate(y)} for y in (better, x))
    paired = difference(first, second)
    assert 0 < paired.low < paired.mean == pytest.approx(better.mean() - x.mean()) and paired.high - paired.low < half
    backwards = difference(dict(reversed(second.items())), first)
    assert backwards.mean == pytest.approx(-paired.mean) and abs(backwards.low + paired.high) < 0.002
    with pytest.raises(ValueError, match="1 are of one method only"):
        difference(first, {k: v for k, v in second.items() if k[1]})
    for wrong in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError):
            interval(wrong)
