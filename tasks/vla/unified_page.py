"""The report of a unified policy: what it foresees beside what was true, and a picture and a chunk as they appear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from discdiff.report import ImageView, Report, image_grid
from discdiff.report import record as traced
from tasks.vla import page
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import windows
from tasks.vla.rollout import Rollout
from tasks.vla.unified import UnifiedPolicy
from tasks.vla.unified_design import FUTURE
from tasks.vla.unified_pictures import Looked, seen_by

TRIED = ("success", "success_low", "success_high", "length", "calls")
ROWS, GREY = 10, 128  # moments that are shown; no change
COLUMNS = ("seen", "foreseen", "true", "foreseen change", "true change")


def write(
    file: Path, policy: UnifiedPolicy, decoding: str, figures: Mapping[str, Any], found: Looked, episode: Episode,
    by_task: Mapping[str, Mapping[str, float]] | None = None, tried: Sequence[Rollout] = (),
    logs: Mapping[str, Path] | None = None,
) -> Path:  # fmt: skip
    """Write the page: figures by name, `found` of `unified_pictures.foreseen`, and the middle frame of an episode, whose future
    picture is shown round by round; by_task: figures of episodes that were tried; of those whose frames were kept a GIF each,
    in episodes/ beside the page; logs: of trainings, by name.
    """
    settings, rounds = policy.settings, policy.told.decoding.steps
    each = " for each part" if decoding == "separate" else ""
    said = f"{decoding} decoding in {rounds} rounds{each}, chunks of {policy.told.settings.chunk} actions"
    report = Report("Robot policy that foresees", f"{said}, {settings.attention} attention")
    report.figures(figures)
    if by_task:
        rows = [(task, *(each[n] for n in TRIED)) for task, each in by_task.items()]
        report.heading("Tasks").table(rows, ("task", "success", "low", "high", "steps", "calls"))
    if kept := [r for r in tried if r.frames is not None]:
        report.heading("Episodes").html(page.moving(file.with_name("episodes"), kept))
    if found.made.future is not None:
        report.heading("The picture after a chunk")
        report.text(
            "At even distances. A change is the difference from the picture that is seen, grey where there is none."
        )
        some = np.linspace(0, len(found.seen) - 1, min(ROWS, len(found.seen))).round().astype(int)
        seen, made, true = (x[some] for x in (found.seen, found.made.future, found.true))
        shown = np.stack([seen, made, true, _change(seen, made), _change(seen, true)], 1)
        grid = image_grid(shown.reshape(-1, *seen.shape[1:]), len(COLUMNS), 2, COLUMNS * len(some))
        report.image(grid, "seen when a chunk begins; foreseen and true when it is over")
        if policy.pictures.depth == 1:
            report.heading("A picture and a chunk appear")
            _appear(report, policy, decoding, episode)
    curves = {name: list(zip(*curve)) for name, log in (logs or {}).items() if len(curve := page.losses(log)) > 1}
    if curves:
        report.heading("Training")
    for name, (steps, loss) in curves.items():
        report.curve({"loss": (steps, loss)}, "step", "loss", name)
    return report.save(file)


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.clip(after.astype(np.int16) - before + GREY, 0, 255).astype(np.uint8)


def _appear(report: Report, policy: UnifiedPolicy, decoding: str, episode: Episode) -> None:
    """A player of the rounds in which the future picture is decoded, and the actions beside those of the demonstration."""
    frame, told = len(episode) // 2, policy.told.settings
    state, picture = episode.state[frame : frame + 1, : told.proprio or None], seen_by(episode)[frame : frame + 1]
    batch = policy.rows(state, [episode.task], picture)
    with torch.no_grad():
        trace = traced(policy.run(batch, [0], decoding))
    side = policy.settings.width // policy.pictures.stride
    columns = policy.layout.columns(FUTURE).view(side, side).numpy()

    def pixels(ids: np.ndarray) -> np.ndarray:
        tokens = batch.tokens.clone()
        tokens[:, columns.ravel()] = torch.from_numpy(ids.reshape(1, -1))
        return policy.shown(tokens, picture)[0]

    view = ImageView("the picture after the chunk", columns, pixels)
    report.player(trace, [view], f"{episode.task}: {trace.steps - 1} rounds")
    made = policy.predict(state[0], episode.task, picture[0], decoding=decoding).actions
    done = windows([episode], told.chunk).actions[frame].numpy()
    rows = [(f"step {t + 1}", _numbers(made[t]), _numbers(done[t])) for t in range(told.chunk)]
    report.table(rows, ("action", "decoded", "in the demonstration"))


def _numbers(action: np.ndarray) -> str:
    return "  ".join(f"{x:+.2f}" for x in action)
