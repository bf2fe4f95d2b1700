"""Rows of tokens: what make_batch and pack refuse, ids and symbols, and which hidden state predicts a position."""

import pytest
import torch
from table_toy import MIXED, network

from discdiff.denoisers import ModelDenoiser
from discdiff.kernels import Ancestral
from discdiff.layout import Layout, Modality, Segment, VocabLayout, dense_mask, make_batch, pack
from discdiff.noise import Noise
from discdiff.processes import Absorbing, Uniform
from discdiff.sampling import sample

VOCAB = VocabLayout(text_size=10, modalities=(Modality("image", 6), Modality("sound", 4, depth=2)), mask_id=3)
LAYOUT = Layout(
    VOCAB,
    (
        Segment("prompt", "text", (2,), noised=False),
        Segment("words", "text", (3,), extras=("EOS", "SEP")),
        Segment("picture", "image", (2, 1)),
        Segment("tune", "sound", (2,), extras=("EOC_sound",)),
    ),
)
TABLES, MASK = LAYOUT.tables(), VOCAB.mask
LEGAL = TABLES.first[None].clone()


def put(position, token):
    tokens = LEGAL.clone()
    tokens[0, position] = token
    return tokens


def test_the_alphabets():
    image, sound = VOCAB.range("image")[0], VOCAB.range("sound")[0]
    special = {n: VOCAB.special(n) for n in ("EOS", "SEP", "EOC_sound")}
    end = (special["EOC_sound"],)
    expected = ((0, 10, ()), (0, 10, (special["EOS"], special["SEP"])), (image, 6, ()), (sound, 4, end))
    assert LAYOUT.alphabets == (*expected, (sound + 4, 4, end)) and LAYOUT.drawn == (1, 2, 3, 4)
    assert TABLES.size.tolist() == [10, 10, 12, 12, 12, 6, 6, 5, 5, 5, 5] and LAYOUT.sizes == (5, 6, 10, 12)
    assert [LAYOUT.banned(i) for i in range(5)] == [3, 3, None, None, None]
    assert LAYOUT.pools == (0, 1, 2) and TABLES.pool.tolist() == [0] * 5 + [1] * 2 + [2] * 4


@pytest.mark.parametrize("position", range(2, LAYOUT.length))
def test_exactly_the_legal_ids_are_taken(position):
    first, count, extras = LAYOUT.alphabets[int(TABLES.alphabet[position])]
    legal = {*range(first, first + count), *extras, MASK}
    for token in range(-2, VOCAB.total + 2):
        if token in legal:
            make_batch(LAYOUT, put(position, token))
        else:
            name = LAYOUT.names[int(TABLES.segment[position])]
            with pytest.raises(ValueError, match=f"id {token} at row 0, position {position} .*{name}"):
                make_batch(LAYOUT, put(position, token))


def test_positions_that_do_not_move_hold_anything():
    image = VOCAB.range("image")[0]
    make_batch(LAYOUT, put(0, image))  # the prompt is not noised
    given = torch.zeros(1, LAYOUT.length, dtype=torch.bool)
    given[0, 3] = True
    make_batch(LAYOUT, put(3, VOCAB.total - 1), given=given)
    for position in (0, 3):
        for token in (-1, VOCAB.total):
            with pytest.raises(ValueError, match=f"id {token} at row 0"):
                make_batch(LAYOUT, put(position, token), given=given)
    make_batch(LAYOUT, put(3, -100), valid=~given)
    assert int(make_batch(LAYOUT, put(3, -5), check=False).tokens[0, 3]) == -5


def test_symbols_and_ids_are_inverse():
    widest = int(TABLES.size.max())
    symbols = torch.arange(widest + 1)[:, None].minimum(TABLES.size)  # every symbol of every position, the mask last
    batch = make_batch(LAYOUT, LEGAL.expand(widest + 1, -1))
    plain = symbols.where(symbols != MASK, 0).where(TABLES.first == 0, symbols)  # symbol 3 of text is the mask itself
    ids = batch.ids(plain)
    make_batch(LAYOUT, ids)
    assert torch.equal(batch.symbols(ids), plain)
    assert (ids[plain == TABLES.size] == MASK).all() and ids[10, 2:5].tolist() == [VOCAB.special("EOS")] * 3
    assert ids[4, 7:].tolist() == [VOCAB.special("EOC_sound")] * 4 and int(ids[3, 8]) == VOCAB.range("sound", 1)[0] + 3
    index = torch.arange(ids.numel()).flip(0)
    assert torch.equal(batch.symbols(ids.flatten()[index], index), plain.flatten()[index])
    assert torch.equal(batch.ids(plain.flatten()[index], index), ids.flatten()[index])
    alphabet, sites = batch.alphabet, batch.sites(index)
    assert torch.equal(sites.size, alphabet.size.flatten()[index]) and alphabet.names == LAYOUT.names
    assert torch.equal(sites.segment, alphabet.segment.flatten()[index])


@pytest.mark.parametrize("process", [Absorbing(), Uniform()], ids=repr)
def test_prior_draws_are_legal(process):
    where = Layout(VOCAB, LAYOUT.segments[2:])
    batch = make_batch(where, where.tables().first.expand(500, -1))
    drawn = batch.ids(process.prior(Noise.seeded(0, batch.valid).uniform(0), batch.alphabet))
    make_batch(where, drawn)
    if process == Uniform():
        assert len(drawn[:, 0].unique()) == 6 and len(drawn[:, 3].unique()) == 5


def flags(*where):
    out = torch.zeros(2, LAYOUT.length, dtype=torch.bool)
    for row, column in where:
        out[row, column] = True
    return out


TWO = LEGAL.repeat(2, 1)
REFUSED = {
    "tokens are torch.int32": lambda: make_batch(LAYOUT, TWO.int()),
    "tokens are torch.float32": lambda: make_batch(LAYOUT, TWO.float()),
    "tokens are list": lambda: make_batch(LAYOUT, TWO.tolist()),
    r"tokens are torch.int64 \(11,\)": lambda: make_batch(LAYOUT, TWO[0]),
    r"\(2, 10\), the layout wants \(batch >= 1, 11\)": lambda: make_batch(LAYOUT, TWO[:, :10]),
    r"\(0, 11\), the layout wants": lambda: make_batch(LAYOUT, TWO[:0]),
    "valid is torch.int64": lambda: make_batch(LAYOUT, TWO, valid=TWO),
    r"valid is torch.bool \(1, 11\)": lambda: make_batch(LAYOUT, TWO, valid=flags()[:1]),
    r"given is torch.bool \(3, 11\)": lambda: make_batch(LAYOUT, TWO, given=flags()[[0, 0, 0]]),
    "given is torch.float32": lambda: make_batch(LAYOUT, TWO, given=flags().float()),
    "sample is torch.int32": lambda: make_batch(LAYOUT, TWO, sample=TWO.int()),
    "slot is torch.float32": lambda: make_batch(LAYOUT, TWO, slot=TWO.float()),
    r"slot is torch.int64 \(2, 3\)": lambda: make_batch(LAYOUT, TWO, slot=TWO[:, :3]),
    "on meta": lambda: make_batch(LAYOUT, TWO, valid=flags().to("meta")),
    "slots reach from 1 to 11, the layout has 0..10": lambda: make_batch(
        LAYOUT, TWO, slot=torch.arange(1, 12) + 0 * TWO
    ),
    "slots reach from -1": lambda: make_batch(LAYOUT, TWO, slot=torch.arange(11) - 1 + 0 * TWO),
    "row 1 has no valid slot": lambda: make_batch(LAYOUT, TWO, valid=flags(*((0, i) for i in range(11)))),
    "feature 'f' has 3 rows for 2": lambda: make_batch(LAYOUT, TWO, features={"f": torch.zeros(3)}),
    "no samples": lambda: pack(LAYOUT, [], 8),
    r"sample 1 is torch.int64 \(0,\)": lambda: pack(LAYOUT, [LEGAL[0], LEGAL[0, :0]], 12),
    r"sample 0 is torch.int64 \(9,\): give int64 ids, 1..8": lambda: pack(LAYOUT, [LEGAL[0, :9]], 8),
    "1..11 of them": lambda: pack(LAYOUT, [torch.zeros(12, dtype=torch.int64)], 20),
    "sample 0 is torch.float32": lambda: pack(LAYOUT, [LEGAL[0].float()], 20),
    "packed depth put": lambda: pack(Layout(VOCAB, LAYOUT.segments, packed=True), [LEGAL[0]], 20),
    "slots in order": lambda: make_batch(Layout(VOCAB, LAYOUT.segments, packed=True), TWO, slot=TWO),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_free_positions():
    valid, given = ~flags((0, 4)), flags((0, 2), (1, 0))
    batch = make_batch(LAYOUT, TWO, valid=valid, given=given)
    assert batch.noisable[0].tolist() == [False] * 2 + [True] * 9
    assert batch.free.long().tolist() == [[0, 0, 0, 1, 0, *[1] * 6], [0, 0, *[1] * 9]]
    assert not batch.unrestricted and make_batch(LAYOUT, TWO).unrestricted
    assert torch.equal(batch.positions[1], TABLES.positions)


def test_rows_and_copies():
    tokens = torch.stack([LEGAL[0] + i for i in range(3)])
    batch = make_batch(LAYOUT, tokens, given=tokens % 2 == 0, features={"f": torch.arange(3.0)})
    chosen = batch.rows(torch.tensor([2, 0]))
    assert torch.equal(chosen.tokens, tokens[[2, 0]]) and chosen.features["f"].tolist() == [2, 0]
    assert torch.equal(chosen.given, (tokens % 2 == 0)[[2, 0]]) and chosen.slot.shape == (2, 11)
    twice = chosen.repeat(2)
    assert torch.equal(twice.tokens, tokens[[2, 2, 0, 0]]) and twice.features["f"].tolist() == [2, 2, 0, 0]
    moved = batch.to("meta")
    assert all(getattr(moved, name).is_meta for name in batch._fields[1:6]) and moved.features["f"].is_meta


def test_rows_that_all_have_the_same_slots_say_what_each_row_alone_says():
    shared = make_batch(LAYOUT, TWO)
    each = shared._replace(unrestricted=False)
    sites = torch.tensor([3, LAYOUT.length + 1, 2 * LAYOUT.length - 1, 0])
    for batch, other in ((shared, each), (shared.rows(torch.tensor([1])), each.rows(torch.tensor([1])))):
        for name in ("noisable", "free", "positions"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
        assert torch.equal(batch.symbols(batch.tokens), other.symbols(other.tokens))
        assert torch.equal(batch.ids(batch.symbols(batch.tokens)), batch.tokens)
        assert all(torch.equal(mine, its) for mine, its in zip(batch.alphabet[:2], other.alphabet[:2]))
    flat = TWO.reshape(-1)[sites]
    assert torch.equal(shared.symbols(flat, sites), each.symbols(flat, sites))
    assert torch.equal(shared.source(sites, shift=True), each.source(sites, shift=True))
    assert all(torch.equal(mine, its) for mine, its in zip(shared.sites(sites)[:2], each.sites(sites)[:2]))
    none = shared.rows(torch.tensor([], dtype=torch.long))
    assert none.free.shape == none.symbols(none.tokens).shape == (0, LAYOUT.length)


def test_pack_is_first_fit():
    words = Layout(VocabLayout(50), (Segment("words", "text", (6,)),))
    samples = [torch.arange(10 * i, 10 * i + n) for i, n in enumerate((5, 4, 2, 4, 3))]
    batch = pack(words, samples, 8)  # rooms 8: (5 + 2), (4 + 4), (3)
    pad = words.vocab.pad
    assert batch.tokens.tolist() == [
        [0, 1, 2, 3, 4, 20, 21, pad], [10, 11, 12, 13, 30, 31, 32, 33], [40, 41, 42, *[pad] * 5],
    ]  # fmt: skip
    assert batch.slot.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 3] * 2, [0, 1, 2, *[0] * 5]]
    assert batch.sample.tolist() == [[0] * 5 + [1] * 2 + [-1], [0] * 4 + [1] * 4, [0] * 3 + [-1] * 5]
    assert torch.equal(batch.valid, batch.sample >= 0) and torch.equal(batch.free, batch.valid)
    mask = dense_mask(batch)[:, 0]
    apart = batch.sample[:, :, None] != batch.sample[:, None, :]
    assert not mask[apart].any() and mask[0, :5, :5].all() and mask[0, 5:7, 5:7].all()


def test_the_slot_that_predicts():
    every = torch.arange(2 * LAYOUT.length)
    batch = make_batch(LAYOUT, TWO)
    assert torch.equal(batch.source(every), every)
    assert torch.equal(batch.source(every, shift=True), torch.tensor([0, *range(10), 11, *range(11, 21)]))
    dense = make_batch(Layout(VOCAB, LAYOUT.segments, packed=True), TWO)
    slots = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8])
    assert torch.equal(dense.source(every), torch.cat([slots, slots + 9]))
    before = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 6, 7, 7])
    assert torch.equal(dense.source(every, shift=True), torch.cat([before, before + 9]))


def test_a_sample_is_never_predicted_from_its_neighbour():
    words = Layout(VocabLayout(50), (Segment("words", "text", (6,)),))
    packed = pack(words, [torch.arange(n) for n in (4, 3, 2)], 7)
    assert packed.source(torch.arange(14), shift=True).tolist()[:9] == [0, 0, 1, 2, 4, 4, 5, 7, 7]
    slot = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5]])
    left = make_batch(words, slot, valid=torch.arange(8)[None] >= 2, slot=slot)  # two absent slots in front
    assert left.source(torch.arange(8), shift=True).tolist()[2:] == [2, 2, 3, 4, 5, 6]


def test_a_mask_among_the_text_is_never_drawn():
    model = network(MIXED.vocab)
    with torch.no_grad():  # the network likes the mask best, nine times out of ten
        model.head.weight[MIXED.vocab.mask] = 3 * model.head.weight[:12].sum(0)
    blank = make_batch(MIXED, torch.full((200, MIXED.length), MIXED.vocab.mask))
    logits = model(batch=blank).hidden[:, 2:6] @ model.head.weight[:12].T
    assert float((logits.argmax(-1) == MIXED.vocab.mask).double().mean()) > 0.3
    state, _ = sample(ModelDenoiser(model), Ancestral(), blank, 5, seed=0)
    words = state.tokens[:, 2:6]
    assert (state.tokens[:, 2:] != MIXED.vocab.mask).all() and len(words.unique()) == 12  # eleven words and the end
    make_batch(MIXED, state.tokens)
