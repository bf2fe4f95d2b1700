"""Traces follow a run, and players, GIFs and image grids show exactly what it held."""

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from discdiff.report import GridView, ImageView, TextView, Trace, gif, image_grid, player, record, watch

MASK = 99


def toy_run(steps=5, batch=3, length=10, wrap=np.asarray):
    """Row r commits position i at step (i + r) % steps, and its token is 10 r + i."""
    for k in range(steps):
        row, place = np.mgrid[:batch, :length]
        committed = (place + row) % steps <= k
        tokens = np.where(committed, 10 * row + place, MASK)
        yield SimpleNamespace(tokens=wrap(tokens), committed=wrap(committed)), SimpleNamespace(nfe=2)


def toy_views():
    return [
        TextView("words", range(4), lambda i: f"w{i} "),
        ImageView("pixels", np.arange(4, 8).reshape(2, 2), lambda ids: (20 * ids).astype(np.uint8)),
        GridView("codes", [8, 9], str),
    ]


def data_of(fragment):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', fragment, re.S).group(1))


def frames_of(view):
    """The frames a player shows, from its differences."""
    frame, frames = np.full(view["size"], -1), []
    for changes in view["deltas"]:
        frame = frame.copy()
        frame[changes[::2]] = changes[1::2]
        frames.append(frame)
    return np.array(frames)


# traces


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
def test_record_follows_one_row(wrap):
    trace = record(toy_run(wrap=wrap), row=1)
    states = [state for state, _ in toy_run()]
    assert (trace.steps, trace.length) == (5, 10)
    np.testing.assert_array_equal(trace.tokens, [state.tokens[1] for state in states])
    np.testing.assert_array_equal(trace.committed, [state.committed[1] for state in states])
    assert trace.nfe.tolist() == [2] * 5


def test_watch_passes_the_run_through_and_is_up_to_date_after_each_step():
    traces, pairs = {}, list(toy_run(steps=40))
    for k, pair in enumerate(watch(iter(pairs), traces, rows=(2, 0))):
        assert pair is pairs[k]
        assert traces[2].steps == traces[0].steps == k + 1
        if k == 3:
            early = traces[2]
    np.testing.assert_array_equal(early.tokens, traces[2].tokens[:4])  # not overwritten when buffers grow
    np.testing.assert_array_equal(traces[0].tokens, record(iter(pairs)).tokens)


def test_start_becomes_the_first_frame_without_calls():
    start = SimpleNamespace(tokens=np.full((3, 10), MASK), committed=np.zeros((3, 10), bool))
    trace = record(toy_run(), start=start)
    assert trace.steps == 6 and trace.nfe.tolist() == [0, 2, 2, 2, 2, 2]
    assert not trace.committed[0].any()


def test_a_run_that_does_not_count_calls_has_no_nfe():
    assert record((state, SimpleNamespace()) for state, _ in toy_run()).nfe is None


def test_thin_keeps_both_ends_and_all_calls():
    trace = record(toy_run(steps=41))
    thin = trace.thin(7)
    assert thin.steps == 7 and thin.nfe.sum() == trace.nfe.sum() == 82
    np.testing.assert_array_equal(thin.tokens[[0, -1]], trace.tokens[[0, -1]])
    assert trace.thin(1000).steps == 41


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trace(np.zeros((0, 4), int), np.zeros((0, 4), bool)), r"shape \(0, 4\)"),
        (lambda: Trace(np.zeros(4, int), np.zeros(4, bool)), r"shape \(4,\)"),
        (lambda: Trace(np.zeros((2, 4)), np.zeros((2, 4), bool)), "float64; give integer"),
        (lambda: Trace(np.zeros((2, 4), int), np.zeros((2, 3), bool)), "give equal shapes"),
        (lambda: Trace(np.zeros((2, 4), int), np.zeros((2, 4), int)), "give booleans"),
        (lambda: Trace(np.zeros((2, 4), int), np.zeros((2, 4), bool), [1, 2, 3]), "each of 2 steps"),
        (lambda: record(iter(())), "yielded no state"),
        (lambda: record(toy_run(), row=3), "row 3 is outside the batch of 3"),
        (lambda: record(toy_run(), row=-1), "row -1 is outside"),
        (lambda: watch(toy_run(), {0: None}), "give new, distinct rows"),
        (lambda: watch(toy_run(), {}, rows=(1, 1)), "give new, distinct rows"),
        (lambda: record([*toy_run(), *toy_run(length=4)]), "step 6 has length 4"),
        (lambda: record(toy_run()).thin(1), "at least 2"),
    ],
)
def test_bad_traces_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# player


def test_player_data_rebuilds_the_run():
    trace = record(toy_run(), row=1)
    data = data_of(player(trace, toy_views()))
    assert (data["steps"], data["length"], data["remasks"]) == (5, 10, False)
    assert data["committed"] == trace.committed.sum(1).tolist() and data["calls"] == [2, 4, 6, 8, 10]
    words, pixels, codes = data["views"]
    shown = [[words["symbols"][i] if i >= 0 else None for i in frame] for frame in frames_of(words)]
    expected = [
        [f"w{t} " if c else None for t, c in zip(*row)]
        for row in zip(trace.tokens[:, :4], trace.committed[:, :4], strict=True)
    ]
    assert shown == expected
    np.testing.assert_array_equal(frames_of(pixels) >= 0, trace.committed[:, 4:8])
    assert codes["columns"] == 0 and codes["symbols"] == ["18", "19"] and len(codes["hues"]) == 2


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("channels", [None, 3])
def test_the_sprite_holds_every_frame_and_nothing_under_a_mask(factor, channels):
    def pixels(ids):
        assert MASK not in ids  # only committed ids are decoded
        picture = np.kron(20 * ids, np.ones((factor, factor))).astype(np.uint8)
        return picture if channels is None else np.stack([picture, picture, 255 - picture], 2)

    trace = record(toy_run())
    view = data_of(player(trace, [ImageView("p", np.arange(6).reshape(2, 3), pixels)]))["views"][0]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(view["sprite"].split(",")[1]))))
    height, width = view["pixels"]
    assert (height, width) == (2 * factor, 3 * factor)
    for k in range(trace.steps):
        top, left = k // view["across"] * height, k % view["across"] * width
        frame = sheet[top : top + height, left : left + width][::factor, ::factor].reshape(6, 4)
        committed, tokens = trace.committed[k, :6], trace.tokens[k, :6]
        np.testing.assert_array_equal(frame[:, 3], 255 * committed)
        np.testing.assert_array_equal(frame[:, 0], np.where(committed, 20 * tokens, 0))
        blue = 20 * tokens if channels is None else 255 - 20 * tokens
        np.testing.assert_array_equal(frame[:, 2], np.where(committed, blue, 0))


def test_remasking_is_noticed_and_an_empty_first_frame_works():
    committed = np.array([[0, 0], [1, 1], [0, 1]], bool)
    trace = Trace(np.where(committed, 3, MASK), committed)
    data = data_of(player(trace, [ImageView("p", [[0, 1]], lambda ids: ids.astype(np.uint8))]))
    assert data["remasks"] and data["calls"] is None
    assert data["views"][0]["deltas"] == [[], [0, 0, 1, 0], [0, -1]]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "non-empty list of views"),
        (TextView("a", [0], str), "non-empty list of views"),
        (["text"], "not a view"),
        ([TextView("a", [], str)], "rank 1"),
        ([TextView("a", [[0]], str)], "rank 1"),
        ([TextView("a", [0.5], str)], "non-empty integer array"),
        ([TextView("a", [0, 10], str)], r"give positions in 0\.\.9"),
        ([GridView("a", [-1], str)], r"give positions in 0\.\.9"),
        ([GridView("a", [[[0]]], str)], "rank 1 or 2"),
        ([ImageView("a", [0, 1], lambda ids: ids)], "rank 2"),
        ([TextView("a", [0], lambda i: i)], "return a str"),
        ([ImageView("a", [[0, 1]], lambda ids: ids / 255.0)], "dtype float64; return uint8"),
        ([ImageView("a", [[0, 1]], lambda ids: ids[0].astype(np.uint8))], "return \\(height, width\\)"),
        ([ImageView("a", [[0, 1]], lambda ids: np.zeros((2, 2), np.uint8))], "same whole multiple"),
    ],
)
@pytest.mark.parametrize("show", [player, lambda trace, views: gif(trace, views, "never.gif")])
def test_bad_views_are_refused(show, views, message):
    with pytest.raises(ValueError, match=message):
        show(record(toy_run()), views)


# pictures


def test_gif_has_a_frame_per_step_and_shows_the_tokens(tmp_path):
    trace = record(toy_run(steps=6))
    red = ImageView("red", np.arange(4).reshape(2, 2), lambda ids: np.full((2, 2, 3), (200, 30, 30), np.uint8))
    path = gif(trace, [*toy_views(), red], tmp_path / "new" / "run.gif", scale=12, duration_ms=80)
    with Image.open(path) as image:
        assert image.n_frames == 6
        reds, durations = [], []
        for k in range(6):
            image.seek(k)
            durations.append(image.info["duration"])
            pixels = np.asarray(image.convert("RGB")).astype(int)
            reds.append(int((np.abs(pixels - (200, 30, 30)).max(2) < 12).sum()))
    assert durations == [80] * 5 + [1200]
    assert reds[0] < reds[1] < reds[2] < reds[3] and reds[5] >= 4 * 144 * 0.95  # one more 12 x 12 cell each step
    assert [file.name for file in path.parent.iterdir()] == ["run.gif"]


def test_gif_of_a_single_step(tmp_path):
    trace = record(toy_run(steps=1))
    with Image.open(gif(trace, toy_views(), tmp_path / "one.gif")) as image:
        assert getattr(image, "n_frames", 1) == 1


@pytest.mark.parametrize("options", [{"scale": 0}, {"duration_ms": 5}])
def test_gif_refuses_bad_options(tmp_path, options):
    with pytest.raises(ValueError, match="give scale >= 1 and duration_ms >= 20"):
        gif(record(toy_run()), toy_views(), tmp_path / "x.gif", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
def test_image_grid_places_every_pixel(wrap):
    images = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)
    grid = np.asarray(image_grid(wrap(images), columns=2, scale=5))
    gap = 5
    assert grid.shape == (2 * 10 + gap, 2 * 20 + gap, 4)
    for i, (y, x) in enumerate([(0, 0), (0, 25), (15, 0)]):
        np.testing.assert_array_equal(grid[y : y + 10 : 5, x : x + 20 : 5, :3], images[i])
    assert not grid[15:, 25:].any()  # the empty place is transparent


def test_image_grid_labels_and_gray():
    images = np.full((2, 30, 30), 7, np.uint8)
    plain, labelled = image_grid(images, 8), image_grid(images, 8, labels=["a", "much too long for it"])
    assert plain.size == (64, 30) and labelled.size == (64, 48)
    strip = np.asarray(labelled)[30:, :, 3]
    assert strip[:, :30].any() and strip[:, 34:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((1, 2, 2)), 1), "float64; give uint8"),
        ((np.zeros((2, 2), np.uint8), 1), r"shape \(2, 2\)"),
        ((np.zeros((1, 2, 2, 4), np.uint8), 1), r"shape \(1, 2, 2, 4\)"),
        ((np.zeros((0, 2, 2), np.uint8), 1), "n >= 1"),
        ((np.zeros((1, 2, 2), np.uint8), 0), "columns is 0"),
        ((np.zeros((1, 2, 2), np.uint8), 1, 0), "scale 0"),
        ((np.zeros((1, 2, 2), np.uint8), 1, 1, ["a", "b"]), "2 labels for 1 images"),
    ],
)
def test_image_grid_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_grid(*arguments)
