"""Train, sample and evaluate a model of a tokenizer's codes given captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.cli import parse, take
from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.models import DiscDiffModel
from tasks.common import generation
from tasks.common.folders import CODES, MODEL, TASK, write_task
from tasks.common.judge import Judge, predicted, train_judge
from tasks.common.methods import both_ways
from tasks.common.sections import Drawing, sampler_of, training
from tasks.common.words import Lexicon
from tasks.motion import codec as codecs
from tasks.motion import page
from tasks.motion.clips import TEST, TRAIN, VALID, Clip, Clips, padded
from tasks.motion.settings import CONDITIONS, Generator, Judged, Motions, Output, Request
from tokenizers_vq.motion import Bvh, MotionTokenizer, write_bvh
from tokenizers_vq.motion.skeleton import bone_variation

Training = training(steps=2000, batch_size=64, learning_rate=1e-3, warmup=100, weight_decay=0.05, ema=0.998)
KINDS = {"Motions": Motions, "Generator": Generator, "Lexicon": Lexicon}


@dataclass(frozen=True, eq=False)
class Trained:
    """What a folder holds: the tokenizer, the model of its codes, the words of captions, and the settings."""

    tokenizer: MotionTokenizer
    model: DiscDiffModel
    lexicon: Lexicon
    motions: Motions
    generator: Generator

    @property
    def longest(self) -> int:
        """Frames of the longest motion it makes."""
        slots = generation.layout_of(self.model).segments[1].slots
        return min(slots * self.tokenizer.frames_per_slot, self.motions.longest)


def told(clip: Clip, condition: str) -> str:
    """What a model is told of a motion: its caption or its label."""
    return clip.caption if condition == CONDITIONS[0] else clip.label


def coded(
    tokenizer: MotionTokenizer, lexicon: Lexicon, clips: Sequence[Clip], condition: str, longest: int
) -> generation.Coded:
    """Motions as conditions and codes of equally many slots."""
    out = codecs.encode(tokenizer, [clip.frames for clip in clips], longest)
    return generation.Coded(lexicon.ids([told(clip, condition) for clip in clips]), out.codes, out.mask)


def lexicon_of(clips: Clips, wanted: Generator) -> Lexicon:
    """The words that training motions are told by. Raises ValueError for captions that do not fit and labels alike."""
    said = [told(clip, wanted.condition) for clip in clips.of(TRAIN)]
    others = [told(clip, wanted.condition) for clip in clips.clips if clip.split != TRAIN]
    return Lexicon.whole(said, wanted.words, wanted.condition == "label", others)


def fit_model(
    tokenizer: MotionTokenizer,
    clips: Clips,
    lexicon: Lexicon,
    wanted: Generator,
    settings: Any,
    folder: Path,
    longest: int,
    resume: str | None = None,
) -> DiscDiffModel:
    """A model of the training motions' codes given their conditions, saved to `folder`."""
    data = coded(tokenizer, lexicon, clips.of(TRAIN), wanted.condition, longest)
    slots = data.codes.shape[1]
    layout = generation.layout_for(
        "motion", tokenizer.codebook_size, tokenizer.depth, (slots,), lexicon.length, len(lexicon.words), "t"
    )
    shape = {name: getattr(wanted, name) for name in ("hidden_size", "num_layers", "num_heads", "dropout")}
    rows = generation.Rows(layout, data)
    return generation.train(layout, rows, settings, folder, both_ways(wanted.conditional), resume=resume, **shape)


def drawn(
    trained: Trained, captions: Sequence[str], lengths: Sequence[int], seed: int = 0, **sampler: Any
) -> list[Tensor]:
    """Vectors of motions of these lengths in frames, drawn for captions."""
    slots = generation.layout_of(trained.model).segments[1].slots
    each = trained.tokenizer.frames_per_slot
    mask = torch.arange(slots) < torch.tensor([-(-length // each) for length in lengths])[:, None]
    out = generation.draw(trained.model, trained.lexicon.ids(captions), mask, seed=seed, **sampler)
    return codecs.decode(trained.tokenizer, out.codes, out.mask, lengths)


def opened(folder: Path) -> Trained:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    if not (folder / TASK).is_file() or not (folder / CODES / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds no motion model: run python -m tasks.motion train --out it, to its end"
        )
    stored = read_json(folder / TASK)
    parts = [from_dict(stored.get(name, {}), KINDS) for name in ("motions", "generator", "lexicon")]
    tokenizer = MotionTokenizer.from_pretrained(folder / MODEL)
    model = generation.loaded(folder / CODES)
    same = generation.layout_of(model).vocab.modalities[0]
    fits = (same.codebook, same.depth) == (tokenizer.codebook_size, tokenizer.depth)
    mine = f"{tokenizer.depth} levels of {tokenizer.codebook_size}, as the tokenizer beside the model has"
    checked("codes", f"{same.depth} levels of {same.codebook}", fits, mine)
    return Trained(tokenizer, model, parts[2], parts[0], parts[1])


def train(prog: str, argv: Sequence[str]) -> None:
    """Train on a trained tokenizer's codes. An interrupted run goes on when the command is repeated."""
    sections: dict[str, type] = {"generator": Generator, "training": Training, "output": Output, "motions": Motions}
    chosen = parse(prog, argv, sections)
    wanted, folder = chosen["generator"], Path(chosen["output"].out)
    source = Path(wanted.tokenizer)
    tokenizer, stored = codecs.opened(source)
    checked("out", str(folder), folder.resolve() != source.resolve(), "that is the tokenizer's: give another folder")
    motions = codecs.overridden(stored, chosen["motions"], argv)
    clips = codecs.load_for(tokenizer, motions)
    codecs.tell(clips)
    lexicon = lexicon_of(clips, wanted)
    motions = replace(motions, longest=max(len(clip.frames) for clip in clips.of(TRAIN)))  # samples get no longer
    parts = {"motions": motions, "generator": wanted, "lexicon": lexicon}
    write_task(folder, {name: to_dict(part) for name, part in parts.items()}, source)
    tokenizer.save_pretrained(folder / MODEL)
    place = folder / CODES
    fit_model(tokenizer, clips, lexicon, wanted, chosen["training"], place, motions.longest, resume="auto")
    print(f"trained on {len(clips.of(TRAIN))} motions, {len(lexicon.words)} words: {folder}")


def sample(prog: str, argv: Sequence[str]) -> None:
    """Motions for a caption: BVH files, samples.npz and samples.gif, and where asked a page."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"request": Request, "drawing": Drawing}, ("folder",))
    request, trained = chosen["request"], opened(Path(chosen["folder"]))
    trained.lexicon.check(request.caption)
    fits = request.frames <= trained.longest
    checked("frames", request.frames, fits, f"at most {trained.longest}, the longest motion it was trained on")
    sampler = sampler_of(prog, inside, chosen["drawing"])
    count, out = request.count, Path(request.out)
    made = drawn(trained, [request.caption] * count, [request.frames] * count, **sampler)
    out.mkdir(parents=True, exist_ok=True)
    if trained.tokenizer.vectors is None:
        np.savez_compressed(out / "samples.npz", channels=torch.stack(made).numpy(), caption=request.caption)
        print(out / "samples.npz")
        return
    skeleton, fps = trained.tokenizer.vectors.skeleton, trained.tokenizer.config.fps
    positions = [trained.tokenizer.vectors.recover(each) for each in made]
    for n, each in enumerate(positions):
        print(write_bvh(out / f"sample_{n + 1}.bvh", Bvh.of(skeleton, skeleton.fit(each), fps)))
    positions = [skeleton.project(each) for each in positions] if request.rigid else positions
    np.savez_compressed(out / "samples.npz", positions=torch.stack(positions).float().numpy(), caption=request.caption)
    shown = [(request.caption, each) for each in positions]
    (out / "samples.gif").write_bytes(page.animation(shown[:8], skeleton.parents, fps))
    print(out / "samples.npz", out / "samples.gif", sep="\n")
    if request.report is not None:
        print(page.model(Path(request.report), request.caption, skeleton.parents, fps, shown[:8]))


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """How often a classifier sees in samples what their captions say, beside real motions and shuffled captions."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"judged": Judged, "drawing": Drawing}, ("folder",))
    folder = Path(chosen["folder"])
    trained, judged = opened(folder), chosen["judged"]
    sampler = sampler_of(prog, inside, chosen["drawing"])
    clips = codecs.load_for(trained.tokenizer, trained.motions)
    kept = clips.of(VALID, TEST)
    judge, labels = fit_judge(trained.tokenizer, clips, folder / "judge", judged)
    found, made = accuracies(trained, judge, labels, kept, judged.copies, **sampler)
    codecs.write_figures(folder, found)
    vectors = trained.tokenizer.vectors
    if vectors is None:
        return
    rows = kept * judged.copies
    numbers = [next(i for i, row in enumerate(rows) if row is clip) for clip in page.spread(kept, 8)]
    samples = [(rows[i].caption, vectors.skeleton.project(vectors.recover(made[i]))) for i in numbers]
    real = [(rows[i].caption, vectors.recover(rows[i].frames)) for i in numbers]
    rates = {name: f"{found[name]:.1%}" for name in ("real", "from_codes", "samples", "shuffled_captions")}
    log = folder / f"{CODES}_training" / "metrics.jsonl"
    fps = trained.tokenizer.config.fps
    print(
        page.model(
            folder / "report.html", "Motion model", vectors.skeleton.parents, fps, samples, real, found, log, rates
        )
    )


def features(tokenizer: MotionTokenizer, frames: Sequence[Tensor], longest: int) -> tuple[Tensor, Tensor]:
    """What a judge sees: (n, channels, longest) in deviations and the mask (n, longest).

    Of motions with a skeleton, vectors made anew from the positions, so that a sample cannot please by channels that
    disagree with what is seen.
    """
    vectors, mean, std = tokenizer.vectors, tokenizer.mean.cpu(), tokenizer.std.cpu()
    seen = [each if vectors is None else vectors.process(vectors.recover(each)).float() for each in frames]
    x, mask = padded([(each - mean) / std for each in seen], longest)
    return x.mT.contiguous(), mask


def fit_judge(tokenizer: MotionTokenizer, clips: Clips, folder: Path, judged: Judged) -> tuple[Judge, list[str]]:
    """A classifier of labels, trained on the real training motions alone, and their labels by number. Raises ValueError, before
    any work, for other numbers of labels than 2 to 1000 and for motions of labels that none of them has.
    """
    known = clips.of(TRAIN)
    labels = sorted({clip.label for clip in known})
    checked("labels", labels[:3], 1 < len(labels) <= 1000, "between 2 and 1000 values, so that they can be told apart")
    unknown = sorted(set(clips.labels) - set(labels))
    checked("labels", unknown[:3], not unknown, "no training motion has them: keep other motions back")
    x, mask = features(tokenizer, [clip.frames for clip in known], max(len(clip.frames) for clip in clips.clips))
    label = torch.tensor([labels.index(clip.label) for clip in known])
    judge = train_judge(x, label, folder, mask, steps=judged.judge_steps, seed=judged.judge_seed)
    return judge, labels


def accuracies(
    trained: Trained,
    judge: Judge,
    labels: Sequence[str],
    kept: Sequence[Clip],
    copies: int = 2,
    seed: int = 0,
    **sampler: Any,
) -> tuple[dict[str, float], list[Tensor]]:
    """Share of motions judged to be of their label: real ones, what their codes give, samples for their captions with their
    lengths, and samples for the captions of others with the same lengths; and the samples.
    """
    tokenizer, condition = trained.tokenizer, trained.generator.condition
    rows = list(kept) * copies
    captions, lengths = [told(clip, condition) for clip in rows], [len(clip.frames) for clip in rows]
    lengths = [min(length, trained.longest) for length in lengths]
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    out = codecs.encode(tokenizer, [clip.frames for clip in kept])
    sets: Mapping[str, list[Tensor]] = {
        "real": [clip.frames for clip in kept],
        "from_codes": codecs.decode(tokenizer, out.codes, out.mask, lengths[: len(kept)]),
        "samples": drawn(trained, captions, lengths, seed, **sampler),
        "shuffled_captions": drawn(trained, [captions[i] for i in shuffled], lengths, seed, **sampler),
    }
    found: dict[str, float] = {}
    for name, motions in sets.items():
        truth = torch.tensor([labels.index(clip.label) for clip in rows[: len(motions)]])
        right = (predicted(judge, *features(tokenizer, motions, max(lengths))) == truth).double()
        found[name] = float(right.mean())
        found[f"{name}_standard_error"] = float((right.mean() * (1 - right.mean()) / len(right)).sqrt())
    apart = found["samples_standard_error"] ** 2 + found["shuffled_captions_standard_error"] ** 2
    found["standard_errors_above_shuffled"] = (found["samples"] - found["shuffled_captions"]) / max(apart**0.5, 1e-9)
    if tokenizer.vectors is not None:
        skeleton, recover = tokenizer.vectors.skeleton, tokenizer.vectors.recover
        found["bone_variation_of_samples"] = float(
            np.mean([bone_variation(recover(each), skeleton.parents) for each in sets["samples"]])
        )
    return found, sets["samples"]
