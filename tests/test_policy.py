"""Robot policies: what every method promises of its actions, and a short training that learns to act."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from policy_toy import SHOWN, SMALL, observed, shaken
from transformers.utils.logging import disable_progress_bar

from discdiff.layout import make_batch
from discdiff.maskers import Bernoulli, FixedCount, FullyMasked
from discdiff.noise import Noise
from discdiff.training import TrainingSettings
from tasks.vla.continuous import CONTINUOUS
from tasks.vla.design import METHODS, Decoding, Policy, Scale, told_state
from tasks.vla.judged import acting
from tasks.vla.learning import Loss, Rows, fit, objective_of, untrained
from tasks.vla.policy import ActionPolicy
from tasks.vla.trial import demonstrated, tried
from tasks.vla.world import TASKS

disable_progress_bar()
KINDS = [*((method, 0) for method in METHODS), ("masked", 16)]


@pytest.fixture(scope="module")
def policies():
    """By (method, width of pictures), made when first asked for."""
    made = {}

    def policy(method, picture=0):
        if (method, picture) not in made:
            shape = {"chunk": 2} if method == "autoregressive" else {}  # a pass per number takes its time
            made[method, picture] = shaken(method, picture, **shape)
        return made[method, picture]

    return policy


def drawing(method, steps=3, **more):
    """A decoding that draws, where the method does."""
    if method == "masked":
        return Decoding(steps=steps, temperature=1.0, **more)
    return {"autoregressive": Decoding(temperature=1.0), "flow": Decoding(steps=steps), "parallel": Decoding()}[method]


@pytest.mark.parametrize(("method", "picture"), KINDS)
def test_every_row_stands_for_itself_and_its_seed(policies, method, picture):
    policy, how = policies(method, picture), drawing(method)
    state, said, seen = observed(policy)
    actions = policy.predict_action(state, said, seen, seed=[3, 1, 4, 1, 5], decoding=how)
    assert actions.shape == (5, policy.settings.chunk, 7) and actions.dtype == np.float32
    statistics = policy.tokenizer.normaliser.statistics
    assert (actions >= np.float32(statistics.min) - 1e-6).all() and (actions <= np.float32(statistics.max) + 1e-6).all()
    assert np.array_equal(actions, policy.predict_action(state, said, seen, seed=[3, 1, 4, 1, 5], decoding=how))
    for row, seed in ((0, 3), (3, 1)):
        view = None if seen is None else seen[row]
        alone = policy.predict_action(state[row], said[row], view, seed=seed, decoding=how)
        assert np.allclose(alone, actions[row], atol=1e-6), row
    numbered = policy.predict_action(state, said, seen, seed=10, decoding=how)
    assert np.array_equal(numbered, policy.predict_action(state, said, seen, seed=range(10, 15), decoding=how))
    assert np.array_equal(numbered, actions) == (method == "parallel")  # control: others draw by their seed


@pytest.mark.parametrize(("method", "picture"), KINDS)
def test_all_that_a_policy_is_told_matters(policies, method, picture):
    policy, how = policies(method, picture), drawing(method)
    state, said, seen = observed(policy)
    told = policy.predict_action(state, said, seen, decoding=how)
    others = [(state + 0.3, said, seen), (state, said[1:] + said[:1], seen)]
    others += [(state, said, 255 - seen)] if picture else []
    for changed in others:
        assert np.abs(policy.predict_action(*changed, decoding=how) - told).max() > 1e-4


@pytest.mark.parametrize(("method", "picture"), KINDS)
def test_what_is_saved_acts_alike(policies, method, picture, tmp_path):
    shaken = policies(method, picture)
    model = copy.deepcopy(shaken.model).float()
    policy = dataclasses.replace(shaken, model=model, decoding=drawing(method))
    policy.save_pretrained(tmp_path / "p")
    again = ActionPolicy.from_pretrained(tmp_path / "p")
    for name in ("lexicon", "scale", "settings", "decoding", "statistics"):
        assert getattr(again, name) == getattr(policy, name)
    assert all(torch.equal(x, again.model.state_dict()[name]) for name, x in model.state_dict().items())
    observation = observed(policy, 2)
    assert np.allclose(
        again.predict_action(*observation, seed=7), policy.predict_action(*observation, seed=7), atol=1e-6
    )
    assert list(json.loads((tmp_path / "p" / "dataset_statistics.json").read_text())["world"]) == ["action"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_executed_already_is_kept(policies, method):
    policy, how = policies(method), drawing(method)
    state, said, _ = observed(policy)
    rng = np.random.default_rng(0)
    free = policy.predict_action(state, said, decoding=how)
    chunk = policy.settings.chunk
    for k in (1, chunk - 1, chunk):
        prefix = rng.uniform(-2, 2, (5, k, 7))  # also beyond what was demonstrated
        actions = policy.predict_action(state, said, prefix=prefix, decoding=how)
        assert np.array_equal(actions[:, :k], prefix.astype(np.float32)) and np.isfinite(actions).all()
        if k < chunk and method != "parallel":  # its numbers do not see one another
            assert np.abs(actions[:, k:] - free[:, k:]).max() > 1e-4
    one = policy.predict_action(state[0], said[0], prefix=prefix[0, :1].tolist(), decoding=how)
    assert np.array_equal(one[:1], prefix[0, :1].astype(np.float32))
    for wrong in (np.zeros((5, chunk + 1, 7)), np.zeros((4, 1, 7)), np.zeros((5, 1, 6)), np.full((5, 1, 7), np.nan)):
        with pytest.raises(ValueError, match="prefix"):
            policy.predict_action(state, said, prefix=wrong, decoding=how)


@pytest.mark.parametrize(
    ("picture", "steps", "sampler"), [(0, 1, "confidence"), (16, 3, "ancestral"), (0, 3, "dd_vla")]
)
def test_the_prefix_cache_changes_nothing(policies, picture, steps, sampler):
    policy = policies("masked", picture)
    state, said, seen = observed(policy, 2)
    found = []
    for cache in ("prefix", "none"):
        how = Decoding(sampler, steps, "mode", 0.2, temperature=1.0, knobs={"cache": cache})
        trace = policy.unmasking(state[0], said[0], None if seen is None else seen[0], decoding=how)
        found.append((policy.predict_action(state, said, seen, decoding=how), trace))
    (kept, first), (anew, second) = found
    assert np.allclose(kept, anew, atol=1e-6) and first.steps == steps + 1  # with the start
    assert np.array_equal(first.tokens, second.tokens) and np.array_equal(first.committed, second.committed)


def test_rounds_commit_every_number_once(policies):
    for method, rounds in (("masked", 4), ("autoregressive", 14)):
        policy = policies(method)
        how = Decoding(steps=4) if method == "masked" else Decoding()
        trace = policy.unmasking(SHOWN[0].state[0], SHOWN[0].task, decoding=how)
        columns = policy.layout.columns("action")
        counts = trace.committed[:, columns].sum(1)
        assert (
            trace.steps == rounds + 1 and counts[0] == 0 and counts[-1] == len(columns) and (np.diff(counts) > 0).all()
        )
    with pytest.raises(ValueError, match="numbers, not tokens"):
        policies("flow").unmasking(SHOWN[0].state[0], SHOWN[0].task)


@pytest.mark.parametrize("sampler", ["confidence", "dd_vla"])
def test_numbers_that_lie_close_together_go_first(policies, sampler):
    policy = policies("masked")
    state, said, columns = SHOWN[0].state[0], SHOWN[0].task, policy.layout.columns("action")
    batch = policy.rows(state, [said])
    law = policy.model(batch=batch)
    chosen = policy.model.select(law.hidden, batch, columns).double()
    own = policy.layout.tables().alphabet[columns].tolist()
    heads = torch.stack([policy.model.head_weight(*policy.layout.alphabets[each]) for each in own])
    p = torch.einsum("nd,nkd->nk", chosen, heads.double()).softmax(-1)
    v = torch.tensor(policy.values.numbers["action"], dtype=torch.float64)
    v = v.repeat(len(columns) // len(v), 1)
    mean = (p * v).sum(-1, keepdim=True)
    nearest = (p * (v - mean).square()).sum(-1).argmin()
    steps = 12 if sampler == "dd_vla" else len(columns)
    found = [
        policy.unmasking(state, said, decoding=Decoding(sampler, steps=steps, rank=rank)).committed[1, columns]
        for rank in ("deviation", "")
    ]
    assert found[0][nearest] and not np.array_equal(*found)
    with pytest.raises(ValueError, match="no order"):
        policy.predict_action(state, said, decoding=Decoding("ancestral", rank="deviation"))
    with pytest.raises(ValueError, match="rank"):
        Decoding(rank="far")
    order = dataclasses.replace(policy, width=0.15).sampler_of(Decoding(steps=2, rank="matched")).kernel.inner.score
    assert (order.how, order.window) == ("matched", 0.15)  # of the labels it learned
    with pytest.raises(ValueError, match="width is 0.0: hard labels"):
        dataclasses.replace(policy, width=0.0).sampler_of(Decoding(steps=2, rank="matched"))
    with pytest.raises(ValueError, match="another order"):
        Decoding("dd_vla", rank="deviation", knobs={"score": "margin"})


@pytest.mark.parametrize("method", CONTINUOUS)
def test_steps_after_the_end_teach_nothing(policies, method):
    policy, time = policies(method), torch.tensor([0.3, 0.6])
    rows, goal = Rows(policy, policy.layout, SHOWN), objective_of(policies(method), Loss())
    made = [rows[i] for i in (0, 1)]
    target = torch.stack([row["features.target"] for row in made])
    told = {"state": torch.stack([row["features.state"] for row in made]), "target": target}
    batch = make_batch(policy.layout, torch.stack([row["tokens"] for row in made]), features=told)
    valid = batch.valid.clone()
    valid[1, policy.layout.columns("action")[7:]] = False  # the second row has one action
    noise, batch = Noise.seeded([1, 2], valid), batch._replace(valid=valid)
    loss, _ = goal(policy.model, batch, noise, time)
    other = target.clone()
    other[1, 1:] += 5
    if method == "parallel":  # what flow makes of its noise is an input
        again, _ = goal(policy.model, batch._replace(features={**told, "target": other}), noise, time)
        assert torch.equal(loss, again)
    other[1, 0] += 5
    again, _ = goal(policy.model, batch._replace(features={**told, "target": other}), noise, time)
    assert (loss - again).abs() > 0.1


def test_units_by_key(policies):
    policy = policies("masked")
    own = policy.statistics["world"]
    double = dataclasses.replace(own, min=tuple(2 * x for x in own.min), max=tuple(2 * x for x in own.max))
    state, said, _ = observed(policy)
    plain = policy.predict_action(state, said)
    assert np.array_equal(plain, policy.predict_action(state, said, unnorm_key="world"))
    both = dataclasses.replace(policy, statistics={"world": own, "double": double})
    assert np.array_equal(plain, both.predict_action(state, said, unnorm_key="world"))
    wider = both.predict_action(state, said, unnorm_key="double")
    assert np.allclose(wider, 2 * plain, atol=1e-6) and np.abs(plain).max() > 0.1
    how = Decoding(steps=4)
    a, b = (
        both.predict_action(state, said, prefix=scale * plain[:, :2], decoding=how, unnorm_key=key)
        for key, scale in (("world", 1), ("double", 2))
    )
    assert np.allclose(b, 2 * a, atol=1e-5)  # a prefix is in the same units
    with pytest.raises(ValueError, match=r"say whose statistics, one of \['double', 'world'\]"):
        both.predict_action(state, said)
    with pytest.raises(ValueError, match=r"'bridge'.*\['double', 'world'\]"):
        both.predict_action(state, said, unnorm_key="bridge")
    with pytest.raises(ValueError, match="no statistics by key"):
        dataclasses.replace(policy, statistics={}).predict_action(state, said, unnorm_key="world")
    three = dataclasses.replace(own, **{f.name: getattr(own, f.name)[:3] for f in dataclasses.fields(own)})
    with pytest.raises(ValueError, match="7 dimensions"):
        dataclasses.replace(policy, statistics={"other": three})


def test_observations_that_are_refused_and_those_that_are_cut(policies):
    policy, seeing = policies("masked"), policies("masked", 16)
    state, said, _ = observed(policy)
    spread, middle = np.array(policy.scale.spread), np.array(policy.scale.middle)
    far = policy.predict_action(1e30 * np.sign(state - middle), said)
    assert np.isfinite(far).all()
    assert np.array_equal(far, policy.predict_action(middle + 5.001 * spread * np.sign(state - middle), said))
    assert np.isfinite(policy.predict_action(state[0], "juggle the block")).all()
    bad, view = state.copy(), np.zeros((5, 16, 16, 3), np.uint8)
    bad[2, 3] = np.nan
    long = "push the block to the goal and then away again"
    for asked, arguments, match in (
        (policy, (bad, said), "state is 1: numbers that are not finite"),
        (policy, (state[:, :7], said), r"give \(5, 8\)"),
        (policy, (state[0], said), "one row per instruction"),
        (policy, (state[:0], []), "at least one"),
        (policy, (state[0], long), r"at most 6 words are read.*words="),
        (policy, (state, said, view), "this policy is shown none"),
        (seeing, (state, said), r"pictures is None: give uint8 \(5, 16, 16, 3\)"),
        (seeing, (state, said, view[:, :8]), "pictures"),
        (seeing, (state, said, view / 255), "float64.*uint8"),
        (seeing, (state, said, view[:1]), "pictures"),
    ):
        with pytest.raises(ValueError, match=match):
            asked.predict_action(*arguments)
    with pytest.raises(ValueError, match="one per row"):
        policy.predict_action(state, said, seed=[1, 2])


def test_decodings_that_a_method_does_not_take(policies):
    state, said, _ = observed(policies("masked"))
    for method, how, match in (
        ("autoregressive", Decoding(steps=4), "steps is 4: autoregressive takes none"),
        ("autoregressive", Decoding(knobs={"tau": 0.5}), "knobs"),
        ("parallel", Decoding(steps=2), "steps"),
        ("flow", Decoding(read="mode"), "read"),
        ("masked", Decoding("confidential"), "did you mean 'confidence'"),
    ):
        with pytest.raises(ValueError, match=match):
            policies(method).predict_action(state, said, decoding=how)
    for wrong in ({"steps": 0}, {"read": "mean"}, {"window": 0.0}, {"temperature": -1.0}, {"knobs": {"steps": 3}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Decoding(**wrong)


def test_policies_that_cannot_be():
    for wrong in ({"method": "diffusion"}, {"chunk": 0}, {"proprio": -1}, {"picture": 20}, {"words": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Policy(**wrong)
    for settings, episodes, match in (
        (Policy(), [], "at least one"),
        (Policy(proprio=9), SHOWN, "the states have 8 numbers"),
        (Policy(words=4), SHOWN, "--words 6"),
    ):
        with pytest.raises(ValueError, match=match):
            untrained(settings, episodes, 0)
    roomy = untrained(Policy(words=9, **SMALL), SHOWN, 0)
    assert roomy.predict_action(SHOWN[0].state[0], "push the block to the goal and away again").shape == (4, 7)
    told = untrained(Policy(proprio=4, **SMALL), SHOWN, 0)
    assert told.predict_action(told_state(SHOWN[0], told.settings)[0], SHOWN[0].task).shape == (4, 7)
    with pytest.raises(ValueError, match="one camera with pictures 32 wide"):
        wide = untrained(Policy(picture=32, **SMALL), SHOWN, 0)
        Rows(wide, wide.layout, SHOWN)
    for wrong in (
        {"width": -0.1},
        {"jitter": -0.1},
        {"weight": float("nan")},
        {"distance": "far"},
        {"weights": "all"},
        {"full": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Loss(**wrong)


def test_scales_do_not_blow_up_what_hardly_moves():
    state = np.random.default_rng(0).normal(size=(500, 3)) * (1, 1e-9, 0) + (5, 2, 3)
    scale = Scale.of(state.astype(np.float32))
    y = scale(torch.from_numpy(state))
    assert abs(y[:, 0].std() - 1) < 0.01 and y[:, 1:].abs().max() < 1e-6
    assert Scale.of(np.full((4, 2), 7.0)).spread == (1.0, 1.0)
    degrees, metres = np.random.default_rng(1).normal(size=(2, 500)) * ((60.0,), (0.04,))
    assert np.allclose(Scale.of(np.stack([degrees, metres + 0.5], 1)).spread, (degrees.std(), metres.std()))


@pytest.mark.parametrize("method", [*CONTINUOUS, "autoregressive", "masked"])
def test_rows_hold_what_the_objective_needs(policies, method):
    policy = policies(method)
    rows = Rows(policy, policy.layout, SHOWN)
    assert len(rows) == sum(map(len, SHOWN)) and ("features.target" in rows[0]) == (method in CONTINUOUS)
    assert type(objective_of(policy, Loss())).__name__ == {"masked": "Elbo", "autoregressive": "Autoregressive"}.get(
        method, "Regression"
    )
    plain = objective_of(policy, Loss(width=0.0, weight=0.0, jitter=0.0))
    assert method != "masked" or plain.ordinal is None
    if method not in CONTINUOUS:
        assert plain.jitter is None and objective_of(policy, Loss()).jitter.width == Loss().jitter
    if method == "masked":
        assert objective_of(policy, Loss(weights="elbo", full=0.0)).masker == Bernoulli()
        assert objective_of(policy, Loss(full=0.2)).masker == FullyMasked(FixedCount(), 0.2)


def test_actions_are_scaled_as_said():
    """Quantiles leave single outliers out; a raw number stays what it is."""
    shown = [dataclasses.replace(e, action=e.action.copy()) for e in SHOWN]
    shown[0].action[0, 0] = 50.0
    wide, narrow, raw = (
        untrained(Policy(**SMALL, **more), shown, 0).normaliser().affine[1]
        for more in ({}, {"scaling": "quantile"}, {"scaling": "quantile", "raw": (6,)})
    )
    assert wide[0] > 20 > 2 > narrow[0] and raw[6] == 1 and torch.equal(raw[:6], narrow[:6])


@pytest.fixture(scope="module")
def reacher(tmp_path_factory):
    """Masked diffusion that learned to reach, in a few seconds."""
    shown = [e for e in demonstrated(200) if e.task == TASKS[0]]
    policy = untrained(Policy(chunk=4, codebook_size=32, hidden_size=48, num_layers=2), shown, 0)
    settings = TrainingSettings(steps=60, batch_size=64, optimizer="muon", learning_rate=2e-2, warmup=6, progress=False)
    return fit(policy, shown, settings, tmp_path_factory.mktemp("reacher") / "policy")


def test_a_short_training_acts(reacher):
    def success(policy):
        return np.mean([r.success for r in tried(policy, range(50_000, 50_024), tasks=TASKS[:1], cap=50)])

    idle = success(lambda shown: np.zeros((len(shown.seed), 4, 7), np.float32))
    assert idle <= 0.1 and success(acting(reacher, Decoding(steps=2))) > 0.6


def test_numbers_are_matched_to_the_labels_that_were_learned(reacher, tmp_path):
    shown = [e for e in demonstrated(20) if e.task == TASKS[0]]
    state, said = np.concatenate([e.state for e in shown])[::9], TASKS[0]
    said = [said] * len(state)
    assert reacher.width == Loss().width > 0 and Loss().labels("flow") == Loss(0.0).labels("masked") == 0
    found = reacher.predict_action(state, said)
    means = reacher.predict_action(state, said, decoding=Decoding(read="expectation", steps=reacher.decoding.steps))
    done = Rows(reacher, reacher.layout, shown).target[::9]
    far = done.abs() > 0.9  # where labels are cut off
    off, short = (
        ((done.abs() - done.sign() * reacher.normaliser().normalise(torch.from_numpy(x)).values)[far]).mean()
        for x in (found, means)
    )
    assert off < short - 0.02
    reacher.save_pretrained(tmp_path / "p")
    assert np.array_equal(found, ActionPolicy.from_pretrained(tmp_path / "p").predict_action(state, said))
    hard = dataclasses.replace(reacher, width=0.0)  # of hard labels it is the mean
    assert np.array_equal(hard.predict_action(state, said), means)


def test_episodes_of_the_small_world_do_not_depend_on_one_another(reacher):
    act, seeds = acting(reacher, Decoding(temperature=1.0)), [7, 3]
    together = tried(act, seeds, tasks=TASKS[:1], cap=18)
    assert together == [tried(act, [seed], tasks=TASKS[:1], cap=18)[0] for seed in seeds]
    assert together == tried(act, seeds[::-1], tasks=TASKS[:1], cap=18)[::-1]
    for r in together:
        assert r.path.shape == (r.length + 1, 3) and r.calls == -(-r.length // 4) and (r.success or r.length == 18)
    few = tried(act, [7], tasks=TASKS[:1], cap=9, execute=2, keep=[(TASKS[0], 7)], keep_size=24)[0]
    assert few.calls == -(-few.length // 2) and few.frames.shape == (few.length + 1, 24, 24, 3)
    for wrong, match in (
        ({"tasks": ("fly",)}, "fly"), ({"cap": 0}, "cap"), ({"execute": -1}, "execute"), ({"execute": 9}, "at least 9"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            tried(act, [7], **{"tasks": TASKS[:1], **wrong})
    with pytest.raises(ValueError, match="not finite"):
        tried(lambda shown: np.full((len(shown.seed), 4, 7), np.nan), [7])
