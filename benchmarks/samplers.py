"""Our samplers against plain restatements of the public loops (`benchmarks.public_loops`), on the same weights.

    python -m benchmarks.samplers [--parts posterior,ragged] [--repeats 5] [--steps 16]      # Linux; all of it 40 minutes

Every part writes docs/results/samplers_PART.json. One thread, both in turn in one process; a ratio is the median over the
rounds of the other's CPU seconds divided by ours, which other work moves little but for large batches. Memory: each loop in
a process of its own, two steps, highest resident size minus the resident size before. The network is time: the trunk and
the head rows that were asked; the rest is outside.
"""

import argparse
import functools
import itertools
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import public_loops
from benchmarks.results import record
from discdiff.clocks import Blocks
from discdiff.denoisers import FunctionDenoiser, ModelDenoiser, Prediction, inverse_cdf
from discdiff.denoisers.wrappers import Wrapper
from discdiff.kernels import Ancestral, Commit
from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import Noise
from discdiff.processes import vq_paper
from discdiff.rules import Quota, Threshold
from discdiff.sampling import Grid, iterate
from discdiff.scores import Candidate
from discdiff.types import Info, State, Step

MIB, WIDE, NARROW, BLOCK = 1 << 20, 50257, 256, 64


@dataclass(frozen=True)
class Job:
    """One sampling task for both sides; loop is "ancestral", "low_confidence" or "threshold"."""

    loop: str = "ancestral"
    rows: int = 1
    length: int = 256
    steps: int = 16
    temperature: float = 1.0
    vocab: int = WIDE

    def __str__(self) -> str:
        name = {"ancestral": "MDLM", "low_confidence": "LLaDA", "threshold": "Fast-dLLM"}[self.loop]
        at = "" if self.loop == "ancestral" else f" T={self.temperature:g}"
        return f"{name}{at}, V={self.vocab}, B={self.rows}, L={self.length}, {self.steps} steps"

    @property
    def prompt(self) -> int:
        """Given tokens at the start: half of the row, for a single block all but one block."""
        return {"ancestral": 0, "low_confidence": self.length // 2}.get(self.loop, self.length - BLOCK)

    @property
    def block(self) -> int:
        return min(BLOCK, self.length - self.prompt)


@dataclass
class Meter:
    """CPU seconds inside the trunk and the head, and counts of one run."""

    trunk: float = 0.0
    head: float = 0.0
    info: Info = field(default_factory=Info)

    def clocked(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            out = function(*args, **kwargs)
            setattr(self, part, getattr(self, part) + time.process_time() - start)
            return out

        return call


@dataclass(frozen=True)
class Metered(Wrapper):
    """The denoiser with its head on the meter, tokens drawn at a temperature and ranked by their plain probability."""

    meter: Meter
    temperature: float

    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = self.inner(state, step)
        head = self.meter.clocked("head", prediction.logits)
        return replace(prediction, logits=head, temperature=self.temperature)


@functools.cache
def model(vocab: int) -> DiscDiffModel:
    """The trunk of 8 layers x 512 with random weights."""
    layout = VocabLayout(vocab)
    config = DiscDiffConfig(vocab=layout.__dict__, hidden_size=512, num_layers=8, num_heads=8)
    return DiscDiffModel.seeded(config, 0).eval()


def batch(job: Job) -> TokenBatch:
    """The masked rows behind a random prompt."""
    layout = Layout(VocabLayout(job.vocab), (Segment("text", "text", (job.length,)),))
    tokens = torch.full((job.rows, job.length), layout.vocab.mask)
    prompt = torch.randint(job.vocab, (job.rows, job.prompt), generator=torch.Generator().manual_seed(0))
    tokens[:, : job.prompt] = prompt
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, : job.prompt] = True
    return make_batch(layout, tokens, given=given)


def ours(job: Job, seed: int, meter: Meter) -> Iterator[Tensor]:
    """The tokens after each call of our sampler."""
    network = model(job.vocab)
    network.hidden = meter.clocked("trunk", functools.partial(DiscDiffModel.hidden, network))  # type: ignore[method-assign]
    denoiser = Metered(ModelDenoiser(network), meter, job.temperature)
    kernel: Any = Ancestral()
    grid, clock = Grid.uniform(job.steps), None
    if job.loop == "low_confidence":  # the prompt's blocks are passed over before the first step
        kernel, clock = Commit(Candidate(), Quota()), Blocks(job.block)
        grid = Grid((1.0, *(0.5 - 0.5 * i / job.steps for i in range(1, job.steps + 1))))
    elif job.loop == "threshold":  # as many steps as asked for, not to the end of the block
        kernel, grid = Commit(Candidate(), Threshold(0.9)), Grid.uniform(job.steps, end=0.5)
    for state, info in iterate(denoiser, kernel, batch(job), grid, seed=seed, clock=clock, ahead=True):
        meter.info = meter.info.merge(info)
        yield state.tokens


@functools.cache
def full_head(vocab: int, with_mask: bool) -> Tensor:
    """Rows of the head the public loops multiply with: all tokens, and the mask where the loop wants its column."""
    weight, mask = model(vocab).head.weight.detach(), model(vocab).vocab.mask
    return torch.cat([weight[:vocab], weight[mask : mask + 1]]) if with_mask else weight[:vocab]


def public(job: Job, seed: int, meter: Meter) -> Iterator[Tensor]:
    """The tokens after each step of the public loop; the mask is id `vocab`."""
    network, start = model(job.vocab), batch(job)
    weight = full_head(job.vocab, job.loop == "ancestral")
    trunk = meter.clocked("trunk", functools.partial(DiscDiffModel.hidden, network))
    head = meter.clocked("head", lambda hidden: hidden @ weight.T)

    def logits(tokens: Tensor) -> Tensor:
        meter.info = meter.info.merge(Info(1, job.rows, tokens.numel(), tokens.numel()))
        ids = torch.where(tokens == job.vocab, network.vocab.mask, tokens)
        return head(trunk(start._replace(tokens=ids)))

    tokens = torch.where(start.tokens == network.vocab.mask, job.vocab, start.tokens)
    noise = torch.Generator().manual_seed(seed)
    common = (logits, tokens, job.vocab, job.steps, noise)
    if job.loop == "ancestral":
        return public_loops.ancestral(*common)
    if job.loop == "low_confidence":
        return public_loops.low_confidence(*common, job.prompt, job.block, job.temperature)
    return public_loops.confident(*common, job.prompt, 0.9, job.temperature)


Side = Callable[[Job, int, Meter], Iterator[Tensor]]
SIDES: dict[str, Side] = {"ours": ours, "public": public}


@dataclass(frozen=True)
class Spent:
    """One run: CPU and wall-clock seconds, and the meter."""

    cpu: float
    wall: float
    meter: Meter

    @property
    def outside(self) -> float:
        return self.cpu - self.meter.trunk - self.meter.head


@torch.no_grad()
def run(side: str, job: Job, seed: int, limit: int | None = None) -> Spent:
    """One run of one side, to the end or for `limit` steps."""
    meter = Meter()
    cpu, wall = time.process_time(), time.perf_counter()
    states = SIDES[side](job, seed, meter)
    for tokens in itertools.islice(states, None if limit is None else limit + (side == "ours")):
        last = tokens
    spent = Spent(time.process_time() - cpu, time.perf_counter() - wall, meter)
    mask = batch(job).layout.vocab.mask if side == "ours" else job.vocab
    if limit is None and job.loop != "threshold" and bool((last == mask).any()):
        raise RuntimeError(f"{side}, {job}: masks are left")
    return spent


def rounds(job: Job, repeats: int) -> list[dict[str, Spent]]:
    """Both sides in turn, after a short run of each."""
    for side in SIDES:
        run(side, job, 0, limit=2)
    out = [{side: run(side, job, seed) for side in SIDES} for seed in range(repeats)]
    print(f"{job}: {median(out, lambda r: r['public'].cpu / r['ours'].cpu):.2f}", flush=True)
    return out


def median(out: list[dict[str, Spent]], value: Callable[[dict[str, Spent]], float]) -> float:
    return statistics.median(value(one) for one in out)


def speed(job: Job, repeats: int, goal: str | None, trunk: str | None = None, bare: str | None = None) -> list[dict]:
    """Ratio of the two sides, and what each spends its time on; trunk, bare: goals of our time outside the network."""
    out = rounds(job, repeats)
    mine, other = (out[-1][side].meter.info for side in ("ours", "public"))
    each = functools.partial(median, out)

    def forward(one: dict[str, Spent]) -> float:
        """CPU seconds of our calls had they been bare forwards, with logits of all positions."""
        a, b = one["ours"].meter, one["public"].meter
        return a.trunk + b.head * a.info.fed / b.info.fed

    rows = [
        ("public loop / ours, CPU time", each(lambda r: r["public"].cpu / r["ours"].cpu), "", goal),
        ("public loop / ours, wall clock", each(lambda r: r["public"].wall / r["ours"].wall), "", None),
        ("ours", each(lambda r: r["ours"].cpu), "CPU s", None),
        ("ours, outside the network / trunk", each(lambda r: r["ours"].outside / r["ours"].meter.trunk), "", trunk),
        ("ours, outside the network / bare forward", each(lambda r: r["ours"].outside / forward(r)), "", bare),
        (
            "public, outside the network / trunk",
            each(lambda r: r["public"].outside / r["public"].meter.trunk),
            "",
            None,
        ),
        *((f"{side}, network rows", info.network_rows, "", None) for side, info in (("ours", mine), ("public", other))),
        *((f"{side}, head rows", info.head_rows, "", None) for side, info in (("ours", mine), ("public", other))),
    ]
    return [dict(figure=f"{job}: {name}", value=value, unit=unit, goal=want) for name, value, unit, want in rows]


def resident(field: str) -> int:
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def peak(side: str, job: Job) -> int:
    """Bytes by which the resident size grows at its highest during two steps; to be called in a fresh process."""
    torch.set_num_threads(1)
    run(side, replace(job, vocab=64, rows=1), 0, limit=2)  # loads libraries
    model(job.vocab), full_head(job.vocab, job.loop == "ancestral")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
    before = resident("VmRSS")
    run(side, job, 0, limit=2)
    return resident("VmHWM") - before


def memory(job: Job) -> list[dict]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        mine, other = pool.map(functools.partial(peak, job=job), ("ours", "public"), 1)
    rows = [
        ("peak memory, ours / public", mine / other, "", "<= 0.15"),
        ("peak memory, ours", round(mine / MIB, 1), "MiB", None),
        ("peak memory, public", round(other / MIB, 1), "MiB", None),
    ]
    return [dict(figure=f"{job}: {name}", value=value, unit=unit, goal=want) for name, value, unit, want in rows]


def cpu_seconds(function: Callable[[int], Any], repeats: int) -> list[float]:
    times = []
    for seed in range(repeats + 1):
        start = time.process_time()
        function(seed)
        times.append(time.process_time() - start)
    return times[1:]


@torch.no_grad()
def mask_and_replace(codes: int, length: int, repeats: int) -> list[dict]:
    """One reverse step of VQ-Diffusion at t = 0.6 of a hundred: the whole posterior, and a draw, from given logits."""
    process, t, s = vq_paper(), 0.60, 0.59
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, length, codes, generator=generator)
    layout = Layout(VocabLayout(codes), (Segment("image", "text", (length,)),))
    empty = make_batch(layout, torch.full((1, length), layout.vocab.mask))
    x = process.corrupt(
        torch.randint(codes, (1, length), generator=generator), t, Noise.seeded(0, empty.valid).uniform(9), codes
    )
    state = State(
        empty.ids(x), empty.given, empty.valid, torch.zeros_like(empty.given), torch.full_like(x, t, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int64), empty, {}, {},
    )  # fmt: skip
    step = Step(40, state.time, torch.full_like(state.time, s))
    denoiser, kernel = FunctionDenoiser(lambda state, step: logits), Ancestral(process)

    def posterior() -> Tensor:
        return process.posterior(logits[0].softmax(-1), x[0], t, s)

    def draw_posterior(seed: int) -> Tensor:
        return inverse_cdf(posterior(), Noise.seeded(seed, empty.valid).uniform(0)[0])

    def draw_step(seed: int) -> State:
        return kernel(denoiser, state, step, Noise.seeded(seed, empty.valid))[0]

    theirs = (logits.movedim(-1, 1).contiguous(), torch.nn.functional.one_hot(x, codes + 1).movedim(-1, 1))
    log_x = theirs[1].float().clamp(min=1e-30).log().contiguous()
    coefficients = public_loops.MaskAndReplace(*(_logs(process, a, b, codes) for a, b in ((0.0, t), (0.0, s), (s, t))))

    def public_step(seed: int) -> tuple[Tensor, Tensor]:
        noise = torch.Generator().manual_seed(seed)
        return public_loops.mask_and_replace(theirs[0], log_x, coefficients, noise)

    apart = (public_step(0)[1][0].T.exp() - posterior()).abs().sum(-1).amax()
    ways = {"posterior": draw_posterior, "draw": draw_step, "public": public_step}
    times = {name: cpu_seconds(function, repeats) for name, function in ways.items()}
    ratio = {name: statistics.median(a / b for a, b in zip(times["public"], times[name], strict=True)) for name in ways}
    where = f"mask-and-replace step, {codes} codes x {length}"
    rows = [
        ("public / ours, full posterior and draw", ratio["posterior"], ">= 6"),
        ("public / ours, draw alone", ratio["draw"], ">= 20" if codes >= 4096 else ">= 6"),
        ("largest difference of the two posteriors, L1", float(apart), "<= 1e-4"),
    ]
    found = [dict(figure=f"{where}: {name}", value=value, unit="", goal=goal) for name, value, goal in rows]
    element = {name: 1e9 * statistics.median(times[name]) / (codes * length) for name in ways}
    return found + [
        dict(figure=f"{where}: {name}", value=value, unit="CPU ns per code and position", goal=None)
        for name, value in element.items()
    ]


def _logs(process: Any, s: float, t: float, codes: int) -> tuple[float, float, float, float]:
    kept, moved, masked = process.transition(*(torch.tensor(v, dtype=torch.float64) for v in (s, t)), codes)
    return tuple(v.log().item() for v in (kept, moved, masked, 1 - masked))  # type: ignore[return-value]


def posterior(repeats: int, steps: int) -> list[dict]:
    """Mask-and-replace steps from given logits."""
    return [row for codes, length in ((1024, 256), (4096, 1024)) for row in mask_and_replace(codes, length, repeats)]


def single(repeats: int, steps: int) -> list[dict]:
    """One row of 256 positions, at `steps` and at four times as many."""
    job = Job(steps=steps)
    llada = replace(job, loop="low_confidence")
    rows = speed(replace(job, vocab=NARROW), repeats, None, bare="<= 0.03")
    rows += speed(job, repeats, ">= 3.5", trunk="<= 0.05")
    rows += speed(llada, repeats, ">= 3.5", trunk="<= 0.05")
    rows += speed(replace(llada, temperature=0.0), repeats, ">= 1.7", trunk="<= 0.05")
    rows += speed(replace(job, loop="threshold"), repeats, ">= 3.5", trunk="<= 0.05")
    for one in (job, llada, replace(llada, temperature=0.0)):
        rows += speed(replace(one, steps=4 * steps), 1, None)
    return rows


def ragged(repeats: int, steps: int) -> list[dict]:
    """Short rows and many steps: rows that change nothing are not fed."""
    return speed(Job(rows=8, length=64, steps=128, vocab=NARROW), repeats, ">= 2.4")


def batched(repeats: int, steps: int) -> list[dict]:
    """Eight rows of 256 positions, and what they take of memory."""
    rows = []
    for loop in ("ancestral", "low_confidence"):
        job = Job(loop, rows=8, steps=steps)
        rows += memory(job) + speed(job, repeats, ">= 5")
    return rows


def long(repeats: int, steps: int) -> list[dict]:
    """One row of 1024 positions."""
    return [row for loop in LONG for row in speed(Job(loop, length=1024, steps=steps), repeats, ">= 3")]


LONG = ("ancestral", "low_confidence")
PARTS = {part.__name__: part for part in (posterior, single, ragged, batched, long)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown:
        raise SystemExit(f"unknown parts {sorted(unknown)}: choose from {', '.join(PARTS)}")
    if sys.platform != "linux":
        raise SystemExit("the memory of a process is read from /proc: run this on Linux")
    torch.set_num_threads(1)
    data = (
        "random weights, 8 layers x 512, float32 on one CPU thread, CPU seconds; prompts of random tokens; rounds: "
        f"{args.repeats}, 1 for {4 * args.steps} steps"
    )
    for name in args.parts.split(","):
        record(f"samplers_{name}", PARTS[name](args.repeats, args.steps), data=data, seeds=range(args.repeats))


if __name__ == "__main__":
    main()
