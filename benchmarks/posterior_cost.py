"""What anchored posterior sampling costs beside its network calls and decoder passes, counted, not timed.

    python -m benchmarks.posterior_cost [--data mnist28|tiles32] [--models runs/image_generation]

Multiply-adds of matrix products and convolutions over a whole run, against those of its network calls and of as many decoder
passes with a gradient; and the most bytes of tensors alive at once during the inner loop and the whole run, against decoding
the same pictures with a gradient.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.posterior import BASES, METHODS, SIGMA, TASKS, data_term
from benchmarks.posterior import Run as Bases
from benchmarks.results import record
from discdiff.anchoring import Measured, SoftDecode
from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.types import Info
from tasks.common import generation
from tasks.image.posterior import restore, soft_of
from tasks.inverse import Gaussian, measure
from tokenizers_vq.image import from_bytes

SHARE = "run against network calls and decoder passes"


@dataclass(frozen=True)
class Run:
    """data, models, tokenizer: as for `benchmarks.posterior`; method: a row of its table; rows: pictures of the batch."""

    data: str = "mnist28"
    models: str = ""
    tokenizer: str = ""
    task: str = "sr"
    method: str = "aps_warm"
    rows: int = 16
    save: bool = True

    def __post_init__(self) -> None:
        for name, known in (("data", BASES), ("task", TASKS), ("method", METHODS)):
            checked(name, getattr(self, name), getattr(self, name) in known, f"choose from {', '.join(known)}")
        checked("rows", self.rows, self.rows >= 1, "at least one picture")


class Alive(TorchDispatchMode):
    """`most`: bytes of the storages that operators made and that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in given:  # not a view of what was there, weights among it, nor written in place
                    self._seen(storage)
        return out

    def _seen(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.held or not size:
            return
        self.held[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


def flops(work: Callable[[], Any]) -> int:
    """Multiply-adds (half of what the counter calls flops)."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def alive(work: Callable[[], Any]) -> int:
    with Alive() as mode:
        work()
    return mode.most


def counted(
    whole: Callable[[], Info], prior: Callable[[], Info], decoded: Callable[[], Any], rows: int, table: int
) -> list[dict[str, Any]]:
    """The figures of a run over `rows` rows, of the same run with nothing measured, and of decoding all rows once with a
    gradient; table: bytes of a table of codes. Raises ValueError where the two runs feed the network other rows.
    """
    infos: list[Info] = []
    total, calls = (flops(lambda work=work: infos.append(work())) for work in (whole, prior))  # type: ignore[misc]
    once, passes = flops(decoded), infos[0].decoded / rows
    fed = (infos[0].network_rows, infos[1].network_rows)
    checked("network rows", fed, fed[0] == fed[1], "the two runs differ")
    bytes_ = {"decoding with a gradient": alive(decoded), "the run": alive(whole)}
    return [
        {"figure": "multiply-adds of the run", "value": total / 1e9, "unit": "G"},
        {"figure": "multiply-adds of its network calls", "value": calls / 1e9, "unit": "G"},
        {"figure": "multiply-adds of a decoder pass with gradient", "value": once / 1e9, "unit": "G"},
        {"figure": "decoder passes", "value": passes, "unit": ""},
        {"figure": SHARE, "value": total / (calls + passes * once), "unit": "", "goal": "<= 1.3"},
        *({"figure": f"most bytes alive, {name}", "value": b / 2**20, "unit": "MiB"} for name, b in bytes_.items()),
        {"figure": "a table of codes", "value": table / 2**20, "unit": "MiB"},
        {
            "figure": "most bytes alive, the run against decoding",
            "value": bytes_["the run"] / bytes_["decoding with a gradient"],
            "unit": "",
            "goal": "<= 1.5",
        },
    ]


def decoding(soft: SoftDecode, term: Measured, slots: int) -> Callable[[], Any]:
    """Decodes every row of a measurement once, with a gradient."""
    e = soft.codebook.new_zeros(len(term.y), slots, soft.codebook.shape[2])

    def decoded() -> None:
        leaf = e.clone().requires_grad_()
        torch.autograd.grad(term(soft.decode(leaf), torch.arange(len(e))).sum(), leaf)

    return decoded


def measured_cost(run: Run) -> list[dict[str, Any]]:
    """The figures of a row of the table on trained models."""
    base = BASES[run.data](Bases(data=run.data, models=run.models, tokenizer=run.tokenizer))
    trained, operator, how = base.trained, TASKS[run.task], METHODS[run.method]
    x = from_bytes(base.held.x[: run.rows])
    term = data_term(trained, base.train.x, operator, measure(operator, x, Gaussian(SIGMA), 0), how)
    soft = soft_of(trained)
    slots, said = len(soft.columns(generation.layout_of(trained.model))), [""] * run.rows

    def whole() -> Info:
        return restore(trained, term, said, how.method, how.steps, options=how.options, **how.knobs).info

    def prior() -> Info:
        alone = {**how.knobs, "sampler": how.knobs.get("sampler", "confidence")}
        return restore(trained, term, said, "prior", how.steps, **alone).info

    table = run.rows * slots * soft.depth * soft.codebook.shape[1] * soft.codebook.element_size()
    return counted(whole, prior, decoding(soft, term, slots), run.rows, table)


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.posterior_cost", argv, {"": Run})[""]
    figures = measured_cost(run)
    for row in figures:
        goal = f" ({row['goal']})" if "goal" in row else ""
        print(f"{row['figure']}: {row['value']:.4g} {row['unit']}{goal}")
    if run.save:
        data = f"{run.data}, {run.task}, {run.rows} pictures, {run.method}"
        record(f"posterior_cost_{run.data}", figures, data=data, seeds=(0,))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
