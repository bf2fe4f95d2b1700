"""Corruption processes: one contract, four closed-form families, a dense oracle, and one process per segment."""

from discdiff.processes.base import Marginal, Process
from discdiff.processes.dense import Dense
from discdiff.processes.families import Absorbing, Interpolating, MaskOrReplace, Uniform, vq_paper, vq_released
from discdiff.processes.segments import PerSegment, check_layout
from discdiff.schedules import SCHEDULES

PROCESSES: dict[str, type] = {p.__name__: p for p in (Absorbing, Uniform, MaskOrReplace, Interpolating, PerSegment)}
"""Processes by name, as a saved configuration and the command line know them."""

TYPES: dict[str, type] = {**PROCESSES, **{s.__name__: s for s in SCHEDULES.values()}}
"""Everything `discdiff.config.from_dict` needs to rebuild a saved process."""

__all__ = [
    "PROCESSES",
    "TYPES",
    "Absorbing",
    "Dense",
    "Interpolating",
    "Marginal",
    "MaskOrReplace",
    "PerSegment",
    "Process",
    "Uniform",
    "check_layout",
    "vq_paper",
    "vq_released",
]
