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
from tasks.vla.design import Decoding
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.unified import Foreseen, UnifiedPolicy, channels_first
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig, from_bytes

CODEC: dict[str, Any] = {  # of a tokenizer's configuration, where nothing else is said: 8 x 8 codes of 64 x 64
    "width": 32, "blocks": 1, "strides": (2, 2, 2), "code_dim": 16, "codebook_size": 256, "pixel": "l2",
}  # fmt: skip


class Looked(NamedTuple):
    """What a policy foresees at some frames of demonstrations, the pictures seen there and the true ones after the chunk, both
    (n, width, width, 3) uint8, and what the demonstrations do there (n, chunk, dim).
    """

    made: Foreseen
    seen: np.ndarray
    true: np.ndarray
    done: np.ndarray


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


def blank(seed: int, **config: Any) -> ImageTokenizer:
    """A tokenizer with its first weights; config: of `ImageTokenizerConfig`, what differs from `CODEC`."""
    return build(ImageTokenizerConfig(**(CODEC | config)), seed)


def fit_pictures(
    episodes: Iterable[Episode],
    training: TrainingSettings,
    folder: str | Path,
    resume: str | None = None,
    **config: Any,
) -> ImageTokenizer:
    """A tokenizer of the demonstrations' pictures, see `blank`, trained; checkpoints in FOLDER_training."""
    seen = channels_first(np.concatenate([seen_by(each) for each in episodes]))
    tokenizer = blank(training.seed, **config)
    fitted: ImageTokenizer = fit(tokenizer, Reconstruction(), training, Items(seen), folder, resume=resume)
    return fitted


def foreseen(
    policy: UnifiedPolicy, episodes: Iterable[Episode], *, every: int = 0, seed: int = 0, decoding: str | None = None,
    rounds: Decoding | None = None, batch: int = 32,
) -> Looked:  # fmt: skip
    """What the policy foresees at every `every`-th frame of each episode (0: a chunk's length), `batch` frames at a time."""
    shown, settings = list(episodes), policy.told.settings
    cut, seen = windows(shown, settings.chunk), np.concatenate([seen_by(each) for each in shown])
    now, after = (
        frames.numpy() for frames in moments(shown, settings.chunk)
    )  # an index of numpy's, also where it is one
    chosen = np.flatnonzero(cut.frame % (every or settings.chunk) == 0)
    state = cut.state[:, : settings.proprio or None].numpy()
    made = []
    for some in np.split(chosen, range(batch, len(chosen), batch)):
        said = [cut.task[i] for i in some.tolist()]
        args = (state[some], said, seen[now[some]])
        made.append(policy.predict(*args, seed=(seed + some).tolist(), decoding=decoding, rounds=rounds))
    future = [each.future for each in made if each.future is not None]
    whole = Foreseen(np.concatenate([each.actions for each in made]), np.concatenate(future) if future else None)
    return Looked(whole, seen[now[chosen]], seen[after[chosen]], cut.actions.numpy()[chosen])


def errors(policy: UnifiedPolicy, found: Looked) -> Errors:
    """Of what `foreseen` gave. Raises ValueError where no future picture was made."""
    made = found.made.future
    checked("future", made, made is not None, "this policy makes none")
    wanted, tokens = channels_first(found.true), torch.zeros(len(found.true), policy.layout.length, dtype=torch.int64)
    for name, x in ((FUTURE, found.true), (PICTURE, found.seen)):
        tokens[:, policy.layout.columns(name)] = policy.layout.vocab.to_global(policy.coded(x), IMAGE).flatten(1)
    compared = (made, found.seen, policy.shown(tokens, found.seen))
    return Errors(*(error(wanted, from_bytes(channels_first(x))) for x in compared if x is not None))
