"""Generation jobs: the same rows from any number of ranks, after a kill, beside damage; other settings are refused."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from table_toy import MIXED, network, rows_of

from discdiff.denoisers import ModelDenoiser
from discdiff.jobs import job_estimate, read_job, run_job, run_likelihood_job
from discdiff.layout import make_batch
from discdiff.metrics import nelbo
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing
from discdiff.sampling import prompts, sampler
from discdiff.schedules import Linear

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
sys.path[:0] = ["tests", "."]
import test_jobs
test_jobs.job(sys.argv[1])
"""
TOTAL = 22


def blank():
    tokens = rows_of(MIXED, 1).tokens
    tokens[:, 2:] = MIXED.vocab.mask
    return make_batch(MIXED, tokens)


def job(folder, *, count=TOTAL, shard=4, pause=0.0, rows=None, name="ancestral", **more):
    def text(tokens):
        time.sleep(pause)
        return [" ".join(map(str, row)) for row in tokens.tolist()]

    chosen = sampler(name, steps=more.pop("steps", 3))
    run_job(network(), rows or blank(), chosen, folder, count=count, shard=shard, text=text, progress=False, **more)


def _rank(folder, rank, world, pause):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    try:
        job(folder, pause=pause)
    except KeyboardInterrupt:
        os._exit(130)


def start(folder, rank=0, world=1, pause=0.0):
    """A process of its own; forked, since importing torch takes seconds."""
    running = multiprocessing.get_context("fork").Process(target=_rank, args=(folder, rank, world, pause))
    running.start()
    return running


def shards(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*"))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs") / "alone"
    job(folder)
    return folder


def test_rows_in_order_with_seeds_of_their_own(alone):
    table = read_job(alone)
    assert table["row"].to_pylist() == list(range(TOTAL))
    tokens = table["tokens"].to_pylist()
    assert MIXED.vocab.mask not in sum(tokens, []) and len({tuple(row) for row in tokens}) > TOTAL // 2
    state, _ = sampler("ancestral", steps=3)(ModelDenoiser(network()), blank().repeat(TOTAL), 0)
    assert state.tokens.tolist() == tokens  # float64: also the batch does not matter
    assert table["text"].to_pylist() == [" ".join(map(str, row)) for row in tokens]


@pytest.mark.slow
def test_torchrun_gives_the_same_files(alone, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, str(script), str(tmp_path / "run")], cwd=ROOT, check=True, capture_output=True)
    assert shards(tmp_path / "run") == shards(alone)


def test_two_ranks_give_the_same_files(alone, tmp_path):
    running = [start(tmp_path / "two", rank, 2) for rank in range(2)]
    for each in running:
        each.join()
    assert [each.exitcode for each in running] == [0, 0]
    assert shards(tmp_path / "two") == shards(alone)
    job(tmp_path / "other", seed=1)
    assert read_job(tmp_path / "other")["tokens"] != read_job(alone)["tokens"]


def test_killed_and_begun_again(alone, tmp_path):
    folder = tmp_path / "killed"
    running = start(folder, pause=0.3)
    while len(shards(folder)) < 3:
        assert running.is_alive()
        time.sleep(0.02)
    running.kill()
    running.join()
    done = shards(folder)
    assert len(done) < len(shards(alone))
    with pytest.raises(ValueError, match=r"lacks \d of 6 shards"):
        read_job(folder)
    assert 0 < len(read_job(folder, partial=True)) < TOTAL
    (folder / ".tmp-part-000005.parquet-1").write_bytes(b"half")  # what a kill within a write leaves
    before = {name: (folder / name).stat().st_mtime_ns for name in done}
    job(folder)
    assert shards(folder) == shards(alone)
    assert all((folder / name).stat().st_mtime_ns == at for name, at in before.items() if name.startswith("part"))


def test_sigterm_ends_behind_a_shard(alone, tmp_path):
    folder = tmp_path / "stopped"
    running = start(folder, pause=0.3)
    while len(shards(folder)) < 2:
        time.sleep(0.02)
    running.terminate()
    running.join()
    assert running.exitcode == 130
    assert not list(folder.glob(".tmp-*"))
    job(folder)
    assert shards(folder) == shards(alone)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "other rows", "other columns"])
def test_damaged_shards_are_made_again(alone, tmp_path, how):
    import pyarrow.parquet as parquet

    job(tmp_path / "job")
    path = tmp_path / "job" / "part-000002.parquet"
    good = path.read_bytes()
    if how == "flipped":
        path.write_bytes(bytes(b ^ (i == 60) for i, b in enumerate(good)))
    elif how == "other rows":
        path.write_bytes((tmp_path / "job" / "part-000001.parquet").read_bytes())
    elif how == "other columns":
        parquet.write_table(parquet.read_table(path).drop(["text"]), path)
    else:
        path.write_bytes(good[: 100 * (how == "cut")])
    with pytest.raises(ValueError, match="part-000002"):
        read_job(tmp_path / "job")
    job(tmp_path / "job")
    assert shards(tmp_path / "job") == shards(alone)


@pytest.mark.parametrize(
    ("more", "name"),
    [({"seed": 1}, "seed"), ({"count": 23}, "count"), ({"shard": 5}, "shard"), ({"steps": 4}, "sampler.common.steps")],
)
def test_other_settings_are_refused(alone, more, name):
    before = shards(alone)
    with pytest.raises(ValueError, match=f"was begun with {name} "):
        job(alone, **more)
    with pytest.raises(ValueError, match="was begun with rows"):
        job(alone, rows=blank()._replace(given=torch.ones(1, MIXED.length, dtype=torch.bool)))
    with pytest.raises(ValueError, match="was begun with settings.source"):
        job(alone, settings={"source": "x"})
    with pytest.raises(ValueError, match="model.weights"):
        other = network()
        with torch.no_grad():
            next(other.parameters()).view(-1)[0] += 1e-9
        run_job(other, blank(), sampler("ancestral", steps=3), alone, count=TOTAL, shard=4, text=str, progress=False)
    assert shards(alone) == before


def test_prompts_of_their_own(tmp_path):
    vocab = MIXED.vocab
    given = [[1, 2], [3], [4, 4, 4], []]
    batch = prompts(vocab, given, [2, 5, 1, 3])
    job(tmp_path / "batch", count=4, shard=3, rows=batch)
    job(tmp_path / "function", count=4, shard=3, rows=lambda numbers: batch.rows(numbers))
    rows = read_job(tmp_path / "batch")["tokens"].to_pylist()
    assert [row[: len(x)] for row, x in zip(rows, given)] == given and [len(row) for row in rows] == [4, 6, 4, 3]
    assert read_job(tmp_path / "function").equals(read_job(tmp_path / "batch"))


def test_a_network_samples_in_evaluation_mode(tmp_path):
    model, modes = network().train(), []
    part = next(iter(model.children())).eval()
    model.register_forward_pre_hook(lambda module, _: modes.append(any(x.training for x in module.modules())))

    def stops(tokens):
        raise RuntimeError

    run_job(model, blank(), sampler("ancestral", steps=2), tmp_path / "a", count=2, progress=False)
    with pytest.raises(RuntimeError):
        run_job(model, blank(), sampler("ancestral", steps=2), tmp_path / "b", count=2, text=stops, progress=False)
    assert modes and not any(modes)
    assert model.training and not part.training, "every part has its own mode again"


def test_refusals(tmp_path, monkeypatch):
    for more, what in (({"count": 0}, "count is 0"), ({"shard": 0}, "shard is 0"), ({"seed": None}, "seed is None")):
        with pytest.raises(ValueError, match=what):
            job(tmp_path / "x", **more)
    with pytest.raises(ValueError, match="rows hold 2 rows"):
        job(tmp_path / "x", rows=blank().repeat(2))
    with pytest.raises(ValueError, match="must give a TokenBatch of 4"):
        job(tmp_path / "y", rows=lambda numbers: blank())
    for rank, world in (("2", "2"), ("-1", "1"), ("one", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ValueError, match="RANK"):
            job(tmp_path / "x")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "job.json").write_text(json.dumps({"count": 3}))
    with pytest.raises(ValueError, match="holds no job"):
        read_job(tmp_path / "z")


@pytest.mark.parametrize("process", [Absorbing(), Absorbing(schedule=Linear(0.9, 0.0))])
def test_likelihoods_are_those_of_nelbo(tmp_path, monkeypatch, process):
    """Neither ranks nor shards nor the form of the rows change a figure; a training network is left in its mode."""
    batch, model, objective = rows_of(MIXED, 11), network().train(), Elbo(process)
    expected = nelbo(model.eval(), objective, [batch], draws=3, seed=5)
    model.train()
    asked = {"draws": 3, "seed": 5, "progress": False}
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        run_likelihood_job(model, objective, batch, tmp_path / "two", shard=2, **asked)
        if rank == 0:
            with pytest.raises(ValueError, match="lacks 3 of 6 shards"):
                job_estimate(tmp_path / "two")
    monkeypatch.undo()
    run_likelihood_job(model, objective, batch.rows, tmp_path / "one", count=11, shard=4, **asked)
    assert model.training
    found = [torch.tensor(read_job(tmp_path / name)["nats"].to_pylist()) for name in ("one", "two")]
    assert found[0].shape == (11, 3)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    for name in ("one", "two"):
        got = job_estimate(tmp_path / name)
        assert (got.rows, got.draws) == (11, 3)
        assert got.mean == pytest.approx(expected.mean, rel=1e-12) and got.stderr == pytest.approx(expected.stderr)
    with pytest.raises(ValueError, match="was begun with draws 3"):
        run_likelihood_job(model, objective, batch, tmp_path / "two", shard=2, **asked | {"draws": 2})
    with pytest.raises(ValueError, match="was begun with objective"):
        run_likelihood_job(model, Elbo(process, time_min=0.5), batch, tmp_path / "two", shard=2, **asked)


def test_likelihood_refusals(alone, tmp_path):
    batch, objective = rows_of(MIXED, 3), Elbo()
    for more, what in (({"draws": 0}, "draws is 0"), ({"count": 2}, "rows hold 3"), ({"shard": 0}, "shard is 0")):
        with pytest.raises(ValueError, match=what):
            run_likelihood_job(network(), objective, batch, tmp_path / "x", **more)
    with pytest.raises(ValueError, match="count is 0"):
        run_likelihood_job(network(), objective, batch.rows, tmp_path / "x")
    with pytest.raises(ValueError, match="holds row, tokens, text"):
        job_estimate(alone)
