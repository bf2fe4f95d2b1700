"""LoRA: nothing changes at first, only adapters learn, merging changes nothing either."""

import errno
import json

import pytest
import torch

import discdiff as dd
from discdiff.training.lora import Lora, add_lora, load_lora, merge_lora, save_lora

pytest.importorskip("peft")
VOCAB = dd.VocabLayout(8)
LAYOUT = dd.Layout(VOCAB, (dd.Segment("text", "text", (6,)),))
TOKENS = torch.arange(24).view(4, 6) % 8


def network(seed=0):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_length": 6, "initializer_range": 0.2}
    return dd.DiscDiffModel.seeded(dd.DiscDiffConfig(vocab=json.loads(VOCAB.to_json()), **shape), seed).eval()


def logits(model):
    batch = dd.make_batch(LAYOUT, TOKENS.masked_fill(TOKENS % 3 == 0, VOCAB.mask))
    with torch.no_grad():
        return model(batch=batch, output_logits=True).logits


def trained(tmp_path, lora=Lora(rank=4), steps=5):
    model = network()
    names = add_lora(model, lora)
    rows = [{"tokens": row} for row in TOKENS]
    settings = dd.TrainingSettings(steps=steps, batch_size=4, learning_rate=1e-2, progress=False)
    dd.DiffusionTrainer(model, settings, dd.Elbo(), LAYOUT, rows, output_dir=tmp_path / "run").train()
    return model.eval(), names


def test_adapters_change_nothing_at_first():
    model = network()
    before, count, state = logits(model), sum(p.numel() for p in model.parameters()), torch.get_rng_state()
    names = add_lora(model, Lora(rank=4))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert torch.equal(logits(model), before)
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (
        0 < free < 0.5 * count and "head" not in names and len(names) == 9
    )  # qkv, out, gate_up, down of two blocks; place
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model, Lora())


def test_only_adapters_learn_and_merging_keeps_the_function(tmp_path):
    model, _ = trained(tmp_path)
    fresh, changed = logits(network()), logits(model)
    assert (changed - fresh).nan_to_num().abs().max() > 1e-3
    original = dict(network().named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, original[name.replace(".base_layer", "")]), name
    save_lora(model, Lora(rank=4), tmp_path / "adapter")
    merge_lora(model)
    assert {*dict(model.named_parameters())} == {*original}
    assert torch.allclose(logits(model), changed, atol=1e-5)
    again = network()
    assert load_lora(again, tmp_path / "adapter") == Lora(rank=4)
    assert torch.equal(logits(again), changed)


def test_clear_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no linear map ends like that; there are down, gate_up"):
        add_lora(network(), Lora(targets=("nothing",)))
    for wrong in ({"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Lora(**wrong)
    with pytest.raises(ValueError, match="no adapters in"):
        load_lora(network(), tmp_path)
    model, _ = trained(tmp_path, Lora(rank=2, targets=("qkv",)), steps=1)
    save_lora(model, Lora(rank=3, targets=("qkv",)), tmp_path)
    with pytest.raises(ValueError, match="of another network"):
        load_lora(network(), tmp_path)


def test_saved_adapters_are_whole_or_refused(tmp_path, monkeypatch):
    model = network()
    add_lora(model, Lora(rank=2))
    save_lora(model, Lora(rank=2), tmp_path)
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(good) == {"lora.json", "lora.safetensors"}

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("discdiff.training.lora.write_json", full)
        next(p for p in model.parameters() if p.requires_grad).data.add_(1.0)
        with pytest.raises(OSError, match=r"was not written: .*No space left.* bytes are free there"):
            save_lora(model, Lora(rank=2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good, "the older ones are as they were"
    with pytest.raises(OSError, match="lora.json.* was not written"):
        save_lora(model, Lora(rank=2), tmp_path / "lora.json")
    (tmp_path / "lora.safetensors").write_bytes(good["lora.safetensors"][:-1] + b"?")
    with pytest.raises(ValueError, match="does not have the SHA-256"):
        load_lora(network(), tmp_path)
    settings = json.loads(good["lora.json"])
    del settings["sha256"]  # as they were written before
    (tmp_path / "lora.json").write_text(json.dumps(settings))
    (tmp_path / "lora.safetensors").write_bytes(good["lora.safetensors"][:-9])
    with pytest.raises(ValueError, match="no adapters in"):
        load_lora(network(), tmp_path)
    (tmp_path / "lora.safetensors").write_bytes(good["lora.safetensors"])
    assert load_lora(network(), tmp_path) == Lora(rank=2)
