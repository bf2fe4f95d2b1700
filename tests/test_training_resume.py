"""What a run goes on from: other settings, rows or clocks are refused; a retry begins clean; ranks evaluate in step."""

import re
from types import SimpleNamespace

import pytest
import torch
from training_toy import LAYOUT, StopAt, Toy, objective, rows, trainer
from transformers import TrainingArguments

from discdiff.clocks import Importance
from discdiff.training import CheckpointError, DiffusionTrainer, NonFiniteError, checkpoints, latest_checkpoint
from discdiff.training import evaluation as evaluation_module
from discdiff.training.data import digest_of_rows


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Clocked:
    """The toy's objective with a clock that learns; call number `at` has a NaN."""

    def __init__(self, at: int = -1) -> None:
        self.memory, self.at, self.calls = Importance(4, visits=2), at, 0

    def __call__(self, model, batch, noise, time):
        self.calls += 1
        loss, metrics = objective(model, batch, noise, time)
        bad = float("nan") if self.calls == self.at else 1.0
        return loss * bad, {**metrics, "row_loss": metrics["row_loss"] * bad, "row_time": time}


def test_a_retry_begins_with_a_clock_that_knows_nothing_of_the_failure(tmp_path):
    goal = Clocked(at=3)
    run = trainer(tmp_path, goal=goal, steps=4)
    with pytest.raises(NonFiniteError):
        run.train()
    assert float(goal.memory.counts.sum()) == 2 * 8
    run.train()
    assert float(goal.memory.counts.sum()) == 4 * 8, "neither the failed step nor the steps before it"
    assert bool(goal.memory.squares.isfinite().all())


def test_a_clock_is_neither_lost_nor_made_up(tmp_path):
    trainer(tmp_path / "with", goal=Clocked(), steps=2).train()
    trainer(tmp_path / "without", steps=2).train()
    with pytest.raises(CheckpointError, match="written with a clock that learns"):
        trainer(tmp_path / "with", steps=3).train("auto")
    with pytest.raises(CheckpointError, match="written with no clock that learns"):
        trainer(tmp_path / "without", goal=Clocked(), steps=3).train("auto")


CHANGES = {
    "optimizer": "muon", "learning_rate": 2e-2, "weight_decay": 0.2, "betas": (0.8, 0.99), "schedule": "wsd", "warmup": 1,
    "decay": 0.5, "final": 0.1, "clip": 2.0, "ema": 0.8,
}  # fmt: skip


def test_other_settings_are_not_mixed_with_the_stored_ones(tmp_path):
    first = trainer(tmp_path, steps=2, ema=0.9, clip=1)
    first.train()
    for name, value in CHANGES.items():
        model = Toy()
        model._no_split_modules = ["Linear"]
        was, now = (
            re.escape(repr(list(x) if isinstance(x, tuple) else x)) for x in (getattr(first.knobs, name), value)
        )
        with pytest.raises(
            CheckpointError, match=f"written with {name} {was}, this run has {now}: go on with the same"
        ):
            trainer(tmp_path, model, steps=3, **{"ema": 0.9, name: value}).train("auto")
    again = trainer(tmp_path, steps=3, ema=0.9, clip=1.0, accumulation=2, workers=1, log_every=1, max_seconds=1e6)
    again.train("auto")
    assert again.state.global_step == 3, "more steps, and what does not change the numbers"


def test_other_arguments_neither(tmp_path):
    def run(steps, **changes):
        more = {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", **changes}
        plain = {"max_steps": steps, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True}
        return DiffusionTrainer(Toy(), TrainingArguments(str(tmp_path), **plain, **more), objective, LAYOUT, rows())

    run(2).train()
    changes = {"learning_rate": 1e-3, "adam_beta2": 0.9, "lr_scheduler_type": "linear", "warmup_steps": 1}
    for name, value in changes.items():
        with pytest.raises(CheckpointError, match=f"was written with {name} "):
            run(3, **{name: value}).train("auto")
    with pytest.raises(
        CheckpointError, match="was written with args 'TrainingArguments', this run has 'TrainingSettings'"
    ):
        trainer(tmp_path, steps=3, seed=42).train("auto")
    run(3).train("auto")


# ---- rows


def test_edited_rows_are_another_run(tmp_path):
    trainer(tmp_path, steps=2).train()
    edited = [{"tokens": (row["tokens"] + 1) % 16} for row in rows()]
    with pytest.raises(CheckpointError, match="was written with rows_digest"):
        trainer(tmp_path, data=edited, steps=3).train("auto")
    again = trainer(tmp_path, steps=3)
    again.rows_digest = None  # as for rows that cannot be told
    again.train("auto")


class Noisy:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"tokens": torch.randint(0, 16, (12,))}


def test_the_digest_of_rows():
    data = rows(100)
    told = digest_of_rows(data)
    assert told == digest_of_rows([{"tokens": row["tokens"].numpy()} for row in data]) != digest_of_rows(rows(99))
    assert digest_of_rows([*data[:99], {"tokens": data[0]["tokens"]}]) != told, "the last row is among them"
    assert digest_of_rows(Noisy()) is None
    assert digest_of_rows(rows(1)) is not None and digest_of_rows([{"x": torch.zeros(2)}]) is not None


# ---- damage


def test_damage_to_all_checkpoints_is_not_a_fresh_start(tmp_path):
    trainer(tmp_path, callbacks=[StopAt(4)], save_every=2).train()
    for path in checkpoints(tmp_path):
        (path / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints and none is complete, .*checkpoint-4: remove them"):
        trainer(tmp_path).train("auto")
    assert len(checkpoints(tmp_path)) == 2, "they stay as they are"
    (tmp_path / "new" / ".tmp-checkpoint-2-1").mkdir(parents=True)  # what a kill within the first save leaves
    trainer(tmp_path / "new", steps=1).train("auto")
    assert latest_checkpoint(tmp_path / "new").name == "checkpoint-1"


# ---- evaluation


def test_every_rank_evaluates_as_many_batches(tmp_path, monkeypatch):
    """33 rows of two ranks, 8 at a time: 3 batches and 2, of which the second rank repeats one that does not count."""
    model, parts, calls = Toy(), [], []
    monkeypatch.setattr(evaluation_module, "gather_object", lambda part: parts.extend(part) or part)

    def goal(model, batch, noise, time):
        calls.append(len(batch.tokens))
        return objective(model, batch, noise, time)

    run = trainer(tmp_path, model, goal=goal, eval_batch_size=8, eval_draws=2)
    whole = evaluation_module.evaluate(run, rows(33))
    assert len(calls) == 2 * 5 and len(parts) == 1
    parts.clear()
    for rank in range(2):
        calls.clear()
        named = {n: getattr(run.args, n) for n in dir(run.args) if n.startswith(("dataloader_", "per_device_eval"))}
        args = SimpleNamespace(**named, world_size=2, process_index=rank)
        same = {
            n: getattr(run, n) for n in ("model", "callback_handler", "accelerator", "knobs", "objective", "layout")
        }
        evaluation_module.evaluate(
            SimpleNamespace(
                args=args, state=run.state, control=run.control, _prepare_inputs=run._prepare_inputs, **same
            ),
            rows(33),
        )
        assert len(calls) == 2 * 3
    assert evaluation_module.summary(parts) == pytest.approx(whole, rel=1e-6)
