"""Distances between pictures: closed forms, scikit-image, laws, gradients and refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from discdiff.metrics import feature_distance, psnr, ssim


def pictures(n, channels=1, height=28, width=28, seed=0):
    """Smooth pictures in [-1, 1] and noisy copies of them, float64."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, height // 4, width // 4, generator=g, dtype=torch.float64)
    x = torch.tanh(F.interpolate(coarse, size=(height, width), mode="bilinear"))
    levels = 0.05 + 0.1 * torch.arange(n)[:, None, None, None]
    return x, x + levels * torch.randn(x.shape, generator=g, dtype=torch.float64)


def test_psnr_is_the_closed_form_and_per_picture():
    x, y = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    y[0] += 0.02
    y[1, 0, 0, 0] = 1.0
    found = psnr(x, y)
    assert found[0] == pytest.approx(40.0, abs=1e-4) and found[1] == pytest.approx(10 * math.log10(4 * 16))
    assert torch.isposinf(found[2])
    torch.testing.assert_close(psnr(x / 2, y / 2, span=1.0)[:2], found[:2])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 11, 24)])
def test_ssim_and_psnr_are_scikit_images(shape):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pictures(3, *shape)
    a, b = (x + 1).numpy(), (y + 1).numpy()  # from black, not from grey
    options = {"data_range": 2.0, "channel_axis": 0}
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, **options}
    for found, told in (
        (ssim(x, y), [metrics.structural_similarity(p, q, **options) for p, q in zip(a, b)]),
        (ssim(x, y, window=9), [metrics.structural_similarity(p, q, win_size=9, **options) for p, q in zip(a, b)]),
        (ssim(x, y, window=11, sigma=1.5), [metrics.structural_similarity(p, q, **wang) for p, q in zip(a, b)]),
        (ssim(x + 1, y + 1, black=0.0), [metrics.structural_similarity(p, q, **options) for p, q in zip(a, b)]),
        (psnr(x, y), [metrics.peak_signal_noise_ratio(p, q, data_range=2.0) for p, q in zip(a, b)]),
    ):
        torch.testing.assert_close(found, torch.tensor(told, dtype=torch.float64), atol=1e-8, rtol=0)


def test_ssim_is_the_formula_of_one_window():
    x, y = pictures(2, height=8, width=8)
    x, y = x[..., :7, :7], y[..., :7, :7]  # one window of 7
    for k in range(2):
        a, b = x[k].flatten() + 1, y[k].flatten() + 1
        c = torch.cov(torch.stack([a, b]))
        top = (2 * a.mean() * b.mean() + 0.02**2) * (2 * c[0, 1] + 0.06**2)
        below = (a.mean() ** 2 + b.mean() ** 2 + 0.02**2) * (c[0, 0] + c[1, 1] + 0.06**2)
        assert ssim(x, y)[k] == pytest.approx(float(top / below), abs=1e-12)


def test_ssim_knows_equal_pictures_channels_and_order():
    x, y = pictures(4, channels=3)
    torch.testing.assert_close(ssim(x, x), torch.ones(4).double())
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert bool((ssim(x, y).diff() < 0).all())  # more noise, less alike
    one_by_one = torch.stack([ssim(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)]).mean(0)
    torch.testing.assert_close(ssim(x, y), one_by_one)
    assert float(ssim(x, -x).max()) < 0 < float(ssim(x, -x, black=0.0).min())
    for metric in (psnr, ssim):
        torch.testing.assert_close(metric(x[2:3], y[2:3]), metric(x, y)[2:3])
        torch.testing.assert_close(metric(x.float(), y.float()), metric(x, y), atol=1e-4, rtol=0)


def test_feature_distance():
    x, y = pictures(3, channels=2)

    def layers(z):
        return [z, z.mean((2, 3))]

    u, v = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    places = (u - v).square().sum(1).mean((1, 2))
    a, b = x.mean((2, 3)), y.mean((2, 3))
    whole = 2 - 2 * F.cosine_similarity(a, b)
    torch.testing.assert_close(feature_distance(x, y, lambda z: z), places)
    torch.testing.assert_close(feature_distance(x, y, layers), (places + whole) / 2)
    assert float(feature_distance(x, 3 * x, layers).max()) < 1e-12  # lengths of features do not count
    torch.testing.assert_close(feature_distance(x, -x, layers), torch.full((3,), 4.0).double())


@pytest.mark.parametrize("metric", [psnr, ssim, lambda x, y: feature_distance(x, y, lambda z: z.flatten(1))])
def test_gradients(metric):
    x, y = pictures(2, height=12, width=12)
    assert torch.autograd.gradcheck(lambda z: metric(x[..., :8, :8], z), y[..., :8, :8].clone().requires_grad_())


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda x: psnr(x, x[:1]), "equal ones"),
        (lambda x: psnr(x.to(torch.uint8), x), "give floats"),
        (lambda x: psnr(x, x, span=0.0), "span is 0.0"),
        (lambda x: ssim(x, x, window=13), "sides of pictures of 12 x 12"),
        (lambda x: ssim(x, x, window=4), "window is 4"),
        (lambda x: ssim(x, x, sigma=0.0), "sigma is 0.0"),
        (lambda x: ssim(x[:, 0], x[:, 0]), "batch, channels"),
        (lambda x: feature_distance(x, x, lambda z: z.mean(0, keepdim=True)), "2 rows"),
        (lambda x: feature_distance(x, x, lambda z: []), "at least one"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call(pictures(2, height=12, width=12)[0])
