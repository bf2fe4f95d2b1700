"""Correct a digit model that draws all patches of a picture at once: a small causal network weighs whole candidates.

python -m examples.digit_energy    # from the repository
"""

import json
import tempfile
from dataclasses import replace

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import discdiff as dd
from discdiff.energy import AutoregressiveEnergy, model_log_probs
from tokenizers_vq import PixelTokenizer

pixels, bits = PixelTokenizer.of(levels=2, patch=2), torch.tensor([8, 4, 2, 1])
images, labels = torch.from_numpy(load_digits().images > 7).long(), torch.from_numpy(load_digits().target)
vocab = dd.VocabLayout(text_size=10).extend(dd.Modality("image", 16))  # a code is a patch of four black or white pixels
label = dd.Segment("label", "text", (1,), noised=False)
layout = dd.Layout(vocab, (label, dd.Segment("image", "image", pixels.grid)))
patches = vocab.to_global((pixels.encode(images).codes * bits).sum(-1), "image")
tokens = torch.cat([labels[:, None], patches], 1)
held = images[1200:].flatten(1)
reader = SVC().fit(held.numpy(), labels[1200:].numpy())  # the judges know the held-out digits only


def fit(objective, where: dd.Layout, seed: int) -> dd.DiscDiffModel:
    """A small network, trained on the first 1200 digits."""
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 17, "initializer_range": 1 / 8}
    model = dd.DiscDiffModel.seeded(dd.DiscDiffConfig(vocab=json.loads(vocab.to_json()), **shape), seed)
    settings = dd.TrainingSettings(steps=90, batch_size=64, optimizer="muon", learning_rate=1.5e-2, progress=False)
    rows = [{"tokens": row} for row in tokens[:1200]]
    with tempfile.TemporaryDirectory() as folder:
        dd.DiffusionTrainer(model, settings, objective, where, rows, output_dir=folder).train()
    return model.eval()


denoiser, causal = fit(dd.Elbo(), layout, 0), replace(layout, attention="causal")
energy = AutoregressiveEnergy(model_log_probs(fit(dd.Autoregressive(), causal, 1), causal), carry_over=False)
blank = tokens[:500].clone()
blank[:, 1:] = vocab.mask
apart = {}
for k in (1, 2, 8):
    kernel = dd.Ancestral(proposal=dd.EnergyResampled(energy, k))
    state, info = dd.sample(dd.ModelDenoiser(denoiser), kernel, dd.make_batch(layout, blank), 1, seed=0)
    drawn = pixels.decode(vocab.to_local(state.tokens[:, 1:], "image")[..., None] // bits % 2)
    apart[k] = float((drawn.flatten(1)[:, None] != held).sum(-1).amin(1).double().mean())
    read = (torch.from_numpy(reader.predict(drawn.flatten(1).numpy())) == labels[:500]).double().mean()
    print(f"{k} candidates: {apart[k]:.2f} pixels from the nearest held-out digit, {read:.0%} read as they should be")
assert apart[8] < apart[1]
