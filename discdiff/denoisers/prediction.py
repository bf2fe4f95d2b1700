"""Prediction: what a denoiser believes the clean tokens are, computed only for the sites that somebody asks about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from discdiff.denoisers.draw import LOG_PROBS, Drawn, candidates, draw, rank
from discdiff.layout import TokenBatch
from discdiff.noise import TOKEN, Noise
from discdiff.types import Info

Logits = Callable[[Tensor, int], Tensor]
"""(flat sites (n,), alphabet number) -> logits (n, K) over that alphabet's symbols, in layout order, extras last; a tensor
of its own each time, which a draw overwrites."""

Transform = Callable[[Tensor, Tensor], Tensor]
"""(logits (n, K), flat sites (n,)) -> logits (n, K)."""

CHUNK_BYTES, CPU_CHUNK_BYTES = 128 << 20, 16 << 20
"""Logits at a time; on a CPU so few that the allocator reuses their memory instead of mapping new pages."""

Places = slice | Tensor


@dataclass(frozen=True)
class Prediction:
    """A lazy table of clean-token predictions for the rows of `batch`.

    Sites are flat, row * length + column, and must be noisable. `draw` and `rank` need no table at all; `log_probs`
    gives one for sites of one alphabet. Committed tokens are never carried over here (`Process.own` does that).
    latents: predictions of the state's clean latents by name, (batch, ...), from a network that has them. cost: what it
    took (nfe, rows, positions fed), where that is not one call over all positions. temperature: at which tokens are drawn;
    `log_prob` and statistics stay those of the logits as they are (LLaDA's confidence, arXiv 2502.09992).
    """

    batch: TokenBatch
    logits: Logits
    transforms: tuple[Transform, ...] = ()
    latents: Mapping[str, Tensor] = field(default_factory=dict)
    cost: Info | None = None
    temperature: float = 1.0

    @property
    def info(self) -> Info:
        """What making the prediction took, the head not counted."""
        rows, length = self.batch.tokens.shape
        return Info(1, rows, 0, rows * length) if self.cost is None else self.cost

    def then(self, transform: Transform) -> Prediction:
        """The prediction with one more transform of its logits."""
        return replace(self, transforms=(*self.transforms, transform))

    def rows(self, index: Tensor) -> Prediction:
        """The prediction of the rows `index`, sites renumbered."""
        length = self.batch.tokens.shape[1]

        def back(sites: Tensor) -> Tensor:
            return index[torch.div(sites, length, rounding_mode="floor")] * length + sites % length

        moved = tuple(lambda x, sites, f=f: f(x, back(sites)) for f in self.transforms)
        latents = {name: x[index] for name, x in self.latents.items()}
        return replace(
            self,
            batch=self.batch.rows(index),
            logits=lambda sites, number: self.logits(back(sites), number),
            transforms=moved,
            latents=latents,
        )

    def draw(self, index: Tensor, noise: Noise, stream: int = TOKEN, statistics: Sequence[str] = ()) -> Drawn:
        """Tokens (global ids) drawn at the sites `index` (n,), their log probability, and the statistics asked for."""
        uniform = noise.uniform(stream, index)
        tokens, log_prob = torch.empty_like(index), uniform.new_empty(len(index))
        found = self._blank(index, statistics)
        for where, logits in self._walk(index):
            drawn = draw(logits, uniform[where], statistics, self.temperature, owned=True)
            tokens[where], log_prob[where] = drawn.tokens, drawn.log_prob
            _fill(found, where, drawn.statistics)
        return Drawn(self.batch.ids(tokens, index), log_prob, found)

    def candidates(self, index: Tensor, noise: Noise, count: int, stream: int = TOKEN) -> tuple[Tensor, Tensor]:
        """`count` draws at each of the sites (n,): tokens (n, count), global ids, and log (n, count) of the law drawn from.

        Draw j reads the stream `stream + j`: it is what `draw` gives there. The logits are made once for all of them.
        """
        uniform = torch.stack([noise.uniform(stream + j, index) for j in range(count)], 1)
        tokens, log_prob = index.new_empty(uniform.shape), torch.empty_like(uniform)
        for where, logits in self._walk(index):
            tokens[where], log_prob[where] = candidates(logits, uniform[where], self.temperature)
        ids = self.batch.ids(tokens.flatten(), index.repeat_interleave(count))
        return ids.view(tokens.shape), log_prob

    def rank(self, index: Tensor, statistic: str) -> Tensor:
        """ "confidence", "margin" or "entropy" at the sites (n,) float64, higher is surer."""
        found = self._blank(index, (statistic,))
        for where, logits in self._walk(index):
            _fill(found, where, {statistic: rank(logits, statistic)})
        return found[statistic]

    def _blank(self, index: Tensor, statistics: Sequence[str]) -> dict[str, Tensor]:
        """Room for statistics at the sites; rows of a narrow alphabet keep -inf behind their last symbol."""
        widths = (len(extras) + count for _, count, extras in self.batch.layout.alphabets)
        shape = {LOG_PROBS: ((len(index), max(widths)), torch.float32)}
        found = {name: shape.get(name, ((len(index),), torch.float64)) for name in statistics}
        return {
            name: torch.full(size, float("-inf"), dtype=kind, device=index.device)
            for name, (size, kind) in found.items()
        }

    def log_probs(self, index: Tensor) -> Tensor:
        """Log of the law `draw` draws from, `(n,) -> (n, K)`. Raises ValueError for sites of different alphabets."""
        groups = list(self._alphabets(index))
        if len(groups) > 1:
            raise ValueError("the sites have different legal ids: ask for the log_probs of one alphabet at a time")
        logits = self._compute(index, groups[0][0])
        if self.temperature == 0:
            return torch.full_like(logits, float("-inf")).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        return (logits if self.temperature == 1 else logits / self.temperature).log_softmax(-1)

    def log_prob(self, index: Tensor, tokens: Tensor) -> Tensor:
        """log p(x0 = token) of given global ids (n,) at the sites (n,), float64."""
        symbols = self.batch.symbols(tokens, index)
        out = torch.empty(len(index), dtype=torch.float64, device=index.device)
        for where, logits in self._walk(index):
            chosen = logits.gather(-1, symbols[where][:, None])[:, 0]
            out[where] = chosen.double() - logits.logsumexp(-1).double()
        return out

    def _walk(self, index: Tensor) -> Iterator[tuple[Places, Tensor]]:
        """(places in `index`, logits) in pieces of one alphabet and bounded memory."""
        for number, places in self._alphabets(index):
            _, count, extras = self.batch.layout.alphabets[number]
            chunk = CPU_CHUNK_BYTES if index.device.type == "cpu" else CHUNK_BYTES
            rows = max(1, chunk // (4 * (count + len(extras))))
            for first in range(0, len(index) if places is None else len(places), rows):
                piece = slice(first, first + rows)
                where: Places = piece if places is None else places[piece]
                yield where, self._compute(index[where], number)

    def _alphabets(self, index: Tensor) -> Iterator[tuple[int, Tensor | None]]:
        """(alphabet, its places in `index`, None for all of them)."""
        layout = self.batch.layout
        if len(layout.drawn) == 1:  # the usual case needs no look at the sites
            yield layout.drawn[0], None
            return
        number = layout.tables(index.device).alphabet[self.batch.slot.reshape(-1)[index]]
        for one in layout.drawn:
            places = (number == one).nonzero()[:, 0]
            if len(places):
                yield one, places

    def _compute(self, index: Tensor, number: int) -> Tensor:
        logits = self.logits(index, number)
        logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        banned = self.batch.layout.banned(number)
        if banned is not None:
            logits = logits.clone()
            logits[:, banned] = float("-inf")
        for transform in self.transforms:
            logits = transform(logits, index)
        return logits


def _fill(found: dict[str, Tensor], where: Places, statistics: Mapping[str, Tensor]) -> None:
    for name, values in statistics.items():
        if values.ndim == 1:
            found[name][where] = values
        else:
            found[name][where, : values.shape[-1]] = values


def table(batch: TokenBatch, logits: Tensor, latents: Mapping[str, Tensor] | None = None) -> Prediction:
    """A prediction from a full table of logits `(batch, length, K)`; K is at least the widest alphabet asked for."""

    def pick(index: Tensor, number: int) -> Tensor:
        _, count, extras = batch.layout.alphabets[number]
        return logits.reshape(-1, logits.shape[-1])[index, : count + len(extras)]

    return Prediction(batch, pick, latents=latents or {})
