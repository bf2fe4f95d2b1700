"""python -m tasks.vla: the small world, files of actions, and tokenizers and policies from the command line."""

import json
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from policy_toy import Line, ahead
from transformers.utils.logging import disable_progress_bar

from discdiff.cli import guarded
from tasks.vla import learning
from tasks.vla.__main__ import MAIN
from tasks.vla.commands import collect, train
from tasks.vla.judged import evaluate as judge
from tasks.vla.judged import sample
from tasks.vla.lerobot import open_dataset
from tasks.vla.metaworld import EASY10, MULTIMODAL
from tasks.vla.policy_settings import named
from tasks.vla.settings import KINDS, Actions, knobs
from tasks.vla.sources import cut, load
from tasks.vla.tokenizer import evaluate, fit
from tasks.vla.trial import draw
from tasks.vla.world import SPEED, State, demonstrate, expert, start, step
from tokenizers_vq import load_tokenizer
from tokenizers_vq.action.normalise import ActionStatistics, write_statistics

disable_progress_bar()  # as the command has it: an error is then the only line
SHOWN = demonstrate(60)


def test_expert_succeeds():
    assert SHOWN.success == 1 and demonstrate(40, 7).success > 0.95
    assert SHOWN.action.shape[1] == 7 and SHOWN.state.shape == (len(SHOWN.action), 8)
    assert SHOWN.action.abs().max() <= 1 and SHOWN.action.isfinite().all()
    assert set(SHOWN.task.tolist()) == {0, 1}
    again = demonstrate(60)
    assert torch.equal(again.action, SHOWN.action) and not torch.equal(demonstrate(60, 1).action[:5], SHOWN.action[:5])


def test_random_actions_do_not():
    generator = torch.Generator().manual_seed(0)
    state = start(200, generator)
    reached = state.done()
    for _ in range(30):
        state = step(state, 2 * torch.rand(200, 7, generator=generator) - 1)
        reached = reached | state.done()
    assert reached.double().mean() < 0.3


def test_a_low_hand_pushes_and_a_high_one_does_not():
    place = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    state = State(
        place, torch.tensor([0.0, 1.0]), torch.zeros(2), place + torch.tensor([0.1, 0.0]), place + 0.5, torch.ones(2)
    )
    right = torch.zeros(2, 7)
    right[:, 0] = 1
    after = step(state, right)
    assert after.block[0, 0] > SPEED and torch.equal(after.block[1], state.block[1])
    assert expert(state).shape == (2, 7)


def test_chunks_of_episodes():
    episode = torch.tensor([4, 4, 4, 7, 2, 2])
    actions = torch.arange(6.0)[:, None]
    found = cut(actions, episode, 3)
    assert found.actions[..., 0].tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 0], [3, 0, 0], [4, 5, 0], [5, 0, 0]]
    assert found.mask.sum(1).tolist() == [3, 2, 1, 1, 2, 1] and torch.equal(found.episode, episode)
    assert cut(actions, episode, 3, 2).actions[:, 0, 0].tolist() == [0, 2, 3, 4]
    assert cut(actions[:1], episode[:1], 3).mask.tolist() == [[True, False, False]]
    with pytest.raises(ValueError, match="together"):
        cut(actions, torch.tensor([0, 0, 1, 0, 1, 1]), 3)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data" / "chunk-000"
    folder.mkdir(parents=True)
    half = SHOWN.episode < 30
    for i, rows in enumerate((half, ~half)):
        table = {
            "action": SHOWN.action[rows].tolist(),
            "episode_index": SHOWN.episode[rows].tolist(),
            "other": [0] * int(rows.sum()),
        }
        pq.write_table(pa.table(table), folder / f"file-{i:03}.parquet")
    np.savez(tmp_path / "frames.npz", action=SHOWN.action.numpy(), episode_index=SHOWN.episode.numpy())
    whole = cut(SHOWN.action, SHOWN.episode, 8)
    np.savez(
        tmp_path / "chunks.npz",
        action=whole.actions.numpy(),
        mask=whole.mask.numpy(),
        episode_index=whole.episode.numpy(),
    )
    return tmp_path


@pytest.mark.parametrize("name", ["data", "frames.npz", "chunks.npz", "data/chunk-000/file-000.parquet"])
def test_every_source_gives_the_same_chunks(files, name):
    train, valid = load(Actions(str(files / name)), 8)
    expected = load(Actions(episodes=60), 8)[0].actions
    assert torch.equal(train.actions[:100], expected[:100])
    assert not set(train.episode.tolist()) & set(valid.episode.tolist()) and len(valid.episode.unique()) in (3, 6)


def test_damaged_and_missing_files(files, capsys):
    source = Actions(str(files / "data"))
    (files / "data" / "chunk-000" / "file-001.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"file-001.parquet: .*--damaged skip"):
        load(source, 8)
    train, _ = load(Actions(source.source, damaged="skip"), 8)
    assert len(train.actions) and "1 of 2 files were skipped: file-001.parquet" in capsys.readouterr().out
    for name in ("nowhere", "metrics.csv"):
        (files / "metrics.csv").write_text("x")
        with pytest.raises(ValueError, match="no npz or parquet"):
            load(Actions(str(files / name)), 8)
    broken = SHOWN.action.numpy().copy()
    broken[17, 2] = np.inf
    np.savez(files / "broken.npz", action=broken, episode_index=SHOWN.episode.numpy())
    np.savez(files / "bare.npz", action=SHOWN.action.numpy())
    np.savez(files / "single.npz", action=SHOWN.action.numpy(), episode_index=np.zeros(len(broken)))
    for name, match in (
        ("broken.npz", "1 actions are not finite, the first in row 17"),
        ("bare.npz", "--episode_field"),
        ("single.npz", "2 episodes"),
    ):
        with pytest.raises(ValueError, match=match):
            load(Actions(str(files / name)), 8)
    with pytest.raises(ValueError, match="--action_field"):
        load(Actions(str(files / "frames.npz"), action_field="actions"), 8)
    with pytest.raises(ValueError, match="--chunk 8"):
        load(Actions(str(files / "chunks.npz")), 5)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_and_evaluate(kind, tmp_path, capsys):
    more = (
        "--steps 20 --progress false --device cpu --width 16 --codebook_size 16 --code_dim 8"
        if kind == "chunks"
        else ""
    )
    fit(kind, "fit", f"--episodes 40 --chunk 8 {more} --out {tmp_path}".split())
    figures = json.loads((tmp_path / "metrics.json").read_text())
    bound = {"bins": 0.003, "dct": 0.01, "fast": 0.05, "chunks": 1.0}[kind]
    assert figures["error_unclipped"] < bound and figures["tokens"] <= 56
    assert "polyline" in (tmp_path / "report.html").read_text() or "<path" in (tmp_path / "report.html").read_text()
    evaluate("evaluate", [str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    assert load_tokenizer(tmp_path / "model").config.model_type == f"discdiff_action_{kind}"
    evaluate("evaluate", [str(tmp_path), "--data_seed", "9"])
    assert json.loads((tmp_path / "metrics.json").read_text()) != figures


def test_statistics_of_a_data_set(tmp_path):
    statistics = ActionStatistics.of(torch.rand(100, 7), raw=(6,))
    write_statistics(tmp_path / "stats.json", {"a": statistics, "b": statistics})
    flags = f"--episodes 20 --statistics {tmp_path / 'stats.json'} --out {tmp_path / 'run'}".split()
    with pytest.raises(ValueError, match="say whose by key"):
        fit("bins", "fit", flags)
    fit("bins", "fit", [*flags, "--key", "b"])
    assert load_tokenizer(tmp_path / "run" / "model").normaliser.statistics == statistics


def test_flags_are_those_of_the_configurations():
    assert {"spacing", "codebook_size", "chunk", "mode", "clip", "raw"} <= set(knobs("bins").__dataclass_fields__)
    assert {"scale", "vocabulary"} <= set(knobs("fast").__dataclass_fields__)
    assert {"share", "frequencies"} <= set(knobs("dct").__dataclass_fields__)
    assert {"num_quantizers", "commitment", "strides"} <= set(knobs("chunks").__dataclass_fields__)
    assert "statistics" not in knobs("bins").__dataclass_fields__


def test_command_line(capsys):
    assert guarded(MAIN, ["tokenizer", "fit"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m tasks.vla tokenizer fit {bins,dct,fast,chunks}")
    assert guarded(MAIN, ["tokenizer", "fit", "bins", "--spacings", "uniform"]) == 2
    said = capsys.readouterr().err
    assert "did you mean --spacing?" in said and said.count("\n") == 1


def test_a_folder_that_holds_none(tmp_path):
    with pytest.raises(ValueError, match="no action tokenizer"):
        evaluate("evaluate", [str(tmp_path)])


# -- policies from the command line ----------------------------------------------------------------------------------------

TINY = "--hidden_size 16 --num_layers 1 --num_heads 2 --chunk 4 --codebook_size 16 --batch_size 16 --warmup 1 --progress false"


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


def test_what_is_seen_from_above():
    state = np.array([[0.0, 0.5, 1.0, 0, -0.5, -0.5, 0.5, -0.5], [0.0, 0.5, 0.1, 0, -0.5, -0.5, 0.5, -0.5]], np.float32)
    seen = draw(state, 32).astype(int)
    assert seen.shape == (2, 32, 32, 3) and (seen[0, 24, 24] == (70, 160, 90)).all()  # the goal, right and near
    assert (seen[0, 24, 8] == (170, 110, 60)).all() and seen[0, 8, 16].sum() > seen[1, 8, 16].sum() + 100  # a low hand
    with pytest.raises(ValueError, match="size"):
        draw(state, 4)
