"""Keys and values of slots that were fed before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.layout import TokenBatch


@dataclass(frozen=True, init=False)
class KVCache:
    """Keys and values of a run, per layer `(rows, heads, slots, head_dim)`, and which slots hold any.

    Exact only for slots that see no slot fed after them: the prefix of a layout with `prefix_cacheable()`, the blocks of
    a block-causal one. `filled` (rows, slots) bool is the only truth about that; set it to False to forget slots.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    _filled: Tensor
    index: Tensor | None

    def __init__(self, model: Any, batch: TokenBatch) -> None:
        config, weight = model.config, model.embed.weight
        rows, slots = batch.tokens.shape[0], len(batch.lead)
        shape = (rows, config.num_heads, slots, config.head_dim)
        for name in ("keys", "values"):
            object.__setattr__(self, name, tuple(weight.detach().new_zeros(shape) for _ in range(config.num_layers)))
        object.__setattr__(self, "_filled", torch.zeros(rows, slots, dtype=torch.bool, device=weight.device))
        object.__setattr__(self, "index", None)

    @property
    def filled(self) -> Tensor:
        """Slots that were stored, (rows, slots) bool."""
        return self._filled if self.index is None else self._filled[self.index]

    def rows(self, index: Tensor) -> KVCache:
        """The rows `index`, without a copy: what is stored through it is stored here."""
        index = index if self.index is None else self.index[index]
        part = object.__new__(KVCache)
        for name in ("keys", "values", "_filled"):
            object.__setattr__(part, name, getattr(self, name))
        object.__setattr__(part, "index", index)
        return part

    def merge(self, layer: int, key: Tensor, value: Tensor, columns: Tensor, store: bool) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, those of `columns` being the new ones `(rows, heads, columns, head_dim)`."""
        return (
            self._merge(self.keys[layer], key, columns, store),
            self._merge(self.values[layer], value, columns, store),
        )

    def mark(self, columns: Tensor) -> None:
        """Note that `columns` are stored."""
        if self.index is None:
            self._filled[:, columns] = True
        else:
            self._filled[self.index[:, None], columns] = True

    def _merge(self, buffer: Tensor, new: Tensor, columns: Tensor, store: bool) -> Tensor:
        if store and self.index is None:
            buffer.index_copy_(2, columns, new.detach().to(buffer.dtype))
        elif store and self.index is not None:
            buffer[self.index[:, None], :, columns] = new.detach().transpose(1, 2).to(buffer.dtype)
        every = (buffer if self.index is None else buffer[self.index]).to(new.dtype)
        return every if store else every.index_copy(2, columns, new)
