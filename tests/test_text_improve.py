"""`python -m tasks.text energy` and `distill`: an energy and a schedule trained beside a model, used by name, and refusals."""

import json

import pytest
from test_text_task import LINES, arguments, write

from discdiff.cli import guarded
from discdiff.jobs import read_job
from discdiff.sampling import Grid
from tasks.common.improve import Distillation, load_grid, save_grid
from tasks.text import __main__ as command
from tasks.text.extras import load_energy
from tasks.text.improve import distill, energy
from tasks.text.jobs import generate, likelihood

ENERGY = "--steps 40 --batch_size 32 --learning_rate 3e-3 --device cpu --progress false --log_every 20"
JUDGED = "--samples 4 --eval_rows 8 --sampler edlm --sampler.energy twin"
NORMALISED = "--steps 3 --teacher_steps 12 --rows 16 --objective normalised --name mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("improve")
    source = write(folder / "lines.txt", "\n".join(LINES * 40) + "\n")
    command.train("train", arguments(source, folder / "run", "--steps", "60"))
    return folder / "run"


def drawn(run, capsys, *flags):
    capsys.readouterr()
    command.sample("sample", [str(run), "--count", "3", *flags])
    return capsys.readouterr().out


def test_an_energy_is_trained_saved_and_used_by_name(run, capsys):
    energy("energy", [str(run), *ENERGY.split()])
    out = capsys.readouterr().out
    loss = float(out.split("rows: ")[1].split()[0])
    assert 0.1 < loss < 1.38 and (run / "energy" / "model.safetensors").exists()
    same = ("--sampler", "edlm", "--sampler.steps", "4", "--sample_seed", "5")
    texts = {name: drawn(run, capsys, *same, "--sampler.energy", name, "--sampler.k", "4") for name in
             ("learned", "twin", "carry_over")}  # fmt: skip
    plain = drawn(run, capsys, "--sampler.steps", "4", "--sample_seed", "5")
    assert len({*texts.values(), plain}) >= 3
    assert drawn(run, capsys, *same, "--sampler.energy", "twin", "--sampler.k", "1") == plain
    command.evaluate("evaluate", [str(run), *JUDGED.split()])
    assert json.loads((run / "metrics.json").read_text())["sampler"]["knobs"]["energy"] == "twin"


def test_a_schedule_is_learned_saved_and_used_by_name(run, capsys):
    distill("distill", [str(run), "--steps", "4", "--teacher_steps", "12", "--rows", "16"])
    distill("distill", [str(run), *NORMALISED.split()])
    assert "saved to" in capsys.readouterr().out
    learned, mine = load_grid(run, "kl_4"), load_grid(run, "mine")
    assert len(learned) == 4 and learned.used == () and len(mine) == 3 and mine.used == ("rate",)
    assert drawn(run, capsys, "--grid", "kl_4") != drawn(run, capsys, "--sampler.steps", "4")
    save_grid(run, "equal", Grid.uniform(4))
    assert drawn(run, capsys, "--grid", "equal") == drawn(run, capsys, "--sampler.steps", "4")
    assert load_grid(run, "") is None


@pytest.mark.parametrize(
    "main, flags, message",
    [
        (distill, "--objective kll", "choose from normalised, paper, kl"),
        (distill, "--learn pace", "choose from time, rate"),
        (distill, "--scale none", "choose from score, log_score"),
        (distill, "--rows 0", "at least 1"),
        (distill, "--steps 64 --teacher_steps 8", "8"),
        (energy, "--steps 0", "at least 1"),
        (command.sample, "--grid best", "grid is 'best'"),
        (command.sample, "--sampler edlm --sampler.energy best", "choose from twin"),
        (command.sample, "--sampler edlm", "energy is None"),
    ],
)
def test_refusals(run, capsys, main, flags, message):
    capsys.readouterr()
    assert guarded(lambda argv: main("prog", argv), [str(run), *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_one_grid_is_read_alone(tmp_path):
    save_grid(tmp_path, "good", Grid.uniform(3))
    (tmp_path / "grids" / "bad.json").write_text("{")
    assert load_grid(tmp_path, "good") == Grid.uniform(3)
    with pytest.raises(ValueError, match="bad"):
        load_grid(tmp_path, "bad")


def test_what_was_never_trained_is_refused(tmp_path):
    for name in ("twin", "learned"):
        with pytest.raises(ValueError, match="train"):
            load_energy(tmp_path, name)
    assert Distillation(learn="rate,temperature").learned == ("rate", "temperature")


def test_validation_rows_are_scored_into_shards(run, tmp_path, capsys):
    flags = [str(run), "--rows", "5", "--shard", "2", "--draws", "3", "--out", str(tmp_path / "nats")]
    likelihood("likelihood", flags)
    nats = read_job(tmp_path / "nats").to_pydict()["nats"]
    assert [len(row) for row in nats] == [3] * 5 and all(value > 0 for row in nats for value in row)
    assert "nats per row (5 rows, 3 draws)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="begun with draws 3"):
        likelihood("likelihood", [*flags, "--draws", "2"])


def test_rows_are_generated_into_shards(run, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\nthe dog\n")
    generate(
        "generate", [str(run), "--count", "5", "--shard", "2", "--out", str(tmp_path / "rows"), "--sampler.steps", "4"]
    )
    found = read_job(tmp_path / "rows").to_pydict()
    assert found["row"] == [0, 1, 2, 3, 4] and all(isinstance(text, str) for text in found["text"])
    flags = ["--count", "2", "--prompts", str(prompts), "--out", str(tmp_path / "begun"), "--sampler.steps", "4"]
    generate("generate", [str(run), *flags])
    assert [text[:7] for text in read_job(tmp_path / "begun").to_pydict()["text"]] == ["the cat", "the dog"]
    with pytest.raises(ValueError, match=r"seed"):
        generate("generate", [str(run), *flags, "--sample_seed", "1"])
