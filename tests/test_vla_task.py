"""python -m tasks.vla tokenizer: the small world, files of actions, and tokenizers from the command line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers.utils.logging import disable_progress_bar

from discdiff.cli import guarded
from tasks.vla.__main__ import MAIN
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


def test_what_is_seen_from_above():
    state = np.array([[0.0, 0.5, 1.0, 0, -0.5, -0.5, 0.5, -0.5], [0.0, 0.5, 0.1, 0, -0.5, -0.5, 0.5, -0.5]], np.float32)
    seen = draw(state, 32).astype(int)
    assert seen.shape == (2, 32, 32, 3) and (seen[0, 24, 24] == (70, 160, 90)).all()  # the goal, right and near
    assert (seen[0, 24, 8] == (170, 110, 60)).all() and seen[0, 8, 16].sum() > seen[1, 8, 16].sum() + 100  # a low hand
    with pytest.raises(ValueError, match="size"):
        draw(state, 4)
