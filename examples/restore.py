"""Small pictures out of even smaller ones: a codebook and a model of digits, trained for a moment, restore by several methods
digits they never saw.

python -m examples.restore    # from the repository
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from discdiff.anchoring import Measured
from discdiff.metrics import psnr
from tasks.image import commands, generate, quality, restore, tokenizer
from tasks.image.fidelity import off
from tasks.image.posterior import restore as restored
from tasks.image.sources import load
from tasks.inverse import Gaussian, SuperResolution, measure
from tokenizers_vq.image import from_bytes

digits = load_digits()
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for n, (picture, label) in enumerate(zip(digits.images[:1000], digits.target)):
        (folder / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((picture * 15.9).astype(np.uint8)).resize((16, 16), Image.Resampling.BICUBIC)
        image.save(folder / "pictures" / str(label) / f"{n}.png")
    quiet = "--batch_size 64 --progress false --warmup 10 --log_every 1000"
    codec = "--channels 1 --width 16 --blocks 1 --code_dim 8 --codebook_size 64 --strides 2,2"
    small = "--hidden_size 48 --num_layers 2 --num_heads 4 --auxiliary 5"
    tokenizer.train("", f"--source {folder}/pictures --steps 80 {codec} {quiet} --out {folder}/codec".split())
    commands.train("", f"--tokenizer {folder}/codec --steps 120 {small} {quiet} --out {folder}/model".split())

    trained = generate.opened(folder / "model")
    x = from_bytes(load(trained.pictures, 1)[1][:8])
    operator = SuperResolution(4)
    measured = Measured(operator, measure(operator, x, Gaussian(0.05)))
    nothing = [""] * len(x)  # is said of them
    ways = {
        "prior": {},
        "best_of": {"count": 10},
        "sgdd": {"steps": 2, "moves": 100},
        "aps": {"steps": 15, "beta": 1.0},
    }
    away = {}
    for method, options in ways.items():
        made = restored(trained, measured, nothing, method, 12, options=options)
        away[method] = off(operator, made.pictures, measured.y).mean()
        print(f"{method:>7}: psnr {psnr(made.pictures, x).mean():5.2f} dB, A(x) is {away[method]:.3f} from y,", end=" ")
        print(f"{made.info.nfe} network calls, {made.info.decoded} rows decoded")
    codes, grid = quality.encode(trained.tokenizer, ((x + 1) * 127.5).byte())
    print(f"its codes: psnr {psnr(quality.decode(trained.tokenizer, codes, grid), x).mean():5.2f} dB")
    short = "--count 1 --sampler.steps 6 --method.steps 15"
    restore.restore("", f"{folder}/model --picture valid:3 {short} --out {folder}/restored".split())  # and a report
    assert away["aps"] < 0.6 * away["prior"]
