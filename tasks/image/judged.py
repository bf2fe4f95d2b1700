"""How good samples are: a classifier's accuracy, and distances of its features to those of real pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from discdiff.cli import parse, take
from discdiff.config import checked
from discdiff.metrics import density_coverage, frechet_distance, memorised, precision_recall
from tasks.common.judge import Judge, predicted, train_judge
from tasks.common.sections import Drawing, sampler_of
from tasks.image import page, quality
from tasks.image.again import drawn_surely
from tasks.image.generate import CODES, Trained, drawn, opened
from tasks.image.settings import Judged
from tasks.image.sources import Read, load_said
from tokenizers_vq.image import from_bytes, to_bytes


def fit_judge(train: Read, folder: Path, judged: Judged, width: int = 32) -> tuple[Judge, list[str]]:
    """A classifier of real pictures by what is said of them, kept in `folder`, and the values by number."""
    labels = sorted(set(train.said))
    checked("labels", labels[:3], 1 < len(labels) <= 1000, "between 2 and 1000 values, so that they can be told apart")
    file, note = folder.with_suffix(".safetensors"), folder.with_suffix(".json")
    facts = {"steps": judged.judge_steps, "seed": judged.judge_seed, "width": width, "sha256": train.digest()}
    if file.is_file():
        same = note.is_file() and json.loads(note.read_text(encoding="utf-8")) == facts
        checked("judge", str(file), same, "it learned other pictures, or otherwise: remove it")
        judge = Judge(2, train.x.shape[1], len(labels), width)
        try:
            load_model(judge, file)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{str(file)!r} is no judge of these {len(labels)} values: remove it") from error
        return judge.eval(), labels
    truth = torch.tensor([labels.index(each) for each in train.said])
    x = from_bytes(train.x)
    judge = train_judge(x, truth, folder, steps=judged.judge_steps, seed=judged.judge_seed, width=width)
    save_model(judge, str(file))
    note.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return judge, labels


@torch.no_grad()
def features(judge: Judge, x: Tensor) -> Tensor:
    """The judge's last means (n, width) of uint8 pictures."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(part.to(device)).cpu() for part in quality.batches(x)]).double()


def share(judge: Judge, labels: Sequence[str], x: Tensor, said: Sequence[str]) -> tuple[float, float]:
    """Share of uint8 pictures judged to be what is said, and its standard error."""
    unknown = sorted(set(said) - set(labels))
    checked("labels", unknown[:3], not unknown, "no training picture has them: keep other pictures back")
    truth = torch.tensor([labels.index(each) for each in said])
    p = (predicted(judge, from_bytes(x)) == truth).double().mean()
    return float(p), float((p * (1 - p) / len(x)).sqrt())


def compared(judge: Judge, real: Tensor, fake: Tensor, train: Tensor | None = None) -> dict[str, float]:
    """Frechet distance, precision, recall, density and coverage of uint8 pictures on the judge's features; copies: share of
    `fake` that lies nearer to a training picture (pixels) than half the usual distance of real ones.
    """
    a, b = features(judge, real), features(judge, fake)
    pair, other = precision_recall(a, b), density_coverage(a, b)
    found = {"fid": frechet_distance(a, b), "precision": pair.precision, "recall": pair.recall}
    found |= {"density": other.density, "coverage": other.coverage}
    if train is not None:
        found["copies"] = memorised(*(from_bytes(x).flatten(1) for x in (fake, train, real)))
    return found


def made_for(
    trained: Trained, said: Sequence[str], labels: Sequence[str], seed: int = 0, surely: float = 0.0, **sampler: Any
) -> tuple[Tensor, float]:
    """Pictures for conditions, and how many were drawn for each; surely: what the model is less sure of, among the labels, is
    drawn anew.
    """
    if not surely:
        return drawn(trained, said, seed, **sampler)[0], 1.0
    found = drawn_surely(trained, said, labels, least=surely, seed=seed, **sampler)
    return found.pictures, float(found.draws.double().mean())


def measured(
    trained: Trained, judge: Judge, labels: Sequence[str], valid: Read, count: int, seed: int = 0, **sampler: Any
) -> tuple[dict[str, float], Tensor]:
    """Figures of `count` samples for the conditions of validation pictures, taken in turn, and the samples; sampler: of
    `made_for`.
    """
    said = [valid.said[i % len(valid.said)] for i in range(count)]
    made, draws = made_for(trained, said, labels, seed, **sampler)
    right, error = share(judge, labels, made, said)
    found = {"accuracy": right, "standard_error": error, **compared(judge, valid.x[: max(count, 2)], made)}
    return found | ({"draws": draws} if draws > 1 else {}), made


def asked(train: Read, valid: Read, count: int) -> Read:
    """`count` validation pictures from all over them. Raises ValueError where they cannot be judged, before any work."""
    checked("valid", len(valid.x), len(valid.x) >= 6, "keep at least 6 pictures back, that each has five neighbours")
    sizes = [tuple(part.x.shape[1:]) for part in (valid, train)]
    checked("valid", sizes[0], sizes[0] == sizes[1], f"the training pictures are {sizes[1]}")
    unknown = sorted(set(valid.said) - set(train.said))
    checked("labels", unknown[:3], not unknown, "no training picture has them: keep other pictures back")
    some = torch.linspace(0, len(valid.x) - 1, min(count, len(valid.x))).long()
    return Read(valid.x[some], [], [valid.said[i] for i in some.tolist()])


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Accuracy, Frechet distance, precision and recall of samples by a classifier trained on real pictures, beside real
    pictures and reconstructions.
    """
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"judged": Judged, "drawing": Drawing}, ("folder",))
    folder, wanted = Path(chosen["folder"]), chosen["judged"]
    trained = opened(folder)
    column = trained.generator.condition
    checked("condition", column, column != "", "a model that is told nothing cannot be judged by what it was told")
    train, valid = load_said(trained.pictures, trained.tokenizer.config.channels, column)
    valid = asked(train, valid, wanted.samples)
    judge, labels = fit_judge(train, folder / "judge", wanted)
    sampler = sampler_of(prog, inside, chosen["drawing"], trained.sampler)
    found, made = measured(trained, judge, labels, valid, wanted.samples, **sampler)
    codes, grid = quality.encode(trained.tokenizer, valid.x[: wanted.samples])
    back = to_bytes(quality.decode(trained.tokenizer, codes, grid))
    found["accuracy_real"] = share(judge, labels, valid.x, valid.said)[0]
    found["accuracy_reconstructed"] = share(judge, labels, back, valid.said[: wanted.samples])[0]
    found["fid_reconstructed"] = compared(judge, valid.x[: wanted.samples], back)["fid"]
    (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:>24}{value:12.4f}")
    log = folder / f"{CODES}_training" / "metrics.jsonl"
    print(page.samples(folder / "report.html", "Picture model", made[:100], valid.x[:30], found, log))
