"""python -m tasks.image tokenizer train|evaluate|refit: a codebook for your own pictures; train|sample|inpaint|restore|edit|
evaluate: a model of its codes.

python -m tasks.image tokenizer train --source pictures/ --size 64 --out runs/image
python -m tasks.image tokenizer train --source train-images-idx3-ubyte.gz --channels 1 --valid_last 2000 --out runs/digits
python -m tasks.image tokenizer train --source tiles.parquet --strides 2,2 --codebook_size 1024 --out runs/tiles
python -m tasks.image tokenizer evaluate runs/image
python -m tasks.image tokenizer refit runs/image --codes 1024 --out runs/image_1024    # where the codebook collapsed
python -m tasks.image train --tokenizer runs/digits --condition label --method vq_diffusion --out runs/pictures
python -m tasks.image sample runs/pictures --condition 7 --count 16 --sampler.steps 32 --sampler.guidance 2
python -m tasks.image inpaint runs/pictures --picture valid:3 --hole 0.5,0,1,1 --condition 7
python -m tasks.image restore runs/pictures --operator super_resolution --operator.factor 4 --method aps --condition 7
python -m tasks.image edit runs/pictures --hole 0.5,0,1,1 --condition 7 --reference style.png
python -m tasks.image evaluate runs/pictures
"""

from __future__ import annotations

import sys

from transformers.utils.logging import disable_progress_bar

from discdiff.cli import commands, guarded
from tasks.image import commands as model
from tasks.image import judged, restore, tokenizer

MAIN = commands(
    "python -m tasks.image",
    {
        "tokenizer": {"train": tokenizer.train, "evaluate": tokenizer.evaluate, "refit": tokenizer.refit_command},
        "train": model.train,
        "sample": model.sample,
        "inpaint": model.inpaint,
        "evaluate": judged.evaluate,
        "restore": restore.restore,
        "edit": restore.edit,
    },
)

if __name__ == "__main__":
    disable_progress_bar()  # of reading and writing weights
    sys.exit(guarded(MAIN))
