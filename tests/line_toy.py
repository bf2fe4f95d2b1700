"""A simulator of one line, and an expert for it."""

import numpy as np


class Line:
    """A hand that is done at 1 on a line, and lost below -1; it begins where the seed says."""

    closed = built = 0

    def __init__(self, task):
        self.task, Line.built = task, Line.built + 1

    def reset(self, seed):
        self.full = np.zeros(39)
        self.full[0] = np.random.default_rng(seed).uniform(-0.5, 0.5)
        return self.full.astype(np.float32)

    def step(self, action):
        assert np.abs(action).max() <= 1
        self.full[18], self.full[0] = self.full[0], self.full[0] + 0.1 * action[0]
        x = self.full[0]
        return self.full.astype(np.float32), True if x >= 1 else False if x < -1 else None

    def picture(self, size):
        return np.full((size, size, 3), np.uint8(100 + 50 * self.full[0]))

    def close(self):
        Line.closed += 1


def ahead(task):
    """Straight to the end, longer than an action may be."""
    return lambda full: np.array([3.0, 0, 0, -7], np.float32)
