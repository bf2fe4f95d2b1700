"""HostedModel: a stock transformers model, its class untouched, as a network of the library."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked, to_dict
from discdiff.layout import TokenBatch, VocabLayout, dense_mask
from discdiff.layout.vocab import SPECIALS
from discdiff.models import loading
from discdiff.models.cache import KVCache
from discdiff.models.config import NetworkConfig, as_json, check_count, check_memory
from discdiff.models.features import Features
from discdiff.models.hosts import (
    Family,
    as_values,
    family_of,
    host_config,
    host_size,
    longer,
    set_bias,
    stock_class,
    with_rows,
)
from discdiff.models.network import Network
from discdiff.models.told import told
from discdiff.noise import MASK, Noise

TAIL = 8  # columns behind a head with a bias: zeros, then the bias; a multiple of 8, as matrix units like it
_MASKED = ("sdpa", "eager")  # implementations that take any mask
_FAR = 2**20  # beyond every position
_LARGEST = 2**40  # weights; no model of this kind has that many


class HostedConfig(NetworkConfig):
    """What a `HostedModel` is made of.

    host: the configuration of the stock model, a JSON dictionary with its own vocab_size, so many rows its tables have
    when it is given back. features: what it is told that is no token, as of `DiscDiffConfig`. Raises ValueError as
    `NetworkConfig` does, for an architecture that is not supported and for more slots than the host has positions.
    """

    model_type = "discdiff_hosted"

    host: dict[str, Any] | None = None
    features: dict[str, Any] | None = None
    tie_word_embeddings: bool = False  # of the wrapper, which ties nothing; the host ties what its own says

    @property
    def family(self) -> Family:
        """The host's row in the table of families."""
        return family_of((self.host or {}).get("model_type"))

    @property
    def host_config(self) -> Any:
        """The host's configuration as an object of transformers, as it came."""
        return host_config(self.host or {})

    @property
    def hidden_size(self) -> int:
        """Width of the host."""
        return self.host_config.hidden_size

    @property
    def parameters(self) -> int:
        """Number of weights, small vectors left out."""
        return host_size(self.host_config, self.vocab_layout.total)

    def check(self) -> None:
        """Raise ValueError for a value that cannot be."""
        if self.host is None:  # transformers makes one without arguments to learn the defaults
            return super().check()
        self.host, self.features = as_json("host", self.host), as_json("features", self.features)
        told(self.features)
        config = self.host_config
        super().check()
        checked("time_conditioning", self.time_conditioning, not self.time_conditioning, "a stock model takes no time")
        most = self.family.positions(config)
        checked(
            "max_length", self.max_length, self.max_length <= most, f"this {config.model_type} has {most} positions"
        )
        rows, total = config.vocab_size, self.vocab_layout.total
        checked("vocab", self.vocab, total >= rows, f"its {total} ids are fewer than the {rows} rows of the host")
        checked("host", self.parameters, self.parameters <= _LARGEST, "so many weights fit on no machine")


class HostedModel(Network):
    """A stock model of transformers, `host`, that predicts every slot of a batch: who sees whom is the layout's.

    Decoders are given a mask of four dimensions, so that they see both sides. `openness` r in [0, 1] anneals from the
    causal mask: allowed = layout and (k <= q or u_qk < r), with one u per pair, keyed by `openness_seed` and the same in
    all rows (DiffuLLaMA, arXiv 2410.17891, section 3.2). At 0 a row of text gives the autoregressive model's logits, bit
    for bit. Set `openness = min(1, (step + 1) / steps)` and `openness_seed = step` before a step; neither is saved.
    Padding is seen by nobody, and position ids count valid slots, so that its side does not matter.
    """

    config_class = HostedConfig
    _no_split_modules: Any = None

    def __init__(self, config: HostedConfig, host: Any = None) -> None:
        checked("host", config.host, config.host is not None, "use HostedModel.from_host(model)")
        config.check()
        if host is None and torch.get_default_device().type == "cpu":
            check_memory(config, torch.get_default_dtype().itemsize)
        if host is not None:
            config._attn_implementation = host.config._attn_implementation
            for module in host.modules():
                module._is_hf_initialized = True  # whoever made it: post_init leaves its weights alone
        attention = config._attn_implementation  # None: not chosen yet
        checked(
            "attn_implementation",
            attention,
            attention in (None, *_MASKED),
            "one that takes any mask, 'sdpa' or 'eager'",
        )
        super().__init__(config)
        self.vocab, self.family = config.vocab_layout, config.family
        if host is None:
            own = config.host_config
            own.vocab_size, own._attn_implementation = self.vocab.total, config._attn_implementation
            host = stock_class(self.family)(own)
        self.host = host
        self._no_split_modules = host._no_split_modules
        self._window = self.family.window(host.config)
        self._first = self.family.first_position(host.config)
        self._openness, self.openness_seed = 1.0, 0
        self.features = Features(config.features, config.hidden_size) if config.features else None
        self.post_init()

    @classmethod
    def from_host(
        cls,
        model: Any,
        *,
        mask_token_id: int | None = None,
        vocab_size: int | None = None,
        tokenizer: Any = None,
        shift: bool = False,
        max_length: int | None = None,
        process: Any = None,
        **options: Any,
    ) -> HostedModel:
        """A stock model, or the one in a local folder or under a hub name, as a network; a model given is used, not copied.

        mask_token_id: a text id that is the mask (default the tokenizer's; without one the library's MASK is added).
        vocab_size: ids that the tokenizer defines, those beyond are never generated (default the tokenizer's, else all).
        shift: keep the autoregressive offset, slot i - 1 predicts slot i. max_length: slots of a row, default the host's
        positions. process: what it is trained on. options: of transformers' from_pretrained, such as revision or dtype
        (float32 unless said). New rows are the mean of the old ones plus a little keyed noise.

        Raises ValueError for an unsupported architecture, weights that are missing or do not fit (nothing is left at
        random values; no remote code is run), a mask id out of range, and more slots than positions.
        """
        if isinstance(model, str | Path):
            model = _read(model, options)
        elif options:
            raise ValueError(f"options {sorted(options)} go with a path or name, this is a {type(model).__name__}")
        values = as_values(getattr(model, "config", None))
        family = family_of(values.get("model_type"))
        kind = type(model).__name__
        checked("model", kind, isinstance(model, stock_class(family)), f"give a {family.model}, which has the head")
        known = host_config(values)
        vocab = _vocab(known.vocab_size, mask_token_id, vocab_size, tokenizer)
        most = family.positions(known)
        if max_length is not None:
            check_count("max_length", max_length, most)
        process = process if isinstance(process, dict) or process is None else to_dict(process)
        length = most if max_length is None else max_length
        config = HostedConfig(host=values, vocab=vocab, max_length=length, shift=shift, process=process)  # type: ignore[call-arg, arg-type]
        rows = model.get_input_embeddings().weight.shape[0]
        checked("vocab_size of the host", known.vocab_size, rows == known.vocab_size, f"its embedding has {rows} rows")
        with_rows(model, family, vocab.total, min(rows, vocab.text_size))
        return cls(config, model)

    @property
    def openness(self) -> float:
        """Share r of the pairs k > q that may see each other, 1 = all; see the class."""
        return self._openness

    @openness.setter
    def openness(self, value: float) -> None:
        checked("openness", value, 0 <= value <= 1, "give a share from 0 (causal) to 1 (as the layout says)")
        if value < 1 and not self.family.decoder:
            raise ValueError(f"openness is {value}: a {self.family.model} was never causal, leave it at 1")
        self._openness = float(value)

    def hidden(
        self,
        batch: TokenBatch,
        time: Tensor | float | None = None,
        columns: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """(batch, slots, width) after the last norm and the transform of the head; a one at the end where it has a bias."""
        if columns is not None or cache is not None:
            raise ValueError("a HostedModel has no cache: take a sampler without one")
        place = positions(batch)
        mask, ids = self._mask(batch, place), place + self._first
        trunk, more = getattr(self.host, self.family.trunk), {"use_cache": False} if self.family.decoder else {}
        if self.features is None:
            given = {"input_ids": batch.tokens}
        else:
            given = {"inputs_embeds": self.features(self.tables[0](batch.tokens), batch, None)}
        x = trunk(**given, attention_mask=mask, position_ids=ids, **more).last_hidden_state
        if self.family.transform is not None:
            x = self.family.transform(self.host, x)
        return x if self._bias is None else F.pad(F.pad(x, (0, TAIL - 1)), (0, 1), value=1.0)

    @property
    def tables(self) -> list[Any]:
        return [self.host.get_input_embeddings(), self.host.get_output_embeddings()]

    @property
    def head_table(self) -> Tensor:
        weight, bias = self.tables[-1].weight, self._bias
        return weight if bias is None else torch.cat([F.pad(weight, (0, TAIL - 1)), bias[:, None]], 1)

    def resize(self, vocab: VocabLayout) -> HostedModel:
        old, size = self._bias, self.vocab.text_size
        super().resize(vocab)
        if old is not None:
            set_bias(self.host, self.family, longer(old, vocab.total, size))
        self.host.config.vocab_size = vocab.total
        return self

    def to_host(self) -> Any:
        """The stock model, its tables cut to the rows it came with; all other weights are shared with this one. What it is told
        besides tokens stays behind.

        Raises ValueError while it carries LoRA adapters.
        """
        if any("lora_" in name for name, _ in self.named_parameters()):
            raise ValueError("the host carries LoRA adapters: merge_lora(model) first")
        host = copy.deepcopy(self.host, {id(p): p for p in self.host.parameters()})
        with_rows(host, self.family, self.config.host_config.vocab_size, 0)
        return host

    def set_input_embeddings(self, value: Any) -> None:
        self.host.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.host.set_output_embeddings(new_embeddings)

    @property
    def _bias(self) -> Tensor | None:
        return self.tables[-1].bias

    def _mask(self, batch: TokenBatch, place: Tensor) -> Any:
        """What the trunk takes as attention_mask: True = may attend; of local layers beside that of the others."""
        mask, r = dense_mask(batch), self._openness
        if r == 0 and mask is None:
            return None  # a decoder's own mask: its computation, bit for bit
        query, key = place[:, None, :, None], place[:, None, None, :]
        if mask is None:
            mask = torch.ones_like(query == key)
        if r < 1:
            seen = key <= query
            mask = mask & (seen | self._opened(place) if r > 0 else seen)
        own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        masks = {"full_attention": mask}
        if self._window is not None:
            masks["sliding_attention"] = (mask & ((query - key).abs() <= self._window)) | own
        if self.config._attn_implementation == "eager":
            least = torch.finfo(self.dtype).min
            masks = {name: torch.zeros_like(m, dtype=self.dtype).masked_fill(~m, least) for name, m in masks.items()}
        return masks["full_attention"] if self._window is None else masks

    def _opened(self, place: Tensor) -> Tensor:
        """Keyed draws u < r for every pair of positions, (rows of place, 1, slots, slots) bool."""
        slots = torch.arange(place.shape[1], device=place.device)
        pair = (slots[:, None] * _FAR + slots).view(1, -1)
        noise = Noise.seeded(self.openness_seed, torch.ones(1, 1, dtype=torch.bool, device=place.device))
        drawn = (Noise(noise.key, pair).uniform(MASK) < self._openness).view(len(slots), len(slots))
        return drawn[place[:, None, :, None], place[:, None, None, :]]


def positions(batch: TokenBatch) -> Tensor:
    """Place of each slot among the valid ones of its sample (of its copy, when doubled): (1 or batch, slots) int64."""
    layout, slots = batch.layout, batch.tokens.shape[1]
    if batch.unrestricted:
        return (torch.arange(slots, device=batch.tokens.device) % layout.sequence)[None]
    valid = batch.valid.long()
    before = valid.cumsum(1) - valid
    part = batch.sample * 2 + (batch.slot >= layout.sequence)
    begins = F.pad(part[:, 1:] != part[:, :-1], (1, 0), value=True)
    return before - (before * begins).cummax(1).values


def _vocab(rows: int, mask: int | None, size: int | None, tokenizer: Any) -> VocabLayout:
    """Text ids as the tokenizer has them; padded so that no row of the host is lost."""
    ends: dict[str, int | None] = {}
    if tokenizer is not None:
        size = max(tokenizer.get_vocab().values()) + 1 if size is None else size
        mask = tokenizer.mask_token_id if mask is None else mask
        ends = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    size = rows if size is None else size
    check_count("vocab_size", size, 2**31)
    if mask is not None:
        is_id = isinstance(mask, int) and not isinstance(mask, bool) and 0 <= mask < max(rows, size)
        checked("mask_token_id", mask, is_id, f"give one of the ids 0..{max(rows, size) - 1}, or None to add a mask")
        size = size + 1 if mask == size else size  # the first id beyond the tokenizer: text, since PAD would be there
        checked(
            "mask_token_id", mask, mask < size + SPECIALS, f"vocab_size {size} does not reach it, give a larger one"
        )
    used, multiple = size + SPECIALS, 128
    while -(-used // multiple) * multiple < rows:
        multiple += 128
    legal = {name: x if x is not None and x < size and x != mask else None for name, x in ends.items()}
    return VocabLayout(size, (), mask, multiple, legal.get("bos_id"), legal.get("eos_id"))


def _read(path: str | Path, options: dict[str, Any]) -> Any:
    """The stock model in a folder or under a hub name, all of it or an error."""
    from transformers import PreTrainedConfig

    if options.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code is True: no code of a checkpoint is run here, leave it out")
    loading.check_folder(path, options)
    place = {name: options[name] for name in loading._PLACE if name in options}
    values, _ = PreTrainedConfig.get_config_dict(str(path), **place)
    family = family_of(values.get("model_type"))
    config, options = host_config(values), {"dtype": torch.float32, **options}
    if options.get("device_map") is None:
        size = HostedConfig(host=as_values(config), vocab=_vocab(config.vocab_size, None, None, None), max_length=1)  # type: ignore[call-arg, arg-type]
        check_memory(size, options["dtype"].itemsize if isinstance(options["dtype"], torch.dtype) else 2)
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        model, info = stock_class(family).from_pretrained(str(path), config=config, **options)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any type, as in loading.load
        raise ValueError(f"the weights in {path} cannot be loaded: {type(error).__name__}: {error}") from error
    wrong = {
        kind: sorted(k for k in map(str, keys) if not k.startswith(family.unused))
        for kind, keys in info.items()
        if keys
    }
    what = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys)}" for kind, keys in wrong.items() if keys)
    if what:
        raise ValueError(
            f"the weights in {path} are not all of a {family.model}: {what}. Nothing is left at random values"
        )
    return model
