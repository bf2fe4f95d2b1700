"""Motion from key frames: a small model of motion codes, led by what was measured (APS), fills the frames between them;
beside it the same model alone, and straight lines from one key frame to the next.

python -m examples.fill_gap    # from the repository
"""

import json
import tempfile

import torch
import torch.nn.functional as F

import discdiff as dd
from tasks.inverse import Gaussian, KeyFrames, measure
from tasks.motion.figures import VECTORS, figure
from tokenizers_vq.motion import MotionTokenizer, mpjpe, statistics

motions = [VECTORS.process(figure(n).positions)[:40] for n in range(136)]  # (frames, channels), 20 frames a second
x, unseen = torch.stack(motions[:120]), torch.stack(motions[120:])
size = {"width": 48, "code_dim": 16, "codebook_size": 32, "num_quantizers": 2, "blocks": 1, "decay": 0.9}
tokenizer = MotionTokenizer.of(VECTORS, statistics(motions[:120], VECTORS), **size).train()
optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
for step in range(80):
    optimizer.zero_grad()
    tokenizer(x[step % 3 :: 3]).loss.backward()
    optimizer.step()
tokenizer.eval().requires_grad_(False)

out = tokenizer.encode(x)  # codes (motions, slots, levels)
vocab = dd.VocabLayout(text_size=1).extend(dd.Modality("motion", tokenizer.codebook_size, tokenizer.depth))
layout = dd.Layout(vocab, (dd.Segment("motion", "motion", out.grid, axes="t"),), packed=True)
shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_depth": 2, "initializer_range": 1 / 8}
model = dd.DiscDiffModel.seeded(dd.DiscDiffConfig(vocab=json.loads(vocab.to_json()), **shape), 0)
training = dd.TrainingSettings(steps=90, batch_size=64, optimizer="muon", learning_rate=1e-2, progress=False)
rows = [{"tokens": row} for row in vocab.to_global(out.codes, "motion").flatten(1)]
with tempfile.TemporaryDirectory() as folder:
    dd.DiffusionTrainer(model, training, dd.Elbo(), layout, rows, output_dir=folder).train()

keys, network = KeyFrames(every=8), dd.ModelDenoiser(model.eval())
measured = dd.Measured(keys, measure(keys, unseen, Gaussian(0.02)), sigma=0.02)
soft = dd.SoftDecode.of(tokenizer, "motion", out.grid)
led = dd.Anchored(network, soft, measured, dd.Descent(steps=20, beta=1.0))
batch = dd.make_batch(layout, torch.full((len(unseen), layout.length), vocab.mask))
drawn = {"the model alone": dd.sampler("random")(network, batch)[0].tokens}
drawn["the model, led by key frames"] = dd.sampler("confidence", steps=10)(led, batch)[0].tokens
codes = {name: vocab.to_local(ids.view(len(unseen), -1, 2), "motion") for name, ids in drawn.items()}
made = {name: tokenizer.decode(each, out.grid) for name, each in codes.items()}
made["the true codes"] = tokenizer.decode(tokenizer.encode(unseen).codes, out.grid)
made["straight lines"] = F.interpolate(measured.y[:, ::8].mT, size=33, mode="linear", align_corners=True).mT

between = torch.arange(33) % 8 > 0  # frames with a key frame on either side
truth = VECTORS.recover(unseen[:, :33])
errors = {name: mpjpe(VECTORS.recover(z[:, :33]), truth, rooted=True)[:, between].mean() for name, z in made.items()}
print("\n".join(f"{name}: joints {error:.0f} mm away between key frames" for name, error in errors.items()))
assert errors["the model, led by key frames"] < 0.7 * errors["the model alone"]
