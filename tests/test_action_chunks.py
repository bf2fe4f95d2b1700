"""ChunkTokenizer learns codes of whole chunks and keeps the contract."""

import pytest
import torch
from action_toy import chunks, holes

from discdiff.training import TrainingSettings
from tasks.common.fitting import Arrays, Reconstruction, fit
from tokenizers_vq import check_tokenizer
from tokenizers_vq.action.base import identity
from tokenizers_vq.action.chunks import ChunkTokenizer, ChunkTokenizerConfig

X = chunks(512, 8)
SIZE = {"width": 16, "code_dim": 8, "codebook_size": 32, "strides": (2, 2)}


@pytest.fixture(scope="module", params=["rvq", "vq"])
def trained(request, tmp_path_factory):
    torch.manual_seed(0)
    depth = {"num_quantizers": 3 if request.param == "rvq" else 1}
    tokenizer = ChunkTokenizer.of(X, raw=(6,), quantizer=request.param, **depth, **SIZE)
    settings = TrainingSettings(steps=60, batch_size=64, learning_rate=6e-3, warmup=10, ema=0)
    folder = tmp_path_factory.mktemp("chunks") / "model"
    return fit(tokenizer, Reconstruction(), settings, Arrays(x=X, mask=torch.ones(512, 8, dtype=torch.bool)), folder)


def test_contract(trained):
    assert check_tokenizer(trained, X[:128], bound=0.5)["perplexity"] > 4
    check_tokenizer(trained, X[:64], holes(64, 8), bound=0.5)


def test_it_learns(trained):
    y = trained.normalised(X)[0]
    z = trained.normalised(trained.decode(trained.encode(X).codes))[0]
    assert (y - z).square().mean() < 0.6 * (y - y.mean((0, 1))).square().mean()


def test_decoding_stays_in_range(trained):
    codes = torch.randint(0, 32, (50, 2, trained.depth), generator=torch.Generator().manual_seed(0))
    actions = trained.decode(codes)
    low, high = (torch.tensor(trained.config.statistics[k]) for k in ("q01", "q99"))
    low[6], high[6] = -1, 1
    assert ((actions >= low - 1e-5) & (actions <= high + 1e-5)).all()


def test_losses_see_only_data():
    torch.manual_seed(0)
    tokenizer = ChunkTokenizer.of(X, raw=(6,), **SIZE)
    mask = holes(16, 8)
    garbage = torch.where(mask[..., None], X[:16], 99.0)
    guess = torch.randn(16, 8, 7, generator=torch.Generator().manual_seed(0))
    a, b = (
        tokenizer.losses(X[:16], guess, mask),
        tokenizer.losses(garbage, torch.where(mask[..., None], guess, 7.0), mask),
    )
    assert all(torch.equal(a[name], b[name]) for name in ("actions", "velocity"))


def test_nothing_to_compare_costs_nothing():
    """Chunks of a single step have no differences, and padding has nothing: 0, and gradients that are finite."""
    torch.manual_seed(0)
    settings = {"chunk": 4, "dim": 2, "statistics": identity(2).to_dict(), "strides": (2,), "width": 8, "code_dim": 4}
    tokenizer, x = ChunkTokenizer(ChunkTokenizerConfig(**settings, codebook_size=8)), torch.rand(1, 4, 2)
    out = tokenizer(x, torch.arange(4)[None] < 1)
    out.loss.backward()
    assert out.losses["velocity"] == 0 < out.losses["actions"] and bool(out.loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in tokenizer.parameters())
    assert not any(tokenizer.losses(x, 1 - x, torch.zeros(1, 4, dtype=torch.bool)).values())
    assert min(tokenizer.losses(x, 1 - x).values()) > 0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"chunk": 6, "strides": (4,)}, "multiple of 4"),
        ({"strides": (0,)}, "strides"),
        ({"quantizer": "none"}, "learned"),
        ({"velocity": -1.0}, "velocity"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        ChunkTokenizerConfig(**settings)
