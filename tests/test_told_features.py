"""What a network is told beside tokens: numbers and pictures, at the slots of a segment."""

import json

import pytest
import torch

from discdiff import DiscDiffConfig, DiscDiffModel, Layout, Modality, ModelDenoiser, Segment, VocabLayout, make_batch
from discdiff.denoisers.caches import PrefixCached
from discdiff.kernels import Commit
from discdiff.sampling import sample

VOCAB = VocabLayout(5, (Modality("action", 6),))
SEGMENTS = (
    Segment("state", "text", (1,), noised=False),
    Segment("view", "text", (4,), noised=False),
    Segment("action", "action", (6,)),
)
LAYOUT = Layout(VOCAB, SEGMENTS, "prefix")
FEATURES = {
    "state": {"segment": "state", "shape": [3]},
    "view": {"segment": "view", "shape": [3, 16, 16], "grid": [2, 2]},
}


def network(**options):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "initializer_range": 0.2}
    shape |= {"features": FEATURES, "vocab": json.loads(VOCAB.to_json())} | options
    return DiscDiffModel.seeded(DiscDiffConfig(**shape), 0).eval()


def rows(count=3, **changes):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((count, LAYOUT.length), VOCAB.mask)
    tokens[:, :5] = 1
    state = torch.randn(count, 3, generator=generator)
    view = torch.randint(256, (count, 3, 16, 16), generator=generator).to(torch.uint8)
    return make_batch(LAYOUT, tokens, features={"state": state, "view": view} | changes)


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_reaches_the_actions_with_gradient(name):
    model, batch = network(), rows()
    other = rows(**{name: rows().features[name].flip(0)})
    change = model(batch=batch).hidden - model(batch=other).hidden
    assert (change[0, 5:].abs() > 1e-4).any() and torch.equal(change[1], torch.zeros_like(change[1]))
    model(batch=batch).hidden[:, 5:].square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.features.maps[name].parameters())


def test_a_picture_is_the_same_in_bytes_and_in_numbers():
    batch = rows()
    floats = rows(view=batch.features["view"].float() / 255)
    torch.testing.assert_close(network()(batch=batch).hidden, network()(batch=floats).hidden)


def test_save_and_load(tmp_path):
    model = network()
    model.save_pretrained(tmp_path)
    again = DiscDiffModel.from_pretrained(tmp_path).eval()
    assert torch.equal(model(batch=rows()).hidden, again(batch=rows()).hidden)


def test_the_prefix_cache_holds_them():
    plain, _ = sample(ModelDenoiser(network()), Commit(), rows(), 3, seed=0)
    cached, info = sample(PrefixCached(ModelDenoiser(network())), Commit(), rows(), 3, seed=0)
    assert torch.equal(plain.tokens, cached.tokens)


def test_a_model_without_features_is_what_it_was():
    plain = network(features=None)
    assert plain.features is None and "features" not in " ".join(plain.state_dict())


@pytest.mark.parametrize(
    "features, text",
    [
        ({"state": {"segment": "state", "shape": [0]}}, "one to three sizes"),
        ({"view": {"segment": "view", "shape": [3, 16, 12], "grid": [2, 2]}}, "halved a few times"),
        ({"view": {"segment": "view", "shape": [3, 16, 16]}}, "rows and columns"),
        ({"state": {"segment": "state", "size": 3}}, "feature 'state'"),
    ],
)
def test_impossible_features_are_refused(features, text):
    with pytest.raises(ValueError, match=text):
        network(features=features)


def test_rows_that_do_not_fit_are_refused():
    model, batch = network(), rows()
    with pytest.raises(ValueError, match="told 'view'"):
        model(batch=batch._replace(features={"state": batch.features["state"]}))
    with pytest.raises(ValueError, match=r"state.*\(3,\)"):
        model(batch=rows(state=torch.zeros(3, 4)))
    wrong = network(features={"state": {"segment": "action", "shape": [3]}})
    with pytest.raises(ValueError, match="its segment 'action' has 1 slots"):
        wrong(batch=batch)
