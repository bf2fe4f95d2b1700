"""Likelihoods of the harness adapter against enumeration, and the harness itself on local files, offline."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from table_toy import ONE, TOY, Table

from discdiff.layout import make_batch
from discdiff.lm_eval import DiscDiffLM, bound, left_to_right
from discdiff.models import DiscDiffModel
from discdiff.processes import Absorbing, Uniform
from tasks.text import rows, tokenizer
from tasks.text.settings import Network
from tasks.text.training import config_for


def toy_rows():
    """Ten sequences whose first position is given."""
    tokens = TOY.table[torch.arange(0, 81, 8)][:10]
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, 0] = True
    return make_batch(ONE, tokens, given=given)


def nll(batch):
    """log p(x_2..x_4 | x_1) of the toy."""
    law = torch.stack([TOY.conditional({0: int(x[0])}) for x in batch.tokens])
    number = (batch.tokens * 3 ** torch.arange(3, -1, -1)).sum(1)
    return law.gather(1, number[:, None])[:, 0].log()


class Skewed(Table):
    """Predictions that disagree with one another, so that the bound is not the likelihood."""

    def cavity(self, batch, time):
        seen = (batch.tokens != batch.layout.vocab.mask).sum(1)[:, None, None]
        return (super().cavity(batch, time).clamp(min=-8) * (0.5 + 0.4 * seen)).log_softmax(-1)


def enumerated(model, batch):
    """The any-order bound: mean over counts n of hidden tokens and sets of n, of n_free / n times their log p."""
    free = int(batch.free[0].sum())
    total = torch.zeros(len(batch.tokens), dtype=torch.float64)
    for n in range(1, free + 1):
        sets = list(itertools.combinations(range(1, 4), n))
        for hidden in sets:
            tokens = batch.tokens.clone()
            tokens[:, list(hidden)] = batch.layout.vocab.mask
            law = model.cavity(batch._replace(tokens=tokens), torch.full((len(tokens), 4), 0.5))
            each = law.gather(-1, batch.tokens[..., None])[..., 0][:, list(hidden)].sum(1)
            total += each * free / n / len(sets) / free
    return total


def test_bound_agrees_with_enumeration():
    batch, model = toy_rows(), Skewed()
    exact, keys = enumerated(model, batch), torch.arange(10)
    found = bound(model, Absorbing(), batch, keys, draws=256)
    z = (found.log_prob - exact) / found.stderr
    assert z.abs().max() < 3 and (found.stderr > 0).all() and found.stderr.max() < 0.3
    control = (found.log_prob - enumerated(Table(), batch)) / found.stderr
    assert control.abs().max() > 5  # the figure of another model is told apart


def test_bound_of_the_exact_denoiser_is_the_likelihood():
    batch = toy_rows()
    for process in (Absorbing(), Uniform()):
        model = Table(None if isinstance(process, Absorbing) else process)
        if not isinstance(process, Absorbing):
            batch = batch._replace(given=torch.zeros_like(batch.given))
        target = nll(batch) if isinstance(process, Absorbing) else TOY.p.log()[torch.arange(0, 81, 8)[:10]]
        found = bound(model, process, batch, torch.arange(10), draws=512)
        assert ((found.log_prob - target) / found.stderr).abs().max() < 3.5


def test_stderr_is_honest_and_rows_do_not_depend_on_the_batch():
    batch, model = toy_rows(), Skewed()
    many = batch.rows(torch.zeros(400, dtype=torch.int64))
    found = bound(model, Absorbing(), many, torch.arange(400), draws=16)
    assert 0.6 < float(found.log_prob.std() / found.stderr.square().mean().sqrt()) < 1.1
    one = bound(model, Absorbing(), many.rows(torch.tensor([7])), torch.tensor([7]), draws=16)
    assert float(one.log_prob[0] - found.log_prob[7]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="draws is 3"):
        bound(model, Absorbing(), batch, torch.arange(10), draws=3)


def test_left_to_right_is_exact():
    batch = toy_rows()
    found = left_to_right(TOY.denoiser(Absorbing()), batch, chunk=7)
    assert torch.allclose(found.log_prob, nll(batch), atol=1e-6) and not found.stderr.any()
    assert found.greedy.any() and not found.greedy.all()


CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}]
"""
WRITE = """
task: toy_write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["b"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task's folder with random weights."""
    path, kind = tmp_path_factory.mktemp("lm") / "run", tokenizer.build("characters", ["abc d"])
    config = config_for(rows.layout_for(kind, 12), Network(16, 1, 2), Absorbing())
    DiscDiffModel.seeded(config, 0).save_pretrained(path / "model")
    kind.save_pretrained(path / "tokenizer")
    return path


@pytest.mark.parametrize("order", ["any", "left_to_right"])
def test_harness(folder, order):
    pytest.importorskip("lm_eval")
    lm = DiscDiffLM(folder, order=order, draws=8, batch_size=3, sampler="confidence", device="cpu")
    asked = [SimpleNamespace(args=x) for x in (("ab", "c"), ("", "cab d"), ("a" * 30, "b"), ("ab", " cc"), ("a", ""))]
    found = lm.loglikelihood(asked)
    assert all(x < 0 for x, _ in found[:4]) and found[4] == (0.0, True) and len(lm.stderrs) == 5
    assert all((error > 0) == (order == "any") for error in lm.stderrs[1:2])
    back = lm.loglikelihood(asked[::-1])[::-1]
    assert [x for x, _ in back] == pytest.approx([x for x, _ in found], abs=1e-9)
    assert lm.loglikelihood_rolling([SimpleNamespace(args=("abc d" * 7,))])[0] < -10
    write = [
        SimpleNamespace(args=(x, {"until": ["b"], "max_gen_toks": n})) for x, n in (("a", 4), ("c" * 40, 50), ("", 9))
    ]
    texts = lm.generate_until(write)
    assert texts == lm.generate_until(write[::-1])[::-1] and not any("b" in text for text in texts)
    with pytest.raises(ValueError, match="13 tokens, a row 12"):
        lm.loglikelihood([SimpleNamespace(args=("", "a" * 13))])


def test_tasks_offline(folder, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    lm, lines = DiscDiffLM(folder, draws=4, device="cpu"), []
    for text in ("ab", "c", "ba", "d a"):  # the label is what the likelihoods prefer, but for the last line
        pair = lm.loglikelihood([SimpleNamespace(args=(text, f" {choice}")) for choice in "cd"])
        label = int(pair[1][0] > pair[0][0]) ^ (text == "d a")
        lines.append({"text": text, "choices": ["c", "d"], "label": label, "answer": "a"})
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    arguments = f"pretrained={folder},draws=4,sampler=confidence,steps=4,device=cpu"
    out = lm_eval.simple_evaluate(
        "discdiff", arguments, tasks=["toy_choice", "toy_write"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    assert out["results"]["toy_choice"]["acc,none"] == 0.75
    assert 0 <= out["results"]["toy_write"]["exact_match,none"] <= 1
