"""What every modality tokenizer says of itself, as data beside its weights."""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

QUANTIZERS = ("vq", "rvq", "fsq", "lfq", "none")


def checked(name: str, value: Any, ok: bool, remedy: str) -> None:
    """Raise ValueError naming the setting, its value and the remedy unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value!r}: {remedy}")


def whole(value: Any, least: int = 0, most: int = 2**31) -> bool:
    """Whether a value is an integer (no bool) of that range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class TokenizerConfig(PreTrainedConfig):
    """The codes of a tokenizer, and how its codebook is trained.

    modality: the kind of token, as registered in a vocabulary. codebook_size: codes of a level; num_quantizers: levels of
    a slot, coarse first; code_dim: width of a code's embedding; shared_codebook: one book for all levels. quantizer: "vq",
    "rvq", "fsq" (levels per dimension in `levels`), "lfq" or "none" (a fixed codebook). rate: slots per second, 0 where
    time means nothing. commitment, decay (of the codebook's moving average), dead_code (codes whose average count falls
    below it are replaced by latents of the batch; 0: never), quantizer_dropout (levels cut off at random), kmeans_init,
    orthogonal (weight of |N N^T - I|^2 / K^2, N the row-normalised codebook): the training of "vq" and "rvq".

    Raises ValueError, naming field, value and remedy, for an unknown key, a wrong type and an impossible value.
    """

    model_type = "discdiff_tokenizer"

    modality: str = "image"
    codebook_size: int = 512
    num_quantizers: int = 1
    code_dim: int = 64
    shared_codebook: bool = False
    quantizer: str = "vq"
    levels: tuple[int, ...] = ()
    rate: float = 0.0
    commitment: float = 0.25
    decay: float = 0.99
    dead_code: float = 1.0
    quantizer_dropout: bool = False
    kmeans_init: bool = True
    orthogonal: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        for key in kwargs:
            if key not in _inherited():
                own = [f.name for f in fields(type(self)) if f.name not in _inherited()]
                near = difflib.get_close_matches(key, own, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(f"unknown key {key!r} of {type(self).__name__}{hint} Its own are {', '.join(own)}")
        self.check()
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise ValueError for a value that cannot be."""
        checked("modality", self.modality, isinstance(self.modality, str) and self.modality != "", "give a name")
        checked("quantizer", self.quantizer, self.quantizer in QUANTIZERS, f"choose from {', '.join(QUANTIZERS)}")
        checked("codebook_size", self.codebook_size, whole(self.codebook_size, 1, 2**24), "an integer from 1 to 2^24")
        checked("num_quantizers", self.num_quantizers, whole(self.num_quantizers, 1, 4096), "an integer from 1 to 4096")
        checked("code_dim", self.code_dim, whole(self.code_dim, 1, 2**16), "an integer from 1 to 65536")
        for name in ("shared_codebook", "quantizer_dropout", "kmeans_init"):
            checked(name, getattr(self, name), isinstance(getattr(self, name), bool), "give true or false")
        for name, ok, remedy in (
            ("rate", lambda x: x >= 0, "slots per second, 0 where time means nothing"),
            ("commitment", lambda x: x >= 0, "0 or more"),
            ("decay", lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            ("dead_code", lambda x: x >= 0, "0 (never reset) or more"),
            ("orthogonal", lambda x: x >= 0, "0 or more"),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            checked(name, value, number and ok(value), remedy)
        self.levels = tuple(self.levels)
        fsq = self.quantizer == "fsq"
        checked(
            "levels",
            self.levels,
            bool(self.levels) == fsq,
            'levels per dimension go with quantizer "fsq", and only with it',
        )
        if fsq:
            checked("levels", self.levels, all(whole(n, 2) for n in self.levels), "integers of at least 2")
            checked(
                "codebook_size",
                self.codebook_size,
                self.codebook_size == math.prod(self.levels),
                "the product of levels",
            )
            checked(
                "code_dim",
                self.code_dim,
                self.code_dim == len(self.levels),
                f"{len(self.levels)}, one per entry of levels",
            )
        if self.quantizer == "lfq":
            fits = self.codebook_size == 2**self.code_dim
            checked("codebook_size", self.codebook_size, fits, f"2^code_dim = {2**self.code_dim} with quantizer lfq")
        if self.quantizer in ("vq", "fsq", "lfq"):
            checked("num_quantizers", self.num_quantizers, self.num_quantizers == 1, "1; several levels need rvq")
        if self.quantizer_dropout:
            checked(
                "quantizer_dropout",
                True,
                self.quantizer == "rvq" and self.num_quantizers > 1,
                "it goes with rvq of several levels",
            )


@functools.cache
def _inherited() -> frozenset[str]:
    """Keys that transformers itself puts into configurations: its fields, private notes, and what Trainer writes."""
    base = PreTrainedConfig()
    trainer = ("torch_dtype", "attn_implementation", "use_cache", "num_labels", "name_or_path")
    return frozenset((*(f.name for f in fields(base)), *vars(base), *base.to_dict(), *trainer))
