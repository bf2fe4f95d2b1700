"""Settings as data: frozen dataclasses to JSON dictionaries and back, with errors that name the value and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


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


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """`kind(**values)` with every key checked: an unknown one is an error that names the nearest known."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in values:
        _known(key, fields, f"setting of {kind.__name__}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}; settings are {', '.join(fields)}") from error


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
