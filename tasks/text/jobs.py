"""python -m tasks.text generate|likelihood FOLDER --out DIR: sampled rows, or nats of validation rows, as Parquet shards.

torchrun --nproc_per_node 2 -m tasks.text generate FOLDER --count 2000 --out DIR    # the same rows from any number of ranks
torchrun --nproc_per_node 2 -m tasks.text likelihood FOLDER --draws 8 --out DIR
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from discdiff.cli import parse, take
from discdiff.config import checked, to_dict
from discdiff.jobs import job_estimate, read_job, run_job, run_likelihood_job
from discdiff.layout import TokenBatch, make_batch
from discdiff.sampling import knobs
from tasks.common.improve import load_grid
from tasks.text import rows as text_rows
from tasks.text.extras import load_energy
from tasks.text.folder import check_text, is_chat, load_model, load_task
from tasks.text.infill import Continuation
from tasks.text.settings import Chosen, Drawing
from tasks.text.training import objective_for


@dataclass(frozen=True)
class Generation:
    """How many rows, and where to. out: folder of the Parquet shards, `shard` rows each; prompts: a text file, one prompt
    per line, row r continuing line r modulo their number; progress: a bar on rank 0.
    """

    count: int = 1000
    out: str = "runs/generated"
    shard: int = 64
    prompts: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least one row")
        checked("shard", self.shard, self.shard >= 1, "at least one row per shard")


@dataclass(frozen=True)
class Scoring:
    """Which validation rows, the first `rows` (0: all), and where to. draws: of noise, per row; part: "model" or "twin"; out:
    folder of the Parquet shards, `shard` rows each; progress: a bar on rank 0.
    """

    rows: int = 0
    draws: int = 4
    seed: int = 0
    part: str = "model"
    out: str = "runs/likelihood"
    shard: int = 64
    progress: bool = True

    def __post_init__(self) -> None:
        checked("rows", self.rows, self.rows >= 0, "0 (all) or more")
        checked("part", self.part, self.part in ("model", "twin"), "choose from model, twin")


def generate(prog: str, argv: Sequence[str]) -> None:
    """Generate rows into Parquet shards; under torchrun the ranks share them out. Repeat the command to go on."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"generation": Generation, "drawing": Drawing}, ("folder",))
    asked, drawing, folder = chosen["generation"], chosen["drawing"], Path(chosen["folder"])
    given = parse(
        f"{prog} --sampler {drawing.sampler}", inside, {"sampler": knobs(drawing.sampler)}, prefix="sampler."
    )["sampler"]
    named = vars(given)
    _own_device()
    parts = {"energy": load_energy(folder, named["energy"])} if isinstance(named.get("energy"), str) else {}
    sampler = Chosen(drawing.sampler, named, drawing.sample_seed, load_grid(folder, drawing.grid), parts)
    corpus, tokenizer = load_task(folder)
    model, layout, process = load_model(folder / "model")
    assert process is not None
    rows = text_rows.blank(layout, 1)
    if asked.prompts is not None:
        lines = Path(asked.prompts).read_text(encoding="utf-8").splitlines()
        checked("prompts", asked.prompts, bool(lines), "give a file with at least one line")
        each = [Continuation(layout, tokenizer, line, is_chat(folder)).batch(1) for line in lines]
        rows = _stacked([each[r % len(each)] for r in range(asked.count)])
    text = partial(text_rows.to_text, tokenizer, layout, cut=corpus.ends, between="\n")
    settings = {"sampler": sampler.to_dict() | {"seed": 0}}
    run_job(
        model, rows, sampler.build(process, layout.block), asked.out, count=asked.count, seed=drawing.sample_seed,
        shard=asked.shard, text=text, settings=settings, progress=asked.progress,
    )  # fmt: skip
    print(f"{asked.out}: shards of rank {os.environ.get('RANK', 0)} written")


def likelihood(prog: str, argv: Sequence[str]) -> None:
    """Nats of validation rows into Parquet shards; under torchrun the ranks share them out. Repeat the command to go on."""
    chosen = parse(prog, argv, {"scoring": Scoring}, ("folder",))
    asked, folder = chosen["scoring"], Path(chosen["folder"])
    _own_device()
    check_text(folder)
    corpus, tokenizer = load_task(folder)
    model, layout, process = load_model(folder / asked.part)
    objective = objective_for(process, model.config.prediction, layout.block)
    _, valid = text_rows.load_rows(corpus, tokenizer, layout)
    count = min(asked.rows or len(valid), len(valid))

    def rows(numbers: Tensor) -> TokenBatch:
        return text_rows.picked(valid, layout, numbers.tolist())

    run_likelihood_job(
        model, objective, rows, asked.out, count=count, draws=asked.draws if process is not None else 1,
        seed=asked.seed, shard=asked.shard, settings={"corpus": to_dict(corpus)}, progress=asked.progress,
    )  # fmt: skip
    rank = int(os.environ.get("RANK", 0))
    print(f"{asked.out}: shards of rank {rank} written")
    if rank * asked.shard >= count:
        return  # it had none, and those of the others may not be there yet
    if len(read_job(asked.out, partial=True)) == count:
        print(job_estimate(asked.out))


def _own_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def _stacked(parts: Sequence[TokenBatch]) -> TokenBatch:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return make_batch(parts[0].layout, joined("tokens"), given=joined("given"))
