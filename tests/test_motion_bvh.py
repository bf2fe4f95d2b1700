"""BVH files: written and read back, any channel order, real files, and damage named by line."""

import itertools

import numpy as np
import pytest
import torch

from tests.motion_toy import BONES, folder, random_pose
from tokenizers_vq.motion.bvh import Bvh, read_bvh, write_bvh
from tokenizers_vq.motion.skeleton import mpjpe


@pytest.mark.parametrize("order", ["".join(o) for o in itertools.permutations("XYZ")])
def test_round_trip_in_every_order(order, tmp_path):
    pose = random_pose(12, size=0.9)
    made = Bvh.of(BONES, pose, 20.0, order)
    read = read_bvh(write_bvh(tmp_path / "a.bvh", made))
    assert read.skeleton.joints == BONES.joints and read.skeleton.parents == BONES.parents
    assert abs(read.fps - 20) < 1e-6 and read.channels == made.channels
    assert mpjpe(read.positions(), BONES.forward(pose)).max() < 1e-2
    again = read_bvh(write_bvh(tmp_path / "b.bvh", read))
    assert torch.equal(again.frames, read.frames) and again.ends == read.ends


def test_one_order_is_not_another(tmp_path):
    pose = random_pose(12, size=0.9)
    text = write_bvh(tmp_path / "a.bvh", Bvh.of(BONES, pose, 20.0, "ZXY")).read_text()
    (tmp_path / "b.bvh").write_text(text.replace("Zrotation Xrotation Yrotation", "Xrotation Zrotation Yrotation"))
    assert mpjpe(read_bvh(tmp_path / "b.bvh").positions(), BONES.forward(pose)).mean() > 20


def test_channels_may_be_few_mixed_and_in_any_case(tmp_path):
    text = (
        "hierarchy\nROOT a b {\nOFFSET 1 2 3\nCHANNELS 4 Yrotation xposition ZPOSITION Yposition\n"
        "JOINT c\n{\nOFFSET 0 1 0\nCHANNELS 0\nJOINT d\n{\nOFFSET 0 0 1\nCHANNELS 1 Yposition\nEnd Site\n{\nOFFSET 0 0 1\n}\n"
        "}\n}\n}\nMOTION\nFrames: 1\nFrame Time: 0.05\n90 10 30 20 7\n"
    )
    (tmp_path / "a.bvh").write_text(text)
    read = read_bvh(tmp_path / "a.bvh")
    assert read.skeleton.joints == ("a b", "c", "d") and read.ends == {2: (0.0, 0.0, 1.0)}
    expected = torch.tensor([[10, 20, 30], [10, 21, 30], [11, 28, 30]]).double()
    assert torch.allclose(read.positions(1.0)[0], expected)
    assert torch.equal(read_bvh(write_bvh(tmp_path / "b.bvh", read)).positions(), read.positions())


GOOD = ["HIERARCHY", "ROOT a", "{", "OFFSET 0 0 0", "CHANNELS 3 Xposition Yposition Zposition", "JOINT b", "{",
        "OFFSET 0 1 0", "CHANNELS 1 Xrotation", "}", "}", "MOTION", "Frames: 2", "Frame Time: 0.1",
        "0 0 0 1", "0 0 0 2"]  # fmt: skip


@pytest.mark.parametrize(
    "line, text, told",
    [
        (1, "BVH", "line 1: a BVH file begins"),
        (3, "JOINT", r"line 3: a \{ is expected"),
        (4, "OFFSET 0 x 0", "line 4: OFFSET"),
        (4, "OFFSET 0 0", "line 4: OFFSET has 2 numbers, 3"),
        (5, "CHANNELS 2 Xposition Yposition Zposition", "line 5: CHANNELS"),
        (5, "CHANNELS 1 Wposition", "line 5: CHANNELS"),
        (6, "ROOT b", "line 6: ROOT b stands where"),
        (6, "JOINT a", "line 6: joint 'a' occurs twice|line 8"),
        (11, "bones", "line 11: 'bones' is not known"),
        (11, "", "line 12: MOTION with 1 open braces"),
        (13, "Frames: two", "line 13: 'Frames:'"),
        (13, "Frames: 3", "line 16: the file ends where frame 3 of 3"),
        (13, "Frames: 1", "line 16: 1 lines after"),
        (14, "Frame Time: 0", "line 14: 2 frames of 0"),
        (15, "0 0 0", "line 15: frame 1 has 3 numbers, 4"),
        (16, "0 0 nan 1", "line 16: frame 2"),
        (16, "0 0 # 1", "line 16: frame 2"),
    ],
)
def test_damage_is_named_by_line(line, text, told, tmp_path):
    (tmp_path / "good.bvh").write_text("\n".join(GOOD))
    assert len(read_bvh(tmp_path / "good.bvh").frames) == 2
    (tmp_path / "bad.bvh").write_text("\n".join([*GOOD[: line - 1], text, *GOOD[line:]]))
    with pytest.raises(ValueError, match=told) as caught:
        read_bvh(tmp_path / "bad.bvh")
    assert "bad.bvh" in str(caught.value)


def test_other_files_and_impossible_motions_are_refused(tmp_path):
    (tmp_path / "a.bvh").write_bytes(b"\xff\xfe\x00\x80 nonsense")
    with pytest.raises(ValueError, match="is no BVH file"):
        read_bvh(tmp_path / "a.bvh")
    made = Bvh.of(BONES, random_pose(3), 20.0)
    with pytest.raises(ValueError, match="need .frames, 36."):
        write_bvh(tmp_path / "b.bvh", Bvh(made.skeleton, made.channels, made.frames[:, :-1], 20.0))
    assert not (tmp_path / "b.bvh").exists()


def test_public_files_read_and_match_the_published_positions():
    import json

    data = folder("motion_bandai")
    rows = {row["id"]: row for row in map(json.loads, (data / "motions.jsonl").open())}
    positions, checked = np.load(data / "motions.npz")["positions_mm"], 0
    for path in sorted((data / "raw_bvh").glob("*.bvh")):
        read = read_bvh(path)
        assert abs(read.fps - 30) < 1e-3 and len(read.skeleton) == 22 and set(map(len, read.channels)) == {6}
        if (row := rows.get(path.stem)) is None:
            continue
        truth = torch.tensor(positions[row["start"] : row["start"] + row["length"]]) / 1000
        found = read.positions()[:, 1:]
        found = found - found[0, 0] * torch.tensor([1.0, 0.0, 1.0])
        time = torch.arange(len(truth)) * 1.5  # 30 to 20 frames per second
        low, share = time.floor().long(), (time % 1)[:, None, None]
        resampled = found[low] * (1 - share) + found[(low + 1).clamp(max=len(found) - 1)] * share
        assert mpjpe(resampled, truth.double()).max() < 1.5  # both are rounded to millimetres
        checked += 1
    assert checked >= 2
