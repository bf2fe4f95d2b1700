"""UnifiedTokenizer: tokenizers of all kinds in one vocabulary; records to token batches and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.layout import Layout, Modality, TokenBatch, VocabLayout, make_batch
from discdiff.unified import store
from discdiff.unified.parts import ABSENT_LEVEL, Codes, data_codes, data_values, stacked, text_codes
from discdiff.unified.store import Reference
from discdiff.unified.template import Part, Template

Record = Mapping[str, Any]
_LACKING = object()


@dataclass(frozen=True, eq=False)
class UnifiedTokenizer:
    """Records, dictionaries of typed parts, to rows of one sequence and back.

    A record holds, under the names of the template's parts, a string for text and raw data without batch axis, as the
    part's tokenizer takes it, for the rest; `Codes` stand for either. None says that the row has no such part.

    text: a fast tokenizer of transformers. tokenizers: by modality, anything with `codebook_size`, `depth`,
    `encode(x, mask)` -> `.codes`, `.mask`, `.grid` and `decode(codes, grid, mask)`. references: where a tokenizer's own
    folder is, so that `save` does not write it again. Raises ValueError where they do not fit the vocabulary or the
    template.
    """

    vocab: VocabLayout
    template: Template
    text: Any = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        template: Template,
        text: Any = None,
        vocab: VocabLayout | None = None,
        references: Mapping[str, Reference] | None = None,
        **tokenizers: Any,
    ) -> UnifiedTokenizer:
        """Tokenizers by modality, registered in the order given: behind a vocabulary's own, or behind the text's ids.

        `UnifiedTokenizer.of(template, text=words, picture=image_tokenizer, sound=audio_tokenizer)`.
        """
        vocab = VocabLayout(0 if text is None else len(text)) if vocab is None else vocab
        known = {m.name for m in vocab.modalities}
        for name, tokenizer in tokenizers.items():
            if name not in known:
                shared = bool(getattr(getattr(tokenizer, "config", None), "shared_codebook", False))
                vocab = vocab.extend(Modality(name, tokenizer.codebook_size, tokenizer.depth, shared))
        return cls(vocab, template, text, tokenizers, references or {})

    def __post_init__(self) -> None:
        if self.text is not None and len(self.text) > self.vocab.text_size:
            raise ValueError(
                f"the text tokenizer has {len(self.text)} ids, the vocabulary {self.vocab.text_size}: raise text_size"
            )
        for name, tokenizer in self.tokenizers.items():
            own, kind = (tokenizer.codebook_size, tokenizer.depth), self.vocab.modality(name)
            if own != (kind.codebook, kind.depth):
                raise ValueError(
                    f"the tokenizer of {name!r} has {own[0]} codes and depth {own[1]}, the vocabulary {kind.codebook} and "
                    f"{kind.depth}: this is not the tokenizer the model was trained with"
                )
        for part in self.template.parts:
            if self._tokenizer(part) is None:
                raise ValueError(
                    f"part {part.name!r} is of modality {part.modality!r}, which has no tokenizer: give one"
                )
        unknown = set(self.references) - set(self.tokenizers) - {"text"}
        if unknown:
            raise ValueError(f"references name {sorted(unknown)}, which are no tokenizers of this one")
        self.template.blank(self.layout)  # what does not fit is refused now

    @cached_property
    def layout(self) -> Layout:
        """The template's layout over the vocabulary."""
        return self.template.layout(self.vocab)

    def using(self, template: Template) -> UnifiedTokenizer:
        """The same tokenizers with another template."""
        return replace(self, template=template)

    # ---- records to rows

    def encode(self, records: Sequence[Record], given: Sequence[str] | Sequence[Sequence[str]] = ()) -> TokenBatch:
        """Rows for training: every part holds data. given: names of parts that are never hidden, for all rows or, as a
        sequence of sequences, for each row its own.

        Raises ValueError, naming record and part, for a part that is missing, unknown, of another size or not legal.
        """
        return self._batch(records, self._names(records, given))

    def prompt(self, records: Sequence[Record]) -> TokenBatch:
        """Rows for sampling: what a record holds is given, what it lacks is masked, all slots of it, to be sampled.

        Raises ValueError as `encode` does, and for a part that is not noised and missing.
        """
        return self._batch(records, None)

    def rows(
        self, records: Sequence[Record], given: Sequence[str] | Sequence[Sequence[str]] = ()
    ) -> list[dict[str, Tensor]]:
        """The rows of `encode` as items of a data set for `DiffusionTrainer`."""
        batch = self.encode(records, given)
        columns = {"tokens": batch.tokens, "given": batch.given}
        if not batch.unrestricted:
            columns["valid"] = batch.valid
        if not bool(batch.given.any()):
            del columns["given"]
        return [{name: x[i] for name, x in columns.items()} for i in range(len(records))]

    def codes_of(self, name: str, values: Sequence[Any]) -> Codes:
        """Data of one part of many records to codes (rows, slots, depth) and their mask (rows, slots): what `encode` puts
        into the rows, for data that are tokenized once and used often.
        """
        part = self.template.part(name)
        read = text_codes if part.modality == "text" else data_codes
        return stacked(part, read(part, self._tokenizer(part), values), self._depth(part))

    def _names(
        self, records: Sequence[Record], given: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[tuple[str, ...]]:
        one = isinstance(given, str) or all(isinstance(name, str) for name in given)
        lines = (
            [(given,) if isinstance(given, str) else tuple(given)] * len(records) if one else [tuple(g) for g in given]
        )
        if len(lines) != len(records):
            raise ValueError(f"given has {len(lines)} rows for {len(records)} records: give one for all, or one each")
        for name in {name for line in lines for name in line}:
            self.template.part(str(name))
        return lines  # type: ignore[return-value]

    def _batch(self, records: Sequence[Record], given: list[tuple[str, ...]] | None) -> TokenBatch:
        """given None: what a record holds is given."""
        if not records:
            raise ValueError("no records: give at least one")
        names = [part.name for part in self.template.parts]
        for row, record in enumerate(records):
            unknown = [name for name in record if name not in names]
            if unknown:
                raise ValueError(
                    f"record {row} has {unknown}, which no part takes: the template has {', '.join(names)}"
                )
        layout = self.layout
        tokens = self.template.blank(layout).repeat(len(records), 1)
        valid, fixed = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
        for part in self.template.parts:
            values = [record.get(part.name, _LACKING) for record in records]
            lacking = [row for row, value in enumerate(values) if value is _LACKING]
            if lacking and (given is not None or not part.noised):
                raise ValueError(
                    f"record {lacking[0]} has no {part.name!r}: give it, or None where the row has no such part"
                )
            held = [row for row, value in enumerate(values) if value is not _LACKING and value is not None]
            columns, index = layout.columns(part.name), torch.tensor(held, dtype=torch.int64)
            if held:
                codes = self.codes_of(part.name, [values[row] for row in held])
                tokens[index[:, None], columns] = self._ids(part, codes)
                keep = torch.tensor([given is None or part.name in given[row] for row in held])
                fixed[index[:, None], columns] = keep[:, None] & torch.ones_like(columns, dtype=torch.bool)
            absent = torch.tensor([value is None for value in values])
            for name in (part.name, *(name for name, _ in part.around)):
                valid[:, layout.columns(name)] &= ~absent[:, None]
        tokens = tokens.masked_fill(~valid, self.vocab.pad)
        return make_batch(layout, tokens, valid=None if bool(valid.all()) else valid, given=fixed)

    def _ids(self, part: Part, found: Codes) -> Tensor:
        """Global ids (rows, slots * depth), the end token behind the content."""
        codes, mask = found
        assert mask is not None
        missing = (codes == ABSENT_LEVEL) & mask[..., None]
        if bool(missing.any()) and not part.shallow:
            raise ValueError(f"{part.name!r} has slots without their deeper levels: say shallow=True of the part")
        ids = self.vocab.to_global(codes.masked_fill(missing, 0), part.modality)
        if bool((ids == self.vocab.mask).logical_and(mask[..., None]).any()):
            raise ValueError(
                f"{part.name!r} holds the mask id {self.vocab.mask}: it says that a token is to be sampled"
            )
        end = self.vocab.special(part.end) if part.variable else self.vocab.pad
        if bool((ids == end).logical_and(mask[..., None]).any()):
            raise ValueError(f"{part.name!r} holds its end token {end}: what is behind it would be lost")
        ids = torch.where(missing, self.vocab.special("NONE_Q"), ids)
        return torch.where(mask[..., None], ids, end).flatten(1)

    # ---- rows to records

    def codes(self, tokens: Tensor) -> dict[str, Codes]:
        """Local codes (batch, slots, depth) of every part and which slots hold content, (batch, slots).

        A variable part ends before the first slot with an end token (or PAD, where a sampler closed it), an absent one has
        no content. Raises ValueError for positions that are still masked, and ids that are illegal where they stand.
        """
        length = self.layout.length
        if (
            not isinstance(tokens, Tensor)
            or tokens.ndim != 2
            or tokens.shape[1] != length
            or tokens.dtype != torch.int64
        ):
            what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens are {what}: give int64 ids (batch, {length}) of this template")
        return {part.name: self._read(part, tokens.cpu()) for part in self.template.parts}

    def decode(self, tokens: Tensor) -> list[dict[str, Any]]:
        """Rows to records: strings and raw data, each of its own length; None for a part that is absent or empty.

        Warns of parts whose codes their tokenizer calls malformed; `malformed` says which.
        """
        out: list[dict[str, Any]] = [{} for _ in range(len(tokens))]
        for name, (codes, mask) in self.codes(tokens).items():
            part = self.template.part(name)
            absent = (tokens[:, self.layout.columns(name)] == self.vocab.pad).all(1).tolist()
            values, wrong = self._values(part, codes, mask)
            if any(wrong):
                told = f"{sum(wrong)} of {len(wrong)} {name!r} are malformed: see UnifiedTokenizer.malformed"
                warnings.warn(told, stacklevel=2)
            for record, value, gone in zip(out, values, absent, strict=True):
                record[name] = None if gone else value
        return out

    def malformed(self, tokens: Tensor) -> dict[str, Tensor]:
        """Of every part whose tokenizer has `decode_flagged`, which rows (batch,) hold codes of no data; not the absent ones.

        Raises ValueError as `codes` does.
        """
        own = {p.name for p in self.template.parts if hasattr(self._tokenizer(p), "decode_flagged")}
        found = {name: read for name, read in self.codes(tokens).items() if name in own}
        return {name: torch.tensor(self._values(self.template.part(name), *read)[1]) for name, read in found.items()}

    @property
    def undecodable(self) -> tuple[int, ...]:
        """Text ids of the vocabulary that the text tokenizer does not have, for `Banned`."""
        return tuple(i for i in range(len(self.text or ()), self.vocab.text_size) if i != self.vocab.mask)

    def _read(self, part: Part, tokens: Tensor) -> Codes:
        ids = tokens[:, self.layout.columns(part.name)].unflatten(1, (part.slots, -1))
        pad = ids == self.vocab.pad
        absent = pad.flatten(1).all(1)
        masked = (ids == self.vocab.mask).flatten(1).any(1)
        if bool(masked.any()):
            raise ValueError(f"{part.name!r} of row {int(masked.nonzero()[0])} is still masked: sample it first")
        mask = ~absent[:, None].expand(ids.shape[:2])
        if part.variable:
            stop = (pad | (ids == self.vocab.special(part.end))).any(-1)
            mask = stop.cumsum(1) == 0
            whole = torch.div(mask.sum(1, keepdim=True), part.frame, rounding_mode="floor") * part.frame
            mask = torch.arange(part.slots) < whole
        first = self.vocab.to_global(torch.zeros_like(ids[:1, :1]), part.modality)
        missing = (ids == self.vocab.special("NONE_Q")) & mask[..., None] & part.shallow
        local = self.vocab.to_local(torch.where(mask[..., None] & ~missing, ids, first), part.modality)
        return Codes(local.masked_fill(missing, ABSENT_LEVEL), mask)

    def _values(self, part: Part, codes: Tensor, mask: Tensor | None) -> tuple[list[Any], list[bool]]:
        """Data of rows, and which of them are malformed."""
        assert mask is not None
        if part.modality == "text":
            return self._texts(part, self.text, codes, mask), [False] * len(codes)
        return data_values(part, self._tokenizer(part), codes, mask)

    def _texts(self, part: Part, tokenizer: Any, codes: Tensor, mask: Tensor) -> list[Any]:
        if bool((codes >= len(tokenizer)).any()):
            raise ValueError(
                f"{part.name!r} holds the id {int(codes.max())}, the tokenizer has {len(tokenizer)}: sample with "
                "Banned(denoiser, unified.undecodable)"
            )
        ids = [row[held, 0].tolist() for row, held in zip(codes, mask, strict=True)]
        return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _tokenizer(self, part: Part) -> Any:
        return self.text if part.modality == "text" else self.tokenizers.get(part.modality)

    def _depth(self, part: Part) -> int:
        return 1 if part.modality == "text" else self.vocab.modality(part.modality).depth

    # ---- folders

    def save(self, folder: str | Path) -> None:
        """`discdiff_tokenizers.json` into a folder, usually a model's: vocabulary, template, and for every tokenizer a
        reference; one without is saved by its `save_pretrained` to FOLDER/tokenizers/NAME.

        Raises ValueError where the folder's model has another vocabulary.
        """
        store.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, load: Any, load_text: Any = None) -> UnifiedTokenizer:
        """What `save` wrote. load: `(folder or hub name, **{"revision": ...})` -> tokenizer, such as
        `tokenizers_vq.load_tokenizer`; load_text: likewise, by default transformers' `AutoTokenizer`.

        Raises ValueError for a damaged file, and where a tokenizer is not the one the vocabulary was made for.
        """
        return cls(**store.load(Path(folder), load, load_text))
