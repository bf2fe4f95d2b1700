"""Evaluation of a run, and the lines it reports."""

from types import SimpleNamespace

import pytest
import torch
from training_toy import LAYOUT, StopAt, Toy, objective, rows, trainer
from transformers import ProgressCallback

from discdiff.noise import Noise
from discdiff.training import collate, keyed_times, read_metrics, token_batch
from discdiff.training.evaluation import EVALUATION_SEED
from discdiff.training.progress import TimedProgress


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_evaluation_is_the_mean_over_rows_and_draws(tmp_path):
    model, data, draws = Toy(), rows(11), 3
    result = trainer(tmp_path, model, evaluation=data, eval_draws=draws, eval_batch_size=4).evaluate()
    batch = token_batch(LAYOUT, collate(data))
    index, zero = torch.arange(11), torch.zeros(11, dtype=torch.int64)
    start = keyed_times(EVALUATION_SEED, zero, index)
    values, masked = [], []
    model.eval()
    for draw in range(draws):
        noise = Noise.training(EVALUATION_SEED, zero + draw, index, batch.valid)
        _, metrics = objective(model, batch, noise, (start + draw) / draws)
        values.append(metrics["row_loss"])
        masked.append(metrics["masked"])
    each = torch.stack(values).double().mean(0)
    assert result["eval_loss"] == pytest.approx(float(each.mean()), rel=1e-6)
    assert result["eval_loss_error"] == pytest.approx(float(each.std() / 11**0.5), rel=1e-5)
    assert result["eval_masked"] == pytest.approx(float(torch.stack(masked).mean()), rel=1e-6)
    other = trainer(tmp_path, model, evaluation=data, eval_draws=draws, eval_batch_size=11, seed=9).evaluate()
    assert other["eval_loss"] == pytest.approx(result["eval_loss"], rel=1e-6), "neither seed nor batch size matter"
    both = trainer(tmp_path, model, evaluation={"a": data, "b": rows(4)}, eval_draws=draws).evaluate()
    assert both["eval_a_loss"] == pytest.approx(result["eval_loss"], rel=1e-6) and "eval_b_loss_error" in both


def test_standard_error_over_batches_where_rows_are_unknown(tmp_path):
    def goal(model, batch, noise, time):
        loss, metrics = objective(model, batch, noise, time)
        return loss, {"masked": metrics["masked"]}

    each = trainer(tmp_path, evaluation=rows(10), eval_batch_size=1).evaluate()
    single = trainer(tmp_path, evaluation=rows(10), goal=goal, eval_batch_size=1).evaluate()
    several = trainer(tmp_path, evaluation=rows(10), goal=goal, eval_batch_size=4).evaluate()
    assert single["eval_loss_error"] == pytest.approx(each["eval_loss_error"], rel=1e-6)
    assert several["eval_loss"] == pytest.approx(each["eval_loss"], rel=1e-6)
    assert several["eval_loss_error"] > 0


def test_reports_survive_resumption_and_torn_lines(tmp_path):
    run = trainer(tmp_path, callbacks=[StopAt(9)], log_every=1, save_every=6, evaluation=rows(4), eval_every=3)
    run.train()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 9, "lo')
    for later in (tmp_path / "checkpoint-9").iterdir():
        later.unlink()
    trainer(tmp_path, log_every=1, save_every=6).train("auto")
    lines = read_metrics(path)
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 18))
    assert [x["step"] for x in lines if "eval_loss" in x] == [3, 6]
    assert [x["epoch"] for x in lines if "loss" in x] == pytest.approx([k / 5 for k in range(1, 18)])
    assert {"step", "epoch", "seconds", "loss", "grad_norm", "learning_rate", "masked"} <= lines[0].keys()
    seconds = [x["seconds"] for x in lines]
    assert seconds == sorted(seconds)
    assert sum(b"resumed" in line for line in path.read_bytes().splitlines()) == 1


def test_training_learns_a_constant(tmp_path):
    data = [{"tokens": torch.full((12,), 3)}] * 16
    run = trainer(tmp_path, data=data, evaluation=data, steps=60, log_every=60, eval_every=60, schedule="constant")
    before = run.evaluate()["eval_loss"]
    run.train()
    assert read_metrics(tmp_path / "metrics.jsonl")[-2]["eval_loss"] < 0.5 * before


def test_the_bar_of_a_run_that_ends_by_the_clock(tmp_path, capfd):
    timed = {"steps": 10**9, "max_seconds": 0.3, "schedule_by": "seconds", "log_every": 10**6, "progress": True}
    run = trainer(tmp_path, **timed)
    run.train()
    shown = capfd.readouterr().err
    assert f"step {run.state.global_step}" in shown and "100%" in shown and str(10**9) not in shown
    assert not any(type(each) is ProgressCallback for each in run.callback_handler.callbacks)
    run.train("auto")
    assert "100%" in capfd.readouterr().err, "seconds of the resumed part count"
    quiet = trainer(tmp_path / "quiet", **timed | {"progress": False, "max_seconds": 0.05})
    quiet.train()
    assert "step 1" not in capfd.readouterr().err
    by_steps = trainer(tmp_path / "steps", steps=3, progress=True)
    by_steps.train()
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize(("seconds", "step", "filled"), [(3.0, 10, 3.0), (3.0, 60, 6.0), (99.0, 10, 10.0)])
def test_the_bar_follows_what_is_nearer_its_end(seconds, step, filled):
    knobs = SimpleNamespace(max_seconds=10.0)
    bar = TimedProgress(SimpleNamespace(knobs=knobs, seconds=seconds))
    state = SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=100)
    bar.on_train_begin(None, state, None)
    bar.on_step_end(None, state, None)
    bar.on_step_end(None, state, None)
    assert bar.training_bar.n == pytest.approx(filled)
    bar.on_train_end(None, state, None)
