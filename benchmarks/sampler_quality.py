"""Every named sampler on a trained model at equal network evaluations: validity beside entropy and distinct molecules.

python -m benchmarks.sampler_quality [--model runs/qm9/diffusion] [--count 500]; needs RDKit, the folder qm9_smiles under
DISCDIFF_DATA and the model that `python -m benchmarks.qm9` leaves
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.qm9 import DATA, molecules
from benchmarks.results import record
from discdiff.cli import guarded, parse
from discdiff.denoisers import ModelDenoiser
from discdiff.energy import AutoregressiveEnergy, model_log_probs
from discdiff.metrics import distinct, unigram_entropy
from discdiff.models import DiscDiffModel
from discdiff.sampling import PRESETS, process_of, sampler
from discdiff.scores import spread
from discdiff.types import Info, State, Step
from tasks.text import evaluate, rows
from tasks.text.settings import Corpus

EVALUATIONS = (4, 8, 16, 32, 64)
CALLS_PER_STEP = {"gibbs": 2, "renoise": 2, "informed": 3}
SETTINGS: dict[str, dict[str, Any]] = {  # where the usual setting would do nothing or everything on rows of 32
    "remdm_cap": {"eta": 0.1},
    "remdm_rescale": {"eta": 0.1},
    "remdm_switch": {"eta": 0.1},
    "remdm_loop": {"eta": 0.1},
    "remdm_conf": {"eta": 0.3},
    "gibbs": {"start": 1.0},
    "informed": {"start": 1.0, "k": 2},
}


@dataclass(frozen=True)
class Quality:
    """model: folder of a trained model, its autoregressive twin beside it; count: samples per figure; only: one sampler."""

    model: str = "runs/qm9/diffusion"
    twin: str = "runs/qm9/autoregressive"
    count: int = 500
    temperature: float = 1.0
    only: str = ""
    seed: int = 1
    save: bool = True


@dataclass(frozen=True)
class Twin:
    """The causal twin as a critic: log probability of every candidate token given those before it."""

    model: Any

    def __call__(self, state: State, step: Step) -> Tensor:
        causal = state._replace(batch=state.batch._replace(layout=replace(state.batch.layout, attention="causal")))
        index = state.free.reshape(-1).nonzero()[:, 0]
        prediction = ModelDenoiser(self.model, shift=True)(causal, step)
        return spread(state, index, prediction.log_prob(index, state.tokens.reshape(-1)[index]))


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.sampler_quality", argv, {"quality": Quality})["quality"]
    if not Path(settings.model, "config.json").exists():
        raise ValueError(f"no model in {settings.model!r}: run python -m benchmarks.qm9 first")
    model = DiscDiffModel.from_pretrained(settings.model).eval()
    critic = Twin(DiscDiffModel.from_pretrained(settings.twin).eval()) if Path(settings.twin).exists() else None
    corpus = Corpus(source=str(DATA / "train.csv"), text_field="smiles", rows="padded", length=32)
    tokenizer = rows.build_tokenizer(corpus)
    layout = rows.layout_for(tokenizer, corpus.length)
    with open(DATA / "train.csv") as file:
        known = {line["smiles"] for line in csv.DictReader(file)}
    batch, process, figures = rows.blank(layout, settings.count), process_of(model), []
    heads = ("nfe", "valid", "unique", "novel", "entropy", "distinct_2", "nats")
    print(f"{'':>24}" + "".join(f"{head:>11}" for head in heads))
    for name in [settings.only] if settings.only else PRESETS:
        if name in ("token_critic", "edlm") and critic is None:
            continue
        more = SETTINGS.get(name, {})
        if name == "token_critic":
            more = {"critic": critic}
        if name == "edlm":
            more = {"energy": AutoregressiveEnergy(model_log_probs(critic.model), carry_over=False)}
        for calls in EVALUATIONS:
            steps = max(1, calls // CALLS_PER_STEP.get(name, 1))
            chosen = sampler(name, process, steps=steps, temperature=settings.temperature, **more)
            state, info = chosen(ModelDenoiser(model), batch, settings.seed)
            found = _judged(state.tokens, info, tokenizer, layout, known, critic)
            print(
                f"{name:>18} {calls:>5}" + "".join(f"{found.get(head, float('nan')):11.3f}" for head in heads),
                flush=True,
            )
            units = {"nfe": "network calls", "entropy": "nats", "nats": "nats per molecule, judged by the twin"}
            figures += [
                {"figure": f"{name}, {calls} evaluations, {key}", "value": value, "unit": units.get(key, "share")}
                for key, value in found.items()
            ]
    for cache in ("unchanged", "approximate_prefix", "approximate_dual"):
        plain, cached = (
            sampler("entropy", process, steps=32, block=8, cache=name)(ModelDenoiser(model), batch, settings.seed)
            for name in ("none", cache)
        )
        same = (plain[0].tokens == cached[0].tokens)[:, 1:]
        found = molecules(rows.to_text(tokenizer, layout, cached[0].tokens), known)
        agreement = {"tokens": float(same.double().mean()), "rows": float(same.all(1).double().mean())}
        agreement |= {"valid": found["valid"], "positions fed, of uncached": cached[1].fed / plain[1].fed}
        print(f"{cache:>24}: " + ", ".join(f"{key} {value:.3f}" for key, value in agreement.items()), flush=True)
        figures += [
            {"figure": f"cache {cache}, blocks of 8, as without a cache: {key}", "value": value, "unit": "share"}
            for key, value in agreement.items()
        ]
    if settings.save and not settings.only:
        record("sampler_quality", figures, data="qm9_smiles", seeds=[settings.seed])


def _judged(tokens: Tensor, info: Info, tokenizer: Any, layout: Any, known: set[str], critic: Any) -> dict[str, float]:
    ended = rows.judged_rows(layout, tokens, cut=True)
    out = {"nfe": float(info.nfe), **molecules(rows.to_text(tokenizer, layout, tokens), known)}
    out |= {"entropy": unigram_entropy(ended.tokens[:, 1:]), "distinct_2": distinct(ended.tokens[:, 1:], 2)}
    if critic is not None:
        causal = ended._replace(layout=replace(layout, attention="causal"))
        out["nats"] = evaluate.likelihood(critic.model, None, [causal], 1, 0).mean
    return out


if __name__ == "__main__":
    sys.exit(guarded(main))
