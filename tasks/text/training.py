"""Train a text diffusion model and, with the same budget, its autoregressive twin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from discdiff.config import from_dict, to_dict
from discdiff.layout import LAYOUTS, Layout
from discdiff.maskers import FixedCount
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.objectives import Autoregressive, Elbo
from discdiff.processes import Absorbing, Process
from discdiff.schedules import Linear
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.text.settings import Network

EXACT = FixedCount(Linear(), elbo=True)  # the any-order form of the absorbing bound, of least variance


def config_for(layout: Layout, network: Network, process: Process | None) -> DiscDiffConfig:
    """The model's configuration; layout and process travel with the weights."""
    return DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()), layout=to_dict(layout), process=to_dict(process) if process else None,
        hidden_size=network.hidden_size, num_layers=network.num_layers, num_heads=network.num_heads,
        mlp_ratio=network.mlp_ratio, dropout=network.dropout, max_length=layout.length,
        time_conditioning=process is not None and not isinstance(process, Absorbing),
        prediction="own" if process is None or isinstance(process, Absorbing) else "cavity",
    )  # fmt: skip


def objective_for(process: Process | None) -> Any:
    """The bound a process is trained on; None is the twin's exact likelihood."""
    if process is None:
        return Autoregressive()
    return Elbo(process, masker=EXACT if isinstance(process, Absorbing) else None)


def fit(
    layout: Layout, network: Network, process: Process | None, settings: TrainingSettings, train: Any, valid: Any,
    folder: Path, resume: str | None = None,
) -> DiscDiffModel:  # fmt: skip
    """Train a diffusion model (or, with process None, the causal twin) and save it to `folder`."""
    where = replace(layout, attention="causal") if process is None else layout
    model = DiscDiffModel.seeded(config_for(where, network, process), settings.seed)
    trainer = DiffusionTrainer(
        model, settings, objective_for(process), where, train, valid, output_dir=folder.with_name(folder.name + "_training")
    )
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(folder)
    return DiscDiffModel.from_pretrained(folder).to(trainer.args.device).eval()


def layout_of(config: DiscDiffConfig) -> Layout:
    """The layout stored in a model's configuration."""
    if config.layout is None:
        raise ValueError("this model's configuration holds no layout: it was not trained by this task")
    return from_dict(config.layout, LAYOUTS)
