"""Energy-corrected sampling against the plain sampler at equal total cost, judged by a third model.

    python -m benchmarks.energy [--data molecules|text] [--count 600]      # needs the models of benchmarks.halves, RDKit

Cost counts every network: parameters x positions x rows, in calls of the denoiser per sample. The judge is autoregressive
and saw the other half of the rows. Settings are compared on one seed; what is best there is measured again, on more
samples of another seed, beside the plain sampler that is given at least the same cost: the setting that saves most of the
judge's nats against it.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.halves import corpus
from benchmarks.qm9 import DATA, molecules
from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.denoisers import ModelDenoiser
from discdiff.energy import AutoregressiveEnergy, EnergyModel, EnergyResampled, LearnedEnergy, model_log_probs
from discdiff.kernels import Ancestral
from discdiff.models import DiscDiffModel
from discdiff.sampling import sample
from discdiff.types import Info
from tasks.text import evaluate, rows

STEPS, CANDIDATES, WINDOWS = (4, 8, 16, 32, 64), (2, 4, 8, 16), (0.2, 1.0)
PLAIN = (4, 8, 12, 16, 24, 32, 64, 256)
GOAL_STEPS = (8, 16)
FULL = "small autoregressive"
ENTROPY = 0.98  # a corrected sampler that loses more of the plain one's entropy does not count as better


@dataclass(frozen=True)
class Compared:
    """data: molecules or text; models: folder of `benchmarks.halves`, "" is runs/halves/DATA; count: samples per setting at
    the steps of the goal, a third of it elsewhere and for other energies; final: of the best,
    drawn with final_seed; batch: at a time.
    """

    data: str = "molecules"
    models: str = ""
    count: int = 600
    final: int = 2000
    batch: int = 250
    seed: int = 1
    final_seed: int = 3
    save: bool = True


@dataclass(frozen=True)
class Setting:
    """One sampler: steps, and where it is corrected the energy, k, the window and the temperature of the weights."""

    steps: int
    energy: str = ""
    k: int = 1
    window: float = 1.0
    temperature: float = 1.0

    def __str__(self) -> str:
        if not self.energy:
            return f"{self.steps} steps, plain"
        heat = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return f"{self.steps} steps, {self.energy}, k={self.k}, window {self.window:g}{heat}"


class Bench:
    """The models, and what their samples are worth."""

    def __init__(self, settings: Compared) -> None:
        folder = Path(settings.models or f"runs/halves/{settings.data}")
        if not (folder / "judge" / "config.json").exists():
            raise ValueError(f"no models in {settings.models!r}: run python -m benchmarks.halves first")
        self.settings, self.corpus = settings, corpus(settings.data, folder)
        self.tokenizer = rows.build_tokenizer(self.corpus)
        self.layout = rows.layout_for(self.tokenizer, self.corpus.length)
        self.denoiser, self.judge, large, small = (
            DiscDiffModel.from_pretrained(folder / name).eval()
            for name in ("absorbing", "judge", "energy", "energy_small")
        )
        self.energies: dict[str, tuple[Any, Any]] = {
            FULL: (AutoregressiveEnergy(model_log_probs(small), carry_over=False), small),
            "small carry-over": (AutoregressiveEnergy(model_log_probs(small)), small),
            "autoregressive": (AutoregressiveEnergy(model_log_probs(large), carry_over=False), large),
        }
        for name, called in (("nce", "noise-contrastive"), ("nce_small", "small noise-contrastive")):
            if (folder / name).exists():
                learned = EnergyModel.from_pretrained(folder / name).eval()
                self.energies[called] = (LearnedEnergy(learned), learned)
        self.known: set[str] = set()
        if settings.data == "molecules":
            with open(DATA / "train.csv") as file:
                self.known = {line["smiles"] for line in csv.DictReader(file)}

    def cost(self, info: Info, count: int, energy: str) -> float:
        """Calls of the denoiser per sample that would cost the same."""
        share = self.energies[energy][1].num_parameters() / self.denoiser.num_parameters() if energy else 0.0
        return (info.network_rows + share * info.energy_rows) / count

    def draw(self, setting: Setting, count: int, seed: int) -> tuple[Tensor, float, float]:
        """Token rows, cost, and effective sample size of the last corrected call."""
        energy = self.energies[setting.energy][0] if setting.energy else None
        kernel = (
            Ancestral(proposal=EnergyResampled(energy, setting.k, setting.window, setting.temperature))
            if energy
            else Ancestral()
        )
        tokens, total = [], Info()
        for part in range(0, count, self.settings.batch):
            batch = rows.blank(self.layout, min(self.settings.batch, count - part))
            state, info = sample(ModelDenoiser(self.denoiser), kernel, batch, setting.steps, seed=1000 * seed + part)
            tokens.append(state.tokens)
            total = total.merge(info)
        ess = float("nan") if total.ess is None else float(total.ess)
        return torch.cat(tokens), self.cost(total, count, setting.energy), ess

    def measure(self, setting: Setting, count: int, seed: int) -> dict[str, float]:
        """Cost and what `judged` says of the samples."""
        tokens, cost, ess = self.draw(setting, count, seed)
        found = {"cost": cost, **({"ess": ess} if setting.energy else {}), **self.judged(tokens)}
        print(f"{setting!s:>50}: " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
        return found

    def judged(self, tokens: Tensor) -> dict[str, float]:
        """Nats per row by the judge, entropy and distinct shares, and of molecules validity."""
        ended = rows.judged_rows(self.layout, tokens, self.corpus.ends)
        causal = ended._replace(layout=replace(self.layout, attention="causal"))
        parts = [causal.rows(index) for index in torch.arange(len(tokens)).split(250)]
        found = {"nats": evaluate.likelihood(self.judge, None, parts, 1, 0).mean, **evaluate.diversity(ended)}
        if self.known:
            found |= molecules(rows.to_text(self.tokenizer, self.layout, tokens), self.known)
        return found

    def data(self) -> dict[str, float]:
        """What the judge says of the validation rows themselves."""
        _, valid = rows.load_rows(self.corpus, self.tokenizer, self.layout)
        return self.judged(torch.cat([b.tokens for b in rows.batches(valid, self.layout, self.settings.count)]))


def settings_of(energies: Sequence[str]) -> list[Setting]:
    """The whole table for one energy, and at the steps of the goal the others in full."""
    whole = [Setting(s, FULL, k, w) for s in STEPS for k in CANDIDATES for w in WINDOWS]
    whole += [Setting(s, FULL, k, 1.0, 2.0) for s in GOAL_STEPS for k in (2, 4)]
    small = [e for e in energies if e.startswith("small") and e != FULL]
    whole += [Setting(s, e, k) for e in small for s in GOAL_STEPS for k in CANDIDATES]
    return whole + [Setting(s, e, k) for e in energies if e not in (FULL, *small) for s in GOAL_STEPS for k in (2, 4)]


def is_wide(setting: Setting) -> bool:
    """Whether the goal is likely to be decided by it: measured on more samples."""
    return setting.steps in GOAL_STEPS and (not setting.energy or setting.energy.startswith("small"))


def better(one: dict[str, float], plain: dict[str, float]) -> bool:
    """Likelier, of molecules also more valid, at an entropy that is not lost."""
    valid = one.get("valid", 1.0) > plain.get("valid", 0.0)
    return valid and one["nats"] < plain["nats"] and one["entropy"] >= ENTROPY * plain["entropy"]


def margin(one: dict[str, float], plain: dict[str, float]) -> float:
    """Share of the judge's nats saved."""
    return 1 - one["nats"] / plain["nats"]


def equal_cost(cost: float, plain: dict[Setting, dict[str, float]]) -> Setting:
    """The cheapest plain sampler that costs at least as much, else the one that costs most."""
    dear = [setting for setting, found in plain.items() if found["cost"] >= cost]
    return min(dear or [max(plain, key=lambda s: plain[s]["cost"])], key=lambda s: plain[s]["cost"])


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.energy", argv, {"compared": Compared})["compared"]
    bench, figures = Bench(settings), []
    units = {
        "cost": "denoiser calls per sample",
        "nats": "nats per row, judged",
        "entropy": "nats",
        "ess": "candidates",
    }

    def note(name: str, found: dict[str, float]) -> None:
        figures.extend({"figure": f"{name}: {k}", "value": v, "unit": units.get(k, "share")} for k, v in found.items())

    with torch.no_grad():
        plain = {s: bench.measure(s, settings.count, settings.seed) for s in map(Setting, PLAIN)}
        tried = {
            s: bench.measure(s, settings.count if is_wide(s) else settings.count // 3, settings.seed)
            for s in settings_of(list(bench.energies))
        }
        for name, found in {"data": bench.data(), **{str(s): f for s, f in (plain | tried).items()}}.items():
            note(name, found)
        for steps in GOAL_STEPS:
            mine = {s: f for s, f in tried.items() if s.steps == steps}
            enough = {s: f for s, f in mine.items() if better(f, plain[equal_cost(f["cost"], plain)])}
            gain = {s: margin(f, plain[equal_cost(f["cost"], plain)]) for s, f in (enough or mine).items()}
            best = max(gain, key=gain.__getitem__)
            rival = equal_cost(mine[best]["cost"], plain)
            again = {s: bench.measure(s, settings.final, settings.final_seed) for s in (best, rival)}
            name = f"goal at {steps} steps, other seed, {settings.final} samples"
            note(f"{name}, corrected ({best})", again[best])
            note(f"{name}, plain at no less cost ({rival})", again[rival])
            verdict = float(better(again[best], again[rival]))
            figures.append({"figure": f"{name}: better", "value": verdict, "unit": "1 is yes", "goal": "== 1"})
    if settings.save:
        name, data = {"molecules": ("energy", "qm9_smiles"), "text": ("energy_text", "bible_kjv, 64 characters a row")}[
            settings.data
        ]
        data = f"{data}; models on even rows, judge on odd"
        record(name, figures, data=data, seeds=[settings.seed, settings.final_seed])


if __name__ == "__main__":
    sys.exit(guarded(main))
