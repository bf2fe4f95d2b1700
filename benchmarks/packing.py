"""What packing costs on top of tokenising: CPU time of both together over tokenising alone, paired in one process.

    python -m benchmarks.packing

The text is about 6 MB of the standard library's own sources, the tokenizer a BPE of 4,096 trained on part of them. "Alone"
is the batch encoder of `tokenizers` over the same pieces, its results dropped; ours adds everything up to rows in hand:
cutting, writing the token file, mapping it, reading every packed row. On a busy machine the paired ratio scatters by a tenth
either way (the smallest and largest say how much; below 1 is noise). The ratio within one run scatters less, but counts the
copy of the ids out of the encoder, about 1.5 %, as encoding. The peer is the usual recipe, a `datasets` stream tokenised by
`map` and joined in Python lists. One thread, so that waiting threads do not count as work.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import datasets

from benchmarks.results import record
from tasks.text import tokenfile
from tasks.text.corpus import PackedRows, tokenise
from tasks.text.tokenizer import PreTrainedTokenizerFast, bpe, cutter

SIZE, LENGTH, VOCAB_SIZE, REPEATS, PEER_REPEATS = 6_000_000, 1024, 4096, 15, 2


def texts() -> list[str]:
    """Source files of the standard library in order of name, ASCII only, `SIZE` characters in all."""
    found: list[str] = []
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        for path in [root / f"{name}.py", *sorted((root / name).glob("*.py"))]:
            if path.is_file() and sum(map(len, found)) < SIZE:
                found.append(path.read_bytes().decode("ascii", "ignore"))
    return found


def alone(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
    for pieces, _ in tokenfile.batches(documents, cutter(tokenizer)):
        tokenizer.backend_tokenizer.encode_batch_fast(pieces, add_special_tokens=False)


def ours(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = PackedRows(tokenise(documents, tokenizer, folder, eos_id=VOCAB_SIZE), LENGTH)
        return sum(len(rows[i]["tokens"]) for i in range(len(rows)))


def accounted(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> float:
    """CPU time of `ours` over what it spent inside its encode calls: same run, same seconds, so little noise."""
    inside = 0.0
    make = tokenfile.encoder

    def timed(made: PreTrainedTokenizerFast) -> Callable[[list[str]], object]:
        encode = make(made)

        def call(pieces: list[str]) -> object:
            nonlocal inside
            start = time.process_time()
            found = encode(pieces)
            inside += time.process_time() - start
            return found

        return call

    tokenfile.encoder = timed  # type: ignore[assignment]
    try:
        return cpu_seconds(lambda: ours(documents, tokenizer)) / inside
    finally:
        tokenfile.encoder = make


def peer(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> int:
    def pack(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        stream = list(chain.from_iterable([*ids, VOCAB_SIZE] for ids in tokenizer(batch["text"])["input_ids"]))
        return {"tokens": [stream[i : i + LENGTH] for i in range(0, len(stream) - LENGTH + 1, LENGTH)]}

    def records() -> Iterator[dict[str, str]]:
        yield from ({"text": text} for text in documents)

    stream = datasets.IterableDataset.from_generator(records)
    rows = stream.map(pack, batched=True, remove_columns=["text"]).with_format("torch")
    return sum(len(row["tokens"]) for row in rows)


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    documents = texts()
    size = sum(map(len, documents))
    tokenizer = bpe(documents[::3], VOCAB_SIZE)
    for warm in (alone, ours, peer):
        warm(documents[:50], tokenizer)
    alones = [cpu_seconds(lambda: alone(documents, tokenizer))]
    ratios = []
    for _ in range(REPEATS):  # each between two of the others, so that a steady drift of the machine cancels
        packed = cpu_seconds(lambda: ours(documents, tokenizer))
        alones.append(cpu_seconds(lambda: alone(documents, tokenizer)))
        ratios.append(2 * packed / (alones[-2] + alones[-1]))
    base = statistics.median(alones)
    within = [accounted(documents, tokenizer) for _ in range(REPEATS // 3)]
    slow = statistics.median(cpu_seconds(lambda: peer(documents, tokenizer)) for _ in range(PEER_REPEATS))
    with tempfile.TemporaryDirectory() as folder:
        rows = PackedRows(tokenise(documents, tokenizer, folder, eos_id=VOCAB_SIZE), LENGTH)
        reading = cpu_seconds(lambda: [rows[i] for i in range(len(rows))])
    unit = "CPU time over tokenising alone"
    record(
        "packing",
        [
            {"figure": "tokenise, pack, read rows", "value": statistics.median(ratios), "unit": unit, "goal": "<= 1.1"},
            {"figure": "the same, smallest of the repeats", "value": min(ratios), "unit": unit},
            {"figure": "the same, largest of the repeats", "value": max(ratios), "unit": unit},
            {
                "figure": "the same, within one run",
                "value": statistics.median(within),
                "unit": "CPU time over that inside its encode calls",
            },
            {"figure": "datasets stream, packing in lists", "value": slow / base, "unit": unit},
            {"figure": "tokenising alone", "value": size / base / 1e6, "unit": "MB per CPU second"},
            {
                "figure": "reading packed rows",
                "value": len(rows) * LENGTH / reading / 1e6,
                "unit": "M tokens per CPU second",
            },
        ],
        data=f"{size / 1e6:.1f} MB of standard library sources in {len(documents)} documents, BPE of {VOCAB_SIZE}, "
        f"rows of {LENGTH}; median of {REPEATS} paired repeats (peer: {PEER_REPEATS})",
        seeds=[],
    )


if __name__ == "__main__":
    main()
