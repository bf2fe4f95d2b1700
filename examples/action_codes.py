"""Robot actions as tokens: three tokenizers of the same chunks, and a mean instead of the likeliest code.

python -m examples.action_codes    # from the repository
"""

import torch

from tasks.vla.settings import Actions
from tasks.vla.sources import load
from tokenizers_vq import ActionBins, DCTBins, Fast

chunks, held_out = load(Actions(episodes=100), chunk=8)
for kind, settings in ((ActionBins, {}), (DCTBins, {"frequencies": 4}), (Fast, {"scale": 10.0})):
    tokenizer = kind.fit(chunks.actions, chunks.mask, **settings)
    codes, mask, grid, aux = tokenizer.encode(held_out.actions, held_out.mask)
    error = (tokenizer.decode(codes) - held_out.actions)[held_out.mask].square().mean().sqrt()
    tokens = float(mask.sum(1).float().mean())
    print(
        f"{kind.__name__:>10}: {tokens:5.1f} tokens a chunk, error {error:.4f}, {int(aux['clipped'].sum())} numbers clipped"
    )

# a network gives probabilities of codes; codes are ordered, so their mean is often a better action than the likeliest
bins = ActionBins.fit(chunks.actions, chunks.mask)
noise = torch.Generator().manual_seed(0)
codes = bins.encode(held_out.actions[:1]).codes[..., 0]
near = -((torch.arange(256) - codes[..., None]) / 6.0).square() + torch.randn(1, 56, 256, generator=noise) / 2
for how in ("argmax", "mode", "expectation"):
    off = bins.decode_probabilities(near.softmax(-1), how) - held_out.actions[:1]
    print(f"{how:>12}: {off.square().mean().sqrt():.4f}")
