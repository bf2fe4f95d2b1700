"""README.md's section on robot policies: its commands, run at a small size."""

import json
import re
import shlex

from policy_toy import Line, ahead
from test_docs import ROOT
from test_vla_commands import TINY, run

from tasks.vla.commands import collect, train
from tasks.vla.judged import evaluate


def test_the_section_works_when_pasted(tmp_path, monkeypatch, capsys):
    """Its own lines in their order, on a simulator of a line; and what it says of the small world."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Train a robot policy\n")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    install, *lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert install == ["pip", "install", "-e", ".[robots]"]
    assert [line[:4] for line in lines] == [["python", "-m", "tasks.vla", n] for n in ("collect", "train", "evaluate")]
    assert all(words in section for words in ("`train --data world`", "`evaluate` without `--tasks`"))
    monkeypatch.chdir(tmp_path)
    wanted, learned, tried = (line[4:] for line in lines)
    world = ["world" if word == "runs/demonstrations" else word for word in learned]
    fast, few = f"{TINY} --steps 2", "--episodes 2 --gifs 1 --cap 8"
    for command, own, small, given in (
        (collect, wanted, "--episodes 4 --cap 40", {"make": Line, "expert": ahead}),
        (train, learned, fast, {}),
        (evaluate, tried, few, {"make": Line}),
        (train, world, f"{fast} --episodes 6 --out runs/small", {}),
        (evaluate, ["runs/small"], few, {}),
    ):
        code, said = run(command, [*own, *small.split()], capsys, **given)
        assert code == 0, (own, said.err)
    for folder in (tmp_path / "runs/robot", tmp_path / "runs/small"):
        assert (folder / "episodes/episode_1.gif").is_file()
        assert "data:image/gif;base64" in (folder / "report.html").read_text()
    assert list(json.loads((tmp_path / "runs/robot/metrics.json").read_text())["tasks"]) == ["drawer-open"]
