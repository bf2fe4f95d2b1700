"""A policy as LeRobot calls it; nothing of LeRobot is imported.

The methods and keys are those of its `PreTrainedPolicy` (huggingface/lerobot, src/lerobot/policies/pretrained.py): `reset`,
`forward`, `predict_action_chunk`, `select_action`, `get_optim_params`, `save_pretrained`, `from_pretrained`; those of real-time
chunking are the arguments of its `RTCProcessor` (src/lerobot/policies/rtc/modeling_rtc.py). LeRobot finds a policy and its
processors beside its configuration, by their names (src/lerobot/policies/factory.py): all three are here.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from discdiff.config import checked, from_dict, read_json, to_dict
from discdiff.layout import TokenBatch, make_batch
from discdiff.noise import Noise
from discdiff.report.pictures import write_atomically
from discdiff.training.data import keyed_times
from tasks.vla.adapters.lerobot_batch import STATE, camera_of, tensor_of
from tasks.vla.adapters.pictures import shown
from tasks.vla.continuous import CONTINUOUS
from tasks.vla.learning import Loss, objective_of
from tasks.vla.policy import ACTION, ActionPolicy, Decoding

TARGET, PADDED, TASK = "action", "action_is_pad", "task"
FILE, COUNTERS = "lerobot.json", ("calls", "trained")
DERIVED = ("chunk_size", "action_dim", "state_dim", "picture", "device", "type")  # of the policy, not chosen


@dataclass(frozen=True)
class LeRobotConfig:
    """What LeRobot asks a policy's configuration. chunk_size, action_dim, state_dim, picture, device: of the policy;
    n_action_steps: executed of a chunk, 0 for all; state: keys that together are the state; camera: whose pictures it is
    shown, "image" for those of observation.image, "" for the only one; seed: of its noise; unnorm_key: whose units actions
    have; decoding: None for the policy's own.
    """

    chunk_size: int
    action_dim: int
    state_dim: int
    picture: int = 0
    n_action_steps: int = 0
    state: tuple[str, ...] = (STATE,)
    camera: str = ""
    seed: int = 0
    unnorm_key: str | None = None
    decoding: Decoding | None = None
    loss: Loss = field(default_factory=Loss)
    type: str = "discdiff"
    n_obs_steps: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        fits = 0 <= self.n_action_steps <= self.chunk_size
        checked(
            "n_action_steps", self.n_action_steps, fits, f"at most the chunk's {self.chunk_size}, 0 for all of them"
        )
        checked("n_obs_steps", self.n_obs_steps, self.n_obs_steps == 1, "only the present is seen")
        checked("state", self.state, len(self.state) > 0, "at least one key")

    @property
    def observation_delta_indices(self) -> None:
        """The present frame alone, without an axis of time."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Frames of a chunk from the present one on."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    @property
    def supports_rtc(self) -> bool:
        """Real-time chunking."""
        return True

    @property
    def normalization_mapping(self) -> dict[str, str]:
        """The policy normalises by itself: batches have the data set's units."""
        return dict.fromkeys(("STATE", "VISUAL", "ACTION"), "IDENTITY")


@dataclass(frozen=True)
class Moved:
    """A step around a policy that changes nothing but the device of tensors: of one, or of those in a batch."""

    device: str

    def __call__(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: self(each) for name, each in given.items()}
        return given.to(self.device) if isinstance(given, Tensor) else given


def make_discdiff_pre_post_processors(config: LeRobotConfig, dataset_stats: Any = None) -> tuple[Moved, Moved]:
    """What comes before the policy, batches to its device, and behind it, actions to the CPU; the policy normalises by itself
    and needs no dataset_stats.
    """
    return Moved(config.device), Moved("cpu")


class LeRobotPolicy(nn.Module):
    """An `ActionPolicy` with the methods of LeRobot's policies; `settings` are fields of `LeRobotConfig`.

    Batches: `observation.state` (batch, dim), of which a policy that is told fewer numbers takes the first;
    `observation.images.CAMERA` or `observation.image` (batch, 3, height, width) float in [0, 1], whose middle square is
    brought to the policy's width; `task`, a list of sentences; to train `action` (batch, chunk, dim) and `action_is_pad`
    (batch, chunk) bool. Everything is in the data set's own units. How often it was asked and trained is in its state, so that
    a resumed training goes on with new noise.
    """

    calls: Tensor
    trained: Tensor

    config_class = LeRobotConfig
    name = "discdiff"

    def __init__(self, policy: ActionPolicy, **settings: Any) -> None:
        super().__init__()
        own = policy.settings
        self.config = LeRobotConfig(
            own.chunk, policy.tokenizer.config.dim, len(policy.scale.middle), own.picture,
            device=str(policy.model.device), **settings,
        )  # fmt: skip
        policy.normaliser(self.config.unnorm_key)  # raises for a key that is not there
        self.policy, self.model = policy, policy.model
        for name in COUNTERS:
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.reset()

    def save_pretrained(self, folder: str | Path) -> None:
        """The policy's own files, and lerobot.json: the configuration and what was counted. Raises ValueError, before anything
        is written, for a decoding that only Python has.
        """
        stored = {"config": to_dict(self.config), **{name: int(getattr(self, name)) for name in COUNTERS}}
        try:
            text = json.dumps(stored, indent=2) + "\n"
        except TypeError as error:
            raise ValueError(f"decoding cannot be kept as JSON ({error}): leave out what only Python has") from error
        self.policy.save_pretrained(folder)
        write_atomically(Path(folder) / FILE, text.encode("utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **settings: Any) -> LeRobotPolicy:
        """What `save_pretrained` left, with `settings` in place of those kept; without lerobot.json, of those by default.

        Raises ValueError for a folder that holds no policy, and for a file that is another one.
        """
        policy, file = ActionPolicy.from_pretrained(folder), Path(folder) / FILE
        if not file.is_file():
            return cls(policy, **settings)
        stored = read_json(file)
        counted = all(isinstance(stored.get(name), int) for name in COUNTERS) and "config" in stored
        checked(FILE, sorted(stored), counted, "let save_pretrained write it")
        config = from_dict(stored["config"], {"discdiff": LeRobotConfig, "Decoding": Decoding, "Loss": Loss})
        kept = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in DERIVED}
        found = cls(policy, **{**kept, **settings})
        for name in COUNTERS:
            getattr(found, name).fill_(stored[name])
        return found

    def reset(self) -> None:
        """Forget what is left of the last chunk, at the start of an episode; the next noise is new."""
        self.queue: deque[Tensor] = deque()

    def get_optim_params(self) -> list[nn.Parameter]:
        """What an optimiser changes."""
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss of the policy's method, a scalar, and figures to log; steps that are padded are neither seen nor learned.

        reduction: "none" gives the loss of every row (batch,), to be weighted, with one pass of the network per row. Noise is
        keyed by the seed, the number of the call and, in a distributed run, the rank. Raises ValueError for rows whose every
        step is padded, and for another reduction.
        """
        checked("reduction", reduction, reduction in ("mean", "none"), "mean or none")
        rows = self.policy.rows(*self._seen(batch))
        n, (chunk, dim) = len(rows.tokens), (self.config.chunk_size, self.config.action_dim)
        actions = tensor_of(batch, TARGET).float().cpu()
        checked(TARGET, tuple(actions.shape), actions.shape == (n, chunk, dim), f"give ({n}, {chunk}, {dim})")
        padded = tensor_of(batch, PADDED).bool().cpu() if PADDED in batch else torch.zeros(n, chunk, dtype=torch.bool)
        checked(PADDED, tuple(padded.shape), padded.shape == (n, chunk), f"give ({n}, {chunk})")
        checked(
            PADDED,
            int(padded[:, 0].sum()),
            not bool(padded[:, 0].any()),
            "rows that begin with no step: leave them out",
        )
        held = torch.where(padded[..., None], actions[:, :1], actions)
        told = self._learned(rows, held, padded).to(self.model.device)
        epoch, row = torch.full((n,), int(self.trained)), _numbers(n)
        self.trained += 1
        noise = Noise.training(self.config.seed, epoch.to(told.tokens.device), row.to(told.tokens.device), told.valid)
        times = keyed_times(self.config.seed, epoch, row).to(told.tokens.device)
        self.policy = replace(self.policy, width=self.config.loss.labels(self.policy.settings.method))
        goal = objective_of(self.policy, self.config.loss)
        if reduction == "mean":
            loss, metrics = goal(self.model, told, noise, times)
            return loss, {name: float(each.detach().double().mean()) for name, each in metrics.items()}
        # a batch's loss is one sum, of whose parts only the figures are known: a row that is to be weighted is a batch
        alone = torch.arange(n, device=times.device).split(1)
        found = [goal(self.model, told.rows(i), noise.rows(i), times[i]) for i in alone]
        figures = {
            name: float(np.mean([float(each[name].detach().mean()) for _, each in found])) for name in found[0][1]
        }
        return torch.stack([loss for loss, _ in found]), figures

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        *,
        prev_chunk_left_over: Tensor | None = None,
        inference_delay: int | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Actions (batch, chunk, dim).

        prev_chunk_left_over (batch, steps, dim) or (steps, dim): what is not yet executed of the last chunk, in the data set's
        units; its first `inference_delay` actions are over before the new chunk is there, and are kept as they are, at most
        `execution_horizon` of them and as many as there are: none before the first chunk. That is real-time chunking (arXiv
        2506.07339) with LeRobot's schedule ZEROS; nothing behind them is guided. Raises ValueError for a left-over without a
        delay.
        """
        self.eval()
        state, task, pictures = self._seen(batch)
        prefix = self._prefix(len(task), prev_chunk_left_over, inference_delay, execution_horizon)
        first = self.config.seed + int(self.calls)
        self.calls += len(task)
        actions = self.policy.predict_action(
            state, task, pictures, prefix=prefix, seed=[first + i for i in range(len(task))],
            decoding=self.config.decoding, unnorm_key=self.config.unnorm_key,
        )  # fmt: skip
        return torch.from_numpy(actions).to(tensor_of(batch, self.config.state[0]).device)

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action (batch, dim): the policy is asked once in `n_action_steps`.

        Raises ValueError where the batch changes its size before the chunk is used up.
        """
        if not self.queue:
            kept = self.predict_action_chunk(batch)[:, : self.config.n_action_steps or None]
            self.queue.extend(kept.unbind(1))
        rows, n = len(tensor_of(batch, self.config.state[0])), len(self.queue[0])
        checked("batch", rows, rows == n, f"the chunk that is being executed has {n} rows: reset() first")
        return self.queue.popleft()

    def _seen(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, list[str], np.ndarray | None]:
        """State (batch, dim), sentences, and pictures (batch, size, size, 3) uint8."""
        state = np.concatenate([tensor_of(batch, key).detach().cpu().float().numpy() for key in self.config.state], -1)
        state = state[..., : self.policy.settings.proprio or None]
        task = batch.get(TASK)
        task = [task] * len(state) if isinstance(task, str) else list(task or ())
        fits = len(task) == len(state) and all(isinstance(each, str) for each in task)
        checked(TASK, task[:3], fits, f"give {len(state)} sentences, one per row")
        if not self.config.picture:
            return state, task, None
        key = camera_of(batch, self.config.camera)
        rows = [shown(key, each, self.config.picture) for each in tensor_of(batch, key).detach().cpu().numpy()]
        checked(key, len(rows), len(rows) == len(state), f"give {len(state)} pictures, one per row")
        return state, task, np.stack(rows)

    def _learned(self, rows: TokenBatch, actions: Tensor, padded: Tensor) -> TokenBatch:
        """The rows with these actions in them."""
        layout, units = rows.layout, self.policy.normaliser(self.config.unnorm_key)
        y, own = units.normalise(actions).values, self.policy.tokenizer
        if self.policy.settings.method in CONTINUOUS:
            rows = rows._replace(features={**rows.features, "target": y})
        codes = own.encode(own.normaliser.restore(y)).codes
        tokens, valid = rows.tokens.clone(), rows.valid.clone()
        tokens[:, layout.columns(ACTION)] = layout.vocab.to_global(codes.view(len(y), -1, y.shape[2]), ACTION).flatten(
            1
        )
        valid[:, layout.columns(ACTION)] = ~padded.repeat_interleave(y.shape[2], 1)
        return make_batch(layout, tokens, valid=valid, features=rows.features)

    def _prefix(self, rows: int, left: Tensor | None, delay: int | None, horizon: int | None) -> np.ndarray | None:
        told = "steps executed until the new chunk is there, 0 or more"
        checked("inference_delay", delay, (left is None) if delay is None else delay >= 0, told)
        checked("execution_horizon", horizon, horizon is None or horizon >= 0, "0 or more steps")
        if left is None:
            return None
        x = left.detach().cpu().float().numpy().copy()
        x = x[None].repeat(rows, 0) if x.ndim == 2 else x
        fits = x.ndim == 3 and x.shape[::2] == (rows, self.config.action_dim)
        checked("prev_chunk_left_over", x.shape, fits, f"give ({rows}, steps, {self.config.action_dim})")
        chunk = self.config.chunk_size
        return x[:, : min(delay or 0, chunk if horizon is None else horizon, chunk)]


def _numbers(rows: int) -> Tensor:
    """Of the rows of a step (rows,): no two ranks of a distributed run have one in common."""
    spread = dist.is_available() and dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if spread else (0, 1)
    return torch.arange(rows) * ranks + rank
