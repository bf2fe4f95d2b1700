"""What action tokenizers share: chunks of one size, normalised by statistics, and scalar codes with equal levels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.action.normalise import CLIPS, MODES, ActionStatistics, Normaliser
from tokenizers_vq.action.readout import read_out
from tokenizers_vq.base import Latents, ModalityTokenizer, TokenizerOutput
from tokenizers_vq.config import TokenizerConfig, checked, whole


class ActionTokenizerConfig(TokenizerConfig):
    """Chunks of `chunk` actions of `dim` numbers, normalised by `statistics` (the keys of OpenVLA's file; empty: the
    actions are in [-1, 1] already). mode, clip: see `Normaliser`.
    """

    model_type = "discdiff_action"

    modality: str = "action"
    quantizer: str = "none"
    chunk: int = 8
    dim: int = 7
    statistics: dict[str, Any] | None = None
    mode: str = "quantile"
    clip: str = "clip"

    def check(self) -> None:
        for name in ("chunk", "dim"):
            checked(name, getattr(self, name), whole(getattr(self, name), 1, 4096), "an integer from 1 to 4096")
        checked("mode", self.mode, self.mode in MODES, f"choose from {', '.join(MODES)}")
        checked("clip", self.clip, self.clip in CLIPS, f"choose from {', '.join(CLIPS)}")
        self.statistics = dict(self.statistics or identity(self.dim).to_dict())
        dim = ActionStatistics.from_dict(self.statistics).dim
        checked("dim", self.dim, self.dim == dim, f"the statistics have {dim} dimensions")
        super().check()


class ActionTokenizer(ModalityTokenizer):
    """Actions (batch, chunk, dim) to codes and back; mask (batch, chunk): which steps are data. One writes
    `normalised_latents` and `decode_normalised`, the two ways between [-1, 1] and slots.

    Steps after the end of an episode stand still: they take the last action that is data.
    """

    config_class = ActionTokenizerConfig

    def normalised_latents(self, y: Tensor) -> Tensor:
        """Actions (batch, chunk, dim) in [-1, 1] to latents (batch, slots, code_dim)."""
        raise NotImplementedError(f"{type(self).__name__} must define normalised_latents")

    def decode_normalised(self, e: Tensor) -> Tensor:
        """Embeddings (batch, slots, code_dim) to actions (batch, chunk, dim) in about [-1, 1], differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define decode_normalised")

    @property
    def grid(self) -> tuple[int, ...]:
        """Slots per axis."""
        return (self.token_shape((1, self.config.chunk, self.config.dim))[1],)

    @cached_property
    def normaliser(self) -> Normaliser:
        """Actions to [-1, 1]."""
        config = self.config
        return Normaliser(ActionStatistics.from_dict(config.statistics), config.mode, config.clip)

    def check_shape(self, input_shape: tuple[int, ...]) -> int:
        """The number of rows. Raises ValueError for chunks of another size."""
        shape, size = tuple(input_shape), (self.config.chunk, self.config.dim)
        if len(shape) != 3 or shape[1:] != size:
            raise ValueError(f"actions are {shape}: this tokenizer takes (batch, {size[0]}, {size[1]})")
        return shape[0]

    def normalised(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions (batch, chunk, dim) in [-1, 1], float32, and which of their numbers were clipped.

        Raises ValueError for another shape of x or mask, and as `Normaliser.normalise`.
        """
        self.check_shape(tuple(x.shape))
        if mask is None:
            return self.normaliser.normalise(x)
        if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}: give bool {tuple(x.shape[:2])}")
        middle = self.normaliser.affine[0].to(x)  # in range, whatever the padding holds
        y, clipped = self.normaliser.normalise(torch.where(mask[..., None], x, middle))
        return held(y, mask), clipped

    def slot_mask(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Slots that speak of the whole chunk are data where any of its steps is: (batch, slots) bool."""
        some = torch.ones(len(x), dtype=torch.bool, device=x.device) if mask is None else mask.any(1)
        return some[:, None].repeat(1, self.token_shape(tuple(x.shape))[1])

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Latents of normalised actions; steps that are no data stand still."""
        return Latents(self.normalised_latents(self.normalised(x, mask)[0]), self.slot_mask(x, mask), self.grid)

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to actions, not cut to the range of the statistics."""
        return self.normaliser.restore(self.decode_normalised(e))

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """Codes of actions; aux["clipped"]: how many numbers of each row lay beyond the statistics, (batch,)."""
        clipped = self.normalised(x, mask)[1]
        return super().encode(x, mask)._replace(aux={"clipped": clipped.flatten(1).sum(1)})

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, depth or fewer) to actions within the range of the statistics."""
        return self.normaliser.restore(self.decode_normalised(self.codes_to_embeddings(codes)).clamp(-1, 1))


class ScalarTokenizer(ActionTokenizer):
    """Tokenizers whose slots are numbers u in [-1, 1]: code c is the level u = -1 + 2 c / (codebook_size - 1)."""

    @property
    def codebook(self) -> Tensor:
        """The levels (1, codebook_size, 1), end points included."""
        return equal_levels(self.codebook_size).view(1, -1, 1).to(self.device)

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """The nearest level."""
        top = self.codebook_size - 1
        return ((e.clamp(-1, 1) + 1) * (top / 2)).round().long()

    @torch.no_grad()
    def decode_probabilities(self, probabilities: Tensor, how: str = "expectation", width: int = 9) -> Tensor:
        """Probabilities of the codes (batch, slots, codebook_size) to actions (batch, chunk, dim).

        how: "expectation", "mode" (of `width` neighbouring levels, see `readout.mode`) or "argmax". Raises ValueError for
        another shape or how.
        """
        shape = (self.token_shape((1, self.config.chunk, self.config.dim))[1], self.codebook_size)
        if probabilities.ndim != 3 or tuple(probabilities.shape[1:]) != shape:
            raise ValueError(f"probabilities are {tuple(probabilities.shape)}: give (batch, {shape[0]}, {shape[1]})")
        y = self.read_out(probabilities, how, width)
        return self.normaliser.restore(y.clamp(-1, 1))

    def read_out(self, probabilities: Tensor, how: str, width: int) -> Tensor:
        """Probabilities to actions in [-1, 1]."""
        u = read_out(probabilities, self.codebook[0, :, 0], how, width)
        return self.decode_normalised(u[..., None])


def equal_levels(count: int) -> Tensor:
    """-1..1 in `count` equal steps, end points included."""
    return torch.linspace(-1, 1, count)


def held(y: Tensor, mask: Tensor) -> Tensor:
    """Every step that is no data takes the last one before it that is, else the first one after: y (batch, chunk, dim)."""
    steps = torch.arange(y.shape[1], device=y.device)
    last = torch.where(mask, steps, -1).cummax(1).values
    first = mask.int().argmax(1, keepdim=True)
    return y.gather(1, torch.where(last < 0, first, last)[..., None].expand_as(y))


def identity(dim: int) -> ActionStatistics:
    """Of actions that are in [-1, 1] already."""
    low, high, zero = (-1.0,) * dim, (1.0,) * dim, (0.0,) * dim
    return ActionStatistics(low, high, low, high, zero, high, (False,) * dim)


def fitted(
    actions: Tensor, mask: Tensor | None, raw: tuple[int, ...], statistics: ActionStatistics | None
) -> dict[str, Any]:
    """chunk, dim and statistics of actions (rows, chunk, dim), as keys of a configuration.

    Raises ValueError for another shape and for raw dimensions beyond [-1, 1].
    """
    checked("actions", tuple(actions.shape), actions.ndim == 3, "give chunks (rows, chunk, dim)")
    found = ActionStatistics.of(actions, mask, raw) if statistics is None else statistics
    for i, scaled in enumerate(found.mask):
        inside = scaled or -1 <= found.q01[i] <= found.q99[i] <= 1
        span = found.q01[i], found.q99[i]
        checked(f"statistics of raw dimension {i}", span, inside, "raw dimensions must lie in [-1, 1]: normalise it")
    return {"chunk": actions.shape[1], "dim": actions.shape[2], "statistics": found.to_dict()}
