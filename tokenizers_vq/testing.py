"""What every tokenizer must satisfy, K1 to K10, as one check that users run on tokenizers of their own."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.auto import load_tokenizer
from tokenizers_vq.base import ABSENT, ModalityTokenizer
from tokenizers_vq.metrics import code_counts, perplexity


def check_tokenizer(
    tokenizer: ModalityTokenizer,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    bound: float,
    exact_codes: bool | None = None,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """Hold a tokenizer to its contract on raw data x (batch >= 2, ...), and return what was measured.

    bound: largest root mean square error of decode(encode(x)). exact_codes (K10): codes of a code's embedding are that
    code; by default what theory says, so of one level or of levels in dimensions of their own. tolerance: of equal runs
    at other batch sizes, whose last bits differ.

    K1 error below the bound; K2 shape as `token_shape` says; K3 codes in range; K4 the embedding of the codes is the
    quantised latent, and the codes are its nearest; K5 decoding depends on codes alone; K6 a saved and loaded one gives the
    same codes and the same data, bit for bit; K7 neither other rows nor what is masked out change a row; K8 more levels do
    not make the error larger on average; K9 codes are used: perplexity and dead codes; K10 codes of embeddings.
    Raises AssertionError naming the first that fails.
    """
    assert len(x) >= 2, "give at least two rows: one cannot show that rows are independent"
    assert not tokenizer.training, "call eval() first: this checks what is used, not what is trained"
    out = tokenizer.encode(x, mask)
    codes, grid, slots = out.codes, out.grid, out.mask
    decoded = tokenizer.decode(codes, grid, slots)
    error = _error(x, decoded, mask)
    assert error <= bound, f"K1: root mean square error {error:.4g} exceeds {bound}"

    expected = tuple(tokenizer.token_shape(tuple(x.shape)))
    assert tuple(codes.shape) == expected, f"K2: codes {tuple(codes.shape)}, token_shape says {expected}"
    assert tuple(slots.shape) == expected[:2], f"K2: mask {tuple(slots.shape)}, codes {tuple(codes.shape)}"
    assert codes.dtype == torch.long, f"K3: codes are {codes.dtype}"
    low, high = int(codes.min()), int(codes.max())
    assert 0 <= low <= high < tokenizer.codebook_size, f"K3: codes span {low}..{high} of {tokenizer.codebook_size}"

    _check_embeddings(tokenizer, x, mask, codes)
    again = tokenizer.decode(codes.clone(), grid, slots)
    assert torch.equal(decoded, again), "K5: the same codes decode differently"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        other = load_tokenizer(folder)
    assert torch.equal(other.encode(x, mask).codes, codes), "K6: another code after saving and loading"
    assert torch.equal(other.decode(codes, grid, slots), decoded), "K6: another reconstruction after saving and loading"
    _check_rows(tokenizer, x, mask, out, decoded, tolerance)

    errors = [error]
    if tokenizer.depth > 1 and _residual(tokenizer):
        errors = [_error(x, tokenizer.decode(codes[..., : d + 1], grid, slots), mask) for d in range(tokenizer.depth)]
        worse = [d for d in range(1, len(errors)) if errors[d] > errors[d - 1] * (1 + 1e-6)]
        assert not worse, f"K8: the error grows with depth, {errors}"
        missing = codes.clone()
        missing[..., 1:] = ABSENT
        same = tokenizer.decode(missing, grid, slots), tokenizer.decode(codes[..., :1], grid, slots)
        assert torch.equal(*same), "K8: absent levels and a prefix of levels decode differently"
    counts = code_counts(codes, tokenizer.codebook_size, slots)
    spread, dead = float(perplexity(counts).mean()), float((counts == 0).double().mean())
    assert 1 <= spread <= tokenizer.codebook_size + 1e-6, f"K9: perplexity {spread}"

    embeddings = tokenizer.codes_to_embeddings(codes)
    back = tokenizer.embeddings_to_codes(embeddings)
    agreement = float((back == codes)[slots].double().mean())
    exact = not (tokenizer.depth > 1 and _residual(tokenizer)) if exact_codes is None else exact_codes
    assert not exact or agreement == 1, f"K10: {1 - agreement:.2%} of the codes change on the way through embeddings"
    first, second = embeddings[slots], tokenizer.codes_to_embeddings(back)[slots]
    drift = float((second - first).square().sum(-1).mean().sqrt())
    return {"error": error, "perplexity": spread, "dead": dead, "code_agreement": agreement, "drift": drift}


def _error(x: Tensor, decoded: Tensor, mask: Tensor | None) -> float:
    assert decoded.shape == x.shape, f"K1: {tuple(x.shape)} came back as {tuple(decoded.shape)}"
    off = (x.double() - decoded.double()).square()
    if mask is not None:
        off = off[mask.view(*mask.shape, *(1,) * (off.ndim - mask.ndim)).expand_as(off)]
    return float(off.mean().sqrt())


def _residual(tokenizer: ModalityTokenizer) -> bool:
    """Whether levels refine the same dimensions; in a product each level has dimensions of its own."""
    touched = (tokenizer.codebook != 0).any(1)
    return bool((touched.sum(0) > 1).any())


def _check_embeddings(tokenizer: ModalityTokenizer, x: Tensor, mask: Tensor | None, codes: Tensor) -> None:
    book = tokenizer.codebook
    shape = (tokenizer.depth, tokenizer.codebook_size, tokenizer.config.code_dim)
    assert tuple(book.shape) == shape, f"K4: codebook {tuple(book.shape)}, the configuration says {shape}"
    embeddings = tokenizer.codes_to_embeddings(codes)
    total = torch.stack([book[d][codes[..., d]] for d in range(tokenizer.depth)]).sum(0)
    assert torch.allclose(embeddings, total, atol=1e-6), "K4: embeddings are not the sum of the codes' vectors"
    latents = tokenizer.encode_latents(x, mask)
    quantised = tokenizer.codes_to_embeddings(tokenizer.quantize(latents.h))[latents.mask]
    assert torch.equal(quantised, embeddings[latents.mask]), "K4: encode and quantize disagree"


def _check_rows(
    tokenizer: ModalityTokenizer, x: Tensor, mask: Tensor | None, out: Any, decoded: Tensor, tolerance: float
) -> None:
    for row in range(len(x)):
        alone = tokenizer.encode(x[row : row + 1], None if mask is None else mask[row : row + 1])
        same = (alone.codes == out.codes[row : row + 1])[out.mask[row : row + 1]].double()
        assert not len(same) or same.mean() > 1 - 1e-3, f"K7: row {row} alone has other codes than in the batch"
        single = tokenizer.decode(out.codes[row : row + 1], out.grid, out.mask[row : row + 1])
        gap = (single.double() - decoded[row : row + 1].double()).abs().max()
        assert gap <= tolerance * max(1.0, float(decoded.double().abs().max())), (
            f"K7: row {row} alone decodes differently"
        )
    if mask is None:
        return
    hidden = ~mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim)).expand_as(x)
    changed = torch.where(hidden, x.flip(0) + 1 if x.is_floating_point() else x, x)
    masked = tokenizer.encode(changed, mask)
    assert torch.equal(masked.codes[out.mask], out.codes[out.mask]), "K7: what is masked out changes the codes"
