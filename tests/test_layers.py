"""The architecture, read from the imports of every module: an import may only point to a lower layer.

Siblings of one layer may import each other as long as no cycle arises between them. Imports inside functions count.
Imports under `if TYPE_CHECKING` are free among layers 0 to 3. No module is imported to find this out.
"""

import ast
import graphlib
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("types", "config", "manifest"),
    ("processes", "schedules", "layout", "noise", "models", "clocks", "maskers", "values"),
    ("kernels", "correctors", "scores", "rules", "denoisers", "objectives", "proposals"),
    ("sampling", "distill", "anchoring", "energy", "joint", "metrics", "testing"),
    ("cli", "training", "report", "checkpoints", "checking", "jobs", "lm_eval", "unified"),
    ("__init__", "__main__"),  # the package's front door: names what is below, imported by nobody
)
LAYER = {group: level for level, groups in enumerate(LAYERS) for group in groups}
FACADES = {("models", "sampling")}  # DiscDiffModel.generate hands itself to the layers above, inside the method only
OUTSIDE = ("tasks", "examples", "tests", "benchmarks")
FORBIDDEN = {"discdiff": ("tokenizers_vq", *OUTSIDE), "tokenizers_vq": ("discdiff", *OUTSIDE)}
SOURCES = ("discdiff", "tokenizers_vq", *OUTSIDE)


class Import(NamedTuple):
    """One imported name, such as discdiff.noise.Noise; `type_only` where it stands under `if TYPE_CHECKING`."""

    name: str
    line: int
    type_only: bool


def imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """All imports of a module's source: statements anywhere, relative ones resolved, and import_module of a literal."""
    found = []

    def visit(node: ast.AST, type_only: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        found.extend(Import(name, node.lineno, type_only) for name in names)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, type_only or (guarded and field == "body"))

    visit(ast.parse(source), False)
    return found


def group(name: str) -> str:
    """The part of discdiff a name belongs to: discdiff.kernels.ancestral -> kernels; the package itself -> __init__."""
    head = name.split(".")[1] if "." in name else "__init__"
    is_module = any((ROOT / "discdiff" / path).exists() for path in (head, f"{head}.py"))
    return head if head in LAYER or is_module else "__init__"


def modules(package: str) -> list[tuple[Path, str]]:
    """Every file of a package of this repository with its dotted name."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return [(path, ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")) for path in paths]


def package_imports(package: str) -> list[tuple[str, str, Import]]:
    """(where, module, import) of every import in a package."""
    return [
        (f"{path.relative_to(ROOT)}:{found.line}", module, found)
        for path, module in modules(package)
        for found in imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    ]


def inner_imports() -> list[tuple[str, str, str, bool]]:
    """(where, importing group, imported group, type_only) of every import within discdiff that leaves its group."""
    edges = [
        (where, "__init__" if module == "discdiff" else module.split(".")[1], group(found.name), found.type_only)
        for where, module, found in package_imports("discdiff")
        if found.name.split(".")[0] == "discdiff"
    ]
    return [edge for edge in edges if edge[1] != edge[2]]


def checked_files() -> list[Path]:
    """The Python files that are or will be tracked; without git, those of the source folders."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    try:
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        return [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]


def test_reader_sees_every_form_of_import():
    source = """
import torch, discdiff.noise as noise
from discdiff import layout
from . import score
from .types import State
from ..processes import Absorbing
if TYPE_CHECKING:
    from discdiff.sampling import sample
else:
    import numpy
def late():
    import torchvision.ops
    importlib.import_module("discdiff.cli")
"""
    found = {item.name: item.type_only for item in imports(source, "discdiff.kernels.ancestral")}
    assert found == {
        "torch": False,
        "discdiff.noise": False,
        "discdiff.layout": False,
        "discdiff.kernels.score": False,
        "discdiff.kernels.types.State": False,
        "discdiff.processes.Absorbing": False,
        "discdiff.sampling.sample": True,
        "numpy": False,
        "torchvision.ops": False,
        "discdiff.cli": False,
    }
    assert imports("from .a import b", "discdiff.kernels", is_package=True)[0].name == "discdiff.kernels.a.b"
    assert [group(name) for name in ("discdiff", "discdiff.sample", "discdiff.noise.Noise")] == [
        "__init__",
        "__init__",
        "noise",
    ]


def test_every_module_has_a_layer():
    names = {name.split(".")[1] for _, name in modules("discdiff") if "." in name}
    assert names, "no module found under discdiff/"
    unknown = sorted(names - set(LAYER))
    assert not unknown, (
        f"discdiff has modules of no layer: {unknown}; give each its layer in LAYERS of {Path(__file__).name}"
    )


def test_imports_point_down():
    wrong = []
    for where, source, target, type_only in inner_imports():
        if not {source, target} <= set(LAYER):
            continue  # a module of no layer is test_every_module_has_a_layer's to report
        low, high = LAYER[source], LAYER[target]
        if (source, target) in FACADES:
            continue
        if high > low and not (type_only and low <= 3 and high <= 3):
            wrong.append(f"{where}: {source} (layer {low}) imports {target} (layer {high})")
    assert not wrong, (
        "imports that point up; move the shared part down, or name the module that defines it:\n" + "\n".join(wrong)
    )


def test_no_cycle_within_a_layer():
    graph: dict[str, set[str]] = {}
    for _, source, target, type_only in inner_imports():
        if not type_only and LAYER.get(source, source) == LAYER.get(target, target):
            graph.setdefault(source, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"groups of one layer import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_stay_apart(package):
    wrong = [
        f"{where} imports {found.name}"
        for where, _, found in package_imports(package)
        if found.name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong, f"{package} must not import {FORBIDDEN[package]}:\n" + "\n".join(wrong)


def test_files_stay_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in checked_files()}
    assert Path(__file__) in lengths
    long = [f"{path.relative_to(ROOT)}: {length}" for path, length in lengths.items() if length > 400]
    assert not long, "files above 400 lines; split by what changes for different reasons:\n" + "\n".join(long)


def test_no_torchvision_or_torchaudio():
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"
        for path in checked_files()
        for found in imports(path.read_text(encoding="utf-8"), path.stem)
        if found.name.split(".")[0] in ("torchvision", "torchaudio")
    ]
    assert not wrong, (
        "a torchvision that does not fit torch breaks unrelated imports; use Pillow, soundfile:\n" + "\n".join(wrong)
    )
