"""Documents out of files, `datasets` and Python itself; what cannot be read is located."""

import collections
import gzip
import itertools
import os
from pathlib import Path

import pytest

from tasks.text.sources import Source, iter_documents


def write(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_become_documents(tmp_path, suffix):
    text = write(tmp_path / f"a.txt{suffix}", "one\r\ntwo\n \n\nthrée\n")
    assert list(iter_documents(text)) == ["one\ntwo\n \n\nthrée\n"]
    assert list(iter_documents(text, document="line")) == ["one", "two", "thrée"]
    assert list(iter_documents(text, document="blank")) == ["one\ntwo", "thrée"]
    records = write(tmp_path / f"a.jsonl{suffix}", '{"text": "x\\ny"}\n\n{"text": "", "body": 3}\n')
    assert list(iter_documents(records)) == ["x\ny", ""]
    table = write(tmp_path / f"a.csv{suffix}", 'id,smiles\n1,CCO\n2,"a\nb, ""c"""\n')
    assert list(iter_documents(Source(table, field="smiles"))) == ["CCO", 'a\nb, "c"']


def test_several_files_and_patterns_keep_their_order(tmp_path):
    b, a = write(tmp_path / "b.txt", "B"), write(tmp_path / "a.txt", "A")
    assert list(iter_documents((b, a))) == ["B", "A"]
    assert list(iter_documents(str(tmp_path / "*.txt"))) == ["A", "B"]
    assert list(iter_documents(write(tmp_path / "l.txt", "é".encode("latin-1")), encoding="latin-1")) == ["é"]


def test_a_datasets_source_streams_a_local_folder(tmp_path):
    write(tmp_path / "train.jsonl", '{"body": "one"}\n{"body": "two"}\n')
    source = Source(f"hf:{tmp_path}", field="body")
    assert list(iter_documents(source)) == ["one", "two"]
    assert source.identity()["files"][0][1] == 32
    with pytest.raises(ValueError, match=r"record 1 has the fields \['body'\], not 'text'"):
        list(iter_documents(f"hf:{tmp_path}"))
    with pytest.raises(ValueError, match="no split 'nope'"):
        list(iter_documents(Source(f"hf:{tmp_path}", field="body", split="nope")))


def test_the_embedded_text_is_english_repeatable_and_large():
    texts = list(iter_documents())
    assert texts[:20] == list(itertools.islice(iter_documents(), 20)) and all(text.isascii() for text in texts)
    assert sum(map(len, texts)) > 1_000_000
    letters = collections.Counter("".join(texts).lower())
    assert letters["e"] == max(letters[symbol] for symbol in "abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "a.txt", "document": "page"}, "document is 'page': give one of file, line, blank"),
        ({"path": "a.txt", "field": "text"}, "field='text' has no use"),
        ({"path": "a.csv", "document": "line"}, "document='line' has no use"),
        ({"path": "a.jsonl", "split": "train"}, "split='train' has no use"),
        ({"path": "embedded", "document": "line"}, "document='line' has no use"),
        ({"path": "a.pdf"}, r"'.pdf'.*\.txt.*\.jsonl"),
        ({"path": ("a.txt", "b.csv")}, "files of one kind"),
        ({"path": ()}, "path is empty"),
        ({"path": "a.txt", "encoding": "utf-9"}, "encoding 'utf-9'"),
    ],
)
def test_source_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Source(**options)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"x" * 100_000 + b"caf\xe9 au lait", {}, r"not utf-8 text from byte 100003 on.*encoding="),
        ("a.txt.gz", b"ok " * 50_000 + b"\xff", {}, "from byte 150000 on"),
        ("a.txt", b"\xe9", {"document": "line"}, "from byte 0 on"),
        ("a.txt", b"good " * 3 + b"\xe2\x82", {}, "from byte 15 on"),
        ("a.jsonl", '{"text": "a"}\n\n{"txt": "b"}\n', {}, r"line 3 has the fields \['txt'\], not 'text'.*field="),
        ("a.jsonl", '{"text": "a"}\n{"text": 7}\n', {}, "line 2 holds a int in 'text'"),
        ("a.jsonl", '{"text": "\\ud800"}\n', {}, "line 1 holds half of a surrogate"),
        ("a.jsonl", '"text"\n', {}, "line 1 has a str"),
        ("a.jsonl", '{"text": "a"\n', {}, "line 1 is not JSON"),
        ("a.csv", "smiles\nC\n", {}, r"columns \['smiles'\], not 'text'"),
        ("a.csv", "id,text\n1,a\n2\n", {}, "line 3 holds a NoneType"),
        ("a.csv", 'text\n"a\n', {}, "is not CSV"),
    ],
)
def test_what_cannot_be_read_is_located(tmp_path, name, content, options, message):
    with pytest.raises(ValueError, match=message):
        list(iter_documents(write(tmp_path / name, content), **options))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ValueError, match="'none.txt' is not there"):
        iter_documents("none.txt")  # at once, not at the first document
    with pytest.raises(ValueError, match="no file matches"):
        iter_documents(str(tmp_path / "*.txt"))
    damaged = tmp_path / "a.txt.gz"
    damaged.write_bytes(gzip.compress(os.urandom(5000))[:-2000])
    with pytest.raises(ValueError, match="damaged gzip"):
        list(iter_documents(str(damaged), encoding="latin-1"))
