"""Rows of a corpus in the library's layout and back to strings, holes in a given text, and the orders of sampling."""

import pytest
import torch
from text_toy import words

from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, Uniform
from discdiff.training import token_batch
from tasks.text import rows
from tasks.text.infill import Infill
from tasks.text.settings import Chosen, Corpus, Network
from tasks.text.tokenizer import characters
from tasks.text.training import config_for


def test_padded_rows_end_in_end_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("ab\ncde\n" * 20)
    corpus = Corpus(f"{tmp_path}/a.txt", document="line", rows="padded", length=6, cache=str(tmp_path))
    tokenizer = rows.build_tokenizer(corpus)
    layout = rows.layout_for(tokenizer, 6)
    train, _ = rows.load_rows(corpus, tokenizer, layout)
    (batch,) = rows.batches(train, layout, 2)
    bos, eos = (layout.vocab.special(name) for name in ("BOS", "EOS"))
    assert batch.unrestricted and batch.free.sum(1).tolist() == [6, 6]
    assert batch.tokens.tolist() == [[bos, 0, 1, eos, eos, eos, eos], [bos, 2, 3, 4, eos, eos, eos]]
    assert rows.to_text(tokenizer, layout, batch.tokens) == ["ab", "cde"]
    assert rows.lengths(layout, batch.tokens, True).tolist() == [3, 4]  # the text and one end token
    assert rows.lengths(layout, batch.tokens, False).tolist() == [6, 6]
    sampled = batch.tokens[1:].clone()
    sampled[0, 6] = 0  # behind the end
    judged = rows.judged_rows(layout, sampled, True)
    assert torch.equal(judged.tokens, batch.tokens[1:]) and judged.free.sum() == 4
    assert rows.to_text(tokenizer, layout, sampled) == ["cde"]
    assert rows.to_text(tokenizer, layout, sampled, cut=False, between="/") == ["cde/a"]
    assert rows.judged_rows(layout, sampled, False).free.sum() == 6


def test_documents_of_a_packed_row_do_not_see_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("abc\nde\n" * 30)
    corpus = Corpus(f"{tmp_path}/a.txt", document="line", boundaries=True, length=9, cache=str(tmp_path))
    tokenizer = rows.build_tokenizer(corpus)
    layout = rows.layout_for(tokenizer, 9)
    train, _ = rows.load_rows(corpus, tokenizer, layout)
    row = train[0]
    assert row["sample"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]  # BOS abc end, de end, ab
    assert row["slot"].tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 1, 2]
    model = DiscDiffModel.seeded(config_for(layout, Network(16, 1, 2), Absorbing()), 0).eval()
    batch = token_batch(layout, {k: torch.from_numpy(v)[None] for k, v in row.items() if k != "id"}, check=True)
    other = batch._replace(tokens=batch.tokens.clone())
    other.tokens[0, 6] = tokenizer.encode("a")[0]
    with torch.no_grad():
        changed = (model(batch=batch).hidden != model(batch=other).hidden).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True] * 3 + [False] * 2


def test_validation_is_another_source_or_a_share_kept_back(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 10)
    (tmp_path / "b.txt").write_text("hgfedcba" * 2)
    corpus = Corpus(f"{tmp_path}/a.txt", valid=f"{tmp_path}/b.txt", length=8, cache=str(tmp_path))
    tokenizer = rows.build_tokenizer(corpus)
    layout = rows.layout_for(tokenizer, 8)
    train, valid = rows.load_rows(corpus, tokenizer, layout)
    assert (len(train), len(valid)) == (10, 2) and valid[0]["tokens"][1:].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    kept = Corpus(f"{tmp_path}/a.txt", valid_fraction=0.25, length=8, cache=str(tmp_path))
    train, valid = rows.load_rows(kept, tokenizer, layout)  # one document: its last quarter
    assert (len(train), len(valid)) == (7, 2)


@pytest.mark.parametrize(("tail", "follows"), [("ends", "EOS"), ("free", "MASK"), ("absent", "PAD")])
def test_infilling_gives_everything_but_the_holes(tail, follows):
    tokenizer = characters(["cat dog"])
    layout = rows.layout_for(tokenizer, 10)
    infill = Infill(layout, tokenizer, "cat__g", tail=tail)
    batch = infill.batch(2)
    assert batch.free.tolist() == [[False] * 4 + [True] * 2 + [False] * 1 + [tail == "free"] * 4] * 2
    assert (batch.tokens[0, 7:] == layout.vocab.special(follows)).all()
    assert batch.valid[:, :7].all() and (batch.valid[:, 7:] == (tail != "absent")).all()
    filled = batch.tokens.clone()
    filled[:, 4] = layout.vocab.special("EOS")
    filled[:, 5] = tokenizer.encode("o")[0]
    assert infill.texts(filled) == ["catog"] * 2  # an end token in a hole is no character


def test_a_given_text_must_not_hold_the_mask():
    made = words()
    layout = rows.layout_for(made, 8)
    assert layout.vocab.mask == made.mask_token_id < layout.vocab.text_size
    with pytest.raises(ValueError, match="gives the mask id 6: write holes as '_'"):
        Infill(layout, made, "a [MASK] _")
    with pytest.raises(ValueError, match="tail is 'open': choose from ends, free, absent"):
        Infill(layout, made, "a _", tail="open")


def test_samplers_that_fill_masks_need_masks():
    assert Chosen("ancestral").build(Uniform()).kernel.process == Uniform()
    for name in ("entropy", "p2", "first_hitting"):
        assert Chosen(name).build(Absorbing()).kernel.process == Absorbing()
        with pytest.raises(ValueError, match="Absorbing"):
            Chosen(name).build(Uniform())
