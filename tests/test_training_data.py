"""Training settings, the keyed order, times and noise of rows, and how items become batches."""

import numpy as np
import pytest
import torch
from training_toy import LAYOUT, rows, trainer

from discdiff.config import build
from discdiff.layout import pack
from discdiff.training import (
    KeyedSampler,
    TrainingSettings,
    collate,
    keyed_order,
    keyed_times,
    token_batch,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- settings


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", 0), ("steps", "100"), ("steps", True), ("batch_size", 0), ("accumulation", 3), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("schedule", "step"), ("schedule_by", "seconds"), ("warmup", 1001),
        ("decay", 0.0), ("final", 2.0), ("betas", (0.9, 1.0)), ("clip", -1.0), ("ema", 1.0), ("keep", 1),
        ("eval_draws", 0), ("workers", -1), ("device", "tpu"), ("max_seconds", -1.0), ("bf16", 1),
    ],
)  # fmt: skip
def test_settings_name_what_is_wrong(name, value):
    at = "batch_size" if name == "accumulation" else name
    with pytest.raises(ValueError, match=f"^{at} is "):
        TrainingSettings(**{name: value})


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        build(TrainingSettings, {"learning_rat": 1e-3})


def test_schedules():
    def at(step, seconds=0.0, **settings):
        return TrainingSettings(steps=110, warmup=10, **settings).factor(step, seconds)

    assert [at(s, schedule="constant") for s in (0, 4, 9, 60, 110)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert [at(s, schedule="linear", final=0.1) for s in (10, 60, 110)] == pytest.approx([1.0, 0.55, 0.1])
    assert [at(s, schedule="cosine") for s in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    assert [at(s, schedule="wsd", decay=0.5) for s in (10, 59, 85, 110)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    timed = {"schedule": "linear", "schedule_by": "seconds", "max_seconds": 20.0}
    assert [at(50, s, **timed) for s in (0.0, 5.0, 30.0)] == pytest.approx([1.0, 0.75, 0.0])


# ---- data


def test_order_is_a_keyed_permutation():
    state = torch.random.get_rng_state()
    first = keyed_order(3, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, keyed_order(3, 0, 1000))
    for other in (keyed_order(3, 1, 1000), keyed_order(4, 0, 1000), np.arange(1000)):
        assert (first == other).mean() < 0.02
    assert torch.equal(state, torch.random.get_rng_state())


def places(whole, batch, world, start=0, drop_last=True, count=43, stop=12):
    used = count - count % whole if drop_last else count
    shares = [
        list(KeyedSampler(count, used, 5, batch, stop * whole, start=start * whole, world=world, process=p))
        for p in range(world)
    ]
    steps: list[set] = []
    parts = whole // batch // world
    for step in range(len(shares[0]) // parts):
        taken = [key for share in shares for part in share[step * parts : (step + 1) * parts] for key in part]
        assert len(set(taken)) == whole
        steps.append(set(taken))
    return steps


def test_ranks_and_accumulation_share_the_same_steps():
    alone = places(8, 8, 1)
    assert len(alone) == 12
    assert alone == places(8, 2, 1) == places(8, 4, 2) == places(8, 1, 4)
    assert alone[7:] == places(8, 2, 2, start=7)
    epoch = set().union(*alone[:5])
    assert {(e, r) for e, r, _ in epoch} == {(0, r) for r in range(40)}, "43 rows, batches of 8: 3 are dropped"
    assert len({index for *_, index in epoch}) == 40


def test_without_drop_last_a_batch_takes_rows_of_several_epochs():
    steps = places(8, 8, 1, drop_last=False)
    assert {e for e, *_ in steps[5]} == {0, 1}
    assert sorted(i for step in steps for e, _, i in step if e == 0) == list(range(43))


def test_times_are_a_low_discrepancy_sequence():
    rank = torch.arange(1000)
    times = keyed_times(7, torch.full_like(rank, 2), rank)
    golden = (5**0.5 - 1) / 2
    offset = float(keyed_times(7, torch.tensor([2]), torch.tensor([0]))[0]) - golden
    expected = (offset + (rank.double() + 1) * golden) % 1.0
    assert times.dtype == torch.float64
    assert float(((times - expected + 0.5) % 1.0 - 0.5).abs().max()) < 1e-9
    for part in (times[:100], times[400:500], times):
        gaps = part.sort().values.diff()
        assert float(gaps.max()) < 3 / len(part), "three-distance theorem: no gap is wide"
    assert float((keyed_times(7, torch.full_like(rank, 3), rank) - times).abs().min()) > 1e-6
    huge = keyed_times(7, torch.full_like(rank, 2), rank + 2**61)
    assert float(huge.sort().values.diff().max()) < 3 / 1000, "ids of a stream may be any integer"


def test_items_are_checked_before_the_run(tmp_path):
    def start(**item):
        return trainer(tmp_path, data=[{**row, **item} for row in rows()])

    with pytest.raises(ValueError, match="known are tokens.*features.NAME"):
        start(text=torch.zeros(3))
    with pytest.raises(ValueError, match="int64"):
        start(tokens=torch.zeros(12, dtype=torch.int32))
    with pytest.raises(ValueError, match="illegal"):
        start(tokens=torch.full((12,), 40))
    with pytest.raises(ValueError, match="lower batch_size, or set drop_last=False"):
        trainer(tmp_path, data=rows(5))
    assert trainer(tmp_path, data=rows(5), drop_last=False, steps=4).train().global_step == 4
    with pytest.raises(ValueError, match="'tokens' do not stack"):
        collate([{"tokens": torch.zeros(3)}, {"tokens": torch.zeros(4)}])
    with pytest.raises(ValueError, match="different keys"):
        collate([{"tokens": torch.zeros(3)}, {"tokens": torch.zeros(3), "valid": torch.ones(3)}])


def test_packed_rows_restart_their_slots():
    packed = pack(LAYOUT, [torch.arange(n) % 16 for n in (5, 4, 3, 7, 2)], 10)
    items = [{"tokens": x, "sample": y} for x, y in zip(packed.tokens, packed.sample, strict=True)]
    batch = token_batch(LAYOUT, collate(items), check=True)
    for name in ("tokens", "valid", "slot", "sample", "given"):
        assert torch.equal(getattr(batch, name), getattr(packed, name)), name
    assert not batch.unrestricted
