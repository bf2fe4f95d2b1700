"""Meta-World: sentences, ways, pictures and the environment itself."""

import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tasks.vla import metaworld
from tasks.vla.collect import record
from tasks.vla.metaworld_ways import DETOURS, ORDERED, ORDERS, controller, drawn, ways_of
from tasks.vla.rendering import true_frame, write_gif
from tasks.vla.rollout import evaluate
from tasks.vla.sentences import HELD_OUT, SENTENCES, held_out, said, varied

# -- sentences and ways ---------------------------------------------------------------------------------------------------


def test_held_out_sentences_are_new_but_their_words_are_not():
    assert SENTENCES.keys() == HELD_OUT.keys() >= {*metaworld.EASY10, *metaworld.HARD10}
    trained = [s for sentences in SENTENCES.values() for s in sentences]
    asked = [s for sentences in HELD_OUT.values() for s in sentences]
    assert len({*trained, *asked}) == len(trained) + len(asked)  # none means two tasks
    assert {w for s in asked for w in s.split()} <= {w for s in trained for w in s.split()}
    assert {varied("reach", k) for k in range(30)} == set(SENTENCES["reach"])
    assert {held_out("shared-reach", k) for k in range(30)} == set(HELD_OUT["reach"])
    assert said("around-reach") == "reach the goal around the pillar"
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        said("reech")


@pytest.mark.parametrize("task", DETOURS)
def test_sides_mirror_each_other_and_their_mean_hits_the_pillar(task):
    full = np.zeros(39)
    full[:3], full[4:7], full[36:39] = (0.0, 0.4, 0.2), (0.05, 0.66, 0.18), (-0.08, 0.85, 0.12)
    detour = DETOURS[task]
    pillar, (first, last) = detour.pillar(full), detour.line(full)
    left, right = (detour.points(full, way)[0] for way in ("left", "right"))
    along = last[:2] - first[:2]
    assert abs(np.dot(left[:2] - right[:2], along)) < 1e-12 and np.cross(along, left[:2] - right[:2]) > 0
    assert pillar.holds((left + right) / 2) and not pillar.holds(left) and not pillar.holds(right)
    for point in (first, last):
        assert np.hypot(*(point[:2] - (pillar.x, pillar.y))) > pillar.radius
    for way in ways_of(task):
        path = [first, *detour.points(full, way), last]
        walked = np.concatenate([np.linspace(a, b, 100) for a, b in zip(path, path[1:])])
        assert not any(pillar.holds(p) for p in walked), way
    assert any(pillar.holds(p) for p in np.linspace(first, last, 101))


def test_ways_are_dealt_in_their_proportions():
    both, three = ("left", "right"), ("left", "right", "over")
    assert Counter(drawn(both, k) for k in range(6, 66)) == {"left": 30, "right": 30}
    assert Counter(drawn(three, k) for k in range(1000, 1050)) == {"left": 15, "right": 15, "over": 20}
    found = [drawn(three, k) for k in range(1000)]
    assert found == [drawn(three, k) for k in range(1000)]
    for lag in (1, 2, 10):  # what came before does not tell
        assert 0.24 < np.mean([a == b for a, b in zip(found, found[lag:])]) < 0.4


def test_orders_of_moves():
    full = np.zeros(39)
    full[4:7] = 0.5

    def act(full):
        return np.array([0.5, 0, 0, 1], np.float32)

    for task in ORDERED:
        assert ways_of(task) == ("", *ORDERS) and controller(task, "", full, act) is act
    first, last = (controller(ORDERED[0], way, full, act) for way in ORDERS)
    assert first(full).tolist() == [0, 0, 0, 1] and last(full).tolist() == [0.5, 0, 0, -1]
    for _ in range(20):
        first(full)
    full[:3] = 0.5
    assert first(full).tolist() == [0.5, 0, 0, 1] and last(full).tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="'left'.*reach is done in"):
        controller("reach", "left", full, act)


# -- pictures -------------------------------------------------------------------------------------------------------------


def test_noise_is_no_frame():
    rng = np.random.default_rng(0)
    smooth = (np.add.outer(np.arange(64), 4 * np.arange(64))[..., None] // 2 + np.zeros(3)).astype(np.uint8)
    assert true_frame(smooth) is smooth
    with pytest.raises(RuntimeError, match="noise.*differ by 8[4-7]"):
        true_frame(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(RuntimeError, match="empty"):
        true_frame(np.full((64, 64, 3), 90, np.uint8))


def test_gif(tmp_path):
    frames = np.zeros((5, 6, 8, 3), np.uint8)
    frames[:, :, 4:, 0] = (40 * np.arange(1, 6))[:, None, None]
    frames[:, :, :4, 2] = 255
    path = write_gif(tmp_path / "sub" / "a.gif", frames, scale=3)
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    with Image.open(path) as found:
        assert (found.n_frames, found.size) == (5, (24, 18))
        for k in range(5):
            found.seek(k)
            assert np.abs(np.asarray(found.convert("RGB"))[1::3, 1::3].astype(int) - frames[k]).max() < 8
    for wrong in (frames[0], frames.astype(float), frames[:0]):
        with pytest.raises(ValueError, match="frames"):
            write_gif(path, wrong)


# -- Meta-World itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["metaworld", "mujoco"])
def test_without_the_packages(missing, monkeypatch):
    if missing == "metaworld":
        pytest.importorskip("mujoco")
    metaworld.known.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    for use in (metaworld.make, metaworld.expert):
        with pytest.raises(ValueError, match=r"discdiff\[robots\].*libosmesa6 or EGL"):
            use("reach")


@pytest.fixture(scope="module")
def worlds():
    """Environments by task, built when first asked for."""
    pytest.importorskip("metaworld")
    metaworld.known.cache_clear()
    built = {}

    def world(task):
        if task not in built:
            built[task] = metaworld.make(task)
        return built[task]

    yield world
    for each in built.values():
        each.close()


def test_a_seed_fixes_an_episode(worlds):
    env, act = worlds("drawer-open"), metaworld.expert("drawer-open")

    def played(env, seed):
        states = [env.reset(seed)]
        for _ in range(15):
            states.append(env.step(act(env.full))[0])
        return np.stack(states)

    first = played(env, 1000)
    other = played(env, 1001)
    assert first.shape == (16, 39) and first.dtype == np.float32 and not np.array_equal(first[0], other[0])
    assert np.array_equal(first, played(env, 1000)) and np.array_equal(
        first, played(metaworld.make("drawer-open"), 1000)
    )
    assert np.array_equal(first[0, :18], first[0, 18:36]) and np.array_equal(first[3, 18:36], first[2, :18])
    assert np.abs(first[0, 4:7] - first[1, 4:7]).max() < 2e-3  # the first state shows the drawer where it is
    shown = env.full.copy()
    act(env.full)
    assert np.array_equal(shown, env.full)
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        metaworld.make("reech")
    with pytest.raises(ValueError, match=r"give \(4,\)"):
        env.step(np.zeros(5))


def test_the_sentence_alone_tells_what_to_do(worlds):
    pair = [worlds(task) for task in metaworld.LANG["drawer"]]
    starts = [env.reset(1003) for env in pair]
    assert np.array_equal(*starts)
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(-1, 1, 4) + np.array([0, 0.5, -0.3, 0])
        assert np.array_equal(*(env.step(action)[0] for env in pair))
    for env in pair:
        act, done, state = metaworld.expert(env.task), None, env.reset(1003)
        while done is None:
            state, done = env.step(act(env.full))
        moved = state[5] - starts[0][5]
        assert done and (moved < -0.03) == (env.task == "shared-drawer-open"), env.task


def test_ways_and_their_mean(worlds):
    env, act = worlds("around-reach"), metaworld.expert("around-reach")
    ends, three = [], ("left", "right", "over")
    tried = [((w,), np.mean) for w in three] + [(three[:2], np.mean), (three, np.mean), (three, np.median)]
    for ways, joined in tried:
        env.reset(1000)
        acting, done, path = [controller("around-reach", w, env.full, act) for w in ways], None, []
        while done is None:
            _, done = env.step(joined([a(env.full) for a in acting], axis=0))
            path.append(env.full[:3])
        ends.append((done, np.stack(path)))
    assert [done for done, _ in ends] == [True, True, True, False, False, False]
    paths = [path for _, path in ends]
    assert paths[0][:, 0].min() < -0.06 and paths[1][:, 0].max() > 0.06 and paths[2][:, 2].max() > 0.35
    kept = list(record("around-reach", 4, say=lambda line: None))
    assert {e.way for e in kept} <= set(ways_of("around-reach")) and len({e.way for e in kept}) > 1


def test_pictures_of_two_scenes_in_turn(worlds):
    envs = [worlds("drawer-open"), worlds("around-reach")]
    for env in envs:
        env.reset(1000)
    first = [env.picture(64) for env in envs]
    larger = envs[0].picture(96)
    assert larger.shape == (96, 96, 3)
    for _ in range(2):
        assert all(np.array_equal(a, env.picture(64)) for a, env in zip(first, envs))
    assert np.abs(first[0].astype(int) - first[1]).mean() > 1
    pillar, envs[1].pillar = envs[1].pillar, None
    changed = np.abs(envs[1].picture(64).astype(int) - first[1]).max(2) > 20
    envs[1].pillar = pillar
    assert 20 < changed.sum() < 800  # it stands there, and hides not much
    wood = first[1][48:60, 24:52].mean((0, 1))
    assert wood[0] > wood[2] + 20  # the table is below: upright


def test_the_expert_as_a_policy(worlds):
    pytest.importorskip("metaworld")
    act = metaworld.expert("reach")
    found = evaluate(
        lambda shown: np.stack([act(s) for s in shown.state])[:, None], ("reach",), (50000, 50001), cap=120
    )
    assert all(r.success and r.calls == r.length < 120 for r in found)
