"""The motion tokenizer keeps the contract of all tokenizers, learns, and refuses motions of another skeleton."""

import functools

import pytest
import torch

from tests.motion_toy import BONES, VECTORS, random_pose
from tokenizers_vq.auto import load_tokenizer
from tokenizers_vq.motion.skeleton import Skeleton, bone_variation, mpjpe
from tokenizers_vq.motion.tokenizer import MotionTokenizer, MotionTokenizerConfig
from tokenizers_vq.motion.vectors import statistics
from tokenizers_vq.testing import check_tokenizer

SMALL = {"width": 32, "code_dim": 16, "codebook_size": 16, "blocks": 1, "decay": 0.9}
KINDS = {
    "rvq": {"num_quantizers": 3},
    "rvq_dropout": {"num_quantizers": 3, "quantizer_dropout": True},
    "shared_bones": {"num_quantizers": 2, "shared_codebook": True, "bone_weight": 0.1},
    "vq_orthogonal_attention": {"quantizer": "vq", "num_quantizers": 1, "orthogonal": 0.1, "layers": 1, "heads": 2},
    "fsq": {"quantizer": "fsq", "num_quantizers": 1, "levels": (5, 5, 5), "codebook_size": 125, "code_dim": 3},
}


@functools.cache
def clips() -> torch.Tensor:
    """Sixteen motions of 32 frames, with little differing among them."""
    return torch.stack(
        [VECTORS.process(BONES.forward(random_pose(33, s % 8, 0.3 + 0.01 * s))) for s in range(16)]
    ).float()


@functools.cache
def trained(kind: str) -> MotionTokenizer:
    model = MotionTokenizer.of(VECTORS, statistics(list(clips()), VECTORS), **{**SMALL, **KINDS[kind]}).train()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(120 if model.config.quantizer_dropout else 70):
            optimizer.zero_grad()
            model(clips()).loss.backward()
            optimizer.step()
    return model.eval()


def spread() -> float:
    """Root mean square distance of the clips from their mean."""
    return float((clips() - clips().mean((0, 1))).square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    measured = check_tokenizer(trained(kind), clips(), bound=0.8 * spread())
    assert measured["perplexity"] > 3
    mask = torch.arange(32) < torch.tensor([32, 20, 9, 31] * 4)[:, None]
    check_tokenizer(trained(kind), clips(), mask, bound=0.9 * spread())


def test_the_bound_of_the_contract_can_fail():
    with pytest.raises(AssertionError, match="K1"):
        check_tokenizer(MotionTokenizer.of(VECTORS, **SMALL).eval(), clips(), bound=0.8 * spread())


def test_joint_errors_fall_with_depth_and_bones_can_be_made_constant():
    model = trained("rvq")
    out = model.encode(clips())
    truth = VECTORS.recover(clips())
    errors = [float(mpjpe(VECTORS.recover(model.decode(out.codes[..., :d])), truth).mean()) for d in (1, 2, 3)]
    assert errors[2] < errors[0]
    decoded = VECTORS.recover(model.decode(out.codes))[0]
    assert bone_variation(decoded, BONES.parents) > 1e-4 > 1e-6 > bone_variation(BONES.project(decoded), BONES.parents)
    rigid = VECTORS.recover(model.decode(out.codes)[0], rigid=True)
    assert bone_variation(rigid, BONES.parents) < 1e-6


def test_frames_that_fill_no_slot_are_padded():
    model = trained("rvq")
    out = model.encode(clips()[:, :30])
    assert out.codes.shape == model.token_shape((16, 30, VECTORS.channels)) == (16, 8, 3)
    assert model.decode(out.codes).shape == (16, 32, VECTORS.channels)
    padded = torch.cat([clips()[:, :30], torch.full((16, 2, VECTORS.channels), torch.nan)], 1)
    mask = torch.arange(32).expand(16, -1) < 30
    assert torch.equal(model.encode(padded, mask).codes, out.codes)
    losses = model(clips()[:, :30]).losses
    assert set(losses) == {"reconstruction", "explicit", "codebook"} and all(torch.isfinite(x) for x in losses.values())


def test_losses_leave_out_masked_frames_and_weigh_the_explicit_channels():
    model = trained("rvq")
    x, y = clips(), clips().clone()
    y[:, 20:] += 1
    mask = (torch.arange(32) < 20).expand(16, -1)
    assert float(sum(model.losses(x, y, mask).values())) == 0 < float(sum(model.losses(x, y).values()))
    y = x.clone()
    y[..., VECTORS.span("velocities")[0]] += 1
    assert model.losses(x, y)["explicit"] == 0 < model.losses(x, y)["reconstruction"]
    first, last = VECTORS.span("positions")
    y = x + 3 * model.std
    found = model.losses(x, y)
    assert torch.allclose(found["reconstruction"], torch.tensor(2.5)) and torch.allclose(
        found["explicit"], torch.tensor(1.25)
    )
    scaled = x.clone()
    scaled[..., 3:last] *= 1.1
    bones = trained("shared_bones").losses(x, scaled)["bones"]
    assert torch.allclose(bones, torch.tensor(0.1 * 0.1), rtol=1e-3)  # weight times a tenth of the mean length


def test_statistics_and_skeleton_are_saved(tmp_path):
    model = trained("rvq")
    model.save_pretrained(tmp_path)
    other = load_tokenizer(tmp_path)
    assert isinstance(other, MotionTokenizer) and other.vectors == VECTORS
    assert torch.equal(other.mean, model.mean) and torch.equal(other.std, model.std) and other.config.rate == 5
    assert float(model.std.max()) != float(model.std.min())


def test_other_skeletons_and_settings_are_refused():
    model = trained("rvq")
    with pytest.raises(ValueError, match="skeleton of 11 joints"):
        model.encode(torch.zeros(2, 8, 263))
    smaller = Skeleton(BONES.joints[:10], BONES.parents[:10], BONES.offsets[:10])
    for skeleton in (smaller, None):
        with pytest.raises(ValueError, match="the tokenizer was trained on 11 joints"):
            model.check_skeleton(skeleton)
    model.check_skeleton(BONES)
    for settings, told in (
        ({"strides": (2, 0)}, "strides"),
        ({"explicit": (3, 400)}, "explicit"),
        ({"bone_weight": 1.0}, "it needs frames"),
        ({"width": 0}, "width"),
        ({"channels": 12, "frames": VECTORS.to_dict()}, "as frames says"),
        ({"codebok_size": 3}, "codebook_size"),
    ):
        with pytest.raises(ValueError, match=told):
            MotionTokenizerConfig(**settings)
    with pytest.raises(ValueError, match="std"):
        model.normalise(torch.zeros(VECTORS.channels), torch.zeros(VECTORS.channels))


def test_channels_without_a_skeleton():
    model = MotionTokenizer.seeded(MotionTokenizerConfig(channels=117, **SMALL)).eval()
    model.check_skeleton(None)
    assert model.encode(torch.randn(2, 17, 117)).codes.shape == (2, 5, 4)
    with pytest.raises(ValueError, match="trained on no skeleton"):
        model.check_skeleton(BONES)
