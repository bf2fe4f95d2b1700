"""What noise-contrastive estimation finds: the log ratio of data and proposal, by a free table and by a trained network."""

import math
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from discdiff.energy import EnergyModel, EnergyResampled, LearnedEnergy, NoiseContrastive, contrastive_loss
from discdiff.kernels import Ancestral
from discdiff.layout import make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import ORDER, Noise
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing, Uniform, vq_paper
from discdiff.sampling import sample
from discdiff.testing import Toy, noise_floor, total_variation
from discdiff.training import DiffusionTrainer, TrainingSettings

PAIR = Toy(torch.tensor([8.0, 1, 1, 2, 9, 1, 1, 1, 12], dtype=torch.float64) / 36, symbols=3, length=2)
CHAIN = Toy(  # a Markov chain that stays where it is nine times of ten
    torch.tensor([math.prod((1, 18)[a == b] for a, b in pairwise(x)) for x in product(range(3), repeat=3)]).double()
    / 1200,
    length=3,
)
CHANCE = 2 * math.log(2)
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_length": 3, "initializer_range": 0.18}


def noise_of(batch, epoch=0):
    rows = torch.arange(len(batch.tokens))
    return Noise.training(0, torch.full_like(rows, epoch), rows, batch.valid)


def laws(joint, process, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_t) (n,), and over all sequences log p_data(x0 | x_t) and log p_theta(x0 | x_t), (n, sequences), p_theta being the
    product of the exact one-site posteriors.
    """
    eye = torch.eye(joint.symbols, dtype=torch.float64).log()
    table = process.log_marginal(eye, torch.full((joint.symbols,), t, dtype=torch.float64))  # (x0, x_t)
    forward = sum(table[joint.table[:, i]][:, x[:, i]].T for i in range(joint.length))
    whole = forward + joint.p.log()
    own = joint.posterior(x, torch.full(x.shape, t, dtype=torch.float64), process)
    factorised = sum(own[:, i][:, joint.table[:, i]] for i in range(joint.length))
    return whole.logsumexp(1).exp(), whole.log_softmax(1), factorised


def states(joint) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(joint.symbols + 1)] * joint.length)


PROCESSES = [Absorbing(), Uniform(), vq_paper()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_best_table_is_the_log_ratio(process):
    q, data, proposal = laws(PAIR, process, states(PAIR), 0.6)
    seen = q > 0
    q, data, proposal = q[seen], data[seen], proposal[seen]
    free = torch.zeros_like(data, requires_grad=True)
    scale = (q[:, None] * (data.exp() + proposal.exp())).clamp(min=1e-12).rsqrt()  # rare rows are not learned last
    positive, negative = (x.flatten() for x in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    weight = q[:, None] * data.exp()[:, positive] * proposal.exp()[:, negative]  # of (x_t, x0+, x0-)
    fit = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        fit.zero_grad()
        table = free * scale
        nats = contrastive_loss(table[:, positive].flatten(), table[:, negative].reshape(-1, 1))
        total = (weight.flatten() * nats).sum()
        total.backward()
        return total

    assert float(loss().detach()) == pytest.approx(CHANCE)
    fit.step(loss)
    table = (free * scale).detach()
    possible = data > -math.inf
    error = (table + data - proposal)[possible].abs().max()
    assert error < 1e-4 and (data - proposal)[possible].abs().max() > 1
    z = torch.where(possible, (proposal - table).exp(), 0.0).sum(1)
    assert (z - 1).abs().max() < 1e-4
    corrected = (proposal - table)[possible]  # p_theta exp(-E) / Z is the true conditional
    torch.testing.assert_close(corrected, data[possible], rtol=0, atol=1e-4)


def test_the_loss_has_gradients_where_a_sigmoid_is_flat():
    far = torch.tensor([60.0], dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(far, torch.tensor([[-60.0, 0.0]], dtype=torch.float64))
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(60 + (60 + math.log(2)) / 2) and float(far.grad) == pytest.approx(1)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_negatives_come_from_the_proposal(process):
    """The joint law of (x_t, x0-), x0- being drawn from what x_t alone leaves open, by a cavity denoiser."""
    count, t = 30000, 0.6
    drawn = torch.multinomial(PAIR.p, count, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = make_batch(PAIR.layout, PAIR.table[drawn])
    goal = NoiseContrastive(PAIR.denoiser(process, "cavity"), Elbo(process, time_min=0.0), negatives=2)
    noisy, clean, when = goal.pairs(batch, noise_of(batch), torch.full((count,), t))
    assert clean.shape == (count, 3, 2) and torch.equal(clean[:, 0], batch.tokens) and when.shape == (count, 1)
    every = states(PAIR)
    q, data, proposal = laws(PAIR, process, every, t)
    x = batch.symbols(noisy.tokens)
    place = (x[:, 0] * 4 + x[:, 1]) * 9
    for number, log_p in enumerate((data, proposal, proposal)):
        law = torch.where(q[:, None] > 0, q[:, None] * log_p.exp(), 0.0).flatten()
        seen = torch.bincount(place + clean[:, number] @ torch.tensor([3, 1]), minlength=144).double() / count
        ratio = total_variation(seen, law) / noise_floor(law, count)
        assert ratio < 1.5, number
        other = torch.where(q[:, None] > 0, q[:, None] * (proposal if number == 0 else data).exp(), 0.0).flatten()
        assert total_variation(seen, other) / noise_floor(law, count) > 5
    assert not torch.equal(clean[:, 1], clean[:, 2])


@dataclass(frozen=True)
class Shuffled(NoiseContrastive):
    """The control: a coin says which of the two rows is called data."""

    def pairs(self, batch, noise, time):
        noisy, clean, when = super().pairs(batch, noise, time)
        return noisy, torch.where(noise.row_uniform(ORDER)[:, None, None] < 0.5, clean, clean.flip(1)), when


def trained(folder, goal, steps, train, held):
    joint = CHAIN
    denoiser = DiscDiffModel.seeded(DiscDiffConfig(vocab=joint.layout.vocab, **SMALL), 0)
    knobs = TrainingSettings(
        steps=steps, batch_size=256, optimizer="muon", learning_rate=1e-2, warmup=10, eval_batch_size=1000,
        eval_draws=2, progress=False, device="cpu",
    )  # fmt: skip
    items = [[{"tokens": x} for x in rows] for rows in (train, held)]
    trainer = DiffusionTrainer(
        EnergyModel.from_denoiser(denoiser), knobs, goal, joint.layout, *items, output_dir=folder
    )
    trainer.train()
    trainer.save_model(folder / "energy")
    return EnergyModel.from_pretrained(folder / "energy"), trainer.evaluate()


@pytest.mark.slow
def test_training_finds_the_log_ratio(tmp_path):
    joint, process = CHAIN, Absorbing()
    drawn = torch.multinomial(joint.p, 5000, replacement=True, generator=torch.Generator().manual_seed(0))
    train, held = joint.table[drawn].split([4000, 1000])
    goal = NoiseContrastive(joint.denoiser(process), Elbo())
    model, found = trained(tmp_path, goal, 150, train, held)
    batch = make_batch(joint.layout, held)
    noisy, clean, _ = goal.pairs(batch, noise_of(batch), (torch.arange(1000) + 0.5) / 1000)
    _, data, proposal = laws(joint, process, batch.symbols(noisy.tokens), 0.5)
    place = clean @ torch.tensor([9, 3, 1])
    truth = (proposal - data).gather(1, place)
    best = contrastive_loss(truth[:, 0], truth[:, 1:]).mean()
    assert best < CHANCE - 0.15 and found["eval_loss"] + 4 * found["eval_loss_error"] < CHANCE
    assert found["eval_loss"] < best + 0.5 * (CHANCE - best) and found["eval_accuracy"] > 0.57
    with torch.no_grad():
        learned = model(noisy.repeat(2), clean.flatten(0, 1)).energy.view(1000, 2).double()
    assert torch.corrcoef(torch.stack([learned.flatten(), truth.flatten()]))[0, 1] > 0.9
    plain, better = (
        total_variation(
            joint.law(sample(joint.denoiser(process), kernel, joint.batch(4000), 1, seed=1)[0].tokens), joint.p
        )
        for kernel in (Ancestral(), Ancestral(proposal=EnergyResampled(LearnedEnergy(model), k=16)))
    )
    assert better < 0.6 * plain  # one step of the corrected sampler
    _, control = trained(tmp_path / "control", Shuffled(goal.denoiser), 80, train, held)
    assert control["eval_loss"] > CHANCE - 0.02 and abs(control["eval_accuracy"] - 0.5) < 0.06
