"""The judge of pictures and captions: what it learns, its loss by hand, how pictures move, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from discdiff.noise import Noise
from tasks.common.words import Lexicon
from tasks.image.matching import Matcher, Matching, fit_matcher, moved, retrieval, scores
from tasks.image.sources import Read

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}
SHAPES = {
    "bar": (slice(6, 10), slice(0, 16)),
    "pole": (slice(0, 16), slice(6, 10)),
    "box": (slice(3, 13), slice(3, 13)),
}


def drawings(count, seed=0):
    """White pictures with one of three shapes in one of four colours, and captions in two orders of words."""
    generator = torch.Generator().manual_seed(seed)
    x, said = torch.full((count, 3, 16, 16), 255, dtype=torch.uint8), []
    for row in x:
        pick = [int(torch.randint(n, (), generator=generator)) for n in (len(COLOURS), len(SHAPES), 2)]
        colour, shape = list(COLOURS)[pick[0]], list(SHAPES)[pick[1]]
        row[:, *SHAPES[shape]] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
        said.append(f"a {colour} {shape}" if pick[2] else f"{shape}, {colour}")
    return Read(x, [], said)


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    train = drawings(192)
    return fit_matcher(
        train, Lexicon.of(train.said, 8), tmp_path_factory.mktemp("judge") / "m", steps=60, batch=32, width=16
    )


def test_it_tells_right_captions_from_wrong_ones(matcher):
    seen = drawings(60, seed=1)
    wrong = [said.replace("bar", "pole") if "bar" in said else said.replace("pole", "box") for said in seen.said]
    changed = torch.tensor([a != b for a, b in zip(wrong, seen.said)])
    own, other = scores(matcher, seen.x, seen.said), scores(matcher, seen.x, wrong)
    assert own.shape == (60,) and own.abs().max() <= 1 + 1e-5
    assert own.mean() > 0.6 and (own - other)[changed].mean() > 0.4
    # the word "a" makes two captions of one drawing
    assert retrieval(matcher, seen.x, seen.said, 2) > 0.7
    assert retrieval(matcher, seen.x, seen.said, 2) > retrieval(matcher, seen.x.flip(0), seen.said, 2) + 0.5


def test_order_of_words_does_not_matter(matcher):
    x = drawings(2).x
    assert torch.allclose(scores(matcher, x, ["a red box"] * 2), scores(matcher, x, ["box red a"] * 2), atol=1e-6)


def test_an_unknown_word_says_less_but_not_nothing(matcher):
    seen = drawings(60, seed=2)
    hidden = [said.replace("red", "crimson").replace("blue", "azure") for said in seen.said]
    without = torch.tensor([a != b for a, b in zip(hidden, seen.said)])
    own, less = scores(matcher, seen.x, seen.said)[without], scores(matcher, seen.x, hidden)[without]
    other = [said.replace("box", "pole") if "box" in said else said.replace("bar", "box") for said in hidden]
    moved_shape = torch.tensor([a != b for a, b in zip(other, hidden)])[without]
    assert less.mean() < own.mean()
    assert (less - scores(matcher, seen.x, other)[without])[moved_shape].mean() > 0.1


def test_it_is_kept_and_trained_anew_for_other_settings(tmp_path):
    train = drawings(16)
    lexicon = Lexicon.of(train.said, 8)
    made = fit_matcher(train, lexicon, tmp_path / "m", steps=2, batch=8, width=8)
    before = torch.get_rng_state()
    weights = tmp_path / "m" / "matcher.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = fit_matcher(train, lexicon, tmp_path / "m", steps=2, batch=8, width=8)
    assert weights.stat().st_mtime_ns == stamp
    assert torch.equal(scores(made, train.x, train.said), scores(again, train.x, train.said))
    other = fit_matcher(train, lexicon, tmp_path / "m", steps=3, batch=8, width=8)
    assert weights.stat().st_mtime_ns != stamp
    assert not torch.equal(scores(made, train.x, train.said), scores(other, train.x, train.said))
    assert torch.equal(before, torch.get_rng_state()), "the global generator is left as it was"


class Given(nn.Module):
    """Vectors that are given, and the inputs that it was asked about."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x, ids):
        self.asked = x, ids
        return self.a, self.b


def noise_of(rows):
    return Noise.seeded(0, torch.ones(rows, 1, dtype=torch.bool))


def test_the_loss_by_hand():
    """Rows 0 and 2 have one caption: either counts as a match for either, half each."""
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    b = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.8, 0.6]], dtype=torch.float64)
    inputs = {"x": torch.zeros(3, 1, 4, 4), "ids": torch.tensor([[2, 3], [2, 4], [2, 3]])}
    loss, found = Matching(temperature=0.5)(Given(a, b), inputs, noise_of(3), None)
    targets, total = [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], 0.0
    for left, right in ((a, b), (b, a)):
        for i in range(3):
            dots = [float(left[i] @ right[j]) / 0.5 for j in range(3)]
            norm = math.log(sum(math.exp(d) for d in dots))
            total -= sum(q * (d - norm) for q, d in zip(targets[i], dots)) / 6
    assert loss.item() == pytest.approx(total, abs=1e-12) and found["row_loss"].mean().item() == pytest.approx(total)


def test_the_objective_moves_pictures_and_hides_words():
    rows = 400
    x = torch.zeros(rows, 1, 9, 9)
    x[:, :, 4, 3] = 1
    ids = torch.tensor([[2, 3, 0]]).repeat(rows, 1)
    network = Given(torch.eye(rows), torch.eye(rows))
    Matching(hidden=0.25, shift=1)(network, {"x": x, "ids": ids}, noise_of(rows), None)
    shown, read = network.asked
    places = {(int(i), int(j)): int(n) for (i, j), n in zip(*_counts(shown))}
    assert set(places) == {(i, j) for i in (3, 4, 5) for j in (2, 3, 4, 5, 6)}, "3 rows, and 3 columns on either side"
    assert sum(n for (_, j), n in places.items() if j > 4) == pytest.approx(rows * 0.5, abs=70)
    assert not read[:, 2].any(), "no word stays no word"
    assert (read[:, :2] == 1).double().mean(0).tolist() == pytest.approx([0.25, 0.25], abs=0.08)
    assert not torch.equal(read[:, 0] == 1, read[:, 1] == 1)


def _counts(x):
    where, counts = x[:, 0].nonzero()[:, 1:].unique(dim=0, return_counts=True)
    return where.tolist(), counts.tolist()


def test_pictures_move():
    x = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    no, yes, zero, one = (torch.tensor([v]) for v in (False, True, 0, 1))
    assert torch.equal(moved(x, no, zero, zero), x)
    assert torch.equal(moved(x, yes, zero, zero), x.flip(3))
    assert moved(x, no, one, zero)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert moved(x, no, zero, -one)[0, 0, 0].tolist() == [1, 2, 3, 3]
    both = moved(x.repeat(2, 2, 1, 1), torch.tensor([True, False]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert torch.equal(both[:1, :1], x.flip(3)) and torch.equal(both[1:, 1:], moved(x, no, one, zero))


def test_retrieval_by_hand():
    """A judge whose vectors are the one-hot words; the control, whose vectors are all one, finds nothing."""
    lexicon = Lexicon(("", "?", "one", "two", "three"), 1)
    matcher = Matcher(lexicon, 1, width=8, size=5).eval()
    eye = torch.eye(5)
    vectors = torch.stack(
        [eye[2], eye[3], eye[3] + eye[2] / 2, eye[2]]
    )  # the third's caption is second, the fourth's ties
    matcher.pictures = lambda x: vectors[: len(x)]
    matcher.captions = lambda ids: eye[ids[:, 0]]
    x, captions = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ["one", "two", "one", "three"]
    assert scores(matcher, x, captions).tolist() == [1, 1, 0.5, 0]
    assert [retrieval(matcher, x, captions, k) for k in (1, 2, 3)] == [0.5, 0.75, 1]
    matcher.captions = lambda ids: torch.ones(len(ids), 5)
    assert retrieval(matcher, x, captions) == 0 and retrieval(matcher, x, captions, 3) == 1


def test_bad_input(matcher, tmp_path):
    seen = drawings(4)
    with pytest.raises(ValueError, match="captions is 3: one for each of 4 pictures"):
        scores(matcher, seen.x, seen.said[:3])
    with pytest.raises(ValueError, match="torch.uint8"):
        scores(matcher, seen.x.float(), seen.said)
    with pytest.raises(ValueError, match=r"\(4, 1, 16, 16\): \(n, 3, height, width\)"):
        scores(matcher, seen.x[:, :1], seen.said)
    with pytest.raises(ValueError, match="k is 9: from 1 to"):
        retrieval(matcher, seen.x, seen.said, 9)
    with pytest.raises(ValueError, match="at least two that differ"):
        fit_matcher(Read(seen.x, [], ["box"] * 4), Lexicon.of(["box"], 8), tmp_path / "m", steps=1)
    for wrong, message in (({"temperature": 0}, "above 0"), ({"hidden": 1}, "share"), ({"shift": -1}, "pixels")):
        with pytest.raises(ValueError, match=message):
            Matching(**wrong)
