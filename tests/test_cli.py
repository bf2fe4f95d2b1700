"""Flags from dataclass fields, errors in one line, settings as dictionaries, and the `discdiff` command."""

import json
from dataclasses import dataclass, field

import pytest

from discdiff.cli import commands, guarded, main, parse
from discdiff.config import build, checked, from_dict, to_dict
from discdiff.layout import VocabLayout
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.processes import Absorbing, MaskOrReplace, PerSegment, Uniform
from discdiff.schedules import SCHEDULES, Geometric


@dataclass(frozen=True)
class Run:
    """How to train.

    Only the first line is shown.
    """

    steps: int = 10
    learning_rate: float = 1e-3
    limit: int | None = 5
    name: str = "a 100% run"
    twin: bool = True
    quick: bool | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    seeds: tuple[int, ...] = ()
    words: tuple = ("x",)
    checks: tuple[bool, ...] = ()
    size: int | float = 1
    derived: int = field(init=False, default=3)

    def __post_init__(self):
        checked("steps", self.steps, self.steps > 0, "give at least one")


@dataclass(frozen=True)
class Judge:
    """Who judges."""

    model: str
    steps: int = 2


def run(*argv, **sections):
    return parse("prog", list(argv), sections or {"run": Run})["run"]


@pytest.mark.parametrize(
    "argv, name, value",
    [
        ("--steps 7", "steps", 7),
        ("--steps=7", "steps", 7),
        ("--learning-rate 3e-4", "learning_rate", 3e-4),
        ("--learning_rate 3e-4", "learning_rate", 3e-4),
        ("--learning_rate=-3e-4", "learning_rate", -3e-4),
        ("--limit 3", "limit", 3),
        ("--limit none", "limit", None),
        ("--limit None", "limit", None),
        ("--name none", "name", "none"),
        ("--twin false", "twin", False),
        ("--twin No", "twin", False),
        ("--twin 0", "twin", False),
        ("--twin yes", "twin", True),
        ("--quick none", "quick", None),
        ("--quick 1", "quick", True),
        ("--betas 0.5,0.6", "betas", (0.5, 0.6)),
        ("--seeds 1,2,3", "seeds", (1, 2, 3)),
        ("--words a,b", "words", ("a", "b")),
        ("--words=", "words", ()),
        ("--checks true,false", "checks", (True, False)),
        ("--size 3", "size", 3),
        ("--size 0.5", "size", 0.5),
        ("--steps 7 --steps 8", "steps", 8),
    ],
)
def test_flags(argv, name, value):
    found = run(*argv.split())
    assert getattr(found, name) == value and type(getattr(found, name)) is type(value)
    assert {**vars(found), name: None} == {**vars(Run()), name: None}  # nothing else changed


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--stps 3", "unknown argument --stps: did you mean --steps?"),
        ("--learning-rat=3", "unknown argument --learning-rat=3: did you mean --learning-rate?"),
        ("--ste 3", "unknown argument --ste"),  # no abbreviations
        ("--derived 3", "unknown argument --derived"),
        ("stray", "unknown argument stray"),
        ("--steps x", "argument --steps.*: 'x' is no int"),
        ("--steps 1.5", "'1.5' is no int"),
        ("--steps none", "'none' is no int"),
        ("--limit 1.5", "'1.5' is no int"),
        ("--learning_rate fast", "'fast' is no float"),
        ("--twin maybe", "'maybe' is no bool"),
        ("--betas 0.5,b", "'b' is no float"),
        ("--size x", "'x' is no int or float"),
        ("--steps", "expected one argument"),
        ("--steps 0", "steps is 0: give at least one"),
    ],
)
def test_wrong_flags_are_one_line(argv, message, capsys):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        run(*argv.split())
    assert guarded(lambda rest: run(*rest), argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_fields_of_two_sections_are_prefixed():
    sections = {"run": Run, "judge": Judge}
    found = parse("prog", ["--run.steps", "4", "--judge.steps", "9", "--model", "m", "--limit", "2"], sections)
    assert found == {"run": Run(steps=4, limit=2), "judge": Judge("m", 9)}
    with pytest.raises(ValueError, match="unknown argument --steps: did you mean --(run|judge).steps"):
        parse("prog", ["--steps", "4", "--model", "m"], sections)
    with pytest.raises(ValueError, match="Judge: .*missing 1 required .*'model'; settings are model, steps"):
        parse("prog", [], {"judge": Judge})


def test_positionals():
    found = parse("prog", ["here", "--steps", "3", "there"], {"run": Run}, ("source", "target"))
    assert found == {"run": Run(steps=3), "source": "here", "target": "there"}
    with pytest.raises(ValueError, match="required: target"):
        parse("prog", ["here"], {"run": Run}, ("source", "target"))


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "How to train." in text and "Only the first line" not in text
    assert "default 'a 100% run'" in text and "--learning-rate" in text and "derived" not in text


def test_guarded(capsys):
    def raises(error):
        def command(argv):
            raise error

        return guarded(command, [])

    assert raises(ValueError("two\n  lines")) == 2 and capsys.readouterr().err == "error: two lines\n"
    assert raises(FileNotFoundError(2, "No such file", "a.txt")) == 2
    assert capsys.readouterr().err == "error: [Errno 2] No such file: 'a.txt'\n"
    assert raises(KeyboardInterrupt()) == 130 and capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):  # a fault of the program keeps its traceback
        raises(ZeroDivisionError())
    seen = []
    assert guarded(seen.extend, ["a", "b"]) == 0 and seen == ["a", "b"]


def test_commands(capsys, monkeypatch):
    seen = []

    def note(prog, argv):
        seen.append((prog, argv))

    command = commands("prog", {"train": note, "sample": note, "codes": {"fit": note, "judge": note}})
    command(["sample", "--steps", "3"])
    command(["codes", "fit", "--steps", "3"])
    assert seen == [("prog sample", ["--steps", "3"]), ("prog codes fit", ["--steps", "3"])]
    for argv, match in (
        (["trian"], "unknown command 'trian'; did you mean 'train'. Known: train, sample, codes"),
        (["zzz"], "unknown command 'zzz'. Known: train, sample, codes"),
        (["codes", "fti"], "unknown command 'fti'; did you mean 'fit'. Known: fit, judge"),
    ):
        with pytest.raises(ValueError, match=match):
            command(argv)
    for argv in ([], ["--help"], ["-h"]):
        command(argv)
        assert "usage: prog {train,sample,codes}" in capsys.readouterr().out
    command(["codes", "--help"])
    assert "usage: prog codes {fit,judge}" in capsys.readouterr().out
    assert len(seen) == 2
    monkeypatch.setattr("sys.argv", ["prog", "train"])
    assert guarded(command) == 0 and seen[-1] == ("prog train", [])


TYPES = {k.__name__: k for k in (Absorbing, MaskOrReplace, PerSegment, Uniform, Run, Judge, *SCHEDULES.values())}


@pytest.mark.parametrize(
    "value",
    [
        Absorbing(Geometric(0.2, 3.0)),
        PerSegment({"image": Uniform(), "text": MaskOrReplace()}),
        Run(limit=None, seeds=(1, 2), words=()),
        {"a": (Judge("m"), None), "b": ((1, 2), "x", 0.5, True)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_settings_survive_json(value):
    assert from_dict(json.loads(json.dumps(to_dict(value))), TYPES) == value


def test_wrong_settings():
    data = to_dict(Run())
    assert data["type"] == "Run" and data["betas"] == [0.9, 0.98] and "derived" not in data
    for change, message in (
        ({"type": "Rum"}, "unknown type 'Rum'; did you mean 'Run'\\? Known: .*Judge"),
        ({"type": "Elephant"}, "unknown type 'Elephant'\\. Known"),
        ({"type": 3}, "unknown type 3"),
        ({"stesp": 3}, "unknown setting of Run 'stesp'; did you mean 'steps'\\?"),
        ({"derived": 3}, "unknown setting of Run 'derived'"),
        ({"steps": -1}, "steps is -1: give at least one"),
        ({"steps": "many"}, "Run.steps is 'many': give int"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict({**data, **change}, TYPES)
    with pytest.raises(ValueError, match="Judge: .*'model'; settings are model, steps"):
        build(Judge, {})
    assert build(Judge, {"model": "m"}) == Judge("m")
    assert checked("x", 1, True, "no") is None


def test_info(tmp_path, capsys, monkeypatch):
    config = DiscDiffConfig(
        vocab=VocabLayout(12), hidden_size=16, num_layers=1, num_heads=2, process=to_dict(Uniform())
    )
    model = DiscDiffModel.seeded(config, 0)
    model.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["discdiff", "info", str(tmp_path / "model")])
    assert main() == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == sum(p.numel() for p in model.parameters())
    assert shown["hidden_size"] == 16 and shown["vocab"]["text_size"] == 12 and shown["process"]["type"] == "Uniform"
    for argv, message in ((["info"], "required: folder"), (["info", str(tmp_path / "no")], "there is no folder")):
        monkeypatch.setattr("sys.argv", ["discdiff", *argv])
        assert main() == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
