"""The part of a state that a decoder sees: the known codes of a segment, and the sites of which a table tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from discdiff.anchoring.soft import SoftDecode, whole_rows
from discdiff.denoisers import Prediction
from discdiff.denoisers.draw import Drawn
from discdiff.denoisers.prediction import Transform
from discdiff.kernels.base import select
from discdiff.noise import TOKEN, Noise
from discdiff.types import State


@dataclass(frozen=True, eq=False)
class Canvas:
    """index (m,): flat sites of the segment that may still change; place (m,): flat (row * slots + slot) and level (m,) of
    each; codes (n, slots, depth): those of the other ones, -1 at open sites; known (n, slots, d): their summed embeddings; row
    (n,): of the run; owner (m,): its row here.
    """

    soft: SoftDecode
    index: Tensor
    place: Tensor
    level: Tensor
    codes: Tensor
    known: Tensor
    row: Tensor
    owner: Tensor

    @classmethod
    def of(cls, soft: SoftDecode, state: State) -> Canvas:
        """Of the free sites that are not committed. Raises ValueError for packed rows and a codebook that does not fit."""
        rows, length = state.tokens.shape
        whole_rows(length, state.batch.layout)
        columns = soft.columns(state.batch.layout).to(state.tokens.device)
        open_ = (state.free & ~state.committed)[:, columns]  # (n, slots, depth)
        codes = state.batch.symbols(state.tokens)[:, columns].clamp(0, soft.codebook.shape[1] - 1)
        known = state.tokens.new_zeros(1).to(soft.codebook)
        for j, book in enumerate(soft.codebook):
            known = known + torch.where(open_[..., j, None], 0.0, book[codes[..., j]])
        at = select(open_)
        place = torch.div(at, soft.depth, rounding_mode="floor")
        owner = torch.div(place, len(columns), rounding_mode="floor")
        index = owner * length + columns.reshape(-1)[at % columns.numel()]
        return cls(soft, index, place, at % soft.depth, torch.where(open_, -1, codes), known, state.row, owner)

    @property
    def key(self) -> Tensor:
        """(m,): each site's number among the sites of all rows of the run."""
        slots = self.known.shape[1]
        return (self.row[self.owner] * slots + self.place % slots) * self.soft.depth + self.level

    def levels(self) -> list[tuple[Tensor | slice, Tensor]]:
        """(places among the m sites, codebook (codes, d)) of each depth."""
        if self.soft.depth == 1:
            return [(slice(None), self.soft.codebook[0])]
        return [((self.level == j).nonzero()[:, 0], book) for j, book in enumerate(self.soft.codebook)]

    def prior(self, prediction: Prediction) -> Tensor:
        """log p of the codes at the sites (m, codes), of the codebook's dtype, what else could stand there left out."""
        count = self.soft.codebook.shape[1]
        out = self.soft.codebook.new_empty(len(self.index), count)
        for at, _ in self.levels():
            if len(self.index[at]):
                out[at] = replace(prediction, temperature=1.0).log_probs(self.index[at])[:, :count].to(out)
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
            if self.soft.depth == 1:
                out.addmm_(flat[self.place], book.T, beta=keep)
            else:
                out[at] = torch.addmm(out[at], flat[self.place[at]], book.T, beta=keep)
        return out

    def legal(self, e: Tensor) -> Tensor:
        """The legal codes (n, slots, depth) nearest to embeddings (n, slots, d): those that are known as they are, in a slot of
        which all are open what `soft.quantise` says, and levels beside known ones greedily, each with its own book.
        """
        found = self.soft.quantise(e)
        if self.soft.depth == 1:
            return torch.where(self.codes < 0, found, self.codes)
        part = ((self.codes < 0).any(-1) & (self.codes >= 0).any(-1)).nonzero(as_tuple=True)
        codes, rest = self.codes[part], (e - self.known)[part]
        for j, book in enumerate(self.soft.codebook):
            near = torch.addmm(book.square().sum(-1) / 2, rest, book.T, alpha=-1).argmin(-1)
            rest = rest - torch.where(codes[:, j, None] < 0, book[near], 0.0)
            codes[:, j] = torch.where(codes[:, j] < 0, near, codes[:, j])
        return torch.where(self.codes < 0, found, self.codes).index_put(part, codes)

    def symbols(self, codes: Tensor) -> Tensor:
        """Codes (n, slots, depth) at the sites (m,)."""
        return codes.reshape(-1)[self.place * self.soft.depth + self.level]


@dataclass(frozen=True)
class Chosen(Prediction):
    """A prediction whose tokens are chosen already: `choice` (batch * length,) global ids, -1 where they are drawn as usual.

    Log probabilities and statistics are those of the logits, so that orders rank what is chosen by them. `drawn_from`: the
    prediction that tokens are drawn from where it is not the one that ranks.
    """

    choice: Tensor | None = None
    drawn_from: Prediction | None = None

    def then(self, transform: Transform) -> Prediction:
        other = None if self.drawn_from is None else self.drawn_from.then(transform)
        return replace(self, transforms=(*self.transforms, transform), drawn_from=other)  # type: ignore[call-arg]

    def draw(self, index: Tensor, noise: Noise, stream: int = TOKEN, statistics: Sequence[str] = ()) -> Drawn:
        found = super().draw(index, noise, stream, statistics)
        if self.choice is None and self.drawn_from is None:
            return found
        tokens = found.tokens
        if self.drawn_from is not None:
            tokens = replace(self.drawn_from, temperature=self.temperature).draw(index, noise, stream).tokens
        if self.choice is not None:
            chosen = self.choice[index]
            tokens = torch.where(chosen >= 0, chosen, tokens)
        return Drawn(tokens, self.log_prob(index, tokens), found.statistics)

    def candidates(self, index: Tensor, noise: Noise, count: int, stream: int = TOKEN) -> tuple[Tensor, Tensor]:
        if self.drawn_from is not None:
            tokens, log_prob = self.drawn_from.candidates(index, noise, count, stream)
        else:
            tokens, log_prob = super().candidates(index, noise, count, stream)
        if self.choice is None:
            return tokens, log_prob
        chosen = self.choice[index][:, None]
        return torch.where(chosen >= 0, chosen, tokens), torch.where(chosen >= 0, 0.0, log_prob)

    def rows(self, index: Tensor) -> Prediction:
        length = self.batch.tokens.shape[1]
        moved = None if self.choice is None else self.choice.view(-1, length)[index].reshape(-1)
        other = None if self.drawn_from is None else self.drawn_from.rows(index)
        return replace(super().rows(index), choice=moved, drawn_from=other)  # type: ignore[call-arg]


def tabled(canvas: Canvas, prediction: Prediction, logits: Tensor) -> Prediction:
    """The prediction with other logits (m, codes) at the sites of the canvas."""
    layout, length = prediction.batch.layout, prediction.batch.tokens.numel()
    where = torch.full((length,), -1, device=logits.device).scatter(
        0, canvas.index, torch.arange(len(logits), device=logits.device)
    )
    mine = {int(n) for n in layout.tables().alphabet[canvas.soft.columns(layout)].unique()}
    rest = replace(prediction, temperature=1.0)

    def pick(sites: Tensor, number: int) -> Tensor:
        if number not in mine:
            return rest.log_probs(sites)
        at = where[sites]
        _, count, extras = layout.alphabets[number]
        out = logits.new_full((len(sites), count + len(extras)), -torch.inf)
        out[:, :count] = logits[at.clamp(min=0)]
        other = (at < 0).nonzero()[:, 0]
        if len(other):
            out[other] = rest.log_probs(sites[other]).to(out)
        return out

    return Prediction(
        prediction.batch, pick, latents=prediction.latents, cost=prediction.info, temperature=prediction.temperature
    )
