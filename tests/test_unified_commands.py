"""python -m tasks.vla unified train|evaluate: a policy that foresees, from the command line."""

import json
import signal
from functools import partial

import numpy as np
import pytest
from policy_toy import Line, ahead
from test_vla_commands import run
from transformers.utils.logging import disable_progress_bar

from tasks.vla import judged, learning, trial
from tasks.vla.__main__ import MAIN
from tasks.vla.commands import collect
from tasks.vla.policy_settings import Data
from tasks.vla.unified import UnifiedPolicy
from tasks.vla.unified_commands import evaluate, held, opened, train

CODEC = "--unified.width 16 --codec.width 8 --strides 2,2 --codec.codebook_size 16"
SIZES = f"{CODEC} --hidden_size 16 --num_layers 1 --num_heads 2"
SHORT = "--picture_steps 3 --steps 3 --batch_size 16 --picture_batch 16 --warmup 1 --log_every 1 --progress false"
TINY = f"{SIZES} --chunk 4 --policy.codebook_size 16 --held 2 {SHORT}"
WORLD = f"--episodes 8 --proprio 4 --world_steps 3 {TINY}"


@pytest.fixture(autouse=True)
def quiet():
    """As the command has it, whatever ran before: an error is then the only line."""
    disable_progress_bar()


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """A call is timed once."""
    monkeypatch.setattr(judged, "latency", partial(judged.latency, repeats=1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of the small world after three steps of every stage."""
    folder = tmp_path_factory.mktemp("unified") / "policy"
    MAIN(["unified", "train", *f"--data world {WORLD} --out {folder}".split()])
    return folder


def weights(folder):
    return (folder / "actions" / "model" / "model.safetensors").read_bytes()


def test_a_policy_of_the_small_world_is_tried_and_shown(trained, capsys):
    tried = f"unified evaluate {trained} --episodes 2 --cap 8 --seed 9 --gifs 1"
    found = []
    for words in ("", *["--steps 2 --decoding separate"] * 2):
        MAIN([*tried.split(), *words.split()])
        found.append(json.loads((trained / "metrics.json").read_text()))
        assert str(trained / "report.html") in capsys.readouterr().out
    plain, apart, again = found
    assert [e["seed"] for e in plain["episodes"]] == [9, 10, 9, 10] and again["episodes"] == apart["episodes"]
    for one, way, steps in ((plain, "joint", 8), (apart, "separate", 2)):
        assert one["foresight"] == {"decoding": way} and one["decoding"]["steps"] == steps
    assert 0 <= plain["success_low"] <= plain["success"] <= plain["success_high"] and plain["ms_per_chunk"] > 0
    page = (trained / "report.html").read_text()
    assert page.count("data:image/gif;base64") == 1 and "4 rounds" in page and "foreseen and true" in page
    assert ">Training<" in page and all(f">{name}<" in page for name in ("world", "actions"))
    assert "Tasks" in page and "separate decoding in 2 rounds for each part" in page
    assert (trained / "episodes" / "episode_1.gif").read_bytes()[:3] == b"GIF"


def test_pictures_are_measured_on_what_was_not_learned(trained, capsys):
    policy, (_, _, data, stages) = UnifiedPolicy.from_pretrained(trained), opened(trained)
    kept, made = held(data, stages.held), trial.demonstrated(8, picture=16)
    assert kept == [2, 6]
    run(evaluate, [trained, "--episodes", 1, "--cap", 4, "--gifs", 0], capsys)
    squares = []
    for each in (made[i] for i in kept):
        seen = each.pictures["above"].astype(np.float64)
        now = np.arange(0, len(each), 4)
        squares += list((seen[np.minimum(now + 4, len(each) - 1)] - seen[now]) ** 2)
    found = json.loads((trained / "metrics.json").read_text())
    assert found["error_copied"] == pytest.approx(np.mean(squares) ** 0.5 / 255, rel=1e-4)
    assert 0 < found["error_coded"] < 1 and 0 < found["error_predicted"] < 1
    shown = [each for i, each in enumerate(made) if i not in kept]
    assert policy.told.scale == learning.Scale.of(np.concatenate([e.state[:, :4] for e in shown]))


def test_every_stage_goes_on_and_only_as_what_it_was(trained, tmp_path, capsys, monkeypatch):
    out, step = tmp_path / "policy", learning.DiffusionTrainer.training_step
    flags = f"--data world {WORLD}".split()
    for stage, sign in (("pictures", signal.SIGTERM), ("world", signal.SIGINT), ("policy", signal.SIGINT)):

        def interrupted(trainer, *arguments, stage=stage, sign=sign):
            if trainer.args.output_dir.endswith(f"{stage}_training") and trainer.state.global_step == 1:
                signal.raise_signal(sign)
            return step(trainer, *arguments)

        monkeypatch.setattr(learning.DiffusionTrainer, "training_step", interrupted)
        assert run(train, [*flags, "--out", out], capsys)[0] == 130
        assert not (out / "unified.json").exists() and (out / "world" / "unified.json").exists() == (stage == "policy")
        monkeypatch.undo()
        code, said = run(evaluate, [out], capsys)
        assert code == 2 and "finish python -m tasks.vla unified train" in said.err
        for other in ("--picture_steps 4", "--world_steps 4", "--held 1", "--decoding separate", "--vision 0.1"):
            code, said = run(train, [*flags, *other.split(), "--out", out], capsys)
            assert code == 2 and "other settings or data" in said.err, (other, said.err)
    assert run(train, [*flags, "--out", out], capsys)[0] == 0
    assert weights(out) == weights(trained)  # as if it had never been interrupted
    assert run(train, [*flags, "--out", out], capsys)[0] == 0  # and again when it has ended
    assert weights(out) == weights(trained)


def test_a_data_set_with_pictures(tmp_path, capsys):
    demos, out = tmp_path / "demos", tmp_path / "policy"
    wanted = f"--tasks reach,push --episodes 3 --pictures true --size 20 --cap 40 --out {demos}".split()
    assert run(collect, wanted, capsys, make=Line, expert=ahead)[0] == 0
    flags = f"--data {demos} --decoding action --proprio 4 {TINY} --out {out}".split()
    code, said = run(train, flags, capsys)
    assert code == 0 and "4 episodes" in said.out and not (out / "world").exists(), said.err
    assert list(UnifiedPolicy.from_pretrained(out).told.statistics) == ["demos"]
    tried = f"{out} --tasks reach,push --episodes 2 --gifs 1 --cap 6 --steps 2".split()
    code, said = run(evaluate, tried, capsys, make=Line)
    assert code == 0, said.err
    found = json.loads((out / "metrics.json").read_text())
    assert list(found["tasks"]) == ["reach", "push"] and "error_predicted" not in found
    code, said = run(evaluate, [out], capsys)
    assert code == 2 and "name tasks of Meta-World" in said.err
    demos.rename(tmp_path / "away")  # read before an episode is tried
    code, said = run(evaluate, tried, capsys, make=lambda task: pytest.fail("an episode was tried"))
    assert code == 2 and str(demos) in said.err


def test_settings_are_refused(trained, tmp_path, capsys):
    with pytest.raises(ValueError, match="at least is to be learned"):
        held(Data(episodes=3), 3)
    for command, wrong, match in (
        (train, "--attention released --decoding separate", "attention and decoding"),
        (train, "--decoding action --world_steps 7", "no world to learn"),
        (train, "--vision 0", "vision"),
        (train, "--held 8", "there are 8 demonstrations"),
        (train, "--held 0", "at least 1"),
        (train, "--unified.width 18", "multiples of 4"),
        (train, "--picture 16", "network of its own"),
        (train, "--method flow", "network of its own"),
        (train, "--weights elbo", "masked by MaskGIT's ratios"),
        (train, "--gann 1", "unknown argument"),
        (train, "--camera top", "the small world has its own"),
        (evaluate, f"{trained} --decoding action", "decoded by 'joint' or 'separate'"),
        (evaluate, f"{trained} --tasks reach", "actions is 7"),
        (evaluate, f"{trained} --grid kl_4", "there is none yet"),
        (evaluate, f"{tmp_path}", "no unified policy there"),
    ):
        words = [*WORLD.split(), "--out", str(tmp_path / "no")] if command is train else []
        code, said = run(command, [*words, *wrong.split()], capsys)
        assert code == 2 and match in said.err and said.err.count("\n") == 1, (wrong, said.err)
    assert not (tmp_path / "no").exists()  # nothing was begun
