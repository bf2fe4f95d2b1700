"""One sequence with a caption and a picture: train for a moment, then sample either from the other.

python -m examples.two_modalities    # from the repository
"""

import json
import tempfile

import torch

import discdiff as dd
from discdiff.maskers import Independent

vocab = dd.VocabLayout(text_size=4).extend(dd.Modality("image", 4))
layout = dd.Layout(vocab, (dd.Segment("caption", "text", (2,)), dd.Segment("picture", "image", (3, 3))))
first = vocab.range("image")[0]


def row(colour: int) -> dict[str, torch.Tensor]:
    """A caption that names a colour twice, and a picture of that colour."""
    return {"tokens": torch.tensor([colour] * 2 + [first + colour] * 9)}


width = {"hidden_size": 32, "initializer_range": 32**-0.5}
config = dd.DiscDiffConfig(vocab=json.loads(vocab.to_json()), num_layers=2, num_heads=2, max_length=16, **width)
model = dd.DiscDiffModel.seeded(config, 0)
settings = dd.TrainingSettings(steps=100, batch_size=32, learning_rate=3e-3, progress=False, log_every=50)
rows = [row(i % 4) for i in range(64)]
with tempfile.TemporaryDirectory() as folder:
    dd.DiffusionTrainer(model, settings, dd.Elbo(masker=Independent(0.5)), layout, rows, output_dir=folder).train()

tokens = torch.stack([row(colour)["tokens"] for colour in range(4)])
for hidden in ("picture", "caption"):
    columns = layout.columns(hidden)
    given = torch.ones_like(tokens, dtype=torch.bool)
    given[:, columns] = False
    blank = tokens.masked_fill(~given, vocab.mask)
    state, _ = dd.sample(dd.ModelDenoiser(model), dd.Ancestral(), dd.make_batch(layout, blank, given=given), 8, seed=0)
    right = (state.tokens == tokens)[:, columns].double().mean()
    print(f"{hidden} from the rest: {right:.0%} of tokens right")
