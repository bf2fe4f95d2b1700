"""What each task is called in words: sentences to train on, and paraphrases that are held out."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np

from discdiff.config import checked

Instruction = Callable[[str, int], str]  # the sentence of a task's episode with that seed

SENTENCES: dict[str, tuple[str, ...]] = {
    "button-press": ("press the button", "push the button in", "move the hand against the button until it is in"),
    "drawer-close": ("close the drawer", "push the drawer shut", "slide the drawer in until it is closed"),
    "drawer-open": ("open the drawer", "pull the drawer out", "slide the drawer open"),
    "faucet-close": ("close the faucet", "turn off the water", "turn the tap until it is closed"),
    "faucet-open": ("open the faucet", "turn on the water", "turn the tap until it is open"),
    "door-open": ("open the door", "pull the door open", "swing the door out with the hand"),
    "door-lock": ("lock the door", "turn the lock until it is closed", "close the lock on the door"),
    "door-unlock": ("unlock the door", "turn the lock until it is open", "open the lock on the door"),
    "window-close": ("close the window", "slide the window shut", "push the window until it is closed"),
    "window-open": ("open the window", "slide the window out", "push the window until it is open"),
    "push": ("push the puck to the goal", "slide the puck to the target", "move the puck along the table to the goal"),
    "pick-place": ("pick up the puck and place it at the goal", "lift the puck to the target", "carry the puck up"),
    "reach": ("reach the goal", "move the hand to the target", "bring the gripper to the goal"),
    "assembly": ("put the ring on the peg", "lift the ring and place it on the peg", "assemble ring and peg"),
    "disassemble": ("take the ring off the peg", "lift the ring up from the peg", "pull the ring off the peg"),
    "peg-insert-side": ("insert the peg into the hole", "push the peg into the side", "put the peg in the hole"),
    "stick-pull": ("pull the bottle with the stick", "grasp the stick and pull the bottle", "hook the bottle"),
    "pick-place-wall": (
        "carry the puck over the wall",
        "lift the puck over the wall",
        "place the puck behind the wall",
    ),
    "shelf-place": ("put the block on the shelf", "lift the block to the shelf", "place the block on the shelf"),
    "push-back": ("pull the block back to the goal", "slide the block back to the target", "move the block back"),
    "hand-insert": ("insert the hand into the hole", "put the gripper in the hole", "reach into the hole"),
    "box-close": ("close the box", "put the lid on the box", "grasp the lid and close the box with it"),
    "bin-picking": ("move the block to the other bin", "pick the block from the bin", "carry the block to the bin"),
}

# Each is made of words that `SENTENCES` hold, in an order that they do not.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "button-press": ("press the button in", "push against the button"),
    "drawer-close": ("slide the drawer shut", "push the drawer in"),
    "drawer-open": ("pull the drawer open", "slide the drawer out"),
    "faucet-close": ("turn off the tap", "turn the faucet until it is closed"),
    "faucet-open": ("turn on the tap", "turn the faucet until it is open"),
    "door-open": ("swing the door open", "pull the door out"),
    "door-lock": ("close the door lock", "turn the lock on the door until it is closed"),
    "door-unlock": ("open the door lock", "turn the lock on the door until it is open"),
    "window-close": ("push the window shut", "slide the window until it is closed"),
    "window-open": ("push the window open", "slide the window until it is open"),
    "push": ("slide the puck along the table to the target", "move the puck to the goal"),
    "pick-place": ("lift the puck and carry it to the goal", "pick the puck up and place it at the target"),
    "reach": ("move the gripper to the goal", "bring the hand to the target"),
    "assembly": ("place the ring on the peg", "lift the ring and put it on the peg"),
    "disassemble": ("take the ring from the peg", "lift the ring off the peg"),
    "peg-insert-side": ("insert the peg into the side", "push the peg into the hole"),
    "stick-pull": ("pull the bottle with the stick to the goal", "hook the bottle with the stick"),
    "pick-place-wall": ("lift the puck and place it behind the wall", "pick up the puck and carry it over the wall"),
    "shelf-place": ("carry the block to the shelf", "pick up the block and put it on the shelf"),
    "push-back": ("pull the block back to the target", "slide the block back to the goal"),
    "hand-insert": ("put the hand into the hole", "reach into the hole with the gripper"),
    "box-close": ("put the lid on the box until it is closed", "close the box with the lid"),
    "bin-picking": ("pick the block from the bin and place it in the other bin", "carry the block to the other bin"),
}

AROUND = "around the pillar"  # what the sentences of tasks with a pillar end in


def base(task: str) -> str:
    """The task of Meta-World that a variant of it is made from: `around-reach` and `shared-reach` are of `reach`."""
    return task.removeprefix("shared-").removeprefix("around-")


def said(task: str, seed: int = 0) -> str:
    """The first sentence of a task."""
    return _of(SENTENCES, task)[0]


def varied(task: str, seed: int) -> str:
    """One of the sentences to train on, by the episode's seed."""
    return _drawn(_of(SENTENCES, task), seed)


def held_out(task: str, seed: int) -> str:
    """One of the paraphrases that no policy was trained on, by the episode's seed."""
    return _drawn(_of(HELD_OUT, task), seed)


def _of(sentences: dict[str, tuple[str, ...]], task: str) -> tuple[str, ...]:
    name = base(task)
    near = difflib.get_close_matches(name, sentences, n=1)
    remedy = f"no sentence is written for it; did you mean {near[0]!r}?" if near else "no sentence is written for it"
    checked("task", task, name in sentences, f"{remedy}. Known: {', '.join(sentences)}")
    return tuple(f"{s} {AROUND}" if task.startswith("around-") else s for s in sentences[name])


def _drawn(sentences: tuple[str, ...], seed: int) -> str:
    return sentences[int(np.random.default_rng([seed, 2]).integers(len(sentences)))]
