"""Sound as codes: train a small codec on plucked tones for a moment, then listen at every depth.

python -m examples.sound_codes    # from the repository; writes runs/sound_codes/*.wav
"""

import math

import torch

from tasks.audio.files import write_wav
from tokenizers_vq import AudioTokenizer, AudioTokenizerConfig
from tokenizers_vq.metrics import signal_to_noise

RATE = 8000


def plucked(rows: int, seed: int) -> torch.Tensor:
    """Decaying tones of random pitch (rows, 1024)."""
    pitch = 150 * 4 ** torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed))
    t = torch.arange(1024) / RATE
    return 0.3 * torch.sin(2 * math.pi * pitch * t) * torch.exp(-8 * t)


torch.manual_seed(0)
size = {"hop": 32, "width": 32, "blocks": 1, "code_dim": 16, "codebook_size": 32, "num_quantizers": 3}
codec = AudioTokenizer(AudioTokenizerConfig(sample_rate=RATE, **size)).train()
optimizer = torch.optim.AdamW(codec.parameters(), lr=6e-3)
for step in range(100):
    optimizer.zero_grad()
    codec(plucked(16, step)).loss.backward()
    torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
    optimizer.step()

codec.eval()
sounds = plucked(8, 1000)  # never heard in training
out = codec.encode(sounds)
print(f"{out.codes.shape[1]} slots of {codec.depth} levels, {codec.config.rate:g} slots a second")
write_wav("runs/sound_codes/original.wav", sounds[0], RATE)
for depth in range(1, codec.depth + 1):
    heard = codec.sound(out.codes[..., :depth], out.grid, out.mask)
    ratio = signal_to_noise(sounds, heard).mean()
    print(f"{depth} levels: signal to noise {ratio:.1f} dB", write_wav(f"runs/sound_codes/{depth}.wav", heard[0], RATE))
