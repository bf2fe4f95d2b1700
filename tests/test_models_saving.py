"""Models and configurations on disk, first weights, and what is refused before anything is computed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import MIXED, VOCAB, make, stir, tokens_of
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from discdiff.layout import Layout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_are_exact(tmp_path, tied):
    settings = {"layout": {"a": (1, 2)}, "process": {"type": "Absorbing"}, "prediction": "cavity", "max_depth": 3}
    model = stir(make(tie_word_embeddings=tied, time_conditioning=True, dtype=torch.float32, **settings))
    model.save_pretrained(tmp_path)
    assert ("head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    batch = make_batch(MIXED, tokens_of(MIXED))
    expected = model(batch=batch, time=0.3, output_logits=True).logits
    for auto in (DiscDiffModel, AutoModel, AutoModelForMaskedLM):
        again = auto.from_pretrained(tmp_path)
        assert isinstance(again, DiscDiffModel) and (again.head.weight is again.embed.weight) is tied
        assert torch.equal(again(batch=batch, time=0.3, output_logits=True).logits, expected)
    assert (
        AutoConfig.from_pretrained(tmp_path).to_diff_dict()
        == model.config.to_diff_dict()
        == again.config.to_diff_dict()
    )
    assert again.config.prediction == "cavity" and again.config.layout == {"a": [1, 2]} and again.dtype == torch.float32
    model.bfloat16().save_pretrained(tmp_path / "half")
    assert DiscDiffModel.from_pretrained(tmp_path / "half").dtype == torch.float32
    assert DiscDiffModel.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_incomplete_weights_are_refused(tmp_path, damage):
    make(dtype=torch.float32).save_pretrained(tmp_path, sealed=False)
    file = tmp_path / "model.safetensors"
    weights, name = load_file(file), "blocks.1.mlp.down.weight"
    if damage == "unexpected":
        weights["blocks.2.stray"] = torch.zeros(2)
    elif damage == "mismatched":
        weights[name] = weights[name][:-1].contiguous()
    else:
        del weights[name]
    save_file(weights, file, {"format": "pt"})
    for auto in (DiscDiffModel, AutoModel):
        with pytest.raises(ValueError, match=f"{damage} keys: .*blocks"):
            auto.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="random"):
        DiscDiffModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_seeded_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = make(seed=5), make(seed=5), make(seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)
    assert abs(a.blocks[0].attention.qkv.weight.std().item() - 0.2) < 0.02 and a.head.weight is a.embed.weight
    assert (a.inputs.modality.weight.abs().sum() + a.inputs.depth.weight.abs().sum()).item() == 0
    assert not any(weight.is_meta for weight in a.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hiden_size": 64}, "unknown key 'hiden_size'.*did you mean 'hidden_size'"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_heads": "4"}, "num_heads is '4'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"hidden_size": 100, "num_heads": 3}, "hidden_size is 100 and num_heads 3"),
        ({"hidden_size": 12, "num_heads": 4}, "even multiple"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"mlp_ratio": -1}, "mlp_ratio is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"qk_norm": 1}, "qk_norm is 1"),
        ({"prediction": "both"}, "prediction is 'both'"),
        ({"vocab": {"text": 3}}, "unknown keys"),
        ({"vocab": {"text_size": 3.5}}, "vocab is .*integers"),
        ({"vocab": [1]}, "vocab is .*dictionary"),
        ({"vocab": {"text_size": 10**30}}, "fit on no machine"),
        ({"hidden_size": 2**19, "num_heads": 8, "num_layers": 1000}, "fit on no machine"),
        ({"layout": {"a": {1, 2}}}, "it must be JSON"),
        ({"max_depth": 65}, "max_depth is 65"),
    ],
)
def test_impossible_configurations_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DiscDiffConfig(**settings)


def test_models_too_large_for_this_machine_are_refused_before_allocation(tmp_path):
    config = DiscDiffConfig(hidden_size=2**15, num_heads=64, num_layers=60)
    for build in (DiscDiffModel, lambda c: DiscDiffModel.seeded(c, 0)):
        with pytest.raises(ValueError, match="GiB of memory"):
            build(config)
    make(dtype=torch.float32).save_pretrained(tmp_path, sealed=False)
    (tmp_path / "config.json").write_text(json.dumps(config.to_diff_dict()))
    with pytest.raises(ValueError, match="GiB of memory"):
        DiscDiffModel.from_pretrained(tmp_path)


def test_wrong_input_is_refused():
    model, batch = make(max_length=23), make_batch(MIXED, tokens_of(MIXED))
    packed = Layout(VOCAB, MIXED.segments, packed=True)
    cases = [
        ({"batch": batch}, "max_length is 23"),
        ({"batch": make_batch(packed, batch.tokens)}, "packs 3 levels into a slot, max_depth is 1"),
        ({}, "either a batch, or input_ids"),
        ({"input_ids": torch.zeros(2, 3)}, "torch.float32"),
        ({"input_ids": torch.full((1, 3), 10**6)}, "reach from 1000000"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.zeros(1, 2)}, "labels"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.long), "columns": torch.arange(2)}, "columns and cache"),
    ]
    for options, said in cases:
        with pytest.raises(ValueError, match=said):
            model(**options)
    for time, said in (
        (None, "time is None"),
        (torch.rand(3, 5), r"time has shape \(3, 5\)"),
        (torch.rand(2), "2 times"),
    ):
        with pytest.raises(ValueError, match=said):
            make(time_conditioning=True)(batch=batch, time=time)
    with pytest.raises(ValueError, match="attn_implementation"):
        DiscDiffModel(DiscDiffConfig(vocab=VOCAB, attn_implementation="eager"))
