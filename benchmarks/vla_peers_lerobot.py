"""LeRobot's ACT (arXiv 2304.13705) and Diffusion Policy (arXiv 2303.04137) as policies of `benchmarks.vla`: their networks and
losses as LeRobot 0.4.4 has them, about as large as ours; which sentence it is, instead of its words, as a one-hot vector.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from discdiff.config import checked, read_json
from discdiff.report.pictures import write_atomically
from tasks.vla.design import Scale
from tasks.vla.episodes import Episode
from tasks.vla.metaworld import STATE
from tasks.vla.policy import Decoding, seeds_of

CHUNK = 8
ABOUT, WEIGHTS = "peer.json", "model.safetensors"
HALF = 18  # numbers of a state that are seen now, before those that were seen one step ago


@dataclass(frozen=True)
class Recipe:
    """What LeRobot's configuration of a policy is given beside its features, and how its training data are cut: before:
    actions of a row that lie before its state; horizon: all of them; bounds: actions are brought to [-1, 1] by their range,
    otherwise to deviation 1, as LeRobot does by default, but what hardly moves is not blown up.
    """

    config: dict[str, Any]
    before: int
    horizon: int
    bounds: bool


_MODEL = {"chunk_size": CHUNK, "n_action_steps": CHUNK, "dim_model": 128, "n_heads": 4, "dim_feedforward": 512}
_UNET = {"noise_scheduler_type": "DDIM", "horizon": 16, "n_action_steps": CHUNK, "down_dims": (64, 128)}
RECIPES = {
    "act": Recipe({**_MODEL, "n_encoder_layers": 3, "n_vae_encoder_layers": 2, "optimizer_lr": 1e-3}, 0, CHUNK, False),
    "diffusion_policy": Recipe({**_UNET, "optimizer_lr": 1e-3}, 1, 16, True),
}


def network(method: str, sentences: int, dim: int) -> nn.Module:
    """LeRobot's, with its first weights. Raises ValueError where LeRobot is not installed."""
    found = importlib.util.find_spec("lerobot")
    checked("lerobot", "missing", found is not None, "make the environment that benchmarks.vla_peers describes")
    if (
        "lerobot.policies" not in sys.modules
    ):  # its __init__ imports all policies, one of which breaks under transformers 5
        package = types.ModuleType("lerobot.policies")
        package.__path__ = [f"{(found.submodule_search_locations or [''])[0]}/policies"]  # type: ignore[union-attr]
        sys.modules["lerobot.policies"] = package
    from lerobot.configs.types import FeatureType, PolicyFeature

    if method == "act":
        from lerobot.policies.act.configuration_act import ACTConfig as Config
        from lerobot.policies.act.modeling_act import ACTPolicy as Policy
    else:
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig as Config
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy as Policy
    shapes = {
        name: x.shape[-1] for name, x in observed(method, torch.zeros(1, STATE), torch.zeros(1, sentences)).items()
    }
    kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
    config = Config(
        input_features={name: PolicyFeature(kinds[name], (size,)) for name, size in shapes.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (dim,))},
        device="cpu", push_to_hub=False, **RECIPES[method].config,
    )  # fmt: skip
    return Policy(config)


def observed(method: str, state: Tensor, which: Tensor) -> dict[str, Tensor]:
    """What a network is told of states (n, 39) and which sentences (n, sentences); the Diffusion Policy is told two steps,
    both of which a state of Meta-World has.
    """
    if method == "act":
        return {"observation.state": state, "observation.environment_state": which}
    now, before, goal = state.split([HALF, HALF, state.shape[1] - 2 * HALF], 1)
    scene = torch.cat([goal, which], 1)
    return {
        "observation.state": torch.stack([before, now], 1),
        "observation.environment_state": torch.stack([scene] * 2, 1),
    }


@dataclass(frozen=True)
class Sentences:
    """Those it was trained on."""

    known: tuple[str, ...]

    def check(self, sentence: str) -> None:
        """Raise ValueError for another one."""
        checked("sentence", sentence, sentence in self.known, f"this policy knows {', '.join(self.known)}")

    def __call__(self, said: Sequence[str]) -> Tensor:
        """One-hot (n, sentences)."""
        for each in said:
            self.check(each)
        return torch.eye(len(self.known))[[self.known.index(each) for each in said]]


@dataclass(frozen=True, eq=False)
class Peer:
    """A policy that `benchmarks.vla` asks as it asks an `ActionPolicy`. units: middle and spread of actions."""

    model: Any
    method: str
    lexicon: Sentences
    scale: Scale
    units: Scale

    @torch.no_grad()
    def predict_action(
        self, state: np.ndarray, instruction: str | Sequence[str], pictures: None = None, *,
        seed: int | Sequence[int] = 0, decoding: Decoding,
    ) -> np.ndarray:  # fmt: skip
        """Chunks of actions (n, 8, dim) for states (n, 39) and sentences; (8, dim) for one."""
        said = [instruction] if isinstance(instruction, str) else list(instruction)
        given = torch.from_numpy(np.atleast_2d(np.array(state, np.float32)))
        shown = observed(self.method, self.scale(given), self.lexicon(said))
        middle, spread = numbers(self.units)
        if self.method == "act":
            y = self.model.predict_action_chunk(shown)
        else:
            shape, drawn = (RECIPES[self.method].horizon, len(middle)), torch.Generator()
            noise = torch.stack([torch.randn(shape, generator=drawn.manual_seed(s)) for s in seeds_of(seed, len(said))])
            self.model.diffusion.num_inference_steps = decoding.steps
            y = self.model.diffusion.generate_actions(shown, noise)
        actions = (y * spread + middle).clamp(-1, 1).numpy()
        return actions[0] if isinstance(instruction, str) else actions

    def save(self, folder: Path) -> None:
        """model.safetensors and, last, peer.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.model.state_dict().items()}, folder / WEIGHTS)
        about = {"method": self.method, "sentences": self.lexicon.known}
        text = json.dumps({**about, "scale": asdict(self.scale), "units": asdict(self.units)})
        write_atomically(folder / ABOUT, f"{text}\n".encode())


def load(folder: Path, network: Callable[[str, int, int], nn.Module] = network) -> Peer:
    """What `save` wrote."""
    about = read_json(folder / ABOUT)
    scale, units = Scale(**about["scale"]), Scale(**about["units"])
    model = network(about["method"], len(about["sentences"]), len(units.middle))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return Peer(model.eval(), about["method"], Sentences(tuple(about["sentences"])), scale, units)


def untrained(
    method: str, shown: list[Episode], seed: int, network: Callable[[str, int, int], nn.Module] = network
) -> Peer:
    """A policy with its first weights, and what it takes from demonstrations."""
    actions, states = (np.concatenate([getattr(each, name) for each in shown]) for name in ("action", "state"))
    units = Scale.of(actions)
    if RECIPES[method].bounds:
        low, high = actions.min(0).astype(np.float64), actions.max(0).astype(np.float64)
        units = Scale(tuple((low + high) / 2), tuple(np.maximum((high - low) / 2, 1e-3)))
    sentences = tuple(sorted({each.task for each in shown}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # LeRobot draws its first weights from the global generator
        model = network(method, len(sentences), actions.shape[1])
    return Peer(model, method, Sentences(sentences), Scale.of(states), units)


def numbers(scale: Scale) -> tuple[Tensor, Tensor]:
    """Middle and spread (dim,)."""
    return torch.tensor(scale.middle).float(), torch.tensor(scale.spread).float()
