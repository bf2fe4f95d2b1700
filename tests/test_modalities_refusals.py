"""What the tasks of sound, motion and actions refuse or map, before any work: other skeletons, other settings, lost words."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from motion_toy import random_pose

from discdiff.cli import guarded
from tasks.audio import codec as audio_codec
from tasks.audio.__main__ import MAIN as AUDIO
from tasks.audio.settings import Sounds
from tasks.audio.sources import read
from tasks.common.folders import write_task
from tasks.common.words import Lexicon
from tasks.motion import codec, figures, generate, skeletons
from tasks.motion.__main__ import MAIN as MOTION
from tasks.motion.clips import Clip, Clips
from tasks.motion.settings import Codec, Generator, Judged, Motions
from tasks.motion.sources import load
from tasks.vla.settings import Actions
from tasks.vla.sources import load as load_actions
from tasks.vla.tokenizer import fit
from tokenizers_vq import AudioTokenizer, AudioTokenizerConfig

audio, motion = partial(guarded, AUDIO), partial(guarded, MOTION)


def humanml(where, channels=251, count=4):
    vectors = skeletons.public(channels)
    frames = vectors.process(vectors.skeleton.forward(random_pose(50, skeleton=vectors.skeleton))).float()
    (where / "new_joint_vecs").mkdir()
    for n in range(count):
        np.save(where / "new_joint_vecs" / f"{n:06d}.npy", frames.numpy())
    return str(where), vectors


def channels(where, rows):
    np.savez(where / "maps.npz", **{row["key"]: np.ones((30, 9)) for row in rows})
    (where / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(where)


def clip(label, split, name="a"):
    return Clip(name, torch.zeros(20, 3), label, label, split)


# ---- sources


def test_motions_of_as_many_channels_are_still_of_another_skeleton(tmp_path):
    source, plain = humanml(tmp_path)
    with pytest.raises(ValueError, match="have 21 joints .joint_0.* the tokenizer reads 21 joints .hips"):
        load(Motions(source=source), figures.VECTORS)
    assert load(Motions(source=source), plain).vectors is plain
    with pytest.raises(ValueError, match="have 21 joints .* the tokenizer reads 22"):
        load(Motions(source=source), skeletons.public(263))


def test_motions_of_no_list_are_left_out_and_counted(tmp_path):
    source, _ = humanml(tmp_path)
    (tmp_path / "train.txt").write_text("000000\n000002\n")
    (tmp_path / "val.txt").write_text("000001\n")
    found = load(Motions(source=source))
    assert [c.split for c in found.clips] == ["train", "valid", "train"]
    assert found.notes == ("1 motions are in none of train.txt, val.txt and test.txt, left out",)
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("other\n")
    with pytest.raises(ValueError, match="the lists of splits .* name none"):
        load(Motions(source=source))


def test_names_of_splits(tmp_path):
    rows = [{"key": k, "split": s} for k, s in zip("abcde", ("train", "val", "validation", "dev", "test"))]
    assert [c.split for c in load(Motions(source=channels(tmp_path, rows))).clips] == ["train", *["valid"] * 3, "test"]
    with pytest.raises(ValueError, match="split is 'holdout': of 'b': choose from train, valid"):
        load(Motions(source=channels(tmp_path, [{"key": "a"}, {"key": "b", "split": "holdout"}])))


def squeezed(file, keep):
    """An .npz whose compressed stream is damaged, but whose directory is whole."""
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02") // 2
    data[at : at + 40] = bytes([255]) * 40
    file.write_bytes(bytes(data) if keep else bytes(data[:0]))


@pytest.mark.parametrize("keep", [True, False])
def test_damaged_npz_of_actions_and_motions(tmp_path, keep):
    shape = (400, 7)
    noise = np.random.default_rng(0).normal(size=shape)
    for name in ("a", "b"):
        np.savez_compressed(tmp_path / f"{name}.npz", action=noise, episode_index=np.arange(400) // 20)
    squeezed(tmp_path / "b.npz", keep)
    with pytest.raises(ValueError, match="b.npz: .*--damaged skip"):
        load_actions(Actions(str(tmp_path)), 8)
    assert len(load_actions(Actions(str(tmp_path), damaged="skip"), 8)[0].actions)
    (tmp_path / "index.jsonl").write_text(json.dumps({"key": "action"}))
    with pytest.raises(ValueError, match="b.npz.* cannot be read as arrays"):
        load(Motions(source=str(tmp_path)))


def test_masks_of_parquet_files(tmp_path):
    actions, mask = np.random.default_rng(0).normal(size=(6, 4, 2)), np.ones((6, 4), dtype=bool)
    mask[0, 2:] = False
    table = {"action": actions.tolist(), "mask": mask.tolist(), "episode_index": list(range(6))}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert load_actions(Actions(str(tmp_path)), 4)[0].mask[0].tolist() == [True, True, False, False]
    for name, value, told in (
        ("mask", mask[:, :3], r"'mask' has shape \(6, 3\): give \(6, 4\)"),
        ("episode_index", np.zeros((6, 4)), r"'episode_index' has shape \(6, 4\): give \(6,\)"),
    ):
        np.savez(tmp_path / "b.npz", **{"action": actions, "mask": mask, name: value})
        with pytest.raises(ValueError, match=told):
            load_actions(Actions(str(tmp_path / "b.npz")), 4)
    np.savez(tmp_path / "b.npz", action=actions[:, 0], episode_index=np.arange(5))
    with pytest.raises(ValueError, match=r"has shape \(5,\): give \(6,\)"):
        load_actions(Actions(str(tmp_path / "b.npz")), 4)


# ---- words


def test_captions_are_read_whole_and_labels_differ():
    clips = Clips((clip("a man walks on", "train"), clip("he runs", "valid")), None, 0.0)
    assert generate.lexicon_of(clips, Generator()).length == 4
    with pytest.raises(ValueError, match="'a man walks on' has 4: give --words 4"):
        generate.lexicon_of(clips, Generator(words=3))
    held = Clips((clip("he runs", "train"), clip("a man walks on", "test")), None, 0.0)
    with pytest.raises(ValueError, match="give --words 4"):
        generate.lexicon_of(held, Generator(words=3))
    for labels in (("Walk", "walk!"), ("walk", "!!!")):
        alike = Clips(tuple(clip(label, "train") for label in labels), None, 0.0)
        with pytest.raises(ValueError, match="rename them"):
            generate.lexicon_of(alike, Generator(condition="label"))
        assert generate.lexicon_of(alike, Generator()).length == 1
    lexicon = Lexicon.of(["a man"], 4)
    lexicon.check("")
    with pytest.raises(ValueError, match="'!!!': it has no word"):
        lexicon.check("!!!")


# ---- judges


def test_labels_are_known_before_a_motion_judge_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "train_judge", lambda *_, **__: pytest.fail("it was trained"))
    for clips, told in (
        (
            [clip("a", "train"), clip("b", "train"), clip("c", "test")],
            r"labels is \['c'\]: no training motion has them",
        ),
        ([clip("a", "train"), clip("b", "test")], "between 2 and 1000"),
        ([clip(f"{n}", "train") for n in range(1001)], "between 2 and 1000"),
    ):
        with pytest.raises(ValueError, match=told):
            generate.fit_judge(None, Clips(tuple(clips), None, 0.0), tmp_path, Judged())


# ---- folders


@pytest.fixture(scope="module")
def figure_clips():
    return load(Motions(embedded=20, longest=400))


@pytest.fixture(scope="module")
def motions(tmp_path_factory, figure_clips):
    """A folder as `tokenizer train` leaves it, without training, and flags of a small model of its codes."""
    where = tmp_path_factory.mktemp("motion")
    tokenizer = codec.build(Codec(width=16, code_dim=8, codebook_size=8, num_quantizers=2, blocks=1), figure_clips)
    write_task(where / "t", {"motions": {"type": "Motions", "embedded": 20, "longest": 400}})
    tokenizer.save_pretrained(where / "t" / "model")
    return where


SMALL = "--hidden_size 16 --num_layers 1 --num_heads 2 --steps 1 --warmup 0 --batch_size 4 --progress no --device cpu"


def refused(run, capsys, told, *argv):
    capsys.readouterr()
    assert run(list(argv)) == 2
    assert told in capsys.readouterr().err


def test_motion_models_of_other_settings_or_codes(motions, figure_clips, capsys, monkeypatch):
    monkeypatch.setattr(codec, "load", lambda *_: figure_clips)
    source, out = str(motions / "t"), motions / "m"
    given = ["train", "--tokenizer", source, *SMALL.split(), "--out", str(out)]
    refused(motion, capsys, "that is the tokenizer's", *given[:-1], source)
    fits = []
    monkeypatch.setattr(generate, "fit_model", lambda *a, **_: fits.append(a[-1]) or a[-2].mkdir(exist_ok=True))
    assert motion(given) == 0 and motion(given) == 0, capsys.readouterr().err
    longest = max(len(c.frames) for c in figure_clips.of("train"))
    assert fits == [longest] * 2 and json.loads((out / "task.json").read_text())["motions"]["longest"] == longest < 400
    refused(motion, capsys, "that is a model", "train", "--tokenizer", str(out), "--out", str(motions / "n"))
    before = (out / "model" / "model.safetensors").read_bytes()
    refused(motion, capsys, "other settings or codes", *given, "--condition", "label")
    other = codec.build(Codec(width=16, code_dim=8, codebook_size=8, num_quantizers=2, blocks=1), figure_clips, 1)
    kept = (motions / "t" / "model" / "model.safetensors").read_bytes()
    other.save_pretrained(motions / "t" / "model")
    refused(motion, capsys, "other settings or codes", *given)
    assert (out / "model" / "model.safetensors").read_bytes() == before
    (motions / "t" / "model" / "model.safetensors").write_bytes(kept)


@pytest.mark.parametrize("made", ["model", "model_training", "codes", "codes_training"])
def test_folders_of_other_settings_are_not_written_to(tmp_path, made):
    write_task(tmp_path, {"windows": {"window": 1}})
    write_task(tmp_path, {"windows": {"window": 2}})  # nothing was trained yet
    (tmp_path / made).mkdir()
    with pytest.raises(ValueError, match="other settings or codes: give another --out"):
        write_task(tmp_path, {"windows": {"window": 3}})
    write_task(tmp_path, {"windows": {"window": 2}})
    (tmp_path / "task.json").unlink()
    with pytest.raises(ValueError, match="give another --out"):
        write_task(tmp_path, {"windows": {"window": 2}})


@pytest.mark.parametrize(
    ("run", "flags"),
    [
        (motion, ["--window", "32"]),
        (motion, ["--width", "8"]),
        (audio, ["--window_seconds", "0.2"]),
        (audio, ["--hop", "32"]),
    ],
)
def test_windows_and_codec_decide_what_a_tokenizer_is(tmp_path, capsys, monkeypatch, figure_clips, run, flags):
    def no_training(*_, **__):
        raise ValueError("not now")

    for module in (codec, audio_codec):
        monkeypatch.setattr(module, "fit_codec", no_training)
    monkeypatch.setattr(codec, "load", lambda *_: figure_clips)
    given = ["tokenizer", "train", "--embedded", "20", "--blocks", "1", "--out", str(tmp_path)]
    refused(run, capsys, "not now", *given)
    (tmp_path / "model_training").mkdir()
    refused(run, capsys, "not now", *given)
    refused(run, capsys, "give another --out", *given, *flags)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    where = tmp_path_factory.mktemp("audio")
    torch.manual_seed(0)
    tokenizer = AudioTokenizer(
        AudioTokenizerConfig(codebook_size=8, width=16, code_dim=8, strides=(4,), blocks=1, num_quantizers=2)
    )
    write_task(where / "t", {"sounds": Sounds(embedded=20, seconds=0.2)})
    tokenizer.save_pretrained(where / "t" / "model")
    return where


def test_sound_models_of_other_settings_or_codes(sounds, capsys, monkeypatch):
    source, out = str(sounds / "t"), sounds / "m"
    given = ["train", "--tokenizer", source, *SMALL.split(), "--out", str(out)]
    refused(audio, capsys, "that is the tokenizer's", *given[:-1], source)
    refused(audio, capsys, "at most the tokenizer's 2", *given, "--depth", "3")
    assert not out.exists()
    monkeypatch.setattr("tasks.audio.generate.fit_model", lambda *a, **_: a[-1].mkdir(exist_ok=True))
    assert audio(given) == 0 and audio(given) == 0, capsys.readouterr().err
    refused(audio, capsys, "that is a model", "train", "--tokenizer", str(out), "--out", str(sounds / "n"))
    before = (out / "model" / "model.safetensors").read_bytes()
    refused(audio, capsys, "other settings or codes", *given, "--conditional", "0.5")
    tokenizer = audio_codec.opened(sounds / "t")[0]
    next(tokenizer.encoder.parameters()).data += 1
    tokenizer.save_pretrained(sounds / "t" / "model")
    refused(audio, capsys, "other settings or codes", *given)
    assert (out / "model" / "model.safetensors").read_bytes() == before


def test_labels_are_known_before_a_judge_of_sounds_is_trained(sounds, capsys, monkeypatch):
    clips = read("embedded", Sounds(embedded=20, seconds=0.2))
    odd = clips._replace(columns={"label": ["x", *clips.columns["label"][1:]]})
    told = SimpleNamespace(columns=("label",), values=(tuple("0123456789x"),))
    found = SimpleNamespace(told=told, sounds=Sounds())
    for name, value in (("opened", found), ("load", (clips, odd)), ("sampler_of", {})):
        monkeypatch.setattr(f"tasks.audio.generate.{name}", lambda *_, value=value: value)
    monkeypatch.setattr("tasks.audio.generate.fit_judge", lambda *_: pytest.fail("it was trained"))
    refused(audio, capsys, "label is ['x']: no training sound has them", "evaluate", "folder")


def test_action_tokenizers_of_other_settings(tmp_path, capsys):
    flags = f"--episodes 20 --out {tmp_path}".split()
    fit("bins", "fit", [*flags, "--chunk", "4"])
    fit("bins", "fit", [*flags, "--chunk", "4"])
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    for kind, more in (
        ("bins", ["--chunk", "5"]),
        ("dct", ["--chunk", "4"]),
        ("bins", ["--chunk", "4", "--data_seed", "1"]),
    ):
        with pytest.raises(ValueError, match="a tokenizer of other settings: give another --out"):
            fit(kind, "fit", [*flags, *more])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_windows_too_long_for_every_sound():
    clips = read("embedded", Sounds(embedded=20))
    with pytest.raises(ValueError, match="window_seconds is '80000 samples': .*smaller"):
        audio_codec.windows(clips, 80_000)


# ---- tokenizers


def test_motions_that_are_not_finite_and_other_masks(motions, figure_clips):
    tokenizer, _ = codec.opened(motions / "t")
    x = figure_clips.clips[0].frames[None, :16].clone()
    mask = torch.ones(1, 16, dtype=torch.bool)
    x[0, 12] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        tokenizer.encode(x, mask)
    with pytest.raises(ValueError, match="not finite"):
        tokenizer.encode(x)
    mask[0, 12:] = False
    assert tokenizer.encode(x, mask).mask.tolist() == [[True, True, True, False]]
    for bad in (mask.float(), mask[:, :8], mask[0]):
        with pytest.raises(ValueError, match="mask is"):
            tokenizer.encode(x, bad)
