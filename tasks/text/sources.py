"""Where documents come from: text, JSONL and CSV files, plain or gzipped, any `datasets` source, or Python itself."""

import ast
import codecs
import csv
import glob
import gzip
import json
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

EMBEDDED = "embedded"
HUB = "hf:"
FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".csv": "csv"}
DOCUMENTS = ("file", "line", "blank")
# Parts of the standard library that distributions leave out or move, so that the embedded text depends on Python alone.
_UNEVEN = {"antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter"}


@dataclass(frozen=True)
class Source:
    """A stream of documents.

    path: files (one, several, or a pattern with `*`) ending in .txt, .md, .jsonl or .csv, each also with .gz; "hf:NAME"
        for what `datasets.load_dataset` finds under NAME, a local folder included; "embedded" for English out of Python.
    document: what a document of a text file is: the whole "file" (default), a "line", or a block between "blank" lines.
    field: the JSONL key, CSV column or `datasets` column that holds the text, "text" by default.
    encoding: of the files. name, split ("train" by default), revision: for `datasets`.

    Line ends become newlines, as in Python's text mode; blank lines make no document under "line" and "blank".
    Raises ValueError for an unknown file type or encoding, and for an option that the source would not use.
    """

    path: str | tuple[str, ...] = EMBEDDED
    document: str | None = None
    field: str | None = None
    encoding: str = "utf-8"
    name: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        paths = (self.path,) if isinstance(self.path, str | Path) else tuple(self.path)
        if not paths:
            raise ValueError(f"path is empty: give a file, {HUB + 'NAME'!r} or {EMBEDDED!r}")
        object.__setattr__(self, "path", str(paths[0]) if len(paths) == 1 else tuple(map(str, paths)))
        if self.document not in (None, *DOCUMENTS):
            raise ValueError(f"document is {self.document!r}: give one of {', '.join(DOCUMENTS)}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r} is not known to Python: try 'utf-8' or 'latin-1'") from error
        kind = self.kind
        uses = {
            "text": {"document"},
            "jsonl": {"field"},
            "csv": {"field"},
            "hub": {"field", "name", "split", "revision"},
        }
        for option in ("document", "field", "name", "split", "revision"):
            if (value := getattr(self, option)) is not None and option not in uses.get(kind, ()):
                raise ValueError(f"{option}={value!r} has no use for the source {self.path!r}: leave it out")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as given, always a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def kind(self) -> str:
        """One of "text", "jsonl", "csv", "hub" and "embedded"."""
        if self.path == EMBEDDED:
            return "embedded"
        if isinstance(self.path, str) and self.path.startswith(HUB):
            return "hub"
        suffixes = {Path(path.removesuffix(".gz")).suffix.lower() for path in self.paths}
        kinds = {FORMATS.get(suffix) for suffix in suffixes}
        kind = kinds.pop()
        if kind is None or kinds:
            known = f"{', '.join(FORMATS)} (each also with .gz), {HUB + 'NAME'!r} or {EMBEDDED!r}"
            raise ValueError(
                f"source {self.path!r} has the file types {sorted(suffixes)}: give files of one kind of {known}"
            )
        return kind

    def files(self) -> list[Path]:
        """The files of the source, none for the others. Raises ValueError for one that is missing."""
        if self.kind in ("hub", "embedded"):
            return []
        found: list[Path] = []
        for path in self.paths:
            pattern = glob.has_magic(path) and not Path(path).exists()
            matches = [Path(match) for match in sorted(glob.glob(path, recursive=True))] if pattern else [Path(path)]
            if not matches:
                raise ValueError(f"no file matches the source {path!r}: check the pattern")
            found += matches
        for file in found:
            if not file.is_file():
                raise ValueError(f"the source file {str(file)!r} is not there (or is a folder): check the path")
        return found

    def identity(self) -> dict[str, Any]:
        """What decides the documents: the options and each file's path, size in bytes and time of change in nanoseconds."""
        files = self.files()
        folder = Path(self.paths[0].removeprefix(HUB))
        if self.kind == "hub" and folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
        stats = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        options = {key: getattr(self, key) for key in ("document", "field", "encoding", "name", "split", "revision")}
        python = sys.version if self.kind == "embedded" else None
        return options | {"path": list(self.paths), "files": stats, "python": python}


def iter_documents(source: Source | str | Path | tuple[str, ...] = EMBEDDED, **options: Any) -> Iterator[str]:
    """Streams the documents of `source`, a `Source` or the path of one together with its `options`.

    Raises ValueError: at once for a missing file; while reading for bytes that are not in the encoding (naming their
    offset), for a damaged gzip file, and for a record without the text field (naming its line).
    """
    if not isinstance(source, Source):
        source = Source(source, **options)  # type: ignore[arg-type]
    elif options:
        raise ValueError(f"options {sorted(options)} beside a Source: set them in the Source")
    if source.kind == "embedded":
        return embedded()
    return _hub(source) if source.kind == "hub" else _from_files(source, source.files())


def embedded() -> Iterator[str]:
    """English from the standard library: the language reference of `pydoc`, then each module's docstrings, ASCII only.

    About 1.8 MB, the same for one build of Python. Raises ValueError where the library's sources are not installed.
    """
    from pydoc_data.topics import topics

    yield from (_ascii(text) for _, text in sorted(topics.items()))
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for name in sorted(name for name in sys.stdlib_module_names - _UNEVEN if not name.startswith("_")):
        files += [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]
    files = [file for file in files if file.is_file() and not {"test", "tests"} & set(file.relative_to(root).parts)]
    if not files:
        raise ValueError("this Python has no standard library sources to read text from: give a file as the source")
    for file in files:
        nodes = ast.walk(ast.parse(file.read_bytes()))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        text = "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, documented))))
        if text:
            yield _ascii(text)


def _ascii(text: str) -> str:
    return text.strip().encode("ascii", "ignore").decode() + "\n"


def _from_files(source: Source, files: list[Path]) -> Iterator[str]:
    for path in files:
        with _reading(path, source.encoding) as lines:
            if source.kind == "text":
                yield from _text(lines, source.document or "file")
            elif source.kind == "jsonl":
                yield from _jsonl(lines, source.field or "text", path)
            else:
                yield from _csv(lines, source.field or "text", path)


def _text(lines: TextIO, document: str) -> Iterator[str]:
    if document == "file":
        yield lines.read()
    elif document == "line":
        yield from (line.rstrip("\n") for line in lines if line.strip())
    else:
        block: list[str] = []
        for line in lines:
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block).rstrip("\n")
                block = []
        if block:
            yield "".join(block).rstrip("\n")


def _jsonl(lines: TextIO, field: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{str(path)!r}, line {number} is not JSON ({error}): one record a line is needed"
            ) from error
        yield _field(record, field, f"{str(path)!r}, line {number}")


def _csv(lines: TextIO, field: str, path: Path) -> Iterator[str]:
    reader = csv.DictReader(lines, strict=True)
    try:
        if field not in (reader.fieldnames or ()):
            raise ValueError(
                f"{str(path)!r} has the columns {reader.fieldnames}, not {field!r}: name one with field= (--text_field)"
            )
        for record in reader:
            yield _field(record, field, f"{str(path)!r}, line {reader.line_num}")
    except csv.Error as error:
        remedy = "mend the line, or write the texts as JSONL"
        raise ValueError(f"{str(path)!r}, line {reader.line_num} is not CSV ({error}): {remedy}") from error


def _hub(source: Source) -> Iterator[str]:
    import datasets  # seconds to import, so only where it is used

    path, split = source.paths[0].removeprefix(HUB), source.split or "train"
    try:
        records = datasets.load_dataset(path, source.name, split=split, revision=source.revision, streaming=True)
    except (OSError, ValueError) as error:
        remedy = "check the source, name= and split=, and the connection"
        raise ValueError(f"datasets finds no split {split!r} of {path!r} ({error}); {remedy}") from error
    for number, record in enumerate(records, 1):
        yield _field(record, source.field or "text", f"{path!r}, record {number}")


def _field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        found = f"the fields {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(f"{where} has {found}, not {field!r}: name the text's with field= (--text_field)")
    text = record[field]
    if not isinstance(text, str):
        raise ValueError(f"{where} holds a {type(text).__name__} in {field!r}, not text: mend or remove the record")
    if not text.isascii() and any("\ud800" <= symbol <= "\udfff" for symbol in text):
        raise ValueError(f"{where} holds half of a surrogate pair, which is no text: mend or remove the record")
    return text


def _open(path: Path, mode: str, encoding: str | None = None) -> Any:
    return gzip.open(path, mode, encoding=encoding) if path.suffix == ".gz" else path.open(mode, encoding=encoding)


@contextmanager
def _reading(path: Path, encoding: str) -> Iterator[TextIO]:
    try:
        with _open(path, "rt", encoding) as lines:
            yield lines
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        where = f"is not {encoding} text from byte {_undecodable(path, encoding)} on ({reason})"
        remedy = "name its encoding with encoding= (often 'cp1252' or 'latin-1'), or convert it"
        raise ValueError(f"{str(path)!r} {where}: {remedy}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is a damaged gzip file ({error}): fetch it again") from error


def _undecodable(path: Path, encoding: str) -> int:
    """Offset in the unpacked file of the first byte that does not decode; the reader's error counts from its block."""
    decoder = codecs.getincrementaldecoder(encoding)()
    at = 0
    with _open(path, "rb") as blocks:
        while True:
            block = blocks.read(1 << 16)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return at - held + error.start
            except UnicodeError:  # a missing byte order mark, which has no place of its own
                return at
            at += len(block)
            if not block:
                return 0
