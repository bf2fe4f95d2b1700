"""Spoken digits (fsdd8k) as codes: how near the sound comes back at every depth, and digits drawn by their class.

    python -m benchmarks.audio_codes [--part codec|generation]; needs the folder fsdd8k under DISCDIFF_DATA

Trained on train.parquet, measured on the official test rule (test.parquet, index 0-4 of every digit and speaker). The judge
is a classifier of real training sounds, clean and with white noise. Training times are seconds of processor time of one thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import record, same_run
from discdiff.cli import guarded, parse
from discdiff.config import checked
from tasks.audio import codec, generate, page
from tasks.audio.judge import fit_judge, right, share
from tasks.audio.page import Heard, ends, spread
from tasks.audio.settings import Codec, CodecTraining, Generator, Judged, Sounds, Training
from tasks.audio.sources import read
from tokenizers_vq.audio import AudioTokenizer, AudioTokenizerConfig

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data")) / "fsdd8k"
PARTS = ("all", "codec", "generation")


@dataclass(frozen=True)
class Measured:
    """part: "codec" trains and measures the tokenizer, "generation" a model of its codes, "all" both; what is in `out`
    already is not trained again. depth: levels the model of codes makes; condition: what it is told; steps: of the sampler.
    """

    part: str = "all"
    codec_steps: int = 5000
    model_steps: int = 720
    depth: int = 3
    condition: tuple[str, ...] = ("label", "speaker")
    steps: int = 64
    copies: int = 2
    judge_steps: int = 1200
    seed: int = 0
    out: str = "runs/audio_codes"
    save: bool = True

    def __post_init__(self) -> None:
        checked("part", self.part, self.part in PARTS, f"choose from {', '.join(PARTS)}")


def main(argv: Sequence[str]) -> None:
    chosen = parse("python -m benchmarks.audio_codes", argv, {"measured": Measured, "codec": Codec})
    wanted, folder = chosen["measured"], Path(chosen["measured"].out)
    sounds = Sounds(source=str(DATA / "train.parquet"), valid=str(DATA / "test.parquet"))
    if not DATA.is_dir():
        raise ValueError(f"there is no {str(DATA)!r}: set DISCDIFF_DATA to the folder that holds fsdd8k")
    train, test = read(sounds.source, sounds), read(str(sounds.valid), sounds)
    same_run(folder, {**asdict(chosen["codec"]), **asdict(wanted)}, ("part", "steps", "copies", "save", "out"))
    rate, judged = sounds.sample_rate, Judged(judge_steps=wanted.judge_steps, judge_seed=wanted.seed)
    judge, labels = fit_judge(train, "label", rate, judged)
    said = test.column("label")
    tokenizer, seconds = fitted_codec(wanted, chosen["codec"], train, rate, folder)
    facts = {"data": "fsdd8k: 1,600 training, 250 test sounds", "seeds": wanted.seed}
    if wanted.part != "generation":
        found, y, out = codec.figures(tokenizer, test)
        log = folder / "tokenizer_training" / "metrics.jsonl"
        print(page.codec(folder / "codec.html", tokenizer, test, y, out.codes, found, log))
        real, error = share(right(judge, labels, test.x, test.mask, said, rate))
        back, _ = share(right(judge, labels, y, test.mask, said, rate))
        depths = range(1, tokenizer.depth + 1)
        snr, mel = ([found.get(f"{key}_{d}", 0.0) for d in depths] for key in ("snr", "mel_distance"))
        figures: list[dict[str, Any]] = [
            {"figure": "real sound, digits the judge hears", "value": 100 * real, "unit": "%"},
            {"figure": "standard error of that", "value": 100 * error, "unit": "points"},
            {"figure": "reconstructions, digits the judge hears", "value": 100 * back, "unit": "%"},
            {
                "figure": "reconstructions below real sound",
                "value": 100 * (real - back),
                "unit": "points",
                "goal": "<= 3",
            },
            {
                "figure": "signal to noise grows with every level",
                "value": rising(snr),
                "unit": "1 is yes",
                "goal": "== 1",
            },
            {
                "figure": "mel distance falls with every level",
                "value": rising([-m for m in mel]),
                "unit": "1 is yes",
                "goal": "== 1",
            },
            {"figure": "bits per second", "value": found["bits_per_second"], "unit": "bit/s"},
            {"figure": "codes used", "value": 100 * found["usage"], "unit": "%"},
            {"figure": "perplexity of a level's codes", "value": found["perplexity"]},
        ]
        if seconds:
            figures.append({"figure": "training of the tokenizer", "value": seconds, "unit": "processor s"})
        for depth, ratio, far in zip(depths, snr, mel, strict=True):
            figures += [
                {"figure": f"depth {depth}: signal to noise", "value": ratio, "unit": "dB"},
                {"figure": f"depth {depth}: mel distance", "value": far, "unit": "dB"},
            ]
        keep("audio_codes", figures, wanted, facts)
    if wanted.part != "codec":
        model, seconds = fitted_model(wanted, tokenizer, train, sounds, folder)
        sampler = {"sampler": "ancestral", "steps": wanted.steps}
        found, (made, mask) = generate.accuracies(model, judge, labels, test, wanted.copies, wanted.seed, **sampler)
        several = said * wanted.copies
        heard = [Heard(several[i], ends(made[i : i + 1], mask[i : i + 1])[0]) for i in spread(len(several), 20)]
        log = folder / "codes_training" / "metrics.jsonl"
        print(page.model(folder / "generation.html", "Spoken digits", rate, heard, (), found, log))
        names = {
            "real": "real sound",
            "from_codes": f"real sound through {model.depth} levels of codes",
            "samples": "samples for a digit",
            "shuffled": "samples for shuffled digits",
        }
        figures = []
        for key, name in names.items():
            figures.append({"figure": f"{name}, digits the judge hears", "value": 100 * found[key], "unit": "%"})
        gap = found["standard_errors_above_shuffled"]
        figures += [
            {"figure": "standard error of samples", "value": 100 * found["samples_standard_error"], "unit": "points"},
            {"figure": "samples above shuffled", "value": gap, "unit": "standard errors", "goal": ">= 3"},
            {"figure": "digits the model reads off real codes", "value": 100 * found["read"], "unit": "%"},
        ]
        if seconds:
            goal = {"unit": "processor s", "goal": "<= 600"}
            figures.append({"figure": "training of the model of codes", "value": seconds, **goal})
        keep("audio_generation", figures, wanted, facts)


def fitted_codec(wanted: Measured, network: Any, train: Any, rate: int, folder: Path) -> tuple[AudioTokenizer, float]:
    """The tokenizer in the folder, trained where there is none, and the seconds that took."""
    if (folder / "tokenizer" / "config.json").is_file():
        return AudioTokenizer.from_pretrained(folder / "tokenizer"), spent(folder / "tokenizer")
    config = AudioTokenizerConfig(sample_rate=rate, **asdict(network))
    settings = CodecTraining(
        seed=wanted.seed,
        steps=wanted.codec_steps,
        warmup=min(50, wanted.codec_steps),
        progress=False,
        log_every=50,
        save_every=500,
    )
    tokenizer, start = codec.build(config, wanted.seed), time.process_time()
    tokenizer = codec.fit_codec(tokenizer, train, 0.4, settings, folder / "tokenizer", resume="auto")
    return tokenizer, spent(folder / "tokenizer", time.process_time() - start)


def fitted_model(
    wanted: Measured, tokenizer: AudioTokenizer, train: Any, sounds: Sounds, folder: Path
) -> tuple[generate.Trained, float]:
    """The model of codes in the folder, trained where there is none, and the seconds that took."""
    options = Generator(depth=wanted.depth, condition=wanted.condition, hidden_size=96)
    told, start = generate.Told.of(train, wanted.condition), time.process_time()
    if (folder / "codes" / "config.json").is_file():
        model = generate.generation.loaded(folder / "codes")
        return generate.Trained(tokenizer, model, told, sounds, options), spent(folder / "codes")
    settings = Training(
        seed=wanted.seed, steps=wanted.model_steps, warmup=min(50, wanted.model_steps), batch_size=32, learning_rate=3e-3,
        optimizer="muon", betas=(0.9, 0.98), ema=0.995, progress=False, log_every=50, save_every=500,
    )  # fmt: skip
    model, told = generate.fit_model(tokenizer, train, options, settings, folder / "codes", resume="auto")
    seconds = spent(folder / "codes", time.process_time() - start)
    return generate.Trained(tokenizer, model, told, sounds, options), seconds


def spent(folder: Path, seconds: float | None = None) -> float:
    """Seconds of training, kept beside what it made; 0 where it was interrupted, so that nobody counted them all."""
    file = folder.with_name(f"{folder.name}_seconds.json")
    resumed = "resumed" in (folder.with_name(f"{folder.name}_training") / "metrics.jsonl").read_text(encoding="utf-8")
    if seconds is not None and not resumed:
        file.write_text(json.dumps(seconds), encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0.0


def rising(values: Sequence[float]) -> int:
    """1 where every value is above the one before."""
    return int(all(a < b for a, b in zip(values, values[1:], strict=False)))


def keep(name: str, figures: list[dict[str, Any]], wanted: Measured, facts: dict[str, Any]) -> None:
    """Record figures, or print them where they are not to be saved."""
    if wanted.save:
        record(name, figures, **facts)
        return
    for row in figures:
        print(f"{row['figure']}: {row['value']:.4g} {row.get('unit', '')}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
