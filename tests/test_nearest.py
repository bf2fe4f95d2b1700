"""Our search finds the nearest code, in pieces, never holds all distances, and agrees with the modules but for ties."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from tokenizers_vq import nearest
from tokenizers_vq.nearest import embed, half_norms, piece_rows, residual_codes


def data(count=700, depth=3, size=64, dim=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = 0.6 ** torch.arange(depth)[:, None, None]
    return torch.randn(count, dim, generator=g), torch.randn(depth, size, dim, generator=g) * scale


def restated(h, book):
    """Greedy codes by all distances, in float64."""
    rest, codes = h.double(), []
    for level in book.double():
        codes.append(torch.cdist(rest, level).argmin(1))
        rest = rest - level[codes[-1]]
    return torch.stack(codes, 1), rest


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("piece", [64, 1000, 1 << 18])
def test_codes_are_the_nearest(monkeypatch, depth, piece):
    monkeypatch.setattr(nearest, "PIECE", piece)
    monkeypatch.setattr(nearest, "MOST", piece)
    h, book = data(depth=depth)
    wanted, rest = restated(h, book)
    codes = residual_codes(h, book)
    assert torch.equal(codes, wanted)
    assert torch.allclose(h - embed(codes, book), rest.float(), atol=1e-5)  # telescoping
    assert torch.equal(codes, residual_codes(h, book, half_norms(book)))


def test_ties_go_to_the_lower_code():
    book = torch.randn(1, 300, 4).repeat(1, 3, 1)
    codes = residual_codes(torch.randn(500, 4), book)
    assert int(codes.max()) < 300


def test_no_table_of_all_distances_is_made():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    h, book = data(4096, 2, 2048, 4)
    with Largest() as ours:
        residual_codes(h, book)
    with Largest() as table:
        torch.cdist(h, book[0]).argmin(1)
    assert ours.numbers == piece_rows(2048, h.device) * 2048 <= 1 << 19
    assert table.numbers >= 4096 * 2048  # so the counter can see one


@pytest.mark.parametrize("size", [1, 7, 1024, 8192, 1 << 16, 1 << 24, 1 << 30])
def test_pieces_are_bounded(size):
    rows = piece_rows(size, torch.device("cpu"))
    assert rows >= 1 and (rows == 1 or rows * size <= nearest.MOST)


@pytest.mark.parametrize("depth", [1, 4])
def test_disagreements_with_the_module_are_ties(depth):
    h, book = data(3000, depth, 256, 16)
    if depth == 1:
        layer = VectorQuantize(dim=16, codebook_size=256, rotation_trick=False)
        layers = [layer]
    else:
        layer = ResidualVQ(dim=16, num_quantizers=depth, codebook_size=256, rotation_trick=False)
        layers = layer.layers
    for each, x in zip(layers, book, strict=True):
        each._codebook.embed.copy_(x[None])
    with torch.no_grad():
        theirs = layer.eval()(h[None])[1][0].view(-1, depth)
    ours = residual_codes(h, book)
    assert float((ours == theirs).all(1).double().mean()) > 0.99
    for row in (ours != theirs).any(1).nonzero()[:, 0].tolist():
        level = int((ours[row] != theirs[row]).nonzero()[0])
        rest = h[row].double() - sum(book[j, ours[row, j]].double() for j in range(level))
        a, b = ((rest - book[level, c[row, level]].double()).square().sum() for c in (ours, theirs))
        assert abs(a - b) <= 1e-6 * min(a, b)


def test_codes_need_no_gradient_and_empty_batches_are_fine():
    h, book = data()
    assert torch.equal(residual_codes(h.requires_grad_(), book), residual_codes(h.detach(), book))
    assert residual_codes(h[:0], book).shape == (0, 3)


def test_embed_leaves_absent_levels_out():
    h, book = data()
    codes = residual_codes(h, book)
    hidden = codes.clone()
    hidden[:, 1:] = -1
    assert torch.equal(embed(hidden, book), embed(codes[:, :1], book))
    assert torch.equal(embed(torch.full_like(codes, -1), book), torch.zeros_like(h))
