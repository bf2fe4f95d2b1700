"""Pictures of demonstrations: their tokenizer, the ones after every chunk, and how near a policy's are to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.training import TrainingSettings
from tasks.common.fitting import Reconstruction, fit
from tasks.image.quality import Items, error
from tasks.image.tokenizer import build
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.policy import Decoding
from tasks.vla.unified import Foreseen, UnifiedPolicy, channels_first
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig, from_bytes


class Errors(NamedTuple):
    """Root mean square errors of pictures after a chunk, as shares of the range: of those predicted, of the last one seen, and
    of the true ones behind their codes, which is what the codes allow.
    """

    predicted: float
    copied: float
    coded: float


def seen_by(episode: Episode) -> np.ndarray:
    """The pictures of the only camera. Raises ValueError for several and none."""
    checked("cameras", list(episode.pictures), len(episode.pictures) == 1, "give demonstrations with one camera")
    return next(iter(episode.pictures.values()))


def moments(episodes: Iterable[Episode], chunk: int) -> tuple[Tensor, Tensor]:
    """Of every chunk, in the order of `windows`, the frames in which it begins and after which it is over, counted through all
    episodes; a chunk that reaches beyond the end of its episode is over with the last frame.
    """
    now, after, first = [], [], 0
    for each in episodes:
        frame = torch.arange(len(each))
        now.append(first + frame)
        after.append(first + (frame + chunk).clamp(max=len(each) - 1))
        first += len(each)
    return torch.cat(now), torch.cat(after)


def fit_pictures(
    episodes: Iterable[Episode],
    training: TrainingSettings,
    folder: str | Path,
    resume: str | None = None,
    **config: Any,
) -> ImageTokenizer:
    """A tokenizer of the demonstrations' pictures, 8 x 8 codes of 64 x 64 unless `config` (of `ImageTokenizerConfig`) has other
    strides; checkpoints in FOLDER_training.
    """
    shape = {"width": 32, "blocks": 1, "strides": (2, 2, 2), "code_dim": 16, "codebook_size": 256} | config
    seen = channels_first(np.concatenate([seen_by(each) for each in episodes]))
    tokenizer = build(ImageTokenizerConfig(**shape), training.seed)
    fitted: ImageTokenizer = fit(tokenizer, Reconstruction(), training, Items(seen), folder, resume=resume)
    return fitted


def foreseen(
    policy: UnifiedPolicy, episodes: Iterable[Episode], *, every: int = 0, seed: int = 0, decoding: str | None = None,
    rounds: Decoding | None = None, batch: int = 32,
) -> tuple[Foreseen, np.ndarray, np.ndarray]:  # fmt: skip
    """What the policy foresees at every `every`-th frame of each episode (0: a chunk's length), the pictures that were seen
    there, and the true ones after the chunk, both uint8.
    """
    shown, chunk = list(episodes), policy.settings.chunk
    cut, seen = windows(shown, chunk), np.concatenate([seen_by(each) for each in shown])
    now, after = moments(shown, chunk)
    chosen = (cut.frame % (every or chunk) == 0).nonzero()[:, 0]
    state = cut.state[:, : policy.settings.proprio or None].numpy()
    made = []
    for some in chosen.split(batch):
        said = [cut.task[i] for i in some.tolist()]
        seeds = (seed + some).tolist()
        args = (state[some], said, seen[now[some]])
        made.append(policy.predict(*args, seed=seeds, decoding=decoding, rounds=rounds))
    actions = np.concatenate([each.actions for each in made])
    future = None if made[0].future is None else np.concatenate([each.future for each in made])  # type: ignore[misc]
    return Foreseen(actions, future), seen[now[chosen]], seen[after[chosen]]


def errors(policy: UnifiedPolicy, found: Foreseen, seen: np.ndarray, true: np.ndarray) -> Errors:
    """Of what `foreseen` gave. Raises ValueError where no future picture was made."""
    checked("future", found.future is None, found.future is not None, "decode it jointly or separately")
    wanted = channels_first(true)
    pairs = (from_bytes(channels_first(x)) for x in (found.future, seen) if x is not None)
    predicted, copied = (error(wanted, x) for x in pairs)
    tokens = torch.full((len(true), policy.layout.length), policy.layout.vocab.mask)
    for name, x in ((FUTURE, true), (PICTURE, seen)):
        ids = policy.layout.vocab.to_global(policy.coded(x), IMAGE).flatten(1)
        tokens[:, policy.layout.columns(name)] = ids
    return Errors(predicted, copied, error(wanted, from_bytes(channels_first(policy.shown(tokens, seen)))))
