"""One vocabulary for all modalities: text ids never move, then the library's specials, then one range per modality."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

SPECIALS = 256
_COMMON = ("PAD", "BOS", "EOS", "MASK", "NULL", "NONE_Q", "SEP")
_TASKS = ("t2i", "i2t", "t2m", "m2t", "t2a", "a2t", "vla", "world", "edit", "joint")
_FIXED = {name: i for i, name in enumerate((*_COMMON, *(f"TASK_{task}" for task in _TASKS)))}
_PER_MODALITY = ("BOM", "EOM", "EOC")
_FIRST_MODALITY_SPECIAL = 32


@dataclass(frozen=True)
class Modality:
    """A registered kind of token: `codebook` codes for each of `depth` levels, one id range per level unless `shared`."""

    name: str
    codebook: int
    depth: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if self.name in ("", "text", "special"):
            raise ValueError(f"modality name {self.name!r} is empty or reserved: text is VocabLayout.text_size")
        if self.codebook < 1 or self.depth < 1:
            raise ValueError(
                f"modality {self.name}: codebook {self.codebook} and depth {self.depth} must be at least 1"
            )

    @property
    def size(self) -> int:
        """Ids this modality occupies."""
        return self.codebook * (1 if self.shared else self.depth)


@dataclass(frozen=True)
class VocabLayout:
    """Global ids of every token; a new modality appended moves no existing id.

    [0, text_size) text | 256 specials | one range per modality | padding to a multiple of `multiple`, never legal.
    The flat id of (depth j, code c) is offset + j * codebook + c. `mask_id` None means the special MASK; a checkpoint
    whose mask lies inside its text range (LLaDA, BERT) names it here, and it is then banned from every legal range.
    `bos_id`, `eos_id` likewise: text ids that stand for the specials BOS and EOS.
    """

    text_size: int = 0
    modalities: tuple[Modality, ...] = field(default=())
    mask_id: int | None = None
    multiple: int = 128
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        if self.text_size < 0 or self.multiple < 1:
            raise ValueError(f"text_size {self.text_size} must be >= 0 and multiple {self.multiple} >= 1")
        names = [m.name for m in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"modalities {names} repeat a name: each is registered once")
        if len(names) > (SPECIALS - _FIRST_MODALITY_SPECIAL) // len(_PER_MODALITY):
            raise ValueError(f"{len(names)} modalities do not fit into the {SPECIALS} specials")
        if self.mask_id is not None and not 0 <= self.mask_id < self.text_size + SPECIALS:
            raise ValueError(
                f"mask_id {self.mask_id} is neither a text id (< {self.text_size}) nor a special "
                f"(< {self.text_size + SPECIALS}): a modality may legally generate it; leave it None for the special MASK"
            )
        for name in ("bos_id", "eos_id"):
            value = getattr(self, name)
            if value is not None and (not 0 <= value < self.text_size or value == self.mask_id):
                raise ValueError(f"{name} {value} must be a text id (< {self.text_size}) that is not the mask, or None")
        if self.mask == self.pad:
            raise ValueError(f"mask_id {self.mask_id} is the special PAD: an absent slot would look masked")

    @property
    def mask(self) -> int:
        """The one mask id."""
        return self.special("MASK") if self.mask_id is None else self.mask_id

    @property
    def pad(self) -> int:
        """The id of an absent slot."""
        return self.special("PAD")

    @property
    def total(self) -> int:
        """Rows of the embedding: all ids, padded to `multiple`."""
        used = self.text_size + SPECIALS + sum(m.size for m in self.modalities)
        return -(-used // self.multiple) * self.multiple

    def special(self, name: str) -> int:
        """Id of a special: PAD, BOS, EOS, MASK, NULL, NONE_Q, SEP, TASK_*, and BOM_m, EOM_m, EOC_m per modality m."""
        own = {"BOS": self.bos_id, "EOS": self.eos_id}.get(name)
        if own is not None:
            return own
        if name in _FIXED:
            return self.text_size + _FIXED[name]
        kind, _, modality = name.partition("_")
        for i, m in enumerate(self.modalities):
            if m.name == modality and kind in _PER_MODALITY:
                return self.text_size + _FIRST_MODALITY_SPECIAL + len(_PER_MODALITY) * i + _PER_MODALITY.index(kind)
        known = [*_FIXED, *(f"{k}_{m.name}" for m in self.modalities for k in _PER_MODALITY)]
        raise ValueError(f"unknown special {name!r}: known are {', '.join(known)}")

    def modality(self, name: str) -> Modality:
        """The registered modality of that name."""
        for m in self.modalities:
            if m.name == name:
                return m
        raise ValueError(
            f"unknown modality {name!r}: registered are text, {', '.join(m.name for m in self.modalities)}"
        )

    def range(self, name: str, depth: int = 0) -> tuple[int, int]:
        """First id and number of ids of one level of a modality ("text" is depth 0 of the text ids)."""
        if name == "text":
            if self.text_size == 0:
                raise ValueError("this vocabulary has no text ids: set text_size")
            if depth != 0:
                raise ValueError(f"text has depth 1, level {depth} does not exist")
            return 0, self.text_size
        m = self.modality(name)
        if not 0 <= depth < m.depth:
            raise ValueError(f"modality {name} has depth {m.depth}, level {depth} does not exist")
        offset = self.text_size + SPECIALS
        for other in self.modalities:
            if other.name == name:
                return offset + (0 if m.shared else depth * m.codebook), m.codebook
            offset += other.size
        raise AssertionError("unreachable: modality() raised")

    def to_global(self, codes: Tensor, name: str) -> Tensor:
        """Local codes (..., depth) of a modality, coarse first, to global ids. Raises ValueError outside the codebook."""
        firsts, size = self._levels(codes, name)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= size):
            raise ValueError(f"codes of {name} span {int(codes.min())}..{int(codes.max())}, legal are 0..{size - 1}")
        return codes + codes.new_tensor(firsts)

    def to_local(self, ids: Tensor, name: str) -> Tensor:
        """Inverse of `to_global`. Raises ValueError for an id outside the level's range."""
        firsts, size = self._levels(ids, name)
        codes = ids - ids.new_tensor(firsts)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= size):
            raise ValueError(
                f"ids {int(ids.min())}..{int(ids.max())} leave the range of {name} ({size} codes from {firsts})"
            )
        return codes

    def extend(self, modality: Modality) -> VocabLayout:
        """The vocabulary with one more modality; no existing id moves."""
        return replace(self, modalities=(*self.modalities, modality))

    def _levels(self, codes: Tensor, name: str) -> tuple[list[int], int]:
        depth = 1 if name == "text" else self.modality(name).depth
        if codes.shape[-1] != depth and depth > 1:
            raise ValueError(f"{name} has depth {depth}, the last axis holds {codes.shape[-1]}: give (..., depth)")
        ranges = [self.range(name, j) for j in range(depth)]
        return [first for first, _ in ranges], ranges[0][1]

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | dict[str, Any]) -> VocabLayout:
        """From `to_json`, or from the dictionary it holds. Raises ValueError for an unknown key."""
        data = json.loads(text) if isinstance(text, str) else text
        if not isinstance(data, dict):
            raise ValueError(f"a VocabLayout is saved as a dictionary, this is {data!r}")
        unknown = set(data) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"unknown keys {sorted(unknown)} of a VocabLayout: known are {list(cls.__dataclass_fields__)}"
            )
        try:
            return cls(**{**data, "modalities": tuple(Modality(**m) for m in data.get("modalities", ()))})
        except TypeError as error:
            raise ValueError(f"not a VocabLayout: {error}") from error
