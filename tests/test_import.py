"""`import discdiff` stays light: hardly dearer than torch, and without the packages that a user may not need."""

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
HEAVY = {"transformers", "datasets", "accelerate", "peft", "diffusers", "vector_quantize_pytorch"}


def python(code: str) -> str:
    """What a fresh interpreter prints for the code; its stderr is shown where it fails."""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu_seconds(code: str) -> float:
    """User and system time of a fresh interpreter that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_import_costs_little_more_than_torch():
    cpu_seconds("import discdiff")  # writes the byte code
    runs = [(cpu_seconds("import torch"), cpu_seconds("import discdiff")) for _ in range(2)]
    torch, discdiff = (min(times) for times in zip(*runs, strict=True))
    assert discdiff <= 1.2 * torch, (
        f"import discdiff takes {discdiff:.2f} CPU s, import torch {torch:.2f}: import on use"
    )


def test_import_leaves_heavy_packages_alone():
    loaded = set(python("import sys, discdiff; print(*{name.split('.')[0] for name in sys.modules})").split())
    assert "discdiff" in loaded
    assert not loaded & HEAVY, f"import discdiff also imports {sorted(loaded & HEAVY)}: import them on use"
