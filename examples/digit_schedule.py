"""Learn where the four steps of a sampler of digits and their labels should be: about equal, not on MaskGIT's cosine.

python -m examples.digit_schedule    # from the repository
"""

import json
import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import discdiff as dd
from discdiff.distill import fit, hand_made, measure
from tokenizers_vq import PixelTokenizer

pixels, bits = PixelTokenizer.of(levels=2, patch=2), torch.tensor([8, 4, 2, 1])
images, labels = torch.from_numpy(load_digits().images > 7).long(), torch.from_numpy(load_digits().target)
vocab = dd.VocabLayout(text_size=10).extend(dd.Modality("image", 16))  # a code is a patch of four black or white pixels
layout = dd.Layout(vocab, (dd.Segment("label", "text", (1,)), dd.Segment("image", "image", pixels.grid)))
patches = vocab.to_global((pixels.encode(images).codes * bits).sum(-1), "image")
rows = [{"tokens": row} for row in torch.cat([labels[:, None], patches], 1)[:1200]]
reader = SVC().fit(images[1200:].flatten(1).numpy(), labels[1200:].numpy())  # the judge knows the held-out digits only

shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 17, "initializer_range": 1 / 8}
model = dd.DiscDiffModel.seeded(dd.DiscDiffConfig(vocab=json.loads(vocab.to_json()), **shape), 0)
settings = dd.TrainingSettings(steps=100, batch_size=64, optimizer="muon", learning_rate=1.5e-2, progress=False)
with tempfile.TemporaryDirectory() as folder:
    dd.DiffusionTrainer(model, settings, dd.Elbo(), layout, rows, output_dir=folder).train()
denoiser = dd.ModelDenoiser(model.eval())


def blank(count: int) -> dd.TokenBatch:
    return dd.make_batch(layout, torch.full((count, layout.length), vocab.mask))


def agreement(grid: dd.Grid, seed: int) -> float:
    """Share of samples whose picture the judge reads as their label."""
    state, _ = dd.sample(denoiser, dd.Ancestral(), blank(500), grid, seed=seed)
    drawn = pixels.decode(vocab.to_local(state.tokens[:, 1:], "image")[..., None] // bits % 2)
    return (torch.from_numpy(reader.predict(drawn.flatten(1).numpy())) == state.tokens[:, 0]).double().mean().item()


learned = fit(denoiser, dd.Ancestral(), blank(300), 4, 32, objective="kl", seed=1).grid
learned = dd.Grid.from_json(learned.to_json())  # a few floats, kept beside the model
print("learned times:", ", ".join(f"{t:.2f}" for t in learned.times))
costs = measure(denoiser, dd.Absorbing(), blank(300), fine=32, seed=2)  # of rows that the fit has not seen
error = {}
for name in ("learned", "uniform", "cosine"):
    grid = learned if name == "learned" else hand_made(name, 4)
    error[name] = costs.error(costs.nearest(grid))
    print(
        f"{name}: {error[name]:.3f} nats from a run of 32 steps; {agreement(grid, 5):.0%} of pictures read as their labels"
    )
assert error["learned"] < error["cosine"]
