"""Training and sampling in bf16, on the CPU and, where there is one, on a GPU."""

import json
import shutil

import pytest
import torch

from discdiff.denoisers import ModelDenoiser
from discdiff.kernels import Ancestral
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.maskers import Independent
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.objectives import Elbo
from discdiff.sampling import sample
from discdiff.training import DiffusionTrainer, TrainingSettings

VOCAB = VocabLayout(4, (Modality("image", 4),))
LAYOUT = Layout(VOCAB, (Segment("caption", "text", (2,)), Segment("picture", "image", (2, 2))))
GPU = pytest.param(
    "auto",
    False,
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="bf16 on a GPU needs a CUDA device"),
    ],
)


COMPILED = pytest.param(
    "cpu",
    True,
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on the CPU needs g++"),
    ],
)


@pytest.mark.parametrize(("device", "compile"), [("cpu", False), COMPILED, GPU])
def test_bf16_learns_and_samples(device, compile, tmp_path):
    first = VOCAB.range("image")[0]
    rows = torch.tensor([[c, c, *[first + c] * 4] for c in range(4)])
    config = DiscDiffConfig(
        vocab=json.loads(VOCAB.to_json()),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        max_length=8,
        initializer_range=0.17,
    )
    model = DiscDiffModel.seeded(config, 0)
    settings = TrainingSettings(
        steps=80, batch_size=32, learning_rate=1e-2, bf16=True, compile=compile, device=device, progress=False,
        log_every=40,
    )  # fmt: skip
    data = [{"tokens": rows[i % 4]} for i in range(32)]
    trainer = DiffusionTrainer(model, settings, Elbo(masker=Independent(0.5)), LAYOUT, data, output_dir=tmp_path)
    trainer.train()
    model = trainer.model.to(torch.bfloat16).eval()
    where = model.device
    given = torch.tensor([True] * 2 + [False] * 4, device=where).expand(4, -1)
    tokens = rows.to(where).masked_fill(~given, VOCAB.mask)
    state, info = sample(ModelDenoiser(model), Ancestral(), make_batch(LAYOUT, tokens, given=given), 8, seed=0)
    assert info.head_rows == 16
    assert (state.tokens.cpu() == rows).double().mean() > 0.9


def test_compile_refuses_a_model_without_named_blocks(tmp_path):
    settings = TrainingSettings(steps=1, compile=True, device="cpu", progress=False)
    with pytest.raises(ValueError, match="Linear names no blocks"):
        DiffusionTrainer(
            torch.nn.Linear(2, 2), settings, Elbo(), LAYOUT, [{"tokens": torch.zeros(6)}] * 32, output_dir=tmp_path
        )
