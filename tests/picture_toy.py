"""Pictures, a tokenizer and models small enough for a test, and the commands that make them."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from discdiff.cli import guarded
from tasks.common.methods import METHODS
from tasks.image import commands, tokenizer

QUIET = ("--batch_size", "8", "--progress", "false", "--warmup", "1")
CODEC = ("--width", "8", "--blocks", "1", "--code_dim", "4", "--codebook_size", "16", "--strides", "2,2", *QUIET)
SMALL = ("--hidden_size", "16", "--num_layers", "1", "--num_heads", "2", "--steps", "6", *QUIET)
FEW = ("--sampler.steps", "4")


def few(method):
    """Steps of a short run; an autoregressive model has one per code."""
    return 9 if method == "autoregressive" else 4


def run(command, *argv):
    return guarded(partial(command, "test"), [str(a) for a in argv])


def picture(red, blue, seed, size=12):
    x = np.random.default_rng(seed).integers(0, 60, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(x + np.array([red, 0, blue], dtype=np.uint8))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """No bars while weights are read, as the command has it: an error is then the only line."""
    disable_progress_bar()
    yield
    enable_progress_bar()


@pytest.fixture(scope="session")
def picture_root(tmp_path_factory):
    """20 red pictures and 20 blue ones, a folder each, and a tokenizer of them."""
    place = tmp_path_factory.mktemp("image")
    for label, colour in (("red", (180, 20)), ("dark blue", (20, 120))):
        (place / "pictures" / label).mkdir(parents=True)
        for n in range(20):
            picture(*colour, n).save(place / "pictures" / label / f"{n:02}.png")
    source = ("--source", place / "pictures", "--valid_fraction", 0.25)
    assert run(tokenizer.train, *source, "--steps", 10, *CODEC, "--out", place / "codec") == 0
    return place


@pytest.fixture(scope="session")
def picture_model(picture_root):
    """Folder of a model by its method and codes per block, trained at the first request."""

    def trained(method, block=0):
        folder = picture_root / f"{method}_{block}"
        if not folder.is_dir():
            asked = ("--method", method, "--block", block, *SMALL, "--out", folder)
            argv = ("--tokenizer", picture_root / "codec", *asked)
            assert run(commands.train, *argv) == 0
        return folder

    return trained


EACH = [
    m if m not in ("vq_paper", "vq_released") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS
]  # as vq_diffusion, but masks
