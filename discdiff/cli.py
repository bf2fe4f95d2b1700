"""Command lines: flags derived from the fields of frozen dataclasses, errors in one line, and the `discdiff` command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from discdiff.config import build


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag when one is unknown; errors are ValueErrors, one line each."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help lists the flags")

    def parse_known(self, argv: Sequence[str]) -> argparse.Namespace:
        found, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            self.error(f"unknown argument {unknown[0]}" + (f": did you mean {near[0]}?" if near else ""))
        return found


def take(argv: Sequence[str], prefix: str) -> tuple[list[str], list[str]]:
    """Flags `--prefix.NAME value` (or `=value`) of a command line, and everything else."""
    inside: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(f"--{prefix}."):
            rest.append(word)
        elif "=" in word:
            inside.append(word)
        else:
            inside += [word, *([value] if (value := next(words, None)) is not None else [])]
    return inside, rest


def parse(
    prog: str, argv: Sequence[str], sections: Mapping[str, type], positional: Sequence[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """Build one instance of every section (a frozen dataclass) from `--field value` flags, plus the positionals.

    A field of two sections is prefixed, `--section.field`, and all of them by `prefix`. Flags left out keep the field's
    default; raises ValueError for an unknown flag and for text that is not of the field's type, impossible values are the
    dataclass's own ValueError.
    """
    parser = _Parser(prog=prog, allow_abbrev=False)
    for name in positional:
        parser.add_argument(name)
    fields = {section: [f for f in dataclasses.fields(kind) if f.init] for section, kind in sections.items()}
    names = [f.name for each in fields.values() for f in each]
    targets: dict[str, tuple[str, str]] = {}
    for section, kind in sections.items():
        group = parser.add_argument_group(section, (kind.__doc__ or "").split("\n")[0])
        hints = typing.get_type_hints(kind)
        for f in fields[section]:
            flag = prefix + (f.name if names.count(f.name) == 1 else f"{section}.{f.name}")
            dest = flag.replace(".", "__")
            targets[dest] = (section, f.name)
            options = list(dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}")))
            default = argparse.SUPPRESS
            what = "see the documentation" if f.default is dataclasses.MISSING else f"default {f.default!r}"
            what = what.replace("%", "%%")  # argparse formats its help with %
            group.add_argument(
                *options, dest=dest, type=_reader(hints[f.name]), default=default, metavar="X", help=what
            )
    found = vars(parser.parse_known(argv))
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for dest, value in found.items():
        if dest in targets:
            section, name = targets[dest]
            values[section][name] = value
    built = {section: build(kind, values[section]) for section, kind in sections.items()}
    return {**built, **{name: found[name] for name in positional}}


def _reader(hint: Any) -> Callable[[str], Any]:
    """A reader of one flag's text for a field's type."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = [kind for kind in options if kind is not type(None)]

    def read(text: str) -> Any:
        if text.lower() == "none" and type(None) in options:
            return None
        for kind in plain:
            if kind is Any:
                return text
            if kind is bool and text.lower() in ("true", "false", "1", "0", "yes", "no"):
                return text.lower() in ("true", "1", "yes")
            if typing.get_origin(kind) is tuple or kind is tuple:
                item = _reader((typing.get_args(kind) or (str,))[0])
                return tuple(item(part) for part in text.split(",") if part)
            if kind in (int, float, str):
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise argparse.ArgumentTypeError(f"{text!r} is no {' or '.join(getattr(k, '__name__', str(k)) for k in plain)}")

    return read


def guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command: a wrong value, a missing file or a full disk is one line and exit code 2, not a traceback.

    An interruption is exit code 130.
    """
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


Command = Callable[[str, Sequence[str]], None]
"""What does the work: (its name, the words behind it)."""


def commands(prog: str, table: Mapping[str, Command | Mapping[str, Any]]) -> Callable[[Sequence[str]], None]:
    """A command with sub-commands; a table within the table is one again."""

    def main(argv: Sequence[str]) -> None:
        if not argv or argv[0] in ("-h", "--help"):
            print(f"usage: {prog} {{{','.join(table)}}} ...; add --help for the flags of one")
            return
        if argv[0] not in table:
            near = difflib.get_close_matches(argv[0], table, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"unknown command {argv[0]!r}{hint} Known: {', '.join(table)}")
        inner, found = f"{prog} {argv[0]}", table[argv[0]]
        if isinstance(found, Mapping):
            commands(inner, found)(argv[1:])
        else:
            found(inner, argv[1:])

    return main


@dataclasses.dataclass(frozen=True)
class _NoSettings:
    """No settings."""


def _info(prog: str, argv: Sequence[str]) -> None:
    """Print what a saved model is: sizes, vocabulary, layout and process."""
    folder = parse(prog, argv, {"": _NoSettings}, ("folder",))["folder"]
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder!r}: give one that save_pretrained wrote")
    from discdiff.models import load_network

    model = load_network(folder)
    config = model.config.to_diff_dict()
    config["parameters"] = sum(p.numel() for p in model.parameters())
    print(json.dumps(config, indent=2, default=str))


def _convert(prog: str, argv: Sequence[str]) -> None:
    """Convert a public checkpoint into a folder of ours, or back."""
    from discdiff.checkpoints.command import Conversion, run

    chosen = parse(prog, argv, {"": Conversion}, ("src", "dst"))
    run(chosen["src"], chosen["dst"], chosen[""])


def _check(prog: str, argv: Sequence[str]) -> None:
    """Compare a folder with its manifest."""
    from discdiff.checking import check

    check(argv)


MAIN = commands("discdiff", {"info": _info, "convert": _convert, "check": _check})


def main() -> int:
    """Entry point of the `discdiff` command."""
    return guarded(MAIN)


if __name__ == "__main__":
    sys.exit(main())
