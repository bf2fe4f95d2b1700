"""Train a policy on demonstrations: their chunks as rows, the objective of its method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout
from discdiff.maskers import Bernoulli, FixedCount, FullyMasked, Masker
from discdiff.models import DiscDiffModel, adapted
from discdiff.objectives import Autoregressive, Elbo, Jitter, Ordinal
from discdiff.objectives.ordinal import DISTANCES
from discdiff.processes import Absorbing
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.common.words import Lexicon
from tasks.text.base import Base, load_base
from tasks.vla.continuous import CONTINUOUS, ContinuousModel, Regression
from tasks.vla.design import (
    ACTION,
    SAY,
    STATE,
    VIEW,
    Decoding,
    Policy,
    Scale,
    config_of,
    features_of,
    layout_of,
)
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.policy import ActionPolicy
from tasks.vla.spoken import Spoken
from tokenizers_vq.action.bins import ActionBins

WEIGHTS = ("maskgit", "elbo")


@dataclass(frozen=True)
class Loss:
    """Of tokens; all but jitter of masked ones. width: of soft labels over neighbouring codes, a standard deviation in
    normalised units, 0 for hard ones; weight: of the distance of the expected number from the true one; distance: "absolute"
    or "squared"; jitter: the most that visible numbers are shown off by, a standard deviation, so that later rounds do not
    copy the errors of earlier ones; weights: "maskgit", every masked number counts the same and how many are masked follows
    the cosine (arXiv 2202.04200), or "elbo", the likelihood bound (arXiv 2406.07524); full: share of rows masked wholly
    besides, as the first round of every decoding meets them.
    """

    width: float = 0.15
    weight: float = 1.0
    distance: str = "absolute"
    jitter: float = 0.4
    weights: str = "maskgit"
    full: float = 0.5

    def __post_init__(self) -> None:
        for name in ("width", "weight", "jitter"):
            checked(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or above")
        checked("distance", self.distance, self.distance in DISTANCES, f"choose from {', '.join(DISTANCES)}")
        checked("weights", self.weights, self.weights in WEIGHTS, f"choose from {', '.join(WEIGHTS)}")
        checked("full", self.full, 0 <= self.full < 1, "a share of the rows in [0, 1)")

    @property
    def masker(self) -> Masker:
        """Which numbers of a row are masked, and how much they count."""
        own: Masker = FixedCount() if self.weights == "maskgit" else Bernoulli()
        return FullyMasked(own, self.full) if self.full else own

    def labels(self, method: str) -> float:
        """The width of the soft labels by which a method learns, 0 for hard ones."""
        return self.width if method == "masked" else 0.0

    def check(self, method: str) -> None:
        """Raise ValueError for a field that a method does not know and that is not as it is by default."""
        usual = Loss(jitter=self.jitter) if method == "autoregressive" else Loss()
        remedy = f"jitter is of tokens, all else of masked tokens, nothing of {method}: leave it as it is"
        checked("loss", asdict(self), method == "masked" or self == usual, remedy)


class Rows:
    """Chunks of demonstrations as training rows; pictures stay bytes."""

    def __init__(self, policy: ActionPolicy, layout: Layout, episodes: list[Episode]) -> None:
        cut = windows(episodes, policy.settings.chunk)
        self.lexicon, self.task = policy.lexicon, cut.task
        codes = policy.tokenizer.encode(cut.actions).codes.view(len(cut.actions), policy.settings.chunk, -1)
        self.tokens = torch.zeros(len(codes), layout.length, dtype=torch.int64)
        said = policy.lexicon.ids(cut.task)
        self.tokens[:, layout.columns(SAY)] = said.clamp(min=0)
        self.valid = None
        if bool((said < 0).any()):  # behind the end of an instruction
            self.valid = torch.ones_like(self.tokens, dtype=torch.bool)
            self.valid[:, layout.columns(SAY)] = said >= 0
        self.tokens[:, layout.columns(ACTION)] = layout.vocab.to_global(codes, ACTION).flatten(1)
        self.state = policy.scale(cut.state[:, : policy.settings.proprio or None])
        self.target = policy.tokenizer.normaliser.normalise(cut.actions).values
        self.regresses = policy.settings.method in CONTINUOUS
        self.pictures, self.where = None, torch.stack([cut.episode, cut.frame], 1)
        if policy.settings.picture:
            self.pictures = [_only(each, policy.settings.picture) for each in episodes]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = {"tokens": self.tokens[index], f"features.{STATE}": self.state[index]}
        if self.valid is not None:
            row["valid"] = self.valid[index]
        if self.regresses:
            row["features.target"] = self.target[index]
        if self.pictures is not None:
            episode, frame = self.where[index].tolist()
            row[f"features.{VIEW}"] = torch.from_numpy(self.pictures[episode][frame]).permute(2, 0, 1)
        return row


def untrained(settings: Policy, episodes: Iterable[Episode], seed: int, longest: int = 16) -> ActionPolicy:
    """A policy with its first weights, and everything it takes from demonstrations: words, scales, levels.

    Raises ValueError for no episodes, states without numbers, instructions of more than `longest` words, and as
    `tasks.text.base.load_base` and `discdiff.models.adapted` do where it begins with a checkpoint.
    """
    shown = list(episodes)
    checked("episodes", len(shown), len(shown) > 0, "at least one")
    numbers = shown[0].state.shape[1]
    checked("proprio", settings.proprio, settings.proprio <= numbers > 0, f"the states have {numbers} numbers")
    actions = torch.from_numpy(np.concatenate([each.action for each in shown]))
    state = np.concatenate([each.state[:, : settings.proprio or None] for each in shown])
    tokenizer = ActionBins.fit(
        actions[:, None].expand(-1, settings.chunk, -1), raw=settings.raw, codebook_size=settings.codebook_size,
        mode=settings.scaling,
    )  # fmt: skip
    said = [each.task for each in shown]
    if settings.base:
        text, words = load_base(settings.base, Base())
        lexicon: Any = Spoken.whole(words, said, settings.words)
        layout = layout_of(settings, actions.shape[1], lexicon, text.vocab)
        model = adapted(text.to("cpu"), layout, features_of(settings, layout, state.shape[1]), seed).eval()
    else:
        lexicon = Lexicon.whole(said, settings.words or longest)
        lexicon = replace(lexicon, length=settings.words or lexicon.length)
        layout = layout_of(settings, actions.shape[1], lexicon)
        network = ContinuousModel if settings.method in CONTINUOUS else DiscDiffModel
        model = network.seeded(config_of(settings, layout, state.shape[1]), seed).eval()
    steps = {"flow": 8, "masked": 4}.get(settings.method, 1)
    return ActionPolicy(model, tokenizer, lexicon, Scale.of(state), settings, Decoding(steps=steps))


def objective_of(policy: ActionPolicy, loss: Loss) -> Any:
    """What the method minimises."""
    if policy.settings.method in CONTINUOUS:
        return Regression(policy.settings.method == "flow")
    jitter = Jitter(policy.values, loss.jitter) if loss.jitter else None
    if policy.settings.method == "autoregressive":
        return Autoregressive(jitter)
    ordered = Ordinal(policy.values, loss.width, loss.weight, loss.distance) if loss.width or loss.weight else None
    return Elbo(Absorbing(), masker=loss.masker, ordinal=ordered, jitter=jitter)


def fit(
    policy: ActionPolicy, episodes: Iterable[Episode], training: TrainingSettings, folder: str | Path,
    loss: Loss | None = None, resume: str | None = None,
) -> ActionPolicy:  # fmt: skip
    """The policy, trained on the chunks that begin at every frame; checkpoints in FOLDER_training.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint `resume="auto"` goes on from, and
    ValueError for a loss of which the method knows nothing.
    """
    loss = loss or Loss()
    loss.check(policy.settings.method)
    folder, rows = Path(folder), Rows(policy, policy.layout, list(episodes))
    goal = objective_of(policy, loss)
    model = optimised(policy.model, training, goal, policy.layout, rows, folder, "model", resume)
    trained = replace(policy, model=model, width=loss.labels(policy.settings.method))
    trained.save_pretrained(folder)
    return trained


def optimised(
    model: Any, training: TrainingSettings, goal: Any, layout: Layout, rows: Any, folder: Path, part: str,
    resume: str | None,
) -> Any:  # fmt: skip
    """The network trained on rows towards a goal, in the state kept in FOLDER/part; checkpoints in FOLDER_training."""
    checkpoints = folder.with_name(f"{folder.name}_training")
    trainer = DiffusionTrainer(model.train(), training, goal, layout, rows, output_dir=checkpoints)
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(folder / part)
    return type(model).from_pretrained(folder / part).to(trainer.args.device).eval()


def _only(episode: Episode, size: int) -> np.ndarray:
    """The pictures of the only camera. Raises ValueError for several, none and another size."""
    found = {name: x.shape[1:3] for name, x in episode.pictures.items()}
    checked("cameras", found, list(found.values()) == [(size, size)], f"one camera with pictures {size} wide")
    return next(iter(episode.pictures.values()))
