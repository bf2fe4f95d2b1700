"""Rotations in all their forms, forward kinematics, fitted rotations, and errors in millimetres."""

import itertools

import pytest
import torch

from tests.motion_toy import BONES, random_pose
from tokenizers_vq.motion import rotations as R
from tokenizers_vq.motion.skeleton import Pose, Skeleton, bone_lengths, bone_variation, mpjpe


def random_matrices(count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    angles = torch.cat([torch.tensor([0, 1e-9, 1e-5, torch.pi - 1e-7, torch.pi]), torch.rand(count - 5) * torch.pi])
    return R.matrix_from_expmap(vectors / vectors.norm(dim=1, keepdim=True) * angles[:, None].double())


def test_matrices_are_rotations():
    m = random_matrices()
    assert torch.allclose(m @ m.mT, torch.eye(3).double().expand_as(m), atol=1e-12)
    assert torch.allclose(torch.det(m), torch.ones(len(m)).double(), atol=1e-12)


@pytest.mark.parametrize(
    "there, back",
    [
        (R.quaternion_from_matrix, R.matrix_from_quaternion),
        (R.sixd_from_matrix, R.matrix_from_6d),
        (R.expmap_from_matrix, R.matrix_from_expmap),
        *[
            (lambda m, o=o: R.euler_from_matrix(m, o), lambda a, o=o: R.matrix_from_euler(a, o))
            for o in map("".join, itertools.permutations("XYZ"))
        ],
    ],
)
def test_every_form_gives_the_matrix_back(there, back):
    m = random_matrices()
    assert torch.allclose(back(there(m)), m, atol=1e-7)


@pytest.mark.parametrize("order", ["".join(o) for o in itertools.permutations("XYZ")])
def test_euler_angles_at_the_pole(order):
    angles = torch.tensor([[0.3, torch.pi / 2, -0.8], [0.3, -torch.pi / 2, 1.1]], dtype=torch.float64)
    m = R.matrix_from_euler(angles, order)
    found = R.euler_from_matrix(m, order)
    assert torch.allclose(R.matrix_from_euler(found, order), m, atol=1e-7) and (found[:, 2] == 0).all()


def test_known_rotations():
    x, y, z = torch.eye(3).double()
    assert torch.allclose(R.axis_rotation(torch.tensor(torch.pi / 2, dtype=torch.float64), "Z") @ x, y, atol=1e-12)
    assert torch.allclose(R.axis_rotation(torch.tensor(torch.pi / 2, dtype=torch.float64), "Y") @ z, x, atol=1e-12)
    expected = torch.linalg.matrix_exp(
        torch.tensor([[0, -0.3, 0.2], [0.3, 0, -0.1], [-0.2, 0.1, 0]], dtype=torch.float64)
    )
    assert torch.allclose(
        R.matrix_from_expmap(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)), expected, atol=1e-12
    )
    quaternion = torch.tensor([0.5**0.5, 0.5**0.5, 0, 0], dtype=torch.float64)
    assert torch.allclose(R.matrix_from_quaternion(quaternion) @ y, z, atol=1e-12)
    angles = torch.tensor([0.2, 0.5, -0.4]).double()
    parts = [R.axis_rotation(a, axis) for a, axis in zip(angles, "ZXY")]
    assert torch.allclose(R.matrix_from_euler(angles, "ZXY"), parts[0] @ parts[1] @ parts[2])
    assert not torch.allclose(R.matrix_from_euler(angles, "ZXY"), R.matrix_from_euler(angles, "YXZ"), atol=1e-2)
    with pytest.raises(ValueError, match="order"):
        R.euler_from_matrix(torch.eye(3), "ZXZ")
    with pytest.raises(ValueError, match="order"):
        R.matrix_from_euler(torch.zeros(3), "ZX")


def test_smallest_rotation_between_directions():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 50, 3, generator=generator).double()
    b[0], b[1] = -a[0], 3 * a[1]
    m = R.between(a, b)
    unit = torch.nn.functional.normalize
    assert torch.allclose((m @ unit(a, dim=-1)[..., None])[..., 0], unit(b, dim=-1), atol=1e-6)
    angle = torch.acos(((m.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    straight = torch.acos((unit(a, dim=-1) * unit(b, dim=-1)).sum(1).clamp(-1, 1))
    assert torch.allclose(angle, straight, atol=1e-5)


def test_forward_kinematics_by_hand_and_constant_bones():
    two = Skeleton(("a", "b", "c"), (-1, 0, 1), ((5, 5, 5), (0, 1, 0), (0, 2, 0)))
    quarter = R.axis_rotation(torch.tensor([torch.pi / 2, torch.pi / 2, 0], dtype=torch.float64), "Z")
    placed = two.forward(Pose(torch.tensor([1.0, 2.0, 3.0]).double(), quarter))
    assert torch.allclose(placed, torch.tensor([[1, 2, 3], [0, 2, 3], [0, 0, 3]]).double(), atol=1e-12)
    positions = BONES.forward(random_pose(30))
    assert torch.allclose(bone_lengths(positions, BONES.parents), BONES.lengths.double().expand(30, -1), atol=1e-6)
    assert (
        bone_variation(positions, BONES.parents)
        < 1e-7
        < 0.01
        < bone_variation(positions * 1.1 ** torch.arange(30)[:, None, None], BONES.parents)
    )


def test_fitted_rotations_reproduce_rigid_motions_and_project_others():
    positions = BONES.forward(random_pose(40, size=1.0))
    assert mpjpe(BONES.project(positions), positions).max() < 1e-3
    noisy = positions + 0.02 * torch.randn(positions.shape, generator=torch.Generator().manual_seed(0)).double()
    projected = BONES.project(noisy)
    assert bone_variation(noisy, BONES.parents) > 0.02 and bone_variation(projected, BONES.parents) < 1e-6
    assert mpjpe(projected, positions).mean() < 60
    assert torch.allclose(BONES.project(projected), projected, atol=1e-6)  # projecting again changes nothing


def test_skeleton_is_found_from_positions():
    positions = BONES.forward(random_pose(50, 3))
    found = Skeleton.of(BONES.joints, BONES.parents, positions)
    assert torch.allclose(found.lengths, BONES.lengths, atol=1e-6)
    assert mpjpe(found.project(positions), positions).max() < 1e-3


def test_joint_errors_in_millimetres():
    truth = torch.zeros(2, 4, 3)
    moved = truth + torch.tensor([0.003, 0.004, 0.0])
    assert torch.allclose(mpjpe(moved, truth), torch.full((2,), 5.0)) and mpjpe(moved, truth, rooted=True).max() == 0
    with pytest.raises(ValueError, match="equally many frames"):
        mpjpe(moved, truth[:1])


def test_impossible_skeletons_and_positions_are_refused():
    for names, parents, offsets, told in (
        (("a", "b"), (-1, 1), BONES.offsets[:2], "earlier joint"),
        (("a", "b"), (0, 0), BONES.offsets[:2], "-1 for the first"),
        (("a", "a"), (-1, 0), BONES.offsets[:2], "every name once"),
        (("a", "b"), (-1, 0), BONES.offsets[:3], "equal"),
    ):
        with pytest.raises(ValueError, match=told):
            Skeleton(names, parents, offsets)
    with pytest.raises(ValueError, match="this skeleton has 11 joints"):
        BONES.project(torch.zeros(3, 12, 3))
    with pytest.raises(ValueError, match="not finite"):
        BONES.fit(torch.full((1, 11, 3), torch.nan))
    with pytest.raises(ValueError, match="this skeleton has hips"):
        BONES.index("tail")
