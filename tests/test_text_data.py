"""The text data path: tokenizers lose nothing, the cache is exact and atomic, rows are the stream, n-grams are right."""

import collections
import copy
import gzip
import json
import math
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.text import tokenfile, tokenizer
from tasks.text.corpus import PackedRows, PaddedRows, Source, TokenFile, iter_documents, split, tokenise
from tasks.text.quality import NGram, distinct_n, sample_entropy, unigram_entropy

HARD = ["", "\n", " two  spaces \n\n\ttab\r\nline", "don 't , do n't .", "é中🙂 ▁Ġ\u00a0\u2028", "\x00\x7f", "ab" * 300]
TRAIN = [*HARD, "the cat sat on the mat, the dog ran to the cat. " * 20]
PROSE = ["to be or not to be", "that is the question", "", "whether tis nobler"]
MASKED = "[MASK]"


def make(kind: str) -> PreTrainedTokenizerFast:
    return tokenizer.build(kind, TRAIN, 300 if kind == "bpe" else None)


def words() -> PreTrainedTokenizerFast:
    """A foreign tokenizer: words, with an end and a mask token of its own."""
    vocab = {word: rank for rank, word in enumerate(["[UNK]", "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]", mask_token=MASKED, pad_token="[PAD]"
    )


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


# Tokenizers


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_round_trip_through_call_encoder_and_disk(kind, tmp_path):
    made = make(kind)
    made.save_pretrained(tmp_path)
    for each in (made, tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert each.all_special_tokens == [] and tokenizer.fingerprint(each) == tokenizer.fingerprint(made)
        for text, ids in zip(HARD, tokenizer.encoder(each)(HARD)):
            assert each(text)["input_ids"] == list(ids) == made.encode(text)
            assert each.decode(list(ids)) == text


def test_ids_of_bytes_and_characters():
    assert tokenizer.bytes_()("é\n")["input_ids"] == [0xC3, 0xA9, 0x0A]
    assert tokenizer.characters(["ca", "b"]).get_vocab() == {"a": 0, "b": 1, "c": 2}


def test_bpe_merges_is_repeatable_and_encodes_unseen_text():
    first, second = make("bpe"), make("bpe")
    assert tokenizer.fingerprint(first) == tokenizer.fingerprint(second) and len(first) == 300
    assert len(first("the cat sat")["input_ids"]) < 9
    assert first.decode(first("Ω unseen ∂")["input_ids"]) == "Ω unseen ∂"


def test_an_unknown_character_is_named(tmp_path):
    tokenizer.characters(["abc"]).save_pretrained(tmp_path)
    made = tokenizer.load(tmp_path)
    for encode in (
        made,
        made.encode,
        lambda text: made(["a", text]),
        lambda text: tokenizer.encoder(made)(["a", text]),
    ):
        with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 2 .* 3 characters: build .* 'bytes'"):
            encode("abé")
    with pytest.raises(Exception, match="UNK"):  # without our class the error is plainer, but nothing is dropped
        AutoTokenizer.from_pretrained(tmp_path)("abé")


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_cutting_a_long_document_changes_no_token(kind):
    made = make(kind)
    generator = np.random.default_rng(0)
    alphabet = [symbol for symbol in "ab'.\n\n\n  \t\ré" if any(symbol in text for text in TRAIN)]
    cut, encode = tokenizer.cutter(made, size=7), tokenizer.encoder(made)
    pieces = 0
    for _ in range(300):
        text = "".join(generator.choice(alphabet, 80))
        parts = cut(text)
        pieces += len(parts)
        assert "".join(parts) == text
        assert np.concatenate(encode(parts)).tolist() == list(encode([text])[0])
    assert pieces > 600  # it did cut
    assert cut("") == [""]


def test_foreign_tokenizers_are_cut_nowhere_and_keep_their_specials(tmp_path):
    made = words()
    made.save_pretrained(tmp_path)
    loaded = tokenizer.build(str(tmp_path))
    assert loaded.eos_token_id == made.eos_token_id and loaded.mask_token_id == made.mask_token_id
    assert tokenizer.cutter(made, 3)("a b\nc a b") == ["a b\nc a b"]


def test_truncation_left_by_a_call_does_not_reach_the_corpus():
    made = make("bpe")
    before, whole = tokenizer.fingerprint(made), tokenizer.encoder(made)(TRAIN)
    made(TRAIN, truncation=True, max_length=2)
    assert made.backend_tokenizer.truncation is not None
    assert tokenizer.fingerprint(made) == before and tokenizer.encoder(made)(TRAIN) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bpe", TRAIN), "'bpe' needs one"),
        (("bytes", None, 300), "vocab_size=300 with tokenizer 'bytes'"),
        (("bpe", TRAIN, 256), "vocab_size 256 leaves no merge"),
        (("characters",), "made from texts"),
        (("characters", [""]), "no character"),
        (("characters", "one string"), "list of documents"),
        (("no/such/folder",), "no tokenizer loads from 'no/such/folder'.*characters, bytes, bpe"),
    ],
)
def test_build_refuses(arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        tokenizer.build(*arguments)


def test_too_few_pairs_for_the_vocabulary_is_said():
    with pytest.warns(UserWarning, match="not 5000"):
        assert 256 < len(tokenizer.bpe(["aaaa bbbb"], 5000)) < 300


# Sources


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
    assert texts == list(iter_documents()) and all(text.isascii() for text in texts)
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
    write(path, "some text")
    source, cache, made = Source(str(path)), tmp_path / "cache", make("bpe")

    first = tokenise(source, made, cache)
    assert calls == [1]
    assert tokenise(source, make("bpe"), cache).folder == first.folder and calls == [1]

    write(path, "other text!")
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


# Quality


def test_entropies_and_distinct_n():
    assert unigram_entropy(np.array([[1, 2], [3, 4]])) == pytest.approx(math.log(4))
    samples = [np.array([1, 1, 1]), np.array([1, 2])]
    assert sample_entropy(samples) == pytest.approx(math.log(2) / 2)
    assert distinct_n(samples, 1) == 2 / 5 and distinct_n(samples, 2) == 2 / 3 and distinct_n(samples, 3) == 1
    with pytest.raises(ValueError, match="n=4"):
        distinct_n(samples, 4)
    with pytest.raises(ValueError, match="no entropy"):
        unigram_entropy(np.zeros(0, int))
    with pytest.raises(ValueError, match="ids"):
        sample_entropy(np.zeros((2, 3)))


def brute_force(rows, order, vocab_size):
    """Witten-Bell by dictionaries, straight from the formula."""
    after = collections.defaultdict(collections.Counter)
    for row in rows:
        padded = [None] * (order - 1) + list(row)
        for i in range(order - 1, len(padded)):
            for k in range(order):
                after[tuple(padded[i - k : i])][padded[i]] += 1

    def p(word, context):
        lower = p(word, context[1:]) if context else 1 / vocab_size
        seen = after.get(context, {})
        total = sum(seen.values())
        return (seen.get(word, 0) + len(seen) * lower) / (total + len(seen)) if seen else lower

    return p


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_ngram_model_is_witten_bell(order):
    generator = np.random.default_rng(order)
    fitted = [generator.integers(4, size=n) for n in (30, 1, 0, 12)]
    scored = [generator.integers(5, size=n) for n in (25, 3)]  # token 4 was never seen
    p = brute_force([row.tolist() for row in fitted], order, 5)
    total = 0.0
    for row in scored:
        padded = [None] * (order - 1) + row.tolist()
        for i in range(order - 1, len(padded)):
            context = tuple(padded[i - order + 1 : i])
            assert sum(p(word, context) for word in range(5)) == pytest.approx(1)
            total -= math.log(p(padded[i], context))
    found = NGram(order, 5).fit(fitted).nats(scored)
    assert found.per_token == pytest.approx(total / 28) and found.per_row == pytest.approx(total / 2)


def test_ngram_samples_follow_its_own_law():
    generator = np.random.default_rng(3)
    fitted = generator.choice(3, size=(40, 3), p=[0.6, 0.3, 0.1])
    model, p = NGram(3, 3).fit(fitted), brute_force(fitted.tolist(), 3, 3)
    drawn = model.sample(20_000, 2, seed=0)
    assert np.array_equal(drawn, model.sample(20_000, 2, seed=0)) and not np.array_equal(
        drawn, model.sample(20_000, 2, 1)
    )
    law = np.array([[p(a, (None, None)) * p(b, (None, a)) for b in range(3)] for a in range(3)])
    counts = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=3)[0]
    chi2 = ((counts - 20_000 * law) ** 2 / (20_000 * law)).sum()
    assert chi2 < 26.1  # 8 degrees of freedom, p = 0.001; the seeds are fixed
    assert ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() > 1000  # the statistic tells laws apart


def test_ngram_samples_stay_ended():
    model = NGram(2).fit([np.array([0, 1, 2])] * 50)
    drawn = model.sample(50, 10, seed=0, eos_id=2)
    ended = (drawn == 2).argmax(1)
    assert (ended > 0).any() and all((row[at:] == 2).all() for row, at in zip(drawn, ended) if 2 in row)


def test_ngram_refuses():
    with pytest.raises(ValueError, match="order 0"):
        NGram(0)
    with pytest.raises(ValueError, match="call fit"):
        NGram(2).nats([np.array([1])])
    with pytest.raises(ValueError, match=r"ids 0\.\.3 leave the vocabulary of 3"):
        NGram(2, 3).fit([np.array([0, 3])])
    with pytest.raises(ValueError, match="no token"):
        NGram(2).fit([np.zeros(0, int)])


def test_the_six_gram_of_tinyshakespeare():
    """2.450 bits a character for the 6-gram and 4.829 for the unigram on the usual cut (90 % train, 10 % validation)."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare"
    if not (folder / "train.txt").is_file():
        pytest.skip("no tinyshakespeare in shared/data beside the repository")
    texts = [next(iter_documents(str(folder / f"{part}.txt"))) for part in ("train", "valid")]
    train, valid = tokenizer.encoder(tokenizer.characters(texts))(texts)
    bits = [NGram(order).fit([train]).nats([valid]).per_token / math.log(2) for order in (1, 6)]
    assert bits == pytest.approx([4.829, 2.450], abs=5e-4)
