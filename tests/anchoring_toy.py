"""Tokenizers of every quantiser with a linear decoder, a network that counts its calls, and every way of posterior sampling."""

from dataclasses import dataclass, field, replace

import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Anchored,
    Commit,
    Descent,
    FunctionDenoiser,
    Grid,
    MaskOrReplace,
    Measured,
    Relaxed,
    Remask,
    Rescale,
    Selected,
    SoftDecode,
    SplitGibbs,
    StarShaped,
    StarTable,
    Steered,
    Temperature,
    Uniform,
    best_of,
    row_seeds,
    sample,
)
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.sampling.sampler import Common, Sampler
from discdiff.scores import Sure
from discdiff.types import State
from tokenizers_vq.base import ModalityTokenizer
from tokenizers_vq.config import TokenizerConfig

KINDS = {
    "vq": {"quantizer": "vq", "codebook_size": 12, "code_dim": 4},
    "lfq": {"quantizer": "lfq", "codebook_size": 16, "code_dim": 4},
    "fsq": {"quantizer": "fsq", "codebook_size": 15, "code_dim": 2, "levels": (5, 3)},
    "rvq": {"quantizer": "rvq", "codebook_size": 12, "code_dim": 4, "num_quantizers": 2},
}
SLOTS, ROWS = 5, 4


class Linear(ModalityTokenizer):
    """Data (batch, slots, 6) are the embeddings times a matrix: an injective decoder."""

    def __init__(self, config):
        super().__init__(config)
        draw = torch.Generator().manual_seed(1)
        self.register_buffer("weight", torch.randn(config.code_dim, 6, generator=draw))

    def decode_embeddings(self, e, grid=None, mask=None):
        return e @ self.weight


def tokenizer(kind, **more):
    """In float64, so that rows of a batch and rows alone agree."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Linear(TokenizerConfig(**{"kmeans_init": False, **KINDS[kind], **more})).double().eval()


def soft_of(kind, **more):
    return SoftDecode.of(tokenizer(kind, **more), "code")


def layout_of(soft, slots=SLOTS):
    """Two words and the codes."""
    depth, codes, _ = soft.codebook.shape
    vocab = VocabLayout(5, (Modality("code", codes, depth=depth),))
    return Layout(vocab, (Segment("words", "text", (2,)), Segment("code", "code", (slots,))))


def batch_of(soft, rows=ROWS, slots=SLOTS, given=True):
    """Empty rows; with `given` a word and, but for the first row, a code are given."""
    layout = layout_of(soft, slots)
    blank = make_batch(layout, torch.full((rows, layout.length), layout.vocab.mask))
    known = torch.zeros_like(blank.given)
    if given:
        known[:, 0], known[1:, 3] = True, True
    symbols = (torch.arange(rows)[:, None] + 2 * torch.arange(layout.length)) % 5
    return make_batch(layout, torch.where(known, blank.ids(symbols), layout.vocab.mask), given=known)


def state_of(batch):
    row = torch.arange(len(batch.tokens))
    return State(batch.tokens, batch.given, batch.valid, ~batch.free, batch.free.double(), row, batch, {}, {})


@dataclass(frozen=True)
class Counted:
    """A network whose predictions depend on all tokens of a row; notes the rows of each call."""

    kind: str = "own"
    calls: list = field(default_factory=list)
    needs_time = False
    reads = ()

    def start(self, batch):
        return self

    def __call__(self, state, step):
        self.calls.append(len(state.row))
        symbols = state.batch.symbols(state.tokens)
        length, width = symbols.shape[1], max(n for _, n, _ in state.batch.layout.alphabets)
        context = torch.sin(1.7 * symbols.double() + torch.arange(length)).sum(1)[:, None, None]
        place = torch.arange(length * width, dtype=torch.float64).view(length, width)
        return FunctionDenoiser(lambda state, step: 1.5 * torch.sin(12.9898 * place + context))(state, step)


MATRIX = torch.randn(SLOTS * 6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 5


def operator(x):
    """Data (n, slots, 6) to 12 numbers."""
    return x.flatten(1) @ MATRIX


def measured_of(soft, rows=ROWS, seed=3, operator=operator, **more):
    """What codes drawn at random are measured as, a row each."""
    depth, codes, _ = soft.codebook.shape
    true = torch.randint(codes, (rows, SLOTS, depth), generator=torch.Generator().manual_seed(seed))
    for _ in range(9):  # greedy codes of a sum of codes may be others; those of these are the same
        true = soft.quantise(soft.embed(true))
    return Measured(operator, operator(soft.data(true)), **{"sigma": 0.5, **more})


CONFIDENT = Commit(Sure("confidence"))
FEW = Descent(steps=12, beta=0.1)


def anchored(network, batch, soft, measured, seeds, **settings):
    temperature = settings.pop("temperature", 1.0)
    denoiser = Anchored(network, soft, measured, **{"descent": FEW, **settings})
    return sample(Temperature(denoiser, temperature), CONFIDENT, batch, 4, seed=seeds)


def averaged(network, batch, soft, measured, seeds):
    """All sites anew at every step, with a mean at the end."""
    process = MaskOrReplace()
    table = Anchored(network, soft, measured, FEW, average=0.5, process=process)
    return sample(table, Remask(process, Rescale(0.5)), batch, 6, seed=seeds)


def star(network, batch, soft, measured, seeds, process=None):
    process = process or Absorbing()
    table = StarTable(network, soft, measured, Relaxed(steps=6, seed=seeds), process)
    return sample(table, StarShaped(process), batch, 4, seed=seeds)


def steered(network, batch, soft, measured, seeds):
    return sample(Steered(network, soft, measured, 0.1), Ancestral(), batch, 6, seed=seeds)


def selected(network, batch, soft, measured, seeds, count=3, alpha=1.0):
    return sample(network, Selected(CONFIDENT, soft, measured, count, alpha), batch, 4, seed=seeds)


def gibbs(network, batch, soft, measured, seeds):
    kernel = SplitGibbs(Uniform(), soft, measured, steps=3, moves=60)
    return sample(network, kernel, batch, Grid((1.0, 0.3, 0.1, 0.03, 0.0)), seed=seeds)


def best(network, batch, soft, measured, seeds, count=3):
    each = [int(s) + j for s in row_seeds(seeds, len(batch.tokens)) for j in range(count)]
    return best_of(Sampler(CONFIDENT, Common(steps=4)), network, batch, soft, measured, count, each)


def with_(method, **settings):
    return lambda *args: method(*args, **settings)


METHODS = {
    "anchored": anchored,
    "anchored, cold": with_(anchored, warm=False, take="sample"),
    "anchored, ranked by the prior": with_(anchored, rank="prior", take="sample"),
    "anchored, tempered": with_(anchored, temperature=0.5, descent=replace(FEW, tolerance=0.02, patience=2)),
    "anchored, exact tilt": with_(anchored, likelihood="expected_cost", take="sample"),
    "anchored, averaged": averaged,
    "star": star,
    "star, uniform": with_(star, process=Uniform()),
    "steered": steered,
    "selected": selected,
    "selected, the best": with_(selected, alpha=0.0),
    "gibbs": gibbs,
    "best": best,
}
"""name: (network, batch, soft, measured, seeds) -> (last state, info)."""
