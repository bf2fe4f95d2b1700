"""A generation job of 2,000 rows by one rank, by two, and killed and begun again: is every shard the same to the bit?

python -m benchmarks.job_ranks [--model runs/book] [--count 2000]      # --model: a folder of python -m tasks.text train
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.jobs import read_job


@dataclass(frozen=True)
class Ranks:
    """model: folder of a trained text model; steps: of the sampler; save: record the figures."""

    model: str = "runs/text"
    count: int = 2000
    shard: int = 64
    steps: int = 16
    seed: int = 0
    save: bool = True


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of every finished shard."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.job_ranks", argv, {"ranks": Ranks})["ranks"]
    trained = (Path(settings.model) / "model" / "config.json").is_file()
    checked("model", settings.model, trained, f"train one first: python -m tasks.text train --out {settings.model}")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it: threads may change a logit's last bit
    job = [
        "tasks.text", "generate", settings.model, "--count", str(settings.count), "--shard", str(settings.shard),
        "--sampler.steps", str(settings.steps), "--sample_seed", str(settings.seed), "--progress", "false", "--out",
    ]  # fmt: skip
    alone = [sys.executable, "-m", *job]
    with tempfile.TemporaryDirectory() as place:
        one, two, killed = (Path(place) / name for name in ("one", "two", "killed"))
        began = time.perf_counter()
        subprocess.run([*alone, str(one)], env=env, check=True)
        seconds = time.perf_counter() - began
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", *job, str(two)]
        subprocess.run(torchrun, env=env, check=True)
        running = subprocess.Popen([*alone, str(killed)], env=env)
        while running.poll() is None and len(shards(killed)) < len(shards(one)) // 2:
            time.sleep(0.05)
        running.kill()
        running.wait()
        kept = len(shards(killed))
        subprocess.run([*alone, str(killed)], env=env, check=True)
        expected, rows = shards(one), len(read_job(one))
        figures = [
            {"figure": "rows", "value": rows, "goal": f"== {settings.count}"},
            {"figure": "shards", "value": len(expected)},
            {"figure": "shards kept by the killed run", "value": kept, "goal": f"< {len(expected)}"},
            {"figure": "one rank, with start", "value": seconds, "unit": "s"},
        ]
        for name, folder in (("two ranks", two), ("killed and begun again", killed)):
            found = shards(folder)
            differ = sum(found.get(part) != expected.get(part) for part in {*found, *expected})
            figures.append({"figure": f"shards that differ, {name}", "value": differ, "goal": "== 0"})
    for figure in figures:
        print(figure, flush=True)
    if settings.save:
        data = f"{settings.model}, {settings.steps} steps, shards of {settings.shard} rows"
        record("jobs", figures, data=data, seeds=settings.seed)


if __name__ == "__main__":
    sys.exit(guarded(main))
