"""python -m tasks.vla collect|train|evaluate|sample: policies from the command line."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from policy_toy import Line, ahead
from transformers.utils.logging import disable_progress_bar

from discdiff.cli import guarded
from tasks.vla import learning
from tasks.vla.commands import collect, train
from tasks.vla.judged import evaluate as judge
from tasks.vla.judged import sample
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import EASY10, MULTIMODAL
from tasks.vla.policy_settings import named
from tasks.vla.rendering import Undrawable

TINY = "--hidden_size 16 --num_layers 1 --num_heads 2 --chunk 4 --codebook_size 16 --batch_size 16 --warmup 1 --progress false"


@pytest.fixture(autouse=True)
def quiet():
    """As the command has it, whatever ran before: an error is then the only line."""
    disable_progress_bar()


def run(command, argv, capsys, **given):
    """Exit code and what was printed."""
    code = guarded(lambda words: command("test", words, **given), [str(word) for word in argv])
    return code, capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of the small world after three steps, told pictures."""
    folder = tmp_path_factory.mktemp("vla") / "policy"
    train("train", f"--episodes 6 --picture 16 --proprio 4 --steps 3 {TINY} --out {folder}".split())
    return folder


def test_a_data_set_is_collected_and_learned(tmp_path, capsys):
    demos, out = tmp_path / "demos", tmp_path / "policy"
    wanted = f"--tasks reach,push --episodes 2 --pictures true --size 20 --cap 40 --out {demos}".split()
    code, said = run(collect, wanted, capsys, make=Line, expert=ahead)
    assert code == 0 and "reach: 2 of 2 episodes" in said.out and "push: 2 of 2" in said.out
    stored = open_dataset(demos)
    assert (len(stored), stored.fps, stored.tasks) == (4, 80, ("reach the goal", "push the puck to the goal"))
    assert run(collect, wanted, capsys, make=Line, expert=ahead)[0] == 2  # never over another one
    code, said = run(train, [*f"--data {demos} --picture 16 --steps 2 {TINY} --out {out}".split()], capsys)
    assert code == 0 and "4 episodes" in said.out, said.err
    shot = ["--frame", "2:1", "--unnorm_key", "demos"]
    code, said = run(sample, [out, *shot], capsys)
    lines = said.out.splitlines()
    assert code == 0 and lines[0] == "# push the puck to the goal" and len(json.loads(lines[4])) == 4
    tried = [out, "--tasks", "reach,push", "--episodes", 2, "--gifs", 1, "--cap", 6, "--steps", 2]
    code, said = run(judge, tried, capsys, make=Line)
    assert code == 0, said.err
    found = json.loads((out / "metrics.json").read_text())
    assert list(found["tasks"]) == ["reach", "push"] and len(found["episodes"]) == 4
    assert found["decoding"]["steps"] == 2 and 0 <= found["success_low"] <= found["success"] <= found["success_high"]
    assert found["ms_per_chunk"] > 0 and found["calls"] == pytest.approx(
        np.mean([-(-e["length"] // 4) for e in found["episodes"]])
    )
    code, said = run(judge, [out], capsys)
    assert code == 2 and "name tasks of Meta-World" in said.err
    demos.rename(tmp_path / "away")  # read before an episode is tried
    code, said = run(judge, tried, capsys, make=lambda task: pytest.fail("an episode was tried"))
    assert code == 2 and str(demos) in said.err
    (tmp_path / "away").rename(demos)
    for wrong, match in (
        (["--camera", "wrist"], "choose from"),
        (["--state", "observation.force"], "observation.state"),
        (["--episodes", "5"], "there are 4"),
        (["--method", "flow", "--width", "0.1"], "of masked tokens"),
    ):
        code, said = run(
            train, [*f"--data {demos} --picture 16 {TINY} --out {tmp_path / 'no'}".split(), *wrong], capsys
        )
        assert code == 2 and match in said.err, (wrong, said.err)


def test_without_a_screen_policies_are_tried_and_not_shown(tmp_path, capsys):
    class Dark(Line):
        def picture(self, size):
            raise Undrawable("nothing can be drawn: install libosmesa6")

    demos = tmp_path / "demos"
    flags = f"--tasks reach --episodes 4 --cap 40 --pictures true --size 20 --out {demos}".split()
    assert run(collect, flags, capsys, make=Line, expert=ahead)[0] == 0
    for picture, code in ((0, 0), (16, 2)):  # one that sees cannot be tried at all
        out = tmp_path / f"policy{picture}"
        run(train, f"--data {demos} --picture {picture} --steps 2 {TINY} --out {out}".split(), capsys)
        found, said = run(judge, [out, "--tasks", "reach", "--episodes", 2, "--cap", 6], capsys, make=Dark)
        assert found == code and "install libosmesa6" in (said.err if code else said.out)
        assert (out / "report.html").is_file() == (code == 0) and not (out / "episodes").exists()
    assert len(json.loads((tmp_path / "policy0" / "metrics.json").read_text())["episodes"]) == 2


def test_a_policy_of_the_small_world_is_tried_and_shown(trained, capsys):
    code, said = run(judge, [trained, "--episodes", 2, "--gifs", 1, "--cap", 8, "--seed", 9], capsys)
    assert code == 0, said.err
    page = (trained / "report.html").read_text()
    assert page.count("data:image/gif;base64") == 1 and page.count("dd-player") >= 2 and "committed in round" in page
    assert (trained / "episodes" / "episode_1.gif").read_bytes()[:3] == b"GIF" and "<script src" not in page
    first = json.loads((trained / "metrics.json").read_text())
    run(judge, [trained, "--episodes", 2, "--gifs", 0, "--cap", 8, "--seed", 9], capsys)
    again = json.loads((trained / "metrics.json").read_text())
    assert first["episodes"] == again["episodes"] and [e["seed"] for e in again["episodes"]] == [9, 10, 9, 10]
    assert run(judge, [trained, "--tasks", "reach"], capsys)[1].err.count("actions is 7") == 1
    for wrong, match in (("--batch", "of Meta-World"), ("--cap", "cap"), ("--window", "window")):
        code, said = run(judge, [trained, wrong, "3" if wrong == "--batch" else "-1"], capsys)
        assert code == 2 and match in said.err


def test_samples_are_asked_for_by_state_or_frame(trained, tmp_path, capsys):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "seen.png")
    state = ["--state", "[0.1, 0.2, 1, 0]", "--instruction", "reach the goal", "--picture", tmp_path / "seen.png"]
    prefix = [[0.5, 0.25, 0, 0, 0, 0, -1]]
    code, said = run(sample, [trained, *state, "--prefix", json.dumps(prefix), "--seed", 3], capsys)
    made = [json.loads(line) for line in said.out.splitlines()]
    assert code == 0 and np.shape(made) == (4, 7) and made[:1] == prefix
    draw_two = ["--temperature", 1, "--read", "token", "--steps", 2, "--seed"]
    drawn = [run(sample, [trained, *state, *draw_two, seed], capsys)[1].out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    code, said = run(sample, [trained, "--frame", "1:2", "--sampler", "maskgit", "--sampler.noise", "2.0"], capsys)
    assert code == 0 and said.out.splitlines()[-1].endswith("from the demonstration in the mean"), said.err
    for wrong, match in (
        ([], "give one of the two"),
        (["--frame", "9:0"], "there are 6"),
        (["--frame", "0:999"], "frames"),
        (["--frame", "0"], "episode:frame"),
        (["--frame", "0:0", "--unnorm_key", "bridge"], "choose from ['world']"),
        (["--frame", "0:0", "--sampler.noises", "1"], "unknown argument"),
        ([*state[:1], "[1, 2", *state[2:]], "as JSON"),
        ([*state[:1], "[1, 2]", *state[2:]], "give (1, 4)"),
        (state[:4], "pictures is None"),
    ):
        code, said = run(sample, [trained, *wrong], capsys)
        assert code == 2 and match in said.err, (wrong, said.err)


def test_training_goes_on_and_only_as_what_it_was(tmp_path, capsys, monkeypatch):
    out, step = tmp_path / "policy", learning.DiffusionTrainer.training_step
    flags = f"--episodes 6 --method parallel --steps 3 {TINY}".split()
    assert run(train, [*flags, "--out", tmp_path / "whole"], capsys)[0] == 0

    def interrupted(trainer, *arguments):
        if trainer.state.global_step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, *arguments)

    monkeypatch.setattr(learning.DiffusionTrainer, "training_step", interrupted)
    assert run(train, [*flags, "--out", out], capsys)[0] == 130
    monkeypatch.undo()
    assert "finish python -m tasks.vla train" in run(sample, [out, "--frame", "0:0"], capsys)[1].err
    for other in (["--chunk", "3"], ["--episodes", "7"], ["--method", "flow"]):
        code, said = run(train, [*flags, *other, "--out", out], capsys)
        assert code == 2 and "other settings or data" in said.err
    assert run(train, [*flags, "--out", out], capsys)[0] == 0
    same = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    assert same[0] == same[1]  # as if it had never been interrupted
    assert run(train, [*flags, "--out", out], capsys)[0] == 0  # and again when it has ended
    assert (out / "model" / "model.safetensors").read_bytes() == same[0]
    (out / "task.json").write_text('{"actions": {}}')
    assert "no policy there" in run(sample, [out, "--frame", "0:0"], capsys)[1].err


def test_settings_of_policies_are_refused(tmp_path, capsys):
    assert named(("easy10", "reach", "lang"))[:10] == EASY10 and len(named(("hard10", "multimodal"))) == 10 + len(
        MULTIMODAL
    )
    for command, wrong, match in (
        (collect, "--tasks reech", "did you mean 'reach'"),
        (collect, "--tasks reach --ways left", "reach is done in"),
        (collect, "--tasks reach --sentences spoken", "held_out"),
        (collect, "--episodes 0", "episodes"),
        (train, "--data world --camera top", "the small world has its own"),
        (train, f"--data {tmp_path}", "info.json"),
        (train, "--method diffusion", "choose from masked"),
        (judge, f"{tmp_path}", "no policy there"),
    ):
        code, said = run(command, wrong.split(), capsys)
        assert code == 2 and match in said.err and said.err.count("\n") == 1, (wrong, said.err)
