"""Train a small text model on a few sentences, then fill in the holes of some of them.

python -m examples.infill    # from the repository
"""

import tempfile
from pathlib import Path

from tasks.text.__main__ import MAIN

SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "frog": "croak", "owl": "hoot", "bee": "buzz"}
LINES = [f"the {animal} {verb} {sound}" for animal, sound in SOUNDS.items() for verb in ("says", "said", "goes")]

with tempfile.TemporaryDirectory() as name:
    text, run = Path(name) / "sounds.txt", f"{name}/run"
    text.write_text("\n".join(LINES * 20) + "\n")
    corpus = f"--source {text} --document line --rows padded --length 6 --tokenizer bpe --vocab_size 309 --cache {name}"
    size = "--hidden_size 64 --num_layers 2 --num_heads 4 --steps 120 --batch_size 64 --learning_rate 4e-3"
    rest = f"--twin false --samples 21 --progress false --device cpu --log_every 40 --out {run}"
    MAIN(f"train {corpus} {size} {rest}".split())
    for holes in ("the cow says_", "the_ says quack", "the_ goes_"):  # a token is a word and the space before it
        MAIN(["sample", run, "--infill", holes, "--count", "3"])
