"""The vocabulary, segments and positions of a layout, and who may see whom."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from discdiff.config import from_dict, to_dict
from discdiff.layout import ATTENTION, LAYOUTS, Layout, Modality, Segment, VocabLayout, dense_mask, make_batch, pack

VOCAB = VocabLayout(
    text_size=11,
    modalities=(
        Modality("image", 9),
        Modality("video", 6),
        Modality("sound", 7, depth=3),
        Modality("tied", 5, depth=4, shared=True),
        Modality("action", 8),
    ),
)
KINDS = (("text", 1), *((m.name, m.depth) for m in VOCAB.modalities))


def layout(*segments, attention="full", vocab=VOCAB, **more):
    return Layout(vocab, tuple(Segment(*s) if isinstance(s, tuple) else s for s in segments), attention, **more)


# -- vocabulary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, depth", KINDS)
def test_global_and_local_ids_are_inverse(name, depth):  # U3
    sizes = [VOCAB.range(name, j)[1] for j in range(depth)]
    codes = torch.stack([torch.arange(size) for size in sizes], -1)
    ids = VOCAB.to_global(codes, name)
    assert torch.equal(VOCAB.to_local(ids, name), codes)
    assert ids.min(0).values.tolist() == [VOCAB.range(name, j)[0] for j in range(depth)]
    for step, part in ((-1, codes), (1, codes)):
        with pytest.raises(ValueError, match=name):
            VOCAB.to_global(part + step, name)
        with pytest.raises(ValueError, match=name):
            VOCAB.to_local(VOCAB.to_global(part, name) + step, name)
    if depth > 1:
        for convert in (VOCAB.to_global, VOCAB.to_local):
            with pytest.raises(ValueError, match=f"depth {depth}"):
                convert(codes[:, :-1], name)
    with pytest.raises(ValueError, match=f"level {depth} does not exist"):
        VOCAB.range(name, depth)


def test_ranges_are_disjoint_and_cover():  # U3
    levels = [(name, j) for name, depth in KINDS for j in range(1 if name == "tied" else depth)]
    ranges = sorted([*(VOCAB.range(*level) for level in levels), (11, 256)])
    ends = [first + size for first, size in ranges]
    assert [first for first, _ in ranges] == [0, *ends[:-1]]
    assert ends[-1] == 11 + 256 + 9 + 6 + 21 + 5 + 8 and VOCAB.total == 384  # the next multiple of 128
    assert {VOCAB.range("tied", j) for j in range(4)} == {VOCAB.range("tied")}
    assert VocabLayout(128).total == 384 and VocabLayout(129, multiple=1).total == 385


def test_specials_have_ids_of_their_own():
    kinds = [f"{kind}_{m.name}" for m in VOCAB.modalities for kind in ("BOM", "EOM", "EOC")]
    tasks = [f"TASK_{t}" for t in ("t2i", "i2t", "t2m", "m2t", "t2a", "a2t", "vla", "world", "edit", "joint")]
    ids = [VOCAB.special(n) for n in ("PAD", "BOS", "EOS", "MASK", "NULL", "NONE_Q", "SEP", *tasks, *kinds)]
    assert len(set(ids)) == len(ids) and all(11 <= i < 11 + 256 for i in ids)
    assert VOCAB.mask == VOCAB.special("MASK") and VOCAB.pad == VOCAB.special("PAD")
    for name in ("EOM", "EOM_smell", "mask", "TASK_"):
        with pytest.raises(ValueError, match=f"unknown special '{name}'.*EOC_action"):
            VOCAB.special(name)


def test_extend_moves_no_id():
    wider = VOCAB.extend(Modality("graph", 40, depth=2))
    for name, depth in KINDS:
        assert [wider.range(name, j) for j in range(depth)] == [VOCAB.range(name, j) for j in range(depth)]
    for name in ("PAD", "MASK", "TASK_joint", "EOC_image", "BOM_action"):
        assert wider.special(name) == VOCAB.special(name)
    assert wider.range("graph", 1) == (11 + 256 + 49 + 40, 40) and wider.total == 512
    with pytest.raises(ValueError, match="repeat"):
        wider.extend(Modality("image", 3))


def test_saving_and_loading():
    vocab = VocabLayout(11, (Modality("sound", 7, 3), Modality("tied", 5, 4, True)), mask_id=4, multiple=64)
    assert VocabLayout.from_json(vocab.to_json()) == vocab == VocabLayout.from_json(json.loads(vocab.to_json()))
    where = layout(Segment("a", "text", (3,), False, True, ("EOS",)), ("b", "sound", (2,)), vocab=vocab, packed=True)
    blocks = layout(("a", "text", (4,)), ("b", "image", (2, 2))).doubled(2)
    for each in (where, blocks):
        loaded = from_dict(json.loads(json.dumps(to_dict(each))), LAYOUTS)
        assert loaded == each and hash(loaded) == hash(each)
    wrong = {**json.loads(vocab.to_json()), "text_sise": 3}
    with pytest.raises(ValueError, match="text_sise.*text_size"):
        VocabLayout.from_json(wrong)
    for broken in ('{"modalities": [{"name": "a"}]}', '{"text_size": "many"}', '{"modalities": 3}', "[1", "3"):
        with pytest.raises(ValueError):
            VocabLayout.from_json(broken)


IMPOSSIBLE = {
    "text_size -1": lambda: VocabLayout(-1),
    "multiple 0": lambda: VocabLayout(3, multiple=0),
    "repeat a name": lambda: VocabLayout(3, (Modality("a", 2), Modality("a", 3))),
    "75 modalities": lambda: VocabLayout(3, tuple(Modality(f"m{i}", 2) for i in range(75))),
    "mask_id 259 is neither": lambda: VocabLayout(3, (Modality("a", 5),), mask_id=3 + 256),
    "mask_id -1 is neither": lambda: VocabLayout(3, mask_id=-1),
    "mask_id 3 is the special PAD": lambda: VocabLayout(3, mask_id=3),
    "'text' is empty or reserved": lambda: Modality("text", 4),
    "'special' is empty or reserved": lambda: Modality("special", 4),
    "'' is empty or reserved": lambda: Modality("", 4),
    "codebook 0": lambda: Modality("a", 0),
    "depth 0": lambda: Modality("a", 3, 0),
    "has no text ids": lambda: layout(("x", "text", (3,)), vocab=VocabLayout(0)),
    "unknown modality 'smell'": lambda: layout(("x", "smell", (3,))),
    "at least one, each": lambda: layout(),
    "with a name of its own": lambda: layout(("x", "text", (3,)), ("x", "image", (3,))),
    "unknown attention 'all'": lambda: layout(("x", "text", (3,)), attention="all"),
    "shape \\(\\) needs": lambda: Segment("x", "text", ()),
    "shape \\(3, 0\\) needs": lambda: Segment("x", "image", (3, 0)),
    "axes 'h'": lambda: Segment("x", "image", (3, 2), axes="h"),
    "axes 'hh'": lambda: Segment("x", "image", (3, 2), axes="hh"),
    "axes 'xy'": lambda: Segment("x", "image", (3, 2), axes="xy"),
    "axes 'sh'": lambda: Segment("x", "image", (3, 2), axes="sh"),
    "do not name the 4 axes": lambda: Segment("x", "video", (2, 2, 2, 2)),
    "never noised": lambda: Segment("x", "special", (1,)),
    "repeat a name: an id": lambda: Segment("x", "text", (2,), extras=("EOS", "EOS")),
    "unknown special 'EOC_text'": lambda: layout(Segment("x", "text", (2,), extras=("EOC_text",))),
    "extra MASK is the mask id": lambda: layout(Segment("x", "text", (2,), extras=("MASK",))),
    "block=0: a block size": lambda: layout(("x", "text", (4,)), attention="block_causal"),
    "'full' with block=2": lambda: layout(("x", "text", (4,)), block=2),
    "block 3 must divide": lambda: layout(("x", "text", (4,)), attention="block_causal", block=3),
    "must divide the 4 positions behind what is told": lambda: layout(
        ("x", "text", (2,), False), ("y", "text", (4,)), attention="told_block_causal", block=3
    ),
    "with packed=False": lambda: layout(("x", "sound", (4,)), attention="block_causal", block=3, packed=True),
    "is_doubled with attention 'full'": lambda: layout(("x", "text", (4,)), is_doubled=True),
    "block 5 must divide": lambda: layout(("x", "text", (4,))).doubled(5),
    "unknown segment 'y'": lambda: layout(("x", "text", (4,))).columns("y"),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_settings(message):
    with pytest.raises(ValueError, match=message):
        IMPOSSIBLE[message]()


# -- positions ----------------------------------------------------------------------------------------------------------


def test_positions_of_every_kind():  # section 9.2
    where = layout(
        Segment("tag", "special", (1,), noised=False), ("words", "text", (2,)), ("picture", "image", (2, 3)),
        ("film", "video", (2, 1, 2)), ("tune", "sound", (2,)), Segment("moves", "action", (3, 2), axes="th"),
    )  # fmt: skip
    seq, t, h, w, q = where.tables().positions.T.tolist()
    assert (seq[0], t[0], h[0], w[0]) == (0, 0, 0, 0)
    assert seq[1:3] == t[1:3] == h[1:3] == w[1:3] == [1, 2]  # text turns all axes
    picture = slice(3, 9)
    assert seq[picture] == [3, 4, 5, 6, 7, 8] and t[picture] == [3] * 6
    assert h[picture] == [3, 3, 3, 4, 4, 4] and w[picture] == [3, 4, 5] * 2
    film = slice(9, 13)  # starts at the largest coordinate before it, 5, plus 1
    assert t[film] == [6, 6, 7, 7] and h[film] == [6] * 4 and w[film] == [6, 7, 6, 7]
    tune = slice(13, 19)
    assert t[tune] == [8, 8, 8, 9, 9, 9] and h[tune] == w[tune] == [8] * 6 and q[tune] == [0, 1, 2] * 2
    moves = slice(19, 25)
    assert t[moves] == [10, 10, 11, 11, 12, 12] and h[moves] == [10, 11] * 3 and w[moves] == [10] * 6
    assert q[:13] == [0] * 13 and where.length == 25
    assert where.columns("tune").tolist() == list(range(13, 19)) and where.prefix == 1


def test_packed_depths_are_a_reshape():  # U7
    flat = layout(("words", "text", (2,)), ("tune", "sound", (4,)))
    packed = replace(flat, packed=True)
    tables, dense = flat.tables(), packed.tables()
    for name in ("segment", "alphabet", "pool", "noised", "depth", "positions", "first", "size"):
        assert torch.equal(getattr(tables, name), getattr(dense, name)), name
    assert tables.network.tolist() == list(range(14)) == tables.lead.tolist()
    assert dense.network.tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5] and dense.lead.tolist() == [
        0, 1, 2, 5, 8, 11,
    ]  # fmt: skip
    codes = torch.randint(7, (3, 4, 3), generator=torch.Generator().manual_seed(0))
    ids = VOCAB.to_global(codes, "sound").flatten(1)  # depth fastest
    assert torch.equal(VOCAB.to_local(ids.view(3, 4, 3), "sound"), codes)
    tokens = torch.cat([torch.zeros(3, 2, dtype=torch.int64), ids], 1)
    for each in (flat, packed):
        assert torch.equal(make_batch(each, tokens).symbols(tokens)[:, 2:].view(3, 4, 3), codes)
        assert each.columns("tune").view(4, 3)[:, 0].tolist() == [2, 5, 8, 11]


# -- attention ----------------------------------------------------------------------------------------------------------

SMALL = (
    Segment("prompt", "text", (2,), noised=False),
    Segment("film", "video", (2, 1, 2)),
    Segment("answer", "text", (2,)),
)
EXPECTED = {  # rows ask, columns answer: prompt 2, film 2 frames x 2, answer 2
    "full": ["11111111"] * 8,
    "causal": ["10000000", "11000000", "11100000", "11110000", "11111000", "11111100", "11111110", "11111111"],
    "prefix": ["11000000"] * 2 + ["11111111"] * 6,
    "hybrid": ["10000000", "11000000"] + ["11111100"] * 4 + ["11111110", "11111111"],
    "omni": ["10000000", "11000000"] + ["11111100"] * 4 + ["11111110", "11111111"],
    "frame_causal": ["11000000"] * 2 + ["11110000"] * 2 + ["11111100"] * 2 + ["11111111"] * 2,
    "isolated": ["11000011"] * 2 + ["11111111"] * 4 + ["11000011"] * 2,
    "block_causal": ["11110000"] * 4 + ["11111111"] * 4,
    "told_block_causal": ["11000000"] * 2 + ["11111000"] * 3 + ["11111111"] * 3,  # blocks of 3 behind the prompt
}
CACHEABLE = ("causal", "prefix", "hybrid", "omni", "frame_causal", "told_block_causal")
BLOCK = {"block_causal": 4, "told_block_causal": 3}


def matrix(rows):
    return torch.tensor([[c == "1" for c in row] for row in rows])


def visible(where):
    mask = dense_mask(make_batch(where, where.tables().first[None]))
    return torch.ones(where.length, where.length, dtype=torch.bool) if mask is None else mask[0, 0]


@pytest.mark.parametrize("attention", ATTENTION)
def test_presets(attention):
    where = layout(*SMALL, attention=attention, block=BLOCK.get(attention, 0))
    assert torch.equal(visible(where), matrix(EXPECTED[attention]))
    assert where.prefix_cacheable() == (attention in CACHEABLE)
    assert where.open == (attention == "full")


def test_causal_segments_and_prefixes():
    left_to_right = replace(SMALL[2], causal=True)
    expected = matrix(EXPECTED["prefix"])
    expected[6, 7] = False
    where = layout(*SMALL[:2], left_to_right, attention="prefix")
    assert torch.equal(visible(where), expected) and not where.open
    cut = layout(("x", "text", (2,), False), ("y", "text", (6,)), attention="block_causal", block=2)
    assert cut.prefix_cacheable() and not replace(cut, block=4).prefix_cacheable()  # 4: block 0 holds some of both
    behind = replace(cut, attention="told_block_causal", block=3)
    assert behind.prefix_cacheable() and (cut.origin, behind.origin) == (0, 2)
    twice = visible(behind.doubled(3))  # a noised block sees itself and, clean, what is told and the blocks before it
    assert twice[5].nonzero()[:, 0].tolist() == list(range(5, 13))
    assert not layout(("x", "text", (2,)), ("y", "text", (6,), False), attention="causal").prefix_cacheable()
    assert layout(("x", "text", (2,), False), ("y", "text", (6,), False), attention="full").prefix == 8


def test_doubled():
    where = layout(("x", "text", (2,)), ("y", "image", (4,))).doubled(2)
    own, past = torch.eye(3).bool(), torch.ones(3, 3).tril(-1).bool()
    blocks = torch.cat([torch.cat([own, past], 1), torch.cat([torch.zeros(3, 3).bool(), own | past], 1)])
    assert torch.equal(visible(where), blocks.repeat_interleave(2, 0).repeat_interleave(2, 1))
    tables = where.tables()
    assert where.sequence == 6 and where.length == 12 and tables.network.tolist() == list(range(12))
    assert tables.noised.tolist() == [True] * 6 + [False] * 6
    for name in ("positions", "first", "size", "segment", "alphabet"):
        once, twice = getattr(tables, name).chunk(2)
        assert torch.equal(once, twice), name
    assert where.columns("y").tolist() == [2, 3, 4, 5]


def rule_by_hand(batch, attention):
    """Who sees whom, from the definitions in words, one pair at a time; spans are segments, frames for frame_causal."""
    where, tables = batch.layout, batch.layout.tables()
    rows, length = batch.tokens.shape
    out = torch.zeros(rows, length, length, dtype=torch.bool)
    for b, q, k in itertools.product(range(rows), range(length), range(length)):
        slots = [int(batch.slot[b, i]) for i in (q, k)]
        (at, other), (mine, theirs) = slots, (where.segments[int(tables.segment[s])] for s in slots)
        order = [where.segments.index(s) for s in (mine, theirs)]
        frames = [tables.positions[s, 1] if x.axes[0] == "t" else 0 for s, x in zip(slots, (mine, theirs))]
        text = [s.modality == "text" for s in (mine, theirs)]
        earlier, same = order[1] < order[0], order[0] == order[1]
        sees = {
            "full": True,
            "causal": other <= at,
            "prefix": mine.noised or not theirs.noised,
            "hybrid": earlier or (same and (not text[0] or other <= at)),
            "frame_causal": earlier or (same and frames[1] <= frames[0]),
            "isolated": same or text[1],
        }[attention]
        there = batch.valid[b, k] and batch.sample[b, q] == batch.sample[b, k]
        out[b, q, k] = (sees and there) or q == k
    return out


@pytest.mark.parametrize("attention", ["full", "causal", "prefix", "hybrid", "frame_causal", "isolated"])
def test_the_mask_of_padded_and_packed_rows(attention):
    where, draw = layout(*SMALL, attention=attention), torch.Generator().manual_seed(0)
    tokens = where.tables().first.expand(3, -1)
    padded = make_batch(where, tokens, valid=torch.rand(3, 8, generator=draw) < 0.7)
    packed = pack(where, [where.tables().first[:n] for n in (7, 3, 8, 2, 1)], 12)
    for batch in (padded, packed):
        assert torch.equal(dense_mask(batch)[:, 0], rule_by_hand(batch, attention))


def test_begin_and_end_may_be_text_ids():
    vocab = VocabLayout(10, mask_id=9, bos_id=7, eos_id=8)
    assert (vocab.special("BOS"), vocab.special("EOS"), vocab.mask) == (7, 8, 9)
    assert VocabLayout.from_json(vocab.to_json()) == vocab
    assert vocab.extend(Modality("image", 4)).special("EOS") == 8
    layout = Layout(
        vocab, (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (3,), extras=("EOS",)))
    )
    assert layout.alphabets[1] == (0, 10, ())  # already legal as a text id: one symbol, not two
    batch = make_batch(layout, torch.tensor([[7, 1, 8, 9]]))
    assert batch.ids(batch.symbols(batch.tokens)).tolist() == [[7, 1, 8, 9]]
    for wrong in ({"eos_id": 10}, {"bos_id": 9}, {"eos_id": -1}):
        with pytest.raises(ValueError, match="must be a text id"):
            VocabLayout(10, mask_id=9, **wrong)
