"""Train a model of a tokenizer's codes given what is said of pictures, sample it, and fill in holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked, from_dict, read_json
from discdiff.models import DiscDiffModel
from tasks.common import generation
from tasks.common.methods import method_of
from tasks.common.words import Lexicon, split
from tasks.image import quality
from tasks.image.settings import Generator, Pictures
from tasks.image.sources import Read, load_said, read
from tokenizers_vq.image import ImageTokenizer, to_bytes

TASK, MODEL, CODES = "task.json", "model", "codes"
KINDS = {"Pictures": Pictures, "Generator": Generator, "Lexicon": Lexicon}


@dataclass(frozen=True, eq=False)
class Trained:
    """What a folder holds: the tokenizer, the model of its codes, the words of conditions, and the settings."""

    tokenizer: ImageTokenizer
    model: DiscDiffModel
    lexicon: Lexicon
    pictures: Pictures
    generator: Generator

    @property
    def grid(self) -> tuple[int, ...]:
        """Slots of a picture."""
        return generation.layout_of(self.model).segments[1].shape

    @property
    def sampler(self) -> str:
        """What the method is sampled by where nothing else is said."""
        if self.generator.block:
            return "ancestral"
        return {"maskgit": "maskgit", "autoregressive": "left_to_right"}.get(self.generator.method, "ancestral")


def lexicon_of(said: Sequence[str], wanted: Generator, others: Sequence[str] = ()) -> Lexicon:
    """The words that training pictures are told by; others: what is said of pictures that are not learned.

    Raises ValueError for captions longer than `--words`, and for labels that have the same words.
    """
    return Lexicon.whole(said, wanted.words, wanted.condition == "label", others)


def fit_model(
    tokenizer: ImageTokenizer, train: Read, lexicon: Lexicon, wanted: Generator, settings: Any, folder: Path,
    resume: str | None = None,
) -> DiscDiffModel:  # fmt: skip
    """A model of the pictures' codes given what is said of them, saved to `folder`."""
    codes, grid = quality.encode(tokenizer, train.x)
    method = method_of(wanted.method, wanted.dropped, wanted.auxiliary, wanted.block)
    layout = generation.layout_for(
        "image", tokenizer.codebook_size, tokenizer.depth, grid, lexicon.length, len(lexicon.words), method=method
    )
    data = generation.Coded(lexicon.ids(train.said), codes, torch.ones(codes.shape[:2], dtype=torch.bool))
    shape = {name: getattr(wanted, name) for name in ("hidden_size", "num_layers", "num_heads", "dropout")}
    rows = generation.Rows(layout, data)
    return generation.train(layout, rows, settings, folder, method, resume=resume, **shape)


def drawn(
    trained: Trained, conditions: Sequence[str], seed: int | Sequence[int] = 0, codes: Tensor | None = None,
    known: Tensor | None = None, **sampler: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pictures uint8 (n, channels, height, width) drawn for conditions, and their codes (n, slots, depth).

    codes, known: of slots (n, slots) that are kept as they are. Keys and values of codes that are done are kept where the model
    is autoregressive or made for blocks.
    """
    settings = {"sampler": trained.sampler, "batch": 128, **sampler}
    if trained.generator.block:
        settings = {"cache": "block", "block": trained.generator.block, **settings}
    elif trained.generator.method == "autoregressive":
        settings = {"cache": "block", **settings}
    if settings.get("guidance", 1) != 1:
        settings = {"unprompted": "null", "prompt": generation.CONDITION, **settings}
    slots, wanted = generation.layout_of(trained.model).segments[1].slots, trained.generator
    if wanted.method == "autoregressive":
        one, sites, steps = "left_to_right", slots * trained.tokenizer.depth, settings.get("steps", 0)
        checked(
            "sampler", settings["sampler"], settings["sampler"] == one, f"an autoregressive model is sampled by {one}"
        )
        checked("steps", steps, steps == 0 or steps >= sites, f"0 or {sites}: one code after the other")
    nulls = settings.get("guidance", 1) != 1 and settings["unprompted"] == "null"
    nulls = nulls or (wanted.condition != "" and not all(split(each) for each in conditions))
    checked(
        "dropped",
        wanted.dropped,
        not nulls or wanted.dropped > 0,
        "nothing was said in no row of training: train with a share above 0 for guidance or an empty condition",
    )
    mask = torch.ones(len(conditions), slots, dtype=torch.bool)
    ids = trained.lexicon.ids(conditions)
    if trained.generator.condition:  # nothing said is the condition that stood in the dropped rows
        null = generation.layout_of(trained.model).vocab.special("NULL")
        ids = ids.masked_fill(~ids.any(1, keepdim=True), null)
    out = generation.draw(trained.model, ids, mask, codes=codes, known=known, seed=seed, **settings)
    return to_bytes(quality.decode(trained.tokenizer, out.codes, trained.grid)), out.codes


def touched(grid: Sequence[int], hole: Sequence[float]) -> Tensor:
    """Slots (slots,) bool of a grid (height, width) that a hole (left, top, right, bottom, shares) touches."""
    height, width = grid
    left, top, right, bottom = hole
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows + 1 > top * height) & (rows < bottom * height)
    across = (columns + 1 > left * width) & (columns < right * width)
    return (down[:, None] & across).flatten()


def opened(folder: Path) -> Trained:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    if not (folder / TASK).is_file() or not (folder / CODES / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds no picture model: run python -m tasks.image train --out it, to its end"
        )
    stored = read_json(folder / TASK)
    pictures, generator, lexicon = (
        from_dict(stored.get(name, {}), KINDS) for name in ("pictures", "generator", "lexicon")
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = generation.loaded(folder / CODES)
    tokenizer = ImageTokenizer.from_pretrained(folder / MODEL).to(device)
    same = generation.layout_of(model).vocab.modalities[0]
    fits = (same.codebook, same.depth) == (tokenizer.codebook_size, tokenizer.depth)
    mine = f"{tokenizer.depth} levels of {tokenizer.codebook_size}, as the tokenizer beside the model has"
    checked("codes", f"{same.depth} levels of {same.codebook}", fits, mine)
    return Trained(tokenizer, model, lexicon, pictures, generator)


def picture_of(trained: Trained, name: str) -> Tensor:
    """A picture uint8 (1, channels, height, width): a file, or valid:N. Raises ValueError where there is none."""
    channels, pictures = trained.tokenizer.config.channels, trained.pictures
    kind, _, number = name.partition(":")
    if kind == "valid" and number.isdigit():
        valid = load_said(pictures, channels)[1].x
        checked("picture", name, int(number) < len(valid), f"there are {len(valid)} validation pictures")
        return valid[int(number)][None]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"picture is {name!r}: give a file, or valid:N for a validation picture")
    return read(str(path), pictures, channels).x[:1]
