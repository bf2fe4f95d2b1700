"""A policy: one transformer over [instruction | state | picture | chunk of actions], and how its actions are decoded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.kernels.valued import VALUE, Valued
from discdiff.layout import Layout, Modality, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import Sampler, sampler
from discdiff.values import CodeValues
from tasks.common.words import Lexicon
from tasks.vla.continuous import CONTINUOUS, ContinuousModel, regressed
from tasks.vla.episodes import Episode
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.auto import load_tokenizer

METHODS = ("masked", "autoregressive", *CONTINUOUS)
SAY, STATE, VIEW, ACTION, NOISY = "instruction", "state", "view", "action", "noisy"
GRID = (4, 4)  # slots of a picture
TASK, MODEL, TOKENIZER = "task.json", "model", "tokenizer"
READ = ("expectation", "mode", "argmax", "token")


@dataclass(frozen=True)
class Policy:
    """method: masked diffusion of tokens; the twins on the same trunk are autoregressive tokens, parallel L1 (OpenVLA-OFT,
    arXiv 2502.19645) and flow (flow matching). chunk: actions made at once; codebook_size: levels of a number; packed: one
    slot per step of a chunk, not per number (masked); proprio: leading numbers of the state that it is told, 0 for all;
    picture: width of the picture it is shown, 0 for none; hidden_size, num_layers, num_heads: its size.
    """

    method: str = "masked"
    chunk: int = 8
    codebook_size: int = 256
    packed: bool = True
    proprio: int = 0
    picture: int = 0
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4

    def __post_init__(self) -> None:
        checked("method", self.method, self.method in METHODS, f"choose from {', '.join(METHODS)}")
        checked("chunk", self.chunk, self.chunk >= 1, "at least one action")
        checked("proprio", self.proprio, self.proprio >= 0, "numbers of the state, 0 for all")
        fits = self.picture == 0 or (self.picture >= 16 and self.picture & (self.picture - 1) == 0)
        checked("picture", self.picture, fits, "0, or a power of 2 from 16 on")


@dataclass(frozen=True)
class Decoding:
    """sampler: a name of `discdiff.PRESETS`; steps: rounds (flow: of Euler's method); read: the number of a committed token,
    `Valued`'s "expectation", "mode", "argmax" or "token"; window: of "mode", in normalised units; nearest: later rounds see
    the code nearest to that number; temperature: of the draw; knobs: of the sampler.
    """

    sampler: str = "confidence"
    steps: int = 1
    read: str = "expectation"
    window: float = 0.05
    nearest: bool = False
    temperature: float = 0.0
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "at least one round")
        checked("read", self.read, self.read in READ, f"choose from {', '.join(READ)}")


@dataclass(frozen=True)
class Scale:
    """What the state is divided by: middle and spread (dim,) of demonstrations; what hardly moves is not blown up."""

    middle: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("middle", "spread"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))

    @classmethod
    def of(cls, state: np.ndarray) -> Scale:
        """Of states (frames, dim): mean, and deviation or, where that is below 1e-3 of the largest, 1."""
        deep = state.astype(np.float64)
        spread = deep.std(0)
        return cls(tuple(deep.mean(0)), tuple(np.where(spread > 1e-3 * spread.max(), spread, 1.0)))

    def __call__(self, state: Tensor) -> Tensor:
        """States (n, dim) to about [-1, 1], cut at 5."""
        middle, spread = (torch.tensor(x, dtype=torch.float64) for x in (self.middle, self.spread))
        return ((state.double() - middle) / spread).clamp(-5, 5).float()


@dataclass(frozen=True, eq=False)
class ActionPolicy:
    """A trained policy: its network, the tokenizer of its chunks, its words and the scale of its states.

    `predict_action` decodes a chunk for observations; `save_pretrained` and `from_pretrained` keep it in a folder.
    """

    model: Any
    tokenizer: ActionBins
    lexicon: Lexicon
    scale: Scale
    settings: Policy
    decoding: Decoding = Decoding()

    @property
    def layout(self) -> Layout:
        """Of its rows."""
        return layout_of(self.settings, self.tokenizer.config.dim, self.lexicon)

    @property
    def values(self) -> CodeValues:
        """Normalised numbers of the codes, by dimension."""
        levels = self.tokenizer.levels
        same = bool((levels == levels[0]).all())
        return CodeValues({ACTION: (levels[0] if same else levels).double().tolist()})

    def rows(self, state: np.ndarray, instruction: Sequence[str], pictures: np.ndarray | None = None) -> TokenBatch:
        """Observations as rows whose actions are all masked. Raises ValueError for other shapes and missing pictures."""
        seen = np.atleast_2d(np.asarray(state, dtype=np.float32))
        n, dim = len(instruction), len(self.scale.middle)
        checked("state", seen.shape, seen.shape == (n, dim), f"give ({n}, {dim}): one row per instruction")
        checked("state", int((~np.isfinite(seen)).sum()), bool(np.isfinite(seen).all()), "finite numbers")
        tokens = torch.full((n, self.layout.length), self.layout.vocab.mask)
        tokens[:, self.layout.columns(SAY)] = self.lexicon.ids(instruction)
        others = [name for name in (STATE, VIEW) if name in self.layout.names]
        for name in others:
            tokens[:, self.layout.columns(name)] = 0
        return make_batch(self.layout, tokens, features=self._features(torch.from_numpy(seen), pictures))

    def _features(self, state: Tensor, pictures: np.ndarray | None) -> dict[str, Tensor]:
        found = {STATE: self.scale(state)}
        if self.settings.picture:
            size = self.settings.picture
            shape = None if pictures is None else pictures.shape[1:]
            checked("pictures", shape, shape == (size, size, 3), f"give uint8 (n, {size}, {size}, 3)")
            found[VIEW] = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)  # type: ignore[arg-type]
        return found

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
    ) -> np.ndarray:
        """Chunks of actions (n, chunk, dim) float32 for states (n, dim) and what to do in words; (chunk, dim) for one state.

        prefix (n, k, dim): actions that are executed already (real-time chunking), returned as they are. seed: one, of which
        row i takes the i-th from it on, or one per row.
        """
        alone = isinstance(instruction, str)
        said = [instruction] if isinstance(instruction, str) else list(instruction)
        state = np.atleast_2d(np.asarray(state, dtype=np.float32))
        pictures = pictures[None] if alone and pictures is not None and pictures.ndim == 3 else pictures
        seeds = [seed + i for i in range(len(said))] if isinstance(seed, int) else list(seed)
        checked("seed", len(seeds), len(seeds) == len(said), f"one, or {len(said)}: one per row")
        batch, how = self.rows(state, said, pictures), decoding or self.decoding
        prefix = np.zeros((len(said), 0, self.tokenizer.config.dim), np.float32) if prefix is None else prefix
        prefix = prefix[None] if alone and prefix.ndim == 2 else prefix
        y = self._decoded(batch, torch.as_tensor(prefix, dtype=torch.float32), how, seeds)
        actions = self.tokenizer.normaliser.restore(y.clamp(-1, 1)).float().cpu().numpy()
        actions[:, : prefix.shape[1]] = prefix
        return actions[0] if alone else actions

    def _decoded(self, batch: TokenBatch, prefix: Tensor, how: Decoding, seeds: list[int]) -> Tensor:
        """Normalised actions (n, chunk, dim)."""
        chunk, dim, k = self.settings.chunk, self.tokenizer.config.dim, prefix.shape[1]
        fits = prefix.shape == (len(batch.tokens), k, dim) and k <= chunk
        checked("prefix", tuple(prefix.shape), fits, f"give ({len(batch.tokens)}, at most {chunk}, {dim})")
        known = self.tokenizer.normaliser.normalise(prefix).values
        if self.settings.method in CONTINUOUS:
            return regressed(self.model, batch.to(self.model.device), known, how.steps, seeds)
        if k:
            whole = torch.cat([prefix, prefix[:, -1:].expand(-1, chunk - k, -1)], 1)
            codes = self.tokenizer.encode(whole).codes.view(-1, chunk, dim)
            tokens, columns = batch.tokens.clone(), self.layout.columns(ACTION)[: k * dim]
            tokens[:, columns] = self.layout.vocab.to_global(codes, ACTION).flatten(1)[:, : k * dim]
            batch = batch._replace(tokens=tokens, given=tokens != self.layout.vocab.mask)
        run = self._sampler(how)
        state, _ = run(denoiser_of(self.model), batch.to(self.model.device), seeds)
        value = state.memory[VALUE][:, self.layout.columns(ACTION)]
        return value.unflatten(1, (chunk, dim)).cpu()

    def _sampler(self, how: Decoding) -> Sampler:
        if self.settings.method == "autoregressive":
            built = sampler("left_to_right", process_of(self.model), temperature=how.temperature, cache="block")
            return dataclasses.replace(built, kernel=Valued(built.kernel, self.values, how.read, how.window))
        knobs = {"steps": how.steps, "temperature": how.temperature, "cache": "prefix", **how.knobs}
        built = sampler(how.sampler, process_of(self.model), **knobs)
        return dataclasses.replace(built, kernel=Valued(built.kernel, self.values, how.read, how.window, how.nearest))

    def save_pretrained(self, folder: str | Path) -> None:
        """model/, tokenizer/ and task.json."""
        folder = Path(folder)
        self.model.save_pretrained(folder / MODEL)
        self.tokenizer.save_pretrained(folder / TOKENIZER)
        parts = {"lexicon": self.lexicon, "scale": self.scale, "policy": self.settings}
        stored = {name: to_dict(part) for name, part in parts.items()}
        stored["decoding"] = dataclasses.asdict(self.decoding) | {"knobs": dict(self.decoding.knobs)}
        (folder / TASK).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ActionPolicy:
        """Raises ValueError for a folder that holds no policy."""
        folder = Path(folder)
        checked("folder", str(folder), (folder / TASK).is_file(), "no policy there: python -m tasks.vla train --out it")
        stored = read_json(folder / TASK)
        kinds: dict[str, Any] = {"Lexicon": Lexicon, "Scale": Scale, "Policy": Policy}
        lexicon, scale, settings = (from_dict(stored[name], kinds) for name in ("lexicon", "scale", "policy"))
        network = ContinuousModel if settings.method in CONTINUOUS else DiscDiffModel
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = network.from_pretrained(folder / MODEL).to(device).eval()
        return cls(model, load_tokenizer(folder / TOKENIZER), lexicon, scale, settings, Decoding(**stored["decoding"]))


def layout_of(settings: Policy, dim: int, lexicon: Lexicon) -> Layout:
    """[instruction | state | view | action]; only the actions are noised, and nothing before them sees them."""
    vocab = VocabLayout(len(lexicon.words), (Modality(ACTION, settings.codebook_size, dim),))
    segments = [Segment(SAY, "text", (lexicon.length,), noised=False), Segment(STATE, "text", (1,), noised=False)]
    if settings.picture:
        segments.append(Segment(VIEW, "text", (GRID[0] * GRID[1],), noised=False))
    segments.append(Segment(ACTION, ACTION, (settings.chunk,), axes="t"))
    causal = settings.method == "autoregressive"
    packed = not causal and (settings.packed or settings.method in CONTINUOUS)
    return Layout(vocab, tuple(segments), attention="causal" if causal else "prefix", packed=packed)


def config_of(settings: Policy, layout: Layout, states: int) -> DiscDiffConfig:
    """The network's configuration; states: numbers of a state that it is told."""
    features: dict[str, Any] = {STATE: {"segment": STATE, "shape": [states]}}
    if settings.picture:
        size = settings.picture
        features[VIEW] = {"segment": VIEW, "shape": [3, size, size], "grid": list(GRID)}
    dim = layout.depth(layout.segments[-1])
    if settings.method == "flow":
        features[NOISY] = {"segment": ACTION, "shape": [settings.chunk, dim]}
    return DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()), layout=to_dict(layout), hidden_size=settings.hidden_size,
        num_layers=settings.num_layers, num_heads=settings.num_heads, initializer_range=settings.hidden_size**-0.5,
        max_length=len(layout.tables().lead), max_depth=dim if layout.packed else 1, features=features,
        time_conditioning=settings.method == "flow", shift=settings.method == "autoregressive",
    )  # fmt: skip


def told_state(episode: Episode, settings: Policy) -> np.ndarray:
    """The part of an episode's states that the policy is told."""
    return episode.state[:, : settings.proprio or None]
