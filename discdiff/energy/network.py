"""EnergyModel: a bidirectional network that gives a noisy row and a clean candidate for it one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.models import DiscDiffConfig, DiscDiffModel, checks, loading, saving
from discdiff.models.blocks import initialise, linear
from discdiff.models.config import own_fields

Objective = Callable[["EnergyModel", Tensor], tuple[Tensor, Any]]
"""(model, energies (n,)) -> (loss scalar, extras)."""


class EnergyConfig(DiscDiffConfig):
    """Shape of an `EnergyModel`: that of its trunk, whose `layout` and `process` stay those of the denoiser it comes from.

    Raises ValueError as `DiscDiffConfig` does, and for tie_word_embeddings=False: there is no head.
    """

    model_type = "discdiff_energy"

    @property
    def parameters(self) -> int:
        """Number of weights, small vectors left out."""
        return super().parameters + 3 * self.hidden_size**2

    def check(self) -> None:
        """Raise ValueError for a value that cannot be."""
        super().check()
        checked("tie_word_embeddings", self.tie_word_embeddings, self.tie_word_embeddings, "an energy has no head")


@dataclass
class EnergyOutput(ModelOutput):
    """energy (n,), float32 or float64; loss, a scalar, and extras when an objective is given."""

    loss: Tensor | None = None
    energy: Tensor | None = None
    extras: Any = None


class EnergyModel(PreTrainedModel):
    """E(x0, x_t, t): x_t and x0 embedded and fused at every slot, the denoiser's blocks, the mean over valid slots, an MLP.

    fuse (2 H -> H) starts as the mean of the two embeddings, which is the denoiser's own input where they agree; the last
    layer starts at zero, so that E = 0 and Z = 1 exactly. Learn it by `NoiseContrastive`, use it by `LearnedEnergy` (EDLM
    arXiv 2410.21357 section 3.2 and its released network).
    """

    config_class = EnergyConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["Block"]

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.trunk = DiscDiffModel(config)
        self.trunk.outputs = None  # levels of a packed slot are predicted apart, but weighed together
        self.fuse = linear(2 * width, width, "identity")
        self.first = linear(width, width, bias=True)
        self.last = linear(width, 1, 0.0, bias=True)
        self.post_init()

    @classmethod
    def from_denoiser(cls, model: DiscDiffModel, seed: int = 0) -> EnergyModel:
        """A new energy whose trunk has a copy of the denoiser's weights; `seed` draws those of the MLP's first layer.

        The denoiser stays as it is. Raises ValueError for anything but a `DiscDiffModel`.
        """
        checked("model", type(model).__name__, isinstance(model, DiscDiffModel), "give a DiscDiffModel")
        shape = {name: getattr(model.config, name) for name in own_fields(DiscDiffConfig)}
        config = EnergyConfig(
            **{**shape, "tie_word_embeddings": True}, attn_implementation=model.config._attn_implementation
        )
        with torch.device("meta"):
            energy = cls(config)
        energy = energy.to(model.dtype).to_empty(device="cpu")
        energy.tie_weights()
        generator = torch.Generator().manual_seed(seed)
        for layer in (energy.fuse, energy.first, energy.last):
            initialise(layer, config.initializer_range, generator)
        weights = {**model.state_dict(), "head.weight": model.embed.weight}
        energy.trunk.load_state_dict({name: weights[name] for name in energy.trunk.state_dict()})
        return energy.to(model.device).eval()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, dtype: torch.dtype | str = torch.float32, **kwargs: Any) -> Any:
        """The energy saved under `path`, in `dtype`; raises ValueError as `DiscDiffModel.from_pretrained` does."""
        return loading.load(cls, super().from_pretrained, path, args, dtype, kwargs)

    def save_pretrained(self, save_directory: Any, *, sealed: bool = True, **options: Any) -> None:
        """As `Network.save_pretrained`: whole or not at all, with a manifest and a model card."""
        saving.save(self, super().save_pretrained, save_directory, sealed, options)

    def forward(
        self, batch: TokenBatch, clean: Tensor, time: Tensor | float | None = None, objective: Objective | None = None
    ) -> EnergyOutput:
        """Energies of clean rows given noisy ones.

        batch: the noisy rows. clean (batch, length): global ids of the candidates, one per row; `batch.repeat(k)` asks
        for k. time: noise level as in `DiscDiffModel`. objective: `(model, energies) -> (loss, extras)`, run in here so
        that the hooks of parallel training see it. Raises ValueError for what the trunk cannot take.
        """
        checks.check_batch(self.trunk, batch)
        _check_clean(batch, clean, self.trunk.vocab.total)
        if self.trunk.time is not None and time is None:
            raise ValueError("time is None: the denoiser was made with time_conditioning=True, give the noise level")
        energy = self.energy(batch, clean, time)
        loss, extras = (None, None) if objective is None else objective(self, energy)
        return EnergyOutput(loss, energy, extras)

    def energy(self, batch: TokenBatch, clean: Tensor, time: Tensor | float | None = None) -> Tensor:
        """(batch,) energies; `forward` without its checks and extras."""
        trunk = self.trunk
        noisy, whole = (trunk.inputs(trunk.embed, batch._replace(tokens=x), None) for x in (batch.tokens, clean))
        fused = self.fuse(torch.cat([noisy, whole], -1) / 2).to(noisy.dtype)
        hidden = trunk.hidden(batch, time, inputs=fused)
        with torch.autocast(hidden.device.type, enabled=False):  # half precision would blur what candidates differ in
            wide = hidden if hidden.dtype == torch.float64 else hidden.float()
            present = batch.valid[:, batch.lead, None].to(wide.dtype)
            pooled = (wide * present).sum(1) / present.sum(1).clamp(min=1)
            out = self.last(F.silu(self.first(pooled.to(self.first.weight.dtype))))
        return out[:, 0].to(wide.dtype)

    def get_input_embeddings(self) -> Any:
        return self.trunk.embed

    def set_input_embeddings(self, value: Any) -> None:
        self.trunk.embed = value

    def _init_weights(self, module: Any) -> None:
        initialise(module, self.config.initializer_range)


def _check_clean(batch: TokenBatch, clean: Any, total: int) -> None:
    if not isinstance(clean, Tensor) or clean.shape != batch.tokens.shape or clean.dtype != torch.int64:
        what = f"{clean.dtype} {tuple(clean.shape)}" if isinstance(clean, Tensor) else type(clean).__name__
        raise ValueError(f"clean is {what}: give int64 ids of shape {tuple(batch.tokens.shape)}, a candidate per row")
    if clean.device.type == "cpu" and not 0 <= int(clean.min()) <= int(clean.max()) < total:
        low, high = int(clean.min()), int(clean.max())
        raise ValueError(f"clean reaches from {low} to {high}, the ids of the vocabulary from 0 to {total - 1}")


AutoConfig.register("discdiff_energy", EnergyConfig, exist_ok=True)
AutoModel.register(EnergyConfig, EnergyModel, exist_ok=True)
