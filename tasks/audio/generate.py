"""Train, sample and evaluate a model of a tokenizer's codes given what is said of a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.cli import parse, take
from discdiff.config import checked, from_dict, read_json
from discdiff.models import DiscDiffModel
from tasks.audio import codec as codecs
from tasks.audio import page
from tasks.audio.files import write_wav
from tasks.audio.judge import fit_judge, right, share
from tasks.audio.page import Heard, ends, spread
from tasks.audio.settings import Generator, Judged, Output, Request, Sounds, Training
from tasks.audio.sources import Clips, load
from tasks.common import generation
from tasks.common.folders import CODES, MODEL, TASK, write_task
from tasks.common.judge import Judge
from tasks.common.methods import both_ways
from tasks.common.sections import Drawing, sampler_of
from tokenizers_vq.audio import AudioTokenizer


@dataclass(frozen=True)
class Told:
    """What a model is told of a sound: the values of each of `columns`. known: rows it was trained on, as ids and samples."""

    columns: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    known: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, clips: Clips, columns: Sequence[str]) -> Told:
        """Of the training sounds."""
        said = [clips.column(name) for name in columns]
        values = tuple(tuple(sorted(set(column))) for column in said)
        lengths = clips.mask.sum(1).tolist()
        known = tuple(
            (*(v.index(each) for v, each in zip(values, row, strict=True)), length)
            for *row, length in zip(*said, lengths, strict=True)
        )
        return cls(tuple(columns), values, known)

    @property
    def size(self) -> int:
        """Ids there are, those of one column after those of another."""
        return sum(len(v) for v in self.values)

    def ids(self, rows: Tensor) -> Tensor:
        """Numbers of values (n, columns) as distinct ids."""
        starts = torch.tensor([0, *(len(v) for v in self.values)])[:-1].cumsum(0)
        return rows + starts

    def alike(self, labels: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
        """For each label a training sound of that label, drawn at random: its condition (n, columns), and its samples (n,).

        Raises ValueError for a label there is none of.
        """
        table = torch.tensor(self.known)
        dice = torch.Generator().manual_seed(seed)
        chosen = []
        for label in labels:
            known = ", ".join(self.values[0])
            checked(self.columns[0], label, label in self.values[0], f"the model knows {known}")
            rows = (table[:, 0] == self.values[0].index(label)).nonzero().flatten()
            chosen.append(table[rows[torch.randint(len(rows), (), generator=dice)]])
        found = torch.stack(chosen)
        return self.ids(found[:, :-1]), found[:, -1]


KINDS = {"Sounds": Sounds, "Generator": Generator, "Told": Told}


@dataclass(frozen=True, eq=False)
class Trained:
    """What a folder holds: the tokenizer, the model of its codes, what it is told, and the settings."""

    tokenizer: AudioTokenizer
    model: DiscDiffModel
    told: Told
    sounds: Sounds
    generator: Generator

    @property
    def depth(self) -> int:
        """Levels that the model makes."""
        return generation.layout_of(self.model).vocab.modalities[0].depth


def depth_of(tokenizer: AudioTokenizer, wanted: Generator) -> int:
    """Levels that a model is to make. Raises ValueError for more than the tokenizer has."""
    checked("depth", wanted.depth, wanted.depth <= tokenizer.depth, f"at most the tokenizer's {tokenizer.depth}")
    return wanted.depth or tokenizer.depth


def fit_model(
    tokenizer: AudioTokenizer, clips: Clips, wanted: Generator, settings: Any, folder: Path, resume: str | None = None
) -> tuple[DiscDiffModel, Told]:
    """A model of the sounds' codes, saved to `folder`, and what it is told."""
    depth, told = depth_of(tokenizer, wanted), Told.of(clips, wanted.condition)
    out = codecs.encode(tokenizer, clips.x, clips.mask)
    data = generation.Coded(told.ids(torch.tensor(told.known)[:, :-1]), out.codes[..., :depth], out.mask)
    layout = generation.layout_for("audio", tokenizer.codebook_size, depth, out.grid, len(told.columns), told.size, "t")
    shape = {name: getattr(wanted, name) for name in ("hidden_size", "num_layers", "num_heads", "dropout")}
    rows = generation.Rows(layout, data)
    return generation.train(layout, rows, settings, folder, both_ways(wanted.conditional), resume=resume, **shape), told


def drawn(trained: Trained, condition: Tensor, lengths: Tensor, seed: int = 0, **sampler: Any) -> tuple[Tensor, Tensor]:
    """Sounds (n, samples) of these lengths in samples, drawn for conditions (n, columns), and their masks."""
    slots = generation.layout_of(trained.model).segments[1].slots
    held = torch.arange(slots) < (-(-lengths // trained.tokenizer.stride))[:, None]
    out = generation.draw(trained.model, condition, held, seed=seed, **sampler)
    mask = torch.arange(trained.sounds.samples) < lengths[:, None]
    return codecs.sounds_of(trained.tokenizer, out.codes, out.mask, trained.sounds.samples) * mask, mask


def opened(folder: Path) -> Trained:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    if not (folder / TASK).is_file() or not (folder / CODES / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no audio model: run python -m tasks.audio train --out it, to its end")
    stored = read_json(folder / TASK)
    told, sounds, generator = (from_dict(stored.get(name, {}), KINDS) for name in ("told", "sounds", "generator"))
    model = generation.loaded(folder / CODES)
    tokenizer = AudioTokenizer.from_pretrained(folder / MODEL).to(model.device)
    same = generation.layout_of(model).vocab.modalities[0]
    fits = same.codebook == tokenizer.codebook_size and same.depth <= tokenizer.depth
    mine = f"at most {tokenizer.depth} levels of {tokenizer.codebook_size}, as the tokenizer beside the model has"
    checked("codes", f"{same.depth} levels of {same.codebook}", fits, mine)
    return Trained(tokenizer, model, told, sounds, generator)


def train(prog: str, argv: Sequence[str]) -> None:
    """Train on a trained tokenizer's codes. An interrupted run goes on when the command is repeated."""
    own = {f"--{name}" for name in Sounds.__dataclass_fields__}
    given = any(word.split("=")[0].replace("-", "_").replace("__", "--", 1) in own for word in argv)
    sections = {"generator": Generator, "training": Training, "output": Output}
    chosen = parse(prog, argv, {**sections, **({"sounds": Sounds} if given else {})})
    wanted, folder = chosen["generator"], Path(chosen["output"].out)
    source = Path(wanted.tokenizer)
    tokenizer, sounds = codecs.opened(source)
    checked("out", str(folder), folder.resolve() != source.resolve(), "that is the tokenizer's: give another folder")
    depth_of(tokenizer, wanted)
    sounds = chosen["sounds"] if given else sounds
    codecs.rates_fit(tokenizer, sounds)
    clips, valid = load(sounds)
    codecs.tell(clips, valid, sounds)
    told = Told.of(clips, wanted.condition)
    write_task(folder, {"sounds": sounds, "generator": wanted, "told": told}, source)
    tokenizer.save_pretrained(folder / MODEL)
    fit_model(tokenizer, clips, wanted, chosen["training"], folder / CODES, resume="auto")
    print(f"trained on {len(clips.x)} sounds, told {', '.join(wanted.condition)}: {folder}")


def sample(prog: str, argv: Sequence[str]) -> None:
    """WAV files of a label, and where asked a page that plays them."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"request": Request, "drawing": Drawing}, ("folder",))
    request, trained = chosen["request"], opened(Path(chosen["folder"]))
    sampler = sampler_of(prog, inside, chosen["drawing"])
    condition, lengths = trained.told.alike([request.label] * request.count, chosen["drawing"].sample_seed)
    made = ends(*drawn(trained, condition, lengths, **sampler))
    rate = trained.sounds.sample_rate
    for n, x in enumerate(made):
        print(write_wav(Path(request.out) / f"sample_{n + 1}.wav", x, rate))
    if request.report is not None:
        heard = [Heard(request.label, x) for x in made[: page.MOST]]
        print(page.model(Path(request.report), f"Samples of {request.label}", rate, heard))


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """How often a classifier hears in samples what was asked for, beside real sounds and shuffled requests."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"judged": Judged, "drawing": Drawing}, ("folder",))
    folder = Path(chosen["folder"])
    trained, judged = opened(folder), chosen["judged"]
    sampler, rate = sampler_of(prog, inside, chosen["drawing"]), trained.sounds.sample_rate
    clips, valid = load(trained.sounds)
    column = trained.told.columns[0]
    known = set(clips.column(column)) & set(trained.told.values[0])
    unknown = sorted(set(valid.column(column)) - known)
    checked(column, unknown[:3], not unknown, "no training sound has them: keep other sounds back")
    judge, labels = fit_judge(clips, column, rate, judged)
    found, (made, mask) = accuracies(trained, judge, labels, valid, judged.copies, **sampler)
    codecs.write_figures(folder, found)
    said = valid.column(column)
    real = [Heard(said[i], ends(valid.x[i : i + 1], valid.mask[i : i + 1])[0]) for i in spread(len(said))]
    heard = [Heard(said[i], ends(made[i : i + 1], mask[i : i + 1])[0]) for i in spread(len(said))]
    tiles = {name.replace("_", " "): f"{found[name]:.1%}" for name in ("real", "from_codes", "samples", "shuffled")}
    log = folder / f"{CODES}_training" / "metrics.jsonl"
    print(page.model(folder / "report.html", "Audio model", rate, heard, real, found, log, tiles))


def accuracies(
    trained: Trained, judge: Judge, labels: Sequence[str], clips: Clips, copies: int = 1, seed: int = 0, **sampler: Any
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Share of sounds judged to be of their label: real ones, what their codes give, samples for those labels, and samples
    for the labels of others (shuffled); labels the model itself reads off the codes; and the samples with their masks.
    """
    told, tokenizer, rate = trained.told, trained.tokenizer, trained.sounds.sample_rate
    said = clips.column(told.columns[0])
    wanted = said * copies
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(seed)).tolist()
    out = codecs.encode(tokenizer, clips.x, clips.mask)
    coded = codecs.sounds_of(tokenizer, out.codes[..., : trained.depth], out.mask, clips.x.shape[1])
    made = drawn(trained, *told.alike(wanted, seed), seed, **sampler)
    other = drawn(trained, *told.alike([wanted[i] for i in order], seed), seed, **sampler)
    sets = {
        "real": (clips.x, clips.mask, said),
        "from_codes": (coded, clips.mask, said),
        "samples": (*made, wanted),
        "shuffled": (*other, wanted),
    }
    found: dict[str, float] = {}
    for name, (x, mask, truth) in sets.items():
        found[name], found[f"{name}_standard_error"] = share(right(judge, labels, x, mask, truth, rate))
    apart = found["samples_standard_error"] ** 2 + found["shuffled_standard_error"] ** 2
    found["standard_errors_above_shuffled"] = (found["samples"] - found["shuffled"]) / max(apart**0.5, 1e-9)
    read = generation.draw(trained.model, None, out.mask, codes=out.codes[..., : trained.depth], seed=seed, **sampler)
    hits = read.condition[:, 0] == torch.tensor([told.values[0].index(each) for each in said])
    found["read"], found["read_standard_error"] = share(hits)
    return found, made
