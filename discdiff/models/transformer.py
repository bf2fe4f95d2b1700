"""DiscDiffModel: one bidirectional transformer over one sequence of tokens of any modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from discdiff.layout import TokenBatch, VocabLayout
from discdiff.models import checks, heads, loading
from discdiff.models.attention import FLEX, Attend, attend_all, attend_columns, compiled_flex
from discdiff.models.blocks import Block, RMSNorm, Shared, initialise, linear
from discdiff.models.cache import KVCache
from discdiff.models.config import DiscDiffConfig, check_memory
from discdiff.models.inputs import SlotInputs, SlotOutputs, TimeCondition
from discdiff.models.rotary import rotary
from discdiff.types import per_position

Objective = Callable[["DiscDiffModel", Tensor], tuple[Tensor, Any]]


@dataclass
class DiscDiffOutput(ModelOutput):
    """hidden (batch, slots, width); loss, a scalar, and extras when an objective or labels are given; logits if asked."""

    loss: Tensor | None = None
    hidden: Tensor | None = None
    logits: Tensor | None = None
    extras: Any = None


class DiscDiffModel(PreTrainedModel):
    """Pre-norm transformer with rotary positions over (t, h, w), SwiGLU and a head tied to the embedding.

    Attention follows the batch's layout. "sdpa" (default) takes a dense mask; `attn_implementation="flex_attention"` uses
    FlexAttention for float32 and narrower on CUDA with heads of at least 16 and no cache, and SDPA elsewhere. Weights are
    drawn by the global generator, as in all of transformers; `seeded` draws them by its own.
    """

    config_class = DiscDiffConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
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

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, dtype: torch.dtype | str = torch.float32, **kwargs: Any) -> Any:
        """The model saved under `path`, in `dtype` (float32 unless said; "auto" is the checkpoint's own).

        Raises ValueError where a weight is missing, superfluous or of another shape, for a pickle, and for a model that
        does not fit into memory: nothing is left at random values.
        """
        return loading.load(cls, super().from_pretrained, path, args, dtype, kwargs)

    def forward(
        self,
        batch: TokenBatch | None = None,
        input_ids: Tensor | None = None,
        time: Tensor | float | None = None,
        labels: Tensor | None = None,
        objective: Objective | None = None,
        output_logits: bool = False,
        columns: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
        attention_mask: Tensor | None = None,
    ) -> DiscDiffOutput:
        """Hidden states of a batch, and what is asked beside them.

        batch: the input; or input_ids (batch, length), one text segment, with attention_mask for padding. time: noise
        level, scalar, (batch,) or (batch, length), read only with `time_conditioning`; a packed slot has that of its first
        level. labels (batch, length), -100 = none: loss is the summed cross-entropy over the legal ids, in nats, divided
        by batch * length. objective: `(model, hidden) -> (loss, extras)`, run in here so that the hooks of parallel
        training see it. output_logits: (batch, length, vocab.total), -inf where illegal. columns (n,): feed these network
        slots only, which attend to themselves and to the slots of `cache`; `store` keeps their keys and values.
        """
        batch = checks.one_batch(self, batch, input_ids, attention_mask)
        checks.check_batch(self, batch)
        checks.check_request(self, batch, time, labels, objective, output_logits, columns, cache, store)
        hidden = self.hidden(batch, time, columns, cache, store)
        loss, extras = None, None
        if objective is not None:
            loss, extras = objective(self, hidden)
        elif labels is not None:
            loss = heads.cross_entropy(self, hidden, batch, labels)
        return DiscDiffOutput(loss, hidden, heads.logits(self, hidden, batch) if output_logits else None, extras)

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
        condition = None if self.time is None or time is None else self.time(_at_slots(time, batch.tokens, lead))
        x = self.inputs(self.embed, batch, columns) if inputs is None else inputs
        cos, sin = rotary(batch, slot, self.config.head_dim, self.config.rope_theta, x.dtype)
        for block in self.blocks:
            x = block(x, condition, Shared(cos, sin, attend))
        if cache is not None and columns is not None and store:
            cache.mark(columns)
        return self.norm(x)

    def generate(self, tokens: Any, sampler: Any = "ancestral", **options: Any) -> Any:
        """Fill the masks of token ids (batch, length) by a sampler: `discdiff.generate(self, tokens, sampler, ...)`."""
        from discdiff.sampling import generate

        return generate(self, tokens, sampler, **options)

    def select(
        self, hidden: Tensor, batch: TokenBatch, index: Tensor, shift: bool = False, columns: Tensor | None = None
    ) -> Tensor:
        """Hidden states (n, width) that predict the flat sites `index` (n,) (row * length + column).

        shift: the slot before predicts. columns: the network slots that were fed, when not all; sites must be among them.
        """
        source, flat = batch.source(index, shift), rearrange(hidden, "b s w -> (b s) w")
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

    def head_weight(self, first: int, size: int, extras: Sequence[int] = ()) -> Tensor:
        """Rows (size + len(extras), width) of the head: ids first..first+size-1, a view, then copies of the extras."""
        if not 0 <= first <= first + size <= self.vocab.total or any(not 0 <= i < self.vocab.total for i in extras):
            raise ValueError(
                f"ids {first}..{first + size - 1} and {tuple(extras)} leave the {self.vocab.total} of the head"
            )
        rows = self.head.weight[first : first + size]
        return torch.cat([rows, self.head.weight[list(extras)]]) if len(extras) else rows

    def resize(self, vocab: VocabLayout) -> DiscDiffModel:
        """Grow, in place, to a vocabulary with modalities appended: logits of old ids stay, new rows are the mean + noise.

        Optimizers made before hold the old tables. Raises ValueError for a vocabulary that moves an id.
        """
        loading.grow(self, vocab)
        return self

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("the vocabulary of a DiscDiffModel has a layout: use resize(vocab.extend(modality))")

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range)

    def _attend(self, batch: TokenBatch, columns: Tensor | None, cache: KVCache | None, store: bool) -> Attend:
        if cache is not None and columns is not None:
            return attend_columns(batch, columns, cache, store)
        is_flex = self.config._attn_implementation == FLEX and batch.tokens.is_cuda and self.config.head_dim >= 16
        return attend_all(batch, compiled_flex() if is_flex and self.dtype != torch.float64 else None)


def _at_slots(time: Tensor | float, tokens: Tensor, lead: Tensor) -> Tensor:
    value = per_position(time, tokens)
    if tuple(value.shape) not in ((), (len(tokens), 1), tuple(tokens.shape)):
        raise ValueError(
            f"time has shape {tuple(value.shape)}: give a scalar, ({len(tokens)},) or {tuple(tokens.shape)}"
        )
    value = value.expand(tokens.shape) if value.ndim == 0 else value
    same = value.shape[1] == 1 or value.stride(1) == 0  # one time per row: the condition is computed once per row
    return value[:, :1] if same else value[:, lead]
