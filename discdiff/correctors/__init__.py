"""Correctors: kernels that improve tokens already drawn without moving time; `Chain` puts them after any kernel."""

from discdiff.correctors.base import Corrector, standing
from discdiff.correctors.budget import Budget
from discdiff.correctors.gibbs import Gibbs
from discdiff.correctors.informed import Informed
from discdiff.correctors.renoise import Renoise

__all__ = ["Budget", "Corrector", "Gibbs", "Informed", "Renoise", "standing"]
