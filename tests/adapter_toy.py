"""A small policy for the tests of what stands around it."""

from dataclasses import replace

import numpy as np
import torch

from tasks.vla.episodes import Episode
from tasks.vla.learning import untrained
from tasks.vla.policy import Decoding, Policy

RANDOM = np.random.default_rng(0)
CHUNK, DIM, STATE, SIZE = 4, 3, 5, 16
SMALL = Policy(chunk=CHUNK, codebook_size=16, hidden_size=32, num_layers=1, num_heads=2)
SAYS = ["push the block", "open the drawer"]
STATES, ACTIONS = RANDOM.normal(size=(12, STATE)).astype("f4"), RANDOM.uniform(-1, 1, (12, DIM)).astype("f4")
SHOWN = [Episode(STATES, ACTIONS, task) for task in SAYS]
DRAWN = Decoding(steps=2, read="token", temperature=1.0)


def made(**settings):
    """With its first weights."""
    policy = untrained(replace(SMALL, **settings), SHOWN, seed=1)
    policy.model.eval()
    return policy


POLICY = made()


def lerobot_batch(rows=2):
    """States and sentences as LeRobot has them."""
    state = torch.randn(rows, STATE, generator=torch.Generator().manual_seed(3))
    return {"observation.state": state, "task": (SAYS * rows)[:rows]}


def corner(height, width):
    """Dark but for its first pixel."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[0, 0] = 200
    return picture
