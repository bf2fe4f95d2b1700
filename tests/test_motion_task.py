"""The motion task: figures, every kind of source and its damage, captions, and the commands from end to end."""

import json

import numpy as np
import pytest
import torch

from discdiff.cli import guarded
from tasks.common.words import Lexicon
from tasks.motion import figures, skeletons
from tasks.motion.__main__ import MAIN
from tasks.motion.clips import padded, windows
from tasks.motion.codec import build, load_for
from tasks.motion.generate import features
from tasks.motion.page import animation
from tasks.motion.settings import Codec, Motions
from tasks.motion.sources import load, resampled
from tests.motion_toy import BONES, folder, random_pose
from tokenizers_vq.motion import Bvh, MotionTokenizer, Skeleton, bone_variation, mpjpe, read_bvh, write_bvh


def test_figures_do_what_their_captions_say():
    vectors, index = figures.VECTORS, figures.SKELETON.index
    for n in range(40):
        made = figures.figure(n, 1)
        assert torch.equal(made.positions, figures.figure(n, 1).positions) and made.action == figures.ACTIONS[n % 4]
        assert bone_variation(made.positions, figures.SKELETON.parents) < 1e-5
        walked = float((made.positions[-1, 0] - made.positions[0, 0])[2]) / len(made.positions) * figures.FPS
        assert (walked > 2) == ("runs" in made.caption) and (walked > 0.8) == (made.action in ("walk", "run"))
        turned = float((-2 * vectors.process(made.positions)[:, 0]).sum())
        assert (abs(turned) > 1) == (made.action == "turn") and (turned > 1) == ("turns left" in made.caption)
        for side in ("left", "right"):
            high = (
                made.positions[-1, index(f"hand_{side[0]}"), 1]
                > made.positions[-1, index(f"shoulder_{side[0]}"), 1] - 0.1
            )
            assert bool(high) == (f"waves the {side}" in made.caption)
    assert not torch.equal(figures.figure(0, 1).positions, figures.figure(0, 2).positions)


def test_embedded_source():
    clips = load(Motions(embedded=40))
    assert len(clips.clips) == 40 and clips.channels == 251 and clips.labels == sorted(figures.ACTIONS)
    assert {c.label for c in clips.of("valid")} == set(figures.ACTIONS) and len(clips.of("valid")) == 4


def written(where, count=3, **changed):
    for n in range(count):
        pose = random_pose(40 + n, n)
        write_bvh(where / f"jump_high_{n}.bvh", Bvh.of(BONES, pose, changed.get("fps", 20.0)))


def test_folder_of_bvh_files(tmp_path):
    written(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "jump_high_1.bvh", "text": "a person jumps", "label": "jump", "split": "test"}) + "\n"
    )
    clips = load(Motions(source=str(tmp_path)))
    assert [c.caption for c in clips.clips] == ["jump high", "a person jumps", "jump high"]
    assert clips.of("test")[0].label == "jump" and clips.vectors.skeleton.joints == BONES.joints
    assert torch.allclose(clips.vectors.skeleton.lengths, BONES.lengths, atol=1e-4)
    expected = clips.vectors.canonical(BONES.forward(random_pose(40, 0)))[:-1]
    assert mpjpe(clips.vectors.recover(clips.clips[0].frames), expected).max() < 0.1
    named = load(Motions(source=str(tmp_path), right=("leg_r",), left=("leg_l",), feet=("foot_l", "foot_r")))
    assert named.vectors.across == ((9, 7),) and named.vectors.feet == (8, 10)
    with pytest.raises(ValueError, match="this skeleton has hips"):
        load(Motions(source=str(tmp_path), right=("thigh_r",), left=("leg_l",)))
    short = load(Motions(source=str(tmp_path), shortest=40, longest=40))
    assert len(short.clips) == 2 and len(short.notes) == 2


def test_damaged_files_stop_or_are_counted(tmp_path):
    written(tmp_path)
    text = (tmp_path / "jump_high_1.bvh").read_text()
    (tmp_path / "jump_high_1.bvh").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"jump_high_1.bvh.*line \d+.*--damaged skip"):
        load(Motions(source=str(tmp_path)))
    clips = load(Motions(source=str(tmp_path), damaged="skip"))
    assert len(clips.clips) == 2 and "1 motions are damaged" in clips.notes[0] and "jump_high_1" in clips.notes[0]


def test_motions_of_other_skeletons_are_refused(tmp_path):
    written(tmp_path)
    other = Skeleton(BONES.joints[:9], BONES.parents[:9], BONES.offsets[:9])
    write_bvh(tmp_path / "zz.bvh", Bvh.of(other, random_pose(40, skeleton=other), 20.0))
    with pytest.raises(ValueError, match="'zz.bvh' has another skeleton"):
        load(Motions(source=str(tmp_path)))
    (tmp_path / "zz.bvh").unlink()
    tokenizer = build(Codec(width=16, codebook_size=8), load(Motions(embedded=20)))
    with pytest.raises(ValueError, match="have 11 joints .* the tokenizer reads 21 joints"):
        load_for(tokenizer, Motions(source=str(tmp_path)))


def test_a_root_that_never_moves_is_left_out():
    positions = torch.cat([torch.zeros(9, 1, 3), BONES.forward(random_pose(9)).float()], 1)
    assert skeletons.moving(positions) == list(range(1, 12))
    world = Skeleton(("world", *BONES.joints), (-1, *(p + 1 for p in BONES.parents)), ((0, 0, 0), *BONES.offsets))
    assert skeletons.below(world, range(1, 12)) == BONES


def test_sides_are_told_from_names():
    names = [
        "Hips",
        "LeftUpLeg",
        "RightUpLeg",
        "L_Arm",
        "R_Arm",
        "lThumb",
        "rThumb",
        "leg.l",
        "leg.r",
        "LHand",
        "RHand",
    ]
    assert skeletons.mirrored(names) == [(2, 1), (4, 3), (6, 5), (8, 7), (10, 9)]
    plain = Skeleton(("a", "b"), (-1, 0), ((0, 0, 0), (0, 1, 0)))
    with pytest.raises(ValueError, match="no pair of left and right in a, b"):
        skeletons.guess(plain, torch.zeros(3, 2, 3))


def test_humanml_layout(tmp_path):
    vectors = skeletons.public(263)
    pose = random_pose(50, skeleton=vectors.skeleton)
    frames = vectors.process(vectors.skeleton.forward(pose)).float()
    for name in ("new_joint_vecs", "texts"):
        (tmp_path / name).mkdir()
    for n in range(3):
        np.save(tmp_path / "new_joint_vecs" / f"{n:06d}.npy", frames.numpy())
        (tmp_path / "texts" / f"{n:06d}.txt").write_text(
            "a man walks.#a/DET man/NOUN walk/VERB#0.0#0.0\nsecond#x#0#0\n"
        )
    (tmp_path / "train.txt").write_text("000000\n000001\n")
    (tmp_path / "test.txt").write_text("000002\n")
    clips = load(Motions(source=str(tmp_path)))
    assert [c.split for c in clips.clips] == ["train", "train", "test"] and clips.clips[0].caption == "a man walks."
    assert clips.vectors.channels == 263 and torch.equal(clips.clips[0].frames, frames)
    np.save(tmp_path / "new_joint_vecs" / "000001.npy", frames[:, :200].numpy())
    with pytest.raises(ValueError, match=r"000001.npy.*251|000001.npy.*263"):
        load(Motions(source=str(tmp_path)))


def test_positions_with_captions(tmp_path):
    positions = BONES.forward(random_pose(80)).numpy()
    rows = [{"id": "a", "caption": "one", "start": 0, "length": 30}, {"id": "b", "caption": "two", "file": "b.npy"}]
    (tmp_path / "motions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = {"joints": BONES.joints, "parents": BONES.parents, "fps": 20}
    (tmp_path / "skeleton.json").write_text(json.dumps(told))
    np.savez(tmp_path / "motions.npz", positions_mm=(1000 * positions[:30]).astype(np.int16))
    np.save(tmp_path / "b.npy", positions[30:])
    clips = load(Motions(source=str(tmp_path)))
    assert [len(c.frames) for c in clips.clips] == [29, 49] and clips.clips[1].label == "two"
    np.save(tmp_path / "b.npy", positions[30:, :10])
    with pytest.raises(ValueError, match="'b' is .50, 10, 3., skeleton.json has 11 joints"):
        load(Motions(source=str(tmp_path)))
    (tmp_path / "b.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="b.npy.* cannot be read as arrays"):
        load(Motions(source=str(tmp_path)))
    (tmp_path / "motions.jsonl").write_text('{"id": "a"}')
    with pytest.raises(ValueError, match="motions.jsonl', line 1: no caption"):
        load(Motions(source=str(tmp_path)))


def test_channels_without_a_skeleton(tmp_path):
    np.savez(tmp_path / "maps.npz", a=np.ones((30, 9)), b=np.zeros((40, 9)))
    rows = [{"key": "a", "action": "walk"}, {"key": "b", "action": "run", "split": "test"}]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = load(Motions(source=str(tmp_path)))
    assert clips.channels == 9 and clips.vectors is None and [c.label for c in clips.clips] == ["walk", "run"]
    (tmp_path / "index.jsonl").write_text('{"key": "c"}')
    with pytest.raises(ValueError, match="'c' of index.jsonl is in none"):
        load(Motions(source=str(tmp_path)))
    with pytest.raises(ValueError, match="channels without a skeleton"):
        load(Motions(source=str(tmp_path)), figures.VECTORS)


def test_public_channels_are_read():
    clips = load(Motions(source=str(folder("motion_cmu")), longest=10_000))
    assert len(clips.clips) == 30 and clips.channels == 117 and sum(len(c.frames) for c in clips.clips) == 7481
    assert len(clips.of("test")) == 5 and len(clips.labels) == 5


def test_empty_and_unknown_sources_are_refused(tmp_path):
    for source, told in ((str(tmp_path), "holds no motions"), (str(tmp_path / "no"), "is no folder")):
        with pytest.raises(ValueError, match=told):
            load(Motions(source=source))
    with pytest.raises(ValueError, match="shortest"):
        Motions(shortest=300)


def test_resampling_keeps_the_ends_and_the_speed():
    line = torch.arange(31.0)[:, None, None] * torch.ones(1, 2, 3)
    slower = resampled(line, 30.0, 20.0)
    assert len(slower) == 21 and torch.allclose(slower[:, 0, 0], 1.5 * torch.arange(21.0))
    assert resampled(line, 20.0, 20.0) is line


def test_rows_cover_every_frame():
    x, mask = windows([torch.arange(10.0)[:, None], torch.arange(3.0)[:, None]], 4)
    assert x.shape == (5, 4, 1) and mask.sum(1).tolist() == [4, 4, 4, 4, 3]
    assert set(x[:4].flatten().tolist()) == set(range(10))
    x, mask = padded([torch.ones(5, 2), torch.ones(2, 2)], 3)
    assert x.shape == (2, 3, 2) and mask.tolist() == [[True] * 3, [True, True, False]]


def test_captions_as_words():
    lexicon = Lexicon.of(["A person walks.", "a person runs quickly"], 6)
    ids = lexicon.ids(["a person walks", "A dog runs"])
    assert ids.shape == (2, 4) and lexicon.text(ids) == ["a person walks", "a ? runs"]
    lexicon.check("a person runs")
    with pytest.raises(ValueError, match="'wolks' .did you mean 'walks'"):
        lexicon.check("a person wolks")


def test_judges_see_positions_alone():
    clips = load(Motions(embedded=20))
    tokenizer = build(Codec(width=16, codebook_size=8), clips)
    frames = clips.clips[0].frames
    lying = frames.clone()
    lying[:, clips.vectors.span("velocities")[0] :] += 5
    lying[:, slice(*clips.vectors.span("rotations"))] += 1
    seen, pretended = (features(tokenizer, [each], 80)[0] for each in (frames, lying))
    assert torch.allclose(seen, pretended, atol=1e-4)


def test_animation_is_a_moving_picture():
    import io

    from PIL import Image

    made = figures.figure(0)
    picture = Image.open(io.BytesIO(animation([("walk", made.positions)] * 5, figures.SKELETON.parents)))
    assert picture.format == "GIF" and picture.n_frames == -(-len(made.positions) // 2) and picture.size[0] == 4 * 170


def test_commands_from_end_to_end(tmp_path, capsys):
    tokenizer, model = str(tmp_path / "tokenizer"), str(tmp_path / "model")
    common = ["--steps", "2", "--warmup", "0", "--batch_size", "8", "--progress", "no", "--device", "cpu"]
    size = ["--width", "16", "--code_dim", "8", "--codebook_size", "16", "--num_quantizers", "2", "--blocks", "1"]
    small = ["--embedded", "40", "--longest", "33"]
    assert guarded(MAIN, ["tokenizer", "train", *small, *size, *common, "--window", "16", "--out", tokenizer]) == 0
    found = json.loads((tmp_path / "tokenizer" / "metrics.json").read_text())
    assert found["bone_variation_projected"] < 1e-6 < found["bone_variation"] and found["bits_per_second"] == 40
    assert "data:image/gif" in (tmp_path / "tokenizer" / "report.html").read_text()
    assert isinstance(MotionTokenizer.from_pretrained(tmp_path / "tokenizer" / "model"), MotionTokenizer)
    assert guarded(MAIN, ["tokenizer", "evaluate", tokenizer]) == 0
    shape = ["--hidden_size", "16", "--num_layers", "1", "--num_heads", "2"]
    assert guarded(MAIN, ["train", "--tokenizer", tokenizer, *shape, *common, "--out", model]) == 0
    quick = ["--sampler.steps", "2"]
    out = tmp_path / "samples"
    ask = ["sample", model, "--caption", "a person walks", "--count", "2", "--frames", "21", "--out", str(out), *quick]
    assert guarded(MAIN, [*ask, "--report", str(out / "page.html")]) == 0
    made = np.load(out / "samples.npz")["positions"]
    assert made.shape == (2, 21, 21, 3) and bone_variation(torch.tensor(made[0]), figures.SKELETON.parents) < 1e-5
    assert mpjpe(read_bvh(out / "sample_2.bvh").positions(), torch.tensor(made[1]).double()).max() < 0.1
    assert guarded(MAIN, ["evaluate", model, "--judge_steps", "2", "--copies", "1", *quick]) == 0
    found = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert {"real", "from_codes", "samples", "shuffled_captions", "standard_errors_above_shuffled"} <= set(found)
    capsys.readouterr()
    for argv, told in (
        (["sample", model, "--caption", "a person wolks"], "did you mean 'walks'"),
        (["sample", model, "--caption", "a person walks", "--frames", "34"], "at most 33"),
        (["sample", model], "say what to sample"),
        (["sample", tokenizer, "--caption", "a person walks"], "holds no motion model"),
        (["train", "--tokenizer", model + "x"], "holds no motion tokenizer"),
        (["train", "--tokenzer", model], "did you mean --tokenizer"),
        (["tokenizer", "train", "--source", str(tmp_path / "none")], "is no folder"),
    ):
        assert guarded(MAIN, argv) == 2
        assert told in capsys.readouterr().err, told
