"""The optimizers of a run, and the blocks of a model that some settings single out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def blocks_of(model: nn.Module, setting: str) -> list[nn.Module]:
    """The repeated blocks a model names in `_no_split_modules`. Raises ValueError, naming the setting, for none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [m for m in model.modules() if type(m).__name__ in names]
    if not blocks:
        raise ValueError(f"{setting}, but {type(model).__name__} names no blocks in _no_split_modules: leave it off")
    return blocks


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks in place; equal ones are compiled once."""
    for block in blocks_of(model, "compile is True"):
        block.compile()


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the weight matrices of a model's blocks, `torch.optim.AdamW` for everything else.

    Muon's steps are scaled to AdamW's size, 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv 2502.16982), so both
    take one learning rate and one weight decay; vectors do not decay. Raises ValueError for a model without blocks.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        inside = [
            m.weight
            for block in blocks_of(model, 'optimizer is "muon"')
            for m in block.modules()
            if isinstance(m, nn.Linear)
        ]
        matrices = {id(p): p for p in inside if p.requires_grad}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
        tables, vectors = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
        muon = torch.optim.Muon(matrices.values(), lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        groups: list[dict[str, Any]] = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr, betas, weight_decay=weight_decay, fused=True)
        super().__init__([*muon.param_groups, *adamw.param_groups], {"lr": lr})
        self._parts = ((muon, 1), (adamw, len(self.param_groups) - 1))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of both, over this optimizer's own groups and state, which loading may have replaced."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, count in self._parts:
            part.param_groups, part.state = self.param_groups[first : first + count], self.state
            part.step()
            first += count
        return loss
