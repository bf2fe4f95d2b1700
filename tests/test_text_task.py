"""`python -m tasks.text`: a real training that learns, its figures, samples and infilling, and everything it refuses."""

import json
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from text_toy import words
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from discdiff.cli import guarded
from discdiff.models import DiscDiffModel
from discdiff.sampling import PRESETS
from discdiff.training import read_metrics, verify
from tasks.text import __main__ as command
from tasks.text import evaluate, rows
from tasks.text.extras import load_energy
from tasks.text.folder import load_model, load_task
from tasks.text.quality import unigram_entropy
from tasks.text.settings import Chosen, Network
from tasks.text.training import config_for

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    f"the {who} {did} on the {what}." for who in ("cat", "dog") for did in ("sat", "ran") for what in ("mat", "log")
]
TEXT = "\n".join(LINES * 40) + "\n"
SMALL = (
    "--num_layers 1 --hidden_size 32 --num_heads 2 --length 32 --batch_size 32 --learning_rate 5e-3 --progress false"
)
QUICK = "--samples 8 --eval_rows 32 --eval_draws_per_row 2 --device cpu --log_every 1000"

LINEWISE = ["--document", "line", "--boundaries", "true"]


def arguments(source: Path | str, folder: Path, *more: str) -> list[str]:
    """What `train` gets; later flags win."""
    return [*f"{SMALL} {QUICK} --source {source} --out {folder} --cache {folder}/cache".split(), *more]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("text") / "lines.txt", TEXT)


@pytest.fixture(scope="module")
def run(source) -> Path:
    """A trained folder: characters, packed rows with document boundaries, and the twin."""
    folder = source.parent / "run"
    command.train("train", arguments(source, folder, *LINEWISE, "--steps", "80"))
    return folder


# ---- training and its figures


def test_training_lowers_the_bound(run, capsys):
    figures = json.loads((run / "metrics.json").read_text())
    model, layout, process = load_model(run / "model")
    corpus, tokenizer = load_task(run)
    _, valid = rows.load_rows(corpus, tokenizer, layout)
    batches = rows.batches(valid, layout, 32)
    blank = DiscDiffModel.seeded(config_for(layout, Network(32, 1, 2), process), 0)
    untrained = evaluate.report(evaluate.likelihood(blank, process, batches, 2, 0), batches, tokenizer, False)
    learned = figures["model"]["nats_per_token"]
    tokens = torch.cat([batch.tokens[:, 1:] for batch in batches]).numpy()
    assert learned < 0.6 * untrained["nats_per_token"] and learned < 0.8 * unigram_entropy(tokens)
    assert figures["twin"]["nats_per_token"] < 0.6 * untrained["nats_per_token"]

    assert (
        command.evaluate("evaluate", [str(run), *["--samples", "8", "--eval_rows", "32", "--eval_draws_per_row", "2"]])
        is None
    )
    printed = capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text()) == figures  # evaluation repeats
    likelihood = {"nats_per_row", "nats_per_token", "bits_per_character", "perplexity"}
    quality = {"judged_nats_per_token", "entropy", "distinct_2", "distinct_4", "unique"}
    assert likelihood | quality <= set(figures["model"]) == set(figures["twin"]) and quality == set(figures["data"])
    assert all(re.search(rf"{key} .*{figures['model'][key]:.4f}", printed) for key in likelihood | quality)
    assert all(math.isfinite(value) for part in ("model", "twin", "data") for value in figures[part].values())
    judged = {name: figures[name]["judged_nats_per_token"] for name in ("data", "twin", "model")}
    assert judged["data"] < 0.5 < 1 < judged["model"] and judged["twin"] < 0.5  # 0.13 for all of the data's tokens


def test_figures_agree_with_each_other(run):
    figures = json.loads((run / "metrics.json").read_text())["model"]
    corpus, tokenizer = load_task(run)
    layout = rows.layout_for(tokenizer, corpus.length)
    _, valid = rows.load_rows(corpus, tokenizer, layout)
    assert len(valid) >= 12
    (batch,) = rows.batches(valid, layout, 32)
    texts = rows.to_text(tokenizer, layout, batch.tokens, cut=False)
    letters = sum(map(len, texts)) / len(texts)
    assert 28 < letters < 32  # end tokens are no characters
    assert figures["nats_per_token"] == pytest.approx(figures["nats_per_row"] / 32)
    assert figures["bits_per_character"] == pytest.approx(figures["nats_per_row"] / letters / math.log(2))
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats_per_token"]))


def test_the_corpus_is_tokenised_once(run):
    assert len(list((run / "cache").iterdir())) == 1


# ---- samples and infilling


def test_samples_are_printed_saved_and_played(run, tmp_path, capsys):
    saved, page = tmp_path / "new" / "samples.jsonl", tmp_path / "page.html"
    command.sample("sample", [str(run), *f"--count 3 --sample_seed 5 --save {saved} --report {page}".split()])
    printed = capsys.readouterr().out
    texts = [json.loads(line)["text"] for line in saved.read_text().splitlines()]
    assert len(texts) == 3 and all(text in printed for text in texts) and set("".join(texts)) <= set(TEXT)
    assert "discdiff sample" in page.read_text() and "https://" not in page.read_text()
    command.sample("sample", [str(run), *f"--count 3 --sample_seed 5 --save {saved}".split()])
    assert [json.loads(line)["text"] for line in saved.read_text().splitlines()] == texts


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "token_critic"])
def test_every_sampler_fills_everything(run, name):
    model, layout, process = load_model(run / "model")
    parts = {"energy": load_energy(run, "twin")} if name == "edlm" else {}
    chosen = Chosen(name, {"steps": 8, "temperature": 0.5, "top_k": 5, "nucleus": 0.9}, parts=parts)
    tokens = evaluate.generate(model, process, rows.blank(layout, 3), chosen)
    assert tokens.shape == (3, 33) and not (tokens == layout.vocab.mask).any()
    assert (tokens[:, 0] == layout.vocab.special("BOS")).all()


@pytest.mark.parametrize("text", ["the ___ sat on", "____", "the cat sat on the ___.", " the _og ___ on the l_g"])
def test_infilling_keeps_what_is_given(run, text, capsys):
    command.sample("sample", [str(run), "--infill", text.replace("_", "#"), "--hole", "#", "--count", "4"])
    for found in capsys.readouterr().out.split("\n" + "-" * 40 + "\n")[:-1]:
        assert re.fullmatch(re.escape(text).replace("_", ".?"), found, re.DOTALL)


# ---- corpora, tokenizers, rows and processes

HF = "HF"
CASES = {  # kind of source, tokenizer, further flags
    "bytes, jsonl, packed": ("jsonl", "bytes", "--boundaries true"),
    "bpe, csv, padded": ("csv", "bpe", "--vocab_size 270 --rows padded --text_field body"),
    "own mask, text, packed": ("txt", HF, "--document line --boundaries true"),
    "own mask, text, padded": ("txt", HF, "--document line --rows padded"),
    "datasets, interpolating": ("hf", "characters", "--rows padded --process interpolating --valid_split validation"),
    "uniform": ("txt", "characters", "--process uniform"),
    "mask_or_replace": ("txt", "characters", "--process mask_or_replace"),
    "cosine schedule": ("txt", "characters", "--document blank --noise_schedule cos_mdlm --length 8"),
}


def corpus_of(folder: Path, kind: str, lines: list[str]) -> str:
    """The lines written as a source of that kind."""
    records = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    if kind == "hf":
        for part in ("train", "validation"):
            write(folder / f"{part}.jsonl", records)
        return f"hf:{folder}"
    table = "body\n" + "".join(f'"{line}"\n' for line in lines)
    return str(write(folder / f"a.{kind}", {"txt": "\n".join(lines), "jsonl": records, "csv": table}[kind]))


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_corpus_and_process(case, tmp_path, capsys):
    kind, tokenizer, flags = CASES[case]
    own, folder, text = tokenizer == HF, tmp_path / "run", "a __ c" if tokenizer == HF else "th__ cat"
    (tmp_path / "data").mkdir()
    lines = ["a b c", "b c a b é a", "c c b a"] * 99 if own else [*LINES, "thé end"] * 12
    source = corpus_of(tmp_path / "data", kind, lines)
    if own:
        words().save_pretrained(tmp_path / "tokenizer")
        tokenizer = str(tmp_path / "tokenizer")
    small = "--length 32 --hidden_size 16 --batch_size 4 --steps 3 --twin false --samples 2 --eval_rows 4"
    argv = arguments(source, folder, *f"{small} {flags} --tokenizer {tokenizer} --valid_fraction 0.1".split())
    command.train("train", argv)
    figures = json.loads((folder / "metrics.json").read_text())
    assert "twin" not in figures and all(math.isfinite(value) for value in figures["model"].values())

    capsys.readouterr()
    command.sample("sample", [str(folder), "--infill", text, "--count", "5"])
    found = capsys.readouterr().out.split("\n" + "-" * 40 + "\n")[:-1]
    start, end = text.split("__")
    assert len(found) == 5 and all(x.startswith(start) and x.endswith(end) for x in found)

    model, layout, process = load_model(folder / "model")
    assert layout.vocab.mask == (load_task(folder)[1].mask_token_id if own else layout.vocab.special("MASK"))
    tokens = evaluate.generate(model, process, rows.blank(layout, 50), Chosen(knobs={"steps": 4}))
    assert not (tokens == layout.vocab.mask).any()
    wanted = re.search(r"--process (\w+)", f"{flags} --process absorbing")[1]
    assert type(process).__name__.lower() == wanted.replace("_", "")


# ---- what is refused, before any step of training


def refusal(main, argv: list[str], capsys) -> str:
    """The one line that a command writes before it exits with code 2."""
    capsys.readouterr()
    disable_progress_bar()
    code = guarded(main, argv)
    enable_progress_bar()
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def no_training(monkeypatch):
    def train(*_):
        raise AssertionError("training began")

    monkeypatch.setattr("tasks.text.training.DiffusionTrainer.train", train)


TRAIN = {
    "--source {0}/none.txt": r"none.txt' is not there",
    "--source {0}/latin.txt": "is not utf-8 text from byte 3 on .* encoding",
    "--source {0}/empty.txt": "hold no character",
    "--source {0}/empty.txt --tokenizer bytes": "the corpus is empty: 1 documents",
    "--source {0}/a.pdf": "file types .*'.pdf'",
    "--source {0}/a.jsonl --text_field body": r"line 1 has the fields \['text'\], not 'body'.*--text_field",
    "--source hf:{0}/nowhere": "datasets finds no split 'train'",
    "--lenght 32": "unknown argument --lenght: did you mean --length",
    "--length many": "'many' is no int",
    "--length 3": "length is 3: a row has at least 4 tokens",
    "--length 1000000": "fewer than a row of 1000000",
    "--rows loose": "rows is 'loose': choose from packed, padded",
    "--rows padded --boundaries true": "boundaries is True: it goes with packed rows",
    "--rows padded --document line --length 8": "more than the length 8",
    "--valid_fraction 1.5": "valid_fraction is 1.5",
    "--valid_split test": "valid_split is 'test': it goes with a source hf:",
    "--valid {0}/a.jsonl": "character 'x' .* is not among the tokenizer's",
    "--process gaussian": "process is 'gaussian': choose from absorbing",
    "--process interpolating --noise_schedule cos_mdlm": "interpolating has its own",
    "--noise_schedule cosine": "noise_schedule is 'cosine': choose from linear",
    "--hidden_size 33": "hidden_size is 33 and num_heads 2",
    "--tokenizer bpe": "'bpe' needs one",
    "--tokenizer {0}/nowhere": "no tokenizer loads from",
    "--source {0}/masked.txt --tokenizer {0}/hf": r"document 0 gives the forbidden token id 6 \('\[MASK\]'\)",
    "--tokenizer {0}/hf --process uniform": "process is 'uniform': the tokenizer's mask is a text id",
    "--steps 0": "steps is 0: it must be at least 1",
    "--learning_rate nan": "learning_rate is nan",
    "--batch_size 4096": "rows fill no batch of 4096",
    "--eval_draws_per_row 0": "eval_draws_per_row is 0",
    "--samples 0": "samples is 0",
}


@pytest.mark.parametrize("flags", TRAIN)
def test_train_refuses(flags, source, tmp_path, capsys, no_training):
    write(tmp_path / "latin.txt", "caf\xe9".encode("latin-1"))
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    write(tmp_path / "masked.txt", "a b [MASK] c")
    words().save_pretrained(tmp_path / "hf")
    argv = arguments(source, tmp_path / "run", *flags.format(tmp_path).split())
    assert re.search(TRAIN[flags], refusal(partial(command.train, "train"), argv, capsys))


def test_train_refuses_to_go_on_with_other_settings(run, source, capsys, no_training):
    argv = arguments(source, run, *LINEWISE)
    for flag, value in (("--process", "uniform"), ("--num_layers", "2"), ("--length", "16")):
        line = refusal(partial(command.train, "train"), [*argv, flag, value], capsys)
        assert f"{flag[2:]} " in line and "go on with the same, or choose another --out" in line
    assert load_task(run)[0].length == 32  # what was there is left as it was


SAMPLE = {
    "--infill that": "0 of them in holes '_': give at least one hole",
    "--infill ___" + "x" * 40: "43 tokens.* at most the 32 tokens of a row|character 'x'",
    "--infill qu_ck": r"character 'q' \(U\+0071\)",
    "--infill " + "_" * 33: "33 tokens, 33 of them in holes.* at most the 32 tokens",
    "--hole ab": "hole is 'ab': one character",
    "--count 0": "count is 0",
    "--sampler entopy": "unknown sampler 'entopy'; did you mean 'entropy'",
    "--sampler.temperature -1": "temperature is -1.0",
    "--sampler.nucleus 0": "nucleus is 0.0",
    "--sampler.top_k=-1": "top_k is -1",
    "--sampler.steps -1": "steps is -1",
    "--sampler remdm_cap --sampler.etta 1": "unknown argument --sampler.etta: did you mean --sampler.eta",
    "--sampler remdm_cap --sampler.eta big": "'big' is no float",
    "--sampler.cache all": "cache is 'all': choose from none, prefix",
    "--infil x_": "unknown argument --infil: did you mean --infill",
}


@pytest.mark.parametrize("flags", SAMPLE)
def test_sample_refuses(flags, run, capsys):
    assert re.search(SAMPLE[flags], refusal(partial(command.sample, "sample"), [str(run), *flags.split()], capsys))


def test_folders_that_are_no_run_are_refused(run, tmp_path, capsys):
    for main in (partial(command.sample, "sample"), partial(command.evaluate, "evaluate")):
        assert "no settings in" in refusal(main, [str(tmp_path / "none")], capsys)
    (tmp_path / "tokenizer").symlink_to(run / "tokenizer")
    write(tmp_path / "task.json", "{")
    assert "no settings in" in refusal(partial(command.sample, "sample"), [str(tmp_path)], capsys)
    settings = json.loads((run / "task.json").read_text())
    write(tmp_path / "task.json", json.dumps(settings))
    assert "holds no model: repeat the train command" in refusal(
        partial(command.evaluate, "evaluate"), [str(tmp_path)], capsys
    )
    settings["corpus"]["lenght"] = 3
    write(tmp_path / "task.json", json.dumps(settings))
    assert "'lenght'; did you mean 'length'" in refusal(partial(command.evaluate, "evaluate"), [str(tmp_path)], capsys)


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tasks.text", "train", "--source", "none.txt"])
    monkeypatch.delitem(sys.modules, "tasks.text.__main__")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("tasks.text", run_name="__main__")
    assert stop.value.code == 2
    assert re.fullmatch(r"error: the source file 'none.txt' is not there .*: check the path\n", capsys.readouterr().err)


# ---- interruption


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_from_which_the_same_command_goes_on(source, tmp_path):
    steps = 30
    argv = arguments(source, tmp_path, *f"--steps {steps} --batch_size 48 --hidden_size 48 --log_every 1".split())
    argv += ["--twin", "false", "--valid_fraction", "0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.text", "train", *argv],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "model_training" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and errors.rstrip().endswith("interrupted"), errors
    (checkpoint,) = (tmp_path / "model_training").glob("checkpoint-*")
    stopped = verify(checkpoint)["step"]
    assert 1 <= stopped < steps and not (tmp_path / "metrics.json").exists()
    assert guarded(partial(command.train, "train"), argv) == 0
    entries = [entry["step"] for entry in read_metrics(log) if "loss" in entry]
    assert entries == list(range(1, steps + 1))
    assert f'"step": {stopped}, "resumed": true' in log.read_text()
    assert (tmp_path / "metrics.json").exists() and load_model(tmp_path / "model").process is not None


# ---- the commands of the documents


def test_commands_of_the_readme(source, tmp_path, monkeypatch, capsys):
    """README's own lines, made small by flags behind them, in the order in which they stand."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "book.txt", (TEXT + " It was the best of times, ") * 2)
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ").partition("## Fine-tune")[0]
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("python -m tasks.text ")]
    assert [line[3] for line in lines] == ["train", "sample", "evaluate"]
    small = {
        "train": f"{SMALL} {QUICK} --length 64 --steps 2 --max_seconds 60",
        "sample": "--count 1",
        "evaluate": "--eval_rows 2 --samples 2",
    }
    for line in lines:
        command.MAIN([*line[3:], *small[line[3]].split()])
    assert "It was the" in capsys.readouterr().out
