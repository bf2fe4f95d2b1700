"""`python -m tasks.text finetune`: from our own folders and from stock checkpoints, on text and on conversations."""

import json
import re
import runpy
import shlex
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_docs import ROOT
from test_text_task import LINES, arguments, write
from transformers import GPT2Config, GPT2LMHeadModel

from discdiff.checkpoints import load
from discdiff.models import HostedModel
from tasks.text import __main__ as command
from tasks.text import tokenizer as tokenizers
from tasks.text.finetune import finetune

STEPS = "--steps 30 --batch_size 16 --learning_rate 3e-3 --device cpu --progress false --log_every 15 --length 16"
COMMANDS = {"finetune": partial(finetune, "finetune"), "sample": partial(command.sample, "sample")}
SOUNDS = {"cow": "moo", "cat": "mew", "dog": "woof", "owl": "hoot"}


def tuned(source, base, out, *flags):
    """The run of a finetune command: its folder and what the loss was at each report."""
    cache = f"--cache {out.parent / 'cache'} --out {out}"
    finetune("finetune", [str(base), "--source", str(source), *f"{STEPS} {cache}".split(), *flags])
    lines = (out / "model_training" / "metrics.jsonl").read_text().splitlines()
    return [x["loss"] for x in map(json.loads, lines) if "loss" in x]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "gpt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"vocab_size": 256, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
        GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    tokenizers.bytes_().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "lines.txt", "\n".join(LINES * 40) + "\n")


def test_a_stock_model_is_adapted_sampled_and_evaluated(gpt2, lines, tmp_path, capsys):
    losses = tuned(lines, gpt2, tmp_path / "run", "--eval_every", "15", "--show", "1")
    assert losses[-1] < losses[0]
    out = capsys.readouterr().out
    assert "bound on the validation rows" in out and out.count("[step ") >= 2
    model = load(tmp_path / "run" / "model")
    assert isinstance(model, HostedModel) and model.config.shift and model.vocab.text_size == 256
    command.sample("sample", [str(tmp_path / "run"), "--count", "2", "--prompt", "the ", "--sampler.steps", "4"])
    assert capsys.readouterr().out.count("-" * 40) == 2
    command.evaluate("evaluate", [str(tmp_path / "run"), "--samples", "2", "--eval_rows", "4", "--sampler.steps", "4"])
    assert "nats_per_token" in json.loads((tmp_path / "run" / "metrics.json").read_text())["model"]


def test_one_of_ours_goes_on(lines, tmp_path):
    command.train("train", arguments(lines, tmp_path / "first", "--steps", "30"))
    before = load_file(tmp_path / "first" / "model" / "model.safetensors")
    tuned(lines, tmp_path / "first", tmp_path / "second", "--length", "12")
    after = load_file(tmp_path / "second" / "model" / "model.safetensors")
    assert {*before} == {*after} and any(not torch.equal(before[name], after[name]) for name in before)


def test_conversations_are_learned_by_adapters(gpt2, tmp_path, capsys):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": a, "completion": s}) + "\n" for a, s in SOUNDS.items()) * 20)
    flags = "--data chat --lora_rank 4 --gradient_checkpointing true --length 40 --padding absent --pack true"
    losses = tuned(chats, gpt2, tmp_path / "run", *flags.split())
    assert losses[-1] < losses[0]
    own = load(tmp_path / "run" / "model")
    assert not any("lora" in name for name, _ in own.named_parameters())
    assert (tmp_path / "run" / "adapter" / "lora.safetensors").stat().st_size < 60_000
    capsys.readouterr()
    command.sample("sample", [str(tmp_path / "run"), "--count", "1", "--prompt", "cow", "--sampler.steps", "4"])
    assert capsys.readouterr().out.count("-" * 40) == 1


def test_a_stream_is_read_as_it_is_trained_on(gpt2, lines, tmp_path):
    tuned(lines, gpt2, tmp_path / "run", "--stream", "true", "--valid", str(lines), "--steps", "5", "--log_every", "5")
    assert not list((tmp_path / "cache").glob("nothing")) and (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--length 100", "length is 100: the model takes rows of at most 63"),
        ("--data chats", "data is 'chats': choose from text, chat"),
        ("--stream true", "a stream cannot be split"),
        ("--data chat --stream true", "conversations are read whole"),
        ("--shift maybe", "shift is 'maybe'"),
    ],
)
def test_what_cannot_be_is_refused(gpt2, lines, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        tuned(lines, gpt2, tmp_path / "run", *flags.split())


def test_the_readme_section_works_when_pasted(tmp_path, monkeypatch, capsys):
    """Its own lines, unchanged, in the order in which they stand."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Fine-tune your model.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert [line[:3] for line in lines] == [
        ["python", "-m", name] for name in ("examples.tiny_checkpoint", *["tasks.text"] * 2)
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", lines[0][2:])
    runpy.run_module("examples.tiny_checkpoint", run_name="__main__")
    for line in lines[1:]:
        COMMANDS[line[3]](line[4:])
    out = capsys.readouterr().out
    assert "saved to runs/tuned" in out and out.count("-" * 40) == 2
