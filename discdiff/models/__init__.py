"""The library's transformer, registered with the Auto classes of transformers when this package is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from discdiff.models.auto import load_network, network_type
from discdiff.models.cache import KVCache
from discdiff.models.config import DiscDiffConfig, NetworkConfig
from discdiff.models.network import DiscDiffOutput, Network
from discdiff.models.transformer import DiscDiffModel

AutoConfig.register("discdiff", DiscDiffConfig, exist_ok=True)
AutoModel.register(DiscDiffConfig, DiscDiffModel, exist_ok=True)
AutoModelForMaskedLM.register(DiscDiffConfig, DiscDiffModel, exist_ok=True)

__all__ = [
    "DiscDiffConfig",
    "DiscDiffModel",
    "DiscDiffOutput",
    "KVCache",
    "Network",
    "NetworkConfig",
    "load_network",
    "network_type",
]
