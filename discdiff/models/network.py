"""Network: what every transformer of the library offers to denoisers, objectives and trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from discdiff.layout import TokenBatch, VocabLayout
from discdiff.models import checks, heads, loading, saving
from discdiff.models.cache import KVCache

Objective = Callable[["Network", Tensor], tuple[Tensor, Any]]
"""(model, hidden (batch, slots, width)) -> (loss scalar, extras)."""


@dataclass
class DiscDiffOutput(ModelOutput):
    """hidden (batch, slots, width); loss, a scalar, and extras when an objective or labels are given; logits if asked."""

    loss: Tensor | None = None
    hidden: Tensor | None = None
    logits: Tensor | None = None
    extras: Any = None


class Network(PreTrainedModel):
    """A `PreTrainedModel` over token batches: hidden states of every slot, and a head that is asked for rows of a table.

    A subclass has `config` (a `NetworkConfig`), `vocab`, the modules `embed` and `head` (or its own `tables`), and gives
    `hidden`. A head with a bias gives it as a last column, and hidden states that end
    in a one.
    """

    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    caches = False
    vocab: VocabLayout
    embed: Any
    head: Any

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, dtype: torch.dtype | str = torch.float32, **kwargs: Any) -> Any:
        """The model saved under `path`, in `dtype` (float32 unless said; "auto" is the checkpoint's own).

        A manifest in the folder is compared with its files: all sizes, and SHA-256 of files up to 1 GiB, or of all with
        `check_hashes=True`, of none with False. Raises ValueError where the folder is damaged, a weight is missing,
        superfluous or of another shape, for a pickle, and for a model that does not fit into memory: nothing is left at
        random values.
        """
        return loading.load(cls, super().from_pretrained, path, args, dtype, kwargs)

    def save_pretrained(self, save_directory: Any, *, sealed: bool = True, **options: Any) -> None:
        """Write config.json and safetensors, a manifest of both, and README.md unless that was edited by hand.

        The folder appears complete or not at all; other files in one that exists stay, and a mixture of an old and a new
        model is refused by `from_pretrained`. sealed=False writes without manifest and card. options: as in transformers.
        Raises OSError naming path and free bytes where it does not fit.
        """
        saving.save(self, super().save_pretrained, save_directory, sealed, options)

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
    ) -> Tensor:
        """(batch, slots, width) that `select` and `head_weight` turn into logits; `forward` without checks and extras."""
        raise NotImplementedError(f"{type(self).__name__} gives no hidden states: define hidden(batch, time, ...)")

    @property
    def tables(self) -> list[Any]:
        """Modules with a weight (vocab.total, width) that grow with the vocabulary, the embedding first."""
        return [self.embed, self.head]

    def select(
        self, hidden: Tensor, batch: TokenBatch, index: Tensor, shift: bool = False, columns: Tensor | None = None
    ) -> Tensor:
        """Hidden states (n, width) that predict the flat sites `index` (n,) (row * length + column).

        shift: the slot before predicts, as it does where the configuration says so. columns: the network slots that were
        fed, when not all; sites must be among them.
        """
        source = batch.source(index, shift or self.config.shift)
        return rearrange(hidden, "b s w -> (b s) w").index_select(0, source)

    def head_weight(self, first: int, size: int, extras: Sequence[int] = ()) -> Tensor:
        """Rows (size + len(extras), width) of the head: ids first..first+size-1, a view, then copies of the extras."""
        if not 0 <= first <= first + size <= self.vocab.total or any(not 0 <= i < self.vocab.total for i in extras):
            raise ValueError(
                f"ids {first}..{first + size - 1} and {tuple(extras)} leave the {self.vocab.total} of the head"
            )
        weight = self.head_table
        rows = weight[first : first + size]
        return torch.cat([rows, weight[list(extras)]]) if len(extras) else rows

    @property
    def head_table(self) -> Tensor:
        """The whole head, (vocab.total, width)."""
        return self.tables[-1].weight

    def generate(self, tokens: Any, sampler: Any = "ancestral", **options: Any) -> Any:
        """Fill the masks of token ids (batch, length) by a sampler: `discdiff.generate(self, tokens, sampler, ...)`."""
        from discdiff.sampling import generate

        return generate(self, tokens, sampler, **options)

    def resize(self, vocab: VocabLayout) -> Any:
        """Grow, in place, to a vocabulary with modalities appended: logits of old ids stay, new rows are the mean + noise.

        Optimizers made before hold the old tables. Raises ValueError for a vocabulary that moves an id.
        """
        loading.grow(self, vocab)
        return self

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"the vocabulary of a {type(self).__name__} has a layout: use resize(vocab.extend(modality))")

    def get_input_embeddings(self) -> Any:
        return self.tables[0]

    def set_input_embeddings(self, value: Any) -> None:
        self.embed = value

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.head = new_embeddings

    def get_output_embeddings(self) -> Any:
        return self.tables[-1]
