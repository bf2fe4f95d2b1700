"""Unified Diffusion VLA's two stages: rows, what is hidden, what each stage learns, and the page of it."""

import json

import numpy as np
import pytest
import torch
from unified_vla_toy import CHUNK, CODEC, FRAMES, SHOWN, SMALL, WIDTH, blank, cut, observed

from discdiff import Noise, make_batch
from discdiff.training import TrainingSettings
from tasks.vla import unified_page
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss
from tasks.vla.policy import ACTION, ActionPolicy
from tasks.vla.unified import Foreseen, UnifiedPolicy
from tasks.vla.unified_design import DECODING, FUTURE, IMAGE, PICTURE, Unified, given_of, without_actions
from tasks.vla.unified_learning import Apart, Rows, fit, fit_world, joint_objective, untrained
from tasks.vla.unified_pictures import errors, fit_pictures, foreseen, moments, seen_by


def test_rows_end_with_their_episode():
    now, after = moments([cut(SHOWN[0], n) for n in (1, 4)], 2)
    assert now.tolist() == [0, 1, 2, 3, 4] and after.tolist() == [0, 3, 4, 4, 4]
    policy = blank()
    rows, codes = Rows(policy, SHOWN[:2]), policy.coded(np.concatenate([seen_by(e) for e in SHOWN[:2]]))[..., 0]
    local = [
        policy.layout.vocab.to_local(rows[i]["tokens"][policy.layout.columns(n), None], IMAGE)[..., 0]
        for n in (PICTURE, FUTURE)
        for i in (0, FRAMES + 4, 2 * FRAMES - 1)
    ]
    now, after = moments(SHOWN[:2], CHUNK)
    wanted = [codes[at[i]] for at in (now, after) for i in (0, FRAMES + 4, 2 * FRAMES - 1)]
    assert all(torch.equal(a, b) for a, b in zip(local, wanted, strict=True)) and len(rows) == 2 * FRAMES
    with pytest.raises(ValueError, match="one camera"):
        Rows(policy, [Episode(SHOWN[0].state, SHOWN[0].action, "go round")])


@pytest.mark.parametrize("attention", ["paper", "released"])
def test_the_world_is_the_whole_without_actions(attention):
    """The first stage trains what the second one has for the picture: by the paper's attention the same function."""
    policy = blank(attention=attention)
    whole, world = (Rows(policy, SHOWN[:1], world) for world in (False, True))
    assert ACTION not in world.layout.names and torch.equal(
        world[3]["tokens"], whole[3]["tokens"][: world.layout.length]
    )
    batch = policy.rows(*observed())
    network = policy.layout.tables().network
    picture = network[policy.layout.columns(FUTURE)].unique()
    alone = batch._replace(
        layout=without_actions(policy.layout),
        **{n: getattr(batch, n)[:, : world.layout.length] for n in batch._fields[1:6]},
    )
    here, there = (policy.model(batch=b).hidden[:, picture] for b in (batch, alone))
    off = float((here - there).detach().abs().max())
    assert off < 1e-9 if attention == "paper" else off > 1e-3


@pytest.mark.parametrize("turns", [False, True])
def test_parts_are_hidden_at_ratios_of_their_own(turns):
    policy = blank()
    batch = policy.rows(*observed())
    batch = batch.rows(torch.zeros(4000, dtype=torch.int64))
    noise = Noise.training(0, torch.zeros(4000, dtype=torch.int64), torch.arange(4000), batch.valid)
    time = (torch.arange(4000) + 0.5).double() / 4000
    masked = Apart({ACTION: 1.0, FUTURE: 0.5}, turns=turns)(batch, noise, time)
    share = {n: masked.hidden[:, policy.layout.columns(n)].double().mean(1) for n in (ACTION, FUTURE, PICTURE)}
    assert not bool(share[PICTURE].any())
    assert bool((masked.weight[:, policy.layout.columns(FUTURE)] == 0.5).all())
    cosine = torch.sin(0.5 * np.pi * time)  # MaskGIT's share of the hidden
    counts = {ACTION: (6 * cosine - 1e-9).ceil() / 6, FUTURE: (4 * cosine - 1e-9).ceil() / 4}
    own = {n: share[n] > 0 for n in counts}
    if turns:
        assert bool((own[ACTION] ^ own[FUTURE]).all()) and abs(float(own[ACTION].double().mean()) - 0.5) < 0.03
    else:
        assert bool((own[ACTION] & own[FUTURE]).all())
        assert abs(float(torch.corrcoef(torch.stack([share[ACTION], share[FUTURE]]))[0, 1])) < 0.05
    assert torch.equal(share[ACTION][own[ACTION]], counts[ACTION][own[ACTION]])
    for x in counts[FUTURE].unique():
        found, expected = (share[FUTURE][own[FUTURE]] == x).double().mean(), (counts[FUTURE] == x).double().mean()
        assert abs(float(found - expected)) < 0.03


def test_what_is_minimised():
    with pytest.raises(ValueError, match="at least one segment"):
        Apart({ACTION: 0.0})
    joint, apart, alone = (joint_objective(blank(decoding=d), Loss(), 0.25) for d in DECODING)
    assert joint.masker.weights == apart.masker.weights == {ACTION: 1.0, FUTURE: 0.25}
    assert alone.masker.weights == {ACTION: 1.0} and (joint.masker.turns, apart.masker.turns) == (False, True)
    assert joint.ordinal is not None and joint_objective(blank(), Loss(0.0, 0.0)).ordinal is None
    with pytest.raises(ValueError, match="masked by MaskGIT's ratios"):
        joint_objective(blank(), Loss(weights="elbo"))


@pytest.mark.parametrize("turns", [False, True])
def test_rows_that_are_hidden_wholly(turns):
    """As many as said beside those that ratios hide anyway, of both segments or of the one whose turn it is."""
    policy = blank()
    rows = Rows(policy, SHOWN)
    batch = make_batch(policy.layout, torch.stack([rows[i % len(rows)]["tokens"] for i in range(4000)]))
    batch = batch._replace(given=given_of(policy.layout).expand_as(batch.given))
    noise, t = Noise.seeded(0, batch.valid), (torch.arange(4000) + 0.5) / 4000
    share = {}
    for full in (0.0, 0.5):
        hidden = Apart({ACTION: 1.0, FUTURE: 0.5}, turns=turns, full=full)(batch, noise, t).hidden
        whole = torch.stack([(hidden | ~batch.within((n,)) | ~batch.free).all(1) for n in (ACTION, FUTURE)])
        share[full] = float((whole.any(0) if turns else whole.all(0)).double().mean())
    assert share[0.5] == pytest.approx(0.5 + share[0.0] / 2, abs=0.03) and share[0.0] < 0.5


def test_errors_of_pictures_are_measured_against_the_truth():
    policy = blank()
    found = foreseen(policy, SHOWN[:2], every=5)
    assert len(found.seen) == len(found.done) == 2 * FRAMES // 5 and found.done.shape[1:] == (CHUNK, 2)
    assert np.array_equal(found.true[:4], seen_by(SHOWN[0])[[3, 8, 13, 18]])
    planted = {
        name: errors(policy, found._replace(made=Foreseen(found.made.actions, x)))
        for name, x in (("true", found.true), ("copied", found.seen), ("black", np.zeros_like(found.true)))
    }
    assert planted["true"].predicted == 0 < planted["true"].copied
    assert planted["copied"].predicted == planted["copied"].copied == planted["true"].copied
    expected = float(np.sqrt((found.true / 255.0).astype(np.float64).__pow__(2).mean()))
    assert planted["black"].predicted == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="makes none"):
        errors(policy, found._replace(made=Foreseen(found.made.actions, None)))


def quick(steps, rate=4e-3, batch=32, schedule="constant"):
    shape = {"steps": steps, "batch_size": batch, "learning_rate": rate, "schedule": schedule, "warmup": 1}
    return TrainingSettings(**shape, betas=(0.9, 0.98), progress=False, device="cpu")


def test_two_stages_learn_to_foresee_and_then_to_act(tmp_path):
    pictures = fit_pictures(SHOWN, quick(80, 1e-2, 16, "cosine"), tmp_path / "pictures", **CODEC)
    start = untrained(Unified(width=WIDTH), SHOWN, pictures, 0, SMALL)
    found, off, missed = {}, {}, {}
    world = fit_world(start, SHOWN, quick(150), tmp_path / "world")
    whole = fit(world, SHOWN, quick(60, schedule="cosine"), tmp_path / "policy")
    for name, policy in (("world", UnifiedPolicy.from_pretrained(tmp_path / "world")), ("policy", whole)):
        found[name] = foreseen(policy, SHOWN, every=10)  # none of these chunks is cut by the end of its episode
        off[name] = errors(policy, found[name])
        missed[name] = float(np.abs(found[name].made.actions - found[name].done).mean())
    away = float(np.abs(found["policy"].done - found["policy"].done.mean((0, 1))).mean())
    print(off, missed, away)
    assert off["world"].coded < 0.5 * off["world"].copied
    assert off["world"].predicted < 0.6 * off["world"].copied and missed["world"] > 0.7 * away
    assert off["policy"].predicted < 0.6 * off["policy"].copied and missed["policy"] < 0.35 * away
    again = UnifiedPolicy.from_pretrained(tmp_path / "policy")
    assert again.settings == whole.settings and again.told.decoding == whole.told.decoding
    first, second = (p.predict(*observed(), seed=1) for p in (whole, again))
    assert np.array_equal(first.actions, second.actions) and np.array_equal(first.future, second.future)
    with pytest.raises(ValueError, match="no policy there"):  # which would act without seeing
        ActionPolicy.from_pretrained(tmp_path / "policy")
    page = unified_page.write(tmp_path / "page.html", whole, "joint", {"copied": 0.5}, found["policy"], SHOWN[0])
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") >= 1 and "go round: 8 rounds" in text and "in the demonstration" in text
    assert json.dumps("the picture after the chunk")[1:-1] in text


def test_no_world_without_a_future_picture(tmp_path):
    policy = blank(decoding="action")
    with pytest.raises(ValueError, match="no world to learn"):
        fit_world(policy, SHOWN, quick(1), "nowhere")
    found = foreseen(policy, SHOWN[:1], every=20)
    assert found.made.future is None and len(Rows(policy, SHOWN[:1])[0]["tokens"]) == policy.layout.length
    page = unified_page.write(tmp_path / "page.html", policy, "action", {"ms": 3}, found, SHOWN[0])
    assert "The picture after a chunk" not in page.read_text(encoding="utf-8")
