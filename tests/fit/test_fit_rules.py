"""The rules of this folder, read from its files: short toys, public parts only."""

import ast
from pathlib import Path

import pytest

TOYS = sorted(path for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name)
LONGEST = 40


def test_there_are_toys():
    assert len(TOYS) >= 11


@pytest.mark.parametrize("path", TOYS, ids=lambda path: path.stem)
def test_toy_is_short_and_public(path):
    source = path.read_text(encoding="utf-8")
    body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    free = [body[0], *imports]  # the docstring and the imports are not counted
    skipped = {line for node in free for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = [n for n, line in enumerate(source.splitlines(), 1) if line.strip() and n not in skipped]
    assert len(lines) <= LONGEST, f"{path.name} has {len(lines)} lines, {LONGEST} are allowed"
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    private = {name for name in names if name.startswith("_")} - {"_replace"}  # a NamedTuple's own public method
    assert not private, f"{path.name} needs private parts: {sorted(private)}"
