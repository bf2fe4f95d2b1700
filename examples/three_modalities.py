"""A word, a picture and a sound in one sequence: train for a moment, then sample any two of them from the third.

python -m examples.three_modalities    # from the repository
"""

import json
import tempfile
from types import SimpleNamespace

import torch

import discdiff as dd
from discdiff.maskers import Independent
from discdiff.unified import Part, Template, UnifiedTokenizer
from tasks.text.tokenizer import characters
from tokenizers_vq import PixelTokenizer

WORDS = ("low", "middle", "high", "top")


class Samples:
    """Any object with these four is a tokenizer: sound (batch, samples) in [-1, 1], a coarse and a fine level each."""

    codebook_size, depth = 8, 2

    def encode(self, x, mask=None):
        n = ((x + 1) * 31.5).round().long()
        codes, held = torch.stack([n // 8, n % 8], -1), torch.ones(x.shape, dtype=torch.bool)
        return SimpleNamespace(codes=codes, mask=held, grid=(x.shape[1],))

    def decode(self, codes, grid=None, mask=None):
        return (8 * codes[..., 0] + codes[..., 1]) / 31.5 - 1


def record(kind: int) -> dict:
    """A word, a bar of that height, and a tone, the higher the shorter."""
    bar = (torch.arange(4)[:, None] >= 3 - kind).long().expand(4, 2) * 3
    return {"text": WORDS[kind], "picture": bar, "sound": torch.full((6 - kind,), kind / 2 - 0.75)}


parts = Part("text", (6,), variable=True), Part("picture", (4, 2)), Part("sound", (6,), variable=True)
pictures = PixelTokenizer.of(levels=4, height=4, width=2)
unified = UnifiedTokenizer.of(
    Template(parts, task="joint", packed=True), characters(WORDS), picture=pictures, sound=Samples()
)
vocab = json.loads(unified.vocab.to_json())
config = dd.DiscDiffConfig(vocab=vocab, hidden_size=32, num_layers=2, num_heads=2, initializer_range=0.18, max_depth=2)
model = dd.DiscDiffModel.seeded(config, 0)
settings = dd.TrainingSettings(steps=250, batch_size=32, learning_rate=5e-3, progress=False, log_every=100)
rows, objective = unified.rows([record(i % 4) for i in range(64)]), dd.Elbo(masker=Independent(0.5))
with tempfile.TemporaryDirectory() as folder:
    dd.DiffusionTrainer(model, settings, objective, unified.layout, rows, output_dir=folder).train()

for given in ("text", "picture", "sound"):
    batch = unified.prompt([{given: record(kind)[given]} for kind in range(4)])
    for kind, found in enumerate(unified.decode(model.generate(batch, "confidence", temperature=0.5, seed=1)[0])):
        height, length = int((found["picture"] > 0).all(1).sum()) - 1, 6 - len(found["sound"])
        print(f"{given} of {WORDS[kind]!r} given: {found['text']!r}, a bar for {height}, a sound for {length}")
