"""discdiff: discrete diffusion for text, image, audio, motion, video and action tokens in one sequence.

Names resolve lazily, so that importing the package costs little more than importing torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "discdiff.types": ("Alphabet", "Info", "State", "Step"),
    "discdiff.noise": ("Noise", "row_seeds"),
    "discdiff.schedules": ("Arccos", "CosineMD4", "Geometric", "Linear", "Polynomial", "Schedule", "Square"),
    "discdiff.processes": ("Absorbing", "Dense", "Interpolating", "MaskOrReplace", "PerSegment", "Process", "Uniform"),
    "discdiff.layout": ("Layout", "Modality", "Segment", "TokenBatch", "VocabLayout", "make_batch", "pack"),
    "discdiff.clocks": ("Blocks", "Importance", "Plateau", "Priority", "Shared", "Windows"),
    "discdiff.denoisers": (
        "Allowed",
        "ApproximateDualCached",
        "ApproximatePrefixCached",
        "Banned",
        "BlockCached",
        "Autoguided",
        "ClassifierFree",
        "EndPolicy",
        "FunctionDenoiser",
        "ModelDenoiser",
        "Nucleus",
        "NullFeatures",
        "Prediction",
        "PrefixCached",
        "Sharpen",
        "SkipUnchanged",
        "Temperature",
        "TopK",
        "Unprompted",
        "guidance_schedule",
        "table",
        "template",
    ),
    "discdiff.energy": (
        "AutoregressiveEnergy",
        "Energy",
        "EnergyModel",
        "EnergyResampled",
        "LearnedEnergy",
        "NoiseContrastive",
        "TokenEnergy",
        "causal_lm_log_probs",
        "log_partition",
        "marginal_nelbo",
        "model_log_probs",
    ),
    "discdiff.distill": ("Euler", "euler_rates", "hand_made", "jump_your_steps", "measure"),
    "discdiff.values": ("CodeValues",),
    "discdiff.maskers": ("FullyMasked",),
    "discdiff.proposals": ("Factorised", "Proposal"),
    "discdiff.scores": (
        "Annealed",
        "Candidate",
        "Concentrated",
        "Critic",
        "DepthPrefix",
        "Lattice",
        "LeftToRight",
        "Random",
        "Score",
        "Sure",
        "UserScore",
    ),
    "discdiff.rules": ("EntropyBound", "Factor", "Quota", "Rule", "Stable", "Threshold"),
    "discdiff.kernels": (
        "Ancestral",
        "Cap",
        "Chain",
        "ClassifierGuidance",
        "Commit",
        "DFM",
        "EarlyEnd",
        "FirstHitting",
        "FirstOrderGuidance",
        "ForwardBackward",
        "Held",
        "Kernel",
        "PosteriorGuidance",
        "Recheck",
        "Remask",
        "RemaskConf",
        "Replan",
        "Rescale",
        "Strategy",
        "Switch",
        "Valued",
    ),
    "discdiff.correctors": ("Budget", "Corrector", "Gibbs", "Informed", "Renoise"),
    "discdiff.anchoring": (
        "Anchored",
        "Descent",
        "Measured",
        "Relaxed",
        "Selected",
        "SoftDecode",
        "SplitGibbs",
        "StarShaped",
        "StarTable",
        "Steered",
        "best_of",
    ),
    "discdiff.joint": ("Joint",),
    "discdiff.sampling": (
        "PRESETS",
        "FreeBlocks",
        "Grid",
        "Sampler",
        "generate",
        "iterate",
        "prompts",
        "sample",
        "sampler",
        "stride_sample",
    ),
    "discdiff.jobs": ("job_estimate", "read_job", "run_job", "run_likelihood_job"),
    "discdiff.unified": ("Part", "Template", "UnifiedTokenizer"),
    "discdiff.models": (
        "DiscDiffConfig",
        "DiscDiffModel",
        "DitConfig",
        "DitModel",
        "HostedConfig",
        "HostedModel",
        "load_network",
    ),
    "discdiff.objectives": ("Autoregressive", "BlockElbo", "Dropped", "Elbo", "Jitter", "Ordinal"),
    "discdiff.training": ("DiffusionTrainer", "TrainingSettings"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'discdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
