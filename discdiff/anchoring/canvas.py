"""The part of a state that a decoder sees: the known codes of a segment, and the sites of which a table tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from discdiff.anchoring.soft import SoftDecode, whole_rows
from discdiff.denoisers import Prediction
from discdiff.denoisers.wrappers import some_left
from discdiff.kernels.base import select
from discdiff.types import State, Step, per_position

NEVER = -1e4  # the least log probability inside of an inner loop: 0 * inf is no number
_FORBIDDEN = NEVER / 2  # a code is forbidden below that: its probability is 0 in every precision
_PIECE = 1 << 18  # distances held at a time


@dataclass(frozen=True, eq=False)
class Canvas:
    """index (m,): flat sites of the segment that may still change, level by level; place (m,): flat (row * slots + slot) and
    level (m,) of each; ends: of the levels; codes (n, slots, depth): those of the other ones, -1 at open sites; known (n,
    slots, d): their summed embeddings; row (n,): of the run; owner (m,): its row here; begun (m,): bool, a site's clock runs.
    """

    soft: SoftDecode
    index: Tensor
    place: Tensor
    level: Tensor
    ends: tuple[int, ...]
    codes: Tensor
    known: Tensor
    row: Tensor
    owner: Tensor
    begun: Tensor

    @classmethod
    def of(cls, soft: SoftDecode, state: State, step: Step | None = None) -> Canvas:
        """Of the free sites that are not committed. step: the present one; sites whose clock it leaves at 1, as those of later
        blocks, have not begun. Raises ValueError for packed rows and a codebook that does not fit.
        """
        rows, length = state.tokens.shape
        whole_rows(length, state.batch.layout)
        columns = soft.columns(state.batch.layout).to(state.tokens.device)
        open_ = (state.free & ~state.committed)[:, columns]  # (n, slots, depth)
        codes = state.batch.symbols(state.tokens)[:, columns].clamp(0, soft.codebook.shape[1] - 1)
        known = state.tokens.new_zeros(1).to(soft.codebook)
        for j, book in enumerate(soft.codebook):
            known = known + torch.where(open_[..., j, None], 0.0, book[codes[..., j]])
        places = [select(each) for each in open_.unbind(-1)]
        place = torch.cat(places)
        level = torch.cat([torch.full_like(each, j) for j, each in enumerate(places)])
        ends = tuple(sum(len(each) for each in places[: j + 1]) for j in range(len(places)))
        owner = torch.div(place, len(columns), rounding_mode="floor")
        index = owner * length + columns[place % len(columns), level]
        begun = torch.ones_like(index, dtype=torch.bool)
        if step is not None:
            begun = (per_position(step.s, state.tokens).expand(rows, length) < 1).reshape(-1)[index]
        return cls(soft, index, place, level, ends, torch.where(open_, -1, codes), known, state.row, owner, begun)

    @property
    def key(self) -> Tensor:
        """(m,): each site's number among the sites of all rows of the run."""
        slots = self.known.shape[1]
        return (self.row[self.owner] * slots + self.place % slots) * self.soft.depth + self.level

    def levels(self) -> list[tuple[slice, Tensor]]:
        """(places among the m sites, codebook (codes, d)) of each depth."""
        starts = (0, *self.ends[:-1])
        return [(slice(*at), book) for *at, book in zip(starts, self.ends, self.soft.codebook, strict=True)]

    def prior(self, prediction: Prediction) -> Tensor:
        """log p of the codes at the sites (m, codes), of the codebook's dtype, what else could stand there left out. Sites that
        have not begun are not asked for, as caches know nothing of them: all codes are alike there. Raises ValueError where
        no code may stand.
        """
        out = self.soft.codebook.new_zeros(len(self.index), self.soft.codebook.shape[1])
        for part, _ in self.levels():
            at = part.start + self.begun[part].nonzero()[:, 0]
            if len(at):
                found = replace(prediction, temperature=1.0).log_probs(self.index[at])[:, : out.shape[1]]
                out[at] = some_left(found, self.index[at], prediction.batch, "leaving out all but codes").to(out)
        return out.log_softmax(-1)

    def expect(self, p: Tensor) -> Tensor:
        """E[embedding] (n, slots, d) of probabilities (m, codes)."""
        out = self.known.clone()
        flat = out.view(-1, out.shape[-1])
        for at, book in self.levels():
            flat.index_add_(0, self.place[at], p[at] @ book)
        return out

    def pull(self, g: Tensor, out: Tensor, keep: float = 0.0) -> Tensor:
        """keep * out + <g, e_c> (m, codes) of a gradient in the embeddings (n, slots, d), in `out`."""
        flat = g.reshape(-1, g.shape[-1])
        for at, book in self.levels():
            out[at].addmm_(flat[self.place[at]], book.T, beta=keep)
        return out

    def legal(self, e: Tensor, within: Tensor | None = None) -> Tensor:
        """The legal codes (n, slots, depth) nearest to embeddings (n, slots, d): those that are known as they are, in a slot of
        which all are open what `soft.quantise` says, and levels beside known ones greedily, each with its own book; so, too,
        slots where that is a code that `within`, log p (m, codes), forbids, of those it does not.
        """
        found = torch.where(self.codes < 0, self.soft.quantise(e), self.codes)
        again = (self.codes < 0).any(-1) & (self.codes >= 0).any(-1)  # never, of a single level
        if within is not None:
            wrong = within.gather(1, self.symbols(found)[:, None])[:, 0] < _FORBIDDEN
            again.view(-1)[self.place[wrong]] = True
        if within is None and self.soft.depth == 1:
            return found
        part = again.nonzero(as_tuple=True)
        codes, rest, sites = self.codes[part], (e - self.known)[part], None
        if within is not None:
            number = torch.arange(len(self.index), device=e.device)
            sites = torch.zeros_like(self.codes).view(-1).scatter(0, self._flat, number).view_as(self.codes)[part]
        for j, book in enumerate(self.soft.codebook):
            near = nearest(rest, book, within, None if sites is None else sites[:, j])
            codes[:, j] = torch.where(codes[:, j] < 0, near, codes[:, j])
            rest = rest - torch.where(self.codes[part][:, j, None] < 0, book[near], 0.0)
        return found.index_put(part, codes)

    def symbols(self, codes: Tensor) -> Tensor:
        """Codes (n, slots, depth) at the sites (m,)."""
        return codes.reshape(-1)[self._flat]

    @property
    def _flat(self) -> Tensor:
        return self.place * self.soft.depth + self.level


def forbidden(log_p: Tensor) -> Tensor:
    """Where codes cannot stand, of log probabilities (m, codes), bool."""
    return log_p < _FORBIDDEN


def limits(log_p: Tensor) -> Tensor | None:
    """The log probabilities (m, codes) where they forbid anything, for `Canvas.legal`; None where they do not."""
    return log_p if len(log_p) and bool(log_p.amin() < _FORBIDDEN) else None


def nearest(e: Tensor, book: Tensor, within: Tensor | None = None, sites: Tensor | None = None) -> Tensor:
    """The nearest code (k,) of a book (codes, d) to each embedding (k, d), of those that `within` (m, codes) does not forbid at
    its site (k,).
    """
    half, out = book.square().sum(-1) / 2, []
    for at in torch.arange(len(e), device=e.device).split(max(1, _PIECE // len(book))):
        far = torch.addmm(half, e[at], book.T, alpha=-1)
        if within is not None and sites is not None:
            far.masked_fill_(forbidden(within[sites[at]]), torch.inf)
        out.append(far.argmin(-1))
    return torch.cat(out)
