"""python -m tasks.vla tokenizer fit bins|dct|fast|chunks, and evaluate: codes for robot actions; collect|train|evaluate|sample
|energy|distill|serve: a policy that makes them; unified train|evaluate: one that foresees the picture after them, too.

python -m tasks.vla tokenizer fit fast --scale 10 --out runs/actions           # of a small world's expert
python -m tasks.vla tokenizer fit bins --source demos.npz --chunk 8 --raw 6    # action (frames, 7), episode_index (frames,)
python -m tasks.vla tokenizer fit bins --spacing openvla --codebook_size 255 --statistics dataset_statistics.json --key bridge
python -m tasks.vla tokenizer fit dct --source lerobot/data --frequencies 4    # a folder of parquet files
python -m tasks.vla tokenizer fit chunks --num_quantizers 4 --steps 2000       # learned, by gradients
python -m tasks.vla tokenizer evaluate runs/actions
python -m tasks.vla train --data world --out runs/policy                       # of a small world's expert, without a simulator
python -m tasks.vla evaluate runs/policy --steps 4 --read mode
python -m tasks.vla sample runs/policy --frame 3:10
python -m tasks.vla collect --tasks drawer-open,push --episodes 25 --out runs/demonstrations     # of Meta-World's experts
python -m tasks.vla train --data runs/demonstrations --out runs/robot
python -m tasks.vla evaluate runs/robot --tasks drawer-open,push
python -m tasks.vla energy runs/robot                                          # of whole chunks; evaluate --sampler edlm ...
python -m tasks.vla distill runs/robot --steps 4                               # times of few rounds; evaluate --grid kl_4
python -m tasks.vla serve runs/robot --port 8000 --steps 4                     # POST /act, one observation to one chunk
python -m tasks.vla unified train --data runs/demonstrations --proprio 4 --out runs/unified     # demonstrations with pictures
python -m tasks.vla unified evaluate runs/unified --tasks drawer-open,push --decoding separate
"""

from __future__ import annotations

import sys
from functools import partial

from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded
from tasks.vla import judged, tokenizer, unified_commands
from tasks.vla.commands import collect, train
from tasks.vla.improve import distill, energy
from tasks.vla.serve import serve
from tasks.vla.settings import KINDS

MAIN = commands(
    "python -m tasks.vla",
    {
        "tokenizer": {"fit": {kind: partial(tokenizer.fit, kind) for kind in KINDS}, "evaluate": tokenizer.evaluate},
        "collect": collect,
        "train": train,
        "evaluate": judged.evaluate,
        "sample": judged.sample,
        "energy": energy,
        "distill": distill,
        "serve": serve,
        "unified": {"train": unified_commands.train, "evaluate": unified_commands.evaluate},
    },
)

if __name__ == "__main__":
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(MAIN))
