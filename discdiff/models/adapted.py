"""A trained network for rows of another kind: new modalities, levels in a slot, and things it is told that are no tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch

from discdiff.config import checked, to_dict
from discdiff.layout import Layout
from discdiff.models.blocks import initialise
from discdiff.models.hosted import HostedModel
from discdiff.models.network import Network
from discdiff.models.transformer import DiscDiffModel

_OWN = ("inputs.pack.", "outputs.", "features.")  # weights that a checkpoint of plain rows does not have


def adapted(network: Network, layout: Layout, features: Mapping[str, Any] | None = None, seed: int = 0) -> Network:
    """`network` as one of rows of `layout`, whose vocabulary is its own with modalities appended, told `features` (each the
    fields of a `Told`), of an absorbing process. All its weights stay, so that rows of what it knew keep their hidden states
    as long as they are told nothing; what is new is drawn by `seed`. Weights of a stock model are used, not copied.

    Raises ValueError for a network of another kind, one that packs or is told something already, for packed rows of a stock
    model, and for a layout longer than a stock model's rows.
    """
    kind = type(network).__name__
    checked("network", kind, type(network) in (DiscDiffModel, HostedModel), "give a DiscDiffModel or a HostedModel")
    config = network.config
    plain = not config.features and getattr(config, "max_depth", 1) == 1
    checked("network", kind, plain, "it packs levels or is told features already: begin with one of text")
    depth = max(layout.depth(each) for each in layout.segments) if layout.packed else 1
    hosted = isinstance(network, HostedModel)
    checked(
        "packed", layout.packed, not (hosted and depth > 1), "a stock model has one token in a slot: give a flat layout"
    )
    network.resize(layout.vocab)
    config = copy.deepcopy(network.config)
    config.vocab, config.layout = json.loads(layout.vocab.to_json()), to_dict(layout)
    config.features, config.process = dict(features or {}) or None, None
    slots = len(layout.tables().lead)
    if isinstance(network, HostedModel):
        most = network.family.positions(network.host.config)
        checked("layout", slots, slots <= most, f"this {network.host.config.model_type} has {most} positions")
        config.max_length = slots
        made: Any = HostedModel(config, network.host)
        generator = torch.Generator().manual_seed(seed)
        for module in made.features.modules() if made.features else ():
            initialise(module, network.host.config.initializer_range, generator)
        return made.to(network.dtype)
    config.max_length, config.max_depth = max(config.max_length, slots), depth
    made = DiscDiffModel.seeded(config, seed, network.dtype)
    missing, unknown = made.load_state_dict(network.state_dict(), strict=False)
    wrong = [*unknown, *(name for name in missing if not name.startswith(_OWN))]
    checked("weights", wrong, not wrong, "they are not those of the same network")
    return made
