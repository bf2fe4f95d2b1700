"""Damaged folders: what disks, transfers and people do to models, checkpoints, tokenizers, settings and grids.

`make(root)` writes one good folder of every kind; `damage(folder, seed)` breaks one file of a copy; `LOADERS` read them as
a user would and give what came out, in numbers, so that a silent acceptance shows.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from training_toy import Toy, trainer

from discdiff.config import to_dict
from discdiff.layout import Layout, Segment, VocabLayout
from discdiff.manifest import MANIFEST, seal, sealed
from discdiff.manifest import verify as verify_manifest
from discdiff.models import DiscDiffConfig, DiscDiffModel, load_network
from discdiff.processes import Uniform
from discdiff.sampling import Grid
from discdiff.training import states, verify
from tasks.text.folder import load_model, load_task, save_task
from tasks.text.settings import Corpus
from tasks.text.tokenizer import characters, fingerprint

TEXT = "a small alphabet is enough"


def make(root: Path) -> None:
    """root/model, root/task (settings and tokenizer), root/grid and root/checkpoint, all with manifests."""
    layout = Layout(VocabLayout(text_size=16), (Segment("text", "text", (12,)),))
    config = DiscDiffConfig(
        vocab=layout.vocab, hidden_size=16, num_layers=1, num_heads=2, max_length=32,
        layout=to_dict(layout), process=to_dict(Uniform()),
    )  # fmt: skip
    DiscDiffModel.seeded(config, 0).save_pretrained(root / "model")
    save_task(root / "task", {"corpus": Corpus(length=16)}, characters([TEXT]))
    (root / "grid").mkdir()
    (root / "grid/learned.json").write_text(Grid((1.0, 0.6, 0.3, 0.0), temperature=(1.0, 0.9, 0.8)).to_json() + "\n")
    seal(root / "grid")
    run = trainer(root / "run", steps=1)
    run.train()
    shutil.move(root / "run/checkpoint-1", root / "checkpoint")


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read_model(folder: Path) -> Any:
    model = load_network(folder)
    trained = load_model(folder)  # layout and process too
    return _digest(model.state_dict()), str(model.config.to_diff_dict()), str(trained.layout), str(trained.process)


def _read_task(folder: Path) -> Any:
    corpus, tokenizer = load_task(folder)
    return corpus, fingerprint(tokenizer)


def _read_checkpoint(folder: Path) -> Any:
    verify(folder)
    model = Toy()
    states.load_weights(model, folder)
    optimizer = torch.optim.AdamW(model.parameters())
    return _digest(model.state_dict()), len(optimizer.state)


def _read_grid(folder: Path) -> Any:
    if sealed(folder):
        verify_manifest(folder)
    return Grid.load(folder / "learned.json")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "model": _read_model,
    "task": _read_task,
    "grid": _read_grid,
    "checkpoint": _read_checkpoint,
}
FILES = {
    "model": ("config.json", "model.safetensors"),
    "task": ("task.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    "grid": ("learned.json",),
    "checkpoint": ("model.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json", "training.json"),
}


@dataclass(frozen=True)
class Damage:
    """One broken file. structural: no reader may take it; else a value that could have been meant. field: what is wrong."""

    kind: str
    file: str
    what: str
    signed: bool
    structural: bool
    field: str = ""


class Bomb:
    """A pickle that runs code when it is read."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.sentinel,)


def plant(sentinel: Path) -> str:
    """A module that runs code when it is imported."""
    return f"import os\nos.mkdir({str(sentinel)!r})\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"


def unsign(folder: Path) -> None:
    """Take away the manifests: the folder of somebody else."""
    for path in folder.rglob(MANIFEST):
        path.unlink()


def damage(folder: Path, kind: str, seed: int, sentinel: Path) -> Damage | None:
    """Break one file of a good folder, by `seed`; None where nothing came of it."""
    draw = random.Random(seed)
    signed = kind == "checkpoint" or draw.random() < 0.5
    name = draw.choice(FILES[kind])
    file = folder / name
    if not signed:
        unsign(folder)
    table = _TENSORS if file.suffix == ".safetensors" else _JSON
    if file.suffix == ".json" and draw.random() < 0.5:
        before = file.read_bytes()
        field, structural = _wrong_value(draw, json.loads(before), file)
        return Damage(kind, name, "wrong value", signed, structural, field) if file.read_bytes() != before else None
    what = draw.choice(sorted(table))
    before = file.read_bytes()
    structural = table[what](draw, file, sentinel)
    same = file.exists() and file.stat().st_size == len(before) and file.read_bytes() == before
    if same and what not in _PLANTED:
        return None
    return Damage(kind, name, what, signed, structural)


# ---- any file


def _truncated(draw: random.Random, file: Path, _: Path) -> bool:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data) - 2)])  # a text without its last newline is whole
    return True


def _empty(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_bytes(b"")
    return True


def _garbage(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_bytes(draw.randbytes(draw.choice((1, 64, 5000))))
    return True


def _gone(draw: random.Random, file: Path, _: Path) -> bool:
    file.unlink()
    return file.name != "tokenizer_config.json"


def _flip(draw: random.Random, file: Path, first: int, last: int) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(first, last)] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(data))


def _flipped(draw: random.Random, file: Path, _: Path) -> bool:
    _flip(draw, file, 0, file.stat().st_size)
    return False


def _pickled(draw: random.Random, file: Path, sentinel: Path) -> bool:
    with file.open("wb") as out:
        draw.choice((pickle.dump, torch.save))({"weight": Bomb(sentinel)}, out)
    return True


# ---- safetensors


def _only_a_pickle(draw: random.Random, file: Path, sentinel: Path) -> bool:
    file.unlink()
    torch.save({"weight": Bomb(sentinel)}, file.parent / "pytorch_model.bin")
    return True


def _header_flipped(draw: random.Random, file: Path, _: Path) -> bool:
    _flip(draw, file, 0, 8 + struct.unpack("<Q", file.read_bytes()[:8])[0])
    return False


def _huge_header(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_bytes(struct.pack("<Q", draw.choice((2**63, 2**40, 10**8))) + file.read_bytes()[8:])
    return True


def _huge_tensor(draw: random.Random, file: Path, _: Path) -> bool:
    header = {"a.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    return True


def _integers(draw: random.Random, file: Path, _: Path) -> bool:
    tensors = load_file(file)
    name = draw.choice(sorted(n for n in tensors if n.endswith(("weight", "bias", "exp_avg")) or True))
    save_file({**tensors, name: tensors[name].to(torch.int32)}, file, {"format": "pt"})
    return file.name == "model.safetensors"


def _renamed(draw: random.Random, file: Path, _: Path) -> bool:
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    tensors[name + "_"] = tensors.pop(name)
    save_file(tensors, file, {"format": "pt"})
    return True


def _reshaped(draw: random.Random, file: Path, _: Path) -> bool:
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    save_file({**tensors, name: tensors[name].reshape(1, -1)}, file, {"format": "pt"})
    return tensors[name].dim() != 2 or len(tensors[name]) != 1


# ---- JSON


def _nested(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_text("[" * 200_000)
    return True


def _no_dictionary(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_text(draw.choice(("[1, 2]", "3", "null", '"text"', "true", "NaN")))
    return True


def _latin(draw: random.Random, file: Path, _: Path) -> bool:
    file.write_bytes(b'{"\xff": 1}')
    return True


def _large(draw: random.Random, file: Path, _: Path) -> bool:
    with file.open("wb") as out:
        out.truncate(1 << 40)  # sparse
    return True


def _remote_code(draw: random.Random, file: Path, sentinel: Path) -> bool:
    data = json.loads(file.read_text())
    (file.parent / "code.py").write_text(plant(sentinel))
    tokenizers = ["code.Tokenizer", "code.Tokenizer"]
    data["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": tokenizers}
    file.write_text(json.dumps(data))
    return False  # taken without the code, or refused


def _another_model(draw: random.Random, file: Path, sentinel: Path) -> bool:
    other = file.parent / "other"
    other.mkdir()
    (other / "code.py").write_text(plant(sentinel))
    (other / "config.json").write_text('{"auto_map": {"AutoModel": "code.Model"}}')
    (file.parent / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    return file.name == "config.json"


_ANY = {
    "truncated": _truncated,
    "empty": _empty,
    "garbage": _garbage,
    "gone": _gone,
    "flipped": _flipped,
    "pickle": _pickled,
}
_TENSORS = _ANY | {
    "header flipped": _header_flipped, "huge header": _huge_header, "huge tensor": _huge_tensor, "integers": _integers,
    "renamed": _renamed, "reshaped": _reshaped, "only a pickle": _only_a_pickle,
}  # fmt: skip
_JSON = _ANY | {
    "nested": _nested, "no dictionary": _no_dictionary, "not UTF-8": _latin, "large": _large, "remote code": _remote_code,
    "adapter": _another_model,
}  # fmt: skip
_PLANTED = ("adapter",)

_ODD = (
    None,
    True,
    -1,
    0,
    3.5,
    1e30,
    10**30,
    "x",
    "",
    [],
    [1, "a"],
    {},
    {"type": "Uniform"},
    {"a": 1},
    "\ud83d\ude00",
    -1e-300,
)


def _wrong_value(draw: random.Random, data: Any, file: Path) -> tuple[str, bool]:
    """Replace one value, anywhere, by an odd one: (its top field, whether it is a number or switch of another type)."""
    places = []

    def visit(node: Any, path: tuple) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key, (*path, key)))
            visit(value, (*path, key))

    visit(data, ())
    node, key, path = draw.choice(places[:400])
    old, new = node[key], draw.choice(_ODD)
    node[key] = new
    file.write_text(json.dumps(data))
    kinds = ((bool,), (int, float), (str,), (list,), (dict,))
    of = [next((i for i, kind in enumerate(kinds) if isinstance(x, kind)), None) for x in (old, new)]
    ours = not file.name.startswith("tokenizer") and path[0] != "architectures"  # the others read theirs as they do
    return str(path[0]), ours and None not in of and of[0] != of[1]
