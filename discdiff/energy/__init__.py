"""Energy correction (EDLM arXiv 2410.21357): whole sequences re-weighted by how good they are together."""

from discdiff.energy.autoregressive import AutoregressiveEnergy, causal_lm_log_probs, model_log_probs
from discdiff.energy.base import Candidates, Energy, Scaled, Sum, TokenEnergy, energies
from discdiff.energy.contrastive import LearnedEnergy, NoiseContrastive, contrastive_loss
from discdiff.energy.likelihood import log_partition, marginal_nelbo
from discdiff.energy.network import EnergyConfig, EnergyModel
from discdiff.energy.resampled import EnergyResampled

__all__ = [
    "AutoregressiveEnergy",
    "Candidates",
    "Energy",
    "EnergyConfig",
    "EnergyModel",
    "EnergyResampled",
    "LearnedEnergy",
    "NoiseContrastive",
    "Scaled",
    "Sum",
    "TokenEnergy",
    "causal_lm_log_probs",
    "contrastive_loss",
    "energies",
    "log_partition",
    "marginal_nelbo",
    "model_log_probs",
]
