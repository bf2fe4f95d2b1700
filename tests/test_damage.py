"""Damaged folders are refused by our error, in time, without running anything; with a manifest, all of them."""

import pickle
import shutil
import time
from collections import Counter

import pytest
from damage_toy import LOADERS, Bomb, damage, make, plant

KINDS = ("model", "model", "task", "task", "grid", "checkpoint")
SECONDS = 5.0


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    make(root)
    return root, {kind: read(root / kind) for kind, read in LOADERS.items()}


def examine(good, folder, seeds):
    """What became of every damage: {"refused", "harmless", "taken"} with and without a manifest, and the faults found."""
    root, expected = good
    counts, faults, sentinel = Counter(), [], folder / "ran"
    for seed in seeds:
        kind, copy = KINDS[seed % len(KINDS)], folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root / kind, copy)
        done = damage(copy, kind, seed, sentinel)
        if done is None:
            continue
        began = time.perf_counter()
        error = result = None
        try:
            result = LOADERS[kind](copy)
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - began
        outcome = "refused" if error is not None else "harmless" if result == expected[kind] else "taken"
        counts[outcome, done.signed] += 1
        untouched = done.what == "adapter"  # a file too many, which only matters to a model
        if error is not None and not isinstance(error, ValueError | OSError):
            faults.append((seed, done, f"{type(error).__name__}: {error}"))
        elif error is not None and "copy" not in str(error):
            faults.append((seed, done, f"names no file: {error}"))
        elif error is not None and not done.signed and done.structural and done.field not in str(error):
            faults.append((seed, done, f"does not name {done.field}: {error}"))
        elif outcome == "taken" and (done.structural or done.signed):
            faults.append((seed, done, "taken"))
        elif outcome == "harmless" and done.signed and not untouched:
            faults.append((seed, done, "not what was signed, yet taken"))
        if seconds > SECONDS:
            faults.append((seed, done, f"took {seconds:.1f} s"))
        if sentinel.exists():
            faults.append((seed, done, "ran code"))
            sentinel.rmdir()
    return counts, faults


def test_what_is_planted_works(tmp_path):
    """Control: read without care, the files do what the other tests say they do not."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "a")))
    exec(plant(tmp_path / "b"))
    assert (tmp_path / "a").is_dir() and (tmp_path / "b").is_dir()


def test_300_damaged_folders(good, tmp_path):
    counts, faults = examine(good, tmp_path, range(300))
    assert not faults, faults[:5]
    assert sum(counts.values()) > 270 and counts["taken", True] == 0
    assert counts["refused", True] > 100 and counts["refused", False] > 60
    assert counts["taken", False] > 0, "control: without a manifest a flipped bit of a weight is out of reach"


@pytest.mark.slow
def test_2000_damaged_folders(good, tmp_path):
    counts, faults = examine(good, tmp_path, range(1000, 3100))
    print(dict(counts))
    assert not faults, (len(faults), faults[:10])
    assert sum(counts.values()) >= 2000 and counts["taken", True] == 0
