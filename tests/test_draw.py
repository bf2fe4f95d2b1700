"""The draw itself: its law at any width, temperatures that change the token and not its confidence, pieces of any size."""

import math

import pytest
import torch

from discdiff.denoisers import draw, inverse_cdf, prediction, rank, table
from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.noise import Noise

DRAWS = 20000


def shares(columns: torch.Tensor, width: int) -> torch.Tensor:
    return torch.bincount(columns, minlength=width).double() / len(columns)


def middle(count: int) -> torch.Tensor:
    """Evenly spread uniforms: the shares are then the law up to one part in `count`."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("width", [1, 5, 256, 257, 512, 1000])  # one block, whole blocks, and a rest
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_has_the_law_of_the_weights(width, dtype):
    weights = torch.rand(width, generator=torch.Generator().manual_seed(width)).to(dtype)
    weights[::3] = 0
    if width == 1:
        weights[:] = 2.0
    found = shares(inverse_cdf(weights.expand(DRAWS, width), middle(DRAWS)), width)
    law = weights.double() / weights.double().sum()
    assert float((found - law).abs().max()) <= 1.5 / DRAWS
    assert float(found[weights == 0].sum()) == 0


@pytest.mark.parametrize("width", [6, 700])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_temperature_changes_the_token_not_its_confidence(width, temperature):
    logits = 2 * torch.randn(1, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = logits.log_softmax(-1)[0]
    many = draw(logits.expand(DRAWS, width), middle(DRAWS), ("confidence", "entropy"), temperature)
    hot = torch.nn.functional.one_hot(logits.argmax(-1), width)[0].double()
    law = (logits[0] / temperature).softmax(-1) if temperature else hot
    assert float((shares(many.tokens, width) - law).abs().max()) <= 1.5 / DRAWS
    assert torch.allclose(many.log_prob, plain[many.tokens])
    for name, values in many.statistics.items():
        assert torch.allclose(values, rank(logits, name).expand(DRAWS))
    assert float(many.statistics["confidence"][0]) == pytest.approx(float(plain.max().exp()))
    control = (shares(many.tokens, width) - plain.exp()).abs().max()
    assert temperature == 1 or float(control) > 10 / DRAWS


def test_pieces_do_not_change_the_draw(monkeypatch):
    width = 40
    layout = Layout(VocabLayout(width), (Segment("text", "text", (7,)),))
    batch = make_batch(layout, torch.full((3, 7), layout.vocab.mask))
    logits = torch.randn(3, 7, width, generator=torch.Generator().manual_seed(2))
    index, noise = torch.tensor([0, 3, 4, 9, 20]), Noise.seeded(5, batch.valid)
    whole = table(batch, logits).draw(index, noise, statistics=("margin", "log_probs"))
    for size in (1, 4 * width * 2, 4 * width * 4):
        monkeypatch.setattr(prediction, "CPU_CHUNK_BYTES", size)
        parts = table(batch, logits).draw(index, noise, statistics=("margin", "log_probs"))
        assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.log_prob, whole.log_prob)
        assert all(torch.equal(parts.statistics[name], whole.statistics[name]) for name in whole.statistics)
    best = logits.view(-1, width)[index].amax(-1).double() - logits.view(-1, width)[index].double().logsumexp(-1)
    assert math.isclose(float(best[0]), float(whole.statistics["log_probs"][0].max()), rel_tol=1e-5)
