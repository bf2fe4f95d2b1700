"""A policy as openpi's servers and clients call it; nothing of openpi is imported.

`infer` and `reset` are those of its `BasePolicy` (Physical-Intelligence/openpi, packages/openpi-client), the answer's keys
those of src/openpi/policies/policy.py, the observation's those of examples/libero/main.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from discdiff.config import checked
from tasks.vla.adapters.pictures import shown
from tasks.vla.policy import ActionPolicy, Decoding


@dataclass
class OpenPiPolicy:
    """An `ActionPolicy` with openpi's `infer`. state, prompt, picture: keys of an observation; seed: of the first call's
    noise, every later one has its own; unnorm_key: whose units actions have; decoding: None for the policy's own.
    """

    policy: ActionPolicy
    state: str = "observation/state"
    prompt: str = "prompt"
    picture: str = "observation/image"
    seed: int = 0
    unnorm_key: str | None = None
    decoding: Decoding | None = None
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.policy.normaliser(self.unnorm_key)  # raises for a key that is not there
        self.policy.model.eval()

    @property
    def metadata(self) -> dict[str, Any]:
        """What a server tells its clients when they connect."""
        own = self.policy.settings
        return {"method": own.method, "action_horizon": own.chunk, "action_dim": self.policy.tokenizer.config.dim}

    def reset(self) -> None:
        """Nothing is remembered between calls but their number, which keeps their noise apart."""

    def infer(
        self, obs: Mapping[str, Any], *, seed: int | None = None, prefix: np.ndarray | None = None
    ) -> dict[str, Any]:
        """{"actions": (chunk, dim) float32, "policy_timing": {"infer_ms"}} for one observation.

        obs: state (dim,), of which a policy that is told fewer numbers takes the first; a sentence; and where the policy sees,
        a picture (height, width, 3) uint8 or (3, height, width) float in [0, 1], whose middle square is brought to its width.
        seed: fixes the noise of this call. prefix (k, dim): actions that are executed already, returned as they are. Raises
        ValueError for keys that are missing.
        """
        size = self.policy.settings.picture
        needed = [self.state, self.prompt, *([self.picture] if size else [])]
        missing = [key for key in needed if key not in obs]
        checked("obs", sorted(obs), not missing, f"it needs {', '.join(missing)}")
        said = obs[self.prompt]
        checked(self.prompt, said, isinstance(said, str), "give one sentence")
        picture = shown(self.picture, obs[self.picture], size) if size else None
        state = np.atleast_1d(obs[self.state])[..., : self.policy.settings.proprio or None]
        number = self.seed + self.calls if seed is None else seed
        begin = time.monotonic()
        actions = self.policy.predict_action(
            state, said, picture, prefix=prefix, seed=number,
            decoding=self.decoding, unnorm_key=self.unnorm_key,
        )  # fmt: skip
        self.calls += seed is None
        return {"actions": actions, "policy_timing": {"infer_ms": 1000 * (time.monotonic() - begin)}}
