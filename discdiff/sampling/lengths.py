"""Rows of their own length: prompts of any length in one batch, blocks counted from their end, text without end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.kernels import Kernel
from discdiff.kernels.early_end import EarlyEnd
from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.noise import mix, mix_int, row_seeds
from discdiff.sampling.grid import Grid
from discdiff.sampling.loop import Seed, sample
from discdiff.types import Info, State, per_position

_ROUND = 0x5EED


@dataclass(frozen=True)
class FreeBlocks:
    """`Blocks` counted in each row from its first free position: block b of a row's n moves during t in
    [1 - (b + 1)/n, 1 - b/n].

    Places are those among the row's valid slots, so that neither the prompt's length nor padding cuts a block in two;
    the last block may be shorter unless `strict`. Raises ValueError for a size below 1 or above the layout's length and,
    if `strict`, for a row whose size does not divide (which reads the lengths back at each step).
    """

    size: int = 32
    strict: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"block size {self.size} must be at least 1")

    def _block(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Number of each position's block, (batch, length), and how many blocks its row has, (batch, 1)."""
        if self.size > batch.layout.length:
            raise ValueError(f"block size {self.size} exceeds the layout's {batch.layout.length} positions: lower it")
        place, free = batch.valid.long().cumsum(1) - 1, batch.free
        first = torch.where(free, place, batch.tokens.shape[1]).amin(1, keepdim=True)
        length = (torch.where(free, place, -1).amax(1, keepdim=True) - first + 1).clamp(min=1)
        if self.strict and bool((length % self.size > 0).any()):
            bad = length[length % self.size > 0]
            raise ValueError(f"block size {self.size} does not divide the {int(bad[0])} positions that a row generates")
        block = torch.div(place - first, self.size, rounding_mode="floor").clamp(min=0)
        return block, -torch.div(-length, self.size, rounding_mode="floor")

    def _inner(self, batch: TokenBatch, t: float | Tensor) -> tuple[Tensor, Tensor]:
        block, count = self._block(batch)
        return per_position(t, batch.tokens) * count - (count - 1 - block), count

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return self._inner(batch, t)[0].clamp(0, 1)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        inner, count = self._inner(batch, t)
        return torch.where((inner >= 0) & (inner <= 1), count.double(), 0.0)


def prompts(
    layout: Layout | VocabLayout,
    texts: Sequence[Sequence[int] | Tensor],
    lengths: int | Sequence[int],
    *,
    pad: str = "right",
    max_length: int | None = None,
) -> TokenBatch:
    """Rows [prompt | so many masks], each with its own prompt (n_i,) of ids and its own number of new tokens.

    A row takes consecutive slots of the layout, new tokens beginning behind its prefix; a longer prompt goes on into the
    noised segment. A vocabulary stands for one text segment just long enough. pad: the side on which rows are filled up;
    it changes no token. max_length: slots the model takes. Raises ValueError for no prompts, lengths below 1 or of another
    number, and rows longer than the layout or max_length.
    """
    if pad not in ("left", "right"):
        raise ValueError(f"pad is {pad!r}: choose 'left' or 'right'")
    given = [torch.as_tensor(x, dtype=torch.int64).reshape(-1) for x in texts]
    if not given:
        raise ValueError("no prompts: give at least one (it may be empty)")
    new = [lengths] * len(given) if isinstance(lengths, int) else list(lengths)
    if len(new) != len(given) or min(new) < 1:
        raise ValueError(
            f"lengths are {new} for {len(given)} prompts: give one number, or one per prompt, each at least 1"
        )
    used = [len(x) + n for x, n in zip(given, new, strict=True)]
    if isinstance(layout, VocabLayout):
        layout = Layout(layout, (Segment("text", "text", (max(used),)),))
    if layout.packed or layout.is_doubled:
        raise ValueError("prompts fill single slots of one copy: give a layout with packed=False that is not doubled")
    prefix = layout.prefix
    for row, (x, n) in enumerate(zip(given, new, strict=True)):
        room, reach = layout.length if max_length is None else min(layout.length, max_length), max(prefix, len(x)) + n
        if reach > room or used[row] > room:
            raise ValueError(
                f"row {row}: a prompt of {len(x)} and {n} new tokens reach slot {reach}, there are {room}: "
                "shorten the prompt, ask for fewer tokens or raise the layout's and the model's length"
            )
    count, place = torch.tensor(used)[:, None], torch.arange(max(used))
    before = torch.tensor([len(x) for x in given])[:, None]
    logical = place - (max(used) - count) if pad == "left" else place.expand(len(given), -1)
    valid = (logical >= 0) & (logical < count)
    known = valid & (logical < before)
    tokens = torch.where(valid, layout.vocab.mask, layout.vocab.pad)
    tokens[known] = torch.cat(given)
    slot = torch.where(valid, logical + (prefix - before).clamp(min=0), 0)
    if bool(valid.all()) and max(used) == layout.length:
        return make_batch(layout, tokens, given=known)  # whole rows need no mask of their own
    return make_batch(layout, tokens, valid=valid, given=known, slot=slot)


def stride_sample(
    denoiser: Any,
    kernel: Kernel,
    batch: TokenBatch,
    grid: Grid | int | Sequence[float],
    *,
    total: int,
    stride: int,
    seed: Seed = 0,
    **settings: Any,
) -> tuple[Tensor, Info]:
    """A noised segment longer than the layout's: sample it, keep `stride` slots, shift the rest left, sample the tail
    given the rest, and so on (MDLM arXiv 2406.07524, section 5), `(batch, total * depth)` ids and the added-up info.

    total and stride count slots; the last shift may be shorter. Other segments stay as they are. With `EarlyEnd` a row
    that has ended is filled with PAD. The first round is `sample` with the same seed. Raises ValueError unless there is
    one noised segment along one axis, all of it valid, and 1 <= stride <= slots <= total.
    """
    layout = batch.layout
    noised = [s for s in layout.segments if s.noised]
    if len(noised) != 1 or len(noised[0].shape) != 1 or layout.is_doubled or not bool(batch.valid.all()):
        raise ValueError(
            f"noised segments {[s.name for s in noised]}: striding needs one, along one axis, in rows without padding"
        )
    slots, depth, columns = noised[0].slots, layout.depth(noised[0]), layout.columns(noised[0].name)
    columns = columns.to(batch.tokens.device)
    if not 1 <= stride <= slots <= total:
        raise ValueError(
            f"stride {stride}, segment of {slots} slots, total {total}: needs 1 <= stride <= slots <= total"
        )
    seeds = row_seeds(seed, len(batch.tokens))
    state, info = sample(denoiser, kernel, batch, grid, seed=seeds, **settings)
    out, ended = [state.tokens[:, columns]], _ended(kernel, state)
    for number, have in enumerate(range(slots, total, stride)):
        if bool(ended.all()):
            break
        move = min(stride, total - have) * depth
        fresh = torch.where(ended, layout.vocab.pad, layout.vocab.mask)[:, None].expand(-1, move)
        window = torch.cat([state.tokens[:, columns][:, move:], fresh], 1)
        given = batch.given.index_fill(1, columns, True)
        given[:, columns[-move:]] = ended[:, None]
        batch = batch._replace(tokens=state.tokens.index_copy(1, columns, window), given=given)
        again = mix(seeds + mix_int(_ROUND + number))  # every round has noise of its own
        state, cost = sample(denoiser, kernel, batch, grid, seed=again, **settings)
        info, ended = info.merge(cost), ended | _ended(kernel, state)
        out.append(state.tokens[:, columns[-move:]])
    tokens = torch.cat(out, 1)
    return torch.nn.functional.pad(tokens, (0, total * depth - tokens.shape[1]), value=layout.vocab.pad), info


def _ended(kernel: Kernel, state: State) -> Tensor:
    """Rows that a kernel has brought to their end, bool (batch,)."""
    return kernel.ended(state) if isinstance(kernel, EarlyEnd) else torch.zeros_like(state.valid[:, 0])
