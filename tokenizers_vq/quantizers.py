"""The quantisers of vector-quantize-pytorch behind one interface; at inference codes come from our own search."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, VectorQuantize

from tokenizers_vq.config import TokenizerConfig
from tokenizers_vq.nearest import embed, residual_codes


class Quantised(NamedTuple):
    """Straight-through embeddings (batch, slots, d), codes (batch, slots, Q), -1 where dropped, and what training adds."""

    embeddings: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """config.quantizer: latents (batch, slots, d) to codes of `codebook` (Q, K, d); `forward` trains it."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.kind, self.orthogonal = config.quantizer, config.orthogonal
        trained: dict[str, Any] = {
            "dim": config.code_dim,
            "codebook_size": config.codebook_size,
            "decay": config.decay,
            "commitment_weight": config.commitment,
            "threshold_ema_dead_code": config.dead_code,
            "kmeans_init": config.kmeans_init,
            "rotation_trick": False,
            # a moving average takes no gradient, which the regulariser needs
            "learnable_codebook": config.orthogonal > 0,
            "ema_update": config.orthogonal == 0,
        }
        if self.kind == "vq":
            self.layer: Any = VectorQuantize(**trained)
        elif self.kind == "rvq":
            self.layer = ResidualVQ(
                num_quantizers=config.num_quantizers,
                shared_codebook=config.shared_codebook,
                quantize_dropout=config.quantizer_dropout,
                **trained,
            )
        elif self.kind == "fsq":
            self.layer = FSQ(list(config.levels), preserve_symmetry=True)  # which two levels need
        elif self.kind == "lfq":
            self.layer = LFQ(
                dim=config.code_dim, codebook_size=config.codebook_size, commitment_loss_weight=config.commitment
            )
        else:
            raise ValueError(f"quantizer is {self.kind!r}: a tokenizer with a fixed codebook trains none")

    @property
    def codebook(self) -> Tensor:
        """Embeddings of the codes (Q, K, d)."""
        if self.kind == "rvq":
            return self.layer.codebooks
        book = self.layer.implicit_codebook if self.kind == "fsq" else self.layer.codebook
        return book.reshape(1, -1, book.shape[-1])

    def encode(self, h: Tensor) -> Tensor:
        """Codes (..., Q) of latents (..., d)."""
        if self.kind in ("fsq", "lfq"):
            flat = h.reshape(1, -1, h.shape[-1])
            return self.layer(flat)[1].view(*h.shape[:-1], 1).long()
        return residual_codes(h.flatten(0, -2), self.codebook).view(*h.shape[:-1], -1)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Quantised:
        """The training step of the codebook; in evaluation mode the codes of `encode` and the commitment loss."""
        if not self.training:
            codes = self.encode(h)
            return Quantised(embed(codes, self.codebook), codes, h.new_zeros(()))
        if self.kind == "fsq":
            embeddings, codes = self.layer(h)
            return Quantised(embeddings, codes[..., None].long(), h.new_zeros(()))
        embeddings, codes, loss = self.layer(h, mask=mask)
        codes = codes if self.kind == "rvq" else codes[..., None]
        return Quantised(embeddings, codes.long(), loss.sum() + self.orthogonality())

    def orthogonality(self) -> Tensor:
        """orthogonal * mean over levels of |N N^T - I|_F^2 / K^2, N the row-normalised codebook (M2DM arXiv 2308.14480)."""
        book = self.codebook
        if not self.orthogonal:
            return book.new_zeros(())
        return self.orthogonal * orthogonality(book)


def orthogonality(codebook: Tensor) -> Tensor:
    """|N N^T - I|_F^2 / K^2 of row-normalised books (Q, K, d), mean over levels; for K > d its least is not 0."""
    n = nn.functional.normalize(codebook, dim=-1)
    gap = n @ n.mT - torch.eye(n.shape[-2], dtype=n.dtype, device=n.device)
    return gap.square().sum((-2, -1)).mean() / n.shape[-2] ** 2
