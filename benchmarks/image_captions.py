"""Pictures told in words (tiles32, 8 x 8 codes), and by group (emoji64), by VQ-Diffusion.

    python -m benchmarks.image_captions [--data tiles32|emoji64]

Held out are the validation and test pictures together; of tiles32 no caption of theirs is one of training. Captions are
scored by a judge of real training pictures and their captions; beside it what the judge says of real held-out pairs, of
reconstructions, and of every set with its captions exchanged: cosines do not start at 0, so real pictures with captions
exchanged have a share of the real score too, and so has a model that hears nothing. The goals are at the first guidance
scale of `tried`, the others are printed beside. A third of the real held-out tiles are near copies of training tiles: what
a model copies shows where the real tile is none; beside it, near copies are drawn again, five times at most. What is in
`out` already is not trained again; emoji64's tokenizer is trained here where there is none.
"""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import image_codes
from benchmarks.image_generation import rows
from benchmarks.results import record, same_run
from discdiff.cli import guarded, parse
from discdiff.config import checked
from discdiff.metrics import memorised, nearest_distances
from discdiff.models import DiscDiffModel
from tasks.common import generation
from tasks.common.words import ABSENT, UNKNOWN, Lexicon, split
from tasks.image import page, quality
from tasks.image.again import apart, drawn_again, usual_distance
from tasks.image.generate import Trained, fit_model
from tasks.image.judged import compared, fit_judge, share
from tasks.image.matching import Matcher, fit_matcher, moved, retrieval, scores
from tasks.image.settings import Generator, Judged, Pictures, Training
from tasks.image.sources import Read, read
from tokenizers_vq import load_tokenizer
from tokenizers_vq.image import ImageTokenizerConfig, from_bytes, to_bytes

COLUMN = {"tiles32": "caption", "emoji64": "group"}
NAME = {"tiles32": "image_captions", "emoji64": "image_emoji"}
NAMELESS = "unknown"  # the group of emoji whose source names none
EMOJI = ImageTokenizerConfig(
    channels=3, width=32, blocks=1, strides=(2, 2, 2), code_dim=32, codebook_size=512, dead_code=0.1, pixel="l2"
)


@dataclass(frozen=True)
class Run:
    """tokenizer: folder of a trained one, "" for runs/images/tiles32, or one of `tokenizer_steps` trained here for emoji64;
    copies: mirrored and moved (by `shift` pixels at most) copies that the model learns beside each picture; least: captions
    that a word must occur in to be more than an unknown one; auxiliary: weight of the second loss; sampling: steps of it;
    tried: guidance scales, of the first of which are the goals.
    """

    data: str = "tiles32"
    tokenizer: str = ""
    tokenizer_steps: int = 700
    tokenizer_batch: int = 16
    method: str = "vq_diffusion"
    auxiliary: float = 5.0
    steps: int = 2000
    bf16: bool = True
    batch_size: int = 64
    learning_rate: float = 3e-3
    hidden_size: int = 128
    num_layers: int = 4
    dropout: float = 0.1
    copies: int = 7
    shift: int = 1
    least: int = 2
    sampling: int = 32
    tried: tuple[float, ...] = (1.0, 2.0, 3.0)
    judge_steps: int = 800
    held: int = 0
    seed: int = 0
    out: str = "runs/image_captions"
    save: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tried", tuple(self.tried))
        checked("data", self.data, self.data in COLUMN, f"choose from {', '.join(COLUMN)}")
        checked("copies", self.copies, self.copies >= 0, "0 or more")
        checked("tried", self.tried, len(set(self.tried)) == len(self.tried) > 0, "distinct scales, at least one")
        checked("held", self.held, self.held == 0 or self.held >= 40, "0 for all held-out pictures, or at least 40")


def words_of(said: Sequence[str], least: int, longest: int = 16) -> Lexicon:
    """The words of at least `least` distinct captions: what rarer ones mean cannot be learned, and "?" is seen in training."""
    counts = collections.Counter(word for caption in set(said) for word in set(split(caption)))
    kept = sorted(word for word, n in counts.items() if n >= least)
    return Lexicon((ABSENT, UNKNOWN, *kept), Lexicon.of(said, longest).length)


def more(train: Read, copies: int, shift: int, seed: int) -> Read:
    """The pictures, and `copies` of each, mirrored or not and moved by up to `shift` pixels."""
    generator = torch.Generator().manual_seed(seed)
    n, parts = len(train.x), [train.x]
    for _ in range(copies):
        flip = torch.rand(n, generator=generator) < 0.5
        parts.append(moved(train.x, flip, *torch.randint(-shift, shift + 1, (2, n), generator=generator)))
    return Read(torch.cat(parts), [], train.said * (copies + 1))


class Bench:
    """Data, tokenizer and the model of its codes."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, Path(run.out) / run.data
        same_run(self.folder, asdict(run), ("sampling", "tried", "held", "save", "out"))
        column, place = COLUMN[run.data], image_codes.DATA / run.data
        parts = [read(str(place / f"{p}.parquet"), Pictures(source="-"), 3, column) for p in ("train", "valid", "test")]
        named = [part.rows(torch.tensor([said != NAMELESS for said in part.said])) for part in parts]
        self.train = named[0]
        self.held = Read(torch.cat([p.x for p in named[1:]]), [], named[1].said + named[2].said)
        if run.held:
            some = torch.arange(len(self.held.x)) % max(1, len(self.held.x) // run.held) == 0
            self.held = self.held.rows(some)
        self.codec, self.codec_seconds = self._codec()
        self.lexicon = words_of(self.train.said, run.least if column == "caption" else 1)

    def _codec(self) -> tuple[Any, float]:
        run = self.run
        if run.tokenizer or run.data == "tiles32":
            return load_tokenizer(run.tokenizer or "runs/images/tiles32"), 0.0
        wanted = image_codes.Run(batch=run.tokenizer_batch, seed=run.seed, out=str(self.folder))
        return image_codes.trained(wanted, EMOJI, self.train.x, run.tokenizer_steps, "tokenizer")

    def back(self, x: Tensor) -> Tensor:
        """What the codes of uint8 pictures give."""
        codes, grid = quality.encode(self.codec, x)
        return to_bytes(quality.decode(self.codec, codes, grid))

    def model(self) -> tuple[Trained, float]:
        """The model and the seconds its training took, 0 where it was interrupted."""
        run = self.run
        wanted = Generator(
            condition=COLUMN[run.data], method=run.method, hidden_size=run.hidden_size, num_layers=run.num_layers,
            dropout=run.dropout, auxiliary=run.auxiliary,
        )  # fmt: skip
        folder, timed = self.folder / run.method, self.folder / f"{run.method}_seconds.json"
        model: DiscDiffModel
        if (folder / "config.json").is_file():
            model = generation.loaded(folder)
        else:
            settings = Training(
                seed=run.seed, steps=run.steps, batch_size=run.batch_size, learning_rate=run.learning_rate,
                warmup=min(50, run.steps), optimizer="muon", ema=0.995, betas=(0.9, 0.98), log_every=100, bf16=run.bf16,
                save_every=max(1, run.steps // 4), progress=False,
            )  # fmt: skip
            train, start = more(self.train, run.copies, run.shift, run.seed), time.process_time()
            model = fit_model(self.codec, train, self.lexicon, wanted, settings, folder, resume="auto")
            resumed = "resumed" in (self.folder / f"{run.method}_training" / "metrics.jsonl").read_text(
                encoding="utf-8"
            )
            timed.write_text(json.dumps(0.0 if resumed else time.process_time() - start), encoding="utf-8")
        seconds = json.loads(timed.read_text(encoding="utf-8")) if timed.is_file() else 0.0
        return Trained(self.codec, model, self.lexicon, Pictures(source=run.data), wanted), seconds

    def made(
        self, trained: Trained, said: Sequence[str], guidance: float, seed: int, least: float = 0.0
    ) -> tuple[Tensor, float]:
        """A picture for each, and how many were drawn for it; least: distance to training pictures below which it is again."""
        slots = generation.layout_of(trained.model).segments[1].slots
        steps = slots if trained.generator.method == "autoregressive" else self.run.sampling
        judge, knobs = apart(self.train.x), {"steps": steps, "guidance": guidance}
        again = drawn_again(trained, said, judge, least=least, tries=5, seed=seed, **knobs)
        return again.pictures, float(again.draws.double().mean())


def exchanged(said: Sequence[str], seed: int) -> list[str]:
    """For each caption another one of those given: the next in an order that the seed draws, equal ones alike."""
    distinct = sorted(set(said))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    following = {distinct[a]: distinct[b] for a, b in zip(order, [*order[1:], order[0]])}
    return [following[each] for each in said]


def clustered(x: Tensor, said: Sequence[str]) -> tuple[float, float]:
    """Mean of x (n,) and its standard error where rows of one caption are not independent of each other."""
    distinct = {each: i for i, each in enumerate(sorted(set(said)))}
    where, m = torch.tensor([distinct[each] for each in said]), len(distinct)
    sums = torch.zeros(m, dtype=torch.float64).index_add_(0, where, x.double() - x.double().mean())
    return float(x.double().mean()), float((sums.square().sum() * m / (m - 1)).sqrt()) / len(x)


def told(matcher: Matcher, x: Tensor, said: Sequence[str], seed: int) -> dict[str, float]:
    """What the judge says of pictures and their captions, beside exchanged ones."""
    own, other = scores(matcher, x, said), scores(matcher, x, exchanged(said, seed))
    gap, error = clustered(own - other, said)
    found = {"score": float(own.mean()), "score, captions exchanged": float(other.mean()), "difference": gap}
    found["difference, standard errors"] = gap / error
    return found | {f"retrieval at {k}": retrieval(matcher, x, said, k) for k in (1, 5)}


def flat(x: Tensor) -> Tensor:
    """Pixels (n, numbers) of uint8 pictures."""
    return from_bytes(x).flatten(1)


def nearest(x: Tensor, train: Tensor, shift: int) -> Tensor:
    """Distance of each picture to the nearest training picture, mirrored or not and moved by up to `shift` pixels."""
    n, amounts = len(x), range(-shift, shift + 1)
    turned = [
        moved(x, torch.full((n,), flip), torch.full((n,), down), torch.full((n,), right))
        for flip in (False, True) for down in amounts for right in amounts
    ]  # fmt: skip
    return nearest_distances(flat(torch.cat(turned)), flat(train)).view(-1, n).amin(0)


def copied(bench: Bench, made: Tensor, real: Tensor) -> list[dict[str, Any]]:
    """Shares of near copies of training pictures: as pixels are, and between reconstructions, as mirrored and moved."""
    train, shift = bench.train.x, bench.run.shift
    half = float(nearest_distances(flat(real), flat(train)).quantile(0.5)) / 2
    own = nearest_distances(flat(real), flat(train)) < half
    near = nearest_distances(flat(made), flat(train)) < half
    some = train[:: max(1, len(train) // 500)]
    seen = bench.back(some)
    codes, coded = bench.back(train), bench.back(real)
    usual = nearest(coded, codes, shift)
    tight = float(usual.quantile(0.5)) / 2
    parts = {
        "held-out samples": (memorised(flat(made), flat(train), flat(real)), "< 0.05"),
        "held-out real pictures": (float(own.double().mean()), None),
        "held-out samples, of captions whose real picture is none": (float(near[~own].double().mean()), "< 0.05"),
        "reconstructed training pictures, all copies": (memorised(flat(seen), flat(train), flat(real)), None),
        "between reconstructions, held-out samples": (
            float((nearest(made, codes, shift) < tight).double().mean()), None
        ),
        "between reconstructions, held-out real pictures": (float((usual < tight).double().mean()), None),
    }  # fmt: skip
    return [{"figure": f"near copies of training pictures, {name}", "value": v, "unit": "share", "goal": goal}
            for name, (v, goal) in parts.items()]  # fmt: skip


def shown(file: Path, title: str, made: Tensor, real: Read, figures: dict[str, Any], columns: int = 10) -> None:
    """A page of samples and the real pictures of the same captions, in the same places, one of each caption."""
    first = list({said: i for i, said in reversed(list(enumerate(real.said)))}.values())[::-1][: 6 * columns]
    captions = [real.said[i].removeprefix("a pixel art tile of ") for i in first]
    lines = {f"row {k // columns + 1}": "; ".join(captions[k : k + columns]) for k in range(0, len(first), columns)}
    page.samples(file, title, made[first], real.x[first], {**figures, **lines}, columns=columns)


def captions(bench: Bench) -> list[dict[str, Any]]:
    """tiles32: acceptance of text to image."""
    run, held = bench.run, bench.held
    matcher = fit_matcher(bench.train, bench.lexicon, bench.folder / "matcher", run.judge_steps, run.seed)
    trained, seconds = bench.model()
    every = len(bench.train.x) // len(held.x)
    seen = bench.train.rows(torch.arange(len(bench.train.x)) % max(1, every) == 0)
    alike = len(bench.lexicon.ids(held.said).unique(dim=0))
    figures: list[dict[str, Any]] = [
        {"figure": "training", "value": seconds / 60, "unit": "processor minutes"},
        {"figure": "weights", "value": trained.model.num_parameters(), "unit": ""},
        {"figure": "held-out pictures", "value": len(held.x), "unit": ""},
        {"figure": "held-out captions that differ", "value": len(set(held.said)), "unit": ""},
        {"figure": "held-out captions that differ to the judge", "value": alike, "unit": ""},
    ]  # fmt: skip
    real = told(matcher, held.x, held.said, run.seed)
    deaf = {"score, captions exchanged / the real": real["score, captions exchanged"] / real["score"]}
    figures += rows("real held-out pictures", {**real, **deaf}, {"difference, standard errors": ">= 3"})
    figures += rows("reconstructions of them", told(matcher, bench.back(held.x), held.said, run.seed))
    figures += rows("real training pictures", told(matcher, seen.x, seen.said, run.seed))
    print({k: round(v, 3) for k, v in real.items()}, flush=True)
    best: Tensor | None = None
    for scale in run.tried:
        made, _ = bench.made(trained, held.said, scale, seed=77)
        found = told(matcher, made, held.said, run.seed)
        found["score / the real"] = found["score"] / real["score"]
        found["difference / the real"] = found["difference"] / real["difference"]
        first = best is None
        goals = {"difference, standard errors": ">= 3", "score / the real": ">= 0.7"} if first else {}
        figures += rows(f"held-out captions, guidance {scale:g}", found, goals)
        print(scale, {k: round(v, 3) for k, v in found.items()}, flush=True)
        shown(bench.folder / f"held_out_{scale:g}.html", f"Held-out captions, guidance {scale:g}", made, held, found)
        best = made if best is None else best
    assert best is not None
    made, _ = bench.made(trained, seen.said, run.tried[0], seed=100_077)
    found = told(matcher, made, seen.said, run.seed)
    figures += rows(f"training captions, guidance {run.tried[0]:g}", found)
    shown(bench.folder / "training.html", "Training captions", made, seen, found)
    return figures + copied(bench, best, held.x) + novel(bench, trained, matcher, real["score"])


def novel(bench: Bench, trained: Trained, matcher: Matcher, real: float) -> list[dict[str, Any]]:
    """The samples of the goals once more, near copies of training pictures drawn again; real: score of the real ones."""
    run, held = bench.run, bench.held
    half = usual_distance(held.x, bench.train.x) / 2
    made, draws = bench.made(trained, held.said, run.tried[0], seed=77, least=half)
    found = {**told(matcher, made, held.said, run.seed), "drawn for each": draws}
    found["score / the real"] = found["score"] / real
    found["near copies of training pictures"] = memorised(flat(made), flat(bench.train.x), flat(held.x))
    goals = {"difference, standard errors": ">= 3", "score / the real": ">= 0.7"}
    goals["near copies of training pictures"] = "< 0.05"
    print("drawn again", {k: round(v, 3) for k, v in found.items()}, flush=True)
    shown(bench.folder / "drawn_again.html", "Held-out captions, near copies drawn again", made, held, found)
    return rows("held-out captions, near copies drawn again", found, goals)


def groups(bench: Bench) -> list[dict[str, Any]]:
    """emoji64: reconstructions, and pictures drawn by group."""
    run, held = bench.run, bench.held
    found, y, codes = quality.figures(bench.codec, bench.train.x, held.x)
    log = bench.folder / "tokenizer_training" / "metrics.jsonl"
    size = bench.codec.codebook_size
    page.write(bench.folder / "tokenizer.html", "emoji64", held.x, y, codes, size, found, log)
    figures: list[dict[str, Any]] = [
        {"figure": "tokenizer: training", "value": bench.codec_seconds / 60, "unit": "CPU minutes"},
        {"figure": "held-out pictures", "value": len(held.x), "unit": ""},
    ]
    figures += [{"figure": f"reconstructions: {key}", "value": value} for key, value in found.items()]
    judge, labels = fit_judge(
        bench.train, bench.folder / "judge", Judged(judge_steps=run.judge_steps, judge_seed=run.seed), 24
    )
    commonest = max(held.said.count(label) for label in labels) / len(held.said)
    figures.append({"figure": "held-out pictures of the commonest group", "value": 100 * commonest, "unit": "%"})
    trained, seconds = bench.model()
    figures.append({"figure": "training", "value": seconds / 60, "unit": "processor minutes"})
    figures.append({"figure": "weights", "value": trained.model.num_parameters(), "unit": ""})
    others = {"real held-out pictures": held.x, "reconstructions of them": to_bytes(y)}
    for name, x in others.items():
        right, error = share(judge, labels, x, held.said)
        figures += rows(name, {"accuracy": right, "standard_error": error})
    for scale in run.tried:
        made, _ = bench.made(trained, held.said, scale, seed=77)
        right, error = share(judge, labels, made, held.said)
        cell = {"accuracy": right, "standard_error": error, **compared(judge, held.x, made, bench.train.x)}
        figures += rows(f"by group, guidance {scale:g}", cell)
        print(scale, {k: round(v, 3) for k, v in cell.items()}, flush=True)
        order = sorted(range(len(held.said)), key=held.said.__getitem__)
        some = torch.tensor(order[:: max(1, len(order) // 60)])
        page.samples(bench.folder / f"by_group_{scale:g}.html", "Emoji by group", made[some], held.x[some], cell)
    return figures


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.image_captions", argv, {"": Run})[""]
    bench = Bench(run)
    figures = captions(bench) if run.data == "tiles32" else groups(bench)
    if run.save:
        data = f"{run.data}, {len(bench.train.x)} training and {len(bench.held.x)} held-out pictures"
        record(NAME[run.data], figures, data=data, seeds=run.seed)
    else:
        for row in figures:
            print(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
