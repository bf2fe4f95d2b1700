"""What a text model has to beat: the entropy of the token frequencies, and an n-gram model.

Rows are a (batch, length) array or a list of one-dimensional arrays, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Rows = np.ndarray | Sequence[np.ndarray]


def unigram_entropy(tokens: np.ndarray) -> float:
    """Entropy -sum_v p_v log p_v in nats of the token frequencies p of a corpus, of any shape. ValueError if it is empty.

    `discdiff.metrics.unigram_entropy` is that of samples, within each row.
    """
    if not tokens.size:
        raise ValueError("no tokens have no entropy: give at least one")
    p = np.unique(tokens, return_counts=True)[1] / tokens.size
    return float(-(p * np.log(p)).sum())


class Nats(NamedTuple):
    """Mean negative log-likelihood in nats: per token and per row."""

    per_token: float
    per_row: float


class NGram:
    """Interpolated n-gram model with Witten-Bell smoothing; `order` 6 conditions on the 5 tokens before.

        p_k(w | h) = (c(h w) + t(h) p_{k-1}(w | h')) / (c(h) + t(h)),    p_{-1} = 1 / vocab_size

    h: the last k tokens, h' without its oldest; c: counts; t(h): distinct tokens seen after h. Where h was not seen, p_k is
    p_{k-1}. A row starts after `order - 1` begin symbols, so the model knows the start of a row; it learns an end only from
    an end token in the rows. Witten and Bell 1991, method C; Chen and Goodman 1998, section 2.4.
    """

    def __init__(self, order: int, vocab_size: int | None = None) -> None:
        if order < 1:
            raise ValueError(f"order {order} must be at least 1, the unigram")
        self.order, self.vocab_size = order, vocab_size
        self.levels: list[_Level] = []

    def fit(self, rows: Rows) -> "NGram":
        """Counts the rows; `vocab_size`, where it was not given, becomes the largest id + 1. Returns itself.

        Raises ValueError for rows without tokens and ids outside the vocabulary.
        """
        stream, places = self._stream(rows)
        words = stream[places]
        context = np.zeros(len(words), np.int64)
        self.levels = []
        for k in range(self.order):
            if k:
                keys, context = np.unique(self._extend(context, stream[places - k]), return_inverse=True)
            else:
                keys = np.zeros(1, np.int64)
            self.levels.append(_Level.count(keys, context, words, self._size))
        return self

    def nats(self, rows: Rows) -> Nats:
        """Mean negative log-likelihood of `rows`. Raises ValueError before `fit`, and as `fit` does."""
        self._fitted()
        stream, places = self._stream(rows)
        p = np.full(len(places), 1 / self._size)
        context = np.zeros(len(places), np.int64)
        for k, level in enumerate(self.levels):
            if k:
                context = level.find(self._extend(context, stream[places - k]), context >= 0)
            seen = context >= 0
            h = context[seen]
            count = level.gram_count(h * self._size + stream[places][seen])
            p[seen] = (count + level.kinds[h] * p[seen]) / (level.counts[h] + level.kinds[h])
        total = float(-np.log(p).sum())
        return Nats(total / len(places), total / len(_rows(rows)))

    def sample(self, n: int, length: int, seed: int, *, eos_id: int | None = None) -> np.ndarray:
        """Draws (n, length) int64 tokens; behind the first `eos_id` of a row, all are `eos_id`.

        Witten-Bell interpolation is a mixture, drawn as such: from the counts after h with probability c(h) / (c(h) + t(h)),
        else from the shorter context. Raises ValueError before `fit`.
        """
        self._fitted()
        generator = np.random.default_rng(seed)
        begin = self.order - 1
        tokens = np.full((n, begin + length), self._size, np.int64)
        for place in range(begin, begin + length):
            tokens[:, place] = self._draw(tokens[:, place - begin : place], generator)
        tokens = tokens[:, begin:]
        if eos_id is not None:
            ended = np.cumsum(tokens == eos_id, axis=1) > 0
            tokens[ended] = eos_id
        return tokens

    def _draw(self, before: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Next tokens (n,) after `before` (n, order - 1): backing off is decided from the shortest context up, each level
        overwriting the one below with its own probability."""
        tokens = generator.integers(self._size, size=len(before))
        context = np.zeros(len(before), np.int64)
        for k, level in enumerate(self.levels):
            if k:
                context = level.find(self._extend(context, before[:, -k]), context >= 0)
            u, v = generator.random((2, len(before)))
            h = np.maximum(context, 0)
            use = (context >= 0) & (u * (level.counts[h] + level.kinds[h]) < level.counts[h])
            tokens[use] = level.token(h[use], v[use])
        return tokens

    @property
    def _size(self) -> int:
        return self.vocab_size or 0

    def _fitted(self) -> None:
        if not self.levels:
            raise ValueError("the n-gram model has no counts yet: call fit(rows) first")

    def _extend(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        return context * (self._size + 1) + token  # the begin symbol is the id vocab_size

    def _stream(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The rows joined, each behind its begin symbols, and the places of the true tokens in it."""
        found = _rows(rows)
        lengths = np.array([len(row) for row in found], np.int64)
        if not lengths.sum():
            raise ValueError("the rows hold no token: give at least one that is not empty")
        tokens = np.concatenate(found)
        if self.vocab_size is None:
            self.vocab_size = int(tokens.max()) + 1
        if tokens.min() < 0 or tokens.max() >= self._size:
            raise ValueError(
                f"ids {tokens.min()}..{tokens.max()} leave the vocabulary of {self._size}: pass vocab_size="
            )
        begin = self.order - 1
        places = np.arange(len(tokens)) + np.repeat(np.arange(1, len(lengths) + 1) * begin, lengths)
        stream = np.full(len(tokens) + len(lengths) * begin, self._size, np.int64)
        stream[places] = tokens
        return stream, places


@dataclass(frozen=True, eq=False)
class _Level:
    """Counts of one context length; a context's id is its place in the sorted `keys`."""

    keys: np.ndarray  # (contexts,) id of the shorter context, joined with the token before it
    counts: np.ndarray  # (contexts,) c(h)
    kinds: np.ndarray  # (contexts,) t(h)
    grams: np.ndarray  # (grams,) context * vocab_size + token, sorted
    below: np.ndarray  # (grams + 1,) tokens counted by the grams before each
    first: np.ndarray  # (contexts,) tokens counted by the contexts before each
    vocab_size: int

    @classmethod
    def count(cls, keys: np.ndarray, context: np.ndarray, words: np.ndarray, vocab_size: int) -> "_Level":
        grams, counts = np.unique(context * vocab_size + words, return_counts=True)
        owner = grams // vocab_size
        kinds = np.bincount(owner, minlength=len(keys))
        totals = np.bincount(context, minlength=len(keys))
        below = np.concatenate([[0], counts.cumsum()])
        return cls(keys, totals, kinds, grams, below, totals.cumsum() - totals, vocab_size)

    def find(self, keys: np.ndarray, possible: np.ndarray) -> np.ndarray:
        """Context ids (n,), -1 for those never seen."""
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(possible & (self.keys[place] == keys), place, -1)

    def gram_count(self, grams: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return np.where(self.grams[place] == grams, np.diff(self.below)[place], 0)

    def token(self, context: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Tokens drawn from the counts after each context, by inverse CDF of uniforms `u`."""
        drawn = self.first[context] + (u * self.counts[context]).astype(np.int64)
        return self.grams[np.searchsorted(self.below, drawn, side="right") - 1] % self.vocab_size


def _rows(rows: Rows) -> list[np.ndarray]:
    found = [np.asarray(row) for row in rows]
    if not found or any(row.ndim != 1 or row.dtype.kind not in "iu" for row in found):
        raise ValueError("rows must be a (batch, length) array of ids or a list of one-dimensional ones, at least one")
    return [row.astype(np.int64) for row in found]
