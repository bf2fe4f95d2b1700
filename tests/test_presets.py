"""The named samplers: every line of the table is conformant, what it says of the law holds, and every wrong knob is named."""

import inspect
import json

import pytest
import torch

from discdiff.energy import TokenEnergy
from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.processes import Absorbing, Interpolating, MaskOrReplace, Uniform
from discdiff.sampling import CACHES, PRESETS, Common, Grid, Sampler, generate, knobs, prompts, sampler
from discdiff.sampling.presets import EXACT, LIMIT
from discdiff.testing import check_sampler, noise_floor, total_variation, toy

NEEDED = {
    "token_critic": {"critic": lambda state, step: -(state.tokens * 7 % 5).double()},
    "edlm": {"energy": TokenEnergy(lambda tokens: (tokens * 7 % 5).double().sum(1))},
}
VOCAB = VocabLayout(text_size=7)
LAYOUT = Layout(VOCAB, (Segment("text", "text", (12,)),))
DRAWS = 6_000


def make(name, process=None, **values):
    return sampler(name, process, **{**NEEDED.get(name, {}), **values})


@pytest.fixture(scope="module")
def model():
    config = DiscDiffConfig(vocab=json.loads(VOCAB.to_json()), hidden_size=16, num_layers=2, num_heads=2, max_length=16,
                            initializer_range=0.4)  # fmt: skip
    return DiscDiffModel.seeded(config, 0, torch.float64).eval()


@pytest.mark.parametrize("name", PRESETS)
def test_conformance(name):
    check_sampler(make(name))
    if "block" in inspect.signature(PRESETS[name].build).parameters:
        check_sampler(make(name, block=3))


@pytest.mark.parametrize(
    "process",
    [
        Uniform(),
        pytest.param(MaskOrReplace(), marks=pytest.mark.slow),
        pytest.param(Interpolating(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if p.law == LIMIT])
def test_conformance_on_every_process_it_takes(name, process):
    check_sampler(make(name, process))


@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if p.law == EXACT])
def test_exact_ones_are_exact_one_token_at_a_time(name):
    law = toy()
    state, _ = make(name, temperature=1.0, steps=4)(law.denoiser(Absorbing()), law.batch(DRAWS), seed=3)
    assert total_variation(law.law(state.tokens), law.p) < 1.5 * noise_floor(law.p, DRAWS)


@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if p.law == LIMIT])
def test_the_others_come_nearer_with_more_steps(name):
    law = toy()
    few, many = (
        total_variation(
            law.law(make(name, steps=n)(law.denoiser(Absorbing()), law.batch(DRAWS), seed=3)[0].tokens), law.p
        )
        for n in (1, 32)
    )
    assert many < 0.5 * few and many < 4 * noise_floor(law.p, DRAWS)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llada", {}),
        ("p2", {}),
        ("token_critic", {}),
        ("edlm", {}),
        ("remdm_conf", {"eta": 0.9}),
        ("maskgit", {"noise": 0.0}),
    ],
)
def test_biased_ones_are_biased(name, more):
    """A sharper temperature than 1 is not the reason: these are run at 1."""
    law = toy()
    state, _ = make(name, temperature=1.0, steps=4, **more)(law.denoiser(Absorbing()), law.batch(DRAWS), seed=3)
    assert total_variation(law.law(state.tokens), law.p) > 3 * noise_floor(law.p, DRAWS)


@pytest.mark.parametrize("cache", CACHES)
def test_generate_fills_masks_only(model, cache):
    tokens = torch.tensor([[1, 2, *[VOCAB.mask] * 5, 3, *[VOCAB.mask] * 4]] * 3)
    if cache in ("prefix", "block"):
        with pytest.raises(ValueError, match="attention"):
            model.generate(tokens, cache=cache)
        return
    found, info = model.generate(tokens, "entropy", steps=9, cache=cache, seed=4)
    known = tokens != VOCAB.mask
    assert torch.equal(found[known], tokens[known]) and not (found == VOCAB.mask).any()
    assert info.nfe >= 9 and info.fed <= info.network_rows * 12 and info.committed == 27
    again, _ = generate(model, tokens, make("entropy", steps=9, cache=cache), seed=4)
    assert torch.equal(found, again)


def test_generate_of_prompts_of_different_lengths(model):
    texts, new = [[1, 2, 3], [4], []], [5, 11, 3]
    rows = {}
    for pad in ("left", "right"):
        batch = prompts(LAYOUT, texts, new, pad=pad)
        tokens, _ = model.generate(batch, "fast_dllm", seed=[5, 6, 7], steps=11, tau=0.3, block=4, temperature=1.0)
        rows[pad] = [t[v].tolist() for t, v in zip(tokens, batch.valid, strict=True)]
    assert rows["left"] == rows["right"]
    for i in range(3):
        batch = prompts(LAYOUT, texts[i : i + 1], new[i : i + 1])
        alone, _ = model.generate(batch, "fast_dllm", seed=[5 + i], steps=11, tau=0.3, block=4, temperature=1.0)
        assert alone[0][batch.valid[0]].tolist() == rows["left"][i]


def test_a_callback_sees_every_step(model):
    seen = []
    blank = torch.full((2, 12), VOCAB.mask)
    tokens, info = model.generate(blank, "random", steps=6, callback=lambda state, step: seen.append(step))
    assert len(seen) == 7 and sum(int(s.committed) for s in seen) == 24 == int(info.committed)
    assert all(s.entropy is not None for s in seen[1:])


def test_knobs_are_declared_once():
    common = {f for f in Common.__dataclass_fields__}
    for name in PRESETS:
        own = list(inspect.signature(PRESETS[name].build).parameters)[1:]
        assert not common & set(own) and set(knobs(name).__dataclass_fields__) == common | set(own)
        assert PRESETS[name].summary in knobs(name).__doc__
    assert knobs("llada")().temperature == 0.0 and knobs("ancestral")().temperature == 1.0


def test_grids_and_steps(model):
    law = toy()
    assert make("ancestral")(law.denoiser(Absorbing()), law.batch(2))[1].nfe <= 32
    grid = Grid.uniform(5, renoise=0.3)
    state, _ = sampler("remdm_cap", grid=grid)(law.denoiser(Absorbing()), law.batch(3), seed=1)
    assert (state.tokens != law.layout.vocab.mask).all()
    with pytest.raises(ValueError, match="renoise"):
        sampler("ancestral", grid=grid)(law.denoiser(Absorbing()), law.batch(3))


BAD = {
    ("remdm_capp", ()): "unknown sampler 'remdm_capp'; did you mean 'remdm_cap'",
    ("remdm_cap", (("etta", 0.1),)): "unknown setting of remdm_cap 'etta'; did you mean 'eta'",
    ("remdm_cap", (("eta", 1.5),)): "eta is 1.5",
    ("ancestral", (("steps", -1),)): "steps is -1",
    ("ancestral", (("block", -1),)): "block is -1",
    ("ancestral", (("cache", "all"),)): "cache is 'all': choose from none, prefix",
    ("ancestral", (("guidance", float("nan")),)): "guidance is nan",
    ("dream", (("order", "best"),)): "order is 'best': choose from maskgit_plus",
    ("edlm", ()): "energy is None: give",
    ("token_critic", ()): "critic is None: give a function",
    ("fast_dllm", (("tau", 0.0),)): "tau is 0.0",
    ("gibbs", (("calls", 0),)): "calls is 0",
}


@pytest.mark.parametrize(("name", "values"), BAD)
def test_refusals(name, values):
    with pytest.raises(ValueError, match=BAD[name, values]):
        sampler(name, **dict(values))


def test_refusals_before_the_first_forward(model, monkeypatch):
    monkeypatch.setattr(DiscDiffModel, "forward", lambda *args, **kwargs: pytest.fail("the network was asked"))
    blank = torch.full((1, 12), VOCAB.mask)
    for tokens, options, message in (
        (torch.full((1, 20), VOCAB.mask), {}, "20 network slots, the model's max_length is 16"),
        (blank.float(), {}, "tokens are torch.float32"),
        (torch.tensor([[1, 999, VOCAB.mask]]), {}, "id 999 at row 0"),
        (torch.tensor([[1, 2, 3]]), {}, "nothing to sample"),
        (blank, {"sampler": "llada", "block": 40}, "block size 40 exceeds the layout's 12"),
        (blank, {"end": "EOX"}, "EOX"),
        (blank, {"sampler": Sampler(make("random").kernel), "steps": 3}, "knobs \\['steps'\\] go with the name"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(tokens, **options)
    with pytest.raises(ValueError, match="Absorbing"):
        make("confidence", Uniform())
    assert isinstance(make_batch(LAYOUT, blank).layout, Layout)


def test_greedy_samplers_rank_by_what_the_network_knows():
    """One-hot predictions would make every position equally sure: all committed at once, or in reading order."""
    law, rows = toy(), 3
    denoiser, batch = law.denoiser(Absorbing()), law.batch(rows, given={2: 1})
    for name in ("fast_dllm", "fast_dllm_factor", "klass"):
        _, info = make(name, steps=3)(denoiser, batch)
        assert info.nfe == 3, name  # no prediction of the toy passes 0.9
    x, masked = batch.tokens.clone(), ~batch.given
    for _ in range(3):  # LLaDA's loop, row by row
        p = law.posterior(torch.where(masked, 3, x), torch.tensor(0.5, dtype=torch.float64), Absorbing()).exp()
        for row in range(rows):
            best = max((i for i in range(4) if masked[row, i]), key=lambda i, row=row: float(p[row, i].max()))
            x[row, best], masked[row, best] = int(p[row, best].argmax()), False
    state, _ = make("llada", steps=3)(denoiser, batch)
    assert torch.equal(state.tokens, x)
    order = [int((s.committed & ~batch.given)[0].sum()) for s, _ in make("llada", steps=3).iterate(denoiser, batch)]
    assert order == [0, 1, 2, 3]
