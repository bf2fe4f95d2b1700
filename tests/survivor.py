"""Failing writes; and, run as a script, a save-heavy training run that is killed again and again at random moments.

`python tests/survivor.py FOLDER KILLS SEED` prints JSON: the digest of the weights, averages and optimizer state of an
uninterrupted run and of the run that was killed; how many kills there were and how many of them fell inside a save.
The children are forked: a start that imports everything anew would take longer than the whole run.
"""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from training_toy import LAYOUT, digest, trainer

from discdiff.manifest import DamageError
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import MASK
from discdiff.training import latest_checkpoint, verify

STEPS = 30


def network() -> DiscDiffModel:
    """Tiny, with dropout, so that the state of the generators counts too."""
    config = DiscDiffConfig(vocab=LAYOUT.vocab, hidden_size=32, num_layers=2, num_heads=2, dropout=0.1)
    return DiscDiffModel.seeded(config, 0)


def goal(model, batch, noise, time):
    """Cross-entropy at positions masked with probability `time`."""
    masked = (noise.uniform(MASK) < time[:, None]) & batch.free
    noisy = torch.where(masked, LAYOUT.vocab.mask, batch.tokens)
    logits = model(input_ids=noisy, output_logits=True).logits[..., : LAYOUT.vocab.text_size]
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")
    rows = (loss * masked).mean(1)
    return rows.mean(), {"row_loss": rows.detach()}


def run(folder, every=1):
    """Train on from where the folder stands; a checkpoint at every step makes saves dominate."""
    settings = {"steps": STEPS, "save_every": every, "ema": 0.9, "log_every": 10}
    last = trainer(folder, network(), goal=goal, **settings)
    last.train("auto")
    return digest(last)


class Failing:
    """OSError(ENOSPC) at the n-th call of any function that writes; counts the calls."""

    def __init__(self, monkeypatch, at, *, only=lambda path: True):
        self.calls, self.at = 0, at
        for owner, name in (
            ("builtins", "open"), ("io", "open"), ("os", "open"), ("os", "fsync"), ("os", "rename"), ("os", "replace"),
            ("os", "mkdir"), ("transformers.modeling_utils", "safe_save_file"), ("discdiff.training.states", "save_file"),
        ):  # fmt: skip
            real = getattr(sys.modules[owner], name)
            monkeypatch.setattr(f"{owner}.{name}", self.wrap(real, name, only))

    def wrap(self, real, name, only):
        def act(*args, **options):
            mode = (args[1] if len(args) > 1 else options.get("mode", "r")) if name == "open" else "w"
            reads = isinstance(mode, str) and not set(mode) & set("wax+") or mode == os.O_RDONLY
            path = args[-1] if name in ("safe_save_file", "save_file", "rename", "replace") else args[0]
            path = options.get("filename", path) if not isinstance(path, str | os.PathLike) else path
            inside = isinstance(path, int) or isinstance(path, str | os.PathLike) and only(str(path))
            if not reads and inside:
                self.calls += 1
                if self.calls == self.at:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(*args, **options)

        return act


def _quietly(folder):
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    torch.set_num_threads(1)
    run(folder)


def whole_run(folder: Path) -> str:
    """Train to the end without a kill, in a child: the parent trains nothing, has no threads, and so may fork."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)

    def act() -> None:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        torch.set_num_threads(1)
        theirs.send(run(folder, every=0))

    child = context.Process(target=act)
    child.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        child.join()


def kill(folder: Path, draw: random.Random, longest: float) -> tuple[bool, bool, int]:
    """Start a run, wait for its first checkpoint, kill it within `longest` seconds: (killed, inside a save, its step)."""
    child = multiprocessing.get_context("fork").Process(target=_quietly, args=(folder,))
    child.start()
    before = set(folder.glob("checkpoint-*"))
    while child.is_alive() and set(folder.glob("checkpoint-*")) == before:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, longest))
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    found = latest_checkpoint(folder)
    assert found is not None, "no complete checkpoint is left"
    return child.exitcode == -signal.SIGKILL, bool(list(folder.glob(".tmp-*"))), verify(found)["step"]


def main(root: Path, kills: int, seed: int) -> dict:
    """Runs are killed until each has ended, and new ones begun, until there were `kills`."""
    draw, killed, inside, survivors = random.Random(seed), 0, 0, []
    whole = whole_run(root / "whole")
    while killed < kills:
        folder = root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        step = 0
        while killed < kills and step < STEPS:
            hit, saving, step = kill(folder, draw, 0.05)
            killed, inside = killed + hit, inside + (hit and saving)
        survivors.append(whole_run(folder))
    try:
        verify(latest_checkpoint(root / "killed"))
    except DamageError:
        survivors.append("damaged")
    return {"whole": whole, "survivors": survivors, "kills": killed, "inside": inside}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(result), flush=True)
    os._exit(0)
