"""What every kernel promises, checked on a small run: given tokens, masks, seeds, rows, padding, counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.denoisers import FunctionDenoiser, Prediction
from discdiff.layout import Layout, Modality, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.noise import mix, row_seeds
from discdiff.sampling import Grid, as_grid, iterate, prompts, sample
from discdiff.types import Info, State, Step

ROWS = 5


def conformance_layout() -> Layout:
    """A prompt that is not noised, a text segment "left" and a segment "right" of codes with two levels and an end token.

    Three sets of legal ids, 2 + 4 + 8 positions.
    """
    vocab = VocabLayout(text_size=5, modalities=(Modality("code", 7, depth=2),))
    prompt = Segment("prompt", "text", (2,), noised=False)
    right = Segment("right", "code", (4,), extras=("EOC_code",))
    return Layout(vocab, (prompt, Segment("left", "text", (4,)), right))


def check_conformance(
    kernel: Any, steps: int | Grid = 6, seed: int = 7, wrap: Callable[[Any], Any] | None = None, **settings: Any
) -> None:
    """Run a kernel under a hash of a denoiser and raise AssertionError naming the first promise it breaks.

    Given and prompt tokens never move; ids are legal at every step; nothing is masked or uncommitted at the end; a
    `final` kernel never takes a token back; the seed alone decides, and no global generator is touched; a row does not
    depend on its neighbours, nor on which side it is padded; a callback changes nothing; `Info` counts what happened;
    who moves under `decide_first` and `final` does not depend on the network. A `PerSegment` process names "left" and
    "right". `wrap` goes around the denoiser, `settings` (a clock, latents) go to `sample`.
    """
    batch, around = _batch(), wrap or (lambda denoiser: denoiser)
    unknown = set(kernel.reads) - set(Step._fields)
    _require(not unknown, f"`reads` names {sorted(unknown)}, which no step has")
    last = _watched(kernel, batch, steps, seed, around, settings).tokens

    def run(batch: TokenBatch, seed: Any, **more: Any) -> Tensor:
        return sample(around(_hashed()), kernel, batch, steps, seed=seed, **settings, **more)[0].tokens

    before = torch.get_rng_state()
    _require(torch.equal(run(batch, seed), last), "the same seed gives different tokens")
    _require(torch.equal(torch.get_rng_state(), before), "the global random generator was moved")
    _require(torch.equal(run(batch, seed, callback=lambda state, info: None), last), "a callback changes the tokens")
    for row in (0, ROWS - 1):
        chosen = torch.tensor([row])
        alone = run(batch.rows(chosen), row_seeds(seed, ROWS)[chosen])
        _require(torch.equal(alone, last[chosen]), f"row {row} alone differs from row {row} of the batch")
    for side in (_batch((3, 0)), _batch((0, 3))):
        _require(torch.equal(run(side, seed)[side.valid].view_as(last), last), "padding changes the tokens")
    if kernel.decide_first and kernel.final:
        plain = Grid(as_grid(steps).times)  # a step's score_power may look at the network
        runs = [list(iterate(around(_hashed(key)), kernel, batch, plain, seed=seed, **settings)) for key in (0, 1)]
        same = all(torch.equal(a.committed, b.committed) for (a, _), (b, _) in zip(*runs, strict=False))
        _require(same, "decide_first, but the network decides who moves")


def _require(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _watched(
    kernel: Any, batch: TokenBatch, steps: int | Grid, seed: int, around: Callable[[Any], Any], settings: dict[str, Any]
) -> State:
    """One run with everything looked at after every step."""
    counted, before = _Counted(_hashed()), None
    mask = batch.layout.vocab.mask
    for state, info in iterate(around(counted), kernel, batch, steps, seed=seed, **settings):
        _require((state.tokens == batch.tokens)[~batch.free].all(), "a given or prompt token moved")
        symbols = batch.symbols(state.tokens)
        legal = (symbols >= 0) & (symbols <= batch.alphabet.size)
        _require(legal[state.free].all(), "an id is not legal at its position")
        _require((state.tokens != mask)[state.committed & state.free].all(), "a committed position holds the mask")
        if before is not None:
            _step(kernel, before, state, info, counted)
        before = state
        counted.calls.clear()
    _require((state.tokens != mask)[state.free].all(), "a position is still masked at the end")
    _require(state.committed[state.free].all(), "a position is not committed at the end")
    return state


def _step(kernel: Any, before: State, after: State, info: Info, counted: _Counted) -> None:
    moved = after.tokens != before.tokens
    if kernel.final:
        _require(after.committed[before.committed].all(), "a final kernel took a committed position back")
        _require(not bool(moved[before.committed & after.valid].any()), "a final kernel moved a committed token")
    newly = int((after.committed & ~before.committed).sum())
    _require(int(info.committed) == newly, f"info counts {int(info.committed)} committed positions, they are {newly}")
    for name, true in (("nfe", len(counted.calls)), ("network_rows", sum(counted.calls))):
        _require(getattr(info, name) == true, f"info counts {name} {getattr(info, name)}, the network saw {true}")
    _require((after.time <= before.time).all() and (after.time >= 0).all(), "the time of a position rises")


def _hashed(key: int = 0) -> FunctionDenoiser:
    """Logits that are a hash of the row's tokens and the logical position: whole numbers, so equal in any batch shape."""

    def function(state: State, step: Step) -> Tensor:
        place = state.valid.long().cumsum(1)
        context = torch.where(state.valid, mix(state.tokens * 1000 + place), 0).sum(1, keepdim=True) + key
        width = max(count + len(extras) for _, count, extras in state.batch.layout.alphabets)
        bits = mix((context + place * 65537)[..., None] + torch.arange(width) * 2654435761)
        return (bits & 0xFFFF).double() / 16384

    return FunctionDenoiser(function)


@dataclass(frozen=True)
class _Counted:
    """A denoiser that notes the rows of each call."""

    inner: FunctionDenoiser
    calls: list[int] = field(default_factory=list)
    kind: str = "own"
    needs_time: bool = False
    reads: tuple[str, ...] = ()

    def start(self, batch: TokenBatch) -> _Counted:
        return self

    def __call__(self, state: State, step: Step) -> Prediction:
        self.calls.append(len(state.row))
        return self.inner(state, step)


def _batch(pad: tuple[int, int] = (0, 0)) -> TokenBatch:
    """Rows with a prompt and, past the first row, about a quarter of the rest given; `pad` slots before and after."""
    layout = conformance_layout()
    real = torch.ones(ROWS, layout.length, dtype=torch.bool)
    slot = torch.arange(layout.length).expand(ROWS, -1)
    hashed = mix((slot + 100 * torch.arange(ROWS)[:, None]) * 7919) & 0xFFFF
    blank = make_batch(layout, torch.full(slot.shape, layout.vocab.mask))
    known = ((hashed >> 12) % 4 == 0) & blank.noisable & (torch.arange(ROWS)[:, None] > 0)
    tokens = torch.where(known | ~blank.noisable, blank.ids(hashed % blank.alphabet.size), layout.vocab.mask)
    tokens, real, known, slot = (torch.nn.functional.pad(x, pad) for x in (tokens, real, known, slot))
    return make_batch(layout, tokens, valid=real, given=known, slot=slot)


def check_sampler(sampler: Any, seed: int = 7) -> None:
    """`check_conformance` of a `discdiff.Sampler` with its clock, wrappers and steps, and a batch of mixed lengths.

    Row i of prompts of different lengths, padded left or right, gives the tokens of its prompt alone.
    """
    common = sampler.common

    def wrap(denoiser: Any) -> Any:
        inner = common.inside(denoiser)
        return common.outside(inner if sampler.wrap is None else sampler.wrap(inner))

    kernel, clock = common.around(sampler.kernel), sampler.clock
    check_conformance(kernel, sampler.grid or common.steps or conformance_layout().length, seed, wrap, clock=clock)
    texts: tuple[list[int], ...] = ([1, 2, 3], [], [4, 0, 1, 1, 2])
    new = (4, 9, 2)
    layout = Layout(VocabLayout(text_size=5), (Segment("text", "text", (9,)),))
    steps = sampler.grid or common.steps or max(new)

    def run(rows: Sequence[int], pad: str) -> list[list[int]]:
        batch = prompts(layout, [texts[i] for i in rows], [new[i] for i in rows], pad=pad)
        seeds = row_seeds(seed, len(texts))[list(rows)]
        state, _ = sample(wrap(_hashed()), kernel, batch, steps, seed=seeds, clock=clock)
        return [tokens[valid].tolist() for tokens, valid in zip(state.tokens, state.valid, strict=True)]

    together = run(range(3), "right")
    _require(together == run(range(3), "left"), "the padding side changes the tokens")
    for row in range(3):
        _require(
            run((row,), "right")[0] == together[row], f"prompt {row} alone differs from row {row} of mixed lengths"
        )
        _require(together[row][: len(texts[row])] == texts[row], f"prompt {row} was changed")
