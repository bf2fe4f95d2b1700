"""Reading checkpoints of any common file kind without running code: names and shapes first, tensors when asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from discdiff.config import read_json

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SETTINGS = ("omegaconf.", "transformers.", "tokenizers.", "lightning.", "pytorch_lightning.", "typing.")
_PLAIN = (
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.str",
    "pathlib.PosixPath",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint: its configuration (empty without a config.json), tensor shapes by key, a reader of one tensor.

    ema: averaged weights as a list in the order of the network's parameters, from a training checkpoint that has them.
    """

    path: Path
    config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    ema: list[Tensor] | None = None

    @property
    def folder(self) -> Path:
        """Where the files beside the weights are."""
        return self.path if self.path.is_dir() else self.path.parent


def open_source(path: str | Path) -> Source:
    """A folder or weights file: safetensors, .bin/.pt/.pth/.ckpt (read with weights_only), sharded ones by their index.

    Raises ValueError, naming the file, for what is missing, damaged, ambiguous, or needs code to be read.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {path}: give a folder with config.json and weights, or a file of weights")
    file = _weights_in(path) if path.is_dir() else path
    config_file = file.parent / CONFIG
    config = read_json(config_file) if config_file.is_file() else {}
    if file.name.endswith(".index.json"):
        return Source(path, config, *_sharded(file))
    shapes, read, ema = _open_file(file)
    return Source(path, config, shapes, read, ema)


def tokenizer_size(folder: Path) -> int | None:
    """One more than the largest id that the tokenizer files of a folder define; None without such files."""
    ids: list[Any] = []
    if (folder / "tokenizer.json").is_file():
        data = read_json(folder / "tokenizer.json")
        vocab = data.get("model", {}).get("vocab", {}) if isinstance(data.get("model", {}), dict) else {}
        ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        ids += [token.get("id") for token in data.get("added_tokens", []) if isinstance(token, dict)]
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            ids += read_json(folder / name).values()
    if (folder / "tokenizer_config.json").is_file():
        ids += [
            int(i) for i in read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}) if i.isdigit()
        ]
    return max((i for i in ids if isinstance(i, int)), default=-1) + 1 or None


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", *_PICKLES) and f.is_file()]
    found = [f for f in found if f.name != "training_args.bin"]
    if len(found) != 1:
        what = ", ".join(f.name for f in found) or "none"
        raise ValueError(
            f"{folder} should hold one file of weights ({', '.join(_WEIGHTS)}); found: {what}. Name the file"
        )
    return found[0]


def _open_file(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor], list[Tensor] | None]:
    if file.suffix == ".safetensors":
        return *_open_safetensors(file), None
    if file.suffix in _PICKLES:
        return _open_pickle(file)
    raise ValueError(f"{file} is no file of weights: known are .safetensors, {', '.join(_PICKLES)}")


def _open_safetensors(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    try:
        opened = safe_open(str(file), framework="pt")
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no valid safetensors file: {error}") from error
    return shapes, lambda key: opened.get_tensor(key).clone()


def _open_pickle(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor], list[Tensor] | None]:
    data = _unpickle(file)
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds a {type(data).__name__}: a dictionary of tensors is expected")
    state = next((data[name] for name in ("state_dict", "model") if isinstance(data.get(name), dict)), data)
    wrong = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong:
        raise ValueError(f"{file} holds things that are no tensors: {', '.join(wrong[:20])}")
    ema = data.get("ema") if state is not data else None
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if shadow is not None and not (isinstance(shadow, list) and all(isinstance(x, Tensor) for x in shadow)):
        raise ValueError(f"{file}: ema.shadow_params should be a list of tensors")
    return {key: tuple(x.shape) for key, x in state.items()}, lambda key: state[key].detach().clone(), shadow


def _unpickle(file: Path) -> Any:
    """Tensors and plain containers only; settings objects of training frameworks are replaced by empty ones, unread."""
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError):
        needed = []  # not a zip archive: torch.load says what is wrong with it
    unknown = [name for name in needed if not name.startswith(_SETTINGS) and name not in _PLAIN]
    if unknown:
        _refuse(file, f"it asks for {', '.join(unknown)}")
    # the pair (class, name) gives the name a meaning of our own: what the file meant is neither imported nor run
    stubs = [(type(f"Unread{i}", (_Unread,), {}), name) for i, name in enumerate(needed)]
    with torch.serialization.safe_globals(stubs):  # type: ignore[arg-type]
        for options in ({"mmap": True}, {}):  # mapped: nothing is allocated before shapes are known
            try:
                return torch.load(file, map_location="cpu", weights_only=True, **options)
            except pickle.UnpicklingError as error:
                lines = [line.strip() for line in str(error).splitlines()]
                _refuse(
                    file, next((line for line in lines if "Unsupported" in line or "rror:" in line), lines[0]), error
                )
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise ValueError(f"{file} is damaged: {error}") from error
            except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(f"{file} is damaged: {error}") from error
    raise ValueError(f"{file} is damaged")


class _Unread:
    """Stands for a settings object in a training checkpoint."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Unread:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _refuse(file: Path, why: str, error: Exception | None = None) -> NoReturn:
    raise ValueError(
        f"{file} is a pickle that holds more than tensors ({why}): it could run code and is not read. Where you trust it, "
        "save its 'state_dict' (and 'ema') alone with torch.save, or as safetensors"
    ) from error


def _sharded(index: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} has no weight_map from keys to files")
    opened: dict[str, Any] = {}
    for name in dict.fromkeys(where.values()):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"{index} names the shard {name!r}, which is not in {index.parent}")
        opened[name] = _open_file(file)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (found, _, _) in opened.items():
        listed = {key for key, file in where.items() if file == name}
        if listed != set(found):
            odd = sorted(listed ^ set(found))
            raise ValueError(f"{index.parent / name} and {index.name} disagree on: {', '.join(odd[:20])}")
        shapes.update(found)
    return shapes, lambda key: opened[where[key]][1](key)


def weights(source: Source, read: Callable[[str], Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by the values of `keys`, read by its keys. Raises ValueError for one that holds no real numbers."""
    found = {ours: read(theirs) for theirs, ours in keys.items()}
    wrong = [theirs for theirs, ours in keys.items() if not found[ours].is_floating_point()]
    if wrong:
        raise ValueError(f"{source.path} holds no floating-point numbers in: {', '.join(wrong)}")
    return found


def narrowed(x: Tensor, dtype: str | None) -> Tensor:
    """A tensor in the dtype of that name where this loses nothing, else (or for None) as it is."""
    if dtype is None:
        return x
    back = x.to(getattr(torch, dtype))
    return back if torch.equal(back.to(x.dtype), x) else x


def dtype_name(x: Tensor) -> str:
    """Such as "bfloat16"."""
    return str(x.dtype).removeprefix("torch.")


def check_keys(source: Source, expected: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()) -> None:
    """Raise ValueError that lists every key that is missing (unless optional), superfluous, or of another shape."""
    found = source.shapes
    shaped = [
        f"{key} is {found[key]}, not {shape}" for key, shape in expected.items() if found.get(key, shape) != shape
    ]
    wrong = {
        "missing": [key for key in expected if key not in found and key not in optional],
        "superfluous": [key for key in found if key not in expected],
        "of another shape": shaped,
    }
    if any(wrong.values()):
        what = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in wrong.items() if keys)
        raise ValueError(f"the keys of {source.path} do not fit its configuration: {what}")
