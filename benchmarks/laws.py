"""How far each sampler's law is from the truth: total variation to the enumerated toy joint against network calls.

    python -m benchmarks.laws [--draws 100000] [--evaluations 4,8,16,32] [--save no]

The denoiser is exact, so all that is measured is the sampler. 1 is what so many exact draws show (the noise floor), 10 ten
times that. Samplers with a corrector make no more network calls than those without. "biased": more calls do not bring it to
the joint. Two things to bear in mind: an order that commits one token per call is exact from 4 calls on, the toy's length,
so a corrector can gain only on samplers that draw several tokens at once; and calls are not rows: ancestral sampling of an
absorbing process feeds a row only when one of its tokens is revealed, at most 4 times, a corrector feeds all rows.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.correctors import Gibbs, Informed, Renoise
from discdiff.kernels import Ancestral, Chain, Commit, FirstHitting, Kernel
from discdiff.processes import Absorbing, Interpolating, MaskOrReplace, Process, Uniform, vq_paper
from discdiff.rules import EntropyBound, Factor, Stable, Threshold
from discdiff.sampling.presets import BIASED, PRESETS
from discdiff.sampling.sampler import Common, Sampler, sampler
from discdiff.scores import SCORES, Candidate, Sure
from discdiff.testing import noise_floor, total_variation, toy
from discdiff.types import Info

LENGTH = 4  # of the toy


@dataclass(frozen=True)
class Laws:
    """draws per figure; network calls a sampler may make; save: write docs/results/laws.json."""

    draws: int = 100_000
    evaluations: tuple[int, ...] = (4, 8, 16, 32)
    save: bool = True


@dataclass(frozen=True)
class Entry:
    """`build(evaluations)` gives a sampler that makes at most so many network calls; kind: what the denoiser predicts."""

    build: Callable[[int], Sampler]
    biased: bool
    kind: str = "own"


def steps(kernel: Kernel, each: int = 1, kind: str = "own", biased: bool | None = None) -> Entry:
    """A kernel that makes `each` network calls per step."""
    biased = not kernel.unbiased if biased is None else biased
    return Entry(lambda calls: Sampler(kernel, Common(steps=max(calls // each, 1))), biased, kind)


PROCESSES: dict[str, Process] = {
    "absorbing": Absorbing(),
    "uniform": Uniform(),
    "mask-or-replace": MaskOrReplace(),
    "interpolating": Interpolating(),
}
RULES: dict[
    str, Commit
] = {  # no prediction of the toy is as sure as the usual 0.9: settings that commit several at once
    "threshold 0.5": Commit(Sure(), Threshold(0.5)),
    "factor 1.5": Commit(Sure(), Factor(1.5)),
    "entropy bound 0.8": Commit(Sure("entropy"), EntropyBound(0.8)),
    "stable 0.5": Commit(Sure(), Stable(0.5, 0.1, 1)),
}
CORRECTED = ("gibbs", "informed", "renoise")  # presets that make more than one call per step: the table has them
uniform, candidate = Uniform(), Commit(Candidate())
ENTRIES: dict[str, Entry] = {
    **{f"ancestral, {name}": steps(Ancestral(process)) for name, process in PROCESSES.items()},
    "first-hitting": steps(FirstHitting()),
    **{f"commit {name}": steps(Commit(score)) for name, score in SCORES.items()},
    **{f"commit {name}": steps(kernel) for name, kernel in RULES.items()},
    # half of the calls are the corrector's
    "ancestral + Gibbs, absorbing": steps(Chain((Ancestral(), Gibbs())), 2),
    "ancestral + Gibbs, mask-or-replace": steps(Chain((Ancestral(vq_paper()), Gibbs(process=vq_paper()))), 2),
    "ancestral + Gibbs, interpolating": steps(Chain((Ancestral(Interpolating()), Gibbs(process=Interpolating()))), 2),
    "ancestral + Gibbs, uniform": steps(Chain((Ancestral(uniform), Gibbs(process=uniform))), 2),
    "ancestral + Gibbs, uniform, cavities": steps(Chain((Ancestral(uniform), Gibbs(process=uniform))), 2, "cavity"),
    "ancestral + Gibbs 2 at once": steps(Chain((Ancestral(), Gibbs(parallel=2))), 2),
    "ancestral + renoise, absorbing": steps(Chain((Ancestral(), Renoise())), 2),
    "ancestral + renoise half back, absorbing": steps(Chain((Ancestral(), Renoise(0.5))), 2),
    "ancestral + informed, cavities": steps(Chain((Ancestral(), Informed(1))), 2, "cavity"),
    "commit confidence + Gibbs": steps(Chain((Commit(Sure()), Gibbs())), 2, biased=False),
    "commit candidate + Gibbs": steps(Chain((candidate, Gibbs())), 2, biased=False),
    # three quarters of them
    "ancestral + 3 Gibbs, absorbing": steps(Chain((Ancestral(), Gibbs(3))), 4),
}
"""Every sampler by name; a line here is all a new one needs."""


def presets() -> dict[str, Entry]:
    """The named samplers at temperature 1 whose kernel the table does not have, nor needs a part of the user's own."""
    found, known = {}, {repr(entry.build(1).kernel) for entry in ENTRIES.values()}
    for name, preset in PRESETS.items():
        own = [p.default for p in list(inspect.signature(preset.build).parameters.values())[1:]]
        if name in CORRECTED or None in own:
            continue
        entry = Entry(partial(_preset, name), preset.law == BIASED)
        one = entry.build(1)
        if one.wrap is not None or repr(one.kernel) not in known:
            found[f"preset {name}"] = entry
            known.add(repr(one.kernel))
    return found


def _preset(name: str, calls: int) -> Sampler:
    return sampler(name, steps=calls, temperature=1.0)


def measure(entry: Entry, calls: int, draws: int) -> tuple[float, Info]:
    """Total variation to the joint in noise floors, and what the run cost."""
    law, chosen = toy(), entry.build(calls)
    state, info = chosen(law.denoiser(chosen.kernel.process, entry.kind), law.batch(draws), seed=0)
    assert info.nfe <= calls, f"{chosen} made {info.nfe} network calls instead of {calls}"
    return total_variation(law.law(state.batch.symbols(state.tokens)), law.p) / noise_floor(law.p, draws), info


GAINS = (
    ("ancestral, absorbing", "ancestral + Gibbs, absorbing"),
    ("ancestral, absorbing", "ancestral + 3 Gibbs, absorbing"),
    ("ancestral, mask-or-replace", "ancestral + Gibbs, mask-or-replace"),
    ("ancestral, interpolating", "ancestral + Gibbs, interpolating"),
    ("ancestral, uniform", "ancestral + Gibbs, uniform"),
    ("ancestral, uniform", "ancestral + Gibbs, uniform, cavities"),
    ("ancestral, absorbing", "ancestral + renoise, absorbing"),
    ("ancestral, absorbing", "ancestral + renoise half back, absorbing"),
    ("ancestral, absorbing", "ancestral + informed, cavities"),
    ("commit candidate", "commit candidate + Gibbs"),
)
"""(without, with) a corrector, at equal network calls."""
EXACT = (
    "first-hitting",
    "commit random",
    "commit confidence",
    "commit entropy",
    "commit margin",
    "commit left_to_right",
)


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.laws", argv, {"laws": Laws})["laws"]
    began, floor = time.process_time(), noise_floor(toy().p, settings.draws)
    print(f"noise floor of {settings.draws} draws: total variation {floor:.5f}; rows: network rows per sample")
    found: dict[tuple[str, int], float] = {}
    figures: list[dict[str, Any]] = []
    for name, entry in {**ENTRIES, **presets()}.items():
        label = f"{name} (biased)" if entry.biased else name
        line = f"{label:42}"
        for calls in settings.evaluations if name in ENTRIES else settings.evaluations[::2]:
            value, info = measure(entry, calls, settings.draws)
            found[name, calls] = value
            goal = "<= 1.5" if name in EXACT and calls >= LENGTH else None
            figures.append({"figure": f"{label}, {calls} calls", "value": value, "unit": "noise floors", "goal": goal})
            line += f" | {calls:2} calls {value:5.2f} floors {info.network_rows / settings.draws:5.2f} rows"
        print(f"{line} | {time.process_time() - began:.0f} s", flush=True)
    for plain, better in GAINS:
        for calls in settings.evaluations:
            gain = found[plain, calls] / found[better, calls]
            figures.append({"figure": f"gain by {better}, {calls} calls", "value": gain, "unit": f"x over {plain}"})
    if settings.save:
        data = f"toy joint of 3 symbols x 4 positions, {settings.draws} draws, exact denoiser; 1 floor = {floor:.5f}"
        record("laws", figures, data=data, seeds=[0])


if __name__ == "__main__":
    sys.exit(guarded(main))
