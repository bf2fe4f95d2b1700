"""Policies small enough for a test, and a simulator of one line."""

import dataclasses

import numpy as np
import torch

from tasks.vla.learning import untrained
from tasks.vla.policy import Policy
from tasks.vla.trial import demonstrated

SMALL = {"chunk": 4, "codebook_size": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
SHOWN = demonstrated(8, picture=16)


def shaken(method="masked", picture=0, **settings):
    """A policy whose weights are far from their first values, so that what it does depends on all it is told."""
    policy = untrained(Policy(method=method, picture=picture, **{**SMALL, **settings}), SHOWN, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += 0.15 * torch.randn(weight.shape, generator=generator)
    statistics = policy.tokenizer.normaliser.statistics
    return dataclasses.replace(policy, model=policy.model.eval().double(), statistics={"world": statistics})


def observed(policy, rows=5):
    """States, instructions and pictures of frames of several episodes."""
    some = [SHOWN[i % len(SHOWN)] for i in range(rows)]
    pictures = np.stack([e.pictures["above"][i] for i, e in enumerate(some)]) if policy.settings.picture else None
    return np.stack([e.state[i] for i, e in enumerate(some)]), [e.task for e in some], pictures


class Line:
    """A hand that is done at 1 on a line; it begins where the seed says."""

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        self.full = np.zeros(39)
        self.full[0] = np.random.default_rng(seed).uniform(-0.5, 0.5)
        return self.full.astype(np.float32)

    def step(self, action):
        self.full[0] += 0.2 * action[0]
        return self.full.astype(np.float32), True if self.full[0] >= 1 else None

    def picture(self, size):
        shade = np.linspace(0, 100 + 50 * np.clip(self.full[0], -2, 2), size)
        return np.broadcast_to(shade[:, None, None], (size, size, 3)).astype(np.uint8)

    def close(self):
        pass


def ahead(task):
    """The expert of `Line`; its other numbers vary, so that there is something to tell apart."""
    return lambda full: np.array([1.0, np.sin(7 * full[0]), full[0], -1], np.float32)
