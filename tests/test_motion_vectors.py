"""Frame vectors: motions come back from them (M1), turns are half angles (M2), and statistics by group."""

import pytest
import torch

from tests.motion_toy import BONES, VECTORS, random_pose
from tokenizers_vq.motion.rotations import axis_rotation
from tokenizers_vq.motion.skeleton import mpjpe
from tokenizers_vq.motion.vectors import GROUPS, FrameVectors, statistics


def motion(frames: int = 60, seed: int = 0) -> torch.Tensor:
    """A motion that also turns around by more than a full circle."""
    pose = random_pose(frames, seed)
    spin = axis_rotation(torch.linspace(0, 8, frames, dtype=torch.float64), "Y")
    return BONES.forward(
        pose._replace(rotations=torch.cat([(spin @ pose.rotations[:, 0])[:, None], pose.rotations[:, 1:]], 1))
    )


def test_motions_come_back_from_vectors():
    for seed in range(5):
        positions = motion(seed=seed)
        vectors = VECTORS.process(positions)
        assert vectors.shape == (59, VECTORS.channels)
        expected = VECTORS.canonical(positions)[:-1]
        assert mpjpe(VECTORS.recover(vectors), expected).max() < 1e-6
        assert mpjpe(VECTORS.recover(vectors, rigid=True), expected).max() < 1e-4


def test_start_and_direction_do_not_matter_but_the_motion_does():
    positions = motion()
    moved = (positions + torch.tensor([3.0, 0.5, -2.0])) @ axis_rotation(torch.tensor(1.3).double(), "Y")
    assert torch.allclose(VECTORS.process(moved), VECTORS.process(positions), atol=1e-9)
    assert not torch.allclose(VECTORS.process(positions.flip(0)), VECTORS.process(positions), atol=1e-2)


def test_constant_turning_is_half_the_angle_and_no_step():
    angle = 0.11 * torch.arange(40, dtype=torch.float64)
    still = BONES.forward(random_pose(1))[0]
    still = still - still[0] * torch.tensor([1.0, 0.0, 1.0])
    vectors = VECTORS.split(VECTORS.process(still @ axis_rotation(angle, "Y").mT))
    assert torch.allclose(vectors["turn"], torch.full((39, 1), -0.055).double(), atol=1e-9)
    assert vectors["step"].abs().max() < 1e-9 and vectors["positions"].std(0).max() < 1e-9


def test_walking_ahead_is_a_step_along_z_whatever_the_heading():
    still = BONES.forward(random_pose(1))[0]
    direction = torch.stack(
        [VECTORS.heading(still[None]).sin(), torch.zeros(1), VECTORS.heading(still[None]).cos()], -1
    )
    ahead = still + 0.04 * torch.arange(30.0)[:, None, None] * direction
    vectors = VECTORS.split(VECTORS.process(ahead))
    assert torch.allclose(vectors["step"], torch.tensor([0.0, 0.04]).double().expand(29, 2), atol=1e-6)
    assert torch.allclose(vectors["velocities"].unflatten(-1, (-1, 3))[..., 2], torch.tensor(0.04).double(), atol=1e-6)


def test_contacts_tell_which_foot_rests():
    positions = BONES.forward(random_pose(1)).repeat(30, 1, 1)
    positions[:, 8, 2] += 0.1 * torch.arange(30)
    assert torch.equal(
        VECTORS.split(VECTORS.process(positions))["contacts"], torch.tensor([0.0, 1.0]).double().expand(29, 2)
    )


def test_sizes_are_those_of_the_public_sets():
    for joints, channels in ((22, 263), (21, 251)):
        chain = type(BONES)(tuple(map(str, range(joints))), tuple(range(-1, joints - 1)), ((0, 1, 0),) * joints)
        vectors = FrameVectors(chain, ((1, 2),), (3, 4, 5, 6))
        assert vectors.channels == channels and vectors.span("positions") == (4, 4 + 3 * (joints - 1))


def test_deviation_is_shared_within_a_group():
    clips = [VECTORS.process(motion(seed=s)) for s in range(3)]
    mean, std = statistics(clips, VECTORS)
    frames = torch.cat(clips)
    assert torch.allclose(mean, frames.mean(0).float(), atol=1e-6)
    for group in GROUPS:
        first, last = VECTORS.span(group)
        assert std[first:last].unique().numel() == 1
        expected = frames[:, first:last].std(0, unbiased=False).mean().clamp(min=1e-3).float()
        assert torch.allclose(std[first], expected)
    assert statistics(clips)[1].unique().numel() > 50
    with pytest.raises(ValueError, match="clips"):
        statistics([])


def test_other_motions_are_refused_and_settings_come_back():
    assert FrameVectors.from_dict(VECTORS.to_dict()) == VECTORS
    with pytest.raises(ValueError, match="describes no frame vectors"):
        FrameVectors.from_dict({"skeleton": {}})
    with pytest.raises(ValueError, match="11 joints"):
        VECTORS.process(torch.zeros(9, 10, 3))
    with pytest.raises(ValueError, match="at least 2 frames"):
        VECTORS.process(motion(1))
    with pytest.raises(ValueError, match="11 joints"):
        VECTORS.recover(torch.zeros(5, 200))
    with pytest.raises(ValueError, match="across"):
        FrameVectors(BONES, ())
    with pytest.raises(ValueError, match="feet"):
        FrameVectors(BONES, ((1, 2),), (11,))


def test_recovery_is_differentiable():
    vectors = VECTORS.process(motion()).requires_grad_()
    for rigid in (False, True):
        grad = torch.autograd.grad(VECTORS.recover(vectors, rigid).square().sum(), vectors)[0]
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0
