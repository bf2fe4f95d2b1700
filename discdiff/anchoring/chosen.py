"""Tables as predictions: what a kernel ranks, and which codes it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from discdiff.anchoring.canvas import Canvas, limits
from discdiff.denoisers import Prediction
from discdiff.denoisers.draw import Drawn
from discdiff.denoisers.prediction import Transform
from discdiff.noise import TOKEN, Noise


@dataclass(frozen=True)
class Chosen(Prediction):
    """A prediction whose tokens are chosen already: `choice` (batch * length,) global ids, -1 where they are drawn as usual.

    Log probabilities and statistics are those of the logits, so that orders rank what is chosen by them. `table`: the
    prediction that tokens come from where it is not the one that ranks. `choose`: the choice of a table that constraints,
    truncation or a temperature around this one have changed, so that all of them act; at temperature 0 the likeliest tokens of
    the table are taken.
    """

    choice: Tensor | None = None
    table: Prediction | None = None
    choose: Callable[[Prediction], Tensor] | None = None

    @property
    def chosen(self) -> Tensor | None:
        if self.temperature == 0:
            return None
        return (
            self.choice
            if self.choice is not None or self.choose is None
            else self.choose(self if self.table is None else self.table)
        )

    def then(self, transform: Transform) -> Prediction:
        table = None if self.table is None else self.table.then(transform)
        choice = self.choice if self.choose is None else None
        return replace(self, transforms=(*self.transforms, transform), table=table, choice=choice)  # type: ignore[call-arg]

    def draw(self, index: Tensor, noise: Noise, stream: int = TOKEN, statistics: Sequence[str] = ()) -> Drawn:
        found, chosen = super().draw(index, noise, stream, statistics), self.chosen
        if chosen is None and self.table is None:
            return found
        tokens = found.tokens
        if self.table is not None:
            tokens = replace(self.table, temperature=self.temperature).draw(index, noise, stream).tokens
        if chosen is not None:
            tokens = torch.where(chosen[index] >= 0, chosen[index], tokens)
        return Drawn(tokens, self.log_prob(index, tokens), found.statistics)

    def candidates(self, index: Tensor, noise: Noise, count: int, stream: int = TOKEN) -> tuple[Tensor, Tensor]:
        if self.table is not None:
            table = replace(self.table, temperature=self.temperature)
            tokens, log_prob = table.candidates(index, noise, count, stream)
        else:
            tokens, log_prob = super().candidates(index, noise, count, stream)
        chosen = self.chosen
        if chosen is None:
            return tokens, log_prob
        mine = chosen[index][:, None]
        return torch.where(mine >= 0, mine, tokens), torch.where(mine >= 0, 0.0, log_prob)

    def rows(self, index: Tensor) -> Prediction:
        length, chosen = self.batch.tokens.shape[1], self.chosen
        choice = None if chosen is None else chosen.view(-1, length)[index].reshape(-1)
        table = None if self.table is None else self.table.rows(index)
        return replace(super().rows(index), choice=choice, table=table, choose=None)  # type: ignore[call-arg]


def chosen_codes(canvas: Canvas, e: Tensor, log_p: Tensor, prediction: Prediction) -> Tensor:
    """(batch * length,): global ids of the legal codes nearest to embeddings (n, slots, d), of those that log probabilities
    (m, codes) do not forbid, at the sites that have begun; -1 elsewhere.
    """
    symbols = canvas.symbols(canvas.legal(e, limits(log_p)))
    ids = torch.where(canvas.begun, prediction.batch.ids(symbols, canvas.index), -1)
    return ids.new_full((prediction.batch.tokens.numel(),), -1).scatter(0, canvas.index, ids)


def tabled(canvas: Canvas, prediction: Prediction, logits: Tensor) -> Prediction:
    """The prediction with other logits (m, codes) at the sites of the canvas that have begun."""
    layout, length = prediction.batch.layout, prediction.batch.tokens.numel()
    number = torch.where(canvas.begun, torch.arange(len(logits), device=logits.device), -1)
    where = torch.full((length,), -1, device=logits.device).scatter(0, canvas.index, number)
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
