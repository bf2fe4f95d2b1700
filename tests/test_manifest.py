"""Manifests, folders that appear whole, model cards, `discdiff check`, and the lock of an output folder."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from survivor import Failing
from transformers import AutoModel

from discdiff import manifest as manifests
from discdiff.checking import check
from discdiff.config import to_dict
from discdiff.layout import VocabLayout
from discdiff.manifest import DamageError, seal, sealed, verify
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.models.card import card
from discdiff.processes import Uniform
from discdiff.training.lock import LOCK, FolderLock


def model_of(seed=0, **settings):
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "process": to_dict(Uniform()), **settings}
    return DiscDiffModel.seeded(DiscDiffConfig(vocab=VocabLayout(12), **shape), seed)


def flip(file, place=-3):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.bin").write_bytes(bytes(4096))
    seal(tmp_path, closed=("*.json",), note={"of": [1, "x"]})
    return tmp_path


# ---- the manifest


def test_a_manifest_says_what_it_was_told(folder):
    found = verify(folder)
    assert set(found["files"]) == {"a.json", "sub/b.bin"} and found["note"] == {"of": [1, "x"]}
    assert sealed(folder) and sorted(p.name for p in folder.iterdir()) == ["a.json", "manifest.json", "sub"]
    (folder / "notes.txt").write_text("mine")
    assert verify(folder) == found
    seal(folder, ["a.json"])
    assert set(verify(folder)["files"]) == {"a.json"}


def test_every_bit_of_a_manifest_counts(folder):
    """Each bit of manifest.json flipped: refused, or the same after all (white space)."""
    file, good = folder / "manifest.json", verify(folder)
    data = file.read_bytes()
    for place in range(0, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(bytes(flipped))
        try:
            assert verify(folder, hashes=False) == good
        except DamageError as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: flip(f / "sub/b.bin"), "sub/b.bin does not have the SHA-256"),
        (lambda f: (f / "a.json").write_text("[1]"), "a.json should have 6 bytes, found 3 bytes"),
        (lambda f: (f / "a.json").unlink(), "a.json should have 6 bytes, found nothing"),
        (lambda f: (f / "c.json").write_text("1"), "holds c.json, which its manifest.json does not list"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"format": 7, "files": {}}'), "has format 7"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2, "files": {}, "sha256": ""}'), "its own SHA-256 differs"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "cannot be read"),
        (lambda f: os.truncate(f / "manifest.json", 1 << 40), "are no manifest"),
    ],
)  # fmt: skip
def test_damage_is_named(folder, change, said):
    change(folder)
    with pytest.raises(DamageError, match=said):
        verify(folder)


@pytest.mark.parametrize("name", ["../a.json", "/etc/hosts", "", "sub/../../a"])
def test_names_stay_inside(folder, name):
    entry = {"size": 1, "sha256": "0"}
    content = {"format": 2, "files": {name: entry}}
    (folder / "manifest.json").write_text(json.dumps({**content, "sha256": manifests._digest(content)}))
    with pytest.raises(DamageError, match="plain relative name"):
        verify(folder)


def test_large_files_are_hashed_when_asked(folder):
    flip(folder / "sub/b.bin")
    verify(folder, hashes=False)
    verify(folder, up_to=4095)
    with pytest.raises(DamageError, match="SHA-256"):
        verify(folder, up_to=4096)


# ---- networks


def test_a_saved_network_is_signed_and_checked(tmp_path, monkeypatch):
    model, target = model_of(), tmp_path / "deep/er/model"
    model.save_pretrained(target)
    assert {p.name for p in target.iterdir()} == {"config.json", "model.safetensors", "manifest.json", "README.md"}
    assert set(verify(target)["files"]) == {"config.json", "model.safetensors"}
    assert [p.name for p in target.parent.iterdir()] == ["model"]
    for auto in (DiscDiffModel, AutoModel):
        assert same(auto.from_pretrained(target), model)
    (target / "tokenizer.json").write_text("{}")  # what tasks put beside it
    (target / "README.md").write_text("# Mine")
    assert same(DiscDiffModel.from_pretrained(target), model)
    flip(target / "model.safetensors")
    for auto in (DiscDiffModel, AutoModel):
        with pytest.raises(DamageError, match="model.safetensors does not have the SHA-256"):
            auto.from_pretrained(target)
    assert not same(DiscDiffModel.from_pretrained(target, check_hashes=False), model)
    monkeypatch.setattr("discdiff.models.loading._HASHED", 1000)  # the weights are larger than that now
    DiscDiffModel.from_pretrained(target)
    with pytest.raises(DamageError, match="SHA-256"):
        DiscDiffModel.from_pretrained(target, check_hashes=True)


def test_without_a_manifest_all_is_as_before(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path, sealed=False)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert same(DiscDiffModel.from_pretrained(tmp_path), model)


def test_saving_over_another_model_leaves_only_the_new_one(tmp_path):
    a, b = model_of(0), model_of(1, hidden_size=32)
    a.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "task.json").write_text("{}")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert same(DiscDiffModel.from_pretrained(tmp_path), a)
    b.save_pretrained(tmp_path)
    assert same(DiscDiffModel.from_pretrained(tmp_path), b)
    expected = {"config.json", "model.safetensors", "manifest.json", "README.md", "task.json"}
    assert {p.name for p in tmp_path.iterdir()} == expected
    a.save_pretrained(tmp_path, max_shard_size="20KB")
    assert same(DiscDiffModel.from_pretrained(tmp_path), a) and not (tmp_path / "model.safetensors").exists()


def test_what_loading_would_read_must_be_signed(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")  # preferred to the shards
    with pytest.raises(DamageError, match="holds model.safetensors"):
        DiscDiffModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="adapter_config.json, which leads to another model"):
        DiscDiffModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("over", [False, True], ids=["new", "over"])
def test_a_failure_at_every_write_of_a_network(tmp_path, over):
    """Whatever write fails: the error names path and free bytes, and the folder is the old one, the new one, or refused."""
    old, new, target, outcomes = model_of(0), model_of(1), tmp_path / "model", []
    for at in range(1, 100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if over:
            old.save_pretrained(target)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, only=lambda path: str(tmp_path) in path)
            try:
                new.save_pretrained(target)
            except OSError as error:
                assert str(target) in str(error) and "bytes are free" in str(error), error
        left = [p.name for p in tmp_path.iterdir()]
        if failing.calls < at:
            break
        assert left in ([], ["model"]), left
        try:
            found = DiscDiffModel.from_pretrained(target) if target.exists() else None
            outcomes.append(
                "none" if found is None else "old" if same(found, old) else "new" if same(found, new) else "odd"
            )
        except DamageError:
            outcomes.append("refused")
        new.save_pretrained(target)
        assert same(DiscDiffModel.from_pretrained(target), new)
    assert len(outcomes) >= 8 and "odd" not in outcomes
    assert outcomes.count("refused") <= 4, "only between the renames of single files"
    assert outcomes[0] == ("old" if over else "none")


def test_too_little_room_and_a_file_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "_free", lambda path: 1000)
    with pytest.raises(OSError, match="model needs .* bytes, 1000 are free") as caught:
        model_of().save_pretrained(tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "model").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        model_of().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="one set of weights"):
        model_of().save_pretrained(tmp_path / "other", variant="half")


# ---- the card


def test_the_card_says_what_the_model_is(tmp_path):
    model = model_of(prediction="cavity", shift=True)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for said in (
        "Uniform(schedule=Linear",
        "p(x0_i \\| x_t without i)",
        "(shift)",
        "12 text ids",
        "torch 2.",
        "library_name",
    ):
        assert said in text, said
    assert text == card(model)
    model_of(process=None).save_pretrained(tmp_path)
    assert "Uniform(" not in (tmp_path / "README.md").read_text(), "its own card it replaces"
    edited = text.replace("A discrete diffusion model", "My best model")
    (tmp_path / "README.md").write_text(edited)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == edited, "an edited one it does not"


# ---- discdiff check


def lines(capsys, *argv):
    check([str(a) for a in argv])
    return capsys.readouterr().out.splitlines()


def test_check_and_accept(tmp_path, capsys):
    model_of().save_pretrained(tmp_path / "model")
    (tmp_path / "notes").write_text("mine")
    capsys.readouterr()
    good, loose = lines(capsys, tmp_path)
    assert good.endswith("model: 2 files are as signed") and loose.endswith("1 files are in no manifest: notes")
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"max_length": 4096', '"max_length": 64'))
    with pytest.raises(DamageError, match="config.json should have"):
        check([str(tmp_path)])
    (line,) = lines(capsys, "--accept", tmp_path)
    assert line.endswith("model: config.json has changed")
    assert DiscDiffModel.from_pretrained(tmp_path / "model").config.max_length == 64
    assert verify(tmp_path / "model")["versions"]["torch"] == torch.__version__, "what was noted stays"
    assert lines(capsys, tmp_path / "model", "--accept") == [f"{tmp_path / 'model'}: as signed"]
    weights = load_file(tmp_path / "model/model.safetensors")
    (tmp_path / "model/model.safetensors").unlink()
    save_file(weights, tmp_path / "model/model.half.safetensors")
    assert lines(capsys, "--accept", tmp_path)[0].endswith(
        "model: model.half.safetensors is new, model.safetensors is gone"
    )


def test_check_names_every_fault_and_what_it_needs(tmp_path):
    for name in ("a", "b"):
        model_of().save_pretrained(tmp_path / name)
        flip(tmp_path / name / "model.safetensors")
    with pytest.raises(DamageError, match=r"a is damaged.*; .*b is damaged"):
        check([str(tmp_path)])
    (tmp_path / "empty").mkdir()
    for argv, said in (
        ([str(tmp_path / "empty")], "no manifest.json in .* or below"),
        ([str(tmp_path / "absent")], "there is no folder"),
        ([], "usage: discdiff check"),
        (["--acept", str(tmp_path)], "usage: discdiff check"),
    ):
        with pytest.raises(ValueError, match=said):
            check(argv)


def test_accept_signs_the_folder_of_somebody_else(tmp_path, capsys):
    model_of().save_pretrained(tmp_path, sealed=False)
    assert lines(capsys, "--accept", tmp_path) == [f"{tmp_path}: signed config.json, model.safetensors"]
    flip(tmp_path / "model.safetensors")
    with pytest.raises(DamageError):
        DiscDiffModel.from_pretrained(tmp_path)


# ---- the lock


def _hold(folder, pipe):
    FolderLock(folder).take()
    if os.fork() == 0:  # a worker, which outlives its parent
        time.sleep(5)
        os._exit(0)
    pipe.send("holding")
    time.sleep(60)


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(tmp_path, theirs))
    other.start()
    assert mine.recv() == "holding"
    with pytest.raises(OSError, match=f"belongs to process {other.pid} on {socket.gethostname()}, which is running"):
        FolderLock(tmp_path).take()
    other.kill()
    other.join()
    assert (tmp_path / LOCK).exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid(), "taken over though the file is left"
    assert not (tmp_path / LOCK).exists()


def _try(folder, queue):
    try:
        FolderLock(folder).take()
        queue.put("taken")
    except OSError as error:
        queue.put(str(error))


def test_the_trainer_holds_the_lock_while_it_runs(tmp_path):
    from training_toy import objective, trainer

    context = multiprocessing.get_context("fork")
    queue, said = context.SimpleQueue(), []

    def goal(*args):
        if not said:
            child = context.Process(target=_try, args=(tmp_path, queue))
            child.start()
            said.append(queue.get())
            child.join()
        return objective(*args)

    trainer(tmp_path, goal=goal, steps=2).train()
    assert f"process {os.getpid()} on" in said[0]
    assert not (tmp_path / LOCK).exists()
