"""DiscDiffModel: one bidirectional transformer over one sequence of tokens of any modality."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from discdiff.layout import TokenBatch
from discdiff.models.attention import FLEX, Attend, attend_all, attend_columns, compiled_flex
from discdiff.models.blocks import Block, RMSNorm, Shared, initialise, linear
from discdiff.models.cache import KVCache
from discdiff.models.config import DiscDiffConfig, check_memory
from discdiff.models.features import Features
from discdiff.models.inputs import SlotInputs, SlotOutputs, TimeCondition
from discdiff.models.network import Network
from discdiff.models.rotary import rotary
from discdiff.types import per_position


class DiscDiffModel(Network):
    """Pre-norm transformer with rotary positions over (t, h, w), SwiGLU and a head tied to the embedding.

    Attention follows the batch's layout. "sdpa" (default) takes a dense mask; `attn_implementation="flex_attention"` uses
    FlexAttention for float32 and narrower on CUDA with heads of at least 16 and no cache, and SDPA elsewhere. Weights are
    drawn by the global generator, as in all of transformers; `seeded` draws them by its own.
    """

    config_class = DiscDiffConfig
    caches = True
    _supports_flex_attn = True
    _no_split_modules = ["Block"]
    _tied_weights_keys = {"head.weight": "embed.weight"}

    def __init__(self, config: DiscDiffConfig) -> None:
        config.check()
        if torch.get_default_device().type == "cpu":
            check_memory(config, torch.get_default_dtype().itemsize)
        super().__init__(config)
        if config._attn_implementation not in ("sdpa", FLEX):
            raise ValueError(f"attn_implementation is {config._attn_implementation!r}: choose 'sdpa' or '{FLEX}'")
        self.vocab = config.vocab_layout
        self.embed = nn.Embedding(self.vocab.total, config.hidden_size)
        self.inputs = SlotInputs(config)
        self.time = TimeCondition(config) if config.time_conditioning else None
        self.features = Features(config.features, config.hidden_size) if config.features else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.outputs = SlotOutputs(config) if config.max_depth > 1 else None
        self.head = linear(config.hidden_size, self.vocab.total)
        self.post_init()

    @classmethod
    def seeded(cls, config: DiscDiffConfig, seed: int, dtype: torch.dtype = torch.float32) -> DiscDiffModel:
        """A model whose first weights depend on `seed` only; the global generator is neither read nor moved."""
        check_memory(config, dtype.itemsize)
        with torch.device("meta"):
            model = cls(config)
        model = model.to(dtype).to_empty(device="cpu")
        model.tie_weights()
        generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if module is not model.head or not config.tie_word_embeddings:
                initialise(module, config.initializer_range, generator)
        return model

    def hidden(
        self,
        batch: TokenBatch,
        time: Tensor | float | None = None,
        columns: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """(batch, slots, width) after the last norm; `forward` without its checks and extras.

        inputs (batch, slots, width): what enters the first block in place of the embedded tokens of the batch.
        """
        lead = batch.lead if columns is None else batch.lead[columns]
        slot = (batch.slot[:1] if batch.unrestricted else batch.slot)[:, lead]
        attend = self._attend(batch, columns, cache, store)
        condition = late = None
        if self.time is not None and time is not None:
            levels, late = distinct(at_slots(time, batch.tokens, lead))
            condition = self.time(levels)
        x = self.inputs(self.embed, batch, columns) if inputs is None else inputs
        if self.features is not None:
            x = self.features(x, batch, columns)
        cos, sin = rotary(batch, slot, self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.blocks:
            x = block(x, condition, Shared(cos, sin, attend, late))
        if cache is not None and columns is not None and store:
            cache.mark(columns)
        return self.norm(x)

    def select(
        self, hidden: Tensor, batch: TokenBatch, index: Tensor, shift: bool = False, columns: Tensor | None = None
    ) -> Tensor:
        """Hidden states (n, width) that predict the flat sites `index` (n,) (row * length + column).

        As `Network.select`; columns: the network slots that were fed, when not all; sites must be among them.
        """
        source, flat = batch.source(index, shift or self.config.shift), rearrange(hidden, "b s w -> (b s) w")
        if columns is not None:
            slots = len(batch.lead)
            place = torch.full(
                (slots,), len(flat), device=columns.device
            )  # beyond the end: what was not fed is an error
            place[columns] = torch.arange(len(columns), device=columns.device)
            source = torch.div(source, slots, rounding_mode="floor") * len(columns) + place[source % slots]
            if source.device.type == "cpu" and bool((source >= len(flat)).any()):
                raise ValueError(f"a site asks for a network slot that is not among the {len(columns)} columns fed")
        if self.outputs is None or not batch.layout.packed:
            return flat.index_select(0, source)
        depth = batch.layout.tables(index.device).depth[batch.slot.reshape(-1).index_select(0, index)]
        return self.outputs(flat, source, depth)

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range)

    def _attend(self, batch: TokenBatch, columns: Tensor | None, cache: KVCache | None, store: bool) -> Attend:
        if cache is not None and columns is not None:
            return attend_columns(batch, columns, cache, store)
        is_flex = self.config._attn_implementation == FLEX and batch.tokens.is_cuda and self.config.head_dim >= 16
        return attend_all(batch, compiled_flex() if is_flex and self.dtype != torch.float64 else None)


def at_slots(time: Tensor | float, tokens: Tensor, lead: Tensor) -> Tensor:
    value = per_position(time, tokens)
    if tuple(value.shape) not in ((), (len(tokens), 1), tuple(tokens.shape)):
        raise ValueError(
            f"time has shape {tuple(value.shape)}: give a scalar, ({len(tokens)},) or {tuple(tokens.shape)}"
        )
    value = value.expand(tokens.shape) if value.ndim == 0 else value
    same = value.shape[1] == 1 or value.stride(1) == 0  # one time per row: the condition is computed once per row
    return value[:, :1] if same else value[:, lead]


def distinct(time: Tensor) -> tuple[Tensor, Tensor | None]:
    """Times (batch, 2) and where the second holds (batch, slots), if no row has more than two; else `time` and None.

    A noised part and a given one are two; what the network makes of a time is then computed twice a row, not once a slot.
    On a CPU only: elsewhere looking would wait for the device.
    """
    if time.device.type != "cpu" or time.shape[1] < 3:
        return time, None
    early, last = time.aminmax(dim=1, keepdim=True)
    late = time == last
    return (torch.cat([early, last], 1), late) if bool((late | (time == early)).all()) else (time, None)
