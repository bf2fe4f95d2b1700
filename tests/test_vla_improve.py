"""Energies and learned times of robot policies: what they choose, what they keep, and the commands that learn them."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from policy_toy import SHOWN, Line, ahead, observed, shaken
from transformers.utils.logging import disable_progress_bar

import discdiff as dd
from benchmarks import vla_rounds
from benchmarks.vla_tracks import TRACKS
from discdiff.cli import guarded
from discdiff.energy import EnergyModel, LearnedEnergy
from tasks.vla.collect import record
from tasks.vla.commands import opened, train
from tasks.vla.design import ACTION, METHODS, Decoding, Policy
from tasks.vla.improve import distill, energy, unmade
from tasks.vla.judged import sample
from tasks.vla.learning import untrained
from tasks.vla.lerobot import write
from tasks.vla.page import tried
from tasks.vla.policy import ActionPolicy
from tasks.vla.sentences import said as metaworld_said
from tasks.vla.trial import demonstrated

TINY = "--hidden_size 16 --num_layers 1 --num_heads 2 --chunk 4 --codebook_size 16 --batch_size 16 --warmup 1 --progress false"


@pytest.fixture(autouse=True)
def quiet():
    """As the command has it, whatever ran before: an error is then the only line."""
    disable_progress_bar()


@pytest.fixture(scope="module")
def policy():
    """A policy with an energy and two grids of its own, all of random weights."""
    plain = shaken()
    judge = EnergyModel.from_denoiser(plain.model, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        judge.last.weight += 0.5 * torch.randn(judge.last.weight.shape, generator=generator)
    grids = {"even": dd.Grid.uniform(3), "late": dd.Grid((1.0, 0.9, 0.8, 0.0))}
    return dataclasses.replace(plain, energy=LearnedEnergy(judge.eval()), grids=grids)


def corrected(energy, k=6, steps=2, **more):
    return Decoding("edlm", steps, read="token", temperature=1.0, knobs={"energy": energy, "k": k, **more})


def test_an_energy_chooses_among_drawn_chunks(policy):
    state, said, _ = observed(policy, 4)
    state, said = np.tile(state, (10, 1)), said * 10
    columns, levels = policy.layout.columns(ACTION), policy.tokenizer.codebook_size

    def far(tokens):  # low where numbers are high
        codes = policy.layout.vocab.to_local(tokens[:, columns].unflatten(1, (-1, 7)), ACTION)
        return -200.0 * codes.double().flatten(1).mean(1) / levels

    def height(k, **more):
        how = corrected(dd.TokenEnergy(far), k, steps=1, **more)
        actions = policy.predict_action(state, said, seed=3, decoding=how)
        return policy.normaliser().normalise(torch.from_numpy(actions)).values.double().mean().item()

    one, six, many = height(1), height(6), height(24)
    assert one + 0.05 < six < many - 0.02  # the more candidates, the better
    assert height(6, window=0.0) == pytest.approx(one, abs=1e-9)  # corrected never


def test_corrected_rows_stand_for_themselves_and_caches_change_nothing(policy):
    state, said, _ = observed(policy)
    how = corrected("learned")
    actions = policy.predict_action(state, said, seed=[3, 1, 4, 1, 5], decoding=how)
    assert np.allclose(policy.predict_action(state[1], said[1], seed=1, decoding=how), actions[1], atol=1e-6)
    bare = dataclasses.replace(how, knobs={**how.knobs, "cache": "none"})
    assert np.allclose(policy.predict_action(state, said, seed=[3, 1, 4, 1, 5], decoding=bare), actions, atol=1e-6)
    other = policy.predict_action(state, said, seed=[3, 1, 4, 1, 5], decoding=corrected("learned", 1))
    assert np.abs(other - actions).max() > 1e-3
    kept = policy.predict_action(state, said, prefix=actions[:, :2], decoding=how)
    assert np.array_equal(kept[:, :2], actions[:, :2])


def test_learned_times_replace_equal_rounds(policy):
    state, said, _ = observed(policy)
    ways = {
        name: policy.predict_action(state, said, seed=5, decoding=Decoding("ancestral", temperature=1.0, **more))
        for name, more in {"three": {"steps": 3}, "even": {"grid": "even"}, "late": {"grid": "late"}}.items()
    }
    assert np.array_equal(ways["even"], ways["three"])
    assert np.abs(ways["late"] - ways["three"]).max() > 1e-3
    trace = policy.unmasking(state[0], said[0], decoding=Decoding(grid="even"))
    assert len(trace.tokens) == len(policy.unmasking(state[0], said[0], decoding=Decoding(steps=3)).tokens)


def test_the_report_says_the_rounds_of_a_grid_and_shows_them_once(policy, tmp_path):
    figures = {"success": 1.0, "success_low": 0.9, "success_high": 1.0, "length": 3.0, "ms_per_chunk": 2.0}
    chunk = {}
    for how in (Decoding(grid="late", sampler="ancestral"), Decoding(steps=4), Decoding(steps=9)):
        told = tried(tmp_path, policy, how, figures, {}, [], demonstrated(1)[0]).read_text().split("A chunk appears")
        chunk[how.grid or how.steps] = (
            re.findall(r"\d+ rounds[^;,.<]*", told[0]),
            re.findall(r"\d+ rounds[^;]*;", told[1]),
        )
    assert chunk["late"] == (["3 rounds at the learned times late"], ["3 rounds of late;"])
    assert chunk[4] == (["4 rounds"], ["4 rounds;", "8 rounds;"]) and chunk[9] == (["9 rounds"], ["9 rounds;"])


def test_they_are_kept_with_the_policy(policy, tmp_path):
    state, said, _ = observed(policy)
    policy.save_pretrained(tmp_path)
    again = ActionPolicy.from_pretrained(tmp_path)
    again = dataclasses.replace(again, model=again.model.double(), energy=LearnedEnergy(again.energy.model.double()))
    assert again.grids == policy.grids
    for how in (corrected("learned"), Decoding("ancestral", grid="late", temperature=1.0)):
        told = policy.predict_action(state, said, seed=2, decoding=how)
        assert np.allclose(again.predict_action(state, said, seed=2, decoding=how), told, atol=1e-6)


def test_what_is_not_there_is_said(policy):
    state, said, _ = observed(policy, 1)
    bare = shaken()
    for how, match in (
        (corrected("learned"), "there is none yet"),
        (corrected("twin"), "give 'learned'"),
        (Decoding(grid="kl_4"), "none yet; distill makes one"),
    ):
        with pytest.raises(ValueError, match=match):
            bare.predict_action(state, said, decoding=how)
    with pytest.raises(ValueError, match="there is even, late"):
        policy.predict_action(state, said, decoding=Decoding(grid="kl_4"))
    with pytest.raises(ValueError, match="choose among equal candidates"):
        Decoding("edlm", knobs={"energy": "learned"})
    for method in set(METHODS) - {"masked"}:
        with pytest.raises(ValueError, match="takes none"):
            Decoding(grid="even").check(method)
    with pytest.raises(ValueError, match="have .* frames"):
        unmade(policy, demonstrated(1), 10_000, 0)


def test_the_commands_learn_both(tmp_path, capsys):
    folder = tmp_path / "policy"

    def run(command, words):
        code = guarded(lambda argv: command("test", argv), [str(folder), *words.split()])
        return code, capsys.readouterr()

    train("train", [*f"--episodes 8 --picture 16 --proprio 4 --steps 3 {TINY} --out {folder}".split()])
    short = "--steps 60 --batch_size 16 --warmup 1 --learning_rate 1e-2 --progress false"
    code, said = run(energy, short)
    nats = float(said.out.split("validation rows: ")[1].split()[0])
    assert code == 0 and nats < 1.2, (
        said.err
    )  # a policy of three steps is easily told from demonstrations; 2 ln 2 is level
    code, said = run(distill, "--steps 2 --teacher_steps 6 --rows 16")
    assert code == 0 and "--grid kl_2" in said.out, said.err
    policy, _ = opened(folder)
    assert len(policy.grids["kl_2"]) == 2 and policy.energy is not None
    for words in ("--grid kl_2", "--sampler edlm --sampler.energy learned --sampler.k 3 --temperature 1 --read near"):
        code, said = run(sample, f"--frame 1:2 {words}")
        assert code == 0 and len(said.out.splitlines()) == 6, said.err
    code, said = run(sample, "--frame 1:2 --grid none")
    assert code == 2 and "there is kl_2" in said.err
    assert len(said.err.strip().splitlines()) == 1
    code, said = run(distill, "--rows 100000")
    assert code == 2 and "frames" in said.err
    flow = tmp_path / "flow"
    train("train", [*f"--method flow --episodes 4 --steps 2 {TINY} --out {flow}".split()])
    code, said = guarded(lambda argv: energy("test", argv), [str(flow)]), capsys.readouterr()
    assert code == 2 and "of masked policies" in said.err


def test_an_energy_is_of_the_weights_it_began_with(tmp_path, capsys):
    """Of a policy that was trained further, an energy is learned anew; of the same one, training goes on."""
    folder = tmp_path / "policy"
    words = f"--episodes 4 {TINY} --out {folder}".split()

    def learned(steps):
        energy("energy", [str(folder), *f"--steps {steps} --batch_size 16 --warmup 1 --progress false".split()])
        log = (tmp_path / "policy" / "energy_training" / "metrics.jsonl").read_text()
        state = EnergyModel.from_pretrained(folder / "energy").state_dict()
        return (
            "learned anew" in capsys.readouterr().out,
            "resumed" in log,
            torch.cat([x.flatten() for x in state.values()]),
        )

    train("train", [*words, "--steps", "2"])
    first = learned(2)
    assert first[:2] == (False, False)
    again = learned(2)
    assert again[:2] == (False, True) and torch.equal(again[2], first[2])
    train("train", [*words, "--steps", "4"])
    other = learned(2)
    assert other[:2] == (True, False) and not torch.equal(other[2], first[2])
    (folder / "energy_training" / "base.sha256").unlink()  # as before there were such notes: nobody knows
    assert learned(2)[0]


def test_the_bench_of_few_rounds(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKS, "tiny", dataclasses.replace(TRACKS["multimodal"], tasks=("reach", "push")))
    shown = [
        each
        for task in ("reach", "push")
        for each in record(task, 8, seed=1, instruction=metaworld_said, cap=40, make=Line, expert=ahead, say=print)
    ]
    write(tmp_path / "data" / "tiny", shown, fps=80)
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "codebook_size": 16}
    untrained(Policy(chunk=2, **shape), shown, 0).save_pretrained(tmp_path / "policies" / "tiny" / "masked_0")
    words = f"--track tiny --seeds 0 --steps 3 --rows 8 --episodes 1 --cap 4 --save false --out {tmp_path}".split()
    vla_rounds.main(words, Line)
    kept = json.loads((tmp_path / "rounds" / "results" / "vla_rounds.json").read_text())
    found = {row["figure"]: row["value"] for row in kept["figures"]}
    assert all(f"{name}: success, mean" in found for name in vla_rounds.WAYS)
    assert found["energy, 2 rounds, less ancestral, 2 rounds: low"] <= 0 <= found["an energy: training"]
    assert {f"{order}, 16 rounds{read}, less confidence, 16 rounds{read}: mean" for order in ("gap", "narrowest first")
            for read in ("", ", expectation")} <= found.keys()  # fmt: skip
    capsys.readouterr()
    vla_rounds.main(words, lambda task: pytest.fail("an episode was tried again"))
    cell = tmp_path / "rounds" / "tiny_0" / "cells" / "energy_2_rounds.json"
    stored = json.loads(cell.read_text())
    stored["episodes"] = [[task, seed, True] for task, seed, _ in stored["episodes"]]
    cell.write_text(json.dumps(stored))
    vla_rounds.main(words, lambda task: pytest.fail("an episode was tried again"))
    kept = json.loads((tmp_path / "rounds" / "results" / "vla_rounds.json").read_text())
    assert {row["figure"]: row["value"] for row in kept["figures"]}["energy, 2 rounds: success, mean"] == 100
    with pytest.raises(ValueError, match=r"run benchmarks\.vla on that track first"):
        vla_rounds.main([*words, "--seeds", "1"], Line)


def test_the_bench_of_few_rounds_goes_on_and_knows_its_weights(tmp_path, monkeypatch):
    """A killed training of an energy goes on, and nothing of other weights is taken for that of these."""
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "codebook_size": 16}
    plain = untrained(Policy(chunk=2, **shape), SHOWN, 0)
    plain.save_pretrained(tmp_path / "policies" / "multimodal" / "masked_0")
    run = vla_rounds.Run(steps=4, rows=8, episodes=1, cap=4, out=str(tmp_path))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(vla_rounds, "learn_grid", killed)
        vla_rounds.improved(run, 0, lambda: SHOWN)
    policy, seconds = vla_rounds.improved(run, 0, lambda: SHOWN)
    log = tmp_path / "rounds" / "multimodal_0" / "energy_training" / "metrics.jsonl"
    assert seconds is None and "resumed" in log.read_text()
    keys = [vla_rounds.key(policy, how) for how in vla_rounds.WAYS.values()]
    assert keys == [vla_rounds.key(policy, how) for how in vla_rounds.WAYS.values()]
    with torch.no_grad():
        next(plain.model.parameters()).add_(0.1)
    plain.save_pretrained(tmp_path / "policies" / "multimodal" / "masked_0")
    other, seconds = vla_rounds.improved(run, 0, lambda: SHOWN)
    assert seconds > 0 and "resumed" not in log.read_text()
    for mine, how in zip(keys, vla_rounds.WAYS.values(), strict=True):
        changed = {name for name, value in vla_rounds.key(other, how).items() if value != mine[name]}
        assert {"weights"} <= changed and ("energy" in changed) == (how.sampler == "edlm")
    assert vla_rounds.table({name: {1: 0.0} for name in vla_rounds.WAYS}, [None, 3.0])[0]["value"] == 3
