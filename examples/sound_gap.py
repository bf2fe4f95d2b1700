"""Spoken digits with a gap of 40 ms: a small model of sound codes, led by what was heard (APS), fills it; beside it the
same model alone, the same model given the codes around the gap, and silence.

python -m examples.sound_gap    # from the repository; where DISCDIFF_DATA has no spoken digits, of telephone keys
"""

import os
import tempfile
from pathlib import Path

import torch

import discdiff as dd
from tasks.audio import codec, generate
from tasks.audio.settings import CodecTraining, Generator, Sounds, Training
from tasks.audio.sources import load
from tasks.common.generation import layout_of
from tasks.inverse import Gap, Gaussian, measure
from tokenizers_vq import AudioTokenizerConfig
from tokenizers_vq.metrics import signal_to_noise
from tokenizers_vq.spectra import mel_distance

digits = Path(os.environ.get("DISCDIFF_DATA", "../shared/data")) / "fsdd8k" / "train.parquet"
sounds = Sounds(str(digits) if digits.is_file() else "embedded", valid_fraction=0.02, embedded=1500, seconds=0.32)
config = AudioTokenizerConfig(strides=(1,), width=96, blocks=1, code_dim=16, codebook_size=64, num_quantizers=3)
quiet = {"progress": False, "log_every": 1000, "warmup": 10, "optimizer": "muon", "learning_rate": 1e-2, "ema": 0.95}
clips, unseen = load(sounds)
with tempfile.TemporaryDirectory() as name:
    first = CodecTraining(steps=90, **quiet | {"optimizer": "adamw", "learning_rate": 4e-3})
    new, folder = codec.build(config, seed=0), Path(name)
    tokenizer = codec.fit_codec(new, clips, sounds.seconds, first, folder / "codec").cpu()
    wanted, settings = Generator(hidden_size=64, num_layers=2, dropout=0.0), Training(steps=60, batch_size=48, **quiet)
    model, _ = generate.fit_model(tokenizer, clips, wanted, settings, folder / "model")

x = unseen.x[unseen.mask.all(1)]  # (sounds, 2560 samples) of the long enough, 8000 a second
grid, network, layout = (40,), dd.ModelDenoiser(model.cpu()), layout_of(model)  # digit | 40 slots of 64 samples
gap, start, stop = Gap(start=0.14, stop=0.18), 1120, 1440
measured = dd.Measured(gap, measure(gap, x, Gaussian(0.01)), sigma=0.02)
led = dd.Anchored(network, dd.SoftDecode.of(tokenizer, "audio", grid), measured, dd.Descent(steps=20, beta=1.0))
nothing = torch.full((len(x), layout.length), layout.vocab.mask)
around = layout.vocab.to_global(tokenizer.encode(measured.y).codes, "audio")
around[:, start // 64 : -(-stop // 64)] = layout.vocab.mask
around = torch.cat([nothing[:, :1], around.flatten(1)], 1)
ways = {"alone": (network, nothing), "given codes around": (network, around), "led by sound around": (led, nothing)}
drawn, run = {}, dd.sampler("random", steps=8)
for name, (denoiser, tokens) in ways.items():
    ids = run(denoiser, dd.make_batch(layout, tokens, given=tokens != layout.vocab.mask))[0].tokens
    drawn[name] = tokenizer.sound(layout.vocab.to_local(ids[:, 1:].view(len(x), -1, 3), "audio"), grid)
drawn |= {"silence": measured.y, "the true codes": tokenizer.sound(tokenizer.encode(x).codes, grid)}
inside, near, found = slice(start, stop), slice(start - 64, stop + 64), {}
for name, y in drawn.items():
    ratio, ratio_inside = signal_to_noise(gap(x), gap(y)).mean(), signal_to_noise(x[:, inside], y[:, inside]).mean()
    far = mel_distance(x[:, near], y[:, near], 8000).mean()
    print(f"{name}: signal to noise {ratio:.1f} dB around the gap, {ratio_inside:.1f} in it, spectrum {far:.1f} dB off")
    found[name] = (ratio, ratio_inside, far)
made, alone, silence = (found[name] for name in ("led by sound around", "alone", "silence"))
print(f"in the gap the waveform of {'silence' if silence[1] > made[1] else 'the led model'} is nearer")
assert made[0] > alone[0] + 3 and made[2] < min(alone[2], silence[2])
