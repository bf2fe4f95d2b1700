"""Training: `DiffusionTrainer` on `transformers.Trainer`, its settings, keyed data, EMA, and checkpoints that survive."""

from discdiff.training.checkpoint import CheckpointError, checkpoints, latest_checkpoint, verify
from discdiff.training.data import KeyedRows, KeyedSampler, KeyedStream, collate, keyed_order, keyed_times, token_batch
from discdiff.training.ema import EMA
from discdiff.training.guards import NonFiniteError
from discdiff.training.metrics import MetricsLog, read_metrics
from discdiff.training.settings import TrainingSettings
from discdiff.training.signals import GracefulStop
from discdiff.training.states import load_weights
from discdiff.training.trainer import DiffusionTrainer

__all__ = [
    "EMA",
    "CheckpointError",
    "DiffusionTrainer",
    "GracefulStop",
    "KeyedRows",
    "KeyedSampler",
    "KeyedStream",
    "MetricsLog",
    "NonFiniteError",
    "TrainingSettings",
    "checkpoints",
    "collate",
    "keyed_order",
    "keyed_times",
    "latest_checkpoint",
    "load_weights",
    "read_metrics",
    "token_batch",
    "verify",
]
