"""Train a unified policy in two stages: first the world, then the actions with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.maskers import FixedCount, Masked
from discdiff.models import DiscDiffModel
from discdiff.noise import MASK, Noise
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing
from discdiff.schedules import CosineMD4, Schedule
from discdiff.training import TrainingSettings
from tasks.vla import learning
from tasks.vla.design import ACTION, Policy, config_of
from tasks.vla.episodes import Episode
from tasks.vla.learning import Loss
from tasks.vla.policy import MODEL
from tasks.vla.unified import ACTIONS, ROUNDS, UnifiedPolicy
from tasks.vla.unified_design import FUTURE, IMAGE, PICTURE, Unified, given_of, layout_of, without_actions
from tasks.vla.unified_pictures import moments, seen_by
from tokenizers_vq.image import ImageTokenizer

VISION = 0.5  # weight of the future picture's loss, per code


@dataclass(frozen=True)
class Apart:
    """Each named segment hides MaskGIT's count of its own positions (arXiv 2202.04200), at a time of its own, as UD-VLA's code
    does where its paper writes one time for all; every hidden position counts with its segment's weight. turns: only one of
    them in a row, each as often as the others, beside which the others are whole: what decoding them one by one meets. full:
    share of the rows in which all of them, or of the one whose turn it is, is hidden.
    """

    weights: Mapping[str, float]
    schedule: Schedule = field(default_factory=CosineMD4)
    turns: bool = False
    full: float = 0.0

    def __post_init__(self) -> None:
        ok = len(self.weights) > 0 and all(0 < x < float("inf") for x in self.weights.values())
        checked("weights", dict(self.weights), ok, "a number above 0 for at least one segment")

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        count, hidden = len(self.weights), torch.zeros_like(batch.free)
        weight = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
        turn = (noise.child(count).row_uniform(MASK) * count).long()
        whole = noise.child(count + 1).row_uniform(MASK) < self.full
        for place, (name, value) in enumerate(self.weights.items()):
            here = batch.within((name,))
            wanted = here & (turn == place)[:, None] if self.turns else here
            # the shared stratified time, turned by an offset of the segment's own
            time = t.double() if place == 0 else (t.double() + noise.child(place).row_uniform(MASK)) % 1.0
            time = torch.where(whole, 1.0, time)
            own = FixedCount(self.schedule)(batch._replace(given=batch.given | ~wanted), noise, time)
            hidden, weight = hidden | own.hidden, torch.where(here, value, weight)
        return Masked(hidden, weight)


class Rows:
    """Chunks of demonstrations as training rows, with what is seen when a chunk begins and when it is over; the last frame of
    an episode stands for all that would come after it. world: without the actions. codes: of `codes_of`, where they are known.
    """

    def __init__(
        self, policy: UnifiedPolicy, episodes: list[Episode], world: bool = False, codes: Tensor | None = None
    ) -> None:
        layout, codes = policy.layout, codes_of(policy, episodes) if codes is None else codes
        self.told = learning.Rows(policy.told, layout, episodes)
        for name, frame in zip((PICTURE, FUTURE), moments(episodes, policy.told.settings.chunk), strict=True):
            if name in layout.names:
                self.told.tokens[:, layout.columns(name)] = layout.vocab.to_global(codes[frame], IMAGE).flatten(1)
        self.layout = without_actions(layout) if world else layout
        self.given = given_of(self.layout)

    def __len__(self) -> int:
        return len(self.told)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.told[index]
        return {**row, "tokens": row["tokens"][: self.layout.length], "given": self.given}  # the actions come last


def codes_of(policy: UnifiedPolicy, episodes: Iterable[Episode]) -> Tensor:
    """Codes (frames, slots, depth) of all pictures of demonstrations; they depend on the pictures' tokenizer alone."""
    return torch.cat([policy.coded(seen_by(each)) for each in episodes])


def untrained(
    settings: Unified, episodes: Iterable[Episode], pictures: ImageTokenizer, seed: int, policy: Policy | None = None
) -> UnifiedPolicy:
    """A policy with its first weights, and everything that `learning.untrained` takes from demonstrations.

    Raises ValueError as that does, and for a `policy` that is not masked, has a picture of its own, or begins with a
    checkpoint.
    """
    policy = policy or Policy()
    kind = (policy.method, policy.picture, policy.base)
    remedy = "leave them out: it is masked, of a network of its own, and Unified(width=...) says how wide pictures are"
    checked("method, picture and base", kind, kind == ("masked", 0, ""), remedy)
    told = learning.untrained(policy, episodes, seed)
    layout = layout_of(settings, told.layout, pictures)
    config = config_of(policy, layout, len(told.scale.middle))
    config.max_depth = max(layout.depth(s) for s in layout.segments) if layout.packed else 1
    told = replace(told, model=DiscDiffModel.seeded(config, seed).eval(), decoding=ROUNDS)
    return UnifiedPolicy(told, pictures, settings)


def world_objective() -> Elbo:
    """Of the first stage: the future picture given instruction, state and picture."""
    return Elbo(Absorbing(), masker=Apart({FUTURE: 1.0}))


def joint_objective(policy: UnifiedPolicy, loss: Loss, vision: float = VISION) -> Elbo:
    """Of the second stage: future picture and actions, each hidden at its own ratio, in turns for separate decoding; ordinal
    losses are of the actions. Raises ValueError for a loss that masks in a way of its own.
    """
    usual = Loss.weights
    checked("weights", loss.weights, loss.weights == usual, f"all is masked by MaskGIT's ratios: leave it at {usual!r}")
    weights = {ACTION: 1.0} | ({FUTURE: vision} if policy.settings.foresees else {})
    masker = Apart(weights, turns=policy.settings.decoding == "separate", full=loss.full)
    goal: Elbo = replace(learning.objective_of(policy.told, loss), masker=masker)
    return goal


def fit_world(
    policy: UnifiedPolicy, episodes: Iterable[Episode], training: TrainingSettings, folder: str | Path,
    resume: str | None = None, codes: Tensor | None = None,
) -> UnifiedPolicy:  # fmt: skip
    """The first stage: the policy whose network has learned what is seen after every chunk, and of the actions nothing.
    Arguments and errors are those of `fit`. Raises ValueError where there is no future picture.
    """
    way, has = policy.settings.decoding, policy.settings.foresees
    checked("decoding", way, has, "it has no future picture, and so no world to learn")
    return _stage(policy, training, world_objective(), Rows(policy, list(episodes), True, codes), Path(folder), resume)


def fit(
    policy: UnifiedPolicy, episodes: Iterable[Episode], training: TrainingSettings, folder: str | Path,
    loss: Loss | None = None, resume: str | None = None, codes: Tensor | None = None, vision: float = VISION,
) -> UnifiedPolicy:  # fmt: skip
    """The second stage: the policy, usually one of `fit_world`, trained on the chunks that begin at every frame; saved in
    FOLDER, checkpoints in FOLDER_training. codes: of `codes_of`, where they are known; vision: weight of the picture's loss.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint `resume="auto"` goes on from.
    """
    loss = loss or Loss()
    goal = joint_objective(policy, loss, vision)
    policy = replace(policy, told=replace(policy.told, width=loss.labels(policy.told.settings.method)))
    return _stage(policy, training, goal, Rows(policy, list(episodes), False, codes), Path(folder), resume)


def _stage(
    policy: UnifiedPolicy, training: TrainingSettings, goal: Elbo, rows: Rows, folder: Path, resume: str | None
) -> UnifiedPolicy:
    where = f"{ACTIONS}/{MODEL}"
    trained = policy.on(learning.optimised(policy.model, training, goal, rows.layout, rows, folder, where, resume))
    trained.save_pretrained(folder)
    return trained
