"""Train a text diffusion model and, with the same budget, its autoregressive twin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from discdiff.config import checked, to_dict
from discdiff.layout import Layout
from discdiff.maskers import FixedCount
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.objectives import Autoregressive, BlockElbo, Elbo
from discdiff.processes import Absorbing, Process
from discdiff.schedules import Linear
from discdiff.training import DiffusionTrainer, TrainingSettings
from tasks.text.settings import Network

EXACT = FixedCount(Linear(), elbo=True)  # the any-order form of the absorbing bound, of least variance


def config_for(layout: Layout, network: Network, process: Process | None) -> DiscDiffConfig:
    """The model's configuration; layout and process travel with the weights."""
    timeless = process is None or isinstance(process, Absorbing)
    return DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()),
        layout=to_dict(layout),
        process=to_dict(process) if process else None,
        hidden_size=network.hidden_size,
        num_layers=network.num_layers,
        num_heads=network.num_heads,
        mlp_ratio=network.mlp_ratio,
        dropout=network.dropout,
        initializer_range=network.hidden_size**-0.5,
        max_length=layout.length,
        time_conditioning=not timeless,
        prediction="own" if timeless else "cavity",
    )


def objective_for(process: Process | None, kind: str = "cavity", block: int = 0) -> Any:
    """The bound a process is trained on; None is the twin's exact likelihood.

    kind: what the network predicts; block: of a layout of blocks, each of which is noised behind clean ones. Raises
    ValueError for a network of log scores.
    """
    if process is None:
        return Autoregressive()
    checked("prediction", kind, kind != "score", "log scores have no bound here, such a model can only be sampled from")
    if block:
        return BlockElbo(Elbo(process, kind=kind))
    return Elbo(process, masker=EXACT if isinstance(process, Absorbing) else None, kind=kind)


def fit(
    layout: Layout,
    network: Network,
    process: Process | None,
    settings: TrainingSettings,
    train: Any,
    valid: Any,
    folder: Path,
    resume: str | None = None,
) -> DiscDiffModel:
    """Train a diffusion model (or, with process None, the causal twin) and save it to `folder`, checkpoints beside it.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint `resume="auto"` goes on from.
    """
    where = replace(layout, attention="causal") if process is None else layout
    model = DiscDiffModel.seeded(config_for(where, network, process), settings.seed)
    checkpoints = folder.with_name(f"{folder.name}_training")
    objective = objective_for(process, model.config.prediction, where.block)
    trainer = DiffusionTrainer(model, settings, objective, where, train, valid, output_dir=checkpoints)
    trainer.train(resume)
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    trainer.save_model(folder)
    return DiscDiffModel.from_pretrained(folder).to(trainer.args.device).eval()
