"""A transformer over [condition | codes]: trained by any method, sampled in any direction the method knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked, from_dict, to_dict
from discdiff.layout import LAYOUTS, Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import generate
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.common.methods import Method

CONDITION = "condition"


class Coded(NamedTuple):
    """Data as tokens: condition (n, words) ids of a small vocabulary, codes (n, slots, depth), mask (n, slots) of the slots
    that hold data.
    """

    condition: Tensor
    codes: Tensor
    mask: Tensor


def layout_for(
    modality: str,
    codebook_size: int,
    depth: int,
    grid: Sequence[int],
    words: int,
    lexicon: int,
    axes: str = "",
    method: Method | None = None,
) -> Layout:
    """[condition of `words` ids below `lexicon` | codes of `grid` slots], the levels of a slot packed into one.

    A method that is only ever told its condition has it as a segment that is not noised; an autoregressive one sees
    leftwards, one of blocks sees those before, and both make the levels of a slot one by one. Raises ValueError for blocks
    that do not divide the codes.
    """
    vocab = VocabLayout(lexicon, (Modality(modality, codebook_size, depth),))
    told, causal = method is not None and method.told, method is not None and method.causal
    condition = Segment(CONDITION, "text", (words,), noised=not told)
    codes = Segment(modality, modality, tuple(grid), axes=axes)
    block = method.block if method is not None else 0
    attention = "causal" if causal else "told_block_causal" if block else "full"
    return Layout(vocab, (condition, codes), attention, packed=not causal and not block, block=block)


class Rows:
    """The tokens of `Coded` data as training rows."""

    def __init__(self, layout: Layout, data: Coded) -> None:
        name = layout.names[1]
        slots, depth = layout.segments[1].slots, layout.depth(layout.segments[1])
        fits = data.codes.shape[1:] == (slots, depth)
        checked("codes", tuple(data.codes.shape), fits, f"the layout has {slots} slots of {depth} levels")
        self.tokens = torch.cat([data.condition, layout.vocab.to_global(data.codes, name).flatten(1)], 1)
        words = torch.ones(data.condition.shape, dtype=torch.bool)
        self.valid = torch.cat([words, data.mask.repeat_interleave(depth, 1)], 1)
        self.tokens = self.tokens.masked_fill(~self.valid, layout.vocab.pad)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index], "valid": self.valid[index]}


def train(
    layout: Layout,
    data: Any,
    settings: TrainingSettings,
    folder: str | Path,
    method: Method,
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    dropout: float = 0.0,
    valid: Any = None,
    resume: str | None = None,
) -> DiscDiffModel:
    """A model of `Rows`, saved to FOLDER, checkpoints in FOLDER_training.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint `resume="auto"` goes on from.
    """
    folder = Path(folder)
    config = DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()),
        layout=to_dict(layout),
        process=to_dict(method.process) if method.process is not None else None,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout=dropout,
        initializer_range=hidden_size**-0.5,
        max_length=len(layout.tables().lead) * (2 if layout.block else 1),  # blocks are trained on two copies
        max_depth=max(layout.depth(s) for s in layout.segments),
        time_conditioning=method.timed,
        prediction=method.prediction,
        shift=method.causal,
    )
    model = DiscDiffModel.seeded(config, settings.seed)
    checkpoints = folder.with_name(f"{folder.name}_training")
    trainer = DiffusionTrainer(model, settings, method.objective, layout, data, valid, output_dir=checkpoints)
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(folder)
    return DiscDiffModel.from_pretrained(folder).to(trainer.args.device).eval()


def layout_of(model: DiscDiffModel) -> Layout:
    """The layout a model was trained on."""
    return from_dict(model.config.layout, LAYOUTS)


def loaded(folder: str | Path) -> DiscDiffModel:
    """A trained model of codes, on the GPU where there is one."""
    return DiscDiffModel.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu").eval()


@torch.no_grad()
def draw(
    model: DiscDiffModel,
    condition: Tensor | None,
    mask: Tensor,
    *,
    codes: Tensor | None = None,
    known: Tensor | None = None,
    sampler: str = "ancestral",
    seed: int | Sequence[int] = 0,
    batch: int = 64,
    **knobs: Any,
) -> Coded:
    """Codes drawn for conditions (n, words), or conditions drawn for `codes`; mask (n, slots): the slots to fill.

    With both, the codes of the slots that are `known` (n, slots) are given and never change, the others are drawn. Rows
    are drawn `batch` at a time, and do not depend on how many that is: every row has a seed of its own, `seed` and those
    that follow it, or as given.
    """
    layout = layout_of(model)
    name, depth = layout.names[1], layout.depth(layout.segments[1])
    words, rows = layout.segments[0].slots, len(mask)
    if (condition is not None and codes is not None) != (known is not None) or (condition is None and codes is None):
        raise ValueError("give condition, or codes, or both with the slots that are known")
    tokens = torch.full((rows, layout.length), layout.vocab.mask)
    if condition is not None:
        tokens[:, :words] = condition
    if codes is not None:
        made = layout.vocab.to_global(codes, name)
        made = made if known is None else torch.where(known[..., None], made, layout.vocab.mask)
        tokens[:, words:] = made.flatten(1)
    valid = torch.cat([torch.ones(rows, words, dtype=torch.bool), mask.repeat_interleave(depth, 1)], 1)
    tokens = tokens.masked_fill(~valid, layout.vocab.pad)
    seeds = list(range(seed, seed + rows)) if isinstance(seed, int) else list(seed)
    checked("seed", len(seeds), len(seeds) == rows, f"one for each of the {rows} rows")
    drawn = []
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        given = valid[part] & (tokens[part] != layout.vocab.mask)
        rows_of = make_batch(layout, tokens[part], valid=valid[part], given=given)
        drawn.append(generate(model, rows_of, sampler, seed=seeds[part], **knobs)[0].cpu())
    out = torch.cat(drawn)
    first = layout.vocab.range(name)[0]
    filled = torch.where(valid, out, first + torch.zeros_like(out))[:, words:].view(rows, -1, depth)
    levels = torch.tensor([layout.vocab.range(name, j)[0] for j in range(depth)])
    local = torch.where(mask[..., None], filled - levels, 0)
    return Coded(out[:, :words], local, mask)
