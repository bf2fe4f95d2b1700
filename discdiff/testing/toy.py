"""The exact toy: a joint law over 3 symbols and 4 positions, its Bayes-exact denoiser, and distances between laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.denoisers import FunctionDenoiser
from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.processes import Absorbing, Process
from discdiff.types import Alphabet, State, Step

SYMBOLS, LENGTH = 3, 4

# Unnormalised weights of the 81 sequences, last position fastest; whole numbers, so that no library can change them.
_WEIGHTS = (
    (41, 2, 7, 1, 9, 30, 3, 1, 12, 5, 22, 1, 2, 2, 8, 17, 1, 4, 1, 6, 3, 28, 2, 11, 1, 5, 3),
    (2, 13, 1, 25, 4, 1, 6, 2, 33, 9, 1, 3, 2, 44, 5, 1, 7, 2, 14, 3, 1, 2, 8, 1, 19, 4, 6),
    (1, 5, 16, 2, 3, 10, 27, 1, 2, 4, 2, 21, 7, 1, 3, 2, 36, 1, 6, 1, 12, 3, 2, 9, 1, 18, 29),
)


@dataclass(frozen=True, eq=False)
class Toy:
    """A joint law p over `symbols ** length` sequences, (symbols ** length,) float64, last position fastest."""

    p: Tensor
    symbols: int = SYMBOLS
    length: int = LENGTH

    @property
    def table(self) -> Tensor:
        """All sequences, (symbols ** length, length) symbols."""
        axes = [torch.arange(self.symbols)] * self.length
        return torch.cartesian_prod(*axes).reshape(-1, self.length)

    @property
    def layout(self) -> Layout:
        """One text segment whose ids are the symbols."""
        return Layout(VocabLayout(text_size=self.symbols), (Segment("x", "text", (self.length,)),))

    def batch(self, rows: int, given: dict[int, int] | None = None) -> TokenBatch:
        """`rows` empty rows; `given` fixes positions to symbols."""
        tokens = torch.full((rows, self.length), self.layout.vocab.mask)
        known = torch.zeros(rows, self.length, dtype=torch.bool)
        for position, symbol in (given or {}).items():
            tokens[:, position], known[:, position] = symbol, True
        return make_batch(self.layout, tokens, given=known)

    def law(self, tokens: Tensor) -> Tensor:
        """Empirical law of rows of symbols, (symbols ** length,)."""
        place = self.symbols ** torch.arange(self.length - 1, -1, -1)
        return torch.bincount((tokens * place).sum(-1), minlength=len(self.p)).double() / len(tokens)

    def conditional(self, given: dict[int, int]) -> Tensor:
        """The law given some positions."""
        keep = torch.ones(len(self.p), dtype=torch.bool)
        for position, symbol in given.items():
            keep &= self.table[:, position] == symbol
        p = torch.where(keep, self.p, 0.0)
        return p / p.sum()

    def posterior(self, x: Tensor, t: Tensor, process: Process, kind: str = "own", chunk: int = 4096) -> Tensor:
        """Exact log p(x0_i = v | x_t) (own) or without position i's own token (cavity), `(batch, length, symbols)`.

        x (batch, length) symbols with the mask = `symbols`; t a time per position, in which 0 means known.
        """
        t = t.expand(x.shape)
        if isinstance(process, Absorbing):  # time says nothing that the masks do not
            t = torch.full_like(t, 0.5)
        first, back = _distinct(x, t, self.symbols)  # many rows are equal: each is worked out once
        parts = zip(x[first].split(chunk), t[first].split(chunk), strict=True)
        return torch.cat([self._posterior(a, b, process, kind) for a, b in parts])[back]

    def _posterior(self, x: Tensor, t: Tensor, process: Process, kind: str) -> Tensor:
        eye = torch.eye(self.symbols, dtype=torch.float64).log()
        law = process.log_marginal(
            eye.expand(*t.shape, self.symbols, self.symbols), t[..., None].expand(*t.shape, self.symbols)
        )
        likelihood = law.exp().gather(-1, x[..., None, None].expand(*x.shape, self.symbols, 1))[..., 0]  # (B, L, v)
        per = torch.stack([likelihood[:, i][:, self.table[:, i]] for i in range(self.length)], -1)  # (B, 81, L)
        out = []
        for i in range(self.length):
            others = per.prod(-1) if kind == "own" else per[..., [j for j in range(self.length) if j != i]].prod(-1)
            mass = torch.zeros(len(x), self.symbols, dtype=torch.float64)
            mass.index_add_(1, self.table[:, i], others * self.p)
            out.append(mass)
        stacked = torch.stack(out, 1)
        return (stacked / stacked.sum(-1, keepdim=True).clamp(min=1e-300)).log()

    def denoiser(self, process: Process, kind: str = "own") -> FunctionDenoiser:
        """The Bayes-exact denoiser under a process."""
        process = process.at(Alphabet(self.symbols, 0, self.layout.names))

        def function(state: State, step: Step) -> Tensor:
            x = state.batch.symbols(state.tokens)
            time = torch.where(state.given, 0.0, torch.as_tensor(step.t, dtype=torch.float64))
            settled = state.committed & (x < self.symbols)
            return self.posterior(x, torch.where(settled, 0.0, time), process, kind)

        return FunctionDenoiser(function, kind=kind, needs_time=True)


def _distinct(x: Tensor, t: Tensor, symbols: int) -> tuple[Tensor, Tensor]:
    """Numbers of rows (n,) that stand for all that are equal in x and t, and which of them each row equals."""
    times, number = t.unique(return_inverse=True)
    digit, base = x + (symbols + 1) * number, (symbols + 1) * len(times)
    if base ** x.shape[1] >= 2**62:
        return torch.arange(len(x)), torch.arange(len(x))
    _, back = (digit * base ** torch.arange(x.shape[1])).sum(1).unique(return_inverse=True)
    return torch.empty(int(back.max()) + 1, dtype=torch.int64).scatter(0, back, torch.arange(len(x))), back


def toy() -> Toy:
    """The committed toy joint: 3 symbols, 4 positions, strongly dependent."""
    p = torch.tensor(_WEIGHTS, dtype=torch.float64).reshape(-1)
    return Toy(p / p.sum())


def total_variation(p: Tensor, q: Tensor) -> float:
    """(1/2) sum |p - q|."""
    return 0.5 * float((p - q).abs().sum())


def noise_floor(p: Tensor, draws: int) -> float:
    """Expected total variation of `draws` exact samples: (1/2) sum sqrt(2 p (1 - p) / (pi draws))."""
    return 0.5 * float((2 * p * (1 - p) / (math.pi * draws)).sqrt().sum())


def check_kernel(kernel: Any, steps: int | None = None, draws: int = 20000, seed: int = 0, kind: str = "own") -> float:
    """Total variation of a kernel's samples to the toy joint, in units of the noise floor; an exact one is near 1.

    `steps` None gives one step per position. Run it on a sampler of your own: above about 1.5 it is biased.
    """
    from discdiff.sampling import sample

    joint = toy()
    state, _ = sample(joint.denoiser(kernel.process, kind), kernel, joint.batch(draws), steps or LENGTH, seed=seed)
    return total_variation(joint.law(state.batch.symbols(state.tokens)), joint.p) / noise_floor(joint.p, draws)
