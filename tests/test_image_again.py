"""Pictures are drawn again that the model doubts, by Bayes' rule from its own likelihood, or that it has learned."""

import pytest
import torch
from picture_toy import FEW, SMALL, few, quiet, run  # noqa: F401  (quiet acts by itself)

from discdiff.layout import make_batch
from tasks.common import generation
from tasks.image import commands
from tasks.image.again import APART, apart, drawn_again, drawn_surely, sureness, usual_distance
from tasks.image.generate import drawn, opened

SAID, LABELS = ["red", "dark blue", "red", "dark blue", "red", "red"], ["red", "dark blue"]


def codes_of(n, seed=0):
    return torch.randint(0, 16, (n, 9, 1), generator=torch.Generator().manual_seed(seed))


def test_it_is_bayes_rule_of_an_exact_likelihood(picture_model):
    """An autoregressive model's likelihood, by its own probabilities of one code after the other."""
    trained, codes = opened(picture_model("autoregressive")), codes_of(6)
    trained.model.double()
    layout, nats = generation.layout_of(trained.model), []
    for label in LABELS:
        ids = trained.lexicon.ids([label] * 6)
        words, first = ids.shape[1], layout.vocab.range("image")[0]
        tokens = torch.cat([ids, first + codes[..., 0]], 1)
        batch = make_batch(layout, tokens, given=(torch.arange(tokens.shape[1]) < words).expand_as(tokens))
        with torch.no_grad():
            hidden = trained.model(batch=batch).hidden[:, words - 1 : -1]
            log_p = (hidden @ trained.model.head_weight(first, 16).T).log_softmax(-1)
        nats.append(log_p.gather(2, codes).sum((1, 2)))
    expected = torch.stack(nats, 1).softmax(1).gather(1, torch.tensor([[LABELS.index(s)] for s in SAID]))[:, 0]
    assert torch.allclose(sureness(trained, codes, SAID, LABELS, range(6)), expected, atol=1e-9)
    assert float((expected - 0.5).abs().max()) > 1e-3  # control: it does see a difference


@pytest.mark.parametrize("method, block", [("vq_diffusion", 0), ("vq_ddm", 0), ("maskgit", 0), ("vq_diffusion", 3)])
def test_it_depends_on_the_picture_its_condition_and_its_seed_alone(picture_model, method, block):
    trained, codes = opened(picture_model(method, block)), codes_of(6)
    trained.model.double()
    sure = sureness(trained, codes, SAID, LABELS, range(6))
    swapped = [LABELS[1 - LABELS.index(s)] for s in SAID]
    assert torch.allclose(sure + sureness(trained, codes, swapped, LABELS, range(6)), torch.ones(6).double())
    some = torch.tensor([4, 1])
    part = sureness(trained, codes[some], [SAID[i] for i in some], LABELS[::-1], some.tolist())
    assert torch.allclose(part, sure[some], atol=1e-9) and float((sure - 0.5).abs().max()) > 1e-3
    assert torch.allclose(sureness(trained, codes, SAID, LABELS * 2, range(6)), sure, atol=1e-9)  # named twice
    assert torch.allclose(sureness(trained, codes, SAID, [], range(6)), torch.ones(6).double())  # nothing to doubt


def test_the_surest_is_kept_and_what_is_sure_is_not_drawn_again(picture_model):
    trained, steps = opened(picture_model("vq_diffusion")), few("vq_diffusion")
    trained.model.double()
    seeds = [[7 + attempt * APART + row for row in range(6)] for attempt in range(3)]
    made = [drawn(trained, SAID, each, steps=steps) for each in seeds]
    sure = torch.stack([sureness(trained, m[1], SAID, LABELS, each) for m, each in zip(made, seeds)])
    least = float(sure[0].sort().values[2:4].mean())  # half of the first ones are not sure enough
    found = drawn_surely(trained, SAID, LABELS, least=least, seed=7, steps=steps)
    for row in range(6):
        tried = next((k + 1 for k in range(3) if sure[k, row] >= least), 3)
        best = int(sure[:tried, row].argmax())
        assert int(found.draws[row]) == tried and float(found.worth[row]) == pytest.approx(float(sure[best, row]))
        assert torch.equal(found.codes[row], made[best][1][row]) and torch.equal(
            found.pictures[row], made[best][0][row]
        )
    assert int(found.draws.sum()) == 6 + 3 + int((sure[:2].amax(0) < least).sum())
    never = drawn_surely(trained, SAID, LABELS, least=0.0, seed=7, steps=steps)
    assert torch.equal(never.codes, made[0][1]) and never.draws.tolist() == [1] * 6


def test_the_command(picture_model, tmp_path, capsys):
    asked = (picture_model("vq_diffusion"), "--condition", "red", "--count", 3, "--out", tmp_path / "a", *FEW)
    assert run(commands.sample, *asked, "--surely", 1, "--unlike", "dark blue", "--tries", 2) == 0
    said = capsys.readouterr().out
    assert "6 drawn for 3, 3 of which fall short still" in said and len(list((tmp_path / "a").iterdir())) == 3


def test_copies_are_drawn_again(picture_model, picture_root, tmp_path, capsys):
    folder, steps = picture_model("vq_diffusion"), few("vq_diffusion")
    trained = opened(folder)
    made = drawn(trained, SAID, 7, steps=steps)[0]
    judge = apart(made[:2])  # as if these had been learned
    assert judge(made, made, (), ())[:2].tolist() == [0, 0] and usual_distance(made[2:], made[:2]) > 0
    x = (made.double() * 2 / 255 - 1).flatten(1)
    assert torch.allclose(judge(made[2:], made, (), ()).double(), torch.cdist(x[2:], x[:2]).amin(1), rtol=1e-4)
    found = drawn_again(trained, SAID, judge, least=1e-3, seed=7, steps=steps)
    assert found.draws.tolist() == [2, 2, 1, 1, 1, 1] and torch.equal(found.pictures[2:], made[2:])
    assert not torch.equal(found.pictures[0], made[0]) and not torch.equal(found.pictures[1], made[1])
    asked = (folder, "--condition", "red", "--count", 2, "--out", tmp_path / "a", *FEW)
    for share, said in ((0.001, "2 drawn for 2, 0 of which"), (1000, "6 drawn for 2, 2 of which")):
        assert run(commands.sample, *asked, "--apart", share) == 0 and said in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (("--surely", 0.5), "unlike is '': name the other conditions beside --surely"),
        (("--unlike", "red"), "unlike is 'red': name the other conditions beside --surely, and with it only"),
        (("--surely", 1.5, "--unlike", "red"), "surely is 1.5: a probability in [0, 1]"),
        (("--surely", 0.5, "--unlike", "red", "--tries", 0), "tries is 0: at least 1"),
        (("--surely", 0.5, "--unlike", "green"), "no training caption has 'green'"),
        (("--apart", -1), "apart is -1.0: a share of the usual distance"),
        (("--apart", 0.5, "--surely", 0.5, "--unlike", "red"), "apart is 0.5: one reason at a time"),
    ],
)
def test_bad_requests(picture_model, argv, message, tmp_path, capsys):
    asked = (picture_model("vq_diffusion"), "--condition", "red", "--out", tmp_path / "a", *FEW, *argv)
    assert run(commands.sample, *asked) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "a").exists()


def test_a_model_that_is_told_nothing_cannot_doubt(picture_root, tmp_path):
    argv = ("--tokenizer", picture_root / "codec", "--condition", "", *SMALL, "--out", tmp_path / "m")
    assert run(commands.train, *argv) == 0
    with pytest.raises(ValueError, match="the model is told nothing that it could doubt"):
        drawn_surely(opened(tmp_path / "m"), [""], ["red"], least=0.5)
