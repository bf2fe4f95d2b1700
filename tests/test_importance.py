"""Importance-sampled times keep the loss's mean and lower its spread; dropped conditions; VQ-Diffusion's auxiliary loss."""

import pytest
import torch
from table_toy import MIXED, rows_of
from training_toy import StopAt, digest

from discdiff.clocks import Importance, Shared
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.metrics import row_nats
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import Noise
from discdiff.objectives import Dropped, Elbo
from discdiff.processes import Absorbing, Uniform, vq_paper
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.common.methods import method_of

VOCAB = VocabLayout(4, (Modality("image", 6),))
LAYOUT = Layout(VOCAB, (Segment("label", "text", (1,), noised=False), Segment("image", "image", (5,))))


def pictures(rows=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (rows, 1), generator=draw)
    return torch.cat([label, VOCAB.to_global(torch.randint(0, 6, (rows, 5, 1), generator=draw), "image")[..., 0]], 1)


def net(process=None, dtype=torch.float64):
    import json

    from discdiff.config import to_dict

    config = DiscDiffConfig(
        vocab=json.loads(VOCAB.to_json()), hidden_size=16, num_layers=1, num_heads=2, initializer_range=0.4,
        time_conditioning=True, process=to_dict(process or vq_paper()),
    )  # fmt: skip
    return DiscDiffModel.seeded(config, 0, dtype)


def taught(loss, bins=10, rows=64, rounds=40):
    clock = Importance(bins, visits=3)
    for round_ in range(rounds):
        u = torch.rand(rows, generator=torch.Generator().manual_seed(round_), dtype=torch.float64)
        batch = rows_of(MIXED, rows)
        t, weight = clock(batch, u)[:, 0], clock.rate(batch, u)[:, 0]
        clock.observe(u, loss(t) * weight)
    return clock


def test_a_clock_from_0_to_1_whose_rate_is_its_derivative():
    clock, batch = taught(lambda t: 0.1 + 5 * t**3), rows_of(MIXED, 1)
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t, rate = (torch.cat([f(batch, x)[:, 0] for x in u]) for f in (clock, clock.rate))
    assert float(t[0]) == 0 and float(t[-1]) == 1 and bool((t.diff() >= 0).all())
    slope = t.diff() / u.diff()
    inside = (rate[1:] == rate[:-1]).nonzero()[:, 0]
    torch.testing.assert_close(slope[inside], rate[inside], rtol=1e-6, atol=1e-9)
    assert float(rate.max() / rate.min()) > 5, "it has learned something"


def test_density_follows_the_root_mean_square():
    def loss(t):
        return 0.2 + 3 * (t * 10).floor() / 10

    p = taught(loss).density()
    wanted = loss(torch.arange(10) / 10 + 0.05)
    torch.testing.assert_close(p, wanted.double() / wanted.double().mean(), rtol=0.01, atol=0.01)
    fresh = Importance(10, visits=3)
    assert torch.equal(fresh.density(), torch.ones(10, dtype=torch.float64))
    fresh.observe(torch.full((50,), 0.05), torch.ones(50))
    assert torch.equal(fresh.density(), torch.ones(10, dtype=torch.float64)), "bins it never met"


def test_the_mean_stays_and_the_spread_falls():
    """Control: the same clock without its weight has another mean."""

    def loss(t):
        return t**4

    clock, batch = taught(loss), rows_of(MIXED, 1)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    many = batch.repeat(len(u))
    t, weight = clock(many, u)[:, 0], clock.rate(many, u)[:, 0]
    assert float((loss(t) * weight).mean()) == pytest.approx(0.2, rel=1e-3)
    assert float(loss(t).mean()) > 0.4
    assert float((loss(t) * weight).std()) < 0.5 * float(loss(u).std())


def test_state_goes_back_and_forth():
    clock, other = taught(lambda t: 1 + t), Importance(10, visits=3)
    other.load(clock.state())
    assert torch.equal(clock.density(), other.density())
    with pytest.raises(ValueError, match="7 bins"):
        Importance(7).load(clock.state())
    for field, value in (("bins", 0), ("decay", 1.0), ("visits", 0), ("least", 0.0)):
        with pytest.raises(ValueError, match=f"{field} is"):
            Importance(**{field: value})


def run(folder, steps=12, **more):
    clock = Importance(4, visits=2)
    settings = TrainingSettings(steps=steps, batch_size=8, progress=False, learning_rate=1e-2, warmup=0)
    data = [{"tokens": row} for row in pictures(16)]
    goal = Dropped(Elbo(vq_paper(), clock=clock, kind="own", auxiliary=0.01), 0.2)
    trainer = DiffusionTrainer(
        net(dtype=torch.float32), settings, goal, LAYOUT, data, data[:4], output_dir=folder, **more
    )
    trainer.train("auto")
    return trainer, clock


def test_training_stores_what_the_clock_has_learned(tmp_path):
    whole, clock = run(tmp_path / "whole")
    assert float(clock.counts.sum()) == 12 * 8 and float(clock.density().std()) > 0
    run(tmp_path / "parts", callbacks=[StopAt(7)])
    resumed, again = run(tmp_path / "parts")
    assert again.state() == clock.state() and digest(resumed) == digest(whole)


def test_dropped_rows_have_the_null_condition():
    seen, batch = [], make_batch(LAYOUT, pictures(2000))
    noise = Noise.training(0, torch.zeros(2000, dtype=torch.int64), torch.arange(2000), batch.valid)

    def inner(model, batch, noise, time):
        seen.append(batch.tokens)
        return torch.zeros(()), {}

    Dropped(inner, 0.3)(None, batch, noise, torch.rand(2000))
    null = seen[0][:, 0] == VOCAB.special("NULL")
    assert abs(float(null.double().mean()) - 0.3) < 0.04
    assert torch.equal(seen[0][:, 1:], batch.tokens[:, 1:]), "what is noised stays"
    assert torch.equal(seen[0][~null], batch.tokens[~null])
    Dropped(inner, 1.0)(None, batch, noise, torch.rand(2000))
    with pytest.raises(ValueError, match="segments is"):
        Dropped(inner, 0.3, ("caption",))(None, batch, noise, torch.rand(2000))
    with pytest.raises(ValueError, match="share is 2"):
        Dropped(inner, 2.0)


@pytest.mark.parametrize("kind", ["own", "cavity"])
@pytest.mark.parametrize("process", [vq_paper(), Uniform()])
def test_the_auxiliary_loss_is_added_to_the_loss_alone(process, kind):
    """It is of p(x0 | x_t), the place's own noisy code included, whichever of the two the network predicts."""
    model, batch = net(process), make_batch(LAYOUT, pictures(4))
    noise = Noise.training(0, torch.zeros(4, dtype=torch.int64), torch.arange(4), batch.valid)
    time = torch.tensor([0.1, 0.4, 0.7, 0.99])
    settings = ({}, {"auxiliary": 0.01}, {"auxiliary": 0.01, "adaptive": True})
    plain, more, faded = (Elbo(process, kind=kind, **knobs)(model, batch, noise, time) for knobs in settings)
    assert torch.equal(plain[1]["nats"], more[1]["nats"]) and torch.equal(plain[1]["nats"], faded[1]["nats"])
    when = (1e-3 + (1 - 1e-3) * time.double())[:, None]
    tokens, _, _ = Elbo(process).corrupt(batch, noise, when[:, 0])
    noisy = batch._replace(tokens=tokens)
    out = model(batch=noisy, time=when.expand(4, 6), output_logits=True)
    first, size = VOCAB.range("image")
    log_p = out.logits[:, 1:, first : first + size].log_softmax(-1)
    if kind == "cavity":
        seen = noisy.symbols(noisy.tokens)[:, 1:]
        clean = torch.eye(size, dtype=torch.float64).log().expand(4, size, size)
        q = process.log_marginal(clean, when.expand(4, size))  # (row, x0, x_t)
        log_p = log_p + torch.stack([table[:, x].T for table, x in zip(q, seen)])
        log_p = log_p.log_softmax(-1)
    nats = -log_p.gather(-1, (batch.tokens[:, 1:] - first)[..., None])[..., 0]
    for found, weight in ((more, torch.ones_like(when)), (faded, 2 - when)):
        wanted = 0.01 * (weight * nats).sum() / batch.tokens.numel()
        assert float((found[0] - plain[0]).detach()) == pytest.approx(float(wanted), rel=1e-9)
    with pytest.raises(ValueError, match="adaptive weighs the auxiliary loss"):
        Elbo(process, adaptive=True)
    with pytest.raises(ValueError, match="auxiliary 0.1: of masked"):
        Elbo(Absorbing(), auxiliary=0.1)


def test_the_published_weight_of_the_auxiliary_loss():
    """100 steps of KL + 5e-4 CE, as the paper adds them, are the bound per unit time + 0.05 CE."""
    process, size, steps = vq_paper(), 8, 100
    log_x0 = torch.randn(1, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    x0, symbols = torch.tensor([3]), torch.arange(size + 1)

    def expected(t, value):
        now = process.marginal(torch.tensor(t, dtype=torch.float64), size)
        law = torch.cat([now.token.expand(size) + now.keep * (symbols[:-1] == 3), now.mask[None]])
        each = value(log_x0.expand(size + 1, -1), x0.expand(size + 1), symbols, t)
        return float((law * torch.where(law > 0, each, 0.0)).sum())

    times = [(k + 0.5) / steps for k in range(1, steps)]
    late = sum(
        expected(k / steps, lambda p, a, x, t: process.finite_loss(p, a, x, t, t - 1 / steps))
        for k in range(2, steps + 1)
    )
    bound = sum(expected(t, lambda p, a, x, t: process.loss(p, a, x, t, "own")) for t in times) / steps
    cross = float(-log_x0[0, 3])
    per_step = late + 5e-4 * steps * cross
    per_time = bound + method_of("vq_diffusion").objective.inner.auxiliary * cross
    assert per_time == pytest.approx(per_step, rel=0.02)


def test_bounds_of_a_learned_clock_agree_with_the_plain_ones():
    model, batch = net(), make_batch(LAYOUT, pictures(2).repeat(300, 1))
    clock = taught(lambda t: 0.5 + 4 * t)
    a, b = (row_nats(model, Elbo(vq_paper(), clock=c), batch, torch.arange(600), draws=4) for c in (Shared(), clock))
    error = float((a.var() / a.numel() + b.var() / b.numel()) ** 0.5)
    assert abs(float(a.mean() - b.mean())) < 3 * error
    assert not torch.equal(a, b)
