"""Energy correction (EDLM arXiv 2410.21357): whole sequences re-weighted by how good they are together."""

from discdiff.energy.base import Candidates, Energy, Scaled, Sum, TokenEnergy, energies
from discdiff.energy.resampled import EnergyResampled

__all__ = ["Candidates", "Energy", "EnergyResampled", "Scaled", "Sum", "TokenEnergy", "energies"]
