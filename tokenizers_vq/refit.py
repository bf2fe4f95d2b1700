"""ReFiT: a codebook that collapsed is fitted again by k-means to the latents of the encoder, which stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.base import ModalityTokenizer, TokenizerTrainOutput
from tokenizers_vq.nearest import half_norms, residual_codes

BLOCK = 64  # candidates drawn at a time
SAME = 4e-6  # squared distances below this share of the squared norms are rounding


class Means(NamedTuple):
    """Centres (K, d), how many points each has (K,), and the mean squared distance of a point to its centre."""

    centres: Tensor
    counts: Tensor
    error: float


@torch.no_grad()
def kmeans(points: Tensor, size: int, generator: torch.Generator, rounds: int = 25, seeding: int = 1 << 16) -> Means:
    """k-means of points (n, d): k-means++ seeds among at most `seeding` points, then `rounds` of Lloyd.

    A centre without points moves to one of the points farthest from theirs. No n x K table. Raises ValueError for fewer
    distinct points than centres and for values that are not finite.
    """
    if points.ndim != 2 or not points.is_floating_point() or not bool(points.isfinite().all()):
        raise ValueError(f"points are {tuple(points.shape)} {points.dtype}: give finite floats (n, d)")
    if not 1 <= size <= len(points):
        raise ValueError(f"size is {size} for {len(points)} points: give 1 to {len(points)} centres, or more points")
    middle = points.mean(0)
    points = points - middle
    some = points[torch.randperm(len(points), generator=generator)[: max(seeding, size)].to(points.device)]
    centres, norms = seeds(some, size, generator), points.square().sum(1)
    for last in (*[False] * rounds, True):
        halves = half_norms(centres)[None]
        codes = residual_codes(points, centres[None], halves)[:, 0]
        counts = codes.bincount(minlength=size)
        gap = (norms - 2 * (points * centres[codes]).sum(1) + 2 * halves[0, codes]).clamp(min=0)
        if last:
            break
        moved = torch.zeros_like(centres).index_add_(0, codes, points) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        moved[empty] = points[gap.topk(int(empty.sum())).indices]
        if torch.equal(moved, centres):
            break
        centres = moved
    return Means(centres + middle, counts, float(gap.mean()))


def seeds(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point, drawn by its squared distance to the centres so far -> (size, d).

    Candidates are drawn in blocks by the distances at the start of the block and accepted with the share that is left of
    theirs, which is the same law (rejection, as in Cohen-Addad et al. 2020, arXiv 2012.11891) in fewer passes.
    Raises ValueError for fewer distinct points.
    """
    norms = points.square().sum(1)
    first = int(torch.randint(len(points), (), generator=generator))
    chosen, gap = [first], _gap(points, norms, points[first : first + 1], norms[first : first + 1])[:, 0]
    while len(chosen) < size:
        total = gap.double().cumsum(0)
        if float(total[-1]) <= 0:
            raise ValueError(
                f"size is {size} but only {len(chosen)} points are distinct: give at most that many centres"
            )
        u = torch.rand(2, BLOCK, generator=generator, dtype=torch.float64).to(points.device)
        drawn = torch.searchsorted(total, u[0] * total[-1], right=True).clamp(max=len(points) - 1)
        far = _gap(points, norms, points[drawn], norms[drawn])  # (n, BLOCK)
        among, before, accept = far[drawn].tolist(), gap[drawn].tolist(), u[1].tolist()
        left, taken = list(before), []
        for j in range(BLOCK):
            if len(chosen) < size and accept[j] * before[j] < left[j]:
                chosen.append(int(drawn[j]))
                taken.append(j)
                left = [min(a, row[j]) for a, row in zip(left, among, strict=True)]
        gap = torch.minimum(gap, far[:, taken].amin(1)) if taken else gap
    return points[torch.tensor(chosen, device=points.device)]


def _gap(points: Tensor, norms: Tensor, centres: Tensor, theirs: Tensor) -> Tensor:
    """Squared distances (n, m), 0 where they are within rounding."""
    both = norms[:, None] + theirs
    found = torch.addmm(both, points, centres.T, alpha=-2)
    return found.masked_fill(found < SAME * both, 0)


@torch.no_grad()
def latents(
    tokenizer: ModalityTokenizer, batches: Iterable[Any], generator: torch.Generator, most: int = 1 << 18
) -> Tensor:
    """At most `most` latents (n, code_dim) of batches of raw data, drawn uniformly without replacement."""
    held, keys = torch.empty(0), torch.empty(0)
    for x in batches:
        found = tokenizer.encode_latents(x.to(tokenizer.device))
        h = found.h[found.mask]
        drawn = torch.rand(len(h), generator=generator, dtype=torch.float64).to(h.device)
        held, keys = (torch.cat([held, h]), torch.cat([keys, drawn])) if len(held) else (h, drawn)
        if len(keys) > most:
            keys, kept = keys.topk(most)
            held = held[kept]
    if not len(held):
        raise ValueError("no latents: give at least one batch that holds data")
    return held


@torch.no_grad()
def refit(tokenizer: ModalityTokenizer, points: Tensor, size: int, generator: torch.Generator, rounds: int = 25) -> Any:
    """A copy of a "vq" or "rvq" tokenizer whose codebook is k-means of its latents, `size` codes a level, coarse first; all
    other weights are the same (VQ-DDM, arXiv 2112.01799, section 3.3). Train the decoder afterwards with `decoder_loss`.

    points: (n, code_dim) from `latents`. Raises ValueError for other quantizers and a codebook shared among levels.
    """
    config = tokenizer.config
    if config.quantizer not in ("vq", "rvq") or config.shared_codebook:
        raise ValueError(
            f"quantizer is {config.quantizer!r}, shared_codebook {config.shared_codebook}: refit needs vq or rvq"
        )
    settings = copy.deepcopy(config)
    settings.codebook_size, settings.kmeans_init = size, False
    new = type(tokenizer)(settings)
    own = {name: x for name, x in new.state_dict().items() if not name.startswith("quantizer.")}
    old = tokenizer.state_dict()
    for name, x in own.items():
        x.copy_(old[name])
    quantizer: Any = new.quantizer
    layer = quantizer.layer
    for level in [layer] if config.quantizer == "vq" else layer.layers:
        means = kmeans(points, size, generator, rounds)
        book = level._codebook
        book.embed.copy_(means.centres[None])
        book.cluster_size.copy_(means.counts[None])
        book.embed_avg.copy_((means.centres * means.counts[:, None])[None])
        points = points - means.centres[residual_codes(points, means.centres[None])[:, 0]]
    return new.to(tokenizer.device).train(tokenizer.training)


def freeze_codes(tokenizer: ModalityTokenizer) -> None:
    """Encoder and codebook are trained no further: `tokenizer.encoder` and its quantizer take no gradient."""
    parts: tuple[Any, ...] = tokenizer.encoder, tokenizer.quantizer
    for part in parts:
        part.requires_grad_(False)


def decoder_loss(
    tokenizer: ModalityTokenizer, x: Tensor, codes: Tensor, grid: tuple[int, ...] | None = None
) -> TokenizerTrainOutput:
    """One step of training of the decoder alone, on raw data and the codes that the frozen encoder gave it."""
    reconstruction = tokenizer.decode_embeddings(tokenizer.codes_to_embeddings(codes).detach(), grid)
    losses = tokenizer.losses(x, reconstruction)
    return TokenizerTrainOutput(torch.stack(list(losses.values())).sum(), reconstruction, codes, losses)
