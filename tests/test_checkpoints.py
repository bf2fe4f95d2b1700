"""Checkpoints: complete or absent after any failure, checked before use, free of pickle, and exact to resume from."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_toy import StopAt, Toy, digest, trainer

from discdiff.training import CheckpointError, checkpoints, latest_checkpoint, verify
from discdiff.training import states as states_module
from discdiff.training.checkpoint import write_checkpoint
from discdiff.training.states import load_optimizer_state, load_weights, optimizer_state, save_states


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fill(folder):
    (folder / "a.json").write_text("[1, 2, 3]")
    (folder / "sub").mkdir()
    (folder / "sub/b.bin").write_bytes(bytes(range(256)) * 8)


def make(root, *steps, keep=9):
    return [write_checkpoint(root, step, fill, size=2048, keep=keep, manifest={"run": {}}) for step in steps]


def names(root):
    return sorted(path.name for path in root.iterdir())


# ---- the protocol


def test_what_is_written_can_be_verified(tmp_path):
    (path,) = make(tmp_path, 3)
    manifest = verify(path)
    assert manifest["step"] == 3
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {"a.json": 9, "sub/b.bin": 2048}
    assert latest_checkpoint(tmp_path) == path
    assert (tmp_path / "LATEST").read_text() == "checkpoint-3\n"
    assert names(tmp_path) == ["LATEST", "checkpoint-3"]
    assert latest_checkpoint(tmp_path / "absent") is None


def flip(path):
    data = bytearray((path / "sub/b.bin").read_bytes())
    data[700] ^= 4
    (path / "sub/b.bin").write_bytes(bytes(data))


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: (path / "sub/b.bin").write_bytes(b"short"),
    "file gone": lambda path: (path / "a.json").unlink(),
    "manifest gone": lambda path: (path / "manifest.json").unlink(),
    "manifest cut": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text()[:80]),
    "manifest odd": lambda path: (path / "manifest.json").write_text("[]"),
    "other format": lambda path: (path / "manifest.json").write_text('{"format": 99, "step": 9, "files": {}}'),
    "empty": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_skipped_and_named(tmp_path, kind, caplog):
    good, bad = make(tmp_path, 4, 9)
    DAMAGE[kind](bad)
    with pytest.raises(CheckpointError, match="checkpoint-9"):
        verify(bad)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == good
    assert "skipped" in caplog.text and "checkpoint-9" in caplog.text


def test_a_failure_while_writing_leaves_the_older_ones_alone(tmp_path):
    (old,) = make(tmp_path, 4)

    def fails(folder):
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"checkpoint-5 \(77 bytes of tensors\) was not written: .*No space left"):
        write_checkpoint(tmp_path, 5, fails, size=77, manifest={})
    assert names(tmp_path) == ["LATEST", "checkpoint-4"] and latest_checkpoint(tmp_path) == old

    def stops(folder):
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 5, stops, size=77, manifest={})
    assert names(tmp_path) == ["LATEST", "checkpoint-4"]


def test_too_little_room_is_found_before_writing(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match=f"checkpoint-5 needs {int(1.2 * 2 * free)} bytes, .* are free") as caught:
        write_checkpoint(tmp_path, 5, lambda _: pytest.fail("wrote"), size=2 * free, manifest={})
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_only_complete_checkpoints_count_as_kept(tmp_path):
    make(tmp_path, 1, 2, 3, 4, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}/manifest.json").unlink()
    make(tmp_path, 5, keep=2)
    assert latest_checkpoint(tmp_path).name == "checkpoint-5"
    assert {"checkpoint-5", "checkpoint-2"} <= set(names(tmp_path)), "the damaged 3 and 4 are not what is kept"
    make(tmp_path, 6, keep=0)
    assert {"checkpoint-5", "checkpoint-6"} <= set(names(tmp_path)), "two are always kept"
    assert "checkpoint-2" not in names(tmp_path)


def test_one_of_the_same_step_is_replaced_and_found_if_stopped_between(tmp_path):
    old, new = make(tmp_path, 2, 7)
    flip(new)
    make(tmp_path, 7)
    assert names(tmp_path) == ["LATEST", "checkpoint-2", "checkpoint-7"]
    assert latest_checkpoint(tmp_path) == new
    new.rename(tmp_path / "checkpoint-7-replaced")
    assert latest_checkpoint(tmp_path).name == "checkpoint-7-replaced"
    make(tmp_path, 7)
    assert latest_checkpoint(tmp_path) == new


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
    (tmp_path / f".tmp-checkpoint-3-{child.pid}").mkdir()
    (tmp_path / f".tmp-checkpoint-3-{os.getppid()}").mkdir()
    make(tmp_path, 4)
    assert names(tmp_path) == [f".tmp-checkpoint-3-{os.getppid()}", "LATEST", "checkpoint-4"]


# ---- what a run writes


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path):
    run = trainer(tmp_path, ema=0.9, steps=3)
    run.train()
    files = {path.name for path in (tmp_path / "checkpoint-3").rglob("*") if path.is_file()}
    assert files == {
        "manifest.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "optimizer.json",
        "rng_state.safetensors", "scheduler.json", "trainer_state.json", "training.json",
    }  # fmt: skip
    manifest = verify(tmp_path / "checkpoint-3")
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert manifest["run"]["batch_size"] == 8 and {"torch", "transformers"} <= manifest["versions"].keys()
    stored = load_file(tmp_path / "checkpoint-3/optimizer.safetensors")
    assert "mix.weight/exp_avg" in stored
    assert json.loads((tmp_path / "checkpoint-3/training.json").read_text())["settings"]["steps"] == 3


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adagrad"])
def test_optimizer_state_round_trip(tmp_path, kind):
    def start(model):
        groups = [
            {"params": [model.mix.weight], "weight_decay": 0.1},
            {"params": [model.head.bias, model.embed.weight]},
        ]
        return {
            "adamw": lambda: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
            "sgd": lambda: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
            "adagrad": lambda: torch.optim.Adagrad(groups, lr=1e-2),
        }[kind]()

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.arange(12)[None]).square().sum().backward()
        optimizer.step()

    one, two = Toy(0.0), Toy(0.0)
    first = start(one)
    step(one, first)
    tensors, data = optimizer_state(first, one)
    save_states(tmp_path, {"optimizer": tensors}, {"optimizer": data})
    two.load_state_dict(one.state_dict())
    second = start(two)
    load_optimizer_state(second, two, tmp_path)
    assert second.param_groups[0]["weight_decay"] == 0.1
    for _ in range(3):
        step(one, first)
        step(two, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = torch.optim.AdamW(two.parameters())
    with pytest.raises(CheckpointError, match="other parameters or other groups"):
        load_optimizer_state(other, two, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    trainer(tmp_path, steps=1).train()
    load_weights(Toy(), tmp_path / "checkpoint-1")
    wider, other = Toy(), Toy()
    wider.mix = nn.Linear(16, 16, bias=False)
    other.extra = nn.Linear(2, 2)
    for model in (wider, other):
        with pytest.raises(CheckpointError, match="another model"):
            load_weights(model, tmp_path / "checkpoint-1")


def test_another_run_is_not_resumed(tmp_path):
    trainer(tmp_path, steps=4).train()
    for change in ({"seed": 1}, {"batch_size": 4}):
        with pytest.raises(ValueError, match=f"was written with {next(iter(change))}"):
            trainer(tmp_path, steps=6, **change).train("auto")
    with pytest.raises(ValueError, match="newer than step 0"):
        trainer(tmp_path, steps=6).train()
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        trainer(tmp_path, steps=6).train(tmp_path / "checkpoint-3")
    longer = trainer(tmp_path, steps=6)
    longer.train(tmp_path / "checkpoint-4")
    assert longer.state.global_step == 6


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path):
    whole = trainer(tmp_path / "whole", save_every=4)
    whole.train()
    trainer(tmp_path / "cut", callbacks=[StopAt(10)], save_every=4).train()
    file = tmp_path / "cut/checkpoint-10/optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    last = trainer(tmp_path / "cut", save_every=2)
    last.train("auto")
    assert digest(last) == digest(whole)
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["checkpoint-17", "checkpoint-16"]
    assert len(list((tmp_path / "cut").glob("damaged-checkpoint-10-*"))) == 1


def test_a_full_disk_in_training_names_it_and_the_run_resumes(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole", save_every=4)
    whole.train()
    real = states_module.save_tensors

    def full(path, tensors):
        if "checkpoint-8" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(states_module, "save_tensors", full)
    with pytest.raises(OSError, match="checkpoint-8 .* was not written: .*No space left"):
        trainer(tmp_path / "cut", save_every=4).train()
    monkeypatch.undo()
    assert names(tmp_path / "cut") == ["LATEST", "checkpoint-4"]
    last = trainer(tmp_path / "cut", save_every=4)
    last.train("auto")
    assert digest(last) == digest(whole)
