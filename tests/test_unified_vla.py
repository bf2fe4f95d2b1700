"""Unified Diffusion VLA (arXiv 2511.01718): future picture and actions of one transformer, exact caches, read-outs."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from unified_vla_toy import CHUNK, CODEC, ROUNDS, SHOWN, SMALL, blank, laws_of, observed, run

from discdiff.kernels.valued import VALUE
from discdiff.scores import Concentrated
from tasks.vla.policy import ACTION, Policy
from tasks.vla.unified import UnifiedPolicy
from tasks.vla.unified_design import DECODING, FUTURE, IMAGE, PICTURE, Unified
from tasks.vla.unified_learning import Rows, untrained
from tokenizers_vq.action.normalise import ActionStatistics


@pytest.mark.parametrize("attention", ["paper", "released"])
def test_pictures_never_see_actions_but_as_released(attention):  # J1, J3
    policy = blank(attention=attention)
    layout, row = policy.layout, Rows(policy, SHOWN)[5]
    network = layout.tables().network
    hidden = {}
    for name in (None, ACTION, FUTURE, PICTURE):
        batch = policy.rows(*observed())._replace(tokens=row["tokens"].expand(3, -1).clone())
        if name is not None:
            first, size = layout.vocab.range(ACTION if name == ACTION else IMAGE)
            column = layout.columns(name)[0]
            batch.tokens[:, column] = first + (batch.tokens[:, column] - first + 1) % size
        hidden[name] = policy.model(batch=batch).hidden
    moved = {
        changed: {seen: not torch.equal(hidden[None][:, slots], hidden[changed][:, slots]) for seen, slots in parts}
        for parts in [[(name, network[layout.columns(name)].unique()) for name in layout.names]]
        for changed in (ACTION, FUTURE, PICTURE)
    }
    before = {"instruction": False, "state": False}
    merged = attention == "released"
    assert moved[ACTION] == before | {PICTURE: merged, FUTURE: merged, ACTION: True}
    assert moved[FUTURE] == before | {PICTURE: merged, FUTURE: True, ACTION: True}
    assert moved[PICTURE] == before | {PICTURE: True, FUTURE: True, ACTION: True}


@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize(("attention", "caches"), [("paper", ("prefix", "block")), ("released", ("prefix",))])
def test_caches_change_nothing_at_any_round(attention, caches, decoding):  # J2
    policy = blank(attention=attention, decoding="action" if decoding == "action" else "joint")
    plain, cost = run(policy, decoding, cache="none")
    rounds = ROUNDS.steps * (2 if decoding == "separate" else 1)
    laws = laws_of(policy, decoding, cache="none")
    masked = [int(s.free.sum() - s.committed[s.free].sum()) for s in plain[:-1]]
    heard = [sum(map(len, law.values())) for law in laws]
    assert len(laws) == rounds and (decoding == "separate" or heard == masked) and sum(heard) > 0
    assert [info.nfe for info in cost] == [0] + [1] * rounds  # one pass a round, whatever is denoised in it
    for knobs in ({}, *({"cache": cache} for cache in caches)):
        states, less = run(policy, decoding, **knobs)
        for a, b in zip(plain, states, strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed)
            torch.testing.assert_close(a.memory[VALUE], b.memory[VALUE], atol=1e-9, rtol=0, equal_nan=True)
        torch.testing.assert_close(laws_of(policy, decoding, **knobs), laws, atol=1e-9, rtol=0)
        assert sum(info.fed for info in less) < sum(info.fed for info in cost)


def test_decodings_differ_only_where_they_should():
    policy = blank()
    future, action = (policy.layout.columns(name) for name in (FUTURE, ACTION))
    states = {decoding: run(policy, decoding, count=6)[0] for decoding in policy.settings.decodings}
    last = {name: each[-1] for name, each in states.items()}
    assert torch.equal(last["joint"].tokens[:, future], last["separate"].tokens[:, future])  # they see no actions
    value = {name: each.memory[VALUE][:, action] for name, each in last.items()}
    assert all(bool(x.isfinite().all()) for x in value.values())
    assert not torch.equal(value["joint"], value["separate"])
    for state in states["separate"][: ROUNDS.steps + 1]:  # no action before the picture is whole
        assert bool((state.tokens[:, action] == policy.layout.vocab.mask).all())
    assert bool(states["separate"][ROUNDS.steps].committed[:, future].all())
    hidden = [[int((~s.committed[0, columns]).sum()) for s in states["joint"]] for columns in (future, action)]
    assert hidden == [[4, 3, 2, 1, 0], [6, 5, 4, 2, 0]]  # each by the cosine over its own
    as_released = [run(blank(attention="released"), name)[0][-1].tokens[:, future] for name in states]
    assert not torch.equal(*as_released)


def test_actions_are_read_out_of_what_the_network_says():
    policy, one = blank(), replace(ROUNDS, steps=1)
    batch, action = policy.rows(*observed()), policy.layout.columns(ACTION)
    hidden = policy.model(batch=batch).hidden
    levels = policy.told.tokenizer.levels.double()  # (dim, codes)
    for place, column in enumerate(action.tolist()):
        j = place % len(levels)
        index = column + policy.layout.length * torch.arange(3)
        logits = (
            policy.model.select(hidden, batch, index)
            @ policy.model.head_weight(*policy.layout.vocab.range(ACTION, j)).T
        )
        p = logits.softmax(-1)
        wanted = {"expectation": (p * levels[j]).sum(-1), "argmax": levels[j][p.argmax(-1)]}
        for how, numbers in wanted.items():
            states, _ = run(policy, "joint", replace(one, read=how))
            torch.testing.assert_close(states[-1].memory[VALUE][:, column], numbers, atol=1e-9, rtol=0)
    assert bool(
        states[-1].memory[VALUE][:, policy.layout.columns(FUTURE)].isnan().all()
    )  # codes of pictures are no numbers
    made = policy.predict(*observed(), seed=0, rounds=one).actions
    states, _ = run(policy, "joint", one)
    value = states[-1].memory[VALUE][:, action].view(3, CHUNK, -1)
    np.testing.assert_allclose(made, policy.told.normaliser().restore(value.clamp(-1, 1)).float().numpy())


def test_numbers_that_lie_close_together_go_first():
    """Another order of the actions leaves the picture as it is."""
    policy = blank()
    usual, other = (run(policy, "joint", replace(ROUNDS, rank=rank, temperature=0.0))[0] for rank in ("", "deviation"))
    kernel = policy.told.sampler_of(replace(ROUNDS, rank="deviation")).kernel.inner
    assert isinstance(kernel.score, Concentrated) and not kernel.jointly
    assert not torch.equal(usual[1].committed, other[1].committed)
    assert [int(s.committed.sum()) for s in usual] == [int(s.committed.sum()) for s in other]


@pytest.mark.parametrize("decoding", DECODING)
def test_seeds_fix_results_and_rows_are_alone(decoding):
    policy = blank(decoding=decoding)
    state, said, pictures = observed()
    for given in (state, pictures):
        given.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = [
            policy.predict(state, said, pictures, seed=s, decoding=decoding, rounds=ROUNDS) for s in (3, np.int64(3), 4)
        ]
    assert again[0].actions.shape == (3, CHUNK, 2) and np.array_equal(again[0].actions, again[1].actions)
    assert not np.array_equal(again[0].actions, again[2].actions)
    single = policy.predict(state[1], said[1], pictures[1], seed=4, decoding=decoding, rounds=ROUNDS)
    np.testing.assert_allclose(single.actions, again[0].actions[1], atol=1e-6)
    if decoding == "action":
        assert single.future is None
    else:
        assert again[0].future.shape == pictures.shape and again[0].future.dtype == np.uint8
        assert np.array_equal(single.future, again[0].future[1]) and np.array_equal(again[0].future, again[1].future)


@pytest.mark.parametrize("decoding", DECODING)
def test_actions_that_are_executed_already(decoding):
    """They stay as they are, those behind them know them, and a picture that sees no actions does not."""
    policy, seen = blank(decoding=decoding), observed()
    free, done = policy.predict(*seen, decoding=decoding), np.full((3, CHUNK, 2), 0.123, np.float32)
    for k in (1, CHUNK):
        made = policy.predict(*seen, decoding=decoding, prefix=done[:, :k])
        assert np.array_equal(made.actions[:, :k], done[:, :k])
        assert k == CHUNK or not np.array_equal(made.actions[:, k:], free.actions[:, k:])
        assert decoding == "action" or np.array_equal(made.future, free.future)
        one = policy.predict(seen[0][0], seen[1][0], seen[2][0], decoding=decoding, prefix=done[0, :k])
        np.testing.assert_allclose(one.actions, made.actions[0], atol=1e-6)
    for wrong in (done[:2], done[..., :1], np.repeat(done, 2, 1), done * np.nan):
        with pytest.raises(ValueError, match="prefix"):
            policy.predict(*seen, decoding=decoding, prefix=wrong)


def test_cells_whose_codes_stay_are_left_as_they_were_seen():
    policy = blank()
    _, _, pictures = observed()
    tokens = torch.full((3, policy.layout.length), policy.layout.vocab.mask)
    ids = policy.layout.vocab.to_global(policy.coded(pictures), IMAGE).flatten(1)
    tokens[:, policy.layout.columns(PICTURE)] = tokens[:, policy.layout.columns(FUTURE)] = ids
    assert np.array_equal(policy.shown(tokens, pictures), pictures)
    first, size = policy.layout.vocab.range(IMAGE)
    lower_left = policy.layout.columns(FUTURE)[2]
    tokens[:, lower_left] = first + (tokens[:, lower_left] - first + 1) % size
    made = policy.shown(tokens, pictures)
    plain = replace(policy, settings=replace(policy.settings, keep=False)).shown(tokens, pictures)
    cell = (slice(None), slice(4, 8), slice(0, 4))
    assert np.array_equal(made[cell], plain[cell]) and not np.array_equal(made[cell], pictures[cell])
    made[cell] = pictures[cell]
    assert np.array_equal(made, pictures) and not np.array_equal(plain, pictures)


def test_units_layouts_and_codes_of_other_kinds():
    policy = blank()
    units = {
        name: ActionStatistics.of(np.random.default_rng(s).normal(s, s, (50, 2))) for s, name in ((1, "a"), (5, "b"))
    }
    told = replace(policy, told=replace(policy.told, statistics=units))
    small, large = (told.predict(*observed(), unnorm_key=key).actions for key in units)
    assert np.abs(large).mean() > 2 * np.abs(small).mean()
    with pytest.raises(ValueError, match="unnorm_key"):
        told.predict(*observed())
    deep = blank(
        codec=CODEC | {"quantizer": "rvq", "num_quantizers": 3}
    )  # more codes in a cell of a picture than numbers in an action
    flat = blank(policy=replace(SMALL, packed=False))
    for other in (deep, flat):
        found = other.predict(*observed(), rounds=ROUNDS)
        assert found.future.shape == (3, 8, 8, 3) and np.isfinite(found.actions).all()


def test_actions_alone():
    policy = blank(decoding="action")
    assert policy.layout.names == tuple(name for name in blank().layout.names if name != FUTURE)
    for wrong, match in ((policy, "decoded by 'action'"), (blank(), "decoded by 'joint' or 'separate'")):
        with pytest.raises(ValueError, match=match):
            wrong.predict(*observed(), decoding="joint" if wrong is policy else "action")


def test_refused(tmp_path):
    policy, (state, said, pictures) = blank(), observed()
    apart = {"attention": "released", "decoding": "separate"}
    assert Unified(attention="released").decodings == ("joint", "separate")
    for settings, match in (
        ({"attention": "full"}, "paper, released"),
        ({"decoding": "both"}, "joint, separate"),
        (apart, "actions that separate decoding makes later"),
    ):
        with pytest.raises(ValueError, match=match):
            Unified(**settings)
    with pytest.raises(ValueError, match="multiples of 4"):
        blank(width=10)
    for own in (Policy(method="parallel"), Policy(picture=16), Policy(base="checkpoint")):
        with pytest.raises(ValueError, match="method, picture and base"):
            untrained(Unified(), SHOWN, policy.pictures, 0, own)
    for args, match in (
        ((state, said, pictures[:, :4]), r"give uint8 \(n, 8, 8, 3\)"),
        ((state, said, pictures.astype(np.float32)), "give uint8"),
        ((state, said, pictures[:2]), "one per instruction"),
        ((state[:, :1], said, pictures), "one row per instruction"),
        ((state * np.nan, said, pictures), "finite"),
        ((state, ["go all the way back"] * 3, pictures), "at most 3 words"),
    ):
        with pytest.raises(ValueError, match=match):
            policy.predict(*args)
    with pytest.raises(ValueError, match="one per row"):
        policy.predict(state, said, pictures, seed=[1])
    with pytest.raises(ValueError, match="no unified policy"):
        UnifiedPolicy.from_pretrained(tmp_path)
