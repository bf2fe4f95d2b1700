"""What the documents show is true: Python blocks of README.md and docs/*.md run, examples run, named parts exist."""

import multiprocessing
import os
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from discdiff.sampling import PRESETS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def script(text: str) -> str:
    """The ```python blocks of a Markdown text as one program; lines keep their numbers, so tracebacks point there."""
    lines, fence = [], None
    for line in text.splitlines():
        bare = line.strip()
        if fence is None and (match := re.match(r"(\s*)(`{3,}|~{3,})\s*(\w*)", line)):
            fence, indent, runs = match[2], len(match[1]), match[3] == "python"
            lines.append("")
        elif fence is not None and bare.startswith(fence) and not bare.strip(fence[0]):
            fence = None
            lines.append("")
        else:
            lines.append(line[indent:] if fence is not None and runs else "")
    if fence is not None:
        raise ValueError("a fenced block is never closed")
    return "\n".join(lines) + "\n"


# Forked from a process that has imported what they import, and done nothing else: importing costs more than most of them.
NURSERY = multiprocessing.get_context("forkserver")
PARTS = ("models", "sampling", "training", "anchoring", "energy", "distill")
WITH_THEM = ("tasks.image.commands", "datasets", "sklearn.datasets", "sklearn.svm")
NURSERY.set_forkserver_preload([*(f"discdiff.{part}" for part in PARTS), *WITH_THEM])


def _child(path: Path, folder: Path, output: Path) -> None:
    with output.open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    os.environ.update(ENVIRONMENT)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(path)]
    torch.set_num_threads(1)
    runpy.run_path(str(path), run_name="__main__")


def run(path: Path, folder: Path, seconds: float) -> tuple[int | None, str]:
    """Exit code and output of the file, run on one thread in a process and a folder of its own; None: out of time."""
    output = folder / "output.txt"
    child = NURSERY.Process(target=_child, args=(path, folder, output))
    child.start()
    child.join(seconds)
    code = child.exitcode
    child.kill()
    child.join()
    return code, output.read_text()


def resolves(name: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


DOCUMENTS = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.exists() and "```python" in path.read_text()
]


def test_script_keeps_lines_and_leaves_the_rest():
    text = "text\n```python\na = 1\n```\n```bash\nls\n```\n- item\n  ```python\n  if a:\n      b = 2\n  ```\n"
    assert script(text).splitlines() == ["", "", "a = 1", "", "", "", "", "", "", "if a:", "    b = 2", ""]
    with pytest.raises(ValueError, match="never closed"):
        script("```python\na = 1\n")


def test_a_program_that_fails_or_hangs_is_noticed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("print('before')\n1 / 0\n")
    code, output = run(program, tmp_path, 60)
    assert code == 1 and "before" in output and "ZeroDivisionError" in output
    program.write_text("while True: pass\n")
    assert run(program, tmp_path, 1)[0] is None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_blocks_run(document, tmp_path):
    program = tmp_path / f"{document.stem}.py"
    program.write_text(script(document.read_text(encoding="utf-8")), encoding="utf-8")
    code, output = run(program, tmp_path, 240)
    assert code == 0, f"{document.name} (same line numbers):\n{output}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, tmp_path):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60, f"{example.name}: keep an example under 60 lines"
    code, output = run(example, tmp_path, 240)
    assert code == 0, f"{example.name}:\n{output}"


def test_papers_name_parts_that_exist():
    rows = [row for row in (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").splitlines() if row[:2] == "| "]
    names = {name for row in rows if "planned" not in row for name in re.findall(r"`(discdiff(?:\.\w+)+)`", row)}
    assert names
    missing = [name for name in sorted(names) if not resolves(name)]
    assert not missing, f"docs/papers.md names what cannot be imported: {missing}; correct the row, or say 'planned'"


def test_every_named_sampler_has_its_line():
    text = (ROOT / "docs" / "samplers.md").read_text()
    lines = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", text, re.MULTILINE)}
    assert set(lines) == set(PRESETS)
    for name, preset in PRESETS.items():
        assert f"| {preset.law} |" in lines[name], name
        for number in re.findall(r"\d{4}\.\d{4,5}", preset.paper):
            assert f"https://arxiv.org/abs/{number}" in lines[name] or name == "ancestral", (name, number)
