"""Learned schedules against hand-made and searched ones: total variation on the toy, and molecules judged by another model.

    python -m benchmarks.learned [--parts toy,molecules,fits]   # molecules: RDKit, qm9_smiles, models of benchmarks.halves

Every schedule is fitted on one seed and judged on others. `kl` (times by dynamic programming over measured interval errors)
is the learned sampler that is held against the goal; LSD and LSD+ stand beside it.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.halves import corpus
from benchmarks.qm9 import DATA, molecules
from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.config import checked, from_dict
from discdiff.denoisers import ModelDenoiser, denoiser_of
from discdiff.distill import fit, hand_made, jump_your_steps
from discdiff.kernels import Ancestral
from discdiff.layout import LAYOUTS, TokenBatch
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, Process, Uniform, vq_paper
from discdiff.sampling import Grid, process_of, sample
from discdiff.testing import noise_floor, total_variation, toy
from tasks.text import evaluate, rows

PROCESSES = {"absorbing": Absorbing(), "uniform": Uniform(), "mask_or_replace": vq_paper()}
HAND = ("uniform", "cosine", "square", "square_root")
FINE = 48  # steps of the teacher: a multiple of 4, 8 and 16
TOY_STEPS, STEPS, GOAL_STEPS = (2, 3, 4, 8, 16), (4, 8, 16, 32), (4, 8, 16)
LEARNED = "kl"

Make = Callable[[Any, Process, TokenBatch, int, int], Grid]
"""(denoiser, process, rows to run on, steps, seed) -> grid."""


def _fitted(**options: Any) -> Make:
    def make(denoiser: Any, process: Process, batch: TokenBatch, steps: int, seed: int) -> Grid:
        teacher = FINE if options.get("objective") == "kl" or FINE % steps == 0 else 2 * steps
        return fit(denoiser, Ancestral(process), batch, steps, teacher, seed=seed, **options).grid

    return make


def _searched(denoiser: Any, process: Process, batch: TokenBatch, steps: int, seed: int) -> Grid:
    return jump_your_steps(denoiser, process, batch, steps, FINE, seed=seed)


FITS: dict[str, Make] = {
    "searched": _searched,
    "lsd": _fitted(learn=("rate",)),
    "lsd+": _fitted(learn=("rate", "time"), rounds=2),
    LEARNED: _fitted(objective="kl"),
}


@dataclass(frozen=True)
class Compared:
    """parts: of toy, molecules and fits; models: folder of `benchmarks.halves`; count: molecules per figure; draws: toy samples
    per figure; rows: molecules that a fit runs on.
    """

    parts: str = "toy,molecules,fits"
    models: str = "runs/halves/molecules"
    count: int = 600
    draws: int = 100_000
    rows: int = 128
    seed: int = 1
    save: bool = True


class Figures:
    """What is measured, printed as it comes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def note(self, name: str, value: float, unit: str = "", goal: str | None = None) -> None:
        self.rows.append({"figure": name, "value": value, "unit": unit, "goal": goal})
        print(f"{name:>70}: {value:.4f} {unit}", flush=True)


def on_toy(figures: Figures, draws: int, seed: int) -> None:
    """Total variation to the enumerated joint, in units of what as many exact samples are off by."""
    joint = toy()
    floor = noise_floor(joint.p, draws)
    for name, process in PROCESSES.items():
        denoiser, kernel = joint.denoiser(process), Ancestral(process)
        for steps in TOY_STEPS:
            found = {}
            for way in (*HAND, *FITS):
                if way in HAND:
                    grid = hand_made(way, steps, process)
                else:
                    grid = FITS[way](denoiser, process, joint.batch(4000), steps, seed)
                state, _ = sample(denoiser, kernel, joint.batch(draws), grid, seed=seed + 1)
                found[way] = total_variation(joint.law(state.batch.symbols(state.tokens)), joint.p)
                figures.note(f"toy, {name}, {steps} steps: {way}", found[way], "total variation")
            best = min(found[way] for way in HAND)
            goal = "<= 1" if steps in GOAL_STEPS and best > 2 * floor else None
            figures.note(f"toy, {name}, {steps} steps: learned / best hand-made", found[LEARNED] / best, "", goal)
    figures.note(f"toy: expected of {draws} exact samples", floor, "total variation")


def on_molecules(figures: Figures, settings: Compared) -> None:
    """Validity, judged nats, entropy and distinct share of molecules at equal calls."""
    folder = Path(settings.models)
    if not (folder / "judge" / "config.json").exists():
        raise ValueError(f"no models in {settings.models!r}: run python -m benchmarks.halves first")
    text = corpus("molecules", folder)
    tokenizer = rows.build_tokenizer(text)
    layout = rows.layout_for(tokenizer, text.length)
    causal = replace(layout, attention="causal")
    judge = DiscDiffModel.from_pretrained(folder / "judge").eval()
    with open(DATA / "train.csv") as file:
        known = {line["smiles"] for line in csv.DictReader(file)}

    def judged(model: Any, process: Process, grid: Grid) -> dict[str, float]:
        denoiser, out = ModelDenoiser(model, kind=model.config.prediction), []
        for part in range(0, settings.count, 250):
            batch = rows.blank(layout, min(250, settings.count - part))
            out.append(
                sample(denoiser, Ancestral(process), batch, grid, seed=1000 * (settings.seed + 1) + part)[0].tokens
            )
        ended = rows.judged_rows(layout, torch.cat(out), cut=True)._replace(layout=causal)
        parts = [ended.rows(index) for index in torch.arange(settings.count).split(250)]
        shares = molecules(rows.to_text(tokenizer, layout, torch.cat(out)), known)
        return {
            "nats": evaluate.likelihood(judge, None, parts, 1, 0).mean,
            "entropy": evaluate.diversity(ended)["entropy"],
            **shares,
        }

    for name in PROCESSES:
        model = DiscDiffModel.from_pretrained(folder / name).eval()
        process = process_of(model)
        denoiser = ModelDenoiser(model, kind=model.config.prediction)
        for steps in STEPS:
            found = {}
            for way in (*HAND, *FITS):
                if way in HAND:
                    grid = hand_made(way, steps, process)
                else:
                    grid = FITS[way](denoiser, process, rows.blank(layout, settings.rows), steps, settings.seed)
                found[way] = judged(model, process, grid)
                for key, value in found[way].items():
                    unit = "nats per molecule, judged" if key == "nats" else "nats" if key == "entropy" else "share"
                    figures.note(f"molecules, {name}, {steps} steps, {way}: {key}", value, unit)
            best = min((found[way] for way in HAND), key=lambda one: one["nats"])
            where = f"molecules, {name}, {steps} steps: learned"
            gain = best["nats"] - found[LEARNED]["nats"]
            figures.note(
                f"{where}, judged nats below the best hand-made", gain, "nats", ">= 0" if steps in GOAL_STEPS else None
            )
            figures.note(f"{where}, entropy / its", found[LEARNED]["entropy"] / best["entropy"])


def fits(figures: Figures, settings: Compared) -> None:
    """Seconds that each fit takes on the trained models."""
    folder = Path(settings.models)
    for name in PROCESSES:
        model = DiscDiffModel.from_pretrained(folder / name).eval()
        process, denoiser = process_of(model), denoiser_of(model)
        layout = from_dict(model.config.layout, LAYOUTS)
        for way in FITS:
            for steps in GOAL_STEPS[::2]:
                began = time.perf_counter()
                FITS[way](denoiser, process, rows.blank(layout, settings.rows), steps, settings.seed)
                goal = None if way == "searched" else "<= 120"
                figures.note(f"fit, {name}, {steps} steps, {way}", time.perf_counter() - began, "s", goal)


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.learned", argv, {"compared": Compared})["compared"]
    parts = {
        "toy": ("the exact toy", lambda figures: on_toy(figures, settings.draws, settings.seed)),
        "molecules": ("qm9_smiles: models on even rows, judge on odd", lambda figures: on_molecules(figures, settings)),
        "fits": ("qm9_smiles models", lambda figures: fits(figures, settings)),
    }
    for name in settings.parts.split(","):
        checked("parts", name, name in parts, f"choose from {', '.join(parts)}")
    for name in settings.parts.split(","):
        (data, measure), figures = parts[name], Figures()
        with torch.no_grad():
            measure(figures)
        if settings.save:
            record(f"learned_{name}", figures.rows, data=data, seeds=[settings.seed, settings.seed + 1])


if __name__ == "__main__":
    sys.exit(guarded(main))
