"""The settings of processes: published presets, refusals, gradients, segments, saving."""

import pytest
import torch

from discdiff.config import from_dict, to_dict
from discdiff.processes import (
    TYPES,
    Absorbing,
    Dense,
    Interpolating,
    MaskOrReplace,
    PerSegment,
    Uniform,
    vq_paper,
    vq_released,
)
from discdiff.schedules import CosineMD4, CosineMDLM, Geometric, Linear, Polynomial
from discdiff.types import Alphabet

FAMILIES = [
    Absorbing(),
    Absorbing(Linear(end=1e-3)),
    Uniform(),
    Uniform(Geometric()),
    vq_paper(),
    vq_released(),
    Interpolating(),
    Interpolating(0.4, 2.0),
    Interpolating(0.0, 4.0),
]


def time(t) -> torch.Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def test_vq_presets_hold_the_published_values():
    for t in (0.0, 0.4, 1.0):
        paper, released = (p.marginal(time(t), 8) for p in (vq_paper(), vq_released()))
        assert float(paper.mask) == pytest.approx(0.9 * t) and float(8 * paper.token) == pytest.approx(0.1 * t)
        assert float(released.keep) == pytest.approx(0.99999 + t * (9e-6 - 0.99999))
        assert float(released.mask) == pytest.approx(9e-6 + t * (0.99999 - 9e-6))
        assert float(8 * released.token) == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("process", FAMILIES, ids=repr)
def test_gradients_and_float32(process):
    """Losses have finite gradients, take float32 predictions, and count in float64."""
    size, t = 5, 0.4
    x = torch.tensor([size, 1, 2, size, 3])
    x0 = torch.tensor([0, 1, 4, 2, 3])
    now = process.marginal(time(t), size)
    if float(now.mask) == 0:
        x = x.clamp(max=size - 1)
    if float(now.token) == 0:
        x = torch.where(x < size, x0, x)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, size, generator=generator).requires_grad_()
    kinds = ("own", "cavity") if float(now.token) > 0 else ("cavity",)
    for kind in kinds:
        losses = [process.loss(logits.log_softmax(-1), x0, x, t, kind)]
        losses += [process.finite_loss(logits.log_softmax(-1), x0, x, t, s, kind) for s in (0.0, 0.3)]
        wide = process.loss(logits.detach().double().log_softmax(-1), x0, x, t, kind)
        assert float((losses[0].detach() - wide).abs().max()) < 1e-4
        for loss in losses:
            assert loss.dtype == torch.float64 and bool((loss >= -1e-9).all())
            (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
            assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("process", FAMILIES, ids=repr)
@pytest.mark.parametrize("kind", ["own", "cavity"])
def test_the_loss_is_the_score_entropy_summed_term_by_term(process, kind):
    """Values and gradients, for every pair of a token and what it became."""
    size, t = 6, torch.tensor([[0.05], [0.4], [0.93]], dtype=torch.float64)
    x0, x = (
        v.reshape(1, -1).expand(3, -1)
        for v in torch.meshgrid(torch.arange(size), torch.arange(size + 1), indexing="ij")
    )
    now = process.marginal(time(0.4), size)
    possible = torch.ones_like(x, dtype=torch.bool)
    if float(now.mask) == 0:
        possible &= x < size
    if float(now.token) == 0:
        possible &= x == size
    logits = torch.randn(3, x.shape[1], size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(3)
    logits.requires_grad_()
    found = process.loss(logits.log_softmax(-1), x0, x, t, kind)
    log_cavity = logits.log_softmax(-1) if kind == "cavity" else process.cavity(logits.log_softmax(-1), x, t)
    wanted = process.score_entropy(process.to_score(log_cavity, x, t), x0, x, t)
    assert bool(possible.any())
    torch.testing.assert_close(found[possible], wanted[possible], rtol=1e-10, atol=1e-12)
    a, b = (torch.autograd.grad(loss[possible].sum(), logits)[0] for loss in (found, wanted))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_loss_keeps_few_wide_tensors_for_the_backward_pass():
    """VQ-Diffusion's of 512 codes: a term-by-term sum keeps more than 20 numbers per code."""
    process, n, size = vq_paper(), 40, 512
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(size, (n,), generator=generator)
    x = torch.randint(size + 1, (n,), generator=generator)
    kept = {}

    def pack(saved):
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    logits = torch.randn(n, size, generator=generator, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        process.loss(logits.log_softmax(-1), x0, x, 0.5, "own")
    assert sum(kept.values()) <= 7 * n * size * 8


def test_gidd_validity():
    """T22: exponents above 2 shrink the uniform noise faster than the signal."""
    for gamma in (2.1, 3.0, 4.0):
        with pytest.raises(ValueError, match="no valid process"):
            Interpolating(0.2, gamma)
        Interpolating(0.0, gamma)
    for gamma in (0.5, 1.0, 2.0):
        Interpolating(0.2, gamma)
    for uniform, gamma in ((1.0, 1.0), (-0.1, 1.0), (0.2, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError):
            Interpolating(uniform, gamma)


def test_invalid_mask_or_replace():
    for schedule, survival in ((Linear(), Linear(end=0.0)), (Linear(), CosineMDLM()), (Linear(), Polynomial(2.0))):
        MaskOrReplace(schedule, survival)
    for schedule, survival in (
        (Linear(end=0.5), Linear()),
        (Linear(end=0.1), Linear(end=0.05)),
        (Polynomial(2.0), Linear(end=0.1)),
    ):
        with pytest.raises(ValueError, match="no valid process"):
            MaskOrReplace(schedule, survival)


def test_dense_refusals():
    q = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    Dense(q, 3)
    for matrices, size in ((q[0], 3), (q, 5), (q, 0), (q * 0.5, 3), (2 * q - torch.full((4, 4), 0.25), 3)):
        with pytest.raises(ValueError):
            Dense(matrices, size)
    with pytest.raises(ValueError, match="not on the grid"):
        Dense(q, 3).index(0.3)


def test_per_segment_is_its_parts():
    parts = {"a": Uniform(), "b": Absorbing(CosineMD4()), "c": Interpolating()}
    process = PerSegment(parts)
    segment = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(50, 6)
    sizes = torch.tensor([3, 5, 4])
    alphabet = Alphabet(sizes[segment], segment, ("a", "b", "c"))
    u, w = (torch.rand(50, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    x0 = (u * sizes[segment]).long()
    x = process.corrupt(x0, 0.7, w, alphabet)
    for number, (name, part) in enumerate(parts.items()):
        here, size = segment == number, int(sizes[number])
        assert process.at(Alphabet(size, number, ("a", "b", "c"))) is part
        assert torch.equal(process.prior(u, alphabet)[here], part.prior(u[here], size))
        assert torch.equal(x[here], part.corrupt(x0[here], 0.7, w[here], size)), name
        assert torch.equal(process.hold(x, 0.7, 0.2, alphabet)[here], part.hold(x[here], 0.7, 0.2, size))
        assert torch.equal(process.own_shift(x, 0.7, alphabet)[here], part.own_shift(x[here], 0.7, size))
        for rate in (None, 0.5):
            out = process.step(x, x0, 0.7, 0.2, u, alphabet, rate)
            assert torch.equal(out[here], part.step(x[here], x0[here], 0.7, 0.2, u[here], size, rate))
    process.require(("a", "c"))
    with pytest.raises(ValueError, match="no process for segments"):
        process.require(("a", "d"))
    with pytest.raises(ValueError, match="names 'c'"):
        process.prior(u, Alphabet(3, segment, ("a", "b", "d")))
    with pytest.raises(ValueError, match="not a bare size"):
        process.corrupt(x0, 0.5, u, 3)
    with pytest.raises(ValueError, match="at least one segment"):
        PerSegment({})


def test_every_process_and_schedule_can_be_saved():
    for process in (*FAMILIES, PerSegment({"a": Uniform(), "b": vq_released()})):
        assert from_dict(to_dict(process), TYPES) == process
