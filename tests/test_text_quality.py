"""Entropies, distinct n-grams, and the n-gram model against the formula written out and known figures."""

import collections
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from discdiff import metrics
from tasks.text import tokenizer
from tasks.text.quality import NGram, unigram_entropy
from tasks.text.sources import iter_documents


def test_entropies_of_a_corpus_and_of_samples():
    assert unigram_entropy(np.array([[1, 2], [3, 4]])) == pytest.approx(math.log(4))
    assert metrics.unigram_entropy(torch.tensor([[1, 2], [3, 3]])) == pytest.approx(math.log(2) / 2)
    with pytest.raises(ValueError, match="no entropy"):
        unigram_entropy(np.zeros(0, int))


def test_distinct_n_grams_of_samples():
    samples = torch.tensor([[1, 1, 1], [1, 1, 2]])
    assert [metrics.distinct(samples, n) for n in (1, 2, 3)] == [2 / 6, 2 / 4, 1]
    with pytest.raises(ValueError, match="4-grams of rows of length 3"):
        metrics.distinct(samples, 4)


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
    folder = Path(os.environ.get("DISCDIFF_DATA", Path(__file__).parents[2] / "shared" / "data")) / "tinyshakespeare"
    if not (folder / "train.txt").is_file():
        pytest.skip("no tinyshakespeare under DISCDIFF_DATA")
    texts = [next(iter_documents(str(folder / f"{part}.txt"))) for part in ("train", "valid")]
    train, valid = tokenizer.encoder(tokenizer.characters(texts))(texts)
    bits = [NGram(order).fit([train]).nats([valid]).per_token / math.log(2) for order in (1, 6)]
    assert bits == pytest.approx([4.829, 2.450], abs=5e-4)
