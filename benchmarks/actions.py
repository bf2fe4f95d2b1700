"""Time to decode a chunk of actions: masked diffusion with the exact prefix cache against autoregression with a KV cache.

    python -m benchmarks.actions [--repeats 15] [--save true]      # five minutes on one core

A chunk of 8 actions of 7 numbers, 56 tokens, stands behind 300 tokens; one row, untrained weights, likeliest tokens, one CPU
thread, processor seconds; all ways in turn in one process, a ratio is the median over the rounds. Diffusion is the library's
`confidence` sampler with cache="prefix". Its bound is what any sampler with a prefix cache must do: one pass over the prefix
and one over the chunk per step, timed as such, logits and draws left out; each is the faster of two, on the library's cache
and on plain attention to the kept keys and values joined with those of the chunk. Autoregression is the faster of two: the
library's (left_to_right, cache="block", block=1) and a plain loop that feeds one token and attends to those there are. Beside
them: 8 slots that hold 7 levels each, and the numbers read out as expectations (`Valued`), as a policy does it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results import record
from discdiff.config import checked, to_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.kernels.valued import Valued
from discdiff.layout import Layout, Modality, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel, KVCache
from discdiff.sampling import Sampler, sampler
from discdiff.values import CodeValues
from tasks.common.generation import layout_of

PROMPT, ACTION = "prompt", "action"
STEPS = (1, 2, 4, 8, 12, 16)
FAST, NEAR = 12, 1.15  # the goals: never slower than autoregression up to FAST steps; at most NEAR times the bound
LIBRARY, PLAIN = "autoregression, library", "autoregression, plain loop"
FLAT, PACKED = "56 slots", "8 slots of 7 levels"
Timed = dict[Any, float]


@dataclass(frozen=True)
class Size:
    """Of the network, and of what it decodes; words: size of the prompt's vocabulary."""

    hidden_size: int = 512
    num_layers: int = 8
    num_heads: int = 8
    prefix: int = 300
    chunk: int = 8
    dim: int = 7
    levels: int = 256
    words: int = 1000


class Network(DiscDiffModel):
    """The model, whose attention a plain loop may replace."""

    attend: Any = None

    def _attend(self, *given: Any) -> Any:
        return self.attend or super()._attend(*given)


class Kept:
    """Plain attention with kept keys and values: of the slots fed to each other, and to the first `count` that are kept.

    store: whether they are kept, too; causal: whether they see only what is left of them.
    """

    def __init__(self, model: Network, slots: int) -> None:
        config = model.config
        self.kept = torch.zeros(config.num_layers, 2, 1, config.num_heads, slots, config.head_dim)
        self.count, self.store, self.causal = 0, True, False

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept, end = self.kept[module.layer], self.count + key.shape[2]
        if self.store:
            kept[0, :, :, self.count : end], kept[1, :, :, self.count : end] = key, value
            key, value = kept[:, :, :, :end]
        elif self.count:
            key, value = (torch.cat([old, new], 2) for old, new in zip(kept[:, :, :, : self.count], (key, value)))
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)


def network(size: Size, packed: bool = False, causal: bool = False) -> Network:
    """[prompt | action] with random weights: the prompt sees nothing behind it."""
    vocab = VocabLayout(size.words, (Modality(ACTION, size.levels, size.dim),))
    segments = Segment(PROMPT, "text", (size.prefix,), noised=False), Segment(ACTION, ACTION, (size.chunk,), axes="t")
    layout = Layout(vocab, segments, attention="causal" if causal else "prefix", packed=packed)
    config = DiscDiffConfig(
        vocab=json.loads(vocab.to_json()), layout=to_dict(layout), hidden_size=size.hidden_size,
        num_layers=size.num_layers, num_heads=size.num_heads, initializer_range=size.hidden_size**-0.5,
        max_length=len(layout.tables().lead), max_depth=size.dim if packed else 1, shift=causal,
    )  # fmt: skip
    return Network.seeded(config, 0).eval()  # type: ignore[return-value]


def start(model: Network, seed: int) -> TokenBatch:
    """One row: a prompt of random words, actions to be made."""
    layout = layout_of(model)
    tokens = torch.full((1, layout.length), layout.vocab.mask)
    generator = torch.Generator().manual_seed(seed)
    tokens[:, layout.columns(PROMPT)] = torch.randint(layout.vocab.text_size, (layout.prefix,), generator=generator)
    return make_batch(layout, tokens)


def seconds(function: Callable[[], Any]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def logits(model: Network, hidden: Tensor, places: Tensor) -> list[Tensor]:
    """Of the actions at `places` (n,), from the hidden states of what predicts each (n, width): one table per level."""
    tables, layout = layout_of(model).tables(), layout_of(model)
    kind = tables.alphabet[places]
    return [hidden[kind == one] @ model.head_weight(*layout.alphabets[one]).T for one in layout.drawn if one in kind]


@torch.no_grad()
def left_to_right(model: Network, batch: TokenBatch) -> Tensor:
    """The plain loop: likeliest tokens of a causal network, (1, length); one new slot is fed at a time."""
    batch, (length,) = batch._replace(tokens=batch.tokens.clone()), batch.tokens.shape[1:]
    first = batch.layout.prefix
    model.attend = kept = Kept(model, length)
    kept.causal, fed = True, torch.arange(first)
    for place in range(first, length):
        hidden = model.hidden(batch, columns=fed)[:, -1]
        kept.count, kept.causal, fed = place, False, torch.tensor([place])
        (law,) = logits(model, hidden, fed)
        batch.tokens[0, place] = first_id(batch.layout, place) + law.argmax()
    model.attend = None
    return batch.tokens


def first_id(layout: Layout, place: int) -> int:
    return layout.alphabets[int(layout.tables().alphabet[place])][0]


@torch.no_grad()
def passes(model: Network, batch: TokenBatch, plain: bool, count: int = 4) -> tuple[float, float]:
    """Processor seconds of a pass over the prefix and of one over the chunk, the mean of `count`; by plain attention to what
    is kept, or by the library's cache.
    """
    columns, split = torch.arange(len(batch.lead)), batch.layout.prefix
    kept, cache = Kept(model, len(columns)), None if plain else KVCache(model, batch)
    model.attend = kept if plain else None
    before = seconds(lambda: model.hidden(batch, columns=columns[:split], cache=cache, store=True))
    kept.count, kept.store = split, False
    behind = columns[split:]
    total = seconds(lambda: [model.hidden(batch, columns=behind, cache=cache) for _ in range(count)])
    model.attend = None
    return before, total / count


def sampling(model: Network, steps: int, read: bool = False) -> Sampler:
    """Diffusion with the prefix cache; read: with its numbers read out."""
    built = sampler("confidence", process_of(model), steps=steps, temperature=0.0, cache="prefix")
    if not read:
        return built
    levels = torch.linspace(-1, 1, layout_of(model).alphabets[-1][1], dtype=torch.float64)
    return dataclasses.replace(built, kernel=Valued(built.kernel, CodeValues({ACTION: levels.tolist()})))


def one_by_one(model: Network) -> Sampler:
    """The library's autoregression."""
    return sampler("left_to_right", process_of(model), temperature=0.0, cache="block", block=1)


def sampled(built: Sampler, model: Network, batch: TokenBatch, calls: int) -> Tensor:
    """Tokens (1, length). Raises RuntimeError for masks that are left and another number of network calls."""
    state, info = built(denoiser_of(model), batch, 0)
    if bool((state.tokens == batch.layout.vocab.mask).any()) or info.nfe != calls:
        raise RuntimeError(f"{int(info.nfe)} network calls instead of {calls}, or masks are left")
    return state.tokens


def rounds(repeats: int, size: Size, steps: Sequence[int] = STEPS) -> list[Timed]:
    """Processor seconds of every way, once per round: by name, and of diffusion by (slots, steps, whether read out)."""
    twin = network(size, causal=True)
    nets = {FLAT: network(size), PACKED: network(size, packed=True)}
    count, out = size.chunk * size.dim, []
    for seed in range(-1, repeats):  # the first is for memory and threads to be there
        found: Timed = {}
        row = start(twin, seed + 1)
        found[LIBRARY] = seconds(lambda: sampled(one_by_one(twin), twin, row, count))  # noqa: B023
        found[PLAIN] = seconds(lambda: left_to_right(twin, row))  # noqa: B023
        for name, model in nets.items():
            row = start(model, seed + 1)
            both = (passes(model, row, plain) for plain in (False, True))
            found[name, "prefix"], found[name, "chunk"] = map(min, zip(*both))
            for many in steps:
                for read in (False, True):
                    built = sampling(model, many, read)
                    found[name, many, read] = seconds(lambda: sampled(built, model, row, many))  # noqa: B023
        if seed >= 0:
            out.append(found)
    return out


def figures(out: list[Timed], steps: Sequence[int] = STEPS) -> list[dict[str, Any]]:
    """Ratios, milliseconds and goals."""

    def median(value: Callable[[Timed], float]) -> float:
        return statistics.median(value(one) for one in out)

    found = []
    for name in (FLAT, PACKED):
        for many in steps:
            for read in (False, True):
                key, aimed = (name, many, read), name == FLAT and not read and many <= FAST
                title = f"{name}, {many} steps{', read out' if read else ''}"
                speed = median(lambda one: min(one[LIBRARY], one[PLAIN]) / one[key])  # noqa: B023
                bound = median(lambda one: one[key] / (one[name, "prefix"] + many * one[name, "chunk"]))  # noqa: B023
                goal = f"<= {NEAR}" if name == FLAT and not read else None
                found += [
                    dict(figure=f"{title}: autoregression / it", value=speed, goal=">= 1" if aimed else None),
                    dict(figure=f"{title}: it / its bound", value=bound, goal=goal),
                    dict(figure=f"{title}: time", value=1000 * median(lambda one: one[key]), unit="ms"),  # noqa: B023
                ]
        for part in ("prefix", "chunk"):
            value = 1000 * median(lambda one: one[name, part])  # noqa: B023
            found.append(dict(figure=f"{name}, pass over the {part}: time", value=value, unit="ms"))
    for name in (LIBRARY, PLAIN):
        found.append(dict(figure=f"{name}: time", value=1000 * median(lambda one: one[name]), unit="ms"))  # noqa: B023
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--save", choices=("true", "false"), default="true", help="whether docs/results is written")
    for field in ("hidden_size", "num_layers", "num_heads"):
        parser.add_argument(f"--{field}", type=int, default=getattr(Size, field), help="of the network")
    args = parser.parse_args()
    checked("repeats", args.repeats, args.repeats >= 1, "at least one round")
    torch.set_num_threads(1)
    size = Size(args.hidden_size, args.num_layers, args.num_heads)
    found = figures(rounds(args.repeats, size))
    if args.save == "false":
        for row in found:
            print(f"{row['figure']} = {row['value']:.4g} {row.get('unit', '')} {row.get('goal') or ''}".rstrip())
        return
    data = (
        f"untrained weights, {size.num_layers} layers x {size.hidden_size}, {size.num_heads} heads; {size.prefix} given "
        f"tokens, {size.chunk} x {size.dim} tokens of {size.levels} levels, batch 1, float32 on one CPU thread, processor "
        f"seconds, medians over {args.repeats} rounds"
    )
    record("vla_latency", found, data=data, seeds=range(args.repeats))


if __name__ == "__main__":
    sys.exit(main())
