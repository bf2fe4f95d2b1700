"""Public checkpoints in: the same logits, whatever the file kind; and back: the same bits; anything else is refused."""

import json
import os
import shutil
import sys
import types
from fnmatch import fnmatch

import pytest
import torch
from foreign_toy import DIT, HEADS, LENGTH, MASK, ROWS, bare, dit_config, dit_state, parameters, write
from restated_dit import dit
from safetensors.torch import load_file, save_file

from discdiff.checkpoints import FORMATS, convert, load, load_foreign
from discdiff.cli import MAIN
from discdiff.models import load_network

SETTINGS = {"mdlm": {"mask_token_id": MASK}, "bd3lm": {"mask_token_id": MASK}}


def folder_of(where, member, state=None, kind="safetensors"):
    return write(where / f"{member}_{kind}", dit_config(member), dit_state(member) if state is None else state, kind)


def ids_of(member):
    return torch.randint(0, ROWS[member], (3, LENGTH), generator=torch.Generator().manual_seed(1))


def sigma_of(member, time):
    if member == "sedd_uniform":
        return 1e-3 ** (1 - time) * 5.0**time
    return -torch.log1p(-(1 - 1e-3) * time) if member in ("udlm", "duo", "sedd") else torch.zeros_like(time)


def raw_logits(model, ids, time):
    """What the head gives for each id, the mask's too."""
    hidden = model(input_ids=ids, time=time).hidden
    return hidden @ model.head_table.T


@pytest.mark.parametrize("member", DIT)
def test_logits_are_those_of_the_restated_network(member, tmp_path):
    state, ids, time = dit_state(member), ids_of(member), torch.tensor([0.1, 0.5, 0.9])
    model = load_foreign(folder_of(tmp_path, member), **SETTINGS.get(member, {}))
    label = torch.full((3,), 3) if member == "udlm" else None
    expected = dit(bare(state), ids, sigma_of(member, time.double()), HEADS, label)
    found = raw_logits(model, ids, time if model.config.time_conditioning else None)[..., : ROWS[member]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    other = dit(bare(dit_state(member, seed=1)), ids, sigma_of(member, time.double()), HEADS, label)
    assert (found - other).abs().max() > 0.1


def test_what_each_member_is_is_set_once(tmp_path):
    found = {m: load_foreign(folder_of(tmp_path, m), **SETTINGS.get(m, {})) for m in DIT}
    said = {m: (x.config.process["type"], x.config.prediction, x.config.time_conditioning) for m, x in found.items()}
    assert said == {
        "mdlm": ("Absorbing", "own", False),
        "bd3lm": ("Absorbing", "own", False),
        "udlm": ("Uniform", "cavity", True),
        "duo": ("Uniform", "cavity", True),
        "sedd": ("Absorbing", "own", True),
        "sedd_uniform": ("Uniform", "score", True),
    }
    assert [found[m].vocab.mask_id for m in DIT] == [49, 49, None, None, 49, None]
    assert [found[m].vocab.text_size for m in DIT] == [ROWS[m] for m in DIT]
    assert found["bd3lm"].config.layout["attention"] == "block_causal" and found["bd3lm"].config.layout["block"] == 4
    assert found["sedd_uniform"].config.process["schedule"] == {"type": "Geometric", "low": 1e-3, "high": 5.0}
    logits = found["mdlm"](input_ids=ids_of("mdlm"), output_logits=True).logits
    assert (
        logits[..., MASK:].max() == -torch.inf and logits[..., :MASK].isfinite().all()
    )  # mask and rows beyond: banned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("member", DIT)
def test_there_and_back_bit_for_bit(member, dtype, tmp_path):
    state = dit_state(member, dtype=dtype)
    source = folder_of(tmp_path, member, state)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 12}')
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert(source, ours, **SETTINGS.get(member, {}))
    assert not [f for f in os.listdir(tmp_path) if f.startswith(".")]
    model = load_network(ours)
    ids = ids_of(member)
    direct = load_foreign(source, **SETTINGS.get(member, {}))
    assert torch.equal(model(input_ids=ids, time=0.4).hidden, direct(input_ids=ids, time=0.4).hidden)
    convert(ours, back)
    again = load_file(back / "model.safetensors")
    assert set(again) == set(state)
    assert all(x.dtype == state[key].dtype and torch.equal(x, state[key]) for key, x in again.items())
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads((back / name).read_text()) == json.loads((source / name).read_text())


@pytest.mark.parametrize("part", ["linear.weight", "linear.bias", "mlp"])
def test_several_dtypes_stay_what_they_were(part, tmp_path):
    state = {key: x.bfloat16() if part in key else x for key, x in dit_state("mdlm").items()}
    convert(folder_of(tmp_path, "mdlm", state), tmp_path / "ours", **SETTINGS["mdlm"])
    convert(tmp_path / "ours", tmp_path / "back")
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert all(x.dtype == state[key].dtype and torch.equal(x, state[key]) for key, x in again.items())


def test_a_changed_weight_goes_back_changed(tmp_path):
    convert(folder_of(tmp_path, "mdlm"), tmp_path / "ours", **SETTINGS["mdlm"])
    model = load_network(tmp_path / "ours")
    with torch.no_grad():
        model.head.weight[5, -1] = 7.0
    model.save_pretrained(tmp_path / "tuned")
    convert(tmp_path / "tuned", tmp_path / "back", to="original")
    again, state = load_file(tmp_path / "back" / "model.safetensors"), dit_state("mdlm")
    changed = [key for key in state if not torch.equal(state[key], again[key])]
    assert changed == ["backbone.output_layer.linear.bias"] and again[changed[0]][5] == 7.0


@pytest.mark.parametrize("kind", ["bin", "sharded", "sharded_bin"])
def test_other_kinds_of_files(kind, tmp_path):
    folder = folder_of(tmp_path, "mdlm", kind=kind)
    plain = load_foreign(folder_of(tmp_path, "mdlm"), mask_token_id=MASK).state_dict()
    found = load_foreign(folder, mask_token_id=MASK).state_dict()
    assert all(torch.equal(x, found[key]) for key, x in plain.items()) and set(plain) == set(found)
    shards = sorted(folder.glob("*-00002-of-00002*"))
    if shards:
        shards[0].unlink()
        with pytest.raises(ValueError, match="names the shard .*00002-of-00002"):
            load_foreign(folder, mask_token_id=MASK)


@pytest.mark.parametrize("has_config", [True, False])
def test_lightning_weights_are_the_averaged_ones(has_config, tmp_path):
    plain, averaged = dit_state("mdlm", seed=0), dit_state("mdlm", seed=1)
    shadow = [x for _, x in parameters(averaged)]
    shuffled = dict(sorted(plain.items()))  # the list's order is that of parameters(), whatever that of the dictionary
    file = write(tmp_path / "run", dit_config("mdlm") if has_config else None, (shuffled, shadow), "lightning")
    sizes = {} if has_config else {"format": "mdlm", "model_length": LENGTH}
    reference = load_foreign(folder_of(tmp_path, "mdlm", averaged), mask_token_id=MASK)
    found = load_foreign(file, mask_token_id=MASK, **sizes)
    assert all(torch.equal(x, found.state_dict()[key]) for key, x in reference.state_dict().items())
    assert found.config.num_heads == HEADS and found.config.max_length == LENGTH
    last = load_foreign(file, mask_token_id=MASK, ema=False, **sizes)
    assert torch.equal(last.embed.weight[:50], plain["backbone.vocab_embed.embedding"])
    for wrong in (shadow[:-1], [*shadow[1:], shadow[0]]):
        file = write(tmp_path / "wrong", dit_config("mdlm"), (plain, wrong), "lightning")
        with pytest.raises(ValueError, match=r"shadow_params has \d+ tensors for 30 parameters"):
            load_foreign(file, mask_token_id=MASK)


class _Settings:
    """Pretends to be a settings object of a training framework."""

    def __init__(self, **values):
        self.content = values


def test_settings_objects_of_a_training_run_are_skipped_unread(tmp_path):
    plain = dit_state("mdlm")
    kind = type("DictConfig", (_Settings,), {"__module__": "omegaconf.dictconfig"})
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = kind
    sys.modules.update({"omegaconf": types.ModuleType("omegaconf"), "omegaconf.dictconfig": module})
    try:
        torch.save({"state_dict": plain, "hyper_parameters": {"config": kind(a=1)}}, tmp_path / "last.ckpt")
    finally:
        del sys.modules["omegaconf"], sys.modules["omegaconf.dictconfig"]
    found = load_foreign(tmp_path / "last.ckpt", "mdlm", mask_token_id=MASK)
    assert (
        torch.equal(found.embed.weight[:50], plain["backbone.vocab_embed.embedding"]) and "omegaconf" not in sys.modules
    )


class _Runs:
    def __reduce__(self):
        return os.mkdir, (_Runs.target,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(name, tmp_path):
    _Runs.target = str(tmp_path / "ran")
    torch.save({**dit_state("mdlm"), "extra": _Runs()}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(dit_config("mdlm")))
    with pytest.raises(ValueError, match=f"{name} is a pickle that holds more than tensors.*mkdir"):
        load_foreign(tmp_path, mask_token_id=MASK)
    assert not (tmp_path / "ran").exists()
    os.rename(tmp_path / name, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is no valid safetensors"):
        load_foreign(tmp_path, mask_token_id=MASK)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["missing", "superfluous", "of another shape", "renamed"])
def test_keys_that_do_not_fit_are_listed(damage, tmp_path):
    state, key = dit_state("mdlm"), "backbone.blocks.1.mlp.0.bias"
    if damage == "of another shape":
        state[key] = state[key][:-1].clone()
    elif damage == "superfluous":
        key = "backbone.blocks.2.norm1.weight"
        state[key] = torch.ones(32)
    else:
        value = state.pop(key)
        state |= {"backbone.blocks.1.mlp.1.bias": value} if damage == "renamed" else {}
    wanted = ["missing", "superfluous"] if damage == "renamed" else [damage]
    for kind in ("safetensors", "bin"):
        with pytest.raises(ValueError, match="do not fit") as error:
            load_foreign(folder_of(tmp_path, "mdlm", state, kind), mask_token_id=MASK)
        assert key in str(error.value) and all(f"{word}: " in str(error.value) for word in wanted)


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"model_type": "gpt2"}, {}, "of no known format.*gpt2.*backbone"),
        ({"model_type": "discdiff_dit"}, {}, "model of this library"),
        ({}, {}, "mask_token_id is None"),
        ({}, {"mask_token_id": 50}, "mask_token_id is 50"),
        ({}, {"mask_tokn_id": 49}, "unknown settings .*mask_tokn_id"),
        ({}, {"format": "mdml"}, "unknown format 'mdml'"),
        ({"causal": True}, {"mask_token_id": 49}, "causal is True"),
        ({"vocab_size": "50"}, {"mask_token_id": 49}, "vocab_size is '50'"),
        ({"hidden_dim": None}, {"mask_token_id": 49}, "hidden_size is None"),
        ({"hidden_dim": 2**19, "n_heads": 4}, {"mask_token_id": 49}, "memory|do not fit"),
        ({"n_blocks": 3}, {"mask_token_id": 49}, "missing: backbone.blocks.2.norm1.weight"),
        ({"n_heads": 8}, {"mask_token_id": 49}, "inv_freq is"),
    ],
)
def test_unknown_and_impossible_configurations(change, settings, said, tmp_path):
    folder = write(tmp_path / "a", {**dit_config("mdlm"), **change}, dit_state("mdlm"))
    with pytest.raises(ValueError, match=said):
        load_foreign(folder, **settings)


def test_files_that_cannot_be_read(tmp_path):
    folder = folder_of(tmp_path, "mdlm")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="model.safetensors is no valid safetensors"):
        load_foreign(folder)
    (folder / "config.json").write_text('{"model_type": "mdlm"')
    with pytest.raises(ValueError, match="config.json.* cannot be read as JSON"):
        load_foreign(folder)
    for name in ("a.pt", "b.pt"):
        (tmp_path / "two").mkdir(exist_ok=True)
        torch.save(dit_state("mdlm"), tmp_path / "two" / name)
    with pytest.raises(ValueError, match="found: a.pt, b.pt"):
        load_foreign(tmp_path / "two")
    (tmp_path / "two" / "a.pt").write_bytes((tmp_path / "two" / "a.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="a.pt"):
        load_foreign(tmp_path / "two" / "a.pt", "mdlm")
    with pytest.raises(ValueError, match="there is no"):
        load_foreign(tmp_path / "three")
    index = {"weight_map": {"x": "../two/b.pt"}}
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the shard '../two/b.pt'"):
        load_foreign(tmp_path / "far")


def test_the_command(tmp_path, capsys):
    source = folder_of(tmp_path, "mdlm")
    MAIN(["convert", str(source), str(tmp_path / "ours"), "--mask_token_id", "49"])
    MAIN(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "original"])
    assert capsys.readouterr().out.count("wrote") == 2
    with pytest.raises(ValueError, match="exists: name a new folder"):
        MAIN(["convert", str(source), str(tmp_path / "ours"), "--mask_token_id", "49"])
    with pytest.raises(ValueError, match="convert it to the other"):
        MAIN(["convert", str(tmp_path / "ours"), str(tmp_path / "third"), "--to", "ours"])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["back", "mdlm_safetensors", "ours"]
    with pytest.raises(ValueError, match="do not fit"):
        state = dit_state("mdlm")
        state.popitem()
        save_file(dict(state), source / "model.safetensors")
        MAIN(["convert", str(source), str(tmp_path / "third"), "--mask_token_id", "49"])
    assert not (tmp_path / "third").exists() and set(FORMATS) >= {"mdlm", "sedd", "bd3lm", "udlm", "duo"}


@pytest.mark.parametrize("member", DIT)
def test_it_generates_legal_tokens_and_keeps_the_prompt(member, tmp_path):
    model = load_foreign(folder_of(tmp_path, member), **SETTINGS.get(member, {}))
    rows = torch.full((2, LENGTH), model.vocab.mask)
    rows[:, :3] = torch.tensor([7, 8, 9])
    tokens, info = model.generate(rows, "ancestral", steps=4)
    assert torch.equal(tokens[:, :3], rows[:, :3]) and info.nfe > 0
    assert (
        bool((tokens >= 0).all())
        and bool((tokens < ROWS[member]).all())
        and not bool((tokens == model.vocab.mask).any())
    )


def test_hub_name(tmp_path, monkeypatch):
    """A name on the hub is the folder that the hub's cache has of it, for public formats and for ours."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    where, commit = tmp_path / "cache" / "models--lab--toy", "0123456789abcdef0123456789abcdef01234567"
    (where / "refs").mkdir(parents=True)
    (where / "refs" / "main").write_text(commit)
    local = folder_of(tmp_path, "mdlm")
    shutil.copytree(local, where / "snapshots" / commit)
    found, wanted = load("lab/toy", cache_dir=tmp_path / "cache", mask_token_id=MASK), load(local, mask_token_id=MASK)
    assert torch.equal(raw_logits(found, ids_of("mdlm"), None), raw_logits(wanted, ids_of("mdlm"), None))
    with pytest.raises(ValueError, match="lab/none"):
        load("lab/none", cache_dir=tmp_path / "cache")


def test_a_chat_template_is_downloaded(tmp_path, monkeypatch):
    local, asked = folder_of(tmp_path, "mdlm"), []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda path, name, **_: local / name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda path, **how: asked.append(how) or str(local))
    load("lab/toy", mask_token_id=MASK)
    assert any(fnmatch("chat_template.jinja", pattern) for pattern in asked[0]["allow_patterns"])


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("mdlm", {"model_length": 24, "bos_id": 1, "eos_id": 2}),
        ("bd3lm", {"block_size": 2}),
        ("sedd", {"model_length": 24, "n_heads": 2}),
    ],
)
def test_what_was_said_otherwise_is_written_back(member, told, tmp_path):
    asked = SETTINGS.get(member, {})
    state = {key: x for key, x in dit_state(member).items() if "inv_freq" not in key}
    convert(folder_of(tmp_path, member, state), tmp_path / "ours", **{**asked, **told})
    convert(tmp_path / "ours", tmp_path / "back")
    again, ours = load_foreign(tmp_path / "back", **asked), load_network(tmp_path / "ours")
    for name in ("vocab_layout", "max_length", "num_heads", "layout"):
        assert getattr(again.config, name) == getattr(ours.config, name), name
    assert (told.get("n_heads") is None) or again.config.num_heads == 2


def test_sedd_has_no_place_for_another_mask(tmp_path):
    convert(folder_of(tmp_path, "sedd"), tmp_path / "ours", mask_token_id=7)
    with pytest.raises(ValueError, match="mask_token_id is 7: SEDD's is its last id 49"):
        convert(tmp_path / "ours", tmp_path / "back")
