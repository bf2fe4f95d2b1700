"""Settings as data: frozen dataclasses to JSON dictionaries and back, with errors that name the value and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST = 256 << 20  # bytes of a file of settings


def to_dict(settings: Any) -> Any:
    """A frozen dataclass (nested ones too) as a JSON-ready dictionary; `name` says which class it was."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        values = {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}
        return {"type": type(settings).__name__, **values}
    if isinstance(settings, Mapping):
        return {key: to_dict(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_dict(value) for value in settings]
    return settings


def from_dict(data: Any, types: Mapping[str, type]) -> Any:
    """Inverse of `to_dict` for the classes in `types`. Raises ValueError for an unknown type, an unknown or missing key."""
    if isinstance(data, Mapping) and "type" in data:
        values = {key: from_dict(value, types) for key, value in data.items() if key != "type"}
        return build(_known(data["type"], types, "type"), values)
    if isinstance(data, Mapping):
        return {key: from_dict(value, types) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return tuple(from_dict(value, types) for value in data)
    return data


def read_json(path: str | Path) -> dict[str, Any]:
    """The dictionary in a JSON file. Raises ValueError naming the file where it holds anything else or cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes are no settings")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{str(path)!r} holds a {type(data).__name__}: a dictionary is expected")
    return data


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """`kind(**values)` with every key and plain type checked: an unknown key is an error that names the nearest known."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in values:
        _known(key, fields, f"setting of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        ok, hint = _fits(value, hints[key]), hints[key]
        checked(f"{kind.__name__}.{key}", value, ok, f"give {getattr(hint, '__name__', hint)}")
    try:
        return kind(**values)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{kind.__name__}: {error}; settings are {', '.join(fields)}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a class, an int being a float too; unions and tuples by their parts, other hints always."""
    if hint is Any:
        return True
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if typing.get_origin(hint) is tuple:
        items = inner[:1] * len(value) if isinstance(value, tuple | list) and inner[-1] is ... else inner
        if not isinstance(value, tuple | list):
            return False
        return len(items) == len(value) and all(_fits(v, item) for v, item in zip(value, items, strict=True))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) and not getattr(hint, "_is_protocol", False) else True


def _known(name: Any, table: Mapping[str, Any], what: str) -> Any:
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), list(table), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{hint} Known: {', '.join(table)}")


def checked(name: str, value: Any, ok: bool, remedy: str) -> None:
    """Raise ValueError naming the setting, its value and the remedy unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value!r}: {remedy}")
