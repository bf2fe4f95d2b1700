"""DiffusionTrainer: `transformers.Trainer` with a diffusion objective, keyed noise, and runs that survive interruption."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from discdiff.config import to_dict
from discdiff.layout import Layout
from discdiff.noise import Noise
from discdiff.training import data, states
from discdiff.training.checkpoint import CheckpointError, checkpoints, latest_checkpoint, verify, write_checkpoint
from discdiff.training.evaluation import Objective, Sums, evaluate_rows
from discdiff.training.guards import blame, check_arguments, check_reached
from discdiff.training.metrics import MetricsLog
from discdiff.training.settings import TrainingSettings, settings_of
from discdiff.training.signals import GracefulStop, ignore_interrupt

logger = logging.getLogger(__name__)


class DiffusionTrainer(Trainer):
    """Trains `model` on `objective(model, batch, noise, time) -> (loss, metrics)`, the loss a mean over rows and positions.

    args: `TrainingSettings` with `output_dir=`, or `TrainingArguments`. Data set items are dictionaries of fixed-length
    arrays: `tokens` (length,) int64 and, where wanted, `valid`, `given`, `sample`, `slot`, `id`, `features.NAME`; a
    stream's items need an integer `id`. `model` reaches the objective wrapped (DDP, FSDP). Further `options` go to
    `Trainer`. Raises ValueError, before any work, for items the layout refuses, for arguments that would break
    exact resumption, and where the asked number of ranks or sharding was not reached.

    The noise of a row is keyed by (seed, epoch, id) and its time by (seed, epoch, rank in the epoch's order): the run does
    not depend on workers, ranks or accumulation beyond rounding, and a resumed one equals an uninterrupted one bit for bit.
    """

    loss_is_scaled_for_ga = False  # each part's loss is a mean, so Trainer divides by the number of parts

    def __init__(
        self,
        model: nn.Module,
        args: TrainingSettings | TrainingArguments,
        objective: Objective,
        layout: Layout,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        output_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.settings = args if isinstance(args, TrainingSettings) else None
        if self.settings is not None and output_dir is None:
            raise ValueError("output_dir is missing: with TrainingSettings, say where checkpoints and metrics go")
        arguments = self.settings.to_arguments(output_dir or "") if self.settings else copy.copy(args)
        check_arguments(arguments, eval_dataset)
        self._stop, self.stopped_by, self.ema = GracefulStop(), None, None
        self._before, self._began, self._seconds = 0.0, time.monotonic(), 0.0
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._metrics: dict[str, tuple[Tensor, int]] = {}
        self._start, self.objective, self.layout = 0, objective, layout
        self._whole = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        self._streams = isinstance(train_dataset, IterableDataset)
        drop_last = self.settings.drop_last if self.settings else True
        self._epoch_rows = 0 if self._streams else data.epoch_rows(len(train_dataset), self._whole, drop_last)
        if arguments.max_steps <= 0:
            arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * self._epoch_rows / self._whole))
        self.knobs = self.settings or settings_of(arguments)
        for rows in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,))):
            if rows is not None and not isinstance(rows, IterableDataset):
                data.token_batch(layout, data.collate(data.KeyedRows(rows).__getitems__([(0, 0, 0)])), check=True)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=data.collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **options,
        )
        self.model_accepts_loss_kwargs = False
        check_reached(self.accelerator, self.knobs, arguments)
        self.metrics_log = MetricsLog(Path(arguments.output_dir) / "metrics.jsonl")
        self.add_callback(_Hooks(self))

    # ---- running

    def train(self, resume: str | Path | None = None, **options: Any) -> Any:
        """Train, from the start (None), from a checkpoint folder, or from the newest complete one if any ("auto").

        Ctrl-C or SIGTERM ends it after the current step with a checkpoint (`stopped_by` is then "signal", or "time" for
        max_seconds). Raises ValueError if the checkpoint is damaged or of another run, or if the output folder holds
        newer ones; FloatingPointError before an optimizer step with a loss or gradient that is not finite.
        """
        checkpoint, manifest = self._find(resume)
        self._start = manifest["step"] * self._whole if manifest else 0
        self._before, self._seconds, self._began, self.stopped_by = 0.0, 0.0, time.monotonic(), None
        with GracefulStop() as self._stop:
            return super().train(resume_from_checkpoint=checkpoint, **options)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss on one collated batch."""
        batch = data.token_batch(self.layout, inputs)
        noise = Noise.training(self.knobs.seed, inputs["epoch"], inputs["id"], batch.valid)
        loss, metrics = self.objective(
            model, batch, noise, data.keyed_times(self.knobs.seed, inputs["epoch"], inputs["rank"])
        )
        self._losses.append((loss.detach(), inputs["id"]))
        for name, x in metrics.items():
            if x.numel() == 1:
                total, count = self._metrics.get(name, (torch.zeros((), device=x.device), 0))
                self._metrics[name] = (total + x.detach().reshape(()).float(), count + 1)
        return (loss, metrics) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._checked_norm(model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Tensor:
        return self._checked_norm(model, None) if grad_norm is None else grad_norm

    def _checked_norm(self, model: nn.Module, limit: float | None) -> Tensor:
        """Gradient norm, clipped to `limit`; the one host read of a step, which also agrees with all ranks on stopping."""
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = states.whole(nn.utils.get_total_norm([p.grad for p in parameters]))
        finite = torch.stack([norm.double(), *(loss.double() for loss, _ in self._losses)]).isfinite().all()
        elapsed = self._before + time.monotonic() - self._began
        asked = torch.tensor([float(self._stop.requested), elapsed], dtype=torch.float64).to(norm.device)
        flags = torch.cat([(~finite).double()[None], asked])
        if self.args.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        bad, requested, self._seconds = flags.tolist()
        if bad:
            raise blame(model, self._losses, self.state.global_step + 1)
        self._losses.clear()
        if requested:
            self.stopped_by = "signal"
        elif self.knobs.max_seconds and self._seconds >= self.knobs.max_seconds:
            self.stopped_by = "time"
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the settings; with `TrainingArguments`, theirs."""
        if self.settings is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = self.settings.factor
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: factor(step, self._seconds)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Rows in keyed order, this process's share of every optimizer step, from the place where the run resumes."""
        batch, stop = self._train_batch_size, self.args.max_steps * self._whole
        ranks = {"start": self._start, "world": self.args.world_size, "process": self.args.process_index}
        if self._streams:
            stream = data.KeyedStream(self.train_dataset, batch, stop, **ranks)
            return self._loader(stream, batch_size=batch)
        sampler = data.KeyedSampler(
            len(self.train_dataset), self.knobs.seed, batch, self._whole, stop, drop_last=self.knobs.drop_last, **ranks
        )
        return self._loader(data.KeyedRows(self.train_dataset), batch_sampler=sampler)

    def _loader(self, rows: Any, **options: Any) -> DataLoader:
        workers = self.args.dataloader_num_workers
        if isinstance(rows, IterableDataset) and workers > 1:
            raise ValueError(f"workers is {workers}: a stream is read by one process, set workers to 0 or 1")
        return DataLoader(
            rows,
            collate_fn=data.collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            worker_init_fn=ignore_interrupt,
            generator=torch.Generator(),  # else every iterator would draw from the global one
            **options,
        )

    # ---- evaluation and reports

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean objective over the evaluation rows with `eval_draws` draws each, and its standard error, by the EMA weights.

        Every row counts once, with the same noise at every call. A dictionary of data sets is evaluated one by one.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        if isinstance(rows, dict):
            parts = [
                self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}") for name, part in rows.items()
            ]
            return {name: value for part in parts for name, value in part.items()}
        if not hasattr(rows, "__len__") or len(rows) == 0:
            raise ValueError(
                "evaluation needs a data set of known length, at least one row: take a list from the stream"
            )
        began, model, size = time.monotonic(), self.model, self.args.per_device_eval_batch_size
        mine = [(0, i, i) for i in range(self.args.process_index, len(rows), self.args.world_size)]
        loader = self._loader(
            data.KeyedRows(rows), batch_sampler=[mine[i : i + size] for i in range(0, len(mine), size)]
        )
        if not self.accelerator._models:  # before training: mixed precision as in training
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        training, self.callback_handler.eval_dataloader = model.training, loader

        def each() -> None:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        with self._averaged():
            model.eval()
            batches = map(self._prepare_inputs, loader)
            sums, metrics = evaluate_rows(self.objective, model, self.layout, batches, self.knobs.eval_draws, each)
            model.train(training)
        total, extra = Sums(), Sums()
        for part, more in gather_object([(sums.totals, metrics)]):
            total.add(**part)
            extra.add(**more)
        mean, error = total.mean_and_error()
        logs = {"loss": mean, "loss_error": error, **{k: v / len(rows) for k, v in extra.totals.items()}}
        logs = {f"{metric_key_prefix}_{name}": value for name, value in logs.items()}
        logs[f"{metric_key_prefix}_seconds"] = time.monotonic() - began
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        use = self.ema is not None and self.knobs.ema_eval
        return self.ema.swapped() if use else contextlib.nullcontext()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report to the callbacks and append a line to metrics.jsonl; the objective's metrics are means since the last one."""
        if "loss" in logs and self._metrics:
            means = torch.stack([total / count for total, count in self._metrics.values()])
            means = self.accelerator.reduce(means, "mean") if self.args.world_size > 1 else means
            logs.update({k: v for k, v in zip(self._metrics, means.tolist(), strict=True) if k not in logs})
            self._metrics.clear()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            seconds = self._before + time.monotonic() - self._began
            self.metrics_log.write(step=self.state.global_step, seconds=round(seconds, 3), **logs)

    # ---- checkpoints

    def _identity(self) -> dict[str, Any]:
        """What must not change when a run goes on."""
        layout = hashlib.sha256(json.dumps(to_dict(self.layout), sort_keys=True).encode()).hexdigest()
        run = {"seed": self.knobs.seed, "batch_size": self._whole, "rows_of_an_epoch": self._epoch_rows}
        return {**run, "layout": layout}

    def _find(self, resume: str | Path | None) -> tuple[str | None, dict[str, Any]]:
        """The checkpoint to begin from and its manifest, as the first rank sees them."""
        found: list[Any] = [None, {}, None]
        if self.args.process_index == 0:
            try:
                path = latest_checkpoint(self.args.output_dir) if resume == "auto" else resume and Path(resume)
                manifest = verify(path) if path else {}
                self._check_fits(path, manifest)
                found = [str(path) if path else None, manifest, None]
            except (ValueError, OSError) as error:
                found[2] = str(error)
        if self.args.world_size > 1:
            broadcast_object_list(found)
        if found[2] is not None:
            raise CheckpointError(found[2])
        return found[0], found[1]

    def _check_fits(self, path: Any, manifest: dict[str, Any]) -> None:
        step = manifest.get("step", 0)
        newer = [x for x in checkpoints(self.args.output_dir) if int(x.name.split("-")[1]) > step]
        complete = next((x for x in newer if _is_complete(x)), None)
        if complete is not None:
            raise CheckpointError(
                f"{self.args.output_dir} already holds {complete.name}, newer than step {step} where this run would begin: "
                f'resume="auto" continues from it, another output_dir starts anew'
            )
        for name, value in self._identity().items():
            if manifest and manifest.get("run", {}).get(name) != value:
                raise CheckpointError(
                    f"{path} was written with {name} {manifest.get('run', {}).get(name)!r}, this run has {value!r}: "
                    f"resume with the same, or start in another output_dir"
                )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """First all ranks gather what is sharded, then the first alone writes, then all hear whether that worked."""
        self.store_flos()
        tensors: dict[str, dict[str, Tensor]] = {}
        weights = states.weights(self.accelerator.unwrap_model(self.model))
        tensors["optimizer"], optimizer = states.optimizer_state(_plain(self.optimizer), self.model)
        random = states.random_state(self.args.device)
        tensors["rng_state"] = {k: self.accelerator.gather(x.to(self.args.device)).cpu() for k, x in random.items()}
        if self.ema is not None:
            tensors["ema"] = {name: states.whole(x) for name, x in self.ema.mean.items()}
        failure: list[Any] = [None]
        if self.args.should_save:
            settings = {"settings": to_dict(self.knobs), "layout": to_dict(self.layout)}
            scheduler = {"scheduler": self.lr_scheduler.state_dict(), "seconds": self._seconds}

            def write(folder: Path) -> None:
                states.save_weights(self.accelerator.unwrap_model(self.model), weights, folder, original_format=False)
                states.save_states(
                    folder, tensors, {"optimizer": optimizer, "scheduler": scheduler, "training": settings}
                )
                self._save_trainer_state(folder)

            try:
                size = sum(x.nbytes for named in (weights, *tensors.values()) for x in named.values())
                config = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
                note = {
                    "run": self._identity(),
                    "config": config,
                    "world_size": self.args.world_size,
                    "versions": _versions(),
                }
                folder, step = self.args.output_dir, self.state.global_step
                write_checkpoint(folder, step, write, size=size, keep=self.knobs.keep, manifest=note)
            except OSError as error:
                failure = [error]
        if self.args.world_size > 1:
            reason = [str(failure[0]) if failure[0] else None]
            broadcast_object_list(reason)
            failure = [failure[0] or (OSError(reason[0]) if reason[0] else None)]
        if failure[0] is not None:
            raise failure[0]
