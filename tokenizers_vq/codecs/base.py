"""What wrappers share: the wrapped network, built from its own configuration, and its codebook as one table."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ModalityTokenizer
from tokenizers_vq.config import TokenizerConfig, checked

ORIGIN = ("_name_or_path", "_commit_hash", "_class_name", "_diffusers_version", "_use_default_values")


class CodecConfig(TokenizerConfig):
    """codec: the wrapped network's own configuration; codebook_size, code_dim and rate follow from it."""

    model_type = "discdiff_codec"

    quantizer: str = "none"
    codec: dict[str, Any] | None = None

    def check(self) -> None:
        self.codec = dict(self.codec or {})
        super().check()


class CodecTokenizer(ModalityTokenizer):
    """A tokenizer that holds a network of another library as `codec`; one writes `build`, `books` and the two ways.

    The codec's weights are saved with it, so that `load_tokenizer` needs no other folder.
    """

    config_class = CodecConfig
    wraps: ClassVar[str] = "codec"

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        self.codec = self.build(config.codec or {})
        self._book: tuple[Any, Tensor] | None = None

    @classmethod
    def build(cls, codec: dict[str, Any]) -> Any:
        """The wrapped network, with weights at random."""
        raise NotImplementedError

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        """codebook_size, num_quantizers, code_dim and rate of a wrapped network."""
        raise NotImplementedError

    def books(self) -> Tensor:
        """Embeddings of the codes (depth, codebook_size, code_dim), computed from the wrapped weights."""
        raise NotImplementedError

    @classmethod
    def wrap(cls, codec: Any, **settings: Any) -> Self:
        """Around a network of that library, which is taken over as it is; settings: of the configuration, such as
        num_quantizers for fewer levels than it has. Raises ValueError for another network.
        """
        checked("codec", type(codec).__name__, type(codec).__name__ == cls.wraps, f"give a {cls.wraps}")
        found = cls(cls.config_class(**{**cls.settings(codec), "codec": plain(codec), **settings}))
        found.codec.load_state_dict(codec.state_dict())
        return found.to(next(codec.parameters()).device).eval()

    @property
    def codebook(self) -> Tensor:
        """Embeddings of the codes (depth, codebook_size, code_dim); computed again when the codec's weights changed."""
        tensors = [*self.codec.parameters(), *self.codec.buffers()]
        key = tuple((x._version, x.device, x.dtype) for x in tensors)
        if self._book is None or self._book[0] != key:
            with torch.no_grad():
                self._book = key, self.books()[: self.depth].contiguous()
        return self._book[1].detach()


def plain(codec: Any) -> dict[str, Any]:
    """The configuration of a wrapped network as plain data."""
    config = codec.config
    found = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items() if key not in ORIGIN}


def projected(table: Tensor, projection: nn.Conv1d | None) -> Tensor:
    """Codes (K, d) through a convolution of width 1, bias included: so that a sum over levels has every level's bias once."""
    if projection is None:
        return table
    return nn.functional.linear(table, projection.weight[..., 0], projection.bias)
