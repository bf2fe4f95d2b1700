"""DiffusionTrainer: `transformers.Trainer` with a diffusion objective, keyed noise, and runs that survive interruption."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from discdiff.layout import Layout
from discdiff.noise import Noise
from discdiff.training import data, persistence, states
from discdiff.training.ema import EMA
from discdiff.training.evaluation import ROW_LOSS, Objective, evaluate
from discdiff.training.guards import blame, check_arguments, check_reached
from discdiff.training.metrics import MetricsLog
from discdiff.training.optimizers import MuonAdamW, compile_blocks
from discdiff.training.progress import TimedProgress
from discdiff.training.settings import TrainingSettings, settings_of
from discdiff.training.signals import GracefulStop

logger = logging.getLogger(__name__)


class DiffusionTrainer(Trainer):
    """Trains `model` on `objective(model, batch, noise, time) -> (loss, metrics)`, the loss a mean over rows and positions.

    args: `TrainingSettings` with `output_dir=`, or `TrainingArguments`. Data set items are dictionaries of fixed-length
    arrays: `tokens` (length,) int64 and, where wanted, `valid`, `given`, `sample`, `slot`, `id`, `features.NAME`; a
    stream's items need an integer `id`. Without a layout (a network that reads no tokens, such as a codec) items are any
    fixed-length arrays and the objective is given the collated dictionary. `model` reaches the objective wrapped (DDP,
    FSDP). Further `options` go to `Trainer`. Raises ValueError, before any work, for items the layout refuses, for
    arguments that would break exact resumption, and where the asked number of ranks or sharding was not reached.

    The noise of a row is keyed by (seed, epoch, id), its time by (seed, epoch, rank in the epoch's order): up to rounding
    a run does not depend on workers, ranks or accumulation, and a resumed one equals an uninterrupted one bit for bit.
    """

    lr_scheduler: Any
    optimizer: Any
    control: Any
    loss_is_scaled_for_ga = False  # each part's loss is a mean: Trainer divides by the number of parts

    def __init__(
        self,
        model: nn.Module,
        args: TrainingSettings | TrainingArguments,
        objective: Objective,
        layout: Layout | None,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        output_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.settings = args if isinstance(args, TrainingSettings) else None
        if self.settings is not None and output_dir is None:
            raise ValueError("output_dir is None: with TrainingSettings, say where checkpoints and metrics go")
        arguments: Any = copy.copy(args) if self.settings is None else self.settings.to_arguments(str(output_dir))
        check_arguments(arguments)
        self.objective, self.layout = objective, layout
        self.whole = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        self.streams = isinstance(train_dataset, IterableDataset)
        drop_last = self.settings is None or self.settings.drop_last
        self.epoch_rows = 0 if self.streams else data.epoch_rows(len(train_dataset), self.whole, drop_last)
        if arguments.max_steps <= 0:
            arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * self.epoch_rows / self.whole))
        self.knobs = self.settings or settings_of(arguments)
        if self.knobs.compile:
            compile_blocks(model)
        for rows in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,))):
            if rows is not None and not isinstance(rows, IterableDataset):
                data.unwrapped(layout, data.collate(data.KeyedRows(rows).__getitems__([(0, 0, 0)])), check=True)
        self.rows_digest = None if self.streams else data.digest_of_rows(train_dataset)
        self.ema: EMA | None = None
        self.stopped_by: str | None = None
        self.seconds = 0.0  # of training until the last step, resumed parts included; all ranks have the same
        self._resumed: str | None = None
        self._start, self._before, self._began, self._stop = 0, 0.0, time.monotonic(), GracefulStop()
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._seen: list[Tensor] = []
        self.memory: Any = getattr(objective, "memory", None)  # of times and losses, see `clocks.Importance`
        self._untaught = None if self.memory is None else self.memory.state()
        super().__init__(
            model=model, args=arguments, data_collator=data.collate, train_dataset=train_dataset,
            eval_dataset=eval_dataset, **options,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = False
        check_reached(self.accelerator, self.knobs.expected_world_size, arguments)
        self.metrics_log = MetricsLog(Path(arguments.output_dir) / "metrics.jsonl")
        self.add_callback(_Hooks(self))
        if self.knobs.schedule_by == "seconds" and self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TimedProgress(self))

    # ---- the run

    def train(self, resume: str | Path | None = None, **options: Any) -> Any:
        """Train, from the start (None), from a checkpoint folder, or from the newest complete one if any ("auto").

        Ctrl-C or SIGTERM ends it after the current step with a checkpoint (`stopped_by` is then "signal"; "time" after
        max_seconds). Raises CheckpointError (a ValueError) if the checkpoint is damaged or of another run, or if the
        output folder holds newer ones; FloatingPointError before a step whose loss or gradient is not finite; OSError
        where a checkpoint does not fit, or another process writes into the output folder.
        """
        with persistence.locked(self):
            self._resumed, manifest = persistence.find(self, resume)
            self._start = manifest.get("step", 0) * self.whole
            self.seconds, self._before, self._began, self.stopped_by = 0.0, 0.0, time.monotonic(), None
            for left in (self._losses, self._sums, self._seen):  # of a run that ended within a step
                left.clear()
            if self._resumed is None and self.memory is not None:
                self.memory.load(self._untaught)
            with GracefulStop() as self._stop:
                return super().train(resume_from_checkpoint=self._resumed, **options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss on one collated batch."""
        batch, places = data.unwrapped(self.layout, inputs)
        noise = Noise.training(self.knobs.seed, inputs["epoch"], inputs["id"], places)
        times = data.keyed_times(self.knobs.seed, inputs["epoch"], inputs["rank"])
        loss, metrics = self.objective(model, batch, noise, times)
        self._losses.append((loss.detach(), inputs["id"]))
        if self.memory is not None:
            self._seen.append(torch.stack([metrics["row_time"], metrics[ROW_LOSS]]).detach())
        for name, x in metrics.items():
            if x.numel() == 1 and name != ROW_LOSS:
                value = x.detach().reshape(()).float()
                total, count = self._sums.get(name, (torch.zeros_like(value), 0))
                self._sums[name] = (total + value, count + 1)
        return (loss, metrics) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._checked_norm(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self._checked_norm(model, None) if grad_norm is None else grad_norm

    def elapsed(self) -> float:
        """Seconds of training until now on this process, resumed parts included."""
        return self._before + time.monotonic() - self._began

    def _checked_norm(self, model: nn.Module, limit: float | None) -> Tensor:
        """Gradient norm, then clipped to `limit`. The one host read of a step: finite? and do all ranks go on?

        Before clipping, which would spread one NaN over all gradients and hide where it came from.
        """
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = states.whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        finite = torch.stack([norm.double(), *(loss.double() for loss, _ in self._losses)]).isfinite().all()
        host = torch.tensor([self._stop.requested, self.elapsed()], dtype=torch.float64)
        flags = torch.cat([(~finite).double()[None], host.to(norm.device)])
        if self.args.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        bad, requested, self.seconds = flags.tolist()
        if bad:
            raise blame(model, self._losses, self.state.global_step + 1)
        self._losses.clear()
        if requested:
            self.stopped_by = "signal"
        elif self.knobs.max_seconds and self.seconds >= self.knobs.max_seconds:
            self.stopped_by = "time"
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The settings' optimizer; AdamW is made by Trainer."""
        if self.optimizer is None and self.knobs.optimizer == "muon":
            k = self.knobs
            self.optimizer = MuonAdamW(model or self.model, k.learning_rate, k.weight_decay, k.betas)
        return super().create_optimizer(*(() if model is None else (model,)))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the settings; with `TrainingArguments`, theirs."""
        if self.settings is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = self.settings.factor
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: factor(step, self.seconds)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Rows in keyed order: this process's share of every step, from the place where the run resumes."""
        batch, stop, rows = self._train_batch_size, self.args.max_steps * self.whole, self.train_dataset
        ranks = {"start": self._start, "world": self.args.world_size, "process": self.args.process_index}
        if self.streams:
            return data.loader(self.args, data.KeyedStream(rows, batch, stop, **ranks), batch_size=batch)
        sampler = data.KeyedSampler(len(rows), self.epoch_rows, self.knobs.seed, batch, stop, **ranks)
        return data.loader(self.args, data.KeyedRows(rows), batch_sampler=sampler)

    # ---- evaluation and reports

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean objective over the evaluation rows, `eval_draws` draws each, and its standard error, by the EMA weights.

        Every row counts once, with the same noise at every call. A dictionary of data sets is evaluated one by one.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if isinstance(rows, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in rows.items()]
            return {name: value for part in parts for name, value in part.items()}
        began = time.monotonic()
        with self.averaged():
            values = evaluate(self, rows)
        logs = {f"{metric_key_prefix}_{name}": x for name, x in {**values, "seconds": time.monotonic() - began}.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within, the model has its EMA weights, where there are any and `ema_eval` is set."""
        return self.ema.swapped() if self.ema is not None and self.knobs.ema_eval else contextlib.nullcontext()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To the callbacks and as a line of metrics.jsonl; the objective's metrics are means since the last such report."""
        if "loss" in logs and self._sums:
            means = torch.stack([total / count for total, count in self._sums.values()])
            means = self.accelerator.reduce(means, "mean") if self.args.world_size > 1 else means
            logs.update({name: x for name, x in zip(self._sums, means.tolist(), strict=True) if name not in logs})
            self._sums.clear()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.metrics_log.write(**{"step": self.state.global_step, "seconds": round(self.elapsed(), 3), **logs})

    # ---- checkpoints

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        optimizer: Any = self.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """The model for use (`from_pretrained`): its EMA weights where there are any and `ema_eval` is set."""
        model = self.accelerator.unwrap_model(self.model)
        with self.averaged():
            weights = states.weights(model)
            if self.args.should_save:
                folder = Path(output_dir or self.args.output_dir)
                states.save_weights(model, weights, folder, original_format=True)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.store_flos()
        persistence.save(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        states.load_weights(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states.load_optimizer_state(self.bare_optimizer, self.model, checkpoint)
            stored = json.loads((Path(checkpoint) / "scheduler.json").read_text(encoding="utf-8"))
            self.lr_scheduler.load_state_dict(stored["scheduler"])
            self.seconds = self._before = stored["seconds"]
            if self.memory is not None:
                self.memory.load(stored["memory"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint and not states.load_random_state(self.args.device, checkpoint, self.args.process_index):
            logger.warning("%s has no random state for rank %d: dropout differs", checkpoint, self.args.process_index)


class _Hooks(TrainerCallback):
    """What happens at the events of Trainer's loop."""

    def __init__(self, trainer: DiffusionTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        trainer._began = time.monotonic()
        trainer.ema = EMA(trainer.model, trainer.knobs.ema) if trainer.knobs.ema else None
        if trainer._resumed is None:
            return
        if trainer.is_world_process_zero():
            trainer.metrics_log.write(step=state.global_step, resumed=True)
        stored = Path(trainer._resumed) / "ema.safetensors"
        if trainer.ema is not None and stored.exists():
            trainer.ema.load(load_file(stored))
        elif trainer.ema is not None:
            logger.warning("%s was written without EMA: the average begins with its weights", trainer._resumed)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.memory is not None:
            seen = self.trainer.accelerator.gather(torch.cat(self.trainer._seen, 1).mT.contiguous())
            self.trainer.memory.observe(*seen.unbind(1))
            self.trainer._seen.clear()
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.epoch_rows:
            state.epoch = state.global_step * self.trainer.whole / self.trainer.epoch_rows
        if self.trainer.stopped_by is not None:
            control.should_save = control.should_training_stop = True
            control.should_evaluate |= self.trainer.stopped_by == "time" and args.eval_strategy != "no"
