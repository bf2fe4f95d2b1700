"""Runs that are killed, or whose disk is full, at any moment go on by themselves and end as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from survivor import Failing, goal, network
from training_toy import digest, trainer

from discdiff.training import latest_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def killed(folder, kills, seed):
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "tests/survivor.py", str(folder), str(kills), str(seed)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_five_times(tmp_path):
    found = killed(tmp_path, 5, 0)
    assert found["kills"] == 5 and set(found["survivors"]) == {found["whole"]}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_fifty_times_fifteen_of_them_inside_a_save(tmp_path):
    found = killed(tmp_path, 50, 1)
    print(found["kills"], "kills,", found["inside"], "inside a save,", len(found["survivors"]), "runs")
    assert found["kills"] == 50 and found["inside"] >= 15 and set(found["survivors"]) == {found["whole"]}


def start(folder, steps=3):
    return trainer(folder, network(), goal=goal, ema=0.9, steps=steps, save_every=1, log_every=1)


def writes(folder, at):
    """A run of three steps and saves whose write number `at` in its folder fails: (calls until then, its error)."""
    with pytest.MonkeyPatch.context() as patch:
        run, error = start(folder), None
        failing = Failing(patch, at, only=lambda path: str(folder) in path)
        try:
            run.train("auto")
        except OSError as caught:
            error = str(caught)
    return failing.calls, error


def fails_and_goes_on(folder, at, expected):
    """Fail at one write, then go on. What a person sees names the folder and the free bytes, and needs no help."""
    shutil.rmtree(folder, ignore_errors=True)
    calls, error = writes(folder, at)
    if error is None:  # such as making a folder that is there already
        return None
    assert calls == at and str(folder) in error and "bytes are free" in error, (at, error)
    left = [path.name for path in folder.glob("*")] if folder.exists() else []
    assert not [name for name in left if name.startswith(".tmp-checkpoint")], left
    found = latest_checkpoint(folder)
    again = start(folder)
    again.train("auto")
    assert digest(again) == expected, at
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(writes of a run without failures, the digest it ends with)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    calls, error = writes(folder, -1)
    assert error is None
    last = start(folder)
    last.train("auto")
    return calls, digest(last)


def test_a_failure_at_every_write_of_a_save(tmp_path, whole):
    calls, expected = whole
    assert calls > 60
    first = calls // 3
    found = [fails_and_goes_on(tmp_path / "run", at, expected) for at in range(first + 1, 2 * first, 8)]
    assert [path.name for path in found if path].count("checkpoint-1") >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_failure_at_every_write_of_a_run(tmp_path, whole):
    calls, expected = whole
    found = [fails_and_goes_on(tmp_path / "run", at, expected) for at in range(1, calls + 1)]
    names = [path.name if path else "" for path in found]
    assert {"", "checkpoint-1", "checkpoint-2", "checkpoint-3"} == set(names)
    assert names.count("checkpoint-1") >= 20 and names.count("checkpoint-2") >= 20
