"""The benchmark of posterior sampling: split Gibbs against its transition matrices, and that all of it runs."""

import pytest
import torch

from benchmarks import posterior_laws
from benchmarks.posterior_laws import PROBLEMS, TOY, cooling, split_gibbs, split_gibbs_law
from discdiff import MaskOrReplace, Uniform
from discdiff.testing import noise_floor, total_variation


class Unmasked:
    """A process given that nothing is masked."""

    def __init__(self, process):
        self.process = process

    def log_marginal(self, log_x0, t):
        if t == 1:
            return torch.full((*log_x0.shape[:-1], log_x0.shape[-1] + 1), -1.0, dtype=torch.float64)
        law = self.process.log_marginal(log_x0, t)
        return law - law[..., :-1].logsumexp(-1, keepdim=True)


@pytest.mark.parametrize("process", [Uniform(), MaskOrReplace()], ids=lambda p: type(p).__name__)
def test_rounds_have_the_enumerated_law(process):
    """Whole runs against rounds whose reverse process and moves are perfect."""
    draws, problem = 3000, PROBLEMS[0]
    blur = process if isinstance(process, Uniform) else Unmasked(process)
    truth = split_gibbs_law(problem, cooling(6), blur)
    state = split_gibbs(problem, draws, 6, process)
    away = total_variation(TOY.law(state.batch.symbols(state.tokens)), truth) / noise_floor(truth, draws)
    print(f"{away:.2f} floors, {total_variation(truth, problem.posterior):.3f} from the posterior")
    assert away < 1.6


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_more_rounds_come_nearer(problem):
    """By enumeration, towards the posterior: no floor but that of the rounds."""
    found = [total_variation(split_gibbs_law(problem, cooling(n)), problem.posterior) for n in (10, 40, 160)]
    print(" ".join(f"{x:.4f}" for x in found))
    assert found[1] < 0.6 * found[0] and found[2] < 0.6 * found[1] and found[2] < 0.03


def test_the_benchmark_runs(capsys, monkeypatch):
    monkeypatch.setattr(posterior_laws, "PROBLEMS", PROBLEMS[1:2])
    posterior_laws.main(["--draws", "200", "--rounds", "2,3", "--save", "no"])
    said = capsys.readouterr().out
    assert said.count("floor") == len(posterior_laws.METHODS) + 2
