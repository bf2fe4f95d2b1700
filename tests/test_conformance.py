"""Every public kernel with every score and process keeps the promises of a kernel, and broken kernels are caught."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Chain,
    Commit,
    CosineMD4,
    DepthPrefix,
    FirstHitting,
    Geometric,
    Grid,
    Info,
    Interpolating,
    Joint,
    MaskOrReplace,
    PerSegment,
    Quota,
    Sure,
    Uniform,
    UserScore,
    Windows,
)
from discdiff.denoisers import STATISTICS
from discdiff.kernels import prior_tokens
from discdiff.processes import vq_released
from discdiff.scores import SCORES, LeftToRight, Random
from discdiff.testing import check_conformance

PROCESSES = {
    "absorbing": Absorbing(),
    "cosine": Absorbing(CosineMD4()),
    "geometric": Absorbing(Geometric(0.3, 5.0)),
    "uniform": Uniform(),
    "mask_or_replace": MaskOrReplace(),
    "vq_released": vq_released(),
    "interpolating": Interpolating(),
    "per_segment": PerSegment({"left": Absorbing(), "right": Uniform()}),
}
CLOCKS = {
    "blocks": Blocks(5),
    "windows": Windows({"left": (1.0, 0.5), "right": (0.6, 0.0)}),
}
CHOSEN = {
    **SCORES,
    "depth_prefix": DepthPrefix(Sure("margin")),
    "user": UserScore(lambda state, step, index, drawn, noise: -drawn.log_prob),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("kind", ["plain", "site"])
def test_ancestral(name, kind):
    site = (lambda log_p, asked: 2 * log_p) if kind == "site" else None
    check_conformance(Ancestral(PROCESSES[name], site=site))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    "knobs", [{"rate": 0.3}, {"rate": 3.0}, {"score_power": 1.4}, {"rate": 0.0, "score_power": 0.5}]
)
def test_ancestral_with_a_learned_grid(name, knobs):
    check_conformance(Ancestral(PROCESSES[name]), Grid.uniform(5, **knobs))


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("quota, jointly", [(CosineMD4(), False), (Geometric(0.3, 5.0), True)])
def test_commit(name, quota, jointly):
    check_conformance(Commit(CHOSEN[name], Quota(quota), jointly=jointly))


@pytest.mark.parametrize("steps", [1, 5, 14])
def test_first_hitting(steps):
    check_conformance(FirstHitting(Absorbing(CosineMD4())), steps)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize(
    "kernel", [Ancestral(), Ancestral(Uniform()), Commit(Sure()), FirstHitting()], ids=lambda k: type(k).__name__
)
def test_clocks(kernel, clock):
    check_conformance(kernel, 12, clock=CLOCKS[clock])


@pytest.mark.parametrize("kernel", [Joint((Ancestral(),)), Chain((Commit(Sure(), Quota(CosineMD4())), Ancestral()))])
def test_joined(kernel):
    check_conformance(kernel)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_and_reading_order(statistic):
    check_conformance(Chain((Commit(Sure(statistic)), Commit(LeftToRight()), Commit(Random()))))


@dataclass(frozen=True)
class Broken:
    """A kernel that is sound until `fault(before, state, info, step, noise)` changes what it did."""

    fault: Any
    inner: Any = field(default_factory=Ancestral)
    final: bool = True
    decide_first: bool = True

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, denoiser, state, step, noise):
        after, info = self.inner(denoiser, state, step, noise)
        return self.fault(state, after, info, step, noise)


def paint(state, where, tokens):
    return state._replace(tokens=torch.where(where, tokens, state.tokens))


def moves_given(before, state, info, step, noise):
    return paint(state, state.given, state.batch.ids((state.batch.symbols(state.tokens) + 1) % 5)), info


def moves_the_prompt(before, state, info, step, noise):
    return paint(state, ~state.batch.noisable & state.valid, torch.tensor(4)), info


def leaves_a_mask(before, state, info, step, noise):
    return before, Info(info.nfe, info.network_rows)


def draws_illegal_ids(before, state, info, step, noise):
    return paint(state, state.free & (before.tokens != state.tokens), torch.tensor(3)), info


def uses_the_global_generator(before, state, info, step, noise):
    again = prior_tokens(Uniform(), state, noise)
    here = state.committed & ~before.committed & (torch.rand(state.tokens.shape) < 0.5)
    return paint(state, here, again), info


def looks_at_its_neighbours(before, state, info, step, noise):
    here = state.committed & ~before.committed & (len(state.row) > 1)
    return paint(state, here, prior_tokens(Uniform(), state, noise)), info


def draws_by_row_number(before, state, info, step, noise):
    return paint(
        state, state.committed & ~before.committed, state.batch.ids(state.row[:, None].expand_as(state.tokens) % 5)
    ), info


def draws_by_column(before, state, info, step, noise):
    column = torch.arange(state.tokens.shape[1]).expand_as(state.tokens)
    return paint(state, state.committed & ~before.committed, state.batch.ids(column % 5)), info


def takes_tokens_back(before, state, info, step, noise):
    back = before.committed & before.free & (step.s > 0)
    return paint(state, back, torch.tensor(state.batch.layout.vocab.mask))._replace(
        committed=state.committed & ~back
    ), info


def changes_committed_tokens(before, state, info, step, noise):
    symbols = (state.batch.symbols(state.tokens) + 1) % state.batch.alphabet.size
    return paint(state, before.committed & before.free, state.batch.ids(symbols)), info


def miscounts_calls(before, state, info, step, noise):
    return state, info._replace(nfe=info.nfe + 1)


def miscounts_commits(before, state, info, step, noise):
    return state, info._replace(committed=info.committed + 1)


def runs_backwards(before, state, info, step, noise):
    return state._replace(time=torch.where(state.free, 1 + before.time, 0.0)), info


FAULTS = {
    moves_given: "given or prompt token moved",
    moves_the_prompt: "given or prompt token moved",
    leaves_a_mask: "still masked at the end",
    draws_illegal_ids: "not legal",
    uses_the_global_generator: "same seed|global random generator",
    looks_at_its_neighbours: "alone differs",
    draws_by_row_number: "alone differs",
    draws_by_column: "padding changes",
    takes_tokens_back: "took a committed position back",
    changes_committed_tokens: "moved a committed token",
    miscounts_calls: "counts nfe",
    miscounts_commits: "committed positions",
    runs_backwards: "time of a position rises",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_broken_kernels_are_caught(fault):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_conformance(Broken(fault))


def test_false_claims_are_caught():
    with pytest.raises(AssertionError, match="decide_first"):
        check_conformance(Broken(lambda before, state, info, step, noise: (state, info), Commit(Sure())))
    kernel = Broken(lambda before, state, info, step, noise: (state, info))
    object.__setattr__(kernel, "reads", ("brightness",))
    with pytest.raises(AssertionError, match="brightness"):
        check_conformance(kernel)


def test_the_sound_wrapper_passes():
    check_conformance(Broken(lambda before, state, info, step, noise: (state, info)))
