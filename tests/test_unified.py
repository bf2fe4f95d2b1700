"""Records of all kinds to one sequence and back: nothing is lost, nothing is moved, and what does not fit is named."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from unified_toy import MOST, PARTS, Digits, record, same, unified

from discdiff.kernels import Ancestral
from discdiff.kernels.early_end import EarlyEnd
from discdiff.layout import VocabLayout
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import Sampler, generate
from discdiff.training.data import collate, token_batch
from discdiff.unified import Codes, Part, Reference, Template, UnifiedTokenizer
from tasks.text.tokenizer import characters

ALL = tuple(PARTS)
RECORDS = [record(seed) for seed in range(40)]


def model_for(tokenizer, seed=0, **more):
    layout = tokenizer.layout
    config = DiscDiffConfig(
        vocab=json.loads(tokenizer.vocab.to_json()), hidden_size=16, num_layers=2, num_heads=2, initializer_range=0.3,
        max_length=len(layout.tables().lead), max_depth=3 if layout.packed else 1, **more,
    )  # fmt: skip
    return DiscDiffModel.seeded(config, seed, torch.float64).eval()


# -- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [ALL, ALL[::-1], ("state", "sound")], ids=lambda names: "+".join(names))
def test_records_come_back(names, packed):
    tokenizer = unified(names, task="joint", packed=packed)
    records = [{name: r[name] for name in names} for r in RECORDS]
    batch = tokenizer.encode(records)
    assert all(same(a, b) for a, b in zip(records, tokenizer.decode(batch.tokens), strict=True))
    assert batch.unrestricted and not batch.given.any()
    assert torch.equal(tokenizer.encode(records[3:4]).tokens, batch.tokens[3:4])


def test_equal_shapes_are_encoded_together():
    tokenizer = unified()
    batch = tokenizer.encode(RECORDS)
    lengths = {len(r["sound"]) for r in RECORDS}
    assert tokenizer.tokenizers["picture"].calls == 1 and tokenizer.tokenizers["sound"].calls == len(lengths)
    tokenizer.decode(batch.tokens)
    assert tokenizer.tokenizers["picture"].calls == 2 and tokenizer.tokenizers["sound"].calls == 2 * len(lengths)


def test_marks_stand_where_they_belong():
    tokenizer = unified(("text", "sound"), task="t2a")
    vocab, layout = tokenizer.vocab, tokenizer.layout
    assert layout.names == ("task", "text.begin", "text", "text.end", "sound.begin", "sound", "sound.end")
    row = tokenizer.encode([{"text": "ab", "sound": torch.tensor([124, 0])}]).tokens[0].tolist()
    special, (sound, _) = vocab.special, vocab.range("sound")
    eos, eoc, pad = special("EOS"), special("EOC_sound"), special("PAD")
    words = tokenizer.text("ab")["input_ids"]
    assert row[:11] == [special("TASK_t2a"), special("BOS"), *words, *[eos] * 6, special("SEP")]
    assert row[11:18] == [special("BOM_sound"), sound + 4, sound + 5 + 4, sound + 10 + 4, sound, sound + 5, sound + 10]
    assert row[18:] == [*[eoc] * 12, special("EOM_sound")] and pad not in row
    free = tokenizer.encode([{"text": "ab", "sound": torch.tensor([1])}]).free[0]
    assert not free[[0, 1, 10, 11, 30]].any() and int(free.sum()) == 8 + 18
    bare = UnifiedTokenizer.of(Template((Part("text", (8,), marks=False),)), text=tokenizer.text)
    assert bare.layout.names == ("text",)


def test_codes_stand_for_data():
    tokenizer = unified(("text", "sound"))
    records = [{"text": r["text"], "sound": r["sound"]} for r in RECORDS]
    whole = tokenizer.encode(records)
    sound, text = (tokenizer.codes_of(name, [r[name] for r in records]) for name in ("sound", "text"))
    assert sound.codes.shape == (40, 6, 3) and sound.mask.sum(1).tolist() == [len(r["sound"]) for r in records]
    coded = [{"text": Codes(t, m), "sound": Codes(s, n)} for t, m, s, n in zip(*text, *sound, strict=True)]
    assert torch.equal(tokenizer.encode(coded).tokens, whole.tokens)
    back = tokenizer.codes(whole.tokens)
    assert all(torch.equal(a, b) for a, b in zip((*back["sound"], *back["text"]), (*sound, *text), strict=True))


def test_levels_may_be_absent():
    part = Part("sound", (4,), variable=True, shallow=True)
    tokenizer = unified().using(Template((part,)))
    codes = torch.tensor([[1, 2, 3], [4, -1, -1], [0, 2, -1]])
    tokens = tokenizer.encode([{"sound": Codes(codes)}]).tokens
    assert int((tokens == tokenizer.vocab.special("NONE_Q")).sum()) == 3
    again = tokenizer.codes(tokens)["sound"]
    assert torch.equal(again.codes[0, :3], codes) and again.mask[0].tolist() == [True, True, True, False]
    assert tokenizer.decode(tokens)[0]["sound"].tolist() == [25 + 10 + 3, 100, 10]
    with pytest.raises(ValueError, match="shallow=True"):
        tokenizer.using(Template((replace(part, shallow=False),))).encode([{"sound": Codes(codes)}])


# -- what is given, sampled, absent -----------------------------------------------------------------------------------


def test_what_a_record_holds_is_given():
    tokenizer = unified()
    r = RECORDS[0]
    batch = tokenizer.prompt([{"text": r["text"]}, {"picture": r["picture"], "state": r["state"]}, r, {}])
    for row, known in enumerate([("text",), ("picture", "state"), ALL, ()]):
        for name in ALL:
            columns = tokenizer.layout.columns(name)
            assert bool(batch.given[row, columns].all()) == bool(batch.given[row, columns].any()) == (name in known)
            assert bool((batch.tokens[row, columns] == tokenizer.vocab.mask).all()) == (name not in known)
    assert torch.equal(batch.tokens[2], tokenizer.encode([r]).tokens[0])


def test_none_is_absent():
    tokenizer = unified(packed=True)
    some = [RECORDS[0], RECORDS[1] | {"sound": None}, RECORDS[2] | {"text": None, "state": None}]
    batch = tokenizer.encode(some)
    assert not batch.unrestricted and batch.valid[0].all()
    gone = torch.cat([tokenizer.layout.columns(n) for n in ("sound", "sound.begin", "sound.end")])
    assert not batch.valid[1, gone].any() and int((~batch.valid[1]).sum()) == len(gone)
    assert (batch.tokens[~batch.valid] == tokenizer.vocab.pad).all()
    assert all(same(a, b) for a, b in zip(some, tokenizer.decode(batch.tokens), strict=True))
    items = tokenizer.rows(some, given=[("text",), (), ("sound",)])
    assert items[0].keys() == {"tokens", "given", "valid"}
    assert torch.equal(items[2]["given"].nonzero()[:, 0], tokenizer.layout.columns("sound"))
    assert tokenizer.rows(RECORDS[:2])[0].keys() == {"tokens"}


def test_rows_are_what_a_trainer_takes():
    tokenizer, given = unified(), [("text",), ("state", "sound"), ()]
    some = [RECORDS[0], RECORDS[1] | {"picture": None}, RECORDS[2]]
    batch = tokenizer.encode(some, given)
    again = token_batch(tokenizer.layout, collate(tokenizer.rows(some, given)), check=True)
    for name in ("tokens", "valid", "given", "slot"):
        assert torch.equal(getattr(again, name), getattr(batch, name))


def test_absent_parts_change_nothing():  # U6
    names = ("text", "picture", "sound")
    longer, shorter = unified(names, packed=True), unified(names[:2], packed=True)
    assert longer.vocab == shorter.vocab
    model = model_for(longer)
    r = {name: RECORDS[5][name] for name in names[:2]}
    a, b = longer.encode([r | {"sound": None}]), shorter.encode([r])
    logits = [model(batch=batch, output_logits=True).logits for batch in (a, b)]
    assert torch.allclose(logits[0][:, : shorter.layout.length], logits[1], atol=1e-10)
    fuller = model(batch=longer.encode([r | {"sound": torch.tensor([1])}]), output_logits=True).logits
    assert not torch.allclose(fuller[:, : shorter.layout.length], logits[1], atol=1e-3)


# -- invariants of the vocabulary -------------------------------------------------------------------------------------


def test_ranges_are_disjoint_and_cover():  # U3
    vocab = unified().vocab
    seen = [torch.arange(*vocab.range("text")), torch.arange(vocab.text_size, vocab.text_size + 256)]
    for m in vocab.modalities:
        codes = torch.arange(m.codebook)[:, None].expand(-1, m.depth).contiguous()
        ids = vocab.to_global(codes, m.name)
        assert torch.equal(vocab.to_local(ids, m.name), codes)
        seen.append(ids.flatten())
    ids = torch.cat(seen).sort().values
    assert torch.equal(ids, torch.arange(len(ids))) and vocab.total - len(ids) < vocab.multiple


@pytest.mark.parametrize("packed", [False, True])
def test_sampled_ids_are_legal(packed):  # U4
    tokenizer = unified(packed=packed)
    batch = tokenizer.prompt([{"text": "abc"}, {"picture": RECORDS[0]["picture"]}, {}] * 4)
    tokens, _ = generate(model_for(tokenizer), batch, "ancestral", steps=5, seed=1)
    for part in tokenizer.template.parts:
        columns, legal = tokenizer.layout.columns(part.name), set()
        for level in range(tokenizer.layout.depth(tokenizer.layout.segments[tokenizer.layout.names.index(part.name)])):
            first, size = tokenizer.vocab.range(part.modality, level)
            legal |= set(range(first, first + size))
        legal |= {tokenizer.vocab.special(name) for name in part.extras}
        found = set(tokens[:, columns].flatten().tolist())
        assert found <= legal and len(found) > len(legal) / 3
    marks = torch.isin(torch.arange(tokenizer.layout.length), torch.cat([tokenizer.layout.columns(n) for n in ALL]))
    assert (tokens == batch.tokens)[:, ~marks].all() and (tokens == batch.tokens)[batch.given].all()
    for r, s in zip(
        tokenizer.decode(tokens), [{"text": "abc"}, {"picture": RECORDS[0]["picture"]}, {}] * 4, strict=True
    ):
        assert same({k: r[k] for k in s}, s) and r["actions"].shape == (4, 2)
        assert all(bool((x < MOST[k]).all()) for k, x in r.items() if k != "text" and x is not None)


def test_flat_and_packed_are_one_sequence():  # U7
    flat, packed = unified(packed=False), unified(packed=True)
    a, b = flat.encode(RECORDS), packed.encode(RECORDS)
    assert torch.equal(a.tokens, b.tokens) and len(b.lead) < len(a.lead) == flat.layout.length
    for one, other in ((flat, packed), (packed, flat)):
        for name, stacked in one.codes(a.tokens).items():
            assert all(torch.equal(x, y) for x, y in zip(stacked, other.codes(b.tokens)[name], strict=True))
        codes = one.codes(a.tokens)
        records = [
            {name: Codes(found.codes[i], found.mask[i]) for name, found in codes.items()} for i in range(len(RECORDS))
        ]
        assert torch.equal(other.encode(records).tokens, a.tokens)
    every = torch.arange(a.tokens.numel())
    source = b.source(every).view(a.tokens.shape)[0]
    assert torch.equal(source, packed.layout.tables().network) and torch.equal(
        source[b.lead], torch.arange(len(b.lead))
    )


def test_rows_are_each_other_s_strangers():  # U8
    tokenizer, order = unified(), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    records = [RECORDS[int(i)] for i in order]
    assert torch.equal(tokenizer.encode(records).tokens, tokenizer.encode(RECORDS).tokens[order])


# -- ends --------------------------------------------------------------------------------------------------------------


def test_content_ends_at_the_end_token():
    tokenizer = unified(("text", "sound"))
    tokens = tokenizer.encode([{"text": "abcdefgh", "sound": torch.arange(6)}]).tokens
    assert tokenizer.decode(tokens)[0]["text"] == "abcdefgh"  # full to the brim: no end token
    for name, level in (("text", 0), ("sound", 0), ("sound", 2)):
        cut, columns = tokens.clone(), tokenizer.layout.columns(name)
        depth = 3 if name == "sound" else 1
        cut[0, columns[2 * depth + level]] = tokenizer.vocab.special(tokenizer.template.part(name).end)
        for pad in (False, True):  # a sampler may close what is behind
            if pad:
                cut[0, columns[2 * depth + level + 1 :]] = tokenizer.vocab.pad
            assert len(tokenizer.decode(cut)[0][name]) == 2
            assert tokenizer.codes(cut)[name].mask[0].tolist()[:3] == [True, True, False]


def test_frames_are_whole():
    part = Part("actions", (3, 2), variable=True, axes="th")
    tokenizer = unified().using(Template((part,)))
    chunk = torch.tensor([[1, 2], [3, 4]])
    tokens = tokenizer.encode([{"actions": chunk}]).tokens
    assert torch.equal(tokenizer.decode(tokens)[0]["actions"], chunk)
    tokens[0, tokenizer.layout.columns("actions")[3]] = tokenizer.vocab.special("EOC_actions")
    assert torch.equal(tokenizer.decode(tokens)[0]["actions"], chunk[:1])


def test_a_sampler_closes_what_has_ended():
    tokenizer = unified(("text", "sound"))
    kernel = EarlyEnd(EarlyEnd(Ancestral(), "EOS"), "EOC_sound")
    batch = tokenizer.prompt([{}] * 40)
    tokens, _ = generate(model_for(tokenizer), batch, Sampler(kernel), seed=3)
    pad = tokens == tokenizer.vocab.pad
    assert pad.any() and tokenizer.codes(tokens)["sound"].mask.float().mean() < 1
    for name in ("text", "sound"):
        columns = tokenizer.layout.columns(name)
        end = tokens[:, columns] == tokenizer.vocab.special(tokenizer.template.part(name).end)
        assert torch.equal(pad[:, columns], (end.cumsum(1) > 0) & ~end)
    assert len(tokenizer.decode(tokens)) == 40
    one, _ = generate(model_for(tokenizer), batch, "ancestral", end="EOC_sound", steps=6)
    pad = one == tokenizer.vocab.pad
    assert pad[:, tokenizer.layout.columns("sound")].any() and not pad[:, tokenizer.layout.columns("text")].any()


# -- refusals ---------------------------------------------------------------------------------------------------------


def mend(**parts):
    return [RECORDS[0], {k: v for k, v in (RECORDS[1] | parts).items() if v is not ...}]


BAD = {
    "no records": lambda u: u.encode([]),
    "record 1 has no 'sound'": lambda u: u.encode(mend(sound=...)),
    "record 1 has \\['noise'\\], which no part takes": lambda u: u.encode(mend(noise=3)),
    "'text' of record 1 takes 9 slots, the template has 8: give the part more": lambda u: u.encode(mend(text="a" * 9)),
    "character 'z'": lambda u: u.encode(mend(text="abz")),
    "'text' of record 1 is a int": lambda u: u.encode(mend(text=3)),
    "'picture' is tokenized to a grid of \\(4, 4\\)": lambda u: u.encode(mend(picture=torch.zeros(4, 4).long())),
    "'sound' of record 1 takes 7 slots": lambda u: u.encode(mend(sound=torch.zeros(7).long())),
    "'picture' of record 1 takes 3 slots, .*: make the part variable": lambda u: u.encode(
        mend(picture=Codes(torch.zeros(3, 1).long()))
    ),
    "codes \\(2, 2\\): give int64 \\(slots, 3\\)": lambda u: u.encode(mend(sound=Codes(torch.zeros(2, 2).long()))),
    "codes of sound span 0..5": lambda u: u.encode(mend(sound=Codes(torch.full((2, 3), 5) * torch.tensor([0, 1, 1])))),
    "content comes first": lambda u: u.encode(mend(sound=Codes(torch.zeros(2, 3).long(), torch.tensor([False, True])))),
    "given has 3 rows for 2 records": lambda u: u.encode(mend(), given=[("text",)] * 3),
    "unknown part 'smell'": lambda u: u.encode(mend(), given=("smell",)),
    "record 0 has no 'text'": lambda u: u.using(Template((replace(PARTS["text"], noised=False),))).prompt([{}]),
    "tokens are torch.int64 \\(1, 3\\)": lambda u: u.decode(torch.zeros(1, 3).long()),
    "tokens are list": lambda u: u.codes([[1]]),
    "'picture' of row 0 is still masked": lambda u: u.decode(u.prompt([{"text": "a"}]).tokens),
    "leave the range of text": lambda u: u.decode(u.encode(mend()).tokens.flip(1)),
    "modality 'smell', which has no tokenizer": lambda u: u.using(Template((Part("smell", (3,)),))),
    "has 4 codes and depth 1, the vocabulary 9 and 1": lambda u: replace(
        u, tokenizers={**u.tokenizers, "picture": Digits(4)}
    ),
    "text tokenizer has 9 ids, the vocabulary 4": lambda u: UnifiedTokenizer.of(
        Template((PARTS["text"],)), text=u.text, vocab=VocabLayout(4)
    ),
    "references name \\['smell'\\]": lambda u: replace(u, references={"smell": Reference("x")}),
    "unknown special 'TASK_t2x'": lambda u: u.using(Template((PARTS["text"],), task="t2x")),
    "parts is \\[\\]": lambda u: Template(()),
    "parts is \\['a', 'a'\\]": lambda u: Template((Part("a", (1,)), Part("a", (2,)))),
    "grid is \\(2, 0\\)": lambda u: Part("a", (2, 0)),
    "name is 'a.begin'": lambda u: Part("a", (2,), "a.begin"),
    "modality is 'special'": lambda u: Part("special", (2,)),
    "source is ''": lambda u: Reference(""),
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](unified())


def test_symbols_the_text_tokenizer_does_not_know():
    backend = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer = UnifiedTokenizer.of(Template((Part("text", (1,)),)), text=words)
    assert tokenizer.decode(tokenizer.encode([{"text": "a"}]).tokens) == [{"text": "a"}]
    with pytest.raises(ValueError, match="'text' is 'b': the tokenizer knows not all"):
        tokenizer.encode([{"text": "b"}])


def test_text_that_says_what_is_no_text():
    words = characters(["abc "])
    ends, mask = words("c")["input_ids"][0], words("b")["input_ids"][0]
    vocab = VocabLayout(len(words) + 5, eos_id=ends, mask_id=mask)
    tokenizer = UnifiedTokenizer.of(Template((Part("text", (4,), variable=True),)), text=words, vocab=vocab)
    assert tokenizer.decode(tokenizer.encode([{"text": "a a"}]).tokens) == [{"text": "a a"}]
    with pytest.raises(ValueError, match="holds its end token"):
        tokenizer.encode([{"text": "ac"}])
    with pytest.raises(ValueError, match="holds the mask id"):
        tokenizer.encode([{"text": "ab"}])
    assert tokenizer.undecodable == tuple(range(len(words), len(words) + 5))
    tokens = tokenizer.encode([{"text": "aaaa"}]).tokens
    tokens[0, 2] = len(words) + 1
    with pytest.raises(ValueError, match="undecodable"):
        tokenizer.decode(tokens)
