"""Speed of picture generation: VQ-Diffusion and MaskGIT style against the autoregressive twin of equal size.

    python -m benchmarks.image_speed [--parts 14x1,32x1,14x32,32x32] [--repeats 3]      # 30 minutes on one core

A part is SIDExROWS: pictures of SIDE x SIDE codes, ROWS at a time; a run of some parts is recorded under their names.
Untrained weights, one CPU thread, CPU seconds; all ways in turn in one process, a ratio is the median over the rounds. The
library's left_to_right sampler without a cache feeds the whole row at every call, twice what is needed; the twin here is the
stronger plain loop: one forward pass on the codes to the left, causal attention by SDPA's own flag, the head at the last
position only, one inverse-CDF draw. It feeds L (L + 1) / 2 positions where T steps feed L T, which is the bound. Its time is
that of some prefix lengths, drawn one per stratum and weighed by the stratum's width; beside it stands what this gives for a
run that is timed in full. The twin with a cache is the faster of two: the library's (cache="block", block=1) and a plain loop
that feeds one code and attends to those there are. Against it the same diffusion stands block by block, too: T steps in all,
each of which feeds one block, finished ones are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results import record
from discdiff.config import to_dict
from discdiff.denoisers.draw import draw
from discdiff.layout import TokenBatch, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import generate
from tasks.common.generation import layout_for, layout_of
from tasks.common.methods import method_of

METHODS = {"VQ-Diffusion": ("vq_diffusion", "ancestral"), "MaskGIT style": ("maskgit", "maskgit")}
BLOCKS = "VQ-Diffusion in blocks of {}"
STEPS = (8, 16, 32, 64, 100)
NO_CACHE, CACHES = "twin without a cache", ("twin with the library's cache", "twin with a plain cache")
Timed = dict[Any, float]


@dataclass(frozen=True)
class Size:
    """Of the network, its codebook, and the strata of prefix lengths."""

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    codebook: int = 1024
    strata: int = 32


@dataclass(frozen=True)
class Job:
    """Pictures of side x side codes, so many rows at a time; block: codes of a block where they are made in blocks, too."""

    side: int
    rows: int = 1
    steps: Sequence[int] = STEPS
    block: int = 0

    @property
    def length(self) -> int:
        return self.side**2

    @property
    def ways(self) -> dict[str, tuple[int, Sequence[int]]]:
        """Codes of a block and numbers of steps, by name."""
        found = {name: (0, self.steps) for name in METHODS}
        if self.block:  # at least a step for each, up to as many as are to be faster than the twin with a cache
            steps = [n for n in (*self.steps, self.length // 8) if n >= self.length // self.block]
            found[BLOCKS.format(self.block)] = (self.block, steps)
        return found

    def bound(self, steps: int) -> float:
        """Positions that the twin without a cache feeds per position that so many steps feed."""
        return (self.length + 1) / (2 * steps)

    def __str__(self) -> str:
        return f"{self.side}x{self.side}, batch {self.rows}"


PARTS = {"14x1": Job(14), "32x1": Job(32, block=64), "14x32": Job(14, 32, STEPS[:3]), "32x32": Job(32, 32, STEPS[:2])}


class Network(DiscDiffModel):
    """The model, whose attention a plain loop may replace."""

    attend: Any = None

    def _attend(self, *given: Any) -> Any:
        return self.attend or super()._attend(*given)


def causal(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What is fed attends to itself and what is left of it."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class Kept:
    """Attention of one new slot to itself and all before it, whose keys and values are kept."""

    def __init__(self, model: Network, batch: TokenBatch) -> None:
        config, (rows, length) = model.config, batch.tokens.shape
        self.kept = torch.zeros(config.num_layers, 2, rows, config.num_heads, length, config.head_dim)
        self.slot = 0

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept = self.kept[module.layer]
        kept[:, :, :, self.slot] = torch.stack([key[:, :, 0], value[:, :, 0]])
        return F.scaled_dot_product_attention(query, *kept[:, :, :, : self.slot + 1])


def network(name: str, side: int, size: Size, block: int = 0) -> Network:
    """A network with random weights for a method of `tasks.common.methods`; the condition is one word."""
    method = method_of(name, block=block)
    layout = layout_for("image", size.codebook, 1, (side, side), 1, 16, method=method)
    config = DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()),
        layout=to_dict(layout),
        process=to_dict(method.process) if method.process is not None else None,
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        max_length=layout.length,
        time_conditioning=method.timed,
        prediction=method.prediction,
        shift=method.causal,
        initializer_range=size.hidden_size**-0.5,
    )
    return Network.seeded(config, 0).eval()  # type: ignore[return-value]


def start(model: Network, rows: int) -> TokenBatch:
    """Rows of a given condition and codes to be made."""
    layout = layout_of(model)
    tokens = torch.full((rows, layout.length), layout.vocab.mask)
    tokens[:, 0] = 0
    return make_batch(layout, tokens, given=tokens != layout.vocab.mask)


def next_code(model: Network, batch: TokenBatch, place: int, uniform: Tensor) -> None:
    """Writes the code at `place` of every row, drawn given what is left of it; uniform (rows,)."""
    kept = model.attend if isinstance(model.attend, Kept) else None
    part = slice(0, place) if kept is None else slice(place - 1, place)
    if kept is not None:
        kept.slot = place - 1
    tensors = {name: getattr(batch, name)[:, part] for name in ("tokens", "valid", "given", "slot", "sample")}
    hidden = model.hidden(batch._replace(**tensors))[:, -1]
    first, count, _ = batch.layout.alphabets[batch.layout.drawn[0]]
    drawn = draw(hidden @ model.head_weight(first, count).T, uniform, owned=True)
    batch.tokens[:, place] = first + drawn.tokens


@torch.no_grad()
def left_to_right(model: Network, batch: TokenBatch, uniform: Tensor, cached: bool) -> Tensor:
    """The twin's plain loop: rows of tokens; uniform (rows, length)."""
    batch = batch._replace(tokens=batch.tokens.clone())
    model.attend = Kept(model, batch) if cached else causal
    for place in range(1, batch.tokens.shape[1]):
        next_code(model, batch, place, uniform[:, place])
    model.attend = None
    return batch.tokens


def prefixes(length: int, strata: int, seed: int) -> list[tuple[int, int]]:
    """(prefix length, how many it stands for): one at random of each of the strata of 1..length."""
    edges = torch.linspace(0, length, min(strata, length) + 1).round().long().tolist()
    generator = torch.Generator().manual_seed(seed)
    ends = zip(edges, edges[1:], strict=False)
    return [(low + 1 + int(torch.randint(high - low, (), generator=generator)), high - low) for low, high in ends]


def seconds(function: Callable[[], Any]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


@torch.no_grad()
def without_cache(model: Network, batch: TokenBatch, strata: int, seed: int) -> float:
    """CPU seconds of the twin without a cache, from some of its calls."""
    length, uniform = batch.tokens.shape[1] - 1, torch.full((len(batch.tokens),), 0.5, dtype=torch.float64)
    batch = batch._replace(tokens=torch.where(batch.given, batch.tokens, batch.layout.alphabets[-1][0]))
    model.attend = causal
    parts = prefixes(length, strata, seed)
    total = sum(width * seconds(lambda n=n: next_code(model, batch, n, uniform)) for n, width in parts)  # type: ignore[misc]
    model.attend = None
    return total


def sampled(model: Network, batch: TokenBatch, *, sampler: str, seed: int, **knobs: Any) -> None:
    tokens, _ = generate(model, batch, sampler, seed=seed, **knobs)
    if bool((tokens == batch.layout.vocab.mask).any()):
        raise RuntimeError(f"{sampler}, {knobs}: masks are left")


def rounds(job: Job, repeats: int, size: Size) -> list[Timed]:
    """CPU seconds of every way, once per round; diffusion by (name, steps)."""
    twin = network("autoregressive", job.side, size)
    begun, out = start(twin, job.rows), []
    nets = {}
    for name, (block, steps) in job.ways.items():
        method, sampler = METHODS.get(name, METHODS["VQ-Diffusion"])
        knobs = {"cache": "block", "block": block} if block else {}
        nets[name] = (network(method, job.side, size, block), partial(sampled, sampler=sampler, **knobs), steps)
    uniform = torch.rand(begun.tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without_cache(twin, begun, 4, 0)  # libraries are loaded, memory is mapped
    for name, (model, run, steps) in nets.items():
        print(f"{job}: {name}, {model.num_parameters() / 1e6:.1f} million weights", flush=True)
        run(model, start(model, job.rows), seed=0, steps=min(steps))
    for seed in range(repeats):
        found: Timed = {NO_CACHE: without_cache(twin, begun, size.strata, seed)}
        if job.length <= 256 and job.rows == 1:
            found["in full"] = seconds(lambda: left_to_right(twin, begun, uniform, False))
        found[CACHES[0]] = seconds(
            lambda: sampled(twin, begun, sampler="left_to_right", seed=seed, cache="block", block=1)  # noqa: B023
        )
        found[CACHES[1]] = seconds(lambda: left_to_right(twin, begun, uniform, True))
        for name, (model, run, tried) in nets.items():
            rows = start(model, job.rows)
            for steps in tried:
                found[name, steps] = seconds(lambda: run(model, rows, seed=seed, steps=steps))  # noqa: B023
        print(f"{job}: {found}", flush=True)
        out.append(found)
    return out


def figures(job: Job, out: list[Timed]) -> list[dict[str, Any]]:
    """Ratios and seconds of a job; goals are VQ-Diffusion's at batch 1."""

    def median(value: Callable[[Timed], float]) -> float:
        return statistics.median(value(one) for one in out)

    def cached(one: Timed) -> float:
        return min(one[name] for name in CACHES)

    found = []
    for name, (block, tried) in job.ways.items():
        for steps in tried:
            key, aimed = (name, steps), name == "VQ-Diffusion" and job.rows == 1
            ratio = median(lambda one: one[NO_CACHE] / one[key])  # noqa: B023
            against = median(lambda one: cached(one) / one[key])  # noqa: B023
            goals = {
                f"{NO_CACHE} / it": (ratio, ">= 15" if aimed and (job.length, steps) == (1024, 16) else None),
                "that, as a share of the bound": (ratio / job.bound(steps), ">= 0.7" if aimed else None),
                "twin with a cache / it": (against, "> 1" if (aimed or block) and 8 * steps <= job.length else None),
                "CPU seconds per picture": (median(lambda one: one[key] / job.rows), None),  # noqa: B023
            }
            found += [
                dict(figure=f"{job}, {name}, {steps} steps: {what}", value=value, goal=goal)
                for what, (value, goal) in goals.items()
            ]
        most, last = tried[-1], (name, tried[-1])
        even = median(lambda one: most * cached(one) / one[last])  # noqa: B023
        found.append(dict(figure=f"{job}, {name}: steps that take as long as the twin with a cache", value=even))
    for name in (NO_CACHE, *CACHES):
        found.append(
            dict(figure=f"{job}, {name}: CPU seconds per picture", value=median(lambda one: one[name] / job.rows))  # noqa: B023
        )
    if "in full" in out[0]:
        value = median(lambda one: one[NO_CACHE] / one["in full"])
        found.append(dict(figure=f"{job}, {NO_CACHE}: from some prefix lengths / timed in full", value=value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas between")
    parser.add_argument("--repeats", type=int, default=3, help="rounds at batch 1; one at batch 32")
    args = parser.parse_args()
    unknown = set(args.parts.split(",")) - set(PARTS)
    if unknown or args.repeats < 1:
        raise SystemExit(f"parts {sorted(unknown)}, repeats {args.repeats}: choose from {', '.join(PARTS)}, 1 or more")
    torch.set_num_threads(1)
    size, found = Size(), []
    for part in args.parts.split(","):
        job = PARTS[part]
        found += figures(job, rounds(job, args.repeats if job.rows == 1 else 1, size))
    data = (
        f"untrained weights, {size.num_layers} layers x {size.hidden_size}, {size.num_heads} heads, {size.codebook} codes, "
        f"float32 on one CPU thread, CPU seconds; the bound is (L + 1) / (2 T); {NO_CACHE}: from {size.strata} prefix "
        f"lengths a round; rounds: {args.repeats}, 1 at batch 32"
    )
    name = "image_speed" if args.parts == ",".join(PARTS) else f"image_speed_{args.parts.replace(',', '_')}"
    record(name, found, data=data, seeds=range(args.repeats))


if __name__ == "__main__":
    sys.exit(main())
