"""python -m tasks.motion tokenizer train|evaluate, train|sample|evaluate: motions as tokens, and from captions.

python -m tasks.motion tokenizer train --out runs/motion/tokenizer             # stick figures that need no download
python -m tasks.motion tokenizer train --source mocap/ --num_quantizers 6 --out runs/mocap/tokenizer      # BVH, HumanML3D, npz
python -m tasks.motion tokenizer evaluate runs/motion/tokenizer
python -m tasks.motion train --tokenizer runs/motion/tokenizer --out runs/motion/model
python -m tasks.motion sample runs/motion/model --caption "a person walks slowly" --sampler remdm_cap --sampler.steps 32
python -m tasks.motion evaluate runs/motion/model
"""

from __future__ import annotations

import sys

from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded
from tasks.motion import codec, generate

MAIN = commands(
    "python -m tasks.motion",
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
