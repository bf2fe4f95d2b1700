"""The library's networks, registered with the Auto classes of transformers when this package is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from discdiff.models.adapted import adapted
from discdiff.models.auto import load_network, network_type
from discdiff.models.cache import KVCache
from discdiff.models.config import DiscDiffConfig, NetworkConfig
from discdiff.models.dit import DitConfig, DitModel
from discdiff.models.hosted import HostedConfig, HostedModel
from discdiff.models.network import DiscDiffOutput, Network
from discdiff.models.transformer import DiscDiffModel

for _config, _model in ((DiscDiffConfig, DiscDiffModel), (DitConfig, DitModel), (HostedConfig, HostedModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForMaskedLM.register(_config, _model, exist_ok=True)

__all__ = [
    "DiscDiffConfig",
    "DiscDiffModel",
    "DiscDiffOutput",
    "DitConfig",
    "DitModel",
    "HostedConfig",
    "HostedModel",
    "KVCache",
    "Network",
    "NetworkConfig",
    "adapted",
    "load_network",
    "network_type",
]
