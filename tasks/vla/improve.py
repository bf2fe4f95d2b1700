"""The commands `energy` and `distill` of a masked policy: what makes few rounds of its decoding better, saved beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from discdiff.cli import parse
from discdiff.config import checked
from discdiff.denoisers import denoiser_of, process_of
from discdiff.energy import NoiseContrastive
from discdiff.layout import TokenBatch, make_batch
from discdiff.maskers import FixedCount
from discdiff.objectives import Elbo
from discdiff.training import TrainingSettings
from tasks.common.improve import Distillation, learn_energy, learn_grid
from tasks.vla.commands import episodes_of, opened
from tasks.vla.design import ACTION
from tasks.vla.episodes import Episode
from tasks.vla.learning import Rows
from tasks.vla.policy import ActionPolicy
from tasks.vla.policy_settings import Training

HELD = 20  # of so many episodes one is kept back, by which an energy is judged; the policy itself has learned it


def energy(prog: str, argv: Sequence[str]) -> None:
    """Learn to tell demonstrated chunks from what the policy draws in their place; `--sampler edlm --sampler.energy learned
    --temperature 1` chooses among drawn chunks by it.
    """
    chosen = parse(prog, argv, {"training": Training}, ("folder",))
    folder, training = Path(chosen["folder"]), chosen["training"]
    policy, shown = _masked(folder)
    print(f"saved to {fit_energy(policy, shown, training, folder)}")


def fit_energy(policy: ActionPolicy, shown: Sequence[Episode], training: TrainingSettings, folder: Path) -> Path:
    """An energy of a masked policy's chunks, saved in its folder; every 20th episode is kept back to judge it by.

    Raises ValueError for a single episode.
    """
    checked("episodes", len(shown), len(shown) > 1, "one to learn from and one to judge by")
    model = policy.model.to("cpu") if training.device == "cpu" else policy.model
    learned = [each for i, each in enumerate(shown) if i % HELD]
    train, valid = (Rows(policy, policy.layout, list(some)) for some in (learned, shown[::HELD]))
    objective = NoiseContrastive(model, Elbo(process_of(model), masker=FixedCount()))
    return learn_energy(objective, model, training, policy.layout, train, valid, folder)


def distill(prog: str, argv: Sequence[str]) -> None:
    """Learn the times of the few rounds of a sampler, from observations of the demonstrations; `--grid NAME` uses them."""
    chosen = parse(prog, argv, {"distillation": Distillation}, ("folder",))
    folder, how = Path(chosen["folder"]), chosen["distillation"]
    policy, shown = _masked(folder)
    rows = unmade(policy, shown, how.rows, how.seed).to(policy.model.device)
    path = learn_grid(denoiser_of(policy.model), process_of(policy.model), rows, how, folder)
    print(f"saved to {path}: python -m tasks.vla evaluate {folder} --sampler ancestral --grid {path.stem}")


def unmade(policy: ActionPolicy, shown: Sequence[Episode], count: int, seed: int) -> TokenBatch:
    """Observations at frames of demonstrations, drawn without return, as rows whose actions are all masked."""
    rows = Rows(policy, policy.layout, list(shown))
    return hidden(policy, rows, some(rows, count, seed))


def some(rows: Rows, count: int, seed: int) -> list[int]:
    """Indices of rows, drawn without return. Raises ValueError for more than there are."""
    checked("rows", count, count <= len(rows), f"the demonstrations have {len(rows)} frames")
    found: list[int] = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return found


def hidden(policy: ActionPolicy, rows: Rows, which: Sequence[int]) -> TokenBatch:
    """Those rows with all their actions masked."""
    picked = [rows[i] for i in which]
    features = {
        name.removeprefix("features."): torch.stack([each[name] for each in picked])
        for name in picked[0]
        if name.startswith("features.")
    }
    tokens = torch.stack([each["tokens"] for each in picked])
    tokens[:, policy.layout.columns(ACTION)] = policy.layout.vocab.mask
    return make_batch(policy.layout, tokens, features=features)


def _masked(folder: Path) -> tuple[ActionPolicy, list[Episode]]:
    """A policy and what it was trained on. Raises ValueError for one without masks."""
    policy, data = opened(folder)
    method = policy.settings.method
    checked("method", method, method == "masked", "energies and learned times are of masked policies")
    return policy, episodes_of(data, policy.settings.picture)
