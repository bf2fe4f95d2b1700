"""A policy: one transformer over [instruction | state | picture | chunk of actions], and how its actions are decoded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.config import build, checked, from_dict, read_json, to_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.energy import LearnedEnergy
from discdiff.kernels import Commit, Recheck
from discdiff.kernels.valued import VALUE, Valued
from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.models import load_network
from discdiff.report import Trace, record
from discdiff.report.pictures import write_atomically
from discdiff.sampling import Grid, Sampler, sampler
from discdiff.scores import Concentrated, Score
from discdiff.values import CodeValues
from tasks.common.improve import ENERGY, GRIDS, LEARNED, chosen_grid, grids_in, load_learned, save_grid
from tasks.common.words import Lexicon
from tasks.vla.continuous import CONTINUOUS, ContinuousModel, regressed
from tasks.vla.design import (
    ACTION,
    GRID,
    METHODS,
    NOISY,
    READ,
    SAY,
    STATE,
    VIEW,
    Decoding,
    Policy,
    Scale,
    config_of,
    features_of,
    layout_of,
    told_state,
)  # fmt: skip
from tasks.vla.spoken import TEXT, Spoken
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.action.normalise import ActionStatistics, Normaliser, read_statistics, write_statistics
from tokenizers_vq.auto import load_tokenizer

__all__ = [
    "ACTION", "GRID", "METHODS", "NOISY", "READ", "SAY", "STATE", "VIEW",
    "ActionPolicy", "Decoding", "Policy", "Scale", "config_of", "features_of", "layout_of", "told_state",
]  # fmt: skip

TASK, MODEL, TOKENIZER, STATISTICS, CONFIG = "task.json", "model", "tokenizer", "dataset_statistics.json", "config.json"
_PARTS = ("scale", "policy", "decoding")


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """A seed per row: of one, row i takes the i-th from it on. Raises ValueError for another number of them."""
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(count)]
    checked("seed", len(seed), len(seed) == count, f"one, or {count}: one per row")
    return [int(each) for each in seed]


def ranked(kernel: Any, score: Score) -> Any:
    """A kernel that commits in the order of another score. Raises ValueError for one that has no order."""
    if isinstance(kernel, Recheck):
        return dataclasses.replace(kernel, commit=ranked(kernel.commit, score))
    has = isinstance(kernel, Commit)
    checked(
        "rank", type(kernel).__name__, has, "that sampler commits in no order: take confidence or dd_vla, or no rank"
    )
    return dataclasses.replace(kernel, score=score)


@dataclass(frozen=True, eq=False)
class ActionPolicy:
    """A trained policy: its network, the tokenizer of its chunks, its words and the scale of its states.

    `predict_action` decodes a chunk for observations; `save_pretrained` and `from_pretrained` keep it in a folder.
    statistics: of actions by the name of their data set, as OpenVLA's dataset_statistics.json has them; what is decoded is
    brought to the units of one of them. Without any, it is brought to those of the demonstrations. energy: a learned one,
    which `Decoding(sampler="edlm", knobs={"energy": "learned"})` means; grids: learned times by name, for `Decoding(grid=)`;
    width: of the soft labels that the network learned, 0 for hard ones.
    """

    model: Any
    tokenizer: ActionBins
    lexicon: Lexicon | Spoken
    scale: Scale
    settings: Policy
    decoding: Decoding = Decoding()
    statistics: Mapping[str, ActionStatistics] = field(default_factory=dict)
    energy: LearnedEnergy | None = None
    grids: Mapping[str, Grid] = field(default_factory=dict)
    width: float = 0.0

    def __post_init__(self) -> None:
        dim, dims = self.tokenizer.config.dim, {key: each.dim for key, each in self.statistics.items()}
        checked("statistics", dims, all(d == dim for d in dims.values()), f"actions have {dim} dimensions")

    @property
    def layout(self) -> Layout:
        """Of its rows."""
        own = self.model.vocab if self.settings.base else None  # of a checkpoint, with the actions behind its ids
        text = own and dataclasses.replace(own, modalities=own.modalities[:-1])
        return layout_of(self.settings, self.tokenizer.config.dim, self.lexicon, text)

    @property
    def values(self) -> CodeValues:
        """Normalised numbers of the codes, by dimension."""
        levels = self.tokenizer.levels
        same = bool((levels == levels[0]).all())
        return CodeValues({ACTION: (levels[0] if same else levels).double().tolist()})

    def normaliser(self, unnorm_key: str | None = None) -> Normaliser:
        """Between [-1, 1] and the units of the actions of one data set; the key may be left out where there is one only.

        Raises ValueError naming the keys for an unknown or ambiguous one.
        """
        own, keys = self.tokenizer.normaliser, sorted(self.statistics)
        if not keys:
            checked("unnorm_key", unnorm_key, unnorm_key is None, "this policy has no statistics by key: leave it out")
            return own
        if unnorm_key is None:
            checked("unnorm_key", unnorm_key, len(keys) == 1, f"say whose statistics, one of {keys}")
        else:
            checked("unnorm_key", unnorm_key, unnorm_key in keys, f"choose from {keys}")
        return dataclasses.replace(own, statistics=self.statistics[unnorm_key or keys[0]])

    def rows(self, state: np.ndarray, instruction: Sequence[str], pictures: np.ndarray | None = None) -> TokenBatch:
        """Observations as rows whose actions are all masked; states beyond 5 deviations are cut there, unknown words are read
        as one. Raises ValueError for other shapes, numbers that are not finite, missing pictures, and long instructions.
        """
        seen = np.atleast_2d(np.array(state, dtype=np.float32))  # a copy: what is given may be read-only
        n, dim, room = len(instruction), len(self.scale.middle), self.lexicon.length
        checked("instructions", n, n > 0, "at least one")
        checked("state", seen.shape, seen.shape == (n, dim), f"give ({n}, {dim}): one row per instruction")
        bad = ~np.isfinite(seen)
        checked("state", int(bad.sum()), not bad.any(), "numbers that are not finite: leave such observations out")
        long = [each for each in instruction if self.lexicon.count(each) > room]
        checked("instruction", long[:1], not long, f"at most {room} words are read: train with Policy(words=...)")
        layout, said = self.layout, self.lexicon.ids(instruction)
        tokens, there = (
            torch.full((n, layout.length), layout.vocab.mask),
            torch.ones(n, layout.length, dtype=torch.bool),
        )
        tokens[:, layout.columns(SAY)], there[:, layout.columns(SAY)] = said.clamp(min=0), said >= 0
        for name in (STATE, VIEW):
            if name in layout.names:
                tokens[:, layout.columns(name)] = 0
        features = {STATE: self.scale(torch.from_numpy(seen))}
        size = self.settings.picture
        checked("pictures", pictures is not None, bool(size) or pictures is None, "this policy is shown none")
        if size:
            given = None if pictures is None else (pictures.shape, str(pictures.dtype))
            fits = given == ((n, size, size, 3), "uint8")
            checked("pictures", given, fits, f"give uint8 ({n}, {size}, {size}, 3)")
            features[VIEW] = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
        return make_batch(layout, tokens, valid=None if bool(there.all()) else there, features=features)

    @torch.no_grad()
    def predict_action(
        self,
        state: np.ndarray,
        instruction: str | Sequence[str],
        pictures: np.ndarray | None = None,
        *,
        prefix: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        decoding: Decoding | None = None,
        unnorm_key: str | None = None,
    ) -> np.ndarray:
        """Chunks of actions (n, chunk, dim) float32 for states (n, dim) and what to do in words; (chunk, dim) for one state.

        prefix (n, k, dim): actions that are executed already (real-time chunking), returned as they are. seed: one, of which
        row i takes the i-th from it on, or one per row. unnorm_key: whose units the actions are in, see `normaliser`.
        """
        alone = isinstance(instruction, str)
        said = [instruction] if isinstance(instruction, str) else list(instruction)
        pictures = pictures[None] if alone and pictures is not None and pictures.ndim == 3 else pictures
        seeds = seeds_of(seed, len(said))
        batch, how, units = self.rows(state, said, pictures), decoding or self.decoding, self.normaliser(unnorm_key)
        how.check(self.settings.method)
        done = self.executed(prefix, len(said), alone)
        y = self._decoded(batch, units.normalise(torch.from_numpy(done)).values, how, seeds)
        actions = units.restore(y.double().clamp(-1, 1)).float().cpu().numpy()
        actions[:, : done.shape[1]] = done
        return actions[0] if alone else actions

    def executed(self, prefix: np.ndarray | None, rows: int, alone: bool = False) -> np.ndarray:
        """Actions (rows, k, dim) that are executed already, k 0 for none; of one row (k, dim) if `alone`. Raises ValueError for
        other shapes and numbers that are not finite.
        """
        chunk, dim = self.settings.chunk, self.tokenizer.config.dim
        done = np.zeros((rows, 0, dim), np.float32) if prefix is None else np.asarray(prefix, dtype=np.float32)
        done = done[None] if alone and done.ndim == 2 else done
        fits = done.ndim == 3 and done.shape[::2] == (rows, dim) and done.shape[1] <= chunk
        checked("prefix", done.shape, fits, f"give ({rows}, at most {chunk}, {dim})")
        checked("prefix", int((~np.isfinite(done)).sum()), bool(np.isfinite(done).all()), "give finite numbers")
        return done

    def begun(self, batch: TokenBatch, known: Tensor) -> TokenBatch:
        """Rows in which the first actions are known (n, k, dim): normalised, given as the codes nearest to them."""
        chunk, (n, k, dim), layout = self.settings.chunk, known.shape, batch.layout
        if not k:
            return batch
        whole = torch.cat([known, known[:, -1:].expand(-1, chunk - k, -1)], 1)
        codes = self.tokenizer.encode(self.tokenizer.normaliser.restore(whole)).codes.view(n, chunk, dim)
        tokens, columns = batch.tokens.clone(), layout.columns(ACTION)[: k * dim]
        tokens[:, columns] = layout.vocab.to_global(codes, ACTION).flatten(1)[:, : k * dim]
        return batch._replace(tokens=tokens, given=batch.given.index_fill(1, columns, True))

    def _decoded(self, batch: TokenBatch, known: Tensor, how: Decoding, seeds: list[int]) -> Tensor:
        """Normalised actions (n, chunk, dim); known (n, k, dim): normalised, the first of them."""
        chunk, dim, k = self.settings.chunk, self.tokenizer.config.dim, known.shape[1]
        if self.settings.method in CONTINUOUS:
            return regressed(self.model, batch.to(self.model.device), known, how.steps, seeds)
        if k == chunk:
            return known  # nothing is left to decode
        batch = self.begun(batch, known)
        state, _ = self.sampler_of(how)(denoiser_of(self.model), batch.to(self.model.device), seeds)
        value = state.memory[VALUE][:, self.layout.columns(ACTION)]
        return value.unflatten(1, (chunk, dim)).cpu()

    @torch.no_grad()
    def unmasking(
        self, state: np.ndarray, instruction: str, pictures: np.ndarray | None = None, *, seed: int = 0,
        decoding: Decoding | None = None,
    ) -> Trace:  # fmt: skip
        """The rounds in which a chunk of tokens is decoded, for `discdiff.report.player`. Raises ValueError for a method
        without tokens.
        """
        method, how = self.settings.method, decoding or self.decoding
        checked("method", method, method not in CONTINUOUS, "it makes numbers, not tokens")
        how.check(method)
        batch = self.rows(state, [instruction], pictures if pictures is None or pictures.ndim == 4 else pictures[None])
        return record(self.sampler_of(how).iterate(denoiser_of(self.model), batch.to(self.model.device), [seed]))

    def sampler_of(self, how: Decoding) -> Sampler:
        """What decodes chunks, with the numbers of committed tokens."""
        if self.settings.method == "autoregressive":
            built = sampler(
                "left_to_right", process_of(self.model), temperature=how.temperature, cache="block", block=1
            )
            return dataclasses.replace(built, kernel=self._valued(built.kernel, how))
        cache = "prefix" if self.model.caches else "none"
        knobs = {"steps": how.steps, "temperature": how.temperature, "cache": cache, **how.knobs}
        if isinstance(name := knobs.get("energy"), str):
            checked("energy", name, name == LEARNED, f"give {LEARNED!r}, or from Python any energy")
            checked("energy", name, self.energy is not None, "there is none yet: python -m tasks.vla energy learns one")
            knobs["energy"] = self.energy
        grid = chosen_grid(self.grids, how.grid) if how.grid else None
        built = sampler(how.sampler, process_of(self.model), grid, **knobs)
        kernel = ranked(built.kernel, self._concentrated(how)) if how.rank else built.kernel
        return dataclasses.replace(built, kernel=self._valued(kernel, how))

    def _concentrated(self, how: Decoding) -> Concentrated:
        """The order of what is committed."""
        if how.rank != "matched":
            return Concentrated(self.values, how.rank, how.window)
        checked("width", self.width, self.width > 0, 'hard labels match nothing else: leave rank "matched" out')
        return Concentrated(self.values, "matched", self.width)

    def _valued(self, kernel: Any, how: Decoding) -> Valued:
        """The kernel with the number of every committed token."""
        read, window = how.read, how.window
        if read == "matched":  # what is like a hard label is its code alone: too rough a number
            read, window = ("matched", self.width) if self.width else ("expectation", window)
        return Valued(kernel, self.values, read, window, how.nearest)

    def save_pretrained(self, folder: str | Path) -> None:
        """model/, tokenizer/, task.json, and what else there is: text/ (the tokenizer of a text checkpoint),
        dataset_statistics.json, energy/, grids/; an energy and grids of other weights that lie there are removed.
        """
        folder = Path(folder)
        for name, held in ((ENERGY, self.energy), (GRIDS, self.grids)):
            if not held:
                shutil.rmtree(folder / name, ignore_errors=True)
        self.model.save_pretrained(folder / MODEL)
        self.tokenizer.save_pretrained(folder / TOKENIZER)
        if self.statistics:
            write_statistics(folder / STATISTICS, self.statistics)
        if self.energy is not None:
            self.energy.model.save_pretrained(folder / ENERGY)
        for name, grid in self.grids.items():
            save_grid(folder, name, grid)
        parts = {"scale": self.scale, "policy": self.settings}
        if isinstance(self.lexicon, Spoken):
            self.lexicon.save_pretrained(folder / TEXT)
        else:
            parts = {"lexicon": self.lexicon, **parts}
        stored: dict[str, Any] = {name: to_dict(part) for name, part in parts.items()}
        stored |= {"words": self.lexicon.length, "width": self.width}
        stored["decoding"] = dataclasses.asdict(self.decoding) | {"knobs": dict(self.decoding.knobs)}
        write_atomically(folder / TASK, (json.dumps(stored, indent=2) + "\n").encode("utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ActionPolicy:
        """Raises ValueError for a folder that holds no policy."""
        folder = Path(folder)
        stored = read_json(folder / TASK) if (folder / TASK).is_file() else {}
        held = all(name in stored for name in _PARTS)
        checked("folder", str(folder), held, "no policy there: finish python -m tasks.vla train --out it")
        kinds: dict[str, Any] = {"Lexicon": Lexicon, "Scale": Scale, "Policy": Policy}
        scale, settings = (from_dict(stored[name], kinds) for name in _PARTS[:2])
        said = None if settings.base else from_dict(stored["lexicon"], kinds)
        lexicon = said or Spoken.from_pretrained(folder / TEXT, stored["words"])
        read = ContinuousModel.from_pretrained if settings.method in CONTINUOUS else load_network
        model = read(folder / MODEL).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        decoding, file = build(Decoding, stored["decoding"]), folder / STATISTICS
        statistics = {key: read_statistics(file, key) for key in read_json(file)} if file.is_file() else {}
        energy = load_learned(folder) if (folder / ENERGY / CONFIG).is_file() else None
        tokenizer, grids, width = load_tokenizer(folder / TOKENIZER), grids_in(folder), stored.get("width", 0.0)
        return cls(model, tokenizer, lexicon, scale, settings, decoding, statistics, energy, grids, width)
