"""A robot policy by masked diffusion: demonstrations of a small world's expert, a few seconds of training, decoding by one
round and by several.

python -m examples.robot_policy    # from the repository
"""

import tempfile
from pathlib import Path

import numpy as np

from discdiff.training import TrainingSettings
from tasks.vla.judged import acting
from tasks.vla.learning import fit, untrained
from tasks.vla.policy import ActionPolicy, Decoding, Policy
from tasks.vla.trial import demonstrated, tried

shown = [episode for episode in demonstrated(200) if episode.task == "reach the goal"]
policy = untrained(Policy(chunk=4, codebook_size=32, hidden_size=48, num_layers=2), shown, seed=0)
training = TrainingSettings(steps=60, batch_size=64, optimizer="muon", learning_rate=2e-2, warmup=6, progress=False)


def success(act) -> float:
    """Share of 40 worlds it never saw in which the hand reaches the goal within 50 steps."""
    return float(np.mean([r.success for r in tried(act, range(50_000, 50_040), tasks=("reach the goal",), cap=50)]))


with tempfile.TemporaryDirectory() as folder:
    fit(policy, shown, training, Path(folder) / "policy")
    policy = ActionPolicy.from_pretrained(Path(folder) / "policy")

print(f"{'no move':>24}: {success(lambda seen: np.zeros((len(seen.seed), 4, 7), np.float32)):.2f}")
for how in (Decoding(), Decoding(read="argmax"), Decoding(steps=4), Decoding(steps=4, read="mode")):
    print(f"{how.steps:>9} steps, {how.read:>11}: {success(acting(policy, how)):.2f}")

state, said = shown[0].state[0], shown[0].task
chunk = policy.predict_action(state, said)
going_on = policy.predict_action(state, said, prefix=chunk[:2], decoding=Decoding(steps=2))
print(f"a chunk of {chunk.shape[0]} actions of {chunk.shape[1]} numbers; a prefix of 2 is kept:", end=" ")
print(np.array_equal(chunk[:2], going_on[:2]))
