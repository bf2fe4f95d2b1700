"""How far few-step samplers are from the truth, on a law that is known exactly.

python -m examples.exact_toy    # from the repository
"""

import discdiff as dd
from discdiff.testing import noise_floor, total_variation, toy

DRAWS = 3_000
joint = toy()
print(f"noise floor of {DRAWS:,} samples: {noise_floor(joint.p, DRAWS):.4f}")

for process in (dd.Absorbing(), dd.Uniform(), dd.MaskOrReplace()):
    row = []
    for steps in (4, 8, 16):
        state, info = dd.sample(joint.denoiser(process), dd.Ancestral(process), joint.batch(DRAWS), steps, seed=1)
        row.append(f"{steps} steps {total_variation(joint.law(state.tokens), joint.p):.4f}")
    print(f"{type(process).__name__:>14}: {', '.join(row)}")

for name, score in (("random", dd.Random()), ("entropy", dd.Sure("entropy")), ("drawn token", dd.Candidate())):
    state, info = dd.sample(joint.denoiser(dd.Absorbing()), dd.Commit(score), joint.batch(DRAWS), 4, seed=1)
    print(f"one at a time by {name:>11}: {total_variation(joint.law(state.tokens), joint.p):.4f}")
