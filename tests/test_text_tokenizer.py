"""Text tokenizers lose nothing, refuse what they cannot encode, and give a long text the same ids in pieces."""

import numpy as np
import pytest
from text_toy import HARD, TRAIN, make, words
from transformers import AutoTokenizer

from tasks.text import tokenizer


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
