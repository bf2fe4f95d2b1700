"""A model whose configuration says that it predicts the next slot: caches feed the slots that are read, and no others."""

import copy

import torch

from discdiff import Blocks, Commit, ModelDenoiser
from discdiff.denoisers.caches import BlockCached
from discdiff.scores import LeftToRight
from tests.test_caches import MODEL, pair, rows


def test_the_word_of_the_model_is_enough():
    said = copy.deepcopy(MODEL)
    said.config.shift = True
    assert ModelDenoiser(said).shift and not ModelDenoiser(MODEL).shift
    found = [
        pair(BlockCached, Commit(LeftToRight()), rows("causal"), 16, model, shift=shift, clock=Blocks(1))
        for model, shift in ((said, False), (MODEL, True))
    ]
    (plain, cached, slow, fast), (_, same, _, told) = found
    assert torch.equal(plain, cached) and torch.equal(cached, same)
    assert fast.fed == told.fed == 5 * (4 + 11) < slow.fed  # the prompt and every token once
