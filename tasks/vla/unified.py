"""Unified Diffusion VLA (arXiv 2511.01718): one transformer that denoises the future picture and the actions together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from discdiff.clocks import Windows
from discdiff.config import build, checked, read_json
from discdiff.denoisers import denoiser_of
from discdiff.kernels.valued import VALUE
from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.report.pictures import write_atomically
from discdiff.types import Info, State
from tasks.image.quality import decode, encode
from tasks.vla.policy import ACTION, SAY, STATE, ActionPolicy, Decoding, seeds_of
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE, Unified, given_of, layout_of
from tokenizers_vq.auto import load_tokenizer
from tokenizers_vq.image import ImageTokenizer, to_bytes

CACHE = {"paper": "block", "released": "prefix"}  # both exact; blocks also keep a future picture that is finished
ACTIONS, PICTURES, SETTINGS = "actions", "pictures", "unified.json"
ROUNDS = Decoding("ud_vla", steps=8)


class Foreseen(NamedTuple):
    """actions (n, chunk, dim) float32; future: the picture after them (n, width, width, 3) uint8, None where it is not made."""

    actions: np.ndarray
    future: np.ndarray | None


@dataclass(frozen=True, eq=False)
class UnifiedPolicy:
    """A trained policy that also foresees.

    told: its words, its scale of states, its tokenizer and units of actions, how it decodes, and its network, which by this
    policy alone would act without seeing; pictures: their tokenizer. Of separate decoding, `told.decoding.steps` are the
    rounds of each part.
    """

    told: ActionPolicy
    pictures: ImageTokenizer
    settings: Unified

    @property
    def model(self) -> Any:
        """The network."""
        return self.told.model

    def on(self, model: Any) -> UnifiedPolicy:
        """The same with another network."""
        return replace(self, told=replace(self.told, model=model))

    @property
    def layout(self) -> Layout:
        """Of its rows."""
        return layout_of(self.settings, self.told.layout, self.pictures)

    def coded(self, pictures: np.ndarray) -> Tensor:
        """Codes (n, slots, depth) of uint8 pictures (n, width, width, 3)."""
        size, given = self.settings.width, (pictures.shape, str(pictures.dtype))
        fits = pictures.ndim == 4 and given[0][1:] == (size, size, 3) and given[1] == "uint8"
        checked("pictures", given, fits, f"give uint8 (n, {size}, {size}, 3)")
        return encode(self.pictures, channels_first(pictures))[0]

    def rows(self, state: np.ndarray, instruction: Sequence[str], pictures: np.ndarray) -> TokenBatch:
        """Observations as rows with the future picture and the actions masked. Raises ValueError as `ActionPolicy.rows` does,
        and for pictures of another kind.
        """
        told, codes, layout = self.told.rows(state, instruction), self.coded(pictures), self.layout
        n = len(instruction)
        checked("pictures", len(codes), len(codes) == n, f"give {n}: one per instruction")
        tokens = torch.full((n, layout.length), layout.vocab.mask)
        for name in (SAY, STATE):
            tokens[:, layout.columns(name)] = told.tokens[:, self.told.layout.columns(name)]
        tokens[:, layout.columns(PICTURE)] = layout.vocab.to_global(codes, IMAGE).flatten(1)
        return make_batch(layout, tokens, given=given_of(layout).repeat(n, 1), features=told.features)

    @torch.no_grad()
    def predict(
        self,
        state: np.ndarray,
        instruction: str | Sequence[str],
        picture: np.ndarray,
        *,
        prefix: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        decoding: str | None = None,
        rounds: Decoding | None = None,
        unnorm_key: str | None = None,
    ) -> Foreseen:
        """Actions and the picture after them for states (n, dim), what to do in words and pictures (n, width, width, 3);
        without n for one instruction that is a string. prefix, seed and unnorm_key: as of `ActionPolicy.predict_action`.
        """
        alone = isinstance(instruction, str)
        said = [instruction] if isinstance(instruction, str) else list(instruction)
        picture = np.asarray(picture)
        picture = picture[None] if alone and picture.ndim == 3 else picture
        seeds = seeds_of(seed, len(said))
        units, done = self.told.normaliser(unnorm_key), self.told.executed(prefix, len(said), alone)
        batch = self.told.begun(self.rows(state, said, picture), units.normalise(torch.from_numpy(done)).values)
        if not bool(batch.free.any()):  # nothing is left to decode
            return Foreseen(done[0] if alone else done, None)
        *_, (last, _) = self.run(batch, seeds, decoding, rounds)
        value = last.memory[VALUE][:, self.layout.columns(ACTION)].unflatten(1, (self.told.settings.chunk, -1))
        actions = units.restore(value.cpu().clamp(-1, 1)).float().numpy()
        actions[:, : done.shape[1]] = done
        future = self.shown(last.tokens.cpu(), picture) if self.settings.foresees else None
        return Foreseen(actions[0], None if future is None else future[0]) if alone else Foreseen(actions, future)

    def shown(self, tokens: Tensor, pictures: np.ndarray) -> np.ndarray:
        """The future pictures (n, width, width, 3) uint8 of rows (n, length) in which `pictures` are seen."""
        stride, layout = self.pictures.stride, self.layout
        side = self.settings.width // stride
        now, ids = (
            tokens[:, layout.columns(name)].unflatten(1, (-1, self.pictures.depth)) for name in (PICTURE, FUTURE)
        )
        made = to_bytes(decode(self.pictures, layout.vocab.to_local(ids, IMAGE), (side, side)))
        if self.settings.keep:
            same = (now == ids).all(-1).view(-1, 1, side, side)
            cells = same.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
            made = torch.where(cells, channels_first(pictures), made)
        return made.permute(0, 2, 3, 1).numpy()

    def decoded_by(self, decoding: str | None = None) -> str:
        """How it is decoded where nothing or this is asked for. Raises ValueError for what its weights cannot be decoded by."""
        known, asked = self.settings.decodings, decoding or self.settings.decoding
        checked("decoding", asked, asked in known, f"this policy is decoded by {' or '.join(map(repr, known))}")
        return asked

    def run(
        self, batch: TokenBatch, seeds: Sequence[int], decoding: str | None = None, rounds: Decoding | None = None
    ) -> Iterator[tuple[State, Info]]:
        """The states of `rows` at the start and after every round, and what each round cost."""
        how, clock = rounds or self.told.decoding, None
        if self.decoded_by(decoding) == "separate":
            how, clock = replace(how, steps=2 * how.steps), Windows({FUTURE: (1.0, 0.5), ACTION: (0.5, 0.0)})
        how = replace(how, knobs={"cache": CACHE[self.settings.attention], **how.knobs})
        built = self.told.sampler_of(how)
        built = replace(built, clock=clock or built.clock)
        return built.iterate(denoiser_of(self.model), batch.to(self.model.device), list(seeds))

    def save_pretrained(self, folder: str | Path) -> None:
        """actions/, as `ActionPolicy` writes it, pictures/, their tokenizer, and unified.json."""
        folder = Path(folder)
        self.told.save_pretrained(folder / ACTIONS)
        self.pictures.save_pretrained(folder / PICTURES)
        text = json.dumps(vars(self.settings), indent=2) + "\n"
        write_atomically(folder / SETTINGS, text.encode("utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> UnifiedPolicy:
        """Raises ValueError for a folder that holds no such policy."""
        folder = Path(folder)
        held, remedy = (folder / SETTINGS).is_file(), "finish python -m tasks.vla unified train --out it"
        checked("folder", str(folder), held, f"no unified policy there: {remedy}")
        settings = build(Unified, read_json(folder / SETTINGS))
        return cls(ActionPolicy.from_pretrained(folder / ACTIONS), load_tokenizer(folder / PICTURES), settings)


def channels_first(pictures: np.ndarray) -> Tensor:
    """(n, height, width, channels) as (n, channels, height, width)."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
