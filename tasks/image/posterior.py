"""Pictures given a measurement, by any method of the table, on one base model, one soft decode and one data term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.anchoring import Measured, SoftDecode
from discdiff.config import build, checked
from discdiff.denoisers import denoiser_of, process_of
from discdiff.layout import TokenBatch, make_batch
from discdiff.types import Info, State
from tasks.common import generation
from tasks.common.words import split
from tasks.image import quality
from tasks.image.generate import Trained
from tasks.image.samplers import METHODS, Case, Method, Seen

__all__ = ["METHODS", "Restored", "method_for", "restore", "soft_of", "unmeasured"]


class Restored(NamedTuple):
    """pictures (n, channels, height, width) in [-1, 1], their codes (n, slots, depth), and what they cost."""

    pictures: Tensor
    codes: Tensor
    info: Info


def soft_of(trained: Trained) -> SoftDecode:
    """How the codes of a model become pictures."""
    return SoftDecode.of(trained.tokenizer, generation.layout_of(trained.model).names[1], trained.grid)


def unmeasured(count: int) -> Measured:
    """The measurement of nothing, for `prior`."""
    return Measured(lambda x: x.flatten(1)[:, :0], torch.zeros(count, 0))


def method_for(trained: Trained, name: str) -> Method:
    """The method of that name. Raises ValueError for another name, and where the model cannot be sampled by it."""
    checked("method", name, name in METHODS, f"choose from {', '.join(METHODS)}")
    fits = [each for each, method in METHODS.items() if not method.ahead]
    ok = trained.generator.method != "autoregressive" or name in fits
    checked("method", name, ok, f"an autoregressive model tells of the next code alone: {' or '.join(fits)}")
    able = [each for each, method in METHODS.items() if method.blocks]
    ok = not trained.generator.block or name in able
    checked("method", name, ok, f"a round of it changes all codes, the model makes blocks: one of {', '.join(able)}")
    return METHODS[name]


def restore(
    trained: Trained,
    measured: Measured,
    conditions: Sequence[str],
    method: str = "aps",
    steps: int = 0,
    seed: int = 0,
    *,
    options: Mapping[str, Any] | None = None,
    codes: Tensor | None = None,
    known: Tensor | None = None,
    batch: int = 32,
    seen: Seen | None = None,
    **knobs: Any,
) -> Restored:
    """Pictures of which something was measured: one condition ("" for none) and one row of `measured.y` each.

    steps: of the run, 0 for the method's own; options: of the method, by name; knobs: of the sampler, among them `sampler`,
    its name, and `guidance`; a model that makes blocks is asked for one after the other. codes (n, slots, depth) stay where
    `known` (n, slots). Picture n has the seed seed + n, and `batch` of them are made at a time. seen: is told what is expected
    on the way (`Watched`), of the first batch. Raises ValueError, before the first network call, for what does not fit.
    """
    chosen = method_for(trained, method)
    settings, knobs = build(chosen.options, options or {}), dict(knobs)
    checked(
        "y", len(measured.y), len(measured.y) == len(conditions), f"there are {len(conditions)} conditions: one each"
    )
    checked("batch", batch, batch >= 1, "at least one picture at a time")
    wanted = trained.generator
    if wanted.method == "autoregressive":
        one = trained.sampler
        knobs = {"sampler": one, "cache": "block", **knobs}
        checked("sampler", knobs["sampler"], knobs["sampler"] == one, f"an autoregressive model is sampled by {one}")
        checked("steps", steps, steps == 0, "0: an autoregressive model makes one code after the other")
    elif steps or chosen.steps:
        knobs["steps"] = steps or chosen.steps
    rows = _rows(trained, conditions, codes, known, knobs)
    soft, process, device = soft_of(trained), process_of(trained.model), trained.model.device
    columns, found, total = soft.columns(rows.layout), [], Info()
    for start in range(0, len(conditions), batch):
        here = torch.arange(start, min(start + batch, len(conditions)))
        part = replace(measured, y=measured.y[here].to(device))
        seeds = [seed + n for n in here.tolist()]
        told = None if start else seen
        case = Case(process, trained.sampler, soft, part, settings, knobs, seeds, told, wanted.block)
        run = chosen.build(case)
        state, info = run(denoiser_of(trained.model), rows.rows(here).to(device), seeds, seen and _together)
        found.append(state.batch.symbols(state.tokens)[:, columns.to(device)].cpu())
        total = total.merge(info)
    out = torch.cat(found)
    return Restored(quality.decode(trained.tokenizer, out, trained.grid), out, total)


def _together(state: State, info: Info) -> None:
    """A callback, with which rows wait for one another."""


def _rows(
    trained: Trained, conditions: Sequence[str], codes: Tensor | None, known: Tensor | None, knobs: dict[str, Any]
) -> TokenBatch:
    """The rows of a run; guidance, where the knobs ask for it, leaves the condition out by the NULL of training."""
    layout, wanted = generation.layout_of(trained.model), trained.generator
    for each in dict.fromkeys(conditions):
        trained.lexicon.check(each)
    if knobs.get("guidance", 1) != 1:
        knobs.update({"unprompted": "null", "prompt": generation.CONDITION, **knobs})
    nulls = knobs.get("unprompted") == "null" or (wanted.condition != "" and not all(map(split, conditions)))
    remedy = "nothing was said in no row of training: train with a share above 0 for guidance or an empty condition"
    checked("dropped", wanted.dropped, not nulls or wanted.dropped > 0, remedy)
    if (codes is None) != (known is None):
        raise ValueError("give codes and the slots that are known, or neither")
    ids = trained.lexicon.ids(conditions)
    if wanted.condition:
        ids = ids.masked_fill(~ids.any(1, keepdim=True), layout.vocab.special("NULL"))
    tokens = torch.full((len(conditions), layout.length), layout.vocab.mask)
    tokens[:, : ids.shape[1]] = ids
    if codes is not None and known is not None:
        made = layout.vocab.to_global(codes, layout.names[1])
        tokens[:, ids.shape[1] :] = torch.where(known[..., None], made, layout.vocab.mask).flatten(1)
    return make_batch(layout, tokens, given=tokens != layout.vocab.mask)
