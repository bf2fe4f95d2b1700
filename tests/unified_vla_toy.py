"""A bright block that goes round a dark board, and unified policies small enough for a test of it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from discdiff.denoisers.wrappers import Wrapper
from tasks.vla.episodes import Episode
from tasks.vla.policy import ActionPolicy, Decoding, Policy
from tasks.vla.unified_design import Unified
from tasks.vla.unified_learning import untrained
from tasks.vla.unified_pictures import seen_by
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig

WIDTH, FRAMES, CHUNK = 8, 25, 3
RING = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
SMALL = Policy(chunk=CHUNK, codebook_size=17, hidden_size=32, num_layers=2, num_heads=2)
CODEC = {"width": 12, "blocks": 0, "strides": (4,), "code_dim": 4, "codebook_size": 8, "pixel": "l2"}
ROUNDS = Decoding("ud_vla", steps=4, temperature=1.0)


def episode(start, way):
    """A block that goes round the four corners of its board, one per step, the way that the sentence says."""
    frames = np.full((FRAMES, WIDTH, WIDTH, 3), 30, np.uint8)
    place = RING[(start + way * np.arange(FRAMES)) % 4]
    for frame, (row, column) in zip(frames, 4 * place, strict=True):
        frame[row : row + 4, column : column + 4] = (220, 160, 40)
    action = np.stack([np.full(FRAMES, 0.6 * way), 0.8 * place[:, 0] - 0.5], 1).astype(np.float32)
    return Episode(place.astype(np.float32), action, "go round" if way > 0 else "go back round", {"top": frames})


SHOWN = [episode(start, way) for start in range(4) for way in (1, -1)]


def cut(one, frames):
    """The first frames of an episode."""
    return Episode(one.state[:frames], one.action[:frames], one.task, {"top": seen_by(one)[:frames]})


def blank(policy=SMALL, codec=CODEC, **settings):
    """An untrained policy in double precision, with a tokenizer that nobody trained either."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        pictures = ImageTokenizer(ImageTokenizerConfig(**codec)).eval()
    made = untrained(Unified(**{"width": WIDTH} | settings), SHOWN, pictures, 1, policy)
    return made.on(made.model.double())


def observed(count=3):
    """States, instructions and pictures of the first frames of some episodes."""
    some = SHOWN[:count]
    return np.stack([e.state[0] for e in some]), [e.task for e in some], np.stack([seen_by(e)[0] for e in some])


@dataclass(frozen=True)
class Noting(Wrapper):
    """A denoiser that notes the law of every masked position that a round may change, by the alphabet it is of."""

    laws: list

    def __call__(self, state, step):
        said = self.inner(state, step)
        sites = (state.free & ~state.committed & (step.s < step.t)).flatten().nonzero()[:, 0]
        kind = state.batch.layout.tables().alphabet[state.batch.slot.flatten()[sites]]
        self.laws.append({n: said.log_probs(sites[kind == n]) for n in kind.unique().tolist()})
        return said


@dataclass(frozen=True)
class Overheard:
    """A kernel whose denoiser is `Noting`."""

    inner: Any
    laws: list

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, denoiser, state, step, noise):
        return self.inner(Noting(denoiser, self.laws), state, step, noise)


@dataclass(frozen=True, eq=False)
class Told(ActionPolicy):
    """A policy that notes the laws of every round."""

    laws: list = None

    def sampler_of(self, how):
        built = super().sampler_of(how)
        return replace(built, kernel=Overheard(built.kernel, self.laws))


def laws_of(policy, decoding, **knobs):
    """What the network says in every round of all positions that are masked and may change in it."""
    laws, told = [], policy.told
    told = Told(**{name: getattr(told, name) for name in told.__dataclass_fields__}, laws=laws)
    run(replace(policy, told=told), decoding, **knobs)
    return laws


def run(policy, decoding, rounds=ROUNDS, count=3, **knobs):
    """All states of a decoding, and what the rounds cost."""
    with torch.no_grad():
        found = policy.run(policy.rows(*observed(count)), range(count), decoding, replace(rounds, knobs=knobs))
        return tuple(zip(*found, strict=True))
