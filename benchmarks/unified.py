"""One model of a word, a picture of a digit and a spoken digit: any one given, the other two sampled.

    python -m benchmarks.unified [--steps 4000] [--image runs/images/mnist28] [--audio runs/audio_codes/tokenizer]

Rows are made by class: a training picture of mnist28, a training sound of fsdd8k of the same digit, and a sentence that
names it. Tokenizers that are not given are trained first. Classifiers trained on real pictures and sounds only read what is
generated; a sentence counts where it is one of the ten of its digit. Given are test pictures, test sounds and sentences.
A control reads every answer against another row's question, drawn at random: the share that is right by chance.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from benchmarks.image_codes import DIGITS
from benchmarks.image_codes import digits as pictures
from benchmarks.results import record, same_run
from discdiff.cli import guarded, parse
from discdiff.clocks import Windows
from discdiff.config import to_dict
from discdiff.denoisers import denoiser_of
from discdiff.maskers import Independent
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import row_seeds
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing
from discdiff.sampling import sampler as build_sampler
from discdiff.training import DiffusionTrainer, TrainingSettings
from discdiff.unified import Codes, Part, Template, UnifiedTokenizer
from tasks.audio.judge import features, noisy
from tasks.audio.settings import Sounds
from tasks.audio.sources import read
from tasks.common.fitting import Arrays, Reconstruction, fit
from tasks.common.judge import Judge, predicted, train_judge
from tasks.demo.digits import WORDS
from tokenizers_vq import load_tokenizer
from tokenizers_vq.audio import AudioTokenizer, AudioTokenizerConfig
from tokenizers_vq.image import ImageTokenizer, from_bytes

DATA = Path(os.environ.get("DISCDIFF_DATA", "data"))
SENTENCES = ("{}", "number {}", "the digit {}", "say {}", "it is a {}")
TEXT, IMAGE, SOUND = "text", "image", "sound"
PARTS = TEXT, IMAGE, SOUND
RATE = 8000


@dataclass(frozen=True)
class Run:
    """image, audio: folders of tokenizers, trained to OUT where empty or absent; image_steps, audio_steps: of theirs.
    levels: of the sound's codes that the model learns, coarse first; seconds: that sounds are cut to.
    rows: training pictures, one row each; steps: of the model; conditional: share of rows with one part hidden. sampler,
    sampler_steps, temperature: of the generation of `count` rows per direction.
    """

    out: str = "runs/unified"
    image: str = "runs/images/mnist28"
    audio: str = "runs/audio_codes/tokenizer"
    image_steps: int = 1500
    audio_steps: int = 1000
    judge_steps: int = 1200
    levels: int = 3
    seconds: float = 0.7
    rows: int = 18000
    steps: int = 4000
    batch: int = 32
    hidden_size: int = 96
    num_layers: int = 4
    learning_rate: float = 3e-3
    conditional: float = 0.5
    sampler: str = "ancestral"
    sampler_steps: int = 60
    temperature: float = 0.9
    count: int = 250
    seed: int = 0
    save: bool = True


class Coarse:
    """The first levels of a tokenizer's codes as a tokenizer."""

    def __init__(self, inner: Any, depth: int) -> None:
        self.inner, self.depth, self.codebook_size = inner, depth, inner.codebook_size

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Any:
        found = self.inner.encode(x, mask)
        return found._replace(codes=found.codes[..., : self.depth])

    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        return self.inner.decode(codes, grid, mask)


class Spoken(NamedTuple):
    """Samples (n, longest), which of them are data, and digits (n,)."""

    x: Tensor
    mask: Tensor
    label: Tensor


def spoken(part: str, seconds: float) -> Spoken:
    """fsdd8k's sounds, cut to so many seconds."""
    source = str(DATA / "fsdd8k" / f"{part}.parquet")
    clips = read(source, Sounds(source=source, seconds=seconds, sample_rate=RATE))
    return Spoken(clips.x, clips.mask, torch.tensor([int(each) for each in clips.column("label")]))


def tokenizer_of(folder: str, fallback: Path, make: Any, rows: Any, steps: int, batch: int, seed: int) -> Any:
    """The tokenizer in a folder, or one trained to the fallback."""
    for found in (*((Path(folder),) if folder else ()), fallback):
        if (found / "config.json").exists():
            return load_tokenizer(found)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = make()
    settings = TrainingSettings(
        seed=seed,
        steps=steps,
        batch_size=batch,
        learning_rate=2e-3,
        warmup=min(50, steps),
        progress=False,
        log_every=50,
    )
    return fit(network, Reconstruction(), settings, rows, fallback)


def judge_of(folder: Path, run: Run, width: int, x: Tensor, label: Tensor, mask: Tensor | None = None) -> Judge:
    """A classifier of digits trained on real data, or the one that an earlier run left."""
    file = folder.with_suffix(".safetensors")
    if file.exists():
        judge = Judge(x.ndim - 2, x.shape[1], 10, width)
        load_model(judge, file)
        return judge.eval()
    judge = train_judge(x, label, folder, mask, steps=run.judge_steps, seed=run.seed, width=width)
    save_model(judge, str(file))
    return judge


def words(texts: Sequence[str]) -> Any:
    """One token per distinct word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = sorted({word for text in texts for word in text.split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def padded(values: Sequence[Any], longest: int) -> tuple[Tensor, Tensor]:
    """Decoded sounds of their own lengths, None for an empty one, as one tensor and its mask."""
    x, mask = torch.zeros(len(values), longest), torch.zeros(len(values), longest, dtype=torch.bool)
    for row, value in enumerate(values):
        n = 0 if value is None else min(len(value), longest)
        x[row, :n], mask[row, : max(n, 128)] = (0 if value is None else value[:n]), True
    return x, mask


class Bench:
    """Tokenizers, judges and rows."""

    def __init__(self, run: Run) -> None:
        self.run, out = run, Path(run.out)
        same_run(out, asdict(run), ("sampler", "sampler_steps", "temperature", "count", "save", "out"))
        self.digits = pictures()
        self.train, self.test = (spoken(part, run.seconds) for part in ("train", "test"))
        image = tokenizer_of(
            run.image, out / "image", lambda: ImageTokenizer(DIGITS), Arrays(x=from_bytes(self.digits["train"])),
            run.image_steps, 32, run.seed,
        )  # fmt: skip
        audio = tokenizer_of(
            run.audio, out / "audio", lambda: AudioTokenizer(AudioTokenizerConfig(sample_rate=RATE)),
            Arrays(x=self.train.x, mask=self.train.mask), run.audio_steps, 16, run.seed,
        )  # fmt: skip
        sentences = [s.format(word) for s in SENTENCES for word in WORDS]
        text = words(sentences)
        parts = (
            Part(TEXT, (max(len(s.split()) for s in sentences) + 1,), variable=True),
            Part(IMAGE, (7, 7)),
            Part(SOUND, (-(-self.train.x.shape[1] // audio.stride),), variable=True),
        )
        template = Template(parts, task="joint", packed=True)
        self.unified = UnifiedTokenizer.of(template, text, image=image, sound=Coarse(audio, run.levels))
        size = self.digits["train"].shape[0]
        where = torch.Generator().manual_seed(run.seed)
        some = torch.randperm(size, generator=where)[:8000]
        digits, label = from_bytes(self.digits["train"][some]), self.digits["train_label"][some]
        self.image_judge = judge_of(out / "image_judge", run, 24, digits, label)
        heard = [self.train.x] + [noisy(self.train.x, self.train.mask, copy) for copy in range(3)]
        seen = [features(x, self.train.mask, RATE) for x in heard]
        mel, frames = (torch.cat(column) for column in zip(*seen, strict=True))
        self.sound_judge = judge_of(out / "sound_judge", run, 48, mel, self.train.label.repeat(len(heard)), frames)

    def coded(self, part: str, values: Sequence[Any]) -> list[Codes]:
        """Codes of one part, row by row."""
        found = [self.unified.codes_of(part, values[i : i + 500]) for i in range(0, len(values), 500)]
        assert all(block.mask is not None for block in found)
        return [Codes(c, m) for block in found for c, m in zip(*block, strict=True)]  # type: ignore[arg-type]

    def rows(self) -> list[dict[str, Tensor]]:
        """Training rows: every training picture with a sound and a sentence of its digit, drawn evenly."""
        n, where = self.run.rows, torch.Generator().manual_seed(self.run.seed + 1)
        label, images = self.digits["train_label"][:n], self.coded(IMAGE, list(from_bytes(self.digits["train"][:n])))
        heard = self.coded(SOUND, [x[m] for x, m in zip(self.train.x, self.train.mask, strict=True)])
        of = [(self.train.label == digit).nonzero()[:, 0] for digit in range(10)]
        records = []
        for image, digit in zip(images, label.tolist(), strict=True):
            sound = heard[int(of[digit][torch.randint(len(of[digit]), (), generator=where)])]
            sentence = SENTENCES[int(torch.randint(len(SENTENCES), (), generator=where))]
            records.append({TEXT: sentence.format(WORDS[digit]), IMAGE: image, SOUND: sound})
        return self.unified.rows(records)

    def fit(self) -> tuple[DiscDiffModel, float]:
        """The model, trained or left by an earlier run, and the CPU seconds of its training."""
        run, layout, folder = self.run, self.unified.layout, Path(self.run.out) / "model"
        if (folder / "config.json").exists():
            return DiscDiffModel.from_pretrained(folder).eval(), float((folder / "seconds.txt").read_text())
        config = DiscDiffConfig(
            vocab=json.loads(self.unified.vocab.to_json()), layout=to_dict(layout), process=to_dict(Absorbing()),
            hidden_size=run.hidden_size, num_layers=run.num_layers, num_heads=4, initializer_range=run.hidden_size**-0.5,
            max_length=len(layout.tables().lead), max_depth=run.levels,
        )  # fmt: skip
        settings = TrainingSettings(
            seed=run.seed, steps=run.steps, batch_size=run.batch, learning_rate=run.learning_rate,
            warmup=min(50, run.steps), ema=0.995,
            weight_decay=0.05, betas=(0.9, 0.98), optimizer="muon", log_every=25, progress=False,
            save_every=max(1, run.steps // 5),
        )  # fmt: skip
        objective = Elbo(masker=Independent(run.conditional, power=0.5, balanced=True))
        model, rows, began = DiscDiffModel.seeded(config, run.seed), self.rows(), time.process_time()
        where = folder.with_name("model_training")
        trainer = DiffusionTrainer(model, settings, objective, layout, rows, output_dir=where)
        trainer.train("auto")
        if trainer.stopped_by == "signal":
            raise KeyboardInterrupt
        resumed = "resumed" in (where / "metrics.jsonl").read_text(encoding="utf-8")
        seconds = 0.0 if resumed else time.process_time() - began  # of an interrupted one nobody counted them all
        trainer.save_model(folder)
        (folder / "seconds.txt").write_text(str(seconds))
        return DiscDiffModel.from_pretrained(folder).eval(), seconds

    def read(self, part: str, values: Sequence[Any]) -> Tensor:
        """The digit of every value, -1 for a sentence that is none of a digit's."""
        if part == TEXT:
            digit = {s.format(word): i for s in SENTENCES for i, word in enumerate(WORDS)}
            return torch.tensor([digit.get(value, -1) for value in values])
        if part == IMAGE:
            return predicted(self.image_judge, torch.stack(list(values)))
        return predicted(self.sound_judge, *features(*padded(values, self.train.x.shape[1]), RATE))

    def questions(self, part: str) -> tuple[list[Any], Tensor]:
        """What is given in a direction, none of it seen in training but the sentences, and its digits."""
        count, where = self.run.count, torch.Generator().manual_seed(self.run.seed + 2)
        if part == TEXT:
            label = torch.arange(count) % 10
            return [SENTENCES[i // 10 % len(SENTENCES)].format(WORDS[d]) for i, d in enumerate(label.tolist())], label
        if part == IMAGE:
            some = torch.randperm(len(self.digits["test"]), generator=where)[:count]
            return list(from_bytes(self.digits["test"][some])), self.digits["test_label"][some]
        some = torch.randperm(len(self.test.label), generator=where)[:count]
        return [self.test.x[i][self.test.mask[i]] for i in some.tolist()], self.test.label[some]

    def sampler(self) -> Any:
        """Words first, then the picture, then the sound, as parts are given."""
        run = self.run
        made = build_sampler(run.sampler, Absorbing(), steps=run.sampler_steps, temperature=run.temperature)
        return replace(made, clock=Windows({TEXT: (1.0, 0.9), IMAGE: (0.9, 0.5), SOUND: (0.5, 0.0)}))

    @torch.no_grad()
    def answers(self, model: DiscDiffModel, part: str) -> dict[str, tuple[float, float]]:
        """Shares of each other part that are right, and right for another question; "agree": both sampled parts alike."""
        run, (values, label) = self.run, self.questions(part)
        records = []
        for start in range(0, len(values), 50):
            batch = self.unified.prompt([{part: value} for value in values[start : start + 50]])
            seeds = list(range(1000 * run.seed + start, 1000 * run.seed + start + len(batch.tokens)))
            state, _ = self.sampler()(denoiser_of(model), batch, row_seeds(seeds, len(seeds)))
            records += self.unified.decode(state.tokens)
        others = [name for name in PARTS if name != part]
        found = {name: self.read(name, [r[name] for r in records]) for name in others}
        other = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(run.seed + 3))]
        share = {name: (_share(x == label), _share(x == other)) for name, x in found.items()}
        return share | {"agree": (_share(found[others[0]] == found[others[1]]), math.nan)}

    def ceilings(self) -> dict[str, float]:
        """How well real test pictures and sounds are read, and what comes back of them through their codes."""
        out = {}
        for part in (IMAGE, SOUND):
            values, label = self.questions(part)
            codes = self.coded(part, values)
            whole = self.unified.using(Template((self.unified.template.part(part),)))
            again = [r[part] for r in whole.decode(whole.encode([{part: c} for c in codes]).tokens)]
            out[f"real {part}s read"] = _share(self.read(part, values) == label)
            out[f"{part}s read behind their codes"] = _share(self.read(part, again) == label)
        return out


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.unified", argv, {"": Run})[""]
    bench = Bench(run)
    model, seconds = bench.fit()
    figures: list[dict[str, Any]] = [
        {"figure": "training", "value": seconds, "unit": "CPU s"},
        {"figure": "parameters", "value": model.num_parameters()},
        *({"figure": name, "value": 100 * value, "unit": "%"} for name, value in bench.ceilings().items()),
    ]
    for part in PARTS:
        for name, (right, chance) in bench.answers(model, part).items():
            error = math.sqrt(right * (1 - right) / run.count)
            if name == "agree":
                figures.append({"figure": f"{part} given, sampled parts agree", "value": 100 * right, "unit": "%"})
                continue
            spread = math.sqrt(error**2 + chance * (1 - chance) / run.count)
            figures += [
                {"figure": f"{part} to {name}: right", "value": 100 * right, "unit": "%"},
                {"figure": f"{part} to {name}: standard error", "value": 100 * error, "unit": "%"},
                {"figure": f"{part} to {name}: right by chance", "value": 100 * chance, "unit": "%"},
                {
                    "figure": f"{part} to {name}: above chance", "value": (right - chance) / max(spread, 1e-9),
                    "unit": "standard errors", "goal": ">= 3",
                },
            ]  # fmt: skip
            print(figures[-4], flush=True)
    data = f"mnist28 and fsdd8k, paired by digit; {run.count} questions per direction, {run.levels} levels of sound"
    if run.save:
        record("unified", figures, data=data, seeds=run.seed)
    else:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(guarded(main))
