"""Policies that begin with a text checkpoint, of the library or stock: what stays, what is new, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hosted_toy import stock
from policy_toy import SHOWN, observed

import discdiff as dd
from discdiff.checkpoints import load
from discdiff.models import DiscDiffModel, adapted
from discdiff.training import TrainingSettings
from tasks.text.tokenizer import characters
from tasks.vla.design import ACTION, SAY, STATE, Policy
from tasks.vla.learning import Loss, Rows, fit, untrained
from tasks.vla.policy import ActionPolicy
from tasks.vla.unified_learning import untrained as unified

TEXTS = [each.task for each in SHOWN]
SMALL = {"chunk": 4, "codebook_size": 32}
TALL = {"bert": {"max_position_embeddings": 128}, "llama": {"max_position_embeddings": 128}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of text checkpoints: one of the library, two stock models; their tokenizers beside them."""
    root, tokenizer = tmp_path_factory.mktemp("bases"), characters(TEXTS)
    size = max(tokenizer.get_vocab().values()) + 1
    vocab = dd.VocabLayout(size)
    config = dd.DiscDiffConfig(hidden_size=32, num_layers=2, num_heads=2, vocab=dataclasses.asdict(vocab))
    DiscDiffModel.seeded(config, 3).save_pretrained(root / "ours" / "model")
    for name, changes in TALL.items():
        stock(name, dtype=torch.float32, **changes).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tokenizer.save_pretrained(root / "ours" / "tokenizer")
    return root


def begun(bases, name, **settings):
    packed = {} if name == "ours" else {"packed": False}
    return untrained(Policy(base=str(bases / name), **{**SMALL, **packed, **settings}), SHOWN, 0)


def text_rows(network, words):
    layout = dd.Layout(network.vocab, (dd.Segment("text", "text", (words.shape[1],)),))
    return network(batch=dd.make_batch(layout, words)).hidden


@pytest.mark.parametrize("name", ["ours", *TALL])
def test_all_that_the_checkpoint_knew_stays(bases, name):
    policy, own = begun(bases, name), (bases / name / "model" if name == "ours" else bases / name)
    words = policy.lexicon.ids(TEXTS[:2])[:, :9].clamp(min=0)
    kept = load(own) if name != "ours" else DiscDiffModel.from_pretrained(own)
    features, policy.model.features = policy.model.features, None  # as long as it is told nothing
    torch.testing.assert_close(text_rows(policy.model, words), text_rows(kept.eval(), words))
    policy.model.features = features
    first, size = policy.layout.vocab.range(ACTION)
    assert first >= kept.vocab.text_size and size == 32
    assert policy.model.caches == (name == "ours") and policy.settings.packed == (name == "ours")
    assert torch.equal(begun(bases, name).model.features.maps[STATE].weight, features.maps[STATE].weight)


@pytest.mark.parametrize("name", ["ours", *TALL])
def test_they_learn_act_and_are_kept(bases, name, tmp_path):
    policy = begun(bases, name, picture=16 if name in ("ours", "bert") else 0)
    training = TrainingSettings(steps=12, batch_size=16, learning_rate=5e-3, progress=False, log_every=1)
    trained = fit(policy, SHOWN, training, tmp_path / "policy")
    lines = map(json.loads, (tmp_path / "policy_training" / "metrics.jsonl").read_text().splitlines())
    logged = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(logged[-3:]) < np.mean(logged[:3]) - 0.1
    state, said, pictures = observed(trained)
    actions = trained.predict_action(state, said, pictures, seed=[3, 1, 4, 1, 5])
    again = ActionPolicy.from_pretrained(tmp_path / "policy")
    assert np.array_equal(again.predict_action(state, said, pictures, seed=[3, 1, 4, 1, 5]), actions)
    alone = again.predict_action(state[1], said[1], None if pictures is None else pictures[1], seed=1)
    np.testing.assert_allclose(alone, actions[1], atol=1e-5)  # shorter instructions are not told of longer ones
    kept = again.predict_action(state, said, pictures, prefix=actions[:, :2])
    assert np.array_equal(kept[:, :2], actions[:, :2])


def test_instructions_are_read_by_the_tokenizer_of_the_checkpoint(bases):
    policy = begun(bases, "ours")
    short, long = min(TEXTS, key=len), max(TEXTS, key=len)
    ids, there = policy.lexicon.ids([short]), len(short)
    assert policy.lexicon.length == len(long) and (ids[0, there:] == -1).all()
    assert ids[0, :there].tolist() == policy.lexicon.tokenizer(short, add_special_tokens=False).input_ids
    batch = policy.rows(np.stack([SHOWN[0].state[0]] * 2), [short, long])
    columns = batch.layout.columns(SAY)
    assert batch.valid[:, columns].sum(1).tolist() == [len(short), len(long)] and batch.valid[1].all()
    row = Rows(policy, policy.layout, [dataclasses.replace(SHOWN[0], task=short)])[0]
    assert torch.equal(row["valid"], batch.valid[0])
    with pytest.raises(ValueError, match="instruction"):
        policy.predict_action(SHOWN[0].state[0], long + long[:3])


def test_refused(bases, tmp_path):
    for settings, match in (
        ({"method": "parallel"}, "masked policies begin with a checkpoint"),
        ({"hidden_size": 64}, "hidden_size is 64: it is that of"),
        ({"words": 3}, "words is 3"),
    ):
        with pytest.raises(ValueError, match=match):
            begun(bases, "ours", **settings)
    with pytest.raises(ValueError, match="a stock model has one token in a slot"):
        begun(bases, "bert", packed=True)
    with pytest.raises(ValueError, match="this bert has 128 positions"):
        begun(bases, "bert", chunk=20)
    with pytest.raises(ValueError, match="begin with one of text"):
        policy = begun(bases, "ours")
        adapted(policy.model, policy.layout)
    with pytest.raises(ValueError, match="tokenizer"):
        untrained(Policy(base=str(bases / "ours" / "model"), **SMALL), SHOWN, 0)
    with pytest.raises(ValueError, match="jitter is of tokens"):
        twin = untrained(Policy(method="parallel", hidden_size=32, num_layers=1, **SMALL), SHOWN, 0)
        fit(twin, SHOWN, TrainingSettings(steps=1, progress=False), tmp_path / "twin", Loss(width=0.1))
    with pytest.raises(ValueError, match="base"):
        unified(None, SHOWN, None, 0, Policy(base=str(bases / "ours"), **SMALL))
