"""Recording demonstrations: what is stored, what is left out, and that an interrupted recording goes on."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
from line_toy import Line, ahead

from discdiff.cli import guarded
from tasks.vla.collect import record
from tasks.vla.commands import collect
from tasks.vla.lerobot import open_dataset
from tasks.vla.sentences import SENTENCES, varied


def test_record_stores_what_the_expert_does_and_executes_it_shaken():
    heard = []
    made = list(
        record("reach", 5, make=Line, expert=ahead, pictures=True, size=8, say=heard.append, instruction=varied)
    )
    assert heard == ["reach: 5 of 5 episodes succeeded, 1.000"] and {e.task for e in made} <= set(SENTENCES["reach"])
    for e in made:
        assert (e.action == np.array([1, 0, 0, -1])).all() and e.state.dtype == np.float32 and e.way == ""
        steps = np.diff(e.state[:, 0])
        assert steps.max() < 0.1 + 1e-6 and steps.std() > 1e-3  # noise, but never beyond a full action
        assert e.pictures["corner2"].shape == (len(e), 8, 8, 3)
        assert (e.pictures["corner2"][:, 0, 0, 0] == (100 + 50 * e.state[:, 0]).astype(np.uint8)).all()
    again = list(record("reach", 5, make=Line, expert=ahead, say=heard.append))
    assert all(np.array_equal(a.state, b.state) for a, b in zip(made, again))
    still = next(record("reach", 1, make=Line, expert=ahead, noise=0))
    assert np.allclose(np.diff(still.state[:, 0]), 0.1, atol=1e-6)


def test_failures_are_left_out_and_counted():
    heard = []

    def timid(task):  # goes down and is lost where it begins low
        return lambda full: np.array([1.0 if full[0] > -0.3 else -1.0, 0, 0, 0], np.float32)

    made = list(record("reach", 8, make=Line, expert=timid, say=heard.append, noise=0.0))
    assert len(made) == 8 and all(e.state[0, 0] > -0.3 for e in made)
    lost = sum(np.random.default_rng(1000 + k).uniform(-0.5, 0.5) <= -0.3 for k in range(int(heard[0].split()[3])))
    assert lost > 0 and heard[0].startswith(f"reach: 8 of {8 + lost} ")
    with pytest.raises(ValueError, match="failed in 20 of 20"):
        next(record("reach", 1, make=Line, expert=lambda task: lambda full: np.zeros(4), cap=3))
    for wrong, match in (
        ({"noise": -1.0}, "noise"),
        ({"cap": 501}, "500"),
        ({"ways": ("up",)}, "'up'"),
        ({"ways": ()}, "wa"),
    ):
        with pytest.raises(ValueError, match=match):
            next(record("around-reach", 1, make=Line, expert=ahead, **wrong))


# -- from the command line, interrupted ------------------------------------------------------------------------------------


FLAGS = "--tasks reach,push --episodes 6 --noise 0.05 --cap 40 --pictures true --size 16"


class Watched(Line):
    """Remembers which episodes were begun."""

    begun: ClassVar[list[int]] = []

    def reset(self, seed):
        Watched.begun.append(seed)
        return super().reset(seed)


def timid(stop=None):
    """An expert that is lost where it begins low, and at its call number `stop` pressed Ctrl-C."""
    calls = itertools.count()

    def expert(task):
        def act(full):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return np.array([1.0 if full[0] > -0.3 else -1.0, full[0], 0.5, -1], np.float32)

        return act

    return expert


def collected(folder, stop=None, *more):
    """Exit code of the command, and which episodes were begun for it."""
    Watched.begun.clear()
    argv = [*FLAGS.split(), *more, "--out", str(folder)]
    return guarded(lambda words: collect("collect", words, make=Watched, expert=timid(stop)), argv), [*Watched.begun]


def content(folder):
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data set that was never interrupted, and which episodes were begun for it."""
    folder = tmp_path_factory.mktemp("collected") / "whole"
    code, begun = collected(folder)
    assert code == 0 and len(open_dataset(folder)) == 12 < len(begun)  # some failed
    assert [p.name for p in folder.parent.iterdir()] == ["whole"]
    return folder, begun


@pytest.mark.parametrize("stop", [0, 30, 107, 175])
def test_an_interrupted_recording_goes_on(whole, tmp_path, capsys, stop):
    folder, parts = tmp_path / "set", tmp_path / "set_parts"
    code, first = collected(folder, stop)
    assert code == 130 and not folder.exists() and len(list(parts.glob("*/*.npz"))) == len(first) - 1
    (parts / "whole" / "data").mkdir(parents=True)  # of one that was killed while it wrote the data set
    code, second = collected(folder)
    assert code == 0 and first[:-1] + second == whole[1]  # none twice but the one that had not ended
    assert f"going on with {len(first) - 1} attempts" in capsys.readouterr().out
    assert content(folder) == content(whole[0]) and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_recording_goes_on_only_as_what_it_was(whole, tmp_path, capsys):
    folder, parts = tmp_path / "set", tmp_path / "set_parts"
    assert collected(folder, 107)[0] == 130
    for other in (["--episodes", "7"], ["--noise", "0.1"], ["--tasks", "push,reach"], ["--size", "20"]):
        assert collected(folder, None, *other) == (2, [])
        assert f"'{parts}': it holds a recording of other settings" in capsys.readouterr().err
    first = min(parts.glob("reach/*.npz"))
    there = first.read_bytes()
    for damaged in (b"", b"no attempt", there[: len(there) // 2], there[:200] + bytes(20) + there[220:]):
        first.write_bytes(damaged)
        assert collected(folder)[0] == 2 and "remove it, and this attempt is made again" in capsys.readouterr().err
    first.unlink()
    code, begun = collected(folder)
    assert code == 0 and begun[0] == int(first.stem) and content(folder) == content(whole[0])
    assert collected(folder) == (2, [])
    assert f"'{folder}': it is not empty but holds a data set" in capsys.readouterr().err
    mine = tmp_path / "other_parts" / "letter.txt"
    mine.parent.mkdir()
    mine.write_text("not of a recording")
    assert collected(tmp_path / "other") == (2, []) and mine.exists()
