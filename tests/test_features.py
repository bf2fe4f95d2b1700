"""Distances between sets of features: closed forms on exact samples, double loops, laws in the mean, and hand-made cases."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from discdiff.metrics import (
    density_coverage,
    features,
    frechet_distance,
    memorised,
    nearest_distances,
    precision_recall,
)


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_of(mean, covariance, rows, seed=0):
    """Rows whose own mean and unbiased covariance are the given ones."""
    z = normal(rows, len(mean), seed=seed)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / (rows - 1)), z.T, upper=False).T
    return mean + z @ torch.linalg.cholesky(covariance).T


def a_covariance(width, seed):
    root = normal(width, width, seed=seed)
    return root @ root.T + 0.1 * torch.eye(width)


def gaussians(a, b, covariances):
    """The closed form, by eigenvalues of the product, which is not symmetric: n above d only."""
    product = torch.linalg.eigvals(covariances[0] @ covariances[1])
    return float((a - b).square().sum() + sum(c.trace() for c in covariances) - 2 * product.sqrt().real.sum())


def rotation(width, seed=5):
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


# Frechet distance


def test_frechet_of_diagonal_gaussians():
    mean, other = torch.tensor([1.0, -2, 0.5]).double(), torch.tensor([0.0, 1, 0.5]).double()
    a, b = torch.tensor([4.0, 9, 1]).double(), torch.tensor([1.0, 16, 0.25]).double()
    x, y = sample_of(mean, a.diag(), 40, seed=1), sample_of(other, b.diag(), 25, seed=2)
    exact = 1 + 9 + (2 - 1) ** 2 + (3 - 4) ** 2 + (1 - 0.5) ** 2
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)
    # control: covariances over n instead of n - 1 are told apart
    biased = gaussians(x.mean(0), y.mean(0), [torch.cov(z.T, correction=0) for z in (x, y)])
    assert abs(biased - exact) > 0.05


@pytest.mark.parametrize("width", [1, 2, 7, 30])
def test_frechet_of_any_gaussians(width):
    covariances = a_covariance(width, 1), a_covariance(width, 2)
    x, y = (sample_of(normal(width, seed=s), c, 100, seed=s) for s, c in enumerate(covariances))
    exact = gaussians(x.mean(0), y.mean(0), covariances)
    found = frechet_distance(x, y)
    assert found == pytest.approx(exact, rel=1e-9)
    if width > 1:  # control: covariances that do not commute need more than their diagonals
        plain = gaussians(x.mean(0), y.mean(0), [c.diag().diag() for c in covariances])
        assert found != pytest.approx(plain, rel=1e-3)


def test_frechet_by_a_general_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(80, 12, seed=1) @ normal(12, 12, seed=2), normal(60, 12, seed=3) @ normal(12, 12, seed=4) + 1
    covariances = torch.cov(x.T), torch.cov(y.T)
    root = float(linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real.trace())
    gap = float((x.mean(0) - y.mean(0)).square().sum())
    assert frechet_distance(x, y) == pytest.approx(gap + float(sum(covariances).trace()) - 2 * root, rel=1e-9)


@pytest.mark.parametrize("rows", [60, 5])
def test_frechet_is_symmetric_zero_on_itself_and_keeps_under_rotation(rows):
    x, y = normal(rows, 20, seed=1), 2 * normal(rows + 2, 20, seed=2) + 1
    found = frechet_distance(x, y)
    assert found > 1
    assert frechet_distance(y, x) == pytest.approx(found, rel=1e-12)
    turn, shift = rotation(20), normal(20, seed=3)
    assert frechet_distance(x @ turn + shift, y @ turn + shift) == pytest.approx(found, rel=1e-10)
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-12
    assert frechet_distance(x @ turn, y) != pytest.approx(found, rel=1e-3)  # control: turning one alone shows


def test_frechet_of_fewer_rows_than_width():
    x, y = normal(6, 4, seed=1), normal(9, 4, seed=2) + 1
    frame = rotation(50)[:4]  # the same points in a space of 50
    assert frechet_distance(x @ frame, y @ frame) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    x, y = normal(3, 40, seed=1), normal(4, 40, seed=2)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * float(x.mean(0).square().sum() + torch.cov(x.T).trace()))
    x[:, 20:], y[:, :20] = 0, 0  # nothing in common: no joint part
    gap, traces = (x.mean(0) - y.mean(0)).square().sum(), sum(torch.cov(z.T).trace() for z in (x, y))
    assert frechet_distance(x, y) == pytest.approx(float(gap + traces), rel=1e-12)


def test_frechet_of_float32_and_whole_numbers_is_that_of_float64():
    x, y = normal(30, 5, seed=1).float() + 1000, normal(30, 5, seed=2).float() + 1000
    assert frechet_distance(x, y) == frechet_distance(x.double(), y.double())
    whole = torch.arange(12).reshape(4, 3) ** 2
    assert frechet_distance(whole, whole + 2) == pytest.approx(12)


# Neighbours


def restated(real, fake, k):
    """Precision, recall, density, coverage by loops over pairs, from the definition."""

    def distance(x, y):
        return float((x - y).square().sum())

    def radii(rows):
        return [sorted(distance(x, y) for j, y in enumerate(rows) if j != i)[k - 1] for i, x in enumerate(rows)]

    real_radii, fake_radii = radii(real), radii(fake)
    inside = [[distance(x, y) <= r for x, r in zip(real, real_radii, strict=True)] for y in fake]
    reached = [any(distance(x, y) <= r for y, r in zip(fake, fake_radii, strict=True)) for x in real]
    return (
        sum(map(any, inside)) / len(fake),
        sum(reached) / len(real),
        sum(map(sum, inside)) / (k * len(fake)),
        sum(map(any, zip(*inside, strict=True))) / len(real),
    )


@pytest.mark.parametrize("piece", [1, 70, 1 << 22])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0, 1 << 24])
def test_shares_are_those_of_the_double_loop(monkeypatch, piece, k, offset):
    monkeypatch.setattr(features, "PIECE", piece)
    whole = torch.Generator().manual_seed(k)
    cases = {
        "normal": (normal(40, 3, seed=1), 1.5 * normal(25, 3, seed=2) + 0.5),
        "wide": (normal(30, 64, seed=1), normal(20, 64, seed=2)),
        "ties": tuple(torch.randint(0, 4, (rows, 2), generator=whole).double() for rows in (30, 24)),
        "few ties": tuple(torch.randint(0, 9, (rows, 3), generator=whole).double() for rows in (30, 24)),
    }
    values = set()
    for real, fake in cases.values():
        if offset:  # a whole number of 2^-20, so that the shift itself rounds nothing
            real, fake = ((x * 2**20).round() / 2**20 + offset for x in (real, fake))
        wanted = restated(real, fake, k)
        assert (*precision_recall(real, fake, k), *density_coverage(real, fake, k)) == pytest.approx(wanted, abs=1e-12)
        values.update(wanted)
    assert len(values - {0.0, 1.0}) > 6  # the cases are not all plain


def test_points_on_the_sphere_of_a_ball_are_inside():
    """A fake that is itself the row that sets a radius, and alone: the two products differ in their rounding."""
    real = normal(300, 50)
    nearest = torch.cdist(real, real).fill_diagonal_(math.inf).argmin(1)
    for row in nearest.unique():  # in its own ball, and in those of the rows whose nearest it is
        assert density_coverage(real, real[row][None], k=1).density == 1 + int((nearest == row).sum())
    pair = torch.tensor([[0.0], [1.0]]).double()
    assert density_coverage(pair, torch.tensor([[-1.0]]).double(), k=1) == (1, 1 / 2)
    assert density_coverage(pair, torch.tensor([[-1 - 1e-10]], dtype=torch.float64), k=1) == (
        0,
        0,
    )  # the allowance is rounding's


def test_fakes_far_away_and_fakes_that_are_real():
    real = normal(50, 4)
    assert precision_recall(real, real + 100) == (0, 0) and density_coverage(real, real + 100) == (0, 0)
    assert precision_recall(real, real.flip(0)) == (1, 1)
    assert density_coverage(real, real.flip(0)) == (pytest.approx((5 + 1) / 5), 1)  # k others and itself per ball
    same = torch.zeros(6, 3)  # radii of 0: still no row is its own neighbour, and a copy is inside
    assert precision_recall(same, same) == (1, 1) and density_coverage(same, same) == (pytest.approx(6 / 5), 1)
    assert precision_recall(same, same + 1e-3) == (0, 0)


def test_a_dropped_mode_costs_recall_and_coverage_alone():
    far = torch.tensor([100.0, 0]).double()
    real = torch.cat([normal(200, 2, seed=1), normal(200, 2, seed=2) + far])
    fair = torch.cat([normal(200, 2, seed=3), normal(200, 2, seed=4) + far])
    drop = torch.cat([normal(200, 2, seed=3), normal(200, 2, seed=4)])
    for found, least in ((fair, 0.9), (drop, 0.9)):
        assert precision_recall(real, found).precision > least and density_coverage(real, found).density > least
    assert precision_recall(real, fair).recall > 0.9 and density_coverage(real, fair).coverage > 0.9
    assert 0.45 < precision_recall(real, drop).recall <= 0.5
    assert 0.45 < density_coverage(real, drop).coverage <= 0.5


def test_one_outlier_inflates_precision_but_not_density():
    real, fake = 0.1 * normal(50, 2, seed=1), torch.tensor([5.0, 0]).double() + normal(40, 2, seed=2)
    assert precision_recall(real, fake).precision == density_coverage(real, fake).density == 0
    outlier = torch.cat([real, torch.tensor([[10.0, 0]]).double()])
    assert precision_recall(outlier, fake).precision > 0.9
    assert density_coverage(outlier, fake).density <= 1 / 5
    assert density_coverage(outlier, fake).coverage == pytest.approx(1 / 51)


def test_means_under_one_law_are_the_known_ones():
    """For equal laws density is 1 and coverage 1 - prod (n - i) / (n + m - i) in the mean, whatever the law."""
    n, m, k, runs = 12, 9, 2, 600
    rows = normal(runs, n + m, 3, seed=7).exp()
    found = torch.tensor([density_coverage(x[:n], x[n:], k) for x in rows])
    mean, error = found.mean(0), found.std(0) / math.sqrt(runs)

    def coverage(k):
        return 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))

    assert (mean - torch.tensor([1.0, coverage(k)])).abs().lt(3.5 * error).all()
    for wrong in (k - 1, k + 1):  # controls: radii by one neighbour fewer, as if a row were its own, or one more
        assert abs(mean[1] - coverage(wrong)) > 6 * error[1]
        assert abs(mean[0] - wrong / k) > 6 * error[0]


def test_no_table_of_all_distances_is_made(monkeypatch):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    monkeypatch.setattr(features, "PIECE", 10_000)
    real, fake = normal(700, 8, seed=1), normal(600, 8, seed=2)
    with Largest() as ours:
        precision_recall(real, fake)
        density_coverage(real, fake)
        memorised(fake, real, real + 0.5)
        nearest_distances(real, real, exclude_self=True)
    with Largest() as table:
        torch.cdist(real, fake)
    assert 5_000 < ours.numbers <= 10_000
    assert table.numbers >= 420_000  # so the counter can see one


# Memory of training rows


@pytest.mark.parametrize("piece", [1, 50, 1 << 22])
def test_nearest_distances(monkeypatch, piece):
    monkeypatch.setattr(features, "PIECE", piece)
    x, reference = normal(30, 6, seed=1), normal(20, 6, seed=2)
    table = torch.stack([(reference - row).norm(dim=1) for row in x])
    assert torch.allclose(nearest_distances(x, reference), table.amin(1), rtol=1e-12)
    table = torch.stack([(x - row).norm(dim=1) for row in x])
    own = nearest_distances(x, x, exclude_self=True)
    assert torch.allclose(own, table.fill_diagonal_(math.inf).amin(1), rtol=1e-12)
    assert torch.equal(nearest_distances(x, x), torch.zeros(30).double())
    twice = torch.cat([x, x[:3]])  # copies are neighbours at 0, rows are not their own
    assert (nearest_distances(twice, twice, exclude_self=True) == 0).nonzero()[:, 0].tolist() == [0, 1, 2, 30, 31, 32]


def test_copies_are_at_distance_0_far_from_the_origin():
    rows = normal(200, 300).float() + 1e4
    assert nearest_distances(rows.flip(0), rows).max() == 0
    near = rows[:5].clone()
    near[:, 0] += 0.01
    exact = (near.double() - rows[:5].double()).norm(dim=1)
    assert torch.allclose(nearest_distances(near, rows), exact, rtol=1e-9)
    products = rows[:5].square().sum(1) + near.square().sum(1) - 2 * (rows[:5] * near).sum(1)
    assert not torch.allclose(products.clamp(min=0).sqrt().double(), exact, rtol=0.1)  # control: plain products lose it


def test_memorised_counts_what_is_closer_than_half_the_median():
    train = torch.tensor([[0.0], [100.0], [200.0]])
    real = torch.tensor([[1.0], [104.0], [210.0], [8.0]])  # at 1, 4, 10, 8 of train: median 6, half of it 3
    fake = torch.tensor([[0.0], [2.9], [103.0], [50.0], [197.5], [-3.5], [1e6], [-2.0]])
    assert memorised(fake, train, real) == 4 / 8  # 103 is at 3, not closer
    assert memorised(fake[2:4], train, real) == 0 and memorised(train, train, real) == 1
    assert memorised(real, train, real) == 1 / 4  # the real rows' own score, to set beside
    assert memorised(fake, train, real * 10) != 4 / 8  # control: the threshold is that of the real rows


def test_fresh_samples_are_not_memorised_and_copies_with_noise_are():
    train, real, fresh = (normal(400, 8, seed=s) for s in range(3))
    assert memorised(fresh, train, real) < 0.05
    mixed = torch.cat([fresh[:300], train[:100] + 0.01 * normal(100, 8, seed=9)])
    assert memorised(mixed, train, real) == pytest.approx(0.25 + 0.75 * memorised(fresh[:300], train, real))


# Bad input

GOOD = normal(6, 3)
HOLED = GOOD.index_put((torch.tensor([4]), torch.tensor([1])), torch.tensor(math.nan).double())
ENDLESS = GOOD.index_put((torch.tensor([2]), torch.tensor([0])), torch.tensor(-math.inf).double())
PAIRS = {"frechet": frechet_distance, "precision": precision_recall, "density": density_coverage}


@pytest.mark.parametrize("name", [*PAIRS, "nearest", "memorised"])
def test_bad_features(name):
    call = PAIRS.get(name) or {"nearest": nearest_distances, "memorised": lambda x, y: memorised(x, GOOD, y)}[name]
    for bad, message in (
        (HOLED, "nan at row 4, column 1"),
        (ENDLESS, "-inf at row 2, column 0"),
        (GOOD[:, :2], "width"),
        (GOOD[None], r"shape \(1, 6, 3\)"),
        (GOOD[0, 0], r"shape \(\)"),
        (GOOD[:0], "0 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            call(bad, GOOD)
        with pytest.raises(ValueError, match=message):
            call(GOOD, bad)


def test_bad_numbers_of_rows():
    for pair in ((GOOD[:1], GOOD), (GOOD, GOOD[:1])):
        with pytest.raises(ValueError, match="[ab] has 1 rows"):
            frechet_distance(*pair)
        with pytest.raises(ValueError, match=r"k = 3 with 1 rows of (real|fake)"):
            precision_recall(*pair)
    for call in (precision_recall, density_coverage):
        for k in (0, -1, 6, 7):
            with pytest.raises(ValueError, match=f"k = {k} with 6 rows of real"):
                call(GOOD, GOOD.repeat(2, 1), k)
        call(GOOD, GOOD, 5)
    with pytest.raises(ValueError, match="k = 5 with 5 rows of fake"):
        precision_recall(GOOD, GOOD[:5], 5)
    assert density_coverage(GOOD, GOOD[:1]).coverage > 0  # one fake row is enough here
    with pytest.raises(ValueError, match="6 rows and a reference of 5"):
        nearest_distances(GOOD, GOOD[:5], exclude_self=True)
    with pytest.raises(ValueError, match="1 rows and a reference of 1"):
        nearest_distances(GOOD[:1], GOOD[:1], exclude_self=True)
    with pytest.raises(ValueError, match="median distance 0.0"):
        memorised(GOOD, GOOD, GOOD)
