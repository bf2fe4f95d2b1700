"""Energies from autoregressive models (EDLM's AR and coAR), and the conditionals log p(x_i | x_<i) they are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked, from_dict
from discdiff.denoisers import Prediction
from discdiff.energy.base import Candidates, Energy
from discdiff.layout import LAYOUTS, Layout, TokenBatch, VocabLayout
from discdiff.types import State

LogProbs = Callable[[TokenBatch], Tensor]
"""(batch) -> log p(x_i | x_<i), (n, length) float64; 0 where there is none: what is absent or not noised, and a first
token without a BOS."""

_POSITIONS = 1 << 14  # fed to a network of our own at a time
_LOGITS_BYTES, _PIECE_BYTES = 256 << 20, 16 << 20  # a causal LM's logits, and what is normalised of them, at a time
_IMPOSSIBLE = -1e4  # in place of log 0, so that energies stay finite


@dataclass(frozen=True)
class AutoregressiveEnergy(Energy):
    """E = sum_drawn log p_theta(x_i | x_t) - sum_i log p_AR(x_i | x_<i): candidates weighed by an autoregressive model.

    carry_over: the second sum is over drawn positions (coAR: Z = 1 exactly where the proposal is factorised and all unknown
    positions are drawn), deaf to known tokens that stand behind unknown ones; else over every valid noisable position (AR:
    Z = p_AR(observed), and p_theta exp(-E) / Z = p_AR(x0 | observed)). Where all that is known comes first they agree.
    Positions that hold the mask still are absent for the autoregressive model and left out, and so is, with the proposal's
    own term, a row's first token where it has no conditional. Raises ValueError where `log_probs` gives another shape than
    that of the tokens (EDLM arXiv 2410.21357 section 4.2).
    """

    log_probs: LogProbs
    carry_over: bool = True

    def __post_init__(self) -> None:
        checked("log_probs", self.log_probs, callable(self.log_probs), "a function, such as model_log_probs(model)")

    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        tokens, k = candidates.tokens.flatten(0, 1), candidates.k
        valid = state.valid.repeat_interleave(k, 0)
        batch = state.batch.repeat(k)._replace(tokens=tokens, valid=valid)
        waiting = valid & (tokens == batch.layout.vocab.mask)
        if bool(waiting.any()):
            batch = batch._replace(valid=valid & ~waiting, unrestricted=False)
        found = self.log_probs(batch)
        if not isinstance(found, Tensor) or found.shape != tokens.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"log_probs gives {got} for tokens {tuple(tokens.shape)}: one number for each of them")
        found = found.double().clamp(min=_IMPOSSIBLE)
        first = batch.valid & (batch.valid.cumsum(1) == 1)
        known = (batch.valid & ~(first & (found == 0))).view(candidates.tokens.shape)
        drawn = candidates.drawn[:, None] & known
        counted = drawn if self.carry_over else known & state.batch.noisable[:, None]
        proposed = torch.where(drawn, candidates.log_prob, 0.0).sum(-1)
        return proposed - torch.where(counted, found.view(known.shape), 0.0).sum(-1)


def model_log_probs(model: Any, layout: Layout | None = None) -> LogProbs:
    """Conditionals of a causal `DiscDiffModel`, as `objectives.Autoregressive` trains it: slot i predicted from slot i - 1.

    layout: what it was trained with, the one saved in its configuration unless given. Batches may have another `attention`,
    nothing else. A bounded number of positions is fed at a time, and the head runs in pieces, at noised positions that hold
    a legal token. Raises ValueError for a model that is not causal, whose layout is unknown or packed, or that is in
    training mode, and for a batch of another layout.
    """
    if layout is None and not model.config.layout:
        raise ValueError("the model's configuration holds no layout: give the one it was trained with")
    own = from_dict(model.config.layout, LAYOUTS) if layout is None else layout
    if own.attention != "causal" or own.packed:
        raise ValueError(
            f"the model's layout has attention={own.attention!r}, packed={own.packed}: conditionals log p(x_i | x_<i) need "
            "a model trained with attention='causal', packed=False"
        )

    @torch.no_grad()
    def log_probs(batch: TokenBatch) -> Tensor:
        _check_eval(model)
        theirs = (batch.layout.vocab, batch.layout.segments, batch.layout.packed, batch.layout.is_doubled)
        if theirs != (own.vocab, own.segments, False, False):
            raise ValueError(
                f"the batch has segments {batch.layout.segments}, the model was trained on {own.segments}: "
                "they may differ in nothing but attention"
            )
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
        pieces = rows.split(max(1, _POSITIONS // batch.tokens.shape[1]))
        return torch.cat([_own_rows(model, batch._replace(layout=own).rows(piece)) for piece in pieces])

    return log_probs


def causal_lm_log_probs(model: Any, ids: Mapping[int, int] | Tensor | None = None, bos: int | None = None) -> LogProbs:
    """Conditionals of a Hugging Face causal LM (GPT-2, Llama, ...), over the LM's whole vocabulary.

    ids: our global ids -> the LM's, a mapping or a tensor (vocab.total,) with -1 for none; by default text ids are the LM's
    own. EOS, BOS and PAD are those of its configuration unless mapped. bos: put in front of rows that do not start with a
    given one; None is the configuration's, and where it has none the first token's log p is 0. The LM sees the valid tokens
    of a row side by side: padding left, right or between changes nothing. At least one row's logits exist at a time. Raises
    ValueError for an id that the LM does not have, rows longer than its context, logits of another shape, and training mode.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    start = _first(getattr(model.config, "bos_token_id", None)) if bos is None else bos
    if start is not None and not 0 <= start < size:
        raise ValueError(f"bos {start} is no id of the LM, which has 0..{size - 1}")
    context = getattr(model.config, "max_position_embeddings", None)

    @functools.lru_cache(maxsize=4)
    def table(vocab: VocabLayout, device: torch.device) -> Tensor:
        return _id_table(model.config, ids, vocab, size).to(device)

    @torch.no_grad()
    def log_probs(batch: TokenBatch) -> Tensor:
        _check_eval(model)
        theirs = table(batch.layout.vocab, batch.tokens.device)[batch.tokens]
        wrong = batch.valid & (theirs < 0)
        if bool(wrong.any()):
            row, column = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"id {int(batch.tokens[row, column])} at row {row}, position {column} is none of the LM's {size}: "
                "map it with ids={our id: the LM's id}"
            )
        fed, mask, place = _side_by_side(batch, theirs, start)
        if context is not None and fed.shape[1] > context:
            raise ValueError(f"rows of up to {fed.shape[1]} tokens, the LM's context is {context}: shorten them")
        wanted = batch.valid & batch.noisable & (place > 0)
        out = torch.zeros(batch.tokens.shape, dtype=torch.float64, device=fed.device)
        rows = torch.arange(len(fed), device=fed.device)
        for piece in rows.split(max(1, _LOGITS_BYTES // (4 * size * fed.shape[1]))):
            at, slot = wanted[piece].nonzero(as_tuple=True)
            source = at * fed.shape[1] + place[piece][at, slot] - 1
            logits = _logits(model, fed[piece], mask[piece]).flatten(0, 1)
            out[piece[at], slot] = _gathered(logits, source, theirs[piece][at, slot])
        return out

    return log_probs


def _own_rows(model: Any, batch: TokenBatch) -> Tensor:
    hidden = model(batch=batch).hidden

    def logits(index: Tensor, number: int) -> Tensor:
        head = model.head_weight(*batch.layout.alphabets[number])
        return model.select(hidden, batch, index, shift=True).to(head.dtype) @ head.T

    tokens, size = batch.tokens, batch.alphabet.size
    back = batch.ids(torch.minimum(batch.symbols(tokens).clamp(min=0), size))  # given positions may hold illegal ids
    legal = (back == tokens) & (tokens != batch.layout.vocab.mask)
    index = (batch.valid & batch.noisable & legal & (batch.slot > 0)).reshape(-1).nonzero()[:, 0]
    out = torch.zeros(tokens.numel(), dtype=torch.float64, device=tokens.device)
    out[index] = Prediction(batch, logits).log_prob(index, tokens.reshape(-1)[index])
    return out.view(tokens.shape)


def _side_by_side(batch: TokenBatch, theirs: Tensor, bos: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The valid tokens of every row, a BOS in front where wanted, padded right: ids and mask (n, width), and the place of
    each position in them, (n, length).
    """
    valid, count = batch.valid, batch.valid.sum(1)
    front = torch.zeros_like(count)
    if bos is not None:  # what is drawn differs between candidates: only a fixed first token can be a row's own BOS
        first = valid.long().argmax(1, keepdim=True)
        has = (theirs.gather(1, first) == bos) & ~batch.free.gather(1, first)
        front = (~has[:, 0]).long()
    place = valid.long().cumsum(1) - 1 + front[:, None]
    width = max(1, int((count + front).max()))
    fed = torch.full((len(valid), width), 0 if bos is None else bos, dtype=torch.int64, device=valid.device)
    row, column = valid.nonzero(as_tuple=True)
    fed[row, place[row, column]] = theirs[row, column]
    mask = torch.arange(width, device=valid.device) < (count + front)[:, None]
    return fed, mask.long(), place


def _logits(model: Any, fed: Tensor, mask: Tensor) -> Tensor:
    # positions 0, 1, ... are every model's own default for rows padded right; not all of them take position_ids
    logits = model(input_ids=fed, attention_mask=mask, use_cache=False).logits
    if logits.ndim != 3 or logits.shape[:2] != fed.shape:
        raise ValueError(f"the LM gives logits {tuple(logits.shape)} for ids {tuple(fed.shape)}: (rows, length, ids)")
    return logits


def _gathered(logits: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """log softmax(logits[source])[target], (n,) float64, in pieces."""

    def pieces() -> Iterator[Tensor]:
        for piece in torch.arange(len(source), device=source.device).split(
            max(1, _PIECE_BYTES // (4 * logits.shape[1]))
        ):
            some = logits[source[piece]]
            some = some if some.dtype == torch.float64 else some.float()
            chosen = some.gather(1, target[piece, None])[:, 0]
            yield chosen.double() - some.logsumexp(1).double()

    return torch.cat(list(pieces()))


def _id_table(config: Any, ids: Mapping[int, int] | Tensor | None, vocab: VocabLayout, size: int) -> Tensor:
    """(vocab.total,) the LM's id of each of ours, -1 for none."""
    table = torch.full((vocab.total,), -1, dtype=torch.int64)
    if ids is None:
        known = min(vocab.text_size, size)
        table[:known] = torch.arange(known)
    for name in ("EOS", "BOS", "PAD"):
        own = _first(getattr(config, f"{name.lower()}_token_id", None))
        table[vocab.special(name)] = -1 if own is None or own >= size else own
    if isinstance(ids, Tensor):
        if ids.shape != table.shape or ids.is_floating_point():
            raise ValueError(
                f"ids is {ids.dtype} {tuple(ids.shape)}: give integers of shape ({vocab.total},), -1 for none"
            )
        table = torch.where(ids.cpu() < 0, table, ids.cpu().long())
    elif ids is not None:
        strange = [i for i in ids if not 0 <= i < vocab.total]
        if strange:
            raise ValueError(f"ids maps {strange[0]}, the vocabulary has 0..{vocab.total - 1}")
        table[list(ids)] = torch.tensor(list(ids.values()), dtype=torch.int64)
    foreign = (table >= size).nonzero()[:, 0]
    if len(foreign):
        raise ValueError(f"ids maps {int(foreign[0])} to {int(table[foreign[0]])}, the LM has 0..{size - 1}")
    return table


def _first(value: Any) -> int | None:
    """A configuration may list several ids."""
    return value[0] if isinstance(value, list | tuple) else value


def _check_eval(model: Any) -> None:
    if model.training:
        raise ValueError("the autoregressive model is in training mode, its dropout would be noise: call model.eval()")
