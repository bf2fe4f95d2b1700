"""The report of a policy: success by task, episodes as moving pictures, and the un-masking of a chunk."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from discdiff.report import GridView, Report, Trace
from tasks.vla.continuous import CONTINUOUS
from tasks.vla.design import ACTION, Decoding, told_state
from tasks.vla.episodes import Episode
from tasks.vla.policy import ActionPolicy
from tasks.vla.rendering import write_gif
from tasks.vla.rollout import Rollout

ROUNDS = 8  # in which a chunk is also shown where it is decoded in one


def view(episode: Episode, frame: int) -> np.ndarray | None:
    """What the only camera sees at a frame (height, width, 3), None where there is none."""
    return next((seen[frame] for seen in episode.pictures.values()), None)


def tried(
    folder: Path,
    policy: ActionPolicy,
    how: Decoding,
    figures: Mapping[str, float],
    by_task: Mapping[str, Mapping[str, float]],
    found: Sequence[Rollout],
    episode: Episode,
) -> Path:
    """Write report.html, and a GIF of every episode whose frames were kept; episode: whose first chunk is un-masked."""
    settings = policy.settings
    report = Report("Robot policy", f"{settings.method}, chunks of {settings.chunk} actions, {len(found)} episodes")
    report.figures({
        "success": f"{figures['success']:.1%}",
        "95 % interval": f"{figures['success_low']:.1%} to {figures['success_high']:.1%}",
        "steps of an episode": figures["length"],
        "ms per chunk": figures["ms_per_chunk"],
    })  # fmt: skip
    report.text(f"Decoded by {_words(policy, how)}.")
    rows = [(task, *(each[n] for n in ("success", "success_low", "success_high", "length", "calls")))
            for task, each in by_task.items()]  # fmt: skip
    report.heading("Tasks").table(rows, ("task", "success", "low", "high", "steps", "calls"))
    kept = [r for r in found if r.frames is not None]
    if kept:
        report.heading("Episodes").html(moving(folder / "episodes", kept))
    if settings.method not in CONTINUOUS:
        report.heading("A chunk appears")
        state = told_state(episode, settings)[0]
        several = settings.method == "masked" and not how.grid  # learned times are those of their own rounds
        for rounds in dict.fromkeys((how.steps, max(how.steps, ROUNDS)) if several else (how.steps,)):
            same = replace(how, steps=rounds)
            trace = policy.unmasking(state, episode.task, view(episode, 0), decoding=same)
            told = f"{trace.steps - 1} rounds" + (f" of {how.grid}" if how.grid else "")
            report.player(trace, [_cells(policy)], f"{episode.task}: {told}; normalised numbers of tokens")
            report.table(*_rounds(policy, trace))
    log = folder.with_name(f"{folder.name}_training") / "metrics.jsonl"
    if len(curve := losses(log)) > 1:
        steps, loss = zip(*curve, strict=True)
        report.heading("Training").curve({"loss": (steps, loss)}, "step", "loss")
    return report.save(folder / "report.html")


def _words(policy: ActionPolicy, how: Decoding) -> str:
    """How chunks are decoded, in words."""
    method, steps = policy.settings.method, len(policy.grids[how.grid]) if how.grid else how.steps
    rounds = f"{steps} round{'s' * (steps > 1)}" + (f" at the learned times {how.grid}" if how.grid else "")
    told = ", ".join(f"{name} {value}" for name, value in how.knobs.items())
    return {
        "masked": f"{how.sampler} in {rounds}, read by {how.read}" + (f", {told}" if told else ""),
        "autoregressive": f"one number after another, read by {how.read}",
        "parallel": "one pass, as numbers",
        "flow": f"{how.steps} steps of Euler's method",
    }[method]


def moving(folder: Path, kept: Sequence[Rollout]) -> str:
    """Cards with the episodes as GIFs inside the page; the same GIFs as files in a folder."""
    cards = []
    for number, each in enumerate(kept):
        assert each.frames is not None
        path = write_gif(folder / f"episode_{number + 1}.gif", each.frames, scale=max(1, 192 // each.frames.shape[1]))
        address = "data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode()
        ended = "done" if each.success else "not done"
        text = escape(f"{each.task}, seed {each.seed}: {ended} after {each.length} steps")
        picture = f'<img src="{address}" alt="{text}" class="crisp">'
        cards.append(f'<figure class="card">{picture}<figcaption>{text}</figcaption></figure>')
    return f'<div class="row">{"".join(cards)}</div>'


def _places(policy: ActionPolicy) -> np.ndarray:
    """Positions of the chunk's numbers in a row of tokens (dim, chunk)."""
    columns = torch.as_tensor(policy.layout.columns(ACTION)).numpy()
    found: np.ndarray = columns.reshape(policy.settings.chunk, -1).T
    return found


def _cells(policy: ActionPolicy) -> GridView:
    """A row for each number of an action, a column for each step."""
    vocab, levels = policy.layout.vocab, policy.tokenizer.levels
    ranges = [vocab.range(ACTION, j) for j in range(len(levels))]

    def symbol(token: int) -> str:
        for row, (first, size) in zip(levels, ranges, strict=True):
            if first <= token < first + size:
                return f"{float(row[token - first]):+.2f}"
        raise AssertionError(token)

    return GridView("a row for each number, a column for each step", _places(policy), symbol)


def _rounds(policy: ActionPolicy, trace: Trace) -> tuple[list[list[Any]], list[str]]:
    """The round in which each number of a chunk was committed to stay, as rows of a table and its header."""
    places = _places(policy)
    final = np.where(trace.committed[:, places.ravel()], 0, np.arange(1, trace.steps + 1)[:, None]).max(
        0
    )  # the first is the start
    rows = [[f"number {d + 1}", *each] for d, each in enumerate(final.reshape(places.shape).tolist())]
    return rows, ["committed in round", *(f"step {t + 1}" for t in range(places.shape[1]))]


def losses(log: Path) -> list[tuple[int, float]]:
    """The loss by step, from the trainer's log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    return [(line["step"], float(line["loss"])) for line in lines if "loss" in line]
