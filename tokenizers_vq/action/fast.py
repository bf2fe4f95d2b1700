"""FAST: a chunk's rounded frequencies, written as one string and compressed by byte-pair encoding."""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from tokenizers_vq.action.base import ActionTokenizer, ActionTokenizerConfig, fitted
from tokenizers_vq.action.dct import dct_matrix
from tokenizers_vq.action.normalise import ActionStatistics
from tokenizers_vq.base import Latents, TokenizerOutput
from tokenizers_vq.config import checked, whole

END = 0  # the code of slots after the end
ABSENT = -1  # in place of the code of a slot that a row does not have
FIRST = 0xF0000  # of a private range of characters, one per value of a coefficient


class FastConfig(ActionTokenizerConfig):
    """scale: coefficients are rounded to multiples of 1 / scale; merges: pairs that byte-pair encoding joined; slots: most
    tokens of a chunk (0: chunk * dim, which always suffices). codebook_size follows from data and is set by `fit`.
    """

    model_type = "discdiff_action_fast"

    scale: float = 10.0
    merges: int = 0
    slots: int = 0

    def check(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        checked("scale", self.scale, number and 0 < self.scale < 1e4, "a number above 0, such as 10")
        checked("merges", self.merges, whole(self.merges), "0 or more")
        checked("slots", self.slots, whole(self.slots), "0 or more")
        self.code_dim = self.num_quantizers = 1
        super().check()


class Decoded(NamedTuple):
    """actions (batch, chunk, dim); malformed (batch,) bool: codes that were not those of exactly one chunk."""

    actions: Tensor
    malformed: Tensor


class Fast(ActionTokenizer):
    """Actions (batch, chunk, dim) to codes (batch, slots, 1) of variable length, mask True before the end (FAST, arXiv
    2501.09747): z = round(scale D y), D the orthonormal DCT-II over time, flattened with the lowest frequency of all
    dimensions first, then byte-pair encoding. Root mean square error per dimension at most 0.5 / scale of the normalised
    range.

    The alphabet holds every value that numbers in [-1, 1] can give, so no coefficient is clipped. Code 0 ends a sequence:
    slots after it are empty, and `decode` needs no mask. A code's embedding is its number: these tokens have no geometry,
    one wrong token shifts all that follow, and `decode_embeddings` passes no gradient; `DCTBins` is the alternative of
    fixed length. A sequence that is too short is filled with zeros, one that is too long is cut, and `decode_flagged` says
    so. `fit` keeps the merges as a table of pairs, no code and no file beside the weights.
    """

    config_class = FastConfig
    fits = True
    pairs: Tensor

    def __init__(self, config: FastConfig) -> None:
        super().__init__(config)
        self.register_buffer("pairs", torch.zeros(config.merges, 2, dtype=torch.long))

    @classmethod
    def fit(
        cls, actions: Tensor, mask: Tensor | None = None, *, raw: tuple[int, ...] = (),
        statistics: ActionStatistics | None = None, vocabulary: int = 1024, **settings: Any,
    ) -> Self:  # fmt: skip
        """From chunks (rows, chunk, dim): at most `vocabulary` codes, fewer where no pair is left that occurs twice.

        Raises ValueError where the alphabet alone is larger than that. Otherwise as `ActionBins.fit`.
        """
        config = cls.config_class(**fitted(actions, mask, raw, statistics), **settings)
        first = cls(config)
        alphabet = 2 * first.largest + 1
        need = f"at least {alphabet + 1}, the alphabet at scale {config.scale:g} and an end, or a smaller scale"
        checked("vocabulary", vocabulary, vocabulary > alphabet, need)
        model = Tokenizer(BPE())
        letters = [chr(FIRST + i) for i in range(alphabet)]
        trainer = BpeTrainer(vocab_size=vocabulary - 1, initial_alphabet=letters, show_progress=False, min_frequency=2)
        z = first.rounded(first.normalised(actions, mask)[0])
        model.train_from_iterator(first.strings(z), trainer)
        known = {letter: i for i, letter in enumerate(letters)}
        pairs = []
        for a, b in _merges(model):
            pairs.append((known[a], known[b]))
            known.setdefault(a + b, len(known))
        config.merges, config.codebook_size = len(pairs), len(known) + 1
        found = cls(config)
        if pairs:
            found.pairs.copy_(torch.tensor(pairs))
        return found.eval()

    @cached_property
    def largest(self) -> int:
        """The largest coefficient that numbers in [-1, 1] give."""
        return math.ceil(self.config.scale * float(dct_matrix(self.config.chunk).abs().sum(1).max()))

    @property
    def codebook(self) -> Tensor:
        """A code's embedding is its number (1, codebook_size, 1); the end and an absent one are 0."""
        return torch.arange(self.codebook_size, dtype=torch.float32, device=self.device).view(1, -1, 1)

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """The number."""
        return e.round().long().clamp(0, self.codebook_size - 1)

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, chunk, dim) to (batch, slots, 1): the most there can be."""
        return self.check_shape(input_shape), self.config.slots or self.config.chunk * self.config.dim, 1

    def rounded(self, y: Tensor) -> Tensor:
        """Normalised actions (batch, chunk, dim) to whole coefficients (batch, chunk, dim), lowest frequency first."""
        c = torch.einsum("kn,bnd->bkd", dct_matrix(self.config.chunk).to(y), y)
        return (c * self.config.scale).round().long().clamp(-self.largest, self.largest)

    def strings(self, z: Tensor) -> list[str]:
        """Rows of coefficients as strings."""
        return ["".join(map(chr, row)) for row in (z.flatten(1) + (FIRST + self.largest)).tolist()]

    @cached_property
    def words(self) -> list[str]:
        """The string of every code but the end."""
        found = [chr(FIRST + i) for i in range(2 * self.largest + 1)]
        known = set(found)
        for a, b in self.pairs.tolist():
            if (word := found[a] + found[b]) not in known:
                known.add(word)
                found.append(word)
        return found

    @cached_property
    def bpe(self) -> Tokenizer:
        """The same as a model of the `tokenizers` library; its ids are codes - 1."""
        merges = [(self.words[a], self.words[b]) for a, b in self.pairs.tolist()]
        return Tokenizer(BPE({word: i for i, word in enumerate(self.words)}, merges))

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Coefficients of every code (codebook_size, longest) and how many they are (codebook_size,); the end has none."""
        length = torch.tensor([0, *map(len, self.words)])
        values = torch.zeros(len(length), int(length.max()), dtype=torch.long)
        for i, word in enumerate(self.words):
            values[i + 1, : len(word)] = torch.tensor([ord(c) - FIRST - self.largest for c in word])
        return values, length

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Codes as numbers (batch, slots, 1)."""
        codes, _ = self._codes(x, mask)
        return Latents(codes[..., None].float(), codes != END, (codes.shape[1],))

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """Codes; aux has "clipped", and "cut": tokens of each row that found no slot among config.slots, (batch,)."""
        codes, cut = self._codes(x, mask)
        aux = {"clipped": self.normalised(x, mask)[1].flatten(1).sum(1), "cut": cut}
        return TokenizerOutput(codes[..., None], codes != END, (codes.shape[1],), aux)

    def _codes(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        slots = self.token_shape(tuple(x.shape))[1]
        rows = self.bpe.encode_batch(self.strings(self.rounded(self.normalised(x, mask)[0])))
        length = torch.tensor([len(row.ids) for row in rows], dtype=torch.long)
        codes = torch.full((len(rows), slots), END)
        for line, row in zip(codes, rows, strict=True):
            line[: len(row.ids)] = torch.tensor(row.ids[:slots]) + 1
        some = self.slot_mask(x, mask)
        return codes.to(x.device).masked_fill(~some, END), (length - slots).clamp(min=0).to(x.device)

    def decode_flagged(self, codes: Tensor, mask: Tensor | None = None) -> Decoded:
        """Codes (batch, slots, 1) to full chunks, whatever they are, and which rows were malformed; mask (batch, slots): the
        slots to read, which hold no end.

        Nothing is raised for what a model may sample: coefficients that are missing are 0, those beyond are cut, and a
        code that is none ends the sequence; what stands behind the end is left out. All of that is malformed.
        """
        given = codes[..., 0]
        codes = given.where(given < self.codebook_size, END).clamp(min=END)
        read = torch.ones_like(codes, dtype=torch.bool) if mask is None else mask
        here = read & ((codes != END) | ~read).cummin(1).values
        strange = (given < ABSENT) | (given >= self.codebook_size) | ((codes != END) & ~here)
        strange = read & (strange if mask is None else strange | ~here)
        values, lengths = (v.to(codes.device) for v in self.table)
        count = lengths[codes] * here
        start = count.cumsum(1) - count
        total, size = count.sum(1), self.config.chunk * self.config.dim
        inside = torch.arange(values.shape[1], device=codes.device)
        where = start[..., None] + inside
        where = where.masked_fill((inside >= count[..., None]) | (where >= size), size)
        flat = torch.zeros(len(codes), size + 1, dtype=torch.long, device=codes.device)
        flat.scatter_(1, where.flatten(1), values[codes].flatten(1))
        z = flat[:, :size].view(-1, self.config.chunk, self.config.dim) / self.config.scale
        y = torch.einsum("kn,bkd->bnd", dct_matrix(self.config.chunk).to(z), z)
        return Decoded(self.normaliser.restore(y.clamp(-1, 1)), (total != size) | strange.any(1))

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes as numbers (batch, slots, 1) to actions; no gradient passes."""
        return self.decode_flagged(self.embeddings_to_codes(e), mask).actions

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, 1) to full chunks; `decode_flagged` also says which were malformed."""
        return self.decode_flagged(codes, mask).actions


def _merges(model: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that training joined, in order."""
    found = json.loads(model.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in found]
