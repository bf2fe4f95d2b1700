"""Stock models as networks: folders and back, growing, LoRA, checkpointing, training, sampling."""

import json

import pytest
import torch
import transformers
from hosted_toy import CONFIGS, DECODERS, LENGTH, ROWS, hosted, layout, logits, stock, tokens
from safetensors.torch import load_file, save_file

import discdiff as dd
from discdiff.models.hosted import HostedConfig, HostedModel


class Tokenizer:
    """As much of a tokenizer as is asked for."""

    mask_token_id, bos_token_id, eos_token_id = 58, 0, 1

    def get_vocab(self):
        return {str(i): i for i in range(59)}


def same_weights(one, two):
    left, right = one.state_dict(), two.state_dict()
    return [*left] == [*right] and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_and_the_way_back_are_bit_exact(name, tmp_path):
    original = stock(name, dtype=torch.float32)
    original.save_pretrained(tmp_path / "stock")
    state = torch.get_rng_state()
    model = HostedModel.from_host(tmp_path / "stock", vocab_size=59, mask_token_id=58).eval()
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    model.save_pretrained(tmp_path / "own")
    again = HostedModel.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(logits(again), logits(model)) and same_weights(again, model)
    assert again.vocab == model.vocab and again.vocab.mask == 58 and again.vocab.total >= ROWS
    stored = load_file(tmp_path / "own" / "model.safetensors")
    tables = [n for n, x in stored.items() if x.shape[0] == model.vocab.total and x.ndim == 2]
    assert len(tables) == (1 if original.config.tie_word_embeddings else 2), "tied weights are stored once"
    back = again.to_host()
    assert type(back) is type(original) and same_weights(back, original)
    assert back.config.vocab_size == ROWS and again.host.config.vocab_size == again.vocab.total
    back.save_pretrained(tmp_path / "back")
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("stock", "back")]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][n], files[1][n]) for n in files[0])
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("stock", "back")]
    assert configs[0] == configs[1]


def test_pickled_weights_of_a_stock_model_are_read_as_weights_only(tmp_path):
    original = stock("llama", dtype=torch.float32)
    original.config.save_pretrained(tmp_path)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_weights(HostedModel.from_host(tmp_path).to_host(), original)


def test_what_a_checkpoint_lacks_is_an_error(tmp_path):
    stock("llama", dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    changes = {
        "missing keys: lm_head.weight": {n: x for n, x in weights.items() if n != "lm_head.weight"},
        "unexpected keys: extra": {**weights, "extra": torch.zeros(1)},
        "mismatched keys: .*model.norm.weight": {**weights, "model.norm.weight": torch.zeros(5)},
    }
    for message, changed in changes.items():
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            HostedModel.from_host(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    damage = {
        "model_type": ({"model_type": "llada"}, "supported are gpt2"),
        "deep": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        "type": ({"hidden_size": "large"}, "hidden_size"),
        "wide": ({"hidden_size": 2**19, "intermediate_size": 2**20}, "fit on no machine|of memory"),
    }
    for changed, message in damage.values():
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(ValueError, match=message):
            HostedModel.from_host(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not tensors")
    with pytest.raises(ValueError, match="no valid safetensors"):
        HostedModel.from_host(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter_config.json"):
        HostedModel.from_host(tmp_path)


def test_own_folders_in_other_dtypes_and_damaged(tmp_path):
    model = hosted("qwen3", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    small = HostedModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager").eval()
    assert small.host.dtype == torch.bfloat16 and small.host.config._attn_implementation == "eager"
    assert (logits(small).float() - logits(model)).abs().mean() < 0.2
    with pytest.raises(ValueError, match="'flash_attention_2'.*'sdpa' or 'eager'"):
        HostedModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    values = {name: x for name, x in model.config.to_dict().items() if name not in ("architectures", "model_type")}
    for changed, message in {
        "max_length": ({"max_length": 41}, "max_length is 41: this qwen3 has 40 positions"),
        "time": ({"time_conditioning": True}, "takes no time"),
        "host": ({"host": {"model_type": "mamba"}}, "supported are"),
        "rows": ({"host": {**model.config.host, "vocab_size": 10**6}}, "fewer than the 1000000 rows"),
    }.values():
        with pytest.raises(ValueError, match=message):
            HostedConfig(**{**values, **changed})


def test_tokenizer_says_ids_mask_and_ends():
    vocab = hosted("gpt2", tokenizer=Tokenizer()).vocab
    assert (vocab.text_size, vocab.mask, vocab.special("BOS"), vocab.special("EOS")) == (59, 58, 0, 1)
    vocab = hosted("gpt2", vocab_size=60, mask_token_id=60).vocab
    assert (vocab.text_size, vocab.mask) == (61, 60), "the first id beyond the tokenizer becomes text"
    vocab = HostedModel.from_host(stock("gpt2", vocab_size=1000), vocab_size=50).vocab
    assert vocab.total >= 1000 and vocab.mask == vocab.special("MASK"), "no row of the host is lost"


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "modernbert"])
def test_new_modalities_move_no_text_id(name, tmp_path):
    model = hosted(name, dtype=torch.float32)
    before, old = logits(model), model.vocab
    mean = model.tables[0].weight[:ROWS].mean(0)
    assert (model.tables[0].weight[ROWS:] - mean).abs().max() < 1.0 and model.tables[0].weight[ROWS:].std() > 0
    model.resize(old.extend(dd.Modality("image", 300)))
    assert torch.equal(logits(model), before) and model.vocab.total > old.total
    segments = (dd.Segment("text", "text", (4,), noised=False), dd.Segment("image", "image", (6,)))
    lay = dd.Layout(model.vocab, segments)
    ids = torch.cat([tokens()[:, :4], torch.full((3, 6), model.vocab.mask)], 1)
    out = model.generate(dd.make_batch(lay, ids), steps=2, seed=0)[0]
    first, size = model.vocab.range("image")
    assert bool(((out[:, 4:] >= first) & (out[:, 4:] < first + size)).all())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(HostedModel.from_pretrained(tmp_path)), before)
    assert same_weights(model.to_host(), stock(name, dtype=torch.float32))


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "roberta"])
def test_lora_changes_nothing_at_first(name):
    peft = pytest.importorskip("peft")
    from discdiff.training.lora import Lora, add_lora, merge_lora

    model = hosted(name)
    before = logits(model)
    assert len(add_lora(model, Lora(rank=2))) >= 8
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match="merge_lora"):
        model.to_host()
    merge_lora(model)
    assert torch.equal(logits(model), before) and same_weights(model.to_host(), stock(name))
    wrapped = peft.get_peft_model(hosted(name), peft.LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        hidden = wrapped(batch=dd.make_batch(layout(model), tokens())).hidden
        assert torch.equal(hidden, model(batch=dd.make_batch(layout(model), tokens())).hidden)


@pytest.mark.parametrize("name", ["gpt2", "qwen2-local", "modernbert"])
def test_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model = hosted(name, dtype=torch.float64)
        for module in model.modules():
            module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 15
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-12) for n in gradients[0])


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_short_training_lowers_the_loss(name, tmp_path):
    model = hosted(name, dtype=torch.float32, shift=name in DECODERS)
    seen = []

    class Annealing(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if name in DECODERS:
                model.openness, model.openness_seed = min(1.0, (state.global_step + 1) / 10), state.global_step
                seen.append(model.openness)

    rows = [{"tokens": row % 3} for row in tokens(8)]
    settings = dd.TrainingSettings(steps=30, batch_size=8, learning_rate=1e-2, progress=False, log_every=5)
    trainer = dd.DiffusionTrainer(
        model, settings, dd.Elbo(), layout(model), rows, output_dir=tmp_path / "run", callbacks=[Annealing()]
    )
    trainer.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < 0.7 * losses[0] and (name not in DECODERS or seen[0] == 0.1 and seen[-1] == 1.0)
    out = model.eval().generate(torch.full((2, LENGTH), model.vocab.mask), steps=4, seed=0)[0]
    assert int(out.max()) < ROWS
    trainer.save_model(tmp_path / "model")
    assert torch.equal(logits(HostedModel.from_pretrained(tmp_path / "model").eval()), logits(model))


@pytest.mark.parametrize("name", ["llama", "modernbert"])
def test_bf16_autocast(name):
    model = hosted(name, dtype=torch.float32)
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = logits(model)
        loss = model(input_ids=tokens(), labels=tokens()).loss
    assert rough.isfinite().all() and (rough.float() - exact).abs().mean() < 0.1 and loss.isfinite()
