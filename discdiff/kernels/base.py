"""The kernel contract, and what every kernel needs: the sites that may move, and a network call for their rows only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.denoisers import Prediction
from discdiff.noise import PRIOR, Noise
from discdiff.processes import Process
from discdiff.types import Info, State, Step


class Kernel:
    """One transition: `(denoiser, state, step, noise) -> (state, info)`; a kernel of your own overrides what differs.

    process: whose prior starts a run; unbiased: with an exact denoiser it keeps the process's law (in the limit of many
    steps); decide_first: who moves is known before the network is asked; final: committed tokens never move again;
    reads: names of `Step` fields it obeys; `init(state)` adds its own per-row memory.
    """

    process: Any

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def decide_first(self) -> bool:
        return False

    @property
    def final(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def check(self, grid: Any) -> None:
        """Raise ValueError for a grid whose settings this kernel cannot obey; called before the first network call."""

    def init(self, state: State) -> State:
        return state

    def awake(self, state: State, step: Step, noise: Noise) -> Tensor | None:
        """Flat sites (n,) that the step commits, if that is known before the network is asked and whatever it said before.

        A kernel that gives them has `move(denoiser, state, step, noise, index)`, too: the step, with those sites.
        """
        return None

    def move(self, denoiser: Any, state: State, step: Step, noise: Noise, index: Tensor) -> tuple[State, Info]:
        raise TypeError(f"{type(self).__name__} defines no move")

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        raise TypeError(f"{type(self).__name__} defines no __call__")


class Around(Kernel):
    """A kernel around another, `inner`, whose process, finality, settings and checks are its own."""

    inner: Any

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.inner.process

    @property
    def final(self) -> bool:
        return self.inner.final

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inner.reads

    def check(self, grid: Any) -> None:
        check_grid(self.inner, grid)


class Several(Kernel):
    """A kernel of several, `kernels`: it keeps the law where all of them do, and obeys what any of them reads.

    Raises ValueError for none.
    """

    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        if not self.kernels:
            raise ValueError(f"{type(self).__name__} needs at least one kernel")

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.kernels[0].process

    @property
    def unbiased(self) -> bool:
        return all(k.unbiased for k in self.kernels)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for k in self.kernels for name in k.reads)

    def check(self, grid: Any) -> None:
        for kernel in self.kernels:
            check_grid(kernel, grid)

    def init(self, state: State) -> State:
        for kernel in self.kernels:
            state = kernel.init(state)
        return state


def check_grid(kernel: Any, grid: Any) -> None:
    """`kernel.check(grid)` of what is a Kernel; a user's own may just look like one."""
    if isinstance(kernel, Kernel):
        kernel.check(grid)


def select(mask: Tensor) -> Tensor:
    """Flat sites of a bool (batch, length): the one place where a step learns a count from the device."""
    return mask.reshape(-1).nonzero()[:, 0]


def prior_tokens(process: Process, state: State, noise: Noise) -> Tensor:
    """Tokens with every free position drawn from the process's prior, (batch, length) global ids."""
    symbols = process.prior(noise.uniform(PRIOR), state.batch.alphabet)
    return torch.where(state.free, state.batch.ids(symbols), state.tokens)


def arrive(state: State, step: Step) -> State:
    """The state with every free position at the step's end; committed ones keep the clock's time, too."""
    return state._replace(time=torch.where(state.free, torch.minimum(state.time, step.s), state.time))


class Asked(NamedTuple):
    """A network call for some rows: their state, step and noise, the prediction, and the sites in their numbering."""

    prediction: Prediction
    state: State
    step: Step
    noise: Noise
    index: Tensor  # type: ignore[assignment]
    info: Info


def ask(denoiser: Any, process: Process, state: State, step: Step, noise: Noise, index: Tensor) -> Asked:
    """Call the denoiser for the rows that own a site of `index` (n >= 1); cavity predictions become own ones."""
    rows, length = state.tokens.shape
    row = torch.div(index, length, rounding_mode="floor")
    wanted = torch.zeros(rows, dtype=torch.bool, device=index.device)
    wanted[row] = True
    chosen = wanted.nonzero()[:, 0]
    if len(chosen) < rows:
        state, noise = state.rows(chosen), noise.rows(chosen)
        step = step._replace(t=step.t[chosen], s=step.s[chosen])
        index = (wanted.cumsum(0) - 1)[row] * length + index % length
    prediction = denoiser(state, step)
    if denoiser.kind == "cavity":
        prediction = prediction.then(own_transform(process, state, step))
    return Asked(prediction, state, step, noise, index, prediction.info._replace(head_rows=len(index)))


def reveal(denoiser: Any, kernel: Any, state: State, step: Step, noise: Noise, index: Tensor) -> tuple[State, Info]:
    """Masked sites (n,) take the tokens that the kernel's proposal draws there, for good."""
    if not len(index):
        return state, Info()
    asked = ask(denoiser, kernel.process, state, step, noise, index)
    clean = kernel.proposal.draw(asked.prediction, asked.state, asked.index, asked.step, asked.noise)
    shape = state.tokens.shape
    tokens = state.tokens.reshape(-1).scatter(0, index, clean.tokens).view(shape)
    committed = state.committed.reshape(-1).index_fill(0, index, True).view(shape)
    return state._replace(tokens=tokens, committed=committed), clean.note(asked.info)._replace(committed=len(index))


def own_transform(process: Process, state: State, step: Step) -> Any:
    """Cavity to own: the logit of the present token rises by log q_t(x_t | x_t) / q_t(x_t | other)."""
    symbols = state.batch.symbols(state.tokens).reshape(-1)
    time = step.t.expand(state.tokens.shape).reshape(-1)

    def transform(logits: Tensor, index: Tensor) -> Tensor:
        x, alphabet = symbols[index], state.batch.sites(index)
        shift = process.own_shift(x, time[index], alphabet).to(logits.dtype)
        column = torch.arange(logits.shape[-1], device=logits.device)
        here = column == x[:, None]
        certain = torch.isinf(shift)[:, None]
        tilted = logits + torch.where(here & ~certain, shift[:, None], 0.0)
        return torch.where(certain, torch.where(here, 0.0, float("-inf")), tilted)

    return transform
