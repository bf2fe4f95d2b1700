"""Caches around a `ModelDenoiser`: slots whose keys and values are known are not fed again.

`PrefixCached` and `BlockCached` are exact: a stored slot is used only while it and all it could see hold the tokens it
was stored with. On attention where later slots are seen no cache is exact: the `Approximate...` ones say so by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from discdiff.denoisers.model import ModelDenoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.layout import Layout, TokenBatch
from discdiff.types import Info, State, Step

if TYPE_CHECKING:
    from discdiff.models import KVCache

_UNSEEN = -2  # a position that is not stored; -1 is one stored as absent


class Known(NamedTuple):
    """hidden (rows, slots, width), fed (rows, slots) bool where it may be read, and what it cost."""

    hidden: Tensor
    fed: Tensor
    cost: Info


class Run(NamedTuple):
    """What a cache keeps of one run: keys and values or hidden states, and what they were made from."""

    store: Any
    seen: Tensor
    unit: Tensor | None = None


@dataclass(frozen=True)
class Cached:
    """A `ModelDenoiser` whose `start` makes the cache of one run; a subclass gives `begin(batch)` and `known`. No
    `Wrapper`, as a run of it is not shared: each pass of guidance starts one of its own.

    Raises ValueError around anything else: temperature, truncation and guidance go outside.
    """

    copies: ClassVar[bool] = False  # whether several copies of a row may be asked about in one call

    inner: Any
    run: Run | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_inner(self, self.inner, ModelDenoiser)

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def needs_time(self) -> bool:
        return self.inner.needs_time

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inner.reads

    def start(self, batch: TokenBatch) -> Cached:
        return replace(self, run=self.begin(batch))

    def begin(self, batch: TokenBatch) -> Run:
        raise TypeError(f"{type(self).__name__} defines no begin")

    def known(self, run: Run, state: State, step: Step) -> Known:
        """Hidden states of the rows of `state`, which are those of the run's numbers `state.row`."""
        raise TypeError(f"{type(self).__name__} defines no known")

    @torch.no_grad()
    def __call__(self, state: State, step: Step) -> Prediction:
        if self.run is None:
            raise ValueError(f"{type(self).__name__} belongs to one run: call start(batch) first, as `sample` does")
        if not self.copies and _repeats(state.row):
            raise ValueError("rows of the run repeat in one call: copies of a row cannot share this cache")
        known, batch = self.known(self.run, state, step), _batch(state)
        denoiser = self.inner if isinstance(self.inner, ModelDenoiser) else self.inner.inner

        def logits(index: Tensor, number: int) -> Tensor:
            if not bool(known.fed.reshape(-1)[batch.source(index, denoiser.shift)].all()):
                raise ValueError(
                    f"a kernel asks {type(self).__name__} at a position that this step does not move: "
                    "run it on the ModelDenoiser without a cache"
                )
            chosen = denoiser.model.select(known.hidden, batch, index, shift=denoiser.shift)
            head = denoiser.model.head_weight(*batch.layout.alphabets[number])
            return chosen.to(head.dtype) @ head.T

        return Prediction(batch, torch.no_grad()(logits), cost=known.cost)


@dataclass(frozen=True)
class _Ordered(Cached):
    """Exact: the layout's positions fall into units, none of which sees a later one.

    Units before the first one that may still change are stored once, in the call that first needs them, and fed no
    more; a call feeds the units from there to the last one that has started. Copies of a row share what is stored of it,
    and store nothing.
    """

    copies = True

    def begin(self, batch: TokenBatch) -> Run:
        unit = self.units(batch.layout).to(batch.tokens.device)
        return Run(_empty(self.inner.model, batch), torch.full_like(batch.tokens, _UNSEEN), unit)

    def units(self, layout: Layout) -> Tensor:
        """(length,) int64, not falling. Raises ValueError where a cache would not be exact."""
        raise TypeError(f"{type(self).__name__} defines no units")

    def known(self, run: Run, state: State, step: Step) -> Known:
        batch, rows = _batch(state), state.row
        assert run.unit is not None
        unit, far = run.unit[batch.slot], len(run.unit)
        lead, now, seen = unit[:, batch.lead], torch.where(state.valid, state.tokens, -1), run.seen[rows]
        unfinished = state.free & (~state.committed | (step.s < step.t))
        if self.needs_time:  # what is stored must have the time it keeps
            unfinished = unfinished | (state.free & (step.t > 0))
        front = torch.where(unfinished, unit, far).amin(1, keepdim=True).clamp(max=run.unit[-1])
        begun = torch.where(state.free & (step.s < 1), unit, -1).amax(1, keepdim=True)
        wanted = _sources(batch, state.free & (unit >= front) & (unit <= begun), self.inner.shift)
        last = torch.where(wanted, lead, -1).amax(1, keepdim=True)
        fed = (batch.valid[:, batch.lead] & (lead >= front) & (lead <= last)) | wanted
        stale = torch.where((seen != _UNSEEN) & (seen != now), unit, far).amin(1, keepdim=True)
        filled = run.store.filled[rows] & (lead < stale)
        missing = batch.valid[:, batch.lead] & (lead < front) & ~filled
        columns = (fed | missing).any(0).nonzero()[:, 0]
        store, repeats = bool(missing.any()), _repeats(rows)
        if store:
            if repeats:
                raise ValueError(
                    "rows of the run repeat in a call that stores them: ask about the rows themselves first"
                )
            run.store.filled[rows] = filled
        hidden = _feed(self.inner, run.store, batch, rows, step, columns, store, repeats)
        if store:  # columns are shared by the rows: only what is finished in a row stays stored there
            run.store.filled[rows] = filled | missing
            run.seen[rows] = torch.where(unit < front, now, _UNSEEN)
        full = hidden.new_zeros(*fed.shape, hidden.shape[-1]).index_copy(1, columns, hidden)
        return Known(full, fed, _cost(batch, len(rows), columns))


@dataclass(frozen=True)
class PrefixCached(_Ordered):
    """The prefix, all positions before the first noised segment, is fed once. Exact.

    Raises ValueError for a layout without a prefix, or whose prefix may see what comes after it.
    """

    def units(self, layout: Layout) -> Tensor:
        if not layout.prefix_cacheable() or layout.prefix == layout.length:
            raise ValueError(
                f"attention {layout.attention!r} with a prefix of {layout.prefix} positions: an exact prefix cache needs "
                "a prefix segment (noised=False) that sees nothing after it, as with attention='prefix', 'hybrid' or "
                "'causal'; on full attention only ApproximatePrefixCached and ApproximateDualCached are possible"
            )
        return (torch.arange(layout.length) >= layout.prefix).long()


@dataclass(frozen=True)
class BlockCached(_Ordered):
    """Finished blocks are fed once, clean (block diffusion, arXiv 2503.09573). Exact for any kernel and clock.

    A block is what `attention` sees as a whole: a block of "block_causal", a frame or segment of "frame_causal",
    "hybrid" and "omni", a single slot where attention is causal. Raises ValueError for layouts in which a block may see
    a later one, or that are one block.
    """

    def units(self, layout: Layout) -> Tensor:
        tables = layout.tables()
        causal, fresh = tables.causal[tables.span], torch.zeros(layout.length, dtype=torch.int64)
        fresh[1:] = ((tables.span.diff() != 0) | (causal[1:] & (tables.network.diff() != 0))).long()
        ordered = bool((tables.span.diff() >= 0).all()) and not bool(tables.visible.triu(1).any())
        if layout.is_doubled or not ordered or not bool(fresh.any()):
            doubled = " on the doubled layout of training" if layout.is_doubled else ""
            raise ValueError(
                f"attention {layout.attention!r}{doubled}: an exact cache of blocks needs blocks that never see later "
                "ones, such as attention='block_causal' with block=32 and a model trained on it (BlockElbo); on full "
                "attention only ApproximatePrefixCached and ApproximateDualCached are possible"
            )
        return fresh.cumsum(0)


@dataclass(frozen=True)
class ApproximateDualCached(Cached):
    """Fast-dLLM's dual cache (arXiv 2505.22618): only the block is fed; keys and values before and behind it are those
    of the call that fed everything when the block began. Approximate, as they lag behind the tokens of the block.

    The block of a row is where the step moves positions (s < t), so a clock of blocks says it. Equal to no cache where
    the block is the whole row. Raises ValueError for kernels whose steps do not show it (`FirstHitting`).
    """

    def begin(self, batch: TokenBatch) -> Run:
        if batch.layout.is_doubled:
            raise ValueError("a doubled layout is for training: sample on the layout it was made from")
        slots = torch.zeros(len(batch.tokens), len(batch.lead), dtype=torch.bool, device=batch.tokens.device)
        return Run(_empty(self.inner.model, batch), slots)

    def region(self, block: Tensor) -> Tensor:
        """What is fed for a block, both (rows, slots) bool."""
        return block

    def known(self, run: Run, state: State, step: Step) -> Known:
        batch, rows = _batch(state), state.row
        block = _sources(batch, state.free & (step.s < step.t), self.inner.shift)
        if not bool(block.any(1).all()):
            raise ValueError(
                f"{type(self).__name__} reads the block from the step (positions with s < t) and a row shows none: "
                "use Ancestral or Commit with a clock of blocks, or no cache"
            )
        fed = self.region(block) | (run.seen[rows] != block).any(1, keepdim=True)
        run.seen[rows] = block
        hidden, cost = None, Info()
        for part, columns in _alike(fed):  # by region, so that a row does not depend on its neighbours
            everything = len(columns) == fed.shape[1]
            some = batch.rows(part)
            out = _feed(self.inner, run.store, some, rows[part], _step(step, part), columns, everything)
            hidden = out.new_zeros(*fed.shape, out.shape[-1]) if hidden is None else hidden
            hidden[part[:, None], columns] = out
            cost = cost.merge(_cost(batch, len(part), columns))
        assert hidden is not None
        return Known(hidden, fed, cost)


@dataclass(frozen=True)
class ApproximatePrefixCached(ApproximateDualCached):
    """Fast-dLLM's prefix cache (arXiv 2505.22618): the block and everything behind it are fed; what lies before is kept
    from the call that fed everything when the block began. Approximate: see `ApproximateDualCached`.
    """

    def region(self, block: Tensor) -> Tensor:
        return block.cumsum(1) > 0


@dataclass(frozen=True)
class SkipUnchanged(Cached):
    """Rows whose tokens are those of their last prediction reuse its hidden states, (rows, slots, width) of memory.

    Exact for models without time conditioning (MDLM arXiv 2406.07524, section 4); it pays with kernels that look before
    they decide. Goes around a ModelDenoiser or a PrefixCached. Raises ValueError for a model that is told the time.
    """

    def __post_init__(self) -> None:
        _check_inner(self, self.inner, (ModelDenoiser, PrefixCached))
        if self.inner.needs_time:
            raise ValueError(
                "SkipUnchanged with time_conditioning=True: equal tokens at another time are another input"
            )

    def begin(self, batch: TokenBatch) -> Run:
        model = (self.inner if isinstance(self.inner, ModelDenoiser) else self.inner.inner).model
        shape = (len(batch.tokens), len(batch.lead))
        hidden = model.embed.weight.new_zeros(*shape, model.config.hidden_size)
        known = torch.zeros(shape, dtype=torch.bool, device=batch.tokens.device)
        inner = self.inner.begin(batch) if isinstance(self.inner, Cached) else None
        return Run((hidden, known, inner), torch.full_like(batch.tokens, _UNSEEN))

    def known(self, run: Run, state: State, step: Step) -> Known:
        (hidden, fed, inner), now = run.store, torch.where(state.valid, state.tokens, -1)
        part, cost = (run.seen[state.row] != now).any(1).nonzero()[:, 0], Info()
        if len(part):
            some, step = state.rows(part), _step(step, part)
            new = self.inner.known(inner, some, step) if inner else _everything(self.inner, some, step)
            hidden[some.row], fed[some.row], cost = new.hidden.to(hidden.dtype), new.fed, new.cost
            run.seen[some.row] = now[part]
        return Known(hidden[state.row], fed[state.row], cost)


def _check_inner(cache: Cached, inner: Any, kinds: Any) -> None:
    if not isinstance(inner, kinds):
        raise ValueError(
            f"{type(cache).__name__} around {type(inner).__name__}: a cache goes right around a ModelDenoiser, "
            "other wrappers outside it"
        )


def _empty(model: Any, batch: TokenBatch) -> KVCache:
    from discdiff.models import KVCache  # here, so that denoisers do not cost the import of transformers

    return KVCache(model, batch)


def _batch(state: State) -> TokenBatch:
    return state.batch._replace(tokens=state.tokens, valid=state.valid)


def _step(step: Step, rows: Tensor) -> Step:
    return step._replace(t=step.t[rows], s=step.s[rows])


def _everything(denoiser: ModelDenoiser, state: State, step: Step) -> Known:
    batch = _batch(state)
    hidden = denoiser.model(batch=batch, time=step.t if denoiser.needs_time else None).hidden
    cost = Info(1, len(state.row), 0, state.tokens.numel())
    return Known(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device), cost)


def _repeats(rows: Tensor) -> bool:
    """Whether there are copies among the run's rows `rows`."""
    return bool((rows.diff() <= 0).any())


def _feed(
    denoiser: ModelDenoiser, cache: KVCache, batch: TokenBatch, rows: Tensor, step: Step, columns: Tensor, store: bool,
    repeats: bool = False,
) -> Tensor:  # fmt: skip
    """Hidden states (rows, columns, width) of the run's rows `rows`, with what the cache holds of them."""
    part = cache if len(rows) == len(cache.filled) and not repeats else cache.rows(rows)
    time = step.t if denoiser.needs_time else None
    return denoiser.model(batch=batch, time=time, columns=columns, cache=part, store=store).hidden


def _sources(batch: TokenBatch, where: Tensor, shift: bool) -> Tensor:
    """Network slots (rows, slots) bool that predict the positions `where` (rows, length)."""
    if not shift and not batch.layout.packed:
        return where
    slots = torch.zeros(len(batch.tokens) * len(batch.lead), dtype=torch.bool, device=where.device)
    slots[batch.source(where.reshape(-1).nonzero()[:, 0], shift)] = True
    return slots.view(len(batch.tokens), -1)


def _alike(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, columns) of each distinct row of a bool mask."""
    kinds, member = mask.unique(dim=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        yield (member == number).nonzero()[:, 0], kind.nonzero()[:, 0]


def _cost(batch: TokenBatch, rows: int, columns: Tensor) -> Info:
    """One call; `fed` counts positions, all levels of a packed slot."""
    count = len(columns)
    if batch.layout.packed:
        network = batch.layout.tables(columns.device).network
        count = int(torch.isin(network, columns).sum())
    return Info(1, rows, 0, rows * count)
