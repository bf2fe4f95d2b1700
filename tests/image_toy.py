"""Pictures that a small tokenizer learns in seconds."""

import torch

SMALL = {"width": 16, "blocks": 1, "code_dim": 8, "codebook_size": 32, "strides": (2, 2)}


def shapes(count, channels=1, height=8, width=16, seed=0):
    """Bright rectangles on dark ground, one per picture, levels of grey per channel."""
    g = torch.Generator().manual_seed(seed)
    x = torch.full((count, channels, height, width), -0.8)
    for row in x:
        top, left = (int(torch.randint(0, n - 6, (), generator=g)) for n in (height, width))
        row[:, top : top + 4, left : left + 6] = torch.rand(channels, 1, 1, generator=g) * 0.8
    return x
