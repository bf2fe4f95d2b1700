"""Unified Diffusion VLA (arXiv 2511.01718): future picture and actions of one transformer, exact caches, a tiny training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from discdiff import Noise
from discdiff.kernels.valued import VALUE
from discdiff.training import TrainingSettings
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.policy import ACTION, Decoding
from tasks.vla.unified import UnifiedPolicy
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE, Unified
from tasks.vla.unified_learning import Apart, Rows, fit, untrained
from tasks.vla.unified_pictures import errors, fit_pictures, foreseen, moments, seen_by
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig

WIDTH, FRAMES, CHUNK = 8, 25, 3
RING = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
SHAPE = {"width": WIDTH, "chunk": CHUNK, "codebook_size": 17, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
CODEC = {"width": 12, "blocks": 0, "strides": (4,), "code_dim": 4, "codebook_size": 8, "pixel": "l2"}
ROUNDS = Decoding("ud_vla", steps=4, temperature=1.0)


def episode(start, way):
    """A bright block that goes round the four corners of a dark board, one per step, the way that the sentence says."""
    frames = np.full((FRAMES, WIDTH, WIDTH, 3), 30, np.uint8)
    place = RING[(start + way * np.arange(FRAMES)) % 4]
    for frame, (row, column) in zip(frames, 4 * place, strict=True):
        frame[row : row + 4, column : column + 4] = (220, 160, 40)
    action = np.stack([np.full(FRAMES, 0.6 * way), 0.8 * place[:, 0] - 0.5], 1).astype(np.float32)
    return Episode(place.astype(np.float32), action, "go round" if way > 0 else "go back round", {"top": frames})


SHOWN = [episode(start, way) for start in range(4) for way in (1, -1)]


def blank(**changes):
    """An untrained policy in double precision, with a tokenizer that nobody trained either."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        pictures = ImageTokenizer(ImageTokenizerConfig(**CODEC)).eval()
    policy = untrained(Unified(**SHAPE | changes), SHOWN, pictures, 1)
    return replace(policy, model=policy.model.double().eval())


def observed(count=3):
    some = SHOWN[:count]
    return np.stack([e.state[0] for e in some]), [e.task for e in some], np.stack([seen_by(e)[0] for e in some])


def run(policy, decoding, cache=None, rounds=ROUNDS, count=3):
    """All states of a decoding."""
    knobs = {} if cache is None else {"cache": cache}
    batch = policy.rows(*observed(count), decoding)
    with torch.no_grad():
        return list(policy.run(batch, range(count), decoding, replace(rounds, knobs=knobs)))


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


@pytest.mark.parametrize("decoding", ["joint", "separate", "action"])
@pytest.mark.parametrize(("attention", "caches"), [("paper", ("prefix", "block")), ("released", ("prefix",))])
def test_caches_change_nothing_at_any_round(attention, caches, decoding):  # J2
    policy = blank(attention=attention)
    plain = run(policy, decoding, "none")
    assert len(plain) == 1 + ROUNDS.steps * (2 if decoding == "separate" else 1)
    for cache in (None, *caches):
        for a, b in zip(plain, run(policy, decoding, cache), strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed)
            torch.testing.assert_close(a.memory[VALUE], b.memory[VALUE], atol=1e-9, rtol=0, equal_nan=True)


def test_decodings_differ_only_where_they_should():
    policy = blank()
    future, action = (policy.layout.columns(name) for name in (FUTURE, ACTION))
    states = {decoding: run(policy, decoding, count=6) for decoding in ("joint", "separate", "action")}
    last = {name: each[-1] for name, each in states.items()}
    assert torch.equal(last["joint"].tokens[:, future], last["separate"].tokens[:, future])  # they see no actions
    assert bool((last["action"].tokens[:, future] == policy.layout.vocab.mask).all())
    value = {name: each.memory[VALUE][:, action] for name, each in last.items()}
    assert all(bool(x.isfinite().all()) for x in value.values())
    assert not torch.equal(value["joint"], value["separate"]) and not torch.equal(value["joint"], value["action"])
    for state in states["separate"][: ROUNDS.steps + 1]:  # no action before the picture is whole
        assert bool((state.tokens[:, action] == policy.layout.vocab.mask).all())
    one = replace(ROUNDS, steps=1)  # in the first round nothing of the picture is seen yet
    joint, alone = (run(policy, decoding, rounds=one)[-1].memory[VALUE][:, action] for decoding in ("joint", "action"))
    torch.testing.assert_close(joint, alone, atol=1e-9, rtol=0)
    hidden = [[int((~s.committed[0, columns]).sum()) for s in states["joint"]] for columns in (future, action)]
    assert hidden == [[4, 3, 2, 1, 0], [6, 5, 4, 2, 0]]  # each by the cosine over its own
    as_released = [run(blank(attention="released"), name)[-1].tokens[:, future] for name in ("joint", "separate")]
    assert not torch.equal(*as_released)


@pytest.mark.parametrize("decoding", ["joint", "separate", "action"])
def test_seeds_fix_results_and_rows_are_alone(decoding):
    policy = blank()
    state, said, pictures = observed()
    again = [policy.predict(state, said, pictures, seed=seed, decoding=decoding, rounds=ROUNDS) for seed in (3, 3, 4)]
    assert again[0].actions.shape == (3, CHUNK, 2) and np.array_equal(again[0].actions, again[1].actions)
    assert not np.array_equal(again[0].actions, again[2].actions)
    single = policy.predict(state[1], said[1], pictures[1], seed=4, decoding=decoding, rounds=ROUNDS)
    np.testing.assert_allclose(single.actions, again[0].actions[1], atol=1e-6)
    if decoding == "action":
        assert single.future is None
    else:
        assert again[0].future.shape == pictures.shape and again[0].future.dtype == np.uint8
        assert np.array_equal(single.future, again[0].future[1]) and np.array_equal(again[0].future, again[1].future)


def test_what_codes_cannot_tell_stays_as_it_was_seen():
    policy = blank()
    _, _, pictures = observed()
    tokens = torch.full((3, policy.layout.length), policy.layout.vocab.mask)
    ids = policy.layout.vocab.to_global(policy.coded(pictures), IMAGE).flatten(1)
    tokens[:, policy.layout.columns(PICTURE)] = tokens[:, policy.layout.columns(FUTURE)] = ids
    assert np.array_equal(policy.shown(tokens, pictures), pictures)
    plain = replace(policy, settings=replace(policy.settings, detail=False))
    assert not np.array_equal(plain.shown(tokens, pictures), pictures)


def test_rows_end_with_their_episode():
    now, after = moments([replace_length(SHOWN[0], n) for n in (1, 4)], 2)
    assert now.tolist() == [0, 1, 2, 3, 4] and after.tolist() == [0, 3, 4, 4, 4]
    policy = blank()
    rows, codes = Rows(policy, SHOWN[:2]), policy.coded(np.concatenate([seen_by(e) for e in SHOWN[:2]]))[..., 0]
    local = [
        policy.layout.vocab.to_local(rows.tokens[:, policy.layout.columns(n), None], IMAGE)[..., 0]
        for n in (PICTURE, FUTURE)
    ]
    now, after = moments(SHOWN[:2], CHUNK)
    assert torch.equal(local[0], codes[now]) and torch.equal(local[1], codes[after])
    world = Rows(policy, SHOWN[:2], world=True)
    assert ACTION not in world.layout.names and torch.equal(world.tokens, rows.tokens[:, : world.layout.length])


def replace_length(one, frames):
    return Episode(one.state[:frames], one.action[:frames], one.task, {"top": seen_by(one)[:frames]})


def test_parts_are_hidden_at_ratios_of_their_own():
    policy = blank()
    batch = policy.rows(*observed())
    batch = batch.rows(torch.zeros(4000, dtype=torch.int64))
    noise = Noise.training(0, torch.zeros(4000, dtype=torch.int64), torch.arange(4000), batch.valid)
    time = (torch.arange(4000) + 0.5).double() / 4000
    masked = Apart({ACTION: 1.0, FUTURE: 0.5})(batch, noise, time)
    share = {n: masked.hidden[:, policy.layout.columns(n)].double().mean(1) for n in (ACTION, FUTURE, PICTURE)}
    assert not bool(share[PICTURE].any()) and all(float(share[n].min()) > 0 for n in (ACTION, FUTURE))
    assert abs(float(torch.corrcoef(torch.stack([share[ACTION], share[FUTURE]]))[0, 1])) < 0.05
    cosine = torch.sin(0.5 * np.pi * time)  # MaskGIT's share of the hidden
    counts = {ACTION: (6 * cosine - 1e-9).ceil() / 6, FUTURE: (4 * cosine - 1e-9).ceil() / 4}
    assert torch.equal(share[ACTION], counts[ACTION])
    assert all(
        abs(float((share[FUTURE] == x).double().mean() - (counts[FUTURE] == x).double().mean())) < 0.03
        for x in counts[FUTURE].unique()
    )
    assert bool((masked.weight[:, policy.layout.columns(FUTURE)] == 0.5).all())
    with pytest.raises(ValueError, match="at least one segment"):
        Apart({ACTION: 0.0})


def quick(steps, rate=4e-3, batch=32, schedule="constant"):
    shape = {"steps": steps, "batch_size": batch, "learning_rate": rate, "schedule": schedule, "warmup": 1}
    return TrainingSettings(**shape, betas=(0.9, 0.98), progress=False, device="cpu")


def test_a_tiny_training_foresees_and_acts(tmp_path):
    pictures = fit_pictures(SHOWN, quick(80, 1e-2, 16, "cosine"), tmp_path / "pictures", **CODEC)
    start = untrained(Unified(**SHAPE), SHOWN, pictures, 0)
    policy = fit(start, SHOWN, quick(70, schedule="cosine"), tmp_path / "policy", world=quick(160))
    cut = windows(SHOWN, CHUNK)
    away = float(np.abs(cut.actions.numpy() - cut.actions.numpy().mean((0, 1))).mean())
    true = cut.actions[cut.frame % 10 == 0].numpy()
    found, seen, after = foreseen(policy, SHOWN, every=10)  # none of these chunks is cut by the end of its episode
    off, missed = errors(policy, found, seen, after), float(np.abs(found.actions - true).mean())
    print(off, missed, away)
    assert off.coded < 0.5 * off.copied and off.predicted < 0.6 * off.copied and missed < 0.3 * away
    policy.save_pretrained(tmp_path / "again")
    again = UnifiedPolicy.from_pretrained(tmp_path / "again")
    assert again.settings == policy.settings and again.rounds == policy.rounds
    first, second = (p.predict(*observed(), seed=1) for p in (policy, again))
    assert np.array_equal(first.actions, second.actions) and np.array_equal(first.future, second.future)


def test_actions_alone():
    policy = blank(future=False, decoding="action")
    assert FUTURE not in policy.layout.names
    found = policy.predict(*observed(), rounds=ROUNDS)
    assert found.future is None and np.isfinite(found.actions).all()
    with pytest.raises(ValueError, match="without a future picture"):
        policy.predict(*observed(), decoding="joint")
    with pytest.raises(ValueError, match="there is no world"):
        fit(policy, SHOWN, quick(1), "nowhere", world=quick(1))


def test_refused(tmp_path):
    policy, (state, said, pictures) = blank(), observed()
    for settings, match in (({"attention": "full"}, "paper, released"), ({"decoding": "both"}, "joint, separate")):
        with pytest.raises(ValueError, match=match):
            Unified(**settings)
    with pytest.raises(ValueError, match="multiples of 4"):
        blank(width=10)
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
    with pytest.raises(ValueError, match="one camera"):
        Rows(policy, [Episode(SHOWN[0].state, SHOWN[0].action, "go round")])
