"""Try a trained policy: success over episodes, and one chunk of its actions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from discdiff.cli import parse, take
from discdiff.config import checked
from discdiff.report.pictures import write_atomically
from tasks.common.sections import Drawing, sampler_of
from tasks.vla import metaworld, page, rollout, trial
from tasks.vla.commands import episodes_of, opened, square
from tasks.vla.design import Decoding, told_state
from tasks.vla.episodes import Episode
from tasks.vla.intervals import interval
from tasks.vla.policy import ActionPolicy
from tasks.vla.policy_settings import SENTENCES, WORLD, Data, Shot, Trial, decoding, named
from tasks.vla.rendering import Undrawable

_SEEDS = 12  # bits of the number of a call, of which an episode has at most 500


def asked(prog: str, argv: Sequence[str], section: str, kind: type) -> tuple[Path, Any, ActionPolicy, Data, Decoding]:
    """Folder, one section, and the policy with the decoding that the command line asks for."""
    folder, chosen, (policy, data), how = given(prog, argv, {section: kind}, opened)
    return folder, chosen[section], policy, data, how


def given(
    prog: str, argv: Sequence[str], sections: Mapping[str, type], opened: Callable[[Path], tuple[Any, ...]]
) -> tuple[Path, dict[str, Any], tuple[Any, ...], Decoding]:
    """Folder, sections, what `opened` finds in the folder, first of all a policy of actions, and how the command line asks it
    to decode.
    """
    inside, rest = take(argv, "sampler")
    first = parse(prog, rest, {**sections, "decoding": decoding(Decoding())}, ("folder",))
    folder = Path(first["folder"])
    found = opened(folder)
    policy: ActionPolicy = found[0]
    chosen = parse(prog, rest, {**sections, "decoding": decoding(policy.decoding)}, ("folder",))
    how = asdict(chosen["decoding"])
    knobs = sampler_of(prog, inside, Drawing(how["sampler"])) if inside else {}
    kept = policy.decoding.knobs if how["sampler"] == policy.decoding.sampler else {}
    mine = {name: value for name, value in knobs.items() if name not in ("sampler", "seed")}
    made = Decoding(**how, knobs={**kept, **mine})
    made.check(policy.settings.method)
    return folder, chosen, found, made


def acting(policy: ActionPolicy, how: Decoding) -> rollout.Policy:
    """The policy as `rollout.evaluate` and `trial.tried` ask for it."""
    return asking(partial(policy.predict_action, decoding=how), len(policy.scale.middle))


def asking(predict: Callable[..., np.ndarray], dim: int) -> rollout.Policy:
    """What predicts actions for states, words and pictures, as `rollout.evaluate` and `trial.tried` ask for it: noise by the
    episode's seed and the number of the call; dim: leading numbers of the state that it is told.
    """

    def act(shown: rollout.Observations) -> np.ndarray:
        seeds = [(seed << _SEEDS) + call for seed, call in zip(shown.seed, shown.call, strict=True)]
        return predict(shown.state[:, :dim], shown.instruction, shown.pictures, seed=seeds)

    return act


def evaluate(prog: str, argv: Sequence[str], make: Any = metaworld.make) -> None:
    """Success, length and calls of episodes, and the time of a chunk, into metrics.json and report.html."""
    folder, wanted, policy, data, how = asked(prog, argv, "trial", Trial)
    size = policy.settings.picture
    one = episodes_of(data, size, [0])[0]  # for the report; where it cannot be read, no episode is lost
    found = rollouts(acting(policy, how), wanted, data, size, policy.tokenizer.config.dim, make)
    state, view = told_state(one, policy.settings)[0], page.view(one, 0)
    taken = latency(lambda: policy.predict_action(state, one.task, view, decoding=how))
    figures, by_task = stored(folder, found, {"ms_per_chunk": taken}, decoding=asdict(how), trial=asdict(wanted))
    print(page.tried(folder, policy, how, figures, by_task, found, one))


def rollouts(
    act: rollout.Policy, wanted: Trial, data: Data, size: int, actions: int, make: Any = metaworld.make
) -> list[rollout.Rollout]:
    """Episodes of the small world or of Meta-World; size: of the pictures a policy is shown, 0 for none; actions: their
    numbers. Raises ValueError where the data are of another world.
    """
    here, seeds = not wanted.tasks, range(wanted.seed, wanted.seed + wanted.episodes)
    checked("tasks", wanted.tasks, not here or data.data == WORLD, "name tasks of Meta-World, or easy10, hard10, ...")
    tasks = trial.TASKS if here else named(wanted.tasks)
    keep = [(task, seed) for seed in seeds for task in tasks][: wanted.gifs]
    common: dict[str, Any] = {"tasks": tasks, "execute": wanted.execute, "size": size, "keep": keep}
    if here:
        usual = (wanted.batch, wanted.sentences) == (Trial.batch, Trial.sentences)
        checked("batch, sentences", (wanted.batch, wanted.sentences), usual, "they are of Meta-World")
        return trial.tried(act, seeds, cap=wanted.cap or trial.CAP, **common)
    checked("actions", actions, actions == metaworld.ACTION, f"those of Meta-World have {metaworld.ACTION} numbers")
    common |= {"cap": wanted.cap or metaworld.CAP, "batch": wanted.batch, "make": make}
    common |= {"seeds": seeds, "instruction": SENTENCES[wanted.sentences]}
    try:
        return rollout.evaluate(act, **common)
    except Undrawable as error:  # at the first step: the first episode is among those that are shown
        if size:
            raise  # the policy itself is shown pictures
        print(f"the report will show no episodes: {error}", flush=True)
        return rollout.evaluate(act, **{**common, "keep": ()})


def stored(
    folder: Path, found: Sequence[rollout.Rollout], more: Mapping[str, float], **said: Any
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures of all episodes, with `more` of them, and those of each task; printed, and written to metrics.json with every
    episode and what is `said`.
    """
    figures = {**_figures(found), **more}
    by_task = {task: _figures([r for r in found if r.task == task]) for task in dict.fromkeys(r.task for r in found)}
    listed = [{n: getattr(r, n) for n in ("task", "seed", "success", "length", "calls")} for r in found]
    text = json.dumps({**figures, "tasks": by_task, **said, "episodes": listed}, indent=2) + "\n"
    write_atomically(folder / "metrics.json", text.encode("utf-8"))
    for name, value in figures.items():
        print(f"{name:>16} {value:10.4g}")
    return figures, by_task


def _figures(found: Sequence[rollout.Rollout]) -> dict[str, float]:
    """success with its 95 % bootstrap interval; means over all episodes of steps and of times the policy was asked."""
    success = interval([float(r.success) for r in found])
    steps, calls = ([float(getattr(r, name)) for r in found] for name in ("length", "calls"))
    share = {"success": success.mean, "success_low": success.low, "success_high": success.high}
    return {**share, "length": float(np.mean(steps)), "calls": float(np.mean(calls))}


def latency(ask: Callable[[], object], repeats: int = 15) -> float:
    """Milliseconds for one chunk of one observation, the median of `repeats` calls after two that are not counted."""
    taken = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        ask()
        taken.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(taken[2:]))


def sample(prog: str, argv: Sequence[str]) -> None:
    """Print a chunk, an action a line as JSON; of a frame also how far it is from the demonstration."""
    _, wanted, policy, data, how = asked(prog, argv, "shot", Shot)
    size, done = policy.settings.picture, None
    if wanted.frame:
        episode, frame = _frame(wanted.frame, data, size)
        state, said, view = told_state(episode, policy.settings)[frame], episode.task, page.view(episode, frame)
        done = episode.action[frame : frame + policy.settings.chunk]
        print(f"# {said}", flush=True)
    else:
        state, said, view = _numbers("state", wanted.state), wanted.instruction, None
        checked("instruction", said, said.strip() != "", "say what is to be done")
        if wanted.picture:
            checked("picture", wanted.picture, size > 0, "this policy is shown none")
            with Image.open(wanted.picture) as image:
                view = square(np.asarray(image.convert("RGB")), size)
    prefix = _numbers("prefix", wanted.prefix) if wanted.prefix else None
    chunk = policy.predict_action(
        state, said, view, prefix=prefix, seed=wanted.seed, decoding=how, unnorm_key=wanted.unnorm_key
    )
    for action in chunk.tolist():
        print(json.dumps([round(x, 6) for x in action]))
    if done is not None:
        print(f"# {np.abs(chunk[: len(done)] - done).mean():.4f} from the demonstration in the mean")


def _frame(name: str, data: Data, picture: int) -> tuple[Episode, int]:
    number, _, frame = name.partition(":")
    fits = number.isdecimal() and frame.isdecimal()
    checked("frame", name, fits, 'give "episode:frame", counted from 0, such as 3:10')
    episode = episodes_of(data, picture, [int(number)])[0]
    checked("frame", name, int(frame) < len(episode), f"the episode has {len(episode)} frames")
    return episode, int(frame)


def _numbers(name: str, text: str) -> np.ndarray:
    try:
        found = np.array(json.loads(text), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is {text!r}: give numbers as JSON, such as [0.1, 0.2] ({error})") from error
    return found
