"""python -m tasks.audio tokenizer train|evaluate, train|sample|evaluate: sounds as tokens, and sounds by class.

python -m tasks.audio tokenizer train --out runs/audio/tokenizer                # telephone keys that need no download
python -m tasks.audio tokenizer train --source train.parquet --valid test.parquet --out runs/digits/tokenizer
python -m tasks.audio tokenizer train --source sounds/ --sample_rate 16000 --hop 128 --window 512 --out runs/own/tokenizer
python -m tasks.audio tokenizer evaluate runs/audio/tokenizer
python -m tasks.audio train --tokenizer runs/audio/tokenizer --out runs/audio/model
python -m tasks.audio sample runs/audio/model --label 7 --sampler remdm_cap --sampler.steps 32 --report seven.html
python -m tasks.audio evaluate runs/audio/model
"""

from __future__ import annotations

import sys
from functools import partial

from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded
from tasks.audio import codec, generate

PROG = "python -m tasks.audio"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    inner = {"train": codec.train, "evaluate": codec.evaluate}
    tokenizer = commands(
        f"{PROG} tokenizer", {name: partial(run, f"{PROG} tokenizer {name}") for name, run in inner.items()}
    )
    outer = {"train": generate.train, "sample": generate.sample, "evaluate": generate.evaluate}
    named = {name: partial(run, f"{PROG} {name}") for name, run in outer.items()}
    return guarded(commands(PROG, {"tokenizer": tokenizer, **named}), argv)


if __name__ == "__main__":
    disable_progress_bar()  # of reading and writing weights
    sys.exit(main())
