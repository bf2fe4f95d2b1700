"""What the tasks share: codes by condition and back, judges, and networks trained on plain arrays."""

import pytest
import torch

from discdiff.training import TrainingSettings
from tasks.common.fitting import Arrays, Reconstruction, fit
from tasks.common.generation import Coded, Rows, draw, layout_for, train
from tasks.common.judge import accuracy, train_judge
from tasks.common.methods import both_ways
from tokenizers_vq import ModalityTokenizer, PixelTokenizer, TokenizerConfig, check_tokenizer, load_tokenizer
from tokenizers_vq.base import Latents
from tokenizers_vq.quantizers import orthogonality


class PlainConfig(TokenizerConfig):
    model_type = "plain_test"


class Plain(ModalityTokenizer):
    """The quantiser alone, and one weight for those that have none."""

    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.ones(()))

    def token_shape(self, input_shape):
        return (*input_shape[:2], self.depth)

    def encode_latents(self, x, mask=None):
        return Latents(x, torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask, (x.shape[1],))

    def decode_embeddings(self, e, grid=None, mask=None):
        return e * self.gain

    def losses(self, x, reconstruction, mask=None):
        return {"mse": (x - reconstruction).square().mean()}


def coded(rows, generator):
    """Both levels of every slot say the condition, in one of two words each; some rows are shorter."""
    condition = torch.randint(4, (rows, 1), generator=generator)
    codes = condition[:, :, None] * 2 + torch.randint(2, (rows, 6, 2), generator=generator)
    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[:, 4:] = torch.rand(rows, 1, generator=generator) > 0.5
    return Coded(condition, codes.masked_fill(~mask[..., None], 0), mask)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    data = coded(256, generator)
    layout = layout_for("audio", 8, 2, (6,), 1, 4)
    settings = TrainingSettings(steps=120, batch_size=64, learning_rate=3e-3, warmup=10)
    folder = tmp_path_factory.mktemp("generation") / "model"
    return train(layout, Rows(layout, data), settings, folder, both_ways(0.8), hidden_size=32, num_layers=2), data


def test_codes_by_condition_and_back(trained):
    model, data = trained
    part = Coded(*(x[:32] for x in data))
    drawn = draw(model, part.condition, part.mask, steps=6)
    right = (drawn.codes // 2 == part.condition[:, :, None])[part.mask]
    assert right.double().mean() > 0.95 and not drawn.codes[~part.mask].any()
    assert (draw(model, None, part.mask, codes=part.codes, steps=1).condition == part.condition).double().mean() > 0.95


def test_rows_do_not_depend_on_the_batch(trained):
    model, data = trained
    model = model.double()
    whole = draw(model, data.condition[:10], data.mask[:10], steps=4, seed=5)
    parts = draw(model, data.condition[:10], data.mask[:10], steps=4, seed=5, batch=3)
    assert torch.equal(whole.codes, parts.codes)
    model.float()


def test_draw_wants_one_side(trained):
    model, data = trained
    with pytest.raises(ValueError, match="give condition, or codes"):
        draw(model, None, data.mask)
    with pytest.raises(ValueError, match="the slots that are known"):
        draw(model, data.condition, data.mask, codes=data.codes)


def test_judge(tmp_path):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (192,), generator=generator)
    mask = torch.arange(21) < torch.randint(9, 21, (192, 1), generator=generator)
    x = torch.randn(192, 2, 21, generator=generator) + label[:, None, None]
    judge = train_judge(x, label, tmp_path / "judge", mask, steps=80, width=16)
    assert accuracy(judge, x, label, mask) > 0.9
    shifted = torch.where(mask[:, None], x, 9.0)
    assert torch.equal(judge(shifted, mask), judge(x, mask)), "what is masked out must not matter"


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "vq", "codebook_size": 32},
        {"quantizer": "rvq", "codebook_size": 8, "num_quantizers": 3},
        {"quantizer": "rvq", "codebook_size": 8, "num_quantizers": 3, "quantizer_dropout": True},
        {"quantizer": "rvq", "codebook_size": 8, "num_quantizers": 2, "shared_codebook": True},
        {"quantizer": "fsq", "codebook_size": 60, "levels": (5, 4, 3), "code_dim": 3},
        {"quantizer": "lfq", "codebook_size": 16, "code_dim": 4},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_every_quantizer_keeps_the_contract(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("tokenizers_vq.auto").auto.TOKENIZERS, "plain_test", (__name__, "Plain"))
    config = PlainConfig(**{"code_dim": 4, **settings})
    x = torch.randn(256, 6, config.code_dim, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    torch.manual_seed(0)
    tokenizer = Plain(config)
    trained = fit(
        tokenizer, Reconstruction(), TrainingSettings(steps=60, batch_size=32, ema=0), Arrays(x=x), tmp_path / "t"
    )
    measured = check_tokenizer(trained, x, bound=1.7)
    assert measured["perplexity"] > 2
    mask = torch.ones(256, 6, dtype=torch.bool)
    mask[:, 4:] = False
    assert trained.encode(x, mask).codes[:, 4:].abs().sum() == 0


@pytest.mark.parametrize("quantizer", ["vq", pytest.param("rvq", marks=pytest.mark.slow)])
def test_the_orthogonal_regulariser_acts(quantizer, tmp_path):
    """M6: codes become orthogonal where there are no more of them than dimensions, and only with the weight."""
    x = torch.randn(128, 6, 16, generator=torch.Generator().manual_seed(0)) + 1
    found = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        levels = 2 if quantizer == "rvq" else 1
        config = PlainConfig(
            quantizer=quantizer, num_quantizers=levels, codebook_size=8, code_dim=16, orthogonal=weight
        )
        settings = TrainingSettings(steps=150, batch_size=32, ema=0, learning_rate=3e-2, progress=False)
        trained = fit(Plain(config), Reconstruction(), settings, Arrays(x=x), tmp_path / f"{weight}")
        found[weight] = float(orthogonality(trained.codebook.detach()))
    assert found[10.0] < 0.2 * found[0.0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"quantizer": "vqq"}, "vqq"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"quantizer": "vq", "num_quantizers": 2}, "rvq"),
        ({"quantizer": "fsq", "codebook_size": 6, "code_dim": 2}, "levels"),
        ({"quantizer": "fsq", "codebook_size": 7, "levels": (3, 2), "code_dim": 2}, "product"),
        ({"quantizer": "lfq", "codebook_size": 10, "code_dim": 4}, "16"),
        ({"decay": 1.0}, "decay"),
        ({"codebok_size": 4}, "did you mean 'codebook_size'"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        PlainConfig(**settings)


def test_damaged_folders(tmp_path):
    tokenizer = Plain(PlainConfig(codebook_size=8, code_dim=4, kmeans_init=False)).eval()
    tokenizer.save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="model.safetensors"):
        Plain.from_pretrained(tmp_path / "t")
    other = Plain(PlainConfig(codebook_size=16, code_dim=4, kmeans_init=False))
    other.save_pretrained(tmp_path / "u")
    with pytest.raises(ValueError, match="another tokenizer"):
        Plain.from_pretrained(tmp_path / "u", config=tokenizer.config)
    with pytest.raises(ValueError, match="does not know"):
        Plain.from_pretrained(tmp_path / "u", torch_dtypo="x")
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(torch.full((1, 2, 1), 8))


def test_hub_name(tmp_path, monkeypatch):
    """A name on the hub is the folder that the hub's cache has of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    where = tmp_path / "cache" / "models--lab--pixels"
    (where / "refs").mkdir(parents=True)
    (where / "refs" / "main").write_text(commit)
    PixelTokenizer.of(levels=5).save_pretrained(where / "snapshots" / commit)
    assert load_tokenizer("lab/pixels", cache_dir=tmp_path / "cache").codebook_size == 5
    with pytest.raises(ValueError, match="lab/none"):
        load_tokenizer("lab/none", cache_dir=tmp_path / "cache")
