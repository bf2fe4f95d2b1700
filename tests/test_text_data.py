"""The text cache is exact and atomic, and rows are the stream."""

import copy
import json
import os
import pickle
import threading

import numpy as np
import pytest
from text_toy import MASKED, PROSE, TRAIN, make, words

from tasks.text import tokenfile, tokenizer
from tasks.text.corpus import PackedRows, PaddedRows, Source, TokenFile, split, tokenise


def joined(dataset) -> np.ndarray:
    return np.concatenate([dataset[i]["tokens"] for i in range(len(dataset))])


@pytest.fixture
def file(tmp_path) -> TokenFile:
    """10 documents of 0 to 9 tokens, token = 10 * document + place, closed by 255."""
    texts = ["".join(chr(10 * i + j) for j in range(i)) for i in range(10)]
    return tokenise(texts, tokenizer.bytes_(), tmp_path, eos_id=255)


@pytest.fixture
def open_file(tmp_path) -> TokenFile:
    return tokenise(["abc", "", "abcde", "f"], tokenizer.bytes_(), tmp_path)


# Token files


def test_documents_offsets_and_header(file):
    assert len(file) == 55 and file.documents == 10 and file.tokens.dtype == np.uint16
    assert file.header["eos_id"] == 255 and file.header["vocab_size"] == 256
    for i in range(10):
        assert file.document(i).tolist() == [*range(10 * i, 11 * i), 255]
    assert file.offsets.dtype == np.int64 and file.offsets[-1] == 55


def test_the_batch_size_and_cuts_do_not_show(tmp_path, monkeypatch):
    texts = [*TRAIN, "long\nlines\n" * 100, ""]
    whole = tokenise(texts, make("bpe"), tmp_path / "a", eos_id=300)
    monkeypatch.setattr(tokenfile, "BATCH", 40)
    monkeypatch.setattr(tokenfile, "cutter", lambda made: tokenizer.cutter(made, 16))
    small = tokenise(texts, make("bpe"), tmp_path / "b", eos_id=300)
    assert np.array_equal(whole.tokens, small.tokens) and np.array_equal(whole.offsets, small.offsets)


def test_wide_ids_take_four_bytes(tmp_path):
    narrow = tokenise(PROSE, tokenizer.bytes_(), tmp_path, eos_id=65_535)
    wide = tokenise(PROSE, tokenizer.bytes_(), tmp_path, eos_id=65_536)
    assert narrow.tokens.dtype == np.uint16 and wide.tokens.dtype == np.uint32
    assert narrow.document(2).tolist() == [65_535] and wide.document(2).tolist() == [65_536]


def test_equal_keys_reuse_the_file_and_any_change_makes_another(tmp_path, monkeypatch):
    calls = []
    real = tokenfile.encoder

    def counted(made):
        encode = real(made)
        return lambda texts: calls.append(len(texts)) or encode(texts)

    monkeypatch.setattr(tokenfile, "encoder", counted)
    path = tmp_path / "a.txt"
    path.write_text("some text")
    source, cache, made = Source(str(path)), tmp_path / "cache", make("bpe")

    first = tokenise(source, made, cache)
    assert calls == [1]
    assert tokenise(source, make("bpe"), cache).folder == first.folder and calls == [1]

    path.write_text("other text!")
    tokenise(source, made, cache)
    tokenise(source, made, cache, eos_id=300)
    tokenise(source, made, cache, forbid=[299])
    tokenise(Source(str(path), document="line"), made, cache)
    tokenise(source, tokenizer.bytes_(), cache)
    tokenise(["other text!"], made, cache)
    tokenise(iter(["other text!"]), made, cache, identity="mine")
    assert len(calls) == 8 and len(list(cache.iterdir())) == 8
    tokenise(["other text!"], made, cache)
    tokenise(iter([]), made, cache, identity="mine")
    assert len(calls) == 8


def test_a_failed_run_leaves_nothing(tmp_path):
    def texts():
        yield "a" * tokenfile.BATCH
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        tokenise(texts(), tokenizer.bytes_(), tmp_path, identity="x")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_token_file(tmp_path):
    def texts():
        yield "a" * tokenfile.BATCH
        os._exit(7)

    made = tokenizer.bytes_()
    child = os.fork()
    if not child:
        tokenise(texts(), made, tmp_path, identity="x")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    leftovers = list(tmp_path.iterdir())
    assert len(leftovers) == 1 and leftovers[0].name.startswith(".")
    assert len(tokenise(iter(["abc"]), made, tmp_path, identity="x")) == 3


def test_two_writers_at_once_agree(tmp_path):
    barrier = threading.Barrier(2)
    files: list[TokenFile] = []

    def texts():
        yield from PROSE
        barrier.wait(30)  # both are writing now

    def write_one():
        files.append(tokenise(texts(), tokenizer.bytes_(), tmp_path, identity="x"))

    threads = [threading.Thread(target=write_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 2 and files[0].folder == files[1].folder
    assert [path.name for path in tmp_path.iterdir()] == [files[0].folder.name]
    assert bytes(files[0].tokens.astype(np.uint8)).decode() == "".join(PROSE)


def test_a_damaged_token_file_is_refused(file):
    tokens = file.folder / tokenfile.TOKENS
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(ValueError, match="has 108 bytes, its header says 110: delete .* tokenise again"):
        TokenFile(file.folder)
    header = file.folder / tokenfile.HEADER
    header.write_text(json.dumps(file.header | {"version": 0}))
    with pytest.raises(ValueError, match="version 0, this code reads 1"):
        TokenFile(file.folder)
    with pytest.raises(ValueError, match="is no token file"):
        TokenFile(file.folder.parent)


def test_a_token_file_is_sent_to_workers_by_name(file):
    assert len(pickle.dumps(file)) < 500
    assert np.array_equal(copy.deepcopy(file).tokens, file.tokens)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "corpus is empty: 0 documents"),
        (["", ""], {"eos_id": 256}, "corpus is empty: 2 documents"),
        ("text", {}, "one string"),
        (iter(["a"]), {}, "identity="),
        (["a"], {"eos_id": 9, "forbid": [9]}, "eos_id 9 must be"),
        (iter(["a", None]), {"identity": "x"}, "document 1 is a NoneType"),
        (["fine", "", "b@d"], {"forbid": [64, 300]}, r"document 2 gives the forbidden token id 64 \('@'\)"),
    ],
)
def test_tokenise_refuses(tmp_path, documents, options, message):
    with pytest.raises(ValueError, match=message):
        tokenise(documents, tokenizer.bytes_(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_written_out_in_a_foreign_text_is_refused(tmp_path):
    made = words()
    assert tokenise(["a b", "c"], made, tmp_path, forbid=[made.mask_token_id]).tokens.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"document 1 .* \('\[MASK\]'\): take that text out, or set"):
        tokenise(["a b", f"c {MASKED} a"], made, tmp_path, forbid=[made.mask_token_id])
    made.backend_tokenizer.encode_special_tokens = True  # the remedy works
    assert tokenise(["a b", f"c {MASKED} a"], made, tmp_path, forbid=[made.mask_token_id]).tokens.tolist()[3] == 0


# Rows


@pytest.mark.parametrize("length", [1, 3, 7, 54, 55])
def test_packed_rows_are_the_stream(file, length):
    rows = PackedRows(file, length)
    assert len(rows) == 55 // length and [rows[i]["id"] for i in range(len(rows))] == list(range(len(rows)))
    assert joined(rows).tolist() == file.tokens[: len(rows) * length].tolist()
    kept = PackedRows(file, length, pad_id=999)
    valid = np.concatenate([kept[i]["valid"] for i in range(len(kept))])
    assert joined(kept)[valid].tolist() == file.tokens.tolist() and (joined(kept)[~valid] == 999).all()
    assert valid.size == -(-55 // length) * length


def test_sample_numbers_are_the_documents(file):
    owner = np.repeat(np.arange(10), np.diff(file.offsets))
    rows = PackedRows(file, 16, pad_id=0)
    for i in range(len(rows)):
        row = rows[i]
        here = owner[16 * i : 16 * (i + 1)]
        numbers = np.unique(here, return_inverse=True)[1]
        assert row["sample"].dtype == row["tokens"].dtype == np.int64 and isinstance(row["id"], int)
        assert row["sample"].tolist() == [*numbers, *[numbers[-1]] * (16 - len(here))]
    assert not PackedRows(file, 16, boundaries=False)[1]["sample"].any()
    with pytest.raises(IndexError):
        rows[len(rows)]
    assert rows[-1]["id"] == len(rows) - 1


def test_empty_documents_do_not_break_numbering(open_file):
    row = PackedRows(open_file, 9)[0]
    assert bytes(row["tokens"].astype(np.uint8)) == b"abcabcdef" and row["sample"].tolist() == [0] * 3 + [1] * 5 + [2]


def test_a_corpus_shorter_than_a_row(file):
    with pytest.raises(ValueError, match="55 tokens, fewer than a row of 56: .*pad_id"):
        PackedRows(file, 56)
    assert len(PackedRows(file, 56, pad_id=0)) == 1
    with pytest.raises(ValueError, match="length 0"):
        PackedRows(file, 0)


def test_padded_rows_hold_one_document_each(open_file):
    rows = PaddedRows(open_file, 6, pad_id=300, eos_id=301)
    assert len(rows) == 4
    assert rows[0]["tokens"].tolist() == [97, 98, 99, 301, 300, 300]
    assert rows[0]["valid"].tolist() == [True] * 4 + [False] * 2
    assert rows[1]["tokens"].tolist() == [301] + [300] * 5 and rows[1]["valid"].sum() == 1
    assert rows[2]["tokens"].tolist() == [*b"abcde", 301] and rows[2]["valid"].all()
    assert rows[3]["id"] == 3 and not rows[3]["sample"].any()


def test_padded_rows_refuse(open_file, file):
    with pytest.raises(
        ValueError, match=r"document 2 has 5 tokens, 6 with its end token \(1 such .*length 5.*truncate"
    ):
        PaddedRows(open_file, 5, pad_id=300, eos_id=301)
    row = PaddedRows(open_file, 4, pad_id=300, eos_id=301, truncate=True)[2]
    assert row["tokens"].tolist() == [*b"abcd"] and row["valid"].all()
    with pytest.raises(ValueError, match="end in token 255 already"):
        PaddedRows(file, 20, pad_id=300, eos_id=301)
    with pytest.raises(ValueError, match="both 300"):
        PaddedRows(open_file, 20, pad_id=300, eos_id=300)


def test_split_by_documents_is_keyed_and_whole(file):
    train, valid = split(file, 0.3, seed=1)
    assert len(valid.documents) == 3 and sorted([*train.documents, *valid.documents]) == list(range(10))
    assert valid.documents.tolist() == split(file, 0.3, seed=1)[1].documents.tolist()
    assert len({tuple(split(file, 0.3, seed=seed)[1].documents) for seed in range(20)}) > 10
    expected = np.concatenate([file.document(i) for i in train.documents])
    rows = PackedRows(train, 5)
    assert joined(rows).tolist() == expected[: len(rows) * 5].tolist()


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.9])
def test_split_by_stream_cuts_at_the_token(file, fraction):
    train, valid = split(file, fraction, by="stream")
    a, b = joined(PackedRows(train, 1)), joined(PackedRows(valid, 1))
    assert len(b) == round(55 * fraction) and [*a, *b] == file.tokens.tolist()
    again = split(train, 0.5, by="stream")[1]  # a part splits like a file
    assert joined(PackedRows(again, 1)).tolist() == a[len(a) - round(len(a) / 2) :].tolist()


def test_split_refuses(file, tmp_path):
    with pytest.raises(ValueError, match="fraction 1"):
        split(file, 1)
    with pytest.raises(ValueError, match="by is 'rows'"):
        split(file, 0.5, by="rows")
    with pytest.raises(ValueError, match="of 1 documents leaves one side empty.*by='stream'"):
        split(tokenise(["one"], tokenizer.bytes_(), tmp_path), 0.1)
    with pytest.raises(ValueError, match="no token"):
        split(tokenise(["one"], tokenizer.bytes_(), tmp_path), 0.1, by="stream")
