"""Muon for the matrices of the blocks, AdamW for the rest: the two optimizers of torch, one learning rate, exact resumption."""

import copy
import json

import pytest
import torch
from torch import nn

from discdiff.layout import Layout, Segment, VocabLayout
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.objectives import Elbo
from discdiff.training import DiffusionTrainer, TrainingSettings
from discdiff.training.optimizers import MuonAdamW

VOCAB = VocabLayout(6)
LAYOUT = Layout(VOCAB, (Segment("text", "text", (8,)),))
CONFIG = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 8, "initializer_range": 0.25}


def model():
    return DiscDiffModel.seeded(DiscDiffConfig(vocab=json.loads(VOCAB.to_json()), **CONFIG), 0)


def run(folder, steps, resume=None, **settings):
    draw = torch.Generator().manual_seed(0)
    data = [{"tokens": torch.randint(0, 6, (8,), generator=draw)} for _ in range(32)]
    chosen = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.1, "schedule": "constant", **settings}
    knobs = TrainingSettings(steps=steps, batch_size=8, progress=False, device="cpu", **chosen)
    trainer = DiffusionTrainer(model(), knobs, Elbo(), LAYOUT, data, output_dir=folder)
    trainer.train(resume)
    return trainer


def test_each_part_takes_the_step_torch_takes():
    ours, theirs = model(), model()
    draw = torch.Generator().manual_seed(1)
    inside = [m.weight for b in theirs.blocks for m in b.modules() if isinstance(m, nn.Linear)]
    rest = [p for p in theirs.parameters() if all(p is not q for q in inside)]
    tables, vectors = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim == 1]
    assert len(inside) == 8 and len(vectors) == 5
    whole = MuonAdamW(ours, 1e-2, 0.1, (0.9, 0.98))
    groups = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
    parts = (
        torch.optim.Muon(inside, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, 1e-2, (0.9, 0.98), weight_decay=0.1, fused=True),
    )
    start = copy.deepcopy(ours.state_dict())
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.clone()
        whole.step()
        for part in parts:
            part.step()
        for group in (*whole.param_groups, *(g for part in parts for g in part.param_groups)):
            group["lr"] *= 0.5  # a schedule reaches both
    for name, p in ours.state_dict().items():
        assert torch.equal(p, theirs.state_dict()[name]) and not torch.equal(p, start[name]), name


def test_resumed_muon_is_exact(tmp_path):
    whole = run(tmp_path / "whole", 7)
    run(tmp_path / "parts", 4, save_every=4)
    resumed = run(tmp_path / "parts", 7, "auto", save_every=4)
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, resumed.model.state_dict()[name]), name
    plain = run(tmp_path / "adamw", 7, optimizer="adamw")
    assert not torch.equal(plain.model.blocks[0].mlp.down.weight, whole.model.blocks[0].mlp.down.weight)


def test_refusals():
    with pytest.raises(ValueError, match="Linear names no blocks"):
        MuonAdamW(nn.Linear(2, 2), 1e-3, 0.0, (0.9, 0.99))
    with pytest.raises(ValueError, match="'sgd'.*choose from adamw, muon"):
        TrainingSettings(optimizer="sgd")
    with pytest.raises(ValueError, match="not fsdp"):
        TrainingSettings(optimizer="muon", fsdp=True)
