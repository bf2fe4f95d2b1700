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

from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded
from tasks.audio import codec, generate

MAIN = commands(
    "python -m tasks.audio",
    {
        "tokenizer": {"train": codec.train, "evaluate": codec.evaluate},
        "train": generate.train,
        "sample": generate.sample,
        "evaluate": generate.evaluate,
    },
)

if __name__ == "__main__":
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(MAIN))
