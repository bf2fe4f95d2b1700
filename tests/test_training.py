"""DiffusionTrainer: exact accumulation and resumption, EMA, the stop on NaN, signals, ranks."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hosted_toy
import pytest
import torch
from torch.utils.data import IterableDataset
from training_toy import LAYOUT, Gradients, StopAt, Toy, digest, objective, rows, spy, trainer
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from discdiff.noise import Noise
from discdiff.training import (
    DiffusionTrainer,
    GracefulStop,
    NonFiniteError,
    TrainingSettings,
    keyed_order,
    keyed_times,
    latest_checkpoint,
    load_weights,
    read_metrics,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- exactness


def test_accumulation_does_not_change_the_gradient(tmp_path):
    found = []
    for parts in (1, 4):
        gradients = Gradients()
        run = trainer(tmp_path / str(parts), Toy(0.0), callbacks=[gradients], accumulation=parts, clip=0.0, steps=3)
        run.train()
        found.append(gradients.steps)
    for one, four in zip(*found, strict=True):
        for a, b in zip(one, four, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
            assert float(a.abs().max()) > 1e-4


def test_clipping(tmp_path):
    gradients = Gradients()
    trainer(tmp_path, callbacks=[gradients], clip=0.01, steps=1).train()
    norm = torch.stack([g.norm() for g in gradients.steps[0]]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_three_times_is_exact(tmp_path, workers):
    settings = {"ema": 0.95, "workers": workers, "warmup": 4, "accumulation": 2}
    whole = trainer(tmp_path / "whole", **{**settings, "workers": 0})
    whole.train()
    for stop in (3, 8, 13):
        trainer(tmp_path / "parts", callbacks=[StopAt(stop)], **settings).train("auto")
        assert latest_checkpoint(tmp_path / "parts").name == f"checkpoint-{stop}"
    last = trainer(tmp_path / "parts", **settings)
    last.train("auto")
    assert last.state.global_step == 17
    assert digest(last) == digest(whole)
    assert [x["loss"] for x in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in x][-1] > 0


def test_resuming_with_training_arguments(tmp_path):
    def run(folder, **options):
        args = TrainingArguments(
            str(tmp_path / folder), num_train_epochs=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=3, save_steps=4, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return DiffusionTrainer(Toy(), args, objective, LAYOUT, rows(), **options)

    whole, last = run("whole"), run("parts")
    whole.train()
    run("parts", callbacks=[StopAt(7)]).train()
    last.train("auto")
    assert whole.state.global_step == last.state.global_step == 15
    assert digest(last) == digest(whole)


class Stream(IterableDataset):
    """20 rows per pass, their ids far from their places."""

    def __iter__(self):
        for i, row in enumerate(rows(20)):
            yield {**row, "id": 10**12 + 7 * i}


def test_streams_resume_exactly(tmp_path):
    seen: list = []
    whole = trainer(tmp_path / "whole", data=Stream(), goal=spy(seen))
    whole.train()
    trainer(tmp_path / "parts", data=Stream(), callbacks=[StopAt(4)], workers=1).train()
    last = trainer(tmp_path / "parts", data=Stream(), workers=1)
    last.train("auto")
    assert digest(last) == digest(whole)
    keys = [key for keys, *_ in seen for key in keys]
    assert len(set(keys)) == len(keys), "every pass has noise of its own"
    with pytest.raises(ValueError, match="one process reads a stream"):
        trainer(tmp_path / "many", data=Stream(), workers=2).train()
    with pytest.raises(ValueError, match='need an integer "id"'):
        trainer(
            tmp_path / "bare", data=type("Bare", (IterableDataset,), {"__iter__": lambda _: iter(rows())})()
        ).train()


def test_noise_is_keyed_by_row_and_epoch(tmp_path):
    seen: list = []
    trainer(tmp_path, goal=spy(seen), steps=10, seed=3).train()
    order = [int(i) for e in (0, 1) for i in keyed_order(3, e, 40)]
    epoch = torch.tensor([0] * 40 + [1] * 40)
    expected = Noise.training(3, epoch, torch.tensor(order), torch.ones(80, 12, dtype=torch.bool))
    assert [key for keys, *_ in seen for key in keys] == expected.key.tolist()
    assert len(set(expected.key.tolist())) == 80
    times = keyed_times(3, epoch, torch.arange(40).repeat(2))
    assert [t for *_, ts in seen for t in ts] == times.tolist()


# ---- EMA


def test_ema_follows_its_formula_and_serves_evaluation_and_saving(tmp_path):
    class Follow(TrainerCallback):
        mean = None

        def on_train_begin(self, args, state, control, model=None, **_):
            self.mean = model.mix.weight.detach().clone()

        def on_optimizer_step(self, args, state, control, model=None, **_):
            d = min(0.6, (1 + state.global_step) / (10 + state.global_step))
            self.mean = d * self.mean + (1 - d) * model.mix.weight.detach()

    follow = Follow()
    run = trainer(tmp_path, callbacks=[follow], evaluation=rows(10), ema=0.6)
    run.train()
    torch.testing.assert_close(run.ema.mean["mix.weight"], follow.mean)
    own = digest(run)
    averaged = run.evaluate()["eval_loss"]
    assert digest(run) == own, "the own weights come back bit for bit"
    run.save_model(tmp_path / "final")
    again = Toy()
    load_weights(again, tmp_path / "final")
    torch.testing.assert_close(again.mix.weight, follow.mean)
    fresh = trainer(tmp_path / "fresh", again, evaluation=rows(10))
    assert fresh.evaluate()["eval_loss"] == pytest.approx(averaged)
    raw = trainer(tmp_path / "raw", run.model, evaluation=rows(10))
    assert abs(raw.evaluate()["eval_loss"] - averaged) > 1e-6


# ---- stops


def poison(at: int, where: str):
    """The objective with a NaN in the loss, in the gradient of the mixing layer only, or outside the gradient."""
    calls = []

    def goal(model, batch, noise, time):
        calls.append(0)
        loss, metrics = objective(model, batch, noise, time)
        if len(calls) == at and where == "loss":
            loss = loss * float("nan")
        if len(calls) == at and where == "constant":
            loss = loss + float("inf")
        if len(calls) == at and where == "gradient":
            model.mix.bias.register_hook(lambda g: g * float("nan"))
        return loss, metrics

    return goal


@pytest.mark.parametrize("where, culprit", [("loss", "loss"), ("constant", "loss"), ("gradient", "mix.bias")])
def test_nan_stops_before_the_step_and_names_its_culprit(tmp_path, where, culprit):
    class Keep(TrainerCallback):
        weights: dict = {}

        def on_step_end(self, args, state, control, model=None, **_):
            Keep.weights = {name: x.clone() for name, x in model.state_dict().items()}

    run = trainer(tmp_path, goal=poison(6, where), callbacks=[Keep()], accumulation=2)
    with pytest.raises(FloatingPointError) as caught:
        run.train()
    assert isinstance(caught.value, NonFiniteError)
    assert (caught.value.step, caught.value.culprit) == (3, culprit)
    expected = keyed_order(0, 0, 40)[20:24] if culprit == "loss" else keyed_order(0, 0, 40)[16:24]
    assert caught.value.rows == expected.tolist()
    assert culprit in str(caught.value) and str(expected.tolist()) in str(caught.value)
    assert all(torch.equal(x, Keep.weights[name]) for name, x in run.model.state_dict().items())
    assert latest_checkpoint(tmp_path) is None


class SendAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_that_resumes(tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = trainer(tmp_path / "whole")
    whole.train()
    cut = trainer(tmp_path / "cut", callbacks=[SendAt(6, number)])
    cut.train()
    assert cut.stopped_by == "signal" and cut.state.global_step == 7
    assert latest_checkpoint(tmp_path / "cut").name == "checkpoint-7"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    last = trainer(tmp_path / "cut")
    last.train("auto")
    assert last.stopped_by is None and digest(last) == digest(whole)


def test_the_second_ctrl_c_is_immediate():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    with pytest.raises(KeyboardInterrupt), GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_handlers_stay_alone_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with GracefulStop():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_time_limit_saves_evaluates_and_drives_the_schedule(tmp_path):
    timed = {"steps": 10**9, "max_seconds": 0.4, "schedule": "linear", "schedule_by": "seconds", "log_every": 1}
    run = trainer(tmp_path, evaluation=rows(4), eval_every=10**9, **timed)
    run.train()
    assert run.stopped_by == "time" and 0.4 <= run.seconds < 5.0
    step = run.state.global_step
    assert latest_checkpoint(tmp_path).name == f"checkpoint-{step}"
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert any("eval_loss" in x for x in lines)
    rates = [x["learning_rate"] for x in lines if "learning_rate" in x]
    assert rates[0] > 0.5e-2 and rates[-1] < rates[0] / 2 and rates == sorted(rates, reverse=True)
    again = trainer(tmp_path, **timed)
    again.train("auto")
    assert again.state.global_step == step + 1, "the time of the resumed part counts"


# ---- what was asked and what was reached


def test_too_few_ranks_or_no_sharding_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="1 ranks were reached, 2 asked"):
        trainer(tmp_path, expected_world_size=2)
    for name in [name for name in os.environ if "FSDP" in name] + ["ACCELERATE_USE_FSDP"]:
        monkeypatch.setenv(name, "false")
    with pytest.raises(ValueError, match="(?i)fsdp"):
        trainer(tmp_path, fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="(?i)fsdp"):
        trainer(tmp_path)


@pytest.mark.parametrize(
    "name, value",
    [("save_strategy", "epoch"), ("save_only_model", True), ("load_best_model_at_end", True), ("push_to_hub", True)],
)
def test_arguments_that_break_a_promise_are_refused(tmp_path, name, value):
    args = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, per_device_train_batch_size=8)
    setattr(args, name, value)
    with pytest.raises(ValueError, match=f"^{name} is "):
        DiffusionTrainer(Toy(), args, objective, LAYOUT, rows())
    with pytest.raises(ValueError, match="output_dir is None"):
        DiffusionTrainer(Toy(), TrainingSettings(), objective, LAYOUT, rows())


FEW = ("gpt2", "qwen3", "modernbert")  # positions learned, rotary, and an encoder; all families take minutes
FAMILIES = [FEW, pytest.param(tuple(hosted_toy.CONFIGS), marks=pytest.mark.slow)]


@pytest.mark.parametrize("families", FAMILIES, ids=["few", "all"])
def test_two_ranks_equal_one(families, tmp_path):
    """Two gloo ranks by torchrun: one rank's gradients, no shared noise, exact resumption, a NaN of one stops both."""
    root = Path(__file__).parents[1]
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "tests/training_toy.py",
        str(tmp_path),
        *families,
    ]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in range(2)]
    seen: list = []
    gradients = Gradients()
    trainer(tmp_path / "one", Toy(0.0), goal=spy(seen), callbacks=[gradients], clip=0.0, steps=3).train()
    alone = [key for keys, *_ in seen for key in keys]
    shares = [[key for keys, *_ in rank["seen"] for key in keys] for rank in ranks]
    assert not set(shares[0]) & set(shares[1]) and len(shares[0]) == len(shares[1]) == 12
    assert set(alone) == set(shares[0]) | set(shares[1])
    times = [{t for *_, ts in rank["seen"] for t in ts} for rank in ranks]
    assert not times[0] & times[1] and times[0] | times[1] == {t for *_, ts in seen for t in ts}
    for rank in range(2):
        for mine, theirs in zip(
            gradients.steps, torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True), strict=True
        ):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for name in families:
        mine = hosted_toy.trained_a_step(name, tmp_path / f"alone-{name}")
        for rank in range(2):
            theirs = torch.load(tmp_path / f"hosted-{name}-{rank}.pt", weights_only=True)
            assert mine.keys() == theirs.keys()
            for key, x in mine.items():
                torch.testing.assert_close(x, theirs[key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
    assert len({d for rank in ranks for d in rank["digests"]}) == 1, "resumption with two ranks is exact"
    assert ranks[0]["evaluation"]["eval_loss"] == ranks[1]["evaluation"]["eval_loss"]
    assert all(rank["size"] == 2 for rank in ranks)
    assert all(rank["sharded"] for rank in ranks), "FSDP2 shards are stored whole and come back"
    onward, whole = trainer(tmp_path / "e", Toy(0.0), clip=0.0), trainer(tmp_path / "f", Toy(0.0), clip=0.0)
    onward.train("auto")
    whole.train()
    for a, b in zip(onward.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert "the loss is nan" in ranks[1]["nan"] and "not finite" in ranks[0]["nan"]
    assert all(rank["untouched"] for rank in ranks), "both stop before the optimizer's step"


def test_a_stock_model_with_tied_weights(tmp_path):
    """A `PreTrainedModel` whose head is its embedding: exact resumption, and `from_pretrained` of what is saved."""
    config = LlamaConfig(
        vocab_size=LAYOUT.vocab.total, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip

    def start(folder, **options):
        torch.manual_seed(0)
        return trainer(tmp_path / folder, LlamaForCausalLM(config), goal=goal, steps=6, **options)

    def goal(model, batch, noise, time):
        return objective(lambda tokens: model(input_ids=tokens).logits[..., :16], batch, noise, time)

    whole = start("whole")
    whole.train()
    start("parts", callbacks=[StopAt(2)]).train()
    last = start("parts", ema=0.5)
    last.train("auto")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), last.model.parameters(), strict=True))
    for run, name in ((whole, "plain"), (last, "averaged")):
        run.save_model(tmp_path / name)
        again = LlamaForCausalLM.from_pretrained(tmp_path / name)
        expected = run.model.model.embed_tokens.weight if run.ema is None else run.ema.mean["model.embed_tokens.weight"]
        assert torch.equal(again.lm_head.weight, expected)
    LlamaForCausalLM.from_pretrained(tmp_path / "parts/checkpoint-6")


def test_bfloat16_autocast_keeps_float32_weights(tmp_path):
    seen = set()

    def goal(model, batch, noise, time):
        hook = model.mix.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
        result = objective(model, batch, noise, time)
        hook.remove()
        return result

    run = trainer(tmp_path, goal=goal, bf16=True, steps=2, evaluation=rows(4))
    run.evaluate()
    run.train()
    assert seen == {torch.bfloat16} and {p.dtype for p in run.model.parameters()} == {torch.float32}
