"""A small layout with a picture and a chunk of actions whose codes are numbers, and a hash as a network."""

import torch

from discdiff.denoisers import FunctionDenoiser
from discdiff.kernels import Commit
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.sampling import iterate
from discdiff.values import CodeValues

K, CHUNK, DIM = 16, 4, 2
VOCAB = VocabLayout(
    6, (Modality("image", K), Modality("action", K))
)  # one size for both: ids alone cannot tell them apart
PARTS = (Segment("prompt", "text", (2,), noised=False), Segment("picture", "image", (3,)))
LAYOUT = Layout(VOCAB, (*PARTS, Segment("chunk", "action", (CHUNK, DIM))))
ACTIONS = LAYOUT.columns("chunk")
EVEN = torch.linspace(-1, 1, K, dtype=torch.float64)
LEVELS = torch.stack([EVEN, EVEN.sign() * EVEN.square()])  # the second dimension's are uneven
VALUES = CodeValues({"action": LEVELS})


def network(layout=LAYOUT, seed=0):
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "initializer_range": 0.4}
    return DiscDiffModel.seeded(DiscDiffConfig(vocab=layout.vocab, **shape), seed, torch.float64)


def hashed(state, step):
    place = torch.arange(state.tokens.shape[1])
    wave = torch.sin((state.tokens.sum(1, keepdim=True) % 97 + 3.3 * place)[..., None] * 12.9 + torch.arange(K) * 78.2)
    return 3 * wave.double()


def law_of(state):
    return hashed(state, None).softmax(-1)


def state_of(rows=3, layout=LAYOUT, **more):
    """The start of a run: everything that is noised is masked."""
    batch = make_batch(layout, torch.full((rows, layout.length), VOCAB.mask), **more)
    return next(iterate(FunctionDenoiser(hashed), Commit(), batch, 1))[0]
