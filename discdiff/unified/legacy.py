"""Ids of published models as ids of this library and back: pure maps, exact inverses of each other.

Text ids never move, here as everywhere. Codes of pictures go to the range of the modality "image", actions to that of
"action"; some models write actions with the last text ids, so positions that hold actions are named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Modality, VocabLayout


@dataclass(frozen=True)
class Run:
    """`count` ids: theirs + step * i is ours + i."""

    theirs: int
    ours: int
    count: int = 1
    step: int = 1


@dataclass(frozen=True)
class LegacyMap:
    """A map between `size` ids of a model and those of `vocab`; no modality may be put between those it has.

    runs: ids outside actions, a later run wins; actions: ids at positions that hold actions. Raises ValueError where two
    of their meanings would have one id of ours.
    """

    vocab: VocabLayout
    size: int
    runs: tuple[Run, ...]
    actions: tuple[Run, ...] = field(default=())

    def __post_init__(self) -> None:
        used = torch.cat([table[table >= 0] for table in self._tables])
        if len(used.unique()) < len(used):
            raise ValueError("two ids of theirs have one id of ours: the map has no inverse")

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Ours by theirs, -1 where there is none: outside actions, and in them."""
        return _table(self.runs, self.size), _table(self.actions, self.size)

    @cached_property
    def _back(self) -> Tensor:
        """Theirs by ours, -1 where there is none."""
        back = torch.full((self.vocab.total,), -1)
        for table in self._tables:
            theirs = (table >= 0).nonzero()[:, 0]
            back[table[theirs]] = theirs
        return back

    def to_ours(self, ids: Tensor, action: Tensor | bool = False) -> Tensor:
        """Their ids, any shape, as ours; action: positions that hold actions, bool of the same shape or one for all.

        Raises ValueError for an id that means nothing there.
        """
        plain, actions = (_look_up(table, ids) for table in self._tables)
        return _found(torch.where(torch.as_tensor(action, device=ids.device), actions, plain), ids, "theirs")

    def to_theirs(self, ids: Tensor) -> Tensor:
        """Our ids as theirs. Raises ValueError for an id that they do not have."""
        return _found(_look_up(self._back, ids), ids, "ours")


def openvla(text_size: int = 32000, bins: int = 256) -> LegacyMap:
    """OpenVLA (arXiv 2406.09246): the i-th bin from below is id text_size - 1 - i; <PAD> is id text_size.

    `digitize` of its 256 edges gives 256 ids, of which its decoder reads the last two alike: a tokenizer of its 255 centres
    goes with bins=255, and then the last id, text_size - 256, is none of an action.
    """
    checked("bins", bins, 1 <= bins <= text_size, f"from 1 to the {text_size} text ids, whose last ones they are")
    vocab = VocabLayout(text_size, (Modality("action", bins),), bos_id=1, eos_id=2)
    runs = Run(0, 0, text_size), Run(text_size, vocab.pad)
    return LegacyMap(vocab, text_size + 1, runs, (Run(text_size - 1, vocab.range("action")[0], bins, -1),))


def emu3_fast(fast: int = 1024) -> LegacyMap:
    """UD-VLA (arXiv 2511.01718), which is Emu3 (arXiv 2409.18869) with FAST actions: FAST id f is id 151642 - f.

    fast: ids of its action tokenizer. <boa>, <boi>, <eoi> are BOM_action, BOM_image, EOM_image; <eoa> ends actions as
    EOC_action; its MASK, BOS and EOS stay text ids.
    """
    checked("fast", fast, 1 <= fast <= 151643, "a number of ids that the text ids have room for")
    text, codes = 151854, 32768
    modalities = Modality("image", codes), Modality("action", fast)
    vocab = VocabLayout(text, modalities, mask_id=151848, bos_id=151849, eos_id=151850)
    named = {151643: "PAD", 151844: "BOM_action", 151845: "EOC_action", 151852: "BOM_image", 151853: "EOM_image"}
    runs = Run(0, 0, text), *_named(vocab, named), Run(text, vocab.range("image")[0], codes)
    return LegacyMap(vocab, text + codes, runs, (Run(151642, vocab.range("action")[0], fast, -1),))


def mmada(text_size: int = 126464, codes: int = 8192) -> LegacyMap:
    """MMaDA (arXiv 2505.15809): LLaDA's ids, then the codes of pictures; its specials are LLaDA's reserved ids.

    text_size: where the codes begin, which is the configuration's llm_vocab_size; code that adds len(tokenizer) means
    that number. <|mmu|> is TASK_i2t; the mask, BOS and EOS stay text ids.
    """
    checked("text_size", text_size, text_size > 126348, "above LLaDA's last id 126348, such as 126464")
    vocab = VocabLayout(text_size, (Modality("image", codes),), mask_id=126336, bos_id=126080, eos_id=126081)
    named = {126084: "BOM_image", 126085: "EOM_image", 126088: "TASK_t2i", 126089: "TASK_i2t"}
    runs = Run(0, 0, text_size), *_named(vocab, named), Run(text_size, vocab.range("image")[0], codes)
    return LegacyMap(vocab, text_size + codes, runs)


def showo(text_size: int = 50295, codes: int = 8192) -> LegacyMap:
    """Show-o (arXiv 2408.12528): Phi's ids, [PAD], nine specials, the codes of pictures, and the mask last.

    <|mmu|> is TASK_i2t; specials without one of ours stay behind the text's ids.
    """
    pad = text_size
    ends = {"bos_id": 50256, "eos_id": 50256} if text_size > 50256 else {}  # <|endoftext|> begins and ends its texts
    vocab = VocabLayout(text_size + 10, (Modality("image", codes),), **ends)
    named = {pad: "PAD", pad + 1: "BOM_image", pad + 2: "EOM_image", pad + 5: "TASK_t2i", pad + 6: "TASK_i2t"}
    last = text_size + 10 + codes
    runs = Run(0, 0, text_size + 10), *_named(vocab, named), Run(text_size + 10, vocab.range("image")[0], codes)
    return LegacyMap(vocab, last + 1, (*runs, Run(last, vocab.mask)))


LEGACY: dict[str, Callable[..., LegacyMap]] = {
    "openvla": openvla,
    "emu3_fast": emu3_fast,
    "mmada": mmada,
    "showo": showo,
}
"""Maps by name."""


def _named(vocab: VocabLayout, names: Mapping[int, str]) -> tuple[Run, ...]:
    return tuple(Run(theirs, vocab.special(name)) for theirs, name in names.items())


def _table(runs: tuple[Run, ...], size: int) -> Tensor:
    table = torch.full((size,), -1)
    for run in runs:
        i = torch.arange(run.count)
        table[run.theirs + run.step * i] = run.ours + i
    return table


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """The table's entries, -1 for ids outside it."""
    inside = (ids >= 0) & (ids < len(table))
    return torch.where(inside, table.to(ids.device)[ids.clamp(0, len(table) - 1)], -1)


def _found(out: Tensor, ids: Tensor, whose: str) -> Tensor:
    if bool((out < 0).any()):
        raise ValueError(f"id {int(ids[out < 0][0])} of {whose} has no counterpart: it is of no modality of this map")
    return out
