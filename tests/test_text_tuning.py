"""Fine-tuning of block models, on several ranks, and what the text commands refuse before they read data."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import foreign_toy
import pytest
import torch
from test_text_finetune import tuned
from test_text_task import write
from text_toy import words

from discdiff.checkpoints import load
from discdiff.clocks import Blocks
from discdiff.config import to_dict
from discdiff.layout import make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel, DitModel, HostedModel
from discdiff.objectives import BlockElbo
from discdiff.processes import Absorbing, Uniform
from discdiff.training import TrainingSettings
from tasks.text import __main__ as command
from tasks.text import finetune as module
from tasks.text.folder import load_model, save_task
from tasks.text.improve import distill, energy
from tasks.text.jobs import likelihood
from tasks.text.rows import layout_for
from tasks.text.settings import Chosen, Corpus
from tasks.text.training import objective_for

BLOCKS = {"bd3lm": 11, "sdar": 31}  # and the longest rows
SCORING = "--rows 8 --draws 1 --shard 4 --progress false"


def checkpoint(folder: Path, member: str) -> Path:
    """A tiny public checkpoint with a tokenizer of few words."""
    if member in foreign_toy.DECODERS:
        _, config, state = foreign_toy.decoder(member)
    else:
        config, state = foreign_toy.dit_config(member), foreign_toy.dit_state(member)
        config |= {} if "sedd" in member else {"mask_token_id": foreign_toy.MASK}
    foreign_toy.write(folder, config, state)
    words().save_pretrained(folder)
    return folder


def saved(run: Path, model, layout, process, corpus: Path) -> None:
    """The folder of a task whose model is this one."""
    model.config.layout, model.config.process = to_dict(layout), to_dict(process)
    model.save_pretrained(run / "model")
    length = layout.length - 1
    save_task(run, {"corpus": Corpus(str(corpus), length=length, cache=str(run / "cache"))}, words())


def network(layout, **more):
    """A tiny network of ours."""
    return DiscDiffModel.seeded(
        DiscDiffConfig(vocab=layout.vocab, hidden_size=16, num_layers=1, num_heads=2, **more), 0
    )


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "words.txt", "a b c a a b\n" * 200)


@pytest.fixture
def unread(monkeypatch):
    """No data may be read."""

    def read(*_):
        raise AssertionError("data was read")

    monkeypatch.setattr("tasks.text.rows.load_rows", read)
    monkeypatch.setattr("tasks.text.finetune.load_rows", read)


@pytest.mark.parametrize("member", BLOCKS)
def test_a_block_model_is_tuned_behind_clean_blocks(member, corpus, tmp_path, monkeypatch):
    seen, run, kind = [], tmp_path / "run", HostedModel if member == "sdar" else DitModel
    forward = kind.hidden

    def watched(model, batch, *more, **named):
        seen.append(batch.layout)
        return forward(model, batch, *more, **named)

    monkeypatch.setattr(kind, "hidden", watched)
    flags = f"--length {BLOCKS[member]} --steps 2 --log_every 2 --batch_size 4 --show 0"
    tuned(corpus, checkpoint(tmp_path / "base", member), run, *flags.split())
    assert len(seen) > 2 and all(layout.is_doubled and layout.block == 4 for layout in seen)
    assert load_model(run / "model").layout.length == BLOCKS[member] + 1


def test_a_block_model_is_sampled_and_bounded_by_blocks(corpus, tmp_path, capsys):
    run, model = tmp_path / "run", load(checkpoint(tmp_path / "base", "bd3lm"))
    saved(run, model, module.rows_layout(model, 11), Absorbing(), corpus)
    model, layout, process = load_model(run / "model")
    objective = objective_for(process, model.config.prediction, layout.block)
    assert isinstance(objective, BlockElbo) and objective.elbo.kind == "own"
    assert Chosen().build(process, layout.block).clock == Blocks(4) and Chosen().build(process).clock is None
    command.sample("sample", [str(run), "--count", "1", "--prompt", "a b", "--sampler.steps", "8"])
    likelihood("likelihood", [str(run), *SCORING.split(), "--out", str(tmp_path / "nats")])
    assert "nats per row" in capsys.readouterr().out
    with pytest.raises(ValueError, match="block is 4: energies and grids"):
        distill("distill", [str(run)])


@pytest.mark.parametrize(
    ("member", "length", "message"),
    [
        ("bd3lm", 12, "length is 12: .*24 slots, are blocks of 4, .*give --length 11"),
        ("bd3lm", 15, "give --length 11"),
        ("bd3lm", 8, "give --length 7"),
        ("sdar", 63, "give --length 31"),
    ],
)
def test_rows_that_make_no_blocks_are_refused(member, length, message, corpus, tmp_path, unread):
    with pytest.raises(ValueError, match=message):
        tuned(corpus, checkpoint(tmp_path / "base", member), tmp_path / "run", "--length", str(length))
    if member == "sdar":
        with pytest.raises(ValueError, match="shift is True: a model of blocks predicts in place"):
            tuned(corpus, tmp_path / "base", tmp_path / "run", "--length", "31", "--shift", "true")


def test_log_scores_are_refused(corpus, tmp_path, unread):
    base = checkpoint(tmp_path / "base", "sedd_uniform")
    with pytest.raises(ValueError, match="prediction is 'score'"):
        tuned(corpus, base, tmp_path / "run", "--length", "8")
    layout = layout_for(words(), 8)
    model = network(layout, prediction="score", time_conditioning=True)
    saved(tmp_path / "run", model, layout, Uniform(), corpus)
    for each in (partial(command.evaluate, "evaluate"), partial(likelihood, "likelihood"), partial(energy, "energy")):
        with pytest.raises(ValueError, match="prediction is 'score'"):
            each([str(tmp_path / "run")])


def test_the_objective_predicts_what_the_network_does():
    assert objective_for(Uniform()).kind == "cavity" and objective_for(Uniform(), "own").kind == "own"
    assert objective_for(Absorbing(), "own").masker is not None


def test_conversations_are_no_text(corpus, tmp_path, unread):
    sections = {"corpus": Corpus(str(corpus)), "tuning": module.Tuning("chat")}
    save_task(tmp_path / "run", sections, words())
    for each in (partial(command.evaluate, "evaluate"), partial(likelihood, "likelihood"), partial(energy, "energy")):
        with pytest.raises(ValueError, match="it was tuned on conversations"):
            each([str(tmp_path / "run")])


def test_nothing_is_annealed_without_a_causal_mask(tmp_path):
    model = load(checkpoint(tmp_path / "base", "mdlm"))
    layout, tuning = module.rows_layout(model, 8), module.Tuning(anneal_steps=10)
    with pytest.raises(ValueError, match="anneal_steps is 10: .* which a DitModel does not"):
        module.check_model(model, layout, tuning)
    module.check_model(model, layout, replace(tuning, anneal_steps=0))
    module.check_model(load(checkpoint(tmp_path / "other", "dream")), layout, tuning)


def test_an_encoder_is_not_annealed(corpus, tmp_path, unread):
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        host = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=40, **shape))
    host.save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="anneal_steps is 10: .* which a BertForMaskedLM does not have"):
        tuned(corpus, tmp_path / "base", tmp_path / "run", "--anneal_steps", "10")


@pytest.mark.parametrize("by", ["flag", "launcher"])
def test_shards_are_neither_shown_nor_merged(by, tmp_path, monkeypatch):
    training = TrainingSettings(fsdp=by == "flag")
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for tuning, message in (
        (module.Tuning(), "show is 2: .*--show 0"),
        (module.Tuning(show=0, lora_rank=4), "lora_rank is 4"),
    ):
        with pytest.raises(ValueError, match=message):
            module.check_sharding(tuning, training)
        with pytest.raises(ValueError, match=message):  # before the model is looked at
            module.tune(None, None, tuning, training, None, None, tmp_path)
        flags = f"--show {tuning.show} --lora_rank {tuning.lora_rank} --fsdp {str(by == 'flag').lower()}"
        with pytest.raises(ValueError, match=message):  # and before it is loaded
            module.finetune("finetune", [str(tmp_path / "none"), *flags.split()])
    module.check_sharding(module.Tuning(show=0), training)


# ---- several ranks


def test_the_first_rank_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    save_task(tmp_path / "run", {"corpus": Corpus()}, words())
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    save_task(tmp_path / "run", {"corpus": Corpus()}, words())
    assert (tmp_path / "run" / "task.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_alone_reports(rank, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(module, "tune", lambda *_: SimpleNamespace(evaluate=lambda: {"eval_loss": 1.0}))
    run = tmp_path / "run"
    flags = f"--source {corpus} --length 8 --device cpu --cache {tmp_path / 'cache'} --out {run}"
    module.finetune("finetune", [str(checkpoint(tmp_path / "base", "mdlm")), *flags.split()])
    assert {p.name for p in run.glob("*.json")} == (
        {"metrics.json", "manifest.json", "task.json"} if rank == 0 else set()
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_alone_saves_the_adapters(rank, tmp_path, monkeypatch):
    class Still(module.DiffusionTrainer):
        def train(self, resume):
            pass

        def save_model(self, folder):
            assert not any("lora" in name for name, _ in self.model.named_parameters())

    monkeypatch.setattr("transformers.TrainingArguments.should_save", property(lambda _: rank == 0))
    monkeypatch.setattr(module, "DiffusionTrainer", Still)
    layout = layout_for(words(), 8)
    rows = [{"tokens": make_batch(layout, torch.ones(1, 9).long(), check=False).tokens[0].numpy()}] * 8
    settings = TrainingSettings(batch_size=4, device="cpu", progress=False)
    tuning = module.Tuning(lora_rank=2, show=0)
    module.tune(network(layout), layout, tuning, settings, rows, rows, tmp_path / "model")
    assert (tmp_path / "adapter").exists() == (rank == 0)


def test_a_rank_without_shards_ends(corpus, tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", str(tmp_path / "nats")
    layout = layout_for(words(), 8)
    saved(run, network(layout), layout, Absorbing(), corpus)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        likelihood("likelihood", [str(run), *SCORING.split(), "--out", out])
    assert capsys.readouterr().out.count("nats per row") == 1
