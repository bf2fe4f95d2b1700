"""Train a unified policy in two stages: first the world, then the actions with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.maskers import FixedCount, Masked
from discdiff.models import DiscDiffModel
from discdiff.noise import MASK, Noise
from discdiff.objectives import Elbo, Ordinal
from discdiff.processes import Absorbing
from discdiff.schedules import CosineMD4, Schedule
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.common.words import Lexicon
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss
from tasks.vla.lerobot import windows
from tasks.vla.policy import ACTION, SAY, STATE, Scale
from tasks.vla.unified import MODEL, UnifiedPolicy
from tasks.vla.unified_design import (
    FUTURE,
    IMAGE,
    PICTURE,
    Unified,
    config_of,
    given_of,
    layout_of,
    without_actions,
)  # fmt: skip
from tasks.vla.unified_pictures import moments, seen_by
from tokenizers_vq.action.bins import ActionBins
from tokenizers_vq.image import ImageTokenizer

VISION = 0.5  # weight of the future picture's loss, per code


@dataclass(frozen=True)
class Apart:
    """Each named segment hides MaskGIT's count of its own positions (arXiv 2202.04200), at a time of its own, as UD-VLA's code
    does where its paper writes one time for all; every hidden position counts with its segment's weight.
    """

    weights: Mapping[str, float]
    schedule: Schedule = field(default_factory=CosineMD4)

    def __post_init__(self) -> None:
        ok = len(self.weights) > 0 and all(0 < x < float("inf") for x in self.weights.values())
        checked("weights", dict(self.weights), ok, "a number above 0 for at least one segment")

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        hidden, weight = torch.zeros_like(batch.free), torch.zeros(batch.free.shape, dtype=torch.float64)
        weight = weight.to(hidden.device)
        for place, (name, value) in enumerate(self.weights.items()):
            here = batch.within((name,))
            # the shared stratified time, turned by an offset of the segment's own
            time = t.double() if place == 0 else (t.double() + noise.child(place).row_uniform(MASK)) % 1.0
            own = FixedCount(self.schedule)(batch._replace(given=batch.given | ~here), noise, time)
            hidden, weight = hidden | own.hidden, torch.where(here, value, weight)
        return Masked(hidden, weight)


class Rows:
    """Chunks of demonstrations as training rows, with what is seen when a chunk begins and when it is over; the last frame of
    an episode stands for all that would come after it. world: without the actions. codes: of `codes_of`, where they are known.
    """

    def __init__(
        self, policy: UnifiedPolicy, episodes: list[Episode], world: bool = False, codes: Tensor | None = None
    ) -> None:
        layout, chunk = policy.layout, policy.settings.chunk
        cut = windows(episodes, chunk)
        self.layout = without_actions(layout) if world else layout
        codes = codes_of(policy, episodes) if codes is None else codes
        now, after = moments(episodes, chunk)
        actions = policy.tokenizer.encode(cut.actions).codes.view(len(now), chunk, -1)
        columns = {
            SAY: policy.lexicon.ids(cut.task),
            PICTURE: layout.vocab.to_global(codes[now], IMAGE).flatten(1),
            FUTURE: layout.vocab.to_global(codes[after], IMAGE).flatten(1),
            ACTION: layout.vocab.to_global(actions, ACTION).flatten(1),
        }
        self.tokens = torch.zeros(len(now), self.layout.length, dtype=torch.int64)
        for name in set(columns) & set(self.layout.names):
            self.tokens[:, self.layout.columns(name)] = columns[name]
        self.state, self.given = policy.scale(cut.state[:, : policy.settings.proprio or None]), given_of(self.layout)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens[index], "given": self.given, f"features.{STATE}": self.state[index]}


def codes_of(policy: UnifiedPolicy, episodes: Iterable[Episode]) -> Tensor:
    """Codes (frames, slots, depth) of all pictures of demonstrations; they depend on the pictures' tokenizer alone."""
    return torch.cat([policy.coded(seen_by(each)) for each in episodes])


def untrained(
    settings: Unified, episodes: Iterable[Episode], pictures: ImageTokenizer, seed: int, longest: int = 16
) -> UnifiedPolicy:
    """A policy with its first weights, and everything it takes from demonstrations: words, scales, levels.

    Raises ValueError for no episodes, states without numbers, and instructions of more than `longest` words.
    """
    shown = list(episodes)
    checked("episodes", len(shown), len(shown) > 0, "at least one")
    numbers = shown[0].state.shape[1]
    checked("proprio", settings.proprio, settings.proprio <= numbers > 0, f"the states have {numbers} numbers")
    actions = torch.from_numpy(np.concatenate([each.action for each in shown]))
    state = np.concatenate([each.state[:, : settings.proprio or None] for each in shown])
    tokenizer = ActionBins.fit(
        actions[:, None].expand(-1, settings.chunk, -1), codebook_size=settings.codebook_size, mode="range"
    )
    lexicon = Lexicon.whole([each.task for each in shown], longest)
    layout = layout_of(settings, tokenizer, pictures, lexicon)
    model = DiscDiffModel.seeded(config_of(settings, layout, state.shape[1]), seed)
    return UnifiedPolicy(model, tokenizer, pictures, lexicon, Scale.of(state), settings)


def world_objective() -> Elbo:
    """Of the first stage: the future picture given instruction, state and picture."""
    return Elbo(Absorbing(), masker=Apart({FUTURE: 1.0}))


def joint_objective(policy: UnifiedPolicy, loss: Loss, vision: float = VISION) -> Elbo:
    """Of the second stage: future picture and actions, each hidden at its own ratio; ordinal losses are of the actions."""
    ordered = Ordinal(policy.values, loss.width, loss.weight, loss.distance) if loss.width or loss.weight else None
    weights = {ACTION: 1.0} | ({FUTURE: vision} if policy.settings.future else {})
    return Elbo(Absorbing(), masker=Apart(weights), ordinal=ordered)


def fit(
    policy: UnifiedPolicy, episodes: Iterable[Episode], training: TrainingSettings, folder: str | Path, *,
    world: TrainingSettings | None = None, loss: Loss | None = None, vision: float = VISION, resume: str | None = None,
    codes: Tensor | None = None,
) -> UnifiedPolicy:  # fmt: skip
    """The policy, trained on the chunks that begin at every frame; world: a first stage without actions, where wanted;
    checkpoints in FOLDER_world_training and FOLDER_training; codes: of `codes_of`, where they are known.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended a stage, whose checkpoint `resume="auto"` goes on from, and
    ValueError for a world to learn where there is no future picture.
    """
    ok = world is None or policy.settings.future
    checked("world", world, ok, "leave it out: without a future picture there is no world")
    folder, shown, model = Path(folder), list(episodes), policy.model
    codes = codes_of(policy, shown) if codes is None else codes
    if world is not None:
        rows = Rows(policy, shown, True, codes)
        model = _stage(model, world, world_objective(), rows, folder.with_name(f"{folder.name}_world"), resume)
    goal = joint_objective(policy, loss or Loss(), vision)
    model = _stage(model, training, goal, Rows(policy, shown, False, codes), folder, resume)
    trained = replace(policy, model=model)
    trained.save_pretrained(folder)
    return trained


def _stage(model: Any, training: TrainingSettings, goal: Elbo, rows: Rows, folder: Path, resume: str | None) -> Any:
    checkpoints = folder.with_name(f"{folder.name}_training")
    trainer = DiffusionTrainer(model.train(), training, goal, rows.layout, rows, output_dir=checkpoints)
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(folder / MODEL)
    return type(model).from_pretrained(folder / MODEL).to(trainer.args.device).eval()
