"""Measurement operators: closed forms, linearity, seeds, rows on their own, pseudo inverses."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from inverse_toy import CASES, JOINTS, rows
from motion_toy import BONES, VECTORS, random_pose

from discdiff.config import from_dict, to_dict
from tasks import inverse
from tasks.inverse import (
    OPERATORS,
    BandLimit,
    BoxInpainting,
    Clipping,
    Gap,
    GaussianBlur,
    HighDynamicRange,
    JointSubset,
    KeyFrames,
    Masked,
    MotionBlur,
    NonlinearBlur,
    RandomInpainting,
    SuperResolution,
    check,
)
from tasks.inverse.learned import gamma_blur, random_fields, train_blur
from tasks.inverse.pictures import convolved


@pytest.fixture(params=CASES, ids=list(CASES))
def operator(request):
    return CASES[request.param]


def test_every_name_is_tested():
    assert {type(operator) for operator in CASES.values()} == set(OPERATORS.values())


def test_rows_stand_alone_and_a_seed_fixes_them(operator):
    x = rows(operator)
    y = operator(x)
    torch.testing.assert_close(operator(x[[2, 0]]), y[[2, 0]], rtol=0, atol=1e-12)
    again = dataclasses.replace(operator)
    assert torch.equal(again(x), y) and again == operator
    assert y.dtype == x.dtype and operator(x.float()).dtype == torch.float32
    torch.testing.assert_close(operator(x.float()).double(), y, rtol=0, atol=1e-5)
    check(operator, x, y)


def test_linear_where_it_says_so(operator):
    x, z = rows(operator), rows(operator, seed=1)
    apart = (operator(0.6 * x - 0.4 * z) - 0.6 * operator(x) + 0.4 * operator(z)).abs().max()
    assert bool(apart < 1e-12) == operator.linear


def test_gradients_reach_what_is_measured(operator):
    x = rows(operator, 2).requires_grad_()
    (grad,) = torch.autograd.grad(operator(x).square().sum(), x)
    assert bool(torch.isfinite(grad).all()) and bool((grad.flatten(1) != 0).any(1).all())
    if isinstance(operator, Masked):
        measured = operator.kept(tuple(x.shape), x.device).expand(x.shape)
        torch.testing.assert_close(grad, 2 * x.detach() * measured)
        torch.testing.assert_close(operator(operator(x)), operator(x))
    elif operator.linear:
        u, v = rows(operator, 2, seed=1), torch.randn_like(operator(x))
        (turned,) = torch.autograd.grad(operator(x), x, v)  # A'v
        torch.testing.assert_close((operator(u) * v).sum(), (u * turned).sum())


def test_pseudo_inverses_give_the_same_measurement(operator):
    x = rows(operator)
    y = operator(x)
    try:
        back = operator.pinv(y)
    except ValueError as error:
        assert "no pseudo inverse" in str(error)
        assert isinstance(operator, GaussianBlur | MotionBlur | BandLimit | NonlinearBlur)
        return
    assert back.shape == x.shape
    torch.testing.assert_close(operator(back), y, rtol=0, atol=1e-10)
    if operator.linear:  # of least norm: nothing in it that A does not see
        assert bool((back.flatten(1).norm(dim=1) <= x.flatten(1).norm(dim=1)).all())
        hidden = x - back
        assert float(((hidden * back).flatten(1).sum(1)).abs().max()) < 1e-9


def test_tensors_made_in_inference_mode_serve_training():
    fresh, x = MotionBlur(5, 0.3, seed=77), torch.rand(1, 1, 9, 9)
    with torch.inference_mode():
        fresh(x)
    assert torch.autograd.grad(fresh(x.requires_grad_()).square().sum(), x)[0].abs().sum() > 0


# pictures


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_super_resolution_is_torchs(factor):
    x = rows(SuperResolution())
    told = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    torch.testing.assert_close(SuperResolution(factor)(x), told, rtol=0, atol=1e-7)


def test_blurs_are_convolutions_with_their_kernels():
    x = rows(SuperResolution())
    weights = torch.exp(-0.5 * (torch.arange(-4.0, 5.0).double() / 1.5) ** 2)
    kernel = weights[:, None] * weights / weights.sum() ** 2
    wide = F.pad(x, (4, 4, 4, 4), mode="reflect").flatten(0, 1)[:, None]
    told = F.conv2d(wide, kernel[None, None]).view(x.shape)
    torch.testing.assert_close(GaussianBlur()(x), told)
    torch.testing.assert_close(convolved(x, kernel[None]), told)
    motion = MotionBlur(seed=4)
    told = F.conv2d(wide, motion.kernel().flip(0, 1)[None, None]).view(x.shape)
    torch.testing.assert_close(motion(x), told)
    point = torch.zeros(1, 1, 19, 19).double()
    point[0, 0, 9, 9] = 1
    torch.testing.assert_close(motion(point)[0, 0, 5:14, 5:14], motion.kernel())  # not its mirror image


def test_a_kernel_wider_than_the_picture_mirrors_again_and_again():
    x = rows(SuperResolution())
    at = torch.arange(-30, 12 + 30) % 22
    index = torch.minimum(at, 22 - at)
    across = torch.arange(-30, 16 + 30) % 30
    wide = x[:, :, index][..., torch.minimum(across, 30 - across)]
    weights = torch.exp(-0.5 * (torch.arange(-30.0, 31.0).double() / 3) ** 2)
    kernel = weights[:, None] * weights / weights.sum() ** 2
    told = F.conv2d(wide.flatten(0, 1)[:, None], kernel[None, None]).view(x.shape)
    torch.testing.assert_close(GaussianBlur(61, 3.0)(x), told)
    grey = torch.full((1, 1, 1, 5), 0.3)
    torch.testing.assert_close(MotionBlur(9)(grey), grey)


def test_motion_kernels():
    for seed in range(6):
        kernel = MotionBlur(9, 0.5, seed).kernel()
        assert kernel.shape == (9, 9) and float(kernel.min()) >= 0 and float(kernel.sum()) == pytest.approx(1)
        at = torch.arange(9.0).double() - 4
        assert abs(float((kernel.sum(0) * at).sum())) < 0.05 and abs(float((kernel.sum(1) * at).sum())) < 0.05
        edges = kernel[0].sum() + kernel[-1].sum() + kernel[:, 0].sum() + kernel[:, -1].sum()
        assert float(edges) > 0.005  # it is as wide as it says
        line = MotionBlur(9, 0.0, seed).kernel()
        spread = [torch.cov(torch.cartesian_prod(at, at).mT, aweights=k.flatten()) for k in (line, kernel)]
        thin = [float(torch.linalg.eigvalsh(s)[0]) for s in spread]
        assert thin[0] < 0.35 and thin[0] < thin[1] + 1e-9
    assert not torch.equal(MotionBlur(seed=0).kernel(), MotionBlur(seed=1).kernel())
    assert torch.equal(MotionBlur(1).kernel(), torch.ones(1, 1).double())


def test_random_inpainting_keeps_its_share_and_its_pixels():
    x = torch.ones(2, 3, 28, 28)
    y = RandomInpainting()(x)
    assert int((y[0, 0] == 0).sum()) == round(0.7 * 784)
    assert torch.equal(y[0], y[1]) and torch.equal(y[0, 0], y[0, 2])
    assert not torch.equal(y, RandomInpainting(seed=1)(x))
    halves = RandomInpainting(0.5)(torch.ones(1, 1, 64, 64))[0, 0]
    for part in (halves[:32], halves[32:], halves[:, :32], halves[::2]):
        assert abs(float(part.mean()) - 0.5) < 0.05


def test_box_inpainting_is_the_hole_of_the_image_task():
    from tasks.image.generate import touched

    for box in ((0.5, 0.0, 1.0, 1.0), (0.3, 0.2, 0.55, 0.9)):
        hole = touched((7, 9), box).view(7, 9)
        assert torch.equal(BoxInpainting(box)(torch.ones(1, 2, 7, 9))[0, 1] == 0, hole)


def test_high_dynamic_range_and_clipping():
    x = torch.tensor([-0.9, -0.2, 0.0, 0.4, 0.6])
    assert HighDynamicRange()(x.view(1, 1, 1, 5)).flatten().tolist() == pytest.approx([-1, -0.4, 0, 0.8, 1])
    assert Clipping(0.3)(x[None])[0].tolist() == pytest.approx([-0.3, -0.2, 0, 0.3, 0.3])


def test_a_network_learns_the_blur_of_light(tmp_path):
    fields = random_fields(64, torch.Generator().manual_seed(3), side=16)
    state = torch.get_rng_state()
    net = train_blur(fields[:48], steps=200, size=5, kernels=16, batch=8)
    assert torch.equal(torch.get_rng_state(), state)
    x, k = fields[48:], net.kernel[None]  # new pictures and a new kernel
    truth = gamma_blur(x, k)
    error, plain = ((z - truth).square().mean().sqrt() for z in (net(x), convolved(x, k)))
    assert error < 0.6 * plain, (error, plain)
    inverse.save_blur(net, tmp_path / "blur.safetensors")
    stored = NonlinearBlur(str(tmp_path / "blur.safetensors"))
    assert torch.equal(stored(x), net(x)) and stored(x.double()).dtype == torch.float64
    assert from_dict(to_dict(stored), {"NonlinearBlur": NonlinearBlur}) == stored
    check(stored, x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(stored(x[3:4]), net(x)[3:4])
    for name, text in (("other.safetensors", b"nothing"), ("none.safetensors", None)):
        if text is not None:
            (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=f"{name}.*save_blur"):
            NonlinearBlur(str(tmp_path / name))


# sound


def test_band_limit_passes_its_band():
    when = torch.arange(8000).double() / 8000
    for limit, heard, gone in (
        (BandLimit(), (0, 200, 850), (1150, 3000)),
        (CASES["band_pass"], (450, 1800), (50, 2200)),
    ):
        for hertz in heard + gone:
            tone = torch.cos(2 * math.pi * hertz * when)[None]
            inside = slice(200, -200)
            gain = limit(tone)[:, inside].norm() / tone[:, inside].norm()
            assert float(gain) == pytest.approx(1, abs=0.01) if hertz in heard else float(gain) < 0.01, hertz
    padded = F.pad(rows(BandLimit()), (0, 500))
    torch.testing.assert_close(BandLimit()(padded)[:, :1500], BandLimit()(rows(BandLimit()))[:, :1500])


def test_gap_is_in_seconds():
    y = Gap(0.05, 0.1)(torch.ones(2, 1600))
    assert int((y[0] == 0).sum()) == 400 and bool((y[1, 400:800] == 0).all())


# motion


def test_joints_are_where_their_channels_say():
    x = VECTORS.process(BONES.forward(random_pose(20)))[None]
    seen, whole = VECTORS.recover(JOINTS(x)), VECTORS.recover(x)
    for name in ("hips", "hand_r"):
        torch.testing.assert_close(seen[..., BONES.index(name), :], whole[..., BONES.index(name), :])
    assert float((seen - whole)[..., BONES.index("head"), :].abs().max()) > 0.1
    for group in ("rotations", "velocities"):
        first, last = VECTORS.span(group)
        mine = JointSubset.named(BONES, BONES.joints, (group,)).channels
        assert mine == tuple(range(first, last))
    everything = JointSubset.named(BONES, BONES.joints, inverse.motion.MEASURED).channels
    assert everything == tuple(range(VECTORS.span("contacts")[0]))


def test_key_frames():
    x = rows(KeyFrames(), 1)
    assert KeyFrames(8)(x).abs().sum((0, 2)).nonzero().flatten().tolist() == [0, 8, 16]
    assert KeyFrames(0, (3, 18))(x).abs().sum((0, 2)).nonzero().flatten().tolist() == [3, 18]
