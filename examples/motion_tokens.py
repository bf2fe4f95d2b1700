"""Stick figures as tokens: a small tokenizer learns them, more levels of codes come closer, and the result is a BVH file.

python -m examples.motion_tokens    # from the repository
"""

import tempfile
from pathlib import Path

import torch

from tasks.motion.figures import VECTORS, figure
from tokenizers_vq.motion import Bvh, MotionTokenizer, bone_variation, mpjpe, read_bvh, statistics, write_bvh

skeleton = VECTORS.skeleton
motions = [VECTORS.process(figure(n).positions)[:40] for n in range(64)]  # (frames, 251): free of place and direction
x, unseen = torch.stack(motions[:56]), torch.stack(motions[56:])

settings = {"width": 48, "code_dim": 16, "codebook_size": 12, "num_quantizers": 3, "blocks": 1, "decay": 0.9}
tokenizer = MotionTokenizer.of(VECTORS, statistics(motions[:56], VECTORS), **settings).train()
optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
for step in range(100):
    optimizer.zero_grad()
    loss = tokenizer(x[step % 2 :: 2]).loss
    loss.backward()
    optimizer.step()
tokenizer.eval()

out = tokenizer.encode(unseen)  # codes (motions, slots, levels), coarse first
truth = VECTORS.recover(unseen)
errors = [
    mpjpe(VECTORS.recover(tokenizer.decode(out.codes[..., : d + 1])), truth, rooted=True).mean() for d in range(3)
]
print("joint error by levels, mm:", ", ".join(f"{error:.1f}" for error in errors))
still = mpjpe(truth[:, :1].expand_as(truth), truth, rooted=True).mean()
print(f"a figure that does not move: {still:.1f} mm; a slot of {tokenizer.frames_per_slot} frames is 3 codes of 12")

decoded = VECTORS.recover(tokenizer.decode(out.codes))[0]
rigid = skeleton.project(decoded)
before, after = (bone_variation(each, skeleton.parents) for each in (decoded, rigid))
print(f"bone lengths vary by {before:.1%} as decoded, by {after:.1%} after projection")
with tempfile.TemporaryDirectory() as folder:
    path = write_bvh(Path(folder) / "decoded.bvh", Bvh.of(skeleton, skeleton.fit(rigid), fps=20.0))
    again = read_bvh(path).positions()
    print(f"{path.stat().st_size} bytes of BVH, read back within {mpjpe(again, rigid).max():.4f} mm")
assert errors[-1] < still and mpjpe(again, rigid).max() < 0.1
