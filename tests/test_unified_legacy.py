"""Ids of published models and ours: exact inverses on every id, and the meanings that their papers' code gives them."""

import pytest
import torch

from discdiff.layout import Modality
from discdiff.unified import LEGACY, LegacyMap, emu3_fast, mmada, openvla, showo
from discdiff.unified.legacy import Run

MAPS = {name: make() for name, make in LEGACY.items()} | {
    "small": openvla(40, 7),
    "centres": openvla(bins=255),
    "fast2048": emu3_fast(2048),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_id_comes_back(name):
    legacy = MAPS[name]
    ids = torch.arange(legacy.size)
    ours = legacy.to_ours(ids)
    assert torch.equal(legacy.to_theirs(ours), ids) and len(ours.unique()) == legacy.size
    assert int(ours.min()) >= 0 and int(ours.max()) < legacy.vocab.total
    both = ours
    if legacy.actions:
        run = legacy.actions[0]
        theirs = torch.arange(run.theirs - run.count + 1, run.theirs + 1)
        actions = legacy.to_ours(theirs, action=True)
        assert torch.equal(legacy.to_theirs(actions), theirs)
        first, size = legacy.vocab.range("action")
        assert sorted(actions.tolist()) == list(range(first, first + size))  # every code has one
        both = torch.cat([ours, actions])
        for outside in (run.theirs + 1, run.theirs - run.count):
            with pytest.raises(ValueError, match=f"id {outside} of theirs"):
                legacy.to_ours(torch.tensor([outside]), action=True)
    else:
        with pytest.raises(ValueError, match="of theirs"):
            legacy.to_ours(ids, action=True)
    others = torch.ones(legacy.vocab.total, dtype=torch.bool)
    others[both] = False
    for unknown in (int(others.nonzero()[0]), legacy.vocab.total, -1):
        with pytest.raises(ValueError, match=f"id {unknown} of ours"):
            legacy.to_theirs(torch.tensor(unknown))
    for unknown in (legacy.size, -1):
        with pytest.raises(ValueError, match=f"id {unknown} of theirs"):
            legacy.to_ours(torch.tensor([[0, unknown]]))


@pytest.mark.parametrize("name", LEGACY)
def test_codes_are_the_modality_s_in_order(name):
    legacy = MAPS[name]
    kinds = {m.name for m in legacy.vocab.modalities}
    if "image" in kinds:
        codes = torch.arange(legacy.vocab.modality("image").codebook)[:, None]
        start = {"emu3_fast": 151854, "mmada": 126464, "showo": 50305}[name]
        assert torch.equal(legacy.to_ours(codes + start), legacy.vocab.to_global(codes, "image"))
    if "action" in kinds:
        codes = torch.arange(legacy.vocab.modality("action").codebook)[:, None]
        last = {"openvla": 31999, "emu3_fast": 151642}[name]
        assert torch.equal(legacy.to_ours(last - codes, True), legacy.vocab.to_global(codes, "action"))


SPECIALS = {
    "openvla": {1: "BOS", 2: "EOS", 32000: "PAD"},
    "emu3_fast": {
        151643: "PAD", 151844: "BOM_action", 151845: "EOC_action", 151848: "MASK", 151849: "BOS", 151850: "EOS",
        151852: "BOM_image", 151853: "EOM_image",
    },
    "mmada": {
        126336: "MASK", 126080: "BOS", 126081: "EOS", 126084: "BOM_image", 126085: "EOM_image", 126088: "TASK_t2i",
        126089: "TASK_i2t",
    },
    "showo": {
        50256: "EOS", 50295: "PAD", 50296: "BOM_image", 50297: "EOM_image", 50300: "TASK_t2i", 50301: "TASK_i2t",
        58497: "MASK",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIALS)
def test_specials_mean_the_same(name):
    legacy = MAPS[name]
    for theirs, special in SPECIALS[name].items():
        ours = legacy.vocab.mask if special == "MASK" else legacy.vocab.special(special)
        assert int(legacy.to_ours(torch.tensor(theirs))) == ours and int(legacy.to_theirs(torch.tensor(ours))) == theirs
    named = {theirs for theirs in SPECIALS[name] if theirs < legacy.vocab.text_size}
    moved = [i for i in range(legacy.vocab.text_size) if i not in named]
    text = torch.tensor(moved)
    assert torch.equal(legacy.to_ours(text), text)  # text ids never move


def test_openvla_s_bins():
    """edges = linspace(-1, 1, 256), id = 32000 - digitize(a): bin i from below is our code i."""
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    actions = torch.linspace(-1, 1, 5001, dtype=torch.float64)
    theirs = 32000 - torch.bucketize(actions, edges, right=True)
    codes = MAPS["openvla"].vocab.to_local(MAPS["openvla"].to_ours(theirs, action=True)[:, None], "action")[:, 0]
    assert int(codes[0]) == 0 and int(codes[-1]) == 255 and bool((codes.diff() >= 0).all())
    centres = (edges[1:] + edges[:-1]) / 2
    assert (centres[codes.clamp(max=254)] - actions).abs().max() <= 1 / 255 + 1e-12


def test_mixed_rows():
    legacy = MAPS["openvla"]
    theirs = torch.tensor([[1, 500, 31999, 31999, 31744]])
    action = torch.tensor([[False, False, False, True, True]])
    ours = legacy.to_ours(theirs, action)
    assert ours[0, 2] == 31999 and ours[0, 3] == legacy.vocab.range("action")[0] == ours[0, 4] - 255
    assert torch.equal(legacy.to_theirs(ours), theirs)


def test_another_modality_moves_nothing():
    legacy = showo()
    wider = legacy.vocab.extend(Modality("sound", 50, 2))
    again = LegacyMap(wider, legacy.size, legacy.runs)
    ids = torch.arange(legacy.size)
    assert torch.equal(again.to_ours(ids), legacy.to_ours(ids))


def test_mmada_s_other_offset():
    """Code that adds len(tokenizer) to codes while the configuration says llm_vocab_size."""
    legacy = mmada(126349)
    assert int(legacy.to_ours(torch.tensor(126349))) == legacy.vocab.range("image")[0] != legacy.size
    with pytest.raises(ValueError, match="text_size is 100"):
        mmada(100)


def test_impossible_maps():
    with pytest.raises(ValueError, match="no inverse"):
        LegacyMap(showo().vocab, 10, (Run(0, 0, 5), Run(5, 4, 5)))
    with pytest.raises(ValueError, match="bins is 0"):
        openvla(bins=0)
    with pytest.raises(ValueError, match="fast is 0"):
        emu3_fast(0)
