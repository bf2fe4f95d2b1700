"""A motion tokenizer and a model of its codes on captioned human motion (motion_bandai), with what both are compared to.

    python -m benchmarks.motion_codes       # trains both in less than 10 minutes of one core each, then measures

Joint errors are of held-out motions, roots laid together. Rates are counted in bits per second without entropy coding:
log2(codes) per level and slot; for key frames the bits of all their numbers. Key frames keep every n-th frame, each number
rounded to 2^b levels of its range in the training motions, frames between by linear interpolation: n, b and the number of
principal components are the best on training motions at no more than the tokenizer's rate.
"""

import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import record, same_run
from discdiff.cli import guarded, parse
from discdiff.training import TrainingSettings
from tasks.motion import codec, generate
from tasks.motion.clips import TEST, TRAIN, VALID, Clip
from tasks.motion.settings import Codec, Generator, Judged, Motions
from tasks.motion.sources import load
from tokenizers_vq.motion import Bvh, FrameVectors, MotionTokenizer, bone_variation, mpjpe, read_bvh, write_bvh
from tokenizers_vq.motion.rotations import axis_rotation, matrix_from_expmap

DATA = Path(os.environ.get("DISCDIFF_DATA", "../shared/data"))


@dataclass(frozen=True)
class Compared:
    """out: folder of the models, which are trained where they are not there;
    explicit_weight: of the positions in the tokenizer's loss; steps: of the sampler; copies: samples per held-out motion.
    """

    out: str = "runs/motion_codes"
    tokenizer_steps: int = 1500
    model_steps: int = 1500
    depth: int = 4
    codebook_size: int = 256
    explicit_weight: float = 1.5
    steps: int = 32
    copies: int = 1
    judge_steps: int = 250
    seed: int = 0
    save: bool = True


def training(steps: int, seed: int, ema: float, learning_rate: float, weight_decay: float = 0.01) -> TrainingSettings:
    return TrainingSettings(
        seed=seed, steps=steps, batch_size=32, learning_rate=learning_rate, warmup=min(50, steps), ema=ema,
        weight_decay=weight_decay, log_every=50, save_every=300, progress=False,
    )  # fmt: skip


def timed(file: Path, name: str, work: Callable[[], Any]) -> float:
    """Processor seconds of a piece of work on one thread, which is done only where the file does not have them yet."""
    known = json.loads(file.read_text()) if file.exists() else {}
    if name not in known:
        start = time.process_time()
        work()
        known[name] = time.process_time() - start
        file.write_text(json.dumps(known) + "\n")
    return known[name]


def numbers(vectors: FrameVectors, positions: Tensor) -> Tensor:
    """A frame as root, unwrapped heading, and the other joints seen from the root in that heading: (frames, 4 + 3(J-1))."""
    angle = vectors.heading(positions)
    step = torch.remainder(angle.diff() + torch.pi, 2 * torch.pi) - torch.pi
    unwrapped = angle[0] + torch.cat([torch.zeros(1, dtype=angle.dtype), step.cumsum(0)])
    local = (positions[:, 1:] - positions[:, :1]) @ axis_rotation(angle, "Y")
    return torch.cat([positions[:, 0], unwrapped[:, None], local.flatten(1)], 1)


def joints(found: Tensor) -> Tensor:
    """Inverse of `numbers`."""
    turned = found[:, 4:].unflatten(1, (-1, 3)) @ axis_rotation(found[:, 3], "Y").mT
    return torch.cat([found[:, None, :3], turned + found[:, None, :3]], 1)


class KeyFrames:
    """Every `every`-th frame and the last as rounded numbers: positions, or `components` of the heading-free pose."""

    def __init__(
        self, vectors: FrameVectors, known: Sequence[Tensor], every: int, bits: int, components: int = 0
    ) -> None:
        self.vectors, self.every, self.bits, self.components = vectors, every, bits, components
        self.mean, self.basis = torch.zeros(1), torch.zeros(1)
        if components:
            poses = torch.cat([numbers(vectors, p)[:, 4:] for p in known])
            self.mean = poses.mean(0)
            self.basis = torch.linalg.svd((poses - self.mean)[:: max(1, len(poses) // 8000)], full_matrices=False)[2][
                :components
            ]
        told = torch.cat([self.to(p) for p in known])
        self.low, self.high = told.quantile(0.002, 0), told.quantile(0.998, 0)

    def to(self, positions: Tensor) -> Tensor:
        """Numbers of every frame."""
        if not self.components:
            return positions.flatten(1)
        found = numbers(self.vectors, positions)
        return torch.cat([found[:, :4], (found[:, 4:] - self.mean) @ self.basis.T], 1)

    def back(self, told: Tensor) -> Tensor:
        """Inverse of `to`, as far as the components go."""
        if not self.components:
            return told.unflatten(1, (-1, 3))
        return joints(torch.cat([told[:, :4], told[:, 4:] @ self.basis + self.mean], 1))

    @property
    def rate(self) -> float:
        """Bits per second at 20 frames per second."""
        return len(self.low) * self.bits * 20 / self.every

    def __call__(self, positions: Tensor) -> Tensor:
        """The motion as it comes back."""
        told, last = self.to(positions), len(positions) - 1
        span = (self.high - self.low).clamp(min=1e-9)
        rounded = (((told - self.low) / span).clamp(0, 1) * (2**self.bits - 1)).round() / (
            2**self.bits - 1
        ) * span + self.low
        place = torch.arange(len(told), dtype=told.dtype) / self.every
        low = place.floor().long()
        start, end = low * self.every, ((low + 1) * self.every).clamp(max=last)
        share = ((torch.arange(len(told)) - start) / (end - start).clamp(min=1))[:, None].to(told.dtype)
        return self.back(rounded[start] * (1 - share) + rounded[end] * share)


def best_key_frames(
    vectors: FrameVectors, known: Sequence[Tensor], rate: float, components: Sequence[int]
) -> KeyFrames:
    """Those of least error on the motions they are made for, at no more than `rate` bits per second."""
    some, chosen = known[:: max(1, len(known) // 60)], []
    for bits, count in itertools.product((3, 4, 5, 6, 7, 8), components):
        size = 4 + count if count else 3 * len(vectors.skeleton)
        every = max(1, math.ceil(size * bits * 20 / rate))
        kept = KeyFrames(vectors, some, every, bits, count)
        chosen.append((float(torch.cat([mpjpe(kept(p), p, True) for p in some]).mean()), bits, count, every))
    _, bits, count, every = min(chosen)
    return KeyFrames(vectors, known, every, bits, count)


def reconstruction(tokenizer: MotionTokenizer, known: Sequence[Clip], kept: Sequence[Clip]) -> list[dict]:
    """Errors by depth beside key frames at the same rates, bones, and a BVH file written and read back."""
    found = codec.measured(tokenizer, kept)
    vectors, depth = tokenizer.vectors, tokenizer.depth
    assert vectors is not None
    parents, skeleton = vectors.skeleton.parents, vectors.skeleton
    rows = []
    seen = [vectors.recover(clip.frames) for clip in known]
    truth = [vectors.recover(clip.frames) for clip in kept]
    still = float(torch.cat([mpjpe(p[:1].expand_as(p), p, True) for p in truth]).mean())
    rows.append({"figure": "first frame held: joint error", "value": still, "unit": "mm"})
    for level in range(1, depth + 1):
        rate = found["bits_per_second"] * level / depth
        name, goal = f"depth {level}", f"< {found[f'mm_depth_{level - 1}']:.6g}" if level > 1 else None
        ours = found[f"mm_depth_{level}"]
        rows.append({"figure": f"{name}: rate", "value": rate, "unit": "bit/s"})
        rows.append({"figure": f"{name}: joint error", "value": ours, "unit": "mm", "goal": goal})
        rows.append({"figure": f"{name}: in the world", "value": found[f"mm_in_the_world_depth_{level}"], "unit": "mm"})
        for kind, components in (("key frames", (0,)), ("key frames of components", (4, 6, 8, 12, 16))):
            made = best_key_frames(vectors, seen, rate, components)
            error = float(torch.cat([mpjpe(made(p), p, True) for p in truth]).mean())
            print(f"{kind}: every {made.every}, {made.bits} bits, {made.components} components, {made.rate:.0f} bit/s")
            rows.append({"figure": f"{kind} at depth {level}'s rate: joint error", "value": error, "unit": "mm"})
            if level == depth:
                rows.append({"figure": f"{kind}' error over the codes'", "value": error / ours, "goal": "> 1"})
    for key in ("usage", "perplexity", "bone_variation_of_data", "bone_variation"):
        rows.append({"figure": key.replace("_", " "), "value": found[key]})
    rows.append({"figure": "bone variation projected", "value": found["bone_variation_projected"], "goal": "<= 1e-6"})
    rows.append({"figure": "joint error projected", "value": found["mm_projected"], "unit": "mm"})
    out = codec.encode(tokenizer, [clip.frames for clip in kept])
    rigid = [
        skeleton.project(vectors.recover(y))
        for y in codec.decode(tokenizer, out.codes, out.mask, [len(clip.frames) for clip in kept])
    ]
    gaps, varied = [], []
    with tempfile.TemporaryDirectory() as folder:
        for n, positions in enumerate(rigid):
            path = Path(folder) / f"{n}.bvh"
            write_bvh(path, Bvh.of(skeleton, skeleton.fit(positions), tokenizer.config.fps))
            back = read_bvh(path).positions()
            gaps.append(float(mpjpe(back, positions).max()))
            varied.append(bone_variation(back, parents))
    rows.append(
        {
            "figure": "largest joint error of BVH written and read back",
            "value": max(gaps),
            "unit": "mm",
            "goal": "<= 0.01",
        }
    )
    rows.append({"figure": "bone variation of BVH read back", "value": max(varied), "goal": "<= 1e-6"})
    return rows


def expmaps(source: str) -> list[dict]:
    """What is read of motion_cmu, and whether its exponential maps are rotations."""
    clips = load(Motions(source=source, longest=10_000))
    frames = torch.cat([clip.frames for clip in clips.clips]).double()
    turns = matrix_from_expmap(frames[:, 3:].unflatten(1, (-1, 3)))
    off = float((turns @ turns.mT - torch.eye(3, dtype=turns.dtype)).abs().max())
    return [
        {"figure": "motion_cmu: sequences read", "value": len(clips.clips), "goal": "== 30"},
        {"figure": "motion_cmu: frames read", "value": len(frames), "goal": "== 7481"},
        {"figure": "motion_cmu: channels", "value": clips.channels, "goal": "== 117"},
        {"figure": "motion_cmu: largest deviation from a rotation", "value": off, "goal": "<= 1e-9"},
    ]


def run(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.motion_codes", argv, {"": Compared})[""]
    torch.set_num_threads(1)
    same_run(Path(settings.out), asdict(settings), ("steps", "copies", "save", "out"))
    out, motions = Path(settings.out), Motions(source=str(DATA / "motion_bandai"))
    clips = load(motions)
    out.mkdir(parents=True, exist_ok=True)
    wanted = Codec(
        num_quantizers=settings.depth, codebook_size=settings.codebook_size, explicit_weight=settings.explicit_weight
    )
    plan = training(settings.tokenizer_steps, settings.seed, 0.99, 2e-3)
    fresh = codec.build(wanted, clips, settings.seed)
    seconds = timed(
        out / "seconds.json", "tokenizer", lambda: codec.fit_codec(fresh, clips, 64, plan, out / "tokenizer")
    )
    tokenizer = MotionTokenizer.from_pretrained(out / "tokenizer")
    known, kept = clips.of(TRAIN), clips.of(VALID, TEST)
    rows = [{"figure": "training of the tokenizer", "value": seconds, "unit": "processor seconds", "goal": "<= 600"}]
    rows += reconstruction(tokenizer, known, kept) + expmaps(str(DATA / "motion_cmu"))
    described = (
        f"motion_bandai: {len(known)} motions to learn from, {len(kept)} held out (all their captions occur in training), "
        "20 fps; motion_cmu"
    )
    save = {"data": described, "seeds": settings.seed}
    if settings.save:
        record("motion_codes", rows, **save)
    generator = Generator()
    lexicon = generate.lexicon_of(clips, generator)
    plan = training(settings.model_steps, settings.seed, 0.995, 1e-3, 0.05)
    seconds = timed(
        out / "seconds.json",
        "model",
        lambda: generate.fit_model(tokenizer, clips, lexicon, generator, plan, out / "codes", motions.longest),
    )
    rows.append({"figure": "training of the model", "value": seconds, "unit": "processor seconds", "goal": "<= 600"})
    model = generate.DiscDiffModel.from_pretrained(out / "codes").eval()
    trained = generate.Trained(tokenizer, model, lexicon, motions, generator)
    judge, labels = generate.fit_judge(
        tokenizer, clips, out / "judge", Judged(judge_steps=settings.judge_steps, judge_seed=1)
    )
    found, _ = generate.accuracies(trained, judge, labels, kept, settings.copies, settings.seed, steps=settings.steps)
    goals = {"standard_errors_above_shuffled": ">= 3"}
    rows += [
        {"figure": f"content, {key.replace('_', ' ')}", "value": value, "goal": goals.get(key)}
        for key, value in found.items()
    ]
    if settings.save:
        record("motion_codes", rows, **save)
    else:
        print("\n".join(f"{row['figure']}: {row['value']:.6g} {row.get('unit', '')}" for row in rows))


if __name__ == "__main__":
    sys.exit(guarded(run))
