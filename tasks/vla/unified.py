"""Unified Diffusion VLA (arXiv 2511.01718): one transformer that denoises the future picture and the actions together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from discdiff.clocks import Clock, Windows
from discdiff.config import build, checked, from_dict, read_json, to_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.kernels.valued import VALUE, Valued
from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.models import DiscDiffModel
from discdiff.report.pictures import write_atomically
from discdiff.sampling import Sampler, sampler
from discdiff.types import State
from discdiff.values import CodeValues
from tasks.common.words import Lexicon, split
from tasks.image.quality import decode, encode
from tasks.vla.policy import ACTION, SAY, STATE, Decoding, Scale
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE, Unified, given_of, layout_of
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.auto import load_tokenizer
from tokenizers_vq.image import ImageTokenizer, from_bytes, to_bytes

CACHE = {"paper": "block", "released": "prefix"}  # both exact; blocks also keep a future picture that is finished
TASK, MODEL, TOKENIZER, PICTURES = "task.json", "model", "tokenizer", "pictures"
ROUNDS = Decoding("ud_vla", steps=8)
_PARTS = ("lexicon", "scale", "unified", "rounds")


class Foreseen(NamedTuple):
    """actions (n, chunk, dim) float32; future: the picture after them (n, width, width, 3) uint8, None where it is not made."""

    actions: np.ndarray
    future: np.ndarray | None


@dataclass(frozen=True, eq=False)
class UnifiedPolicy:
    """A trained policy that also foresees: its network, the tokenizers of its chunks and of its pictures, its words, the scale
    of its states. rounds: how it decodes; of separate decoding `rounds.steps` for each part.
    """

    model: Any
    tokenizer: ActionBins
    pictures: ImageTokenizer
    lexicon: Lexicon
    scale: Scale
    settings: Unified
    rounds: Decoding = ROUNDS

    @property
    def layout(self) -> Layout:
        """Of its rows."""
        return layout_of(self.settings, self.tokenizer, self.pictures, self.lexicon)

    @property
    def values(self) -> CodeValues:
        """Normalised numbers of the action codes, by dimension."""
        levels = self.tokenizer.levels
        same = bool((levels == levels[0]).all())
        return CodeValues({ACTION: (levels[0] if same else levels).double().tolist()})

    def coded(self, pictures: np.ndarray) -> Tensor:
        """Codes (n, slots, depth) of uint8 pictures (n, width, width, 3)."""
        size, given = self.settings.width, (pictures.shape, str(pictures.dtype))
        fits = pictures.ndim == 4 and given[0][1:] == (size, size, 3) and given[1] == "uint8"
        checked("pictures", given, fits, f"give uint8 (n, {size}, {size}, 3)")
        return encode(self.pictures, channels_first(pictures))[0]

    def rows(
        self, state: np.ndarray, instruction: Sequence[str], pictures: np.ndarray, decoding: str | None = None
    ) -> TokenBatch:
        """Observations as rows with the future picture and the actions masked; in decoding "action" the picture stays so.

        Raises ValueError for other shapes, numbers that are not finite, and instructions that are too long.
        """
        seen, n, dim = np.atleast_2d(np.asarray(state, dtype=np.float32)), len(instruction), len(self.scale.middle)
        checked("instructions", n, n > 0, "at least one")
        checked("state", seen.shape, seen.shape == (n, dim), f"give ({n}, {dim}): one row per instruction")
        checked("state", int((~np.isfinite(seen)).sum()), bool(np.isfinite(seen).all()), "give finite numbers")
        long = [each for each in instruction if len(split(each)) > self.lexicon.length]
        checked("instruction", long[:1], not long, f"at most {self.lexicon.length} words are read")
        codes, layout = self.coded(pictures), self._layout(decoding or self.settings.decoding)
        checked("pictures", len(codes), len(codes) == n, f"give {n}: one per instruction")
        tokens = torch.full((n, layout.length), layout.vocab.mask)
        tokens[:, layout.columns(SAY)] = self.lexicon.ids(instruction)
        tokens[:, layout.columns(STATE)] = 0
        tokens[:, layout.columns(PICTURE)] = layout.vocab.to_global(codes, IMAGE).flatten(1)
        given = given_of(layout).repeat(n, 1)
        return make_batch(layout, tokens, given=given, features={STATE: self.scale(torch.from_numpy(seen))})

    def _layout(self, decoding: str) -> Layout:
        """For actions alone the masked future picture is a condition like others, which caches keep; where it sees the actions,
        as released, it is no condition, and `run` ends before its turn.
        """
        self.settings.check(decoding)
        whole = self.layout
        if decoding != "action" or self.settings.attention == "released":
            return whole
        kept = (dataclasses.replace(s, noised=s.name == ACTION) for s in whole.segments)
        return dataclasses.replace(whole, segments=tuple(kept))

    @torch.no_grad()
    def predict(
        self,
        state: np.ndarray,
        instruction: str | Sequence[str],
        picture: np.ndarray,
        *,
        seed: int | Sequence[int] = 0,
        decoding: str | None = None,
        rounds: Decoding | None = None,
    ) -> Foreseen:
        """Actions and the picture after them for states (n, dim), what to do in words and pictures (n, width, width, 3);
        without n for one instruction that is a string. seed: one, of which row i takes the i-th from it on, or one per row.
        """
        alone = isinstance(instruction, str)
        said = [instruction] if isinstance(instruction, str) else list(instruction)
        picture = np.asarray(picture)
        picture = picture[None] if alone and picture.ndim == 3 else picture
        seeds = [seed + i for i in range(len(said))] if isinstance(seed, int) else list(seed)
        checked("seed", len(seeds), len(seeds) == len(said), f"one, or {len(said)}: one per row")
        decoding = decoding or self.settings.decoding
        *_, last = self.run(self.rows(state, said, picture, decoding), seeds, decoding, rounds or self.rounds)
        value = last.memory[VALUE][:, self.layout.columns(ACTION)].unflatten(1, (self.settings.chunk, -1)).cpu()
        actions = self.tokenizer.normaliser.restore(value.clamp(-1, 1)).float().numpy()
        future = None if decoding == "action" else self.shown(last.tokens.cpu(), picture)
        return Foreseen(actions[0], None if future is None else future[0]) if alone else Foreseen(actions, future)

    def shown(self, tokens: Tensor, pictures: np.ndarray) -> np.ndarray:
        """The future pictures (n, width, width, 3) uint8 of rows (n, length) in which `pictures` are seen."""

        def painted(name: str) -> Tensor:
            ids = tokens[:, self.layout.columns(name)].unflatten(1, (-1, self.pictures.depth))
            side = self.settings.width // self.pictures.stride
            return decode(self.pictures, self.layout.vocab.to_local(ids, IMAGE), (side, side))

        made = painted(FUTURE)
        if self.settings.detail:
            made = made + from_bytes(channels_first(pictures)) - painted(PICTURE)
        return to_bytes(made).permute(0, 2, 3, 1).numpy()

    def run(self, batch: TokenBatch, seeds: Sequence[int], decoding: str, rounds: Decoding) -> Iterator[State]:
        """The state of `rows` made for a decoding, at the start and after every round."""
        self.settings.check(decoding)
        count, whole = rounds.steps * (2 if decoding == "separate" else 1), self.settings.future
        waits = decoding == "action" and whole and self.settings.attention == "released"
        turn = {"separate": 0.5, "action": 1 / (count + 1)}.get(decoding, 1.0)
        first, second = (FUTURE, ACTION) if decoding == "separate" else (ACTION, FUTURE)
        clock = Windows({first: (1.0, turn), second: (turn, 0.0)}) if decoding == "separate" or waits else None
        run = self._sampler(rounds, count + waits, clock)
        states = run.iterate(denoiser_of(self.model), batch.to(self.model.device), list(seeds))
        return (state for state, _ in islice(states, count + 1))

    def _sampler(self, rounds: Decoding, steps: int, clock: Clock | None) -> Sampler:
        knobs = {"temperature": rounds.temperature, "cache": CACHE[self.settings.attention], **rounds.knobs}
        built = sampler(rounds.sampler, process_of(self.model), steps=steps, **knobs)
        valued = Valued(built.kernel, self.values, rounds.read, rounds.window, rounds.nearest)
        return dataclasses.replace(built, kernel=valued, clock=clock or built.clock)

    def save_pretrained(self, folder: str | Path) -> None:
        """model/, tokenizer/ (of actions), pictures/ (their tokenizer) and task.json."""
        folder = Path(folder)
        self.model.save_pretrained(folder / MODEL)
        self.tokenizer.save_pretrained(folder / TOKENIZER)
        self.pictures.save_pretrained(folder / PICTURES)
        parts = (self.lexicon, self.scale, self.settings)
        stored = {name: to_dict(part) for name, part in zip(_PARTS, parts, strict=False)}
        stored["rounds"] = dataclasses.asdict(self.rounds) | {"knobs": dict(self.rounds.knobs)}
        write_atomically(folder / TASK, (json.dumps(stored, indent=2) + "\n").encode("utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> UnifiedPolicy:
        """Raises ValueError for a folder that holds no such policy."""
        folder = Path(folder)
        stored = read_json(folder / TASK) if (folder / TASK).is_file() else {}
        held = all(name in stored for name in _PARTS)
        checked("folder", str(folder), held, "no unified policy there: unified_learning.fit writes one")
        kinds: dict[str, Any] = {"Lexicon": Lexicon, "Scale": Scale, "Unified": Unified}
        lexicon, scale, settings = (from_dict(stored[name], kinds) for name in _PARTS[:3])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = DiscDiffModel.from_pretrained(folder / MODEL).to(device).eval()
        actions, pictures = load_tokenizer(folder / TOKENIZER), load_tokenizer(folder / PICTURES)
        return cls(model, actions, pictures, lexicon, scale, settings, build(Decoding, stored["rounds"]))


def channels_first(pictures: np.ndarray) -> Tensor:
    """(n, height, width, channels) as (n, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
