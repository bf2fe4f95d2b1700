"""A table as a network: the exact cavity predictions of the committed toy, and all noises of a process with their chances."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from discdiff.clocks import Clock, Shared
from discdiff.layout import Layout, Modality, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import Noise
from discdiff.processes import Absorbing, PerSegment, Process, Uniform
from discdiff.testing import toy

TOY = toy()
NLL = -TOY.p.log()
ENTROPY = float(TOY.p @ NLL)
SHARED, ONE = Shared(), TOY.layout
TWO = Layout(VocabLayout(TOY.symbols), (Segment("left", "text", (2,)), Segment("right", "text", (2,))))


@dataclass
class Table:
    """Answers like a model: hidden states (batch, length, symbols) are log p(x0_i | x_t without i), the head is the identity.

    With `process` None every visible token is taken as known, which is all that an absorbing process's law needs.
    """

    process: Any = None
    calls: int = 0

    def __call__(self, batch: TokenBatch, time: Tensor, objective: Any) -> Any:
        self.calls += 1
        loss, extras = objective(self, self.cavity(batch, time))
        return SimpleNamespace(loss=loss, extras=extras)

    def select(self, hidden: Tensor, batch: TokenBatch, index: Tensor, shift: bool = False) -> Tensor:
        return hidden.flatten(0, 1)[batch.source(index, shift)]

    def head_weight(self, first: int, size: int, extras: tuple[int, ...] = ()) -> Tensor:
        return torch.eye(size, dtype=torch.float64)

    def cavity(self, batch: TokenBatch, time: Tensor) -> Tensor:
        x, eye = batch.symbols(batch.tokens), torch.eye(TOY.symbols, dtype=torch.float64)
        per = []
        for i in range(TOY.length):
            if self.process is None:
                seen = torch.cat([eye, torch.ones(1, TOY.symbols)])[x[:, i]]  # (batch, v)
            else:
                one = self.process
                if isinstance(one, PerSegment):
                    one = one.parts[batch.layout.names[int(batch.alphabet.segment[0, i])]]
                law = one.log_marginal(eye.log().expand(len(x), -1, -1), time[:, i, None].expand(-1, TOY.symbols)).exp()
                seen = law.gather(-1, x[:, i, None, None].expand(-1, TOY.symbols, 1))[..., 0]
            per.append(seen[:, TOY.table[:, i]])  # (batch, sequences)
        out = []
        for i in range(TOY.length):
            rest = torch.stack(per[:i] + per[i + 1 :]).prod(0) * TOY.p
            mass = torch.zeros(len(x), TOY.symbols, dtype=torch.float64).index_add_(1, TOY.table[:, i], rest)
            out.append((mass / mass.sum(-1, keepdim=True)).log())
        return torch.stack(out, 1)


@dataclass
class Given:
    """Stands in for `Noise`: the uniforms given, whatever the stream."""

    points: Tensor

    def uniform(self, stream: int) -> Tensor:
        return self.points

    def child(self, index: int) -> "Given":
        return self


def nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on (0, 1) under t = v^4 (35 - 84 v + 70 v^2 - 20 v^3), flat at both ends."""
    k = torch.arange(1, count, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    v = (values + 1) / 2
    return v**4 * (35 - 84 * v + 70 * v**2 - 20 * v**3), vectors[0] ** 2 * 140 * (v * (1 - v)) ** 3


def exhaustive(
    process: Process, sequences: TokenBatch, count: int, clock: Clock = SHARED
) -> tuple[TokenBatch, Given, Tensor, Tensor]:
    """Every noise of every sequence (n rows) at `count` times: batch, noise, times, and the chance (n, rows) of a row.

    A uniform in the middle of an interval stands for all of it: token kept, masked, or replaced by symbol 0, 1, ...
    """
    (t, share), start, n = nodes(count), sequences.repeat(count), len(sequences.tokens)
    when, names = clock(start, t.repeat(n)), start.layout.names
    parts = [process.parts[name] if isinstance(process, PerSegment) else process for name in names]
    laws = [parts[s].marginal(when[:, i], TOY.symbols) for i, s in enumerate(start.layout.tables().segment.tolist())]
    chance = torch.stack([torch.stack([a, g, *[u] * TOY.symbols], -1) for a, u, g in laws], 1)  # (n count, length, 5)
    middle, place = chance.cumsum(-1) - chance / 2, torch.arange(TOY.length)
    event = torch.cartesian_prod(*[torch.arange(2 + TOY.symbols)] * TOY.length)
    total = chance[:, place, event].prod(-1) * share.repeat(n)[:, None]
    row, which = (total > 0).nonzero().unbind(1)
    weight = torch.zeros(n, len(row), dtype=torch.float64)
    weight[row // count, torch.arange(len(row))] = total[row, which]
    return start.rows(row), Given(middle[row[:, None], place, event[which]]), t.repeat(n)[row], weight


# -- a small network over two kinds of tokens

WORDS, SOUND = Segment("words", "text", (4,), extras=("EOS",)), Segment("sound", "sound", (3,))
VOCAB = VocabLayout(12, (Modality("sound", 5, depth=2),), mask_id=5)  # the mask lies inside the text
OUTSIDE = VocabLayout(12, VOCAB.modalities)
MIXED = Layout(VOCAB, (Segment("prompt", "text", (2,), noised=False), WORDS, SOUND))
FREE = Layout(OUTSIDE, MIXED.segments)
PACKED = Layout(VOCAB, MIXED.segments, packed=True)
BOTH = PerSegment({"words": Absorbing(), "sound": Uniform()})


def network(vocab=VOCAB, dtype=torch.float64, **more):
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_depth": 2, "initializer_range": 0.4}
    return DiscDiffModel.seeded(DiscDiffConfig(vocab=vocab, **shape, **more), 0, dtype)


def rows_of(layout, rows=5, seed=0, **more):
    """Random legal rows; no token is the mask."""
    tables, draw = layout.tables(), torch.Generator().manual_seed(seed)
    symbols = (torch.rand(rows, layout.length, generator=draw) * tables.size).long()
    blank = make_batch(layout, tables.first.expand(rows, -1))
    tokens = blank.ids(torch.where(blank.ids(symbols) == layout.vocab.mask, 0, symbols))
    return make_batch(layout, tokens, **more)


def noise_of(batch, seed=0):
    return Noise.seeded(seed, batch.valid), torch.linspace(0.2, 0.9, len(batch.tokens), dtype=torch.float64)
