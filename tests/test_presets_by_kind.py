"""Every named sampler on every kind of token: text, image grid, levels of sound, motion, action chunk, robot state."""

import json

import pytest
import torch
from unified_toy import PARTS, record, same, unified

from discdiff.energy import TokenEnergy
from discdiff.layout import make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import PRESETS, generate, sampler
from discdiff.unified import UnifiedTokenizer

NEEDED = {
    "token_critic": {"critic": lambda state, step: -(state.tokens * 7 % 5).double()},
    "edlm": {"energy": TokenEnergy(lambda tokens: (tokens * 7 % 5).double().sum(1))},
}
KINDS = {
    "text": ("state", "text"),
    "picture": ("text", "picture"),
    "sound": ("text", "sound"),
    "packed sound": ("text", "sound"),
    "motion": ("text", "motion"),
    "actions": ("state", "actions"),
    "state": ("actions", "state"),
    "all": tuple(PARTS),
}
SETUPS: dict[str, tuple[UnifiedTokenizer, DiscDiffModel]] = {}


def setup(kind):
    """Tokenizer and tiny random model of a kind."""
    if kind not in SETUPS:
        tokenizer = unified(KINDS[kind], packed="packed" in kind or kind == "all")
        config = DiscDiffConfig(
            vocab=json.loads(tokenizer.vocab.to_json()), hidden_size=8, num_layers=1, num_heads=2, max_length=64,
            max_depth=3 if tokenizer.layout.packed else 1, initializer_range=0.4,
        )  # fmt: skip
        SETUPS[kind] = tokenizer, DiscDiffModel.seeded(config, 0, torch.float64).eval()
    return SETUPS[kind]


def prompt(tokenizer, kind):
    """One row with the other parts given, one with everything free, one with half of the target given, too."""
    given, target = {k: v for k, v in record(1).items() if k in KINDS[kind]}, KINDS[kind][-1]
    batch = tokenizer.prompt([{k: v for k, v in given.items() if k != target}, {}, {}])
    whole, columns = tokenizer.encode([given]).tokens[0], tokenizer.layout.columns(target)[::2]
    tokens, fixed = batch.tokens.clone(), batch.given.clone()
    tokens[2, columns], fixed[2, columns] = whole[columns], True
    return make_batch(tokenizer.layout, tokens, given=fixed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_on_kind(name, kind):
    tokenizer, model = setup(kind)
    batch = prompt(tokenizer, kind)
    chosen = sampler(name, steps=3, **NEEDED.get(name, {}))
    tokens, info = generate(model, batch, chosen, seed=[3, 4, 5])
    assert torch.equal(tokens[~batch.free], batch.tokens[~batch.free]), "a given token moved"
    assert not (tokens == tokenizer.vocab.mask)[batch.free].any(), "a position is still masked"
    symbols = batch.symbols(tokens)
    assert ((symbols >= 0) & (symbols < batch.alphabet.size))[batch.free].all(), "an id is not legal where it stands"
    assert info.nfe > 0
    out = tokenizer.decode(tokens)  # raises for what is masked or illegal
    known = {k: v for k, v in record(1).items() if k in KINDS[kind][:-1]}
    assert same({k: out[0][k] for k in known}, known)
    if kind == "packed sound":
        again, _ = generate(model, batch.rows(torch.tensor([1])), chosen, seed=[4])
        assert torch.equal(again[0], tokens[1]), "a row depends on its neighbours"


def test_kinds_are_what_they_say():
    depth = {kind: max(int(x) for x in setup(kind)[0].layout.tables().depth) for kind in KINDS}
    assert depth["sound"] == depth["packed sound"] == 2 and depth["motion"] == 1 and depth["picture"] == 0
    assert len(setup("packed sound")[0].layout.tables().lead) < setup("packed sound")[0].layout.length
    assert {tokenizer.template.parts[-1].modality for tokenizer, _ in map(setup, KINDS)} == set(PARTS)
