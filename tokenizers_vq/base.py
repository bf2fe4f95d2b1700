"""The contract of every modality tokenizer: raw data to codes `(batch, slots, depth)`, coarse first, and back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tokenizers_vq.config import TokenizerConfig
from tokenizers_vq.nearest import embed, residual_codes
from tokenizers_vq.quantizers import Quantised, Quantizer

ABSENT = -1
"""Code of a level that a slot does not have."""


class TokenizerOutput(NamedTuple):
    """codes (batch, slots, depth) int64; mask (batch, slots) bool, True for slots that hold data; grid: slots per axis;
    aux: what a modality adds, such as the number of values that were clipped.
    """

    codes: Tensor
    mask: Tensor
    grid: tuple[int, ...]
    aux: dict[str, Any]


class Latents(NamedTuple):
    """What an encoder gives before it is quantised: h (batch, slots, code_dim), mask (batch, slots) bool, slots per axis."""

    h: Tensor
    mask: Tensor
    grid: tuple[int, ...]


class TokenizerTrainOutput(NamedTuple):
    """Loss of a batch, its reconstruction, codes (batch, slots, depth), and the parts of the loss by name."""

    loss: Tensor
    reconstruction: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class ModalityTokenizer(PreTrainedModel):
    """Base of all tokenizers. A new one writes `token_shape`, `encode_latents`, `decode_embeddings` and, where it is trained,
    `losses`; one without a trained codebook (config.quantizer "none") also `codebook`.

    A slot's embedding is the sum over its levels, sum_j e(i_j; j): vector quantisation, residual quantisation and products
    (each level in dimensions of its own) alike. `decode` sees codes only; an absent level (-1) adds nothing, fewer levels
    than config.num_quantizers are the coarse ones. `tokenizers_vq.testing.check_tokenizer` holds all this to a tokenizer.
    """

    config_class = TokenizerConfig
    main_input_name = "x"
    base_model_prefix = "tokenizer"
    fits: ClassVar[bool] = False  # True: `fit` sets it from data, no gradient does

    config: Any

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        config.check()
        self.quantizer = None if config.quantizer == "none" else Quantizer(config)

    # ---- what a tokenizer writes

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, ...) to (batch, slots, depth) without running anything. Raises ValueError for data it cannot take."""
        raise NotImplementedError(f"{type(self).__name__} must define token_shape")

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Raw data (batch, ...) to latents; mask: what of x is data, True, along its time axis."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_latents")

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to raw data, differentiable in e; grid: slots per axis where sizes vary."""
        raise NotImplementedError(f"{type(self).__name__} must define decode_embeddings")

    def losses(self, x: Tensor, reconstruction: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Parts of the training loss by name, already weighted."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradients: call fit")

    # ---- what all have

    @property
    def codebook_size(self) -> int:
        """Codes of a level."""
        return self.config.codebook_size

    @property
    def depth(self) -> int:
        """Levels of a slot."""
        return self.config.num_quantizers

    @property
    def codebook(self) -> Tensor:
        """Embeddings of the codes (depth, codebook_size, code_dim)."""
        if self.quantizer is None:
            raise NotImplementedError(f"{type(self).__name__} has quantizer 'none' and must define its codebook")
        return self.quantizer.codebook

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """Codes of raw data; slots without data have code 0 and mask False. Raises ValueError for data it cannot take."""
        latents = self.encode_latents(x, mask)
        codes = self.quantize(latents.h).masked_fill(~latents.mask[..., None], 0)
        return TokenizerOutput(codes, latents.mask, latents.grid, {})

    def quantize(self, h: Tensor) -> Tensor:
        """Latents (..., code_dim) to codes (..., depth)."""
        return self.embeddings_to_codes(h) if self.quantizer is None else self.quantizer.encode(h)

    def codes_to_embeddings(self, codes: Tensor) -> Tensor:
        """Codes (batch, slots, depth or fewer) to their summed embeddings (batch, slots, code_dim).

        Raises ValueError for codes outside -1..codebook_size-1 and more levels than there are.
        """
        if codes.shape[-1] > self.depth or (
            codes.numel() and not ABSENT <= int(codes.min()) <= int(codes.max()) < self.codebook_size
        ):
            span = f"{int(codes.min())}..{int(codes.max())}" if codes.numel() else "empty"
            raise ValueError(
                f"codes {tuple(codes.shape)} span {span}: at most {self.depth} levels of 0..{self.codebook_size - 1}, "
                f"{ABSENT} for an absent one"
            )
        return embed(codes, self.codebook)

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """Embeddings (..., code_dim) to the greedy codes (..., depth): exact for one level, within the last level's
        error for several.
        """
        return residual_codes(e.flatten(0, -2), self.codebook).view(*e.shape[:-1], -1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, depth or fewer) to raw data; grid and mask as `encode` gave them."""
        return self.decode_embeddings(self.codes_to_embeddings(codes), grid, mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> TokenizerTrainOutput:
        """One step of training: encode, quantise straight through, decode, and the losses with the codebook's."""
        latents = self.encode_latents(x, mask)
        quantised = self.quantise_latents(latents)
        reconstruction = self.decode_embeddings(quantised.embeddings, latents.grid, latents.mask)
        losses = {**self.losses(x, reconstruction, mask), "codebook": quantised.loss}
        return TokenizerTrainOutput(torch.stack(list(losses.values())).sum(), reconstruction, quantised.codes, losses)

    def quantise_latents(self, latents: Latents) -> Quantised:
        """Straight-through embeddings of latents."""
        if self.quantizer is None:
            raise NotImplementedError(f"{type(self).__name__} has no trained codebook: call fit")
        whole = bool(latents.mask.all())
        return self.quantizer(latents.h, None if whole else latents.mask)

    # ---- folders

    def save_pretrained(self, folder: Any, *, state_dict: Any = None, push_to_hub: bool = False, **hub: Any) -> None:  # type: ignore[override]
        """Configuration and weights (`state_dict`, or its own) into a folder, which is never left half-written.

        push_to_hub: also to the hub, by the options repo_id, token, private, commit_message. Raises ValueError for a file.
        """
        target = Path(folder).resolve()
        hub.pop("save_original_format", None)  # of a trainer: this format is the original one
        if target.is_file():
            raise ValueError(f"{target} is a file: give a folder")
        if hub and not push_to_hub:
            raise ValueError(f"save_pretrained does not know {sorted(hub)}: options of the hub need push_to_hub=True")
        temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(temporary)
            tensors = self.state_dict() if state_dict is None else state_dict
            # clones: a book shared among levels is one tensor under several names
            tensors = {name: x.detach().clone().contiguous() for name, x in tensors.items()}
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            if not target.exists():
                temporary.rename(target)
            else:
                for path in sorted(temporary.iterdir()):
                    path.replace(target / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", target.name), **hub)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; float32 where there are none."""
        return next((x.dtype for x in self.parameters() if x.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the weights and buffers; the processor where there are none."""
        return next((x.device for x in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @classmethod
    def from_pretrained(cls, folder: Any, *, config: Any = None, **options: Any) -> Self:  # type: ignore[override]
        """The tokenizer that `save_pretrained` wrote to a folder, or a hub name (options revision, token, cache_dir,
        local_files_only), in evaluation mode.

        Raises ValueError, naming the folder and the names, where weights are missing, superfluous or of another shape.
        """
        hub = {
            name: options.pop(name)
            for name in ("revision", "token", "cache_dir", "local_files_only")
            if name in options
        }
        for name in ("_commit_hash", "trust_remote_code", "adapter_kwargs", "_from_auto", "code_revision"):
            options.pop(name, None)  # what AutoModel passes on
        if options:
            raise ValueError(
                f"from_pretrained does not know {sorted(options)}: it takes config, revision, token, cache_dir"
            )
        path = Path(folder)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"], **hub))
        config = cls.config_class.from_pretrained(path) if config is None else config
        model = cls(config)
        try:
            stored = load_file(path / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path / 'model.safetensors')!r} cannot be read: {error}") from error
        model.place(stored, path)
        return model.eval()

    @torch.no_grad()
    def place(self, stored: dict[str, Tensor], path: Path) -> None:
        """Take over stored tensors. Raises ValueError unless names and shapes agree exactly."""
        own = self.state_dict()
        missing = sorted(set(own) - set(stored))
        wrong = [n for n, x in stored.items() if n not in own or own[n].shape != x.shape or own[n].dtype != x.dtype]
        if missing or wrong:
            raise ValueError(
                f"{str(path)!r} is of another tokenizer: missing {missing[:4]}, unknown or unlike {wrong[:4]}"
            )
        for name, x in stored.items():
            own[name].copy_(x)

    def _init_weights(self, module: Any) -> None:
        """Modules initialise themselves."""
