"""The named samplers: one plain table of parts. `sampler(name, process, **knobs)` builds one; docs/samplers.md lists them.

A preset is a function `(process, knobs...) -> Recipe`; its keyword arguments are the knobs, declared here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from discdiff.clocks import Clock, Plateau
from discdiff.config import checked
from discdiff.correctors import Budget, Gibbs, Informed, Renoise
from discdiff.denoisers import Sharpen
from discdiff.energy import EnergyResampled
from discdiff.kernels import Ancestral, Chain, Commit, FirstHitting, Kernel
from discdiff.kernels.recheck import Discounted, Recheck
from discdiff.kernels.remask import Remask
from discdiff.kernels.remdm_conf import RemaskConf
from discdiff.kernels.replan import Replan
from discdiff.kernels.strategies import DFM, Cap, ForwardBackward, Held, Rescale, Switch
from discdiff.processes import Process
from discdiff.rules import EntropyBound, Factor, Quota, Rule, Stable, Threshold
from discdiff.sampling.lengths import FreeBlocks
from discdiff.schedules import Arccos, CosineMD4
from discdiff.scores import Annealed, Candidate, Critic, Lattice, LeftToRight, Random, Score, Sure

EXACT, LIMIT, BIASED = "exact", "in the limit", "biased"
"""What an exact denoiser's law becomes: kept (one position per step), kept in the limit of many steps, changed."""


class Recipe(NamedTuple):
    """A kernel, the clock it runs under, and a wrapper around the denoiser, inside temperature and truncation."""

    kernel: Kernel
    clock: Clock | None = None
    wrap: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Preset:
    """One line of the table: how it is built, what it does to the law, its paper, what it is, and what it changes of the
    settings every sampler takes.
    """

    build: Callable[..., Recipe]
    law: str
    paper: str
    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


def ancestral(process: Process, block: int = 0) -> Recipe:
    """The reverse process at the grid's stride; block by block where `block` positions are asked for."""
    return Recipe(Ancestral(process), _blocks(block))


def _blocks(size: int) -> Clock | None:
    checked("block", size, size >= 0, "0 (one block) or more positions")
    return FreeBlocks(size) if size else None


def _commit(process: Any, score: Score, rule: Rule, block: int = 0, **options: Any) -> Recipe:
    return Recipe(Commit(score, rule, process, **options), _blocks(block))


def _order(score: Score) -> Callable[..., Recipe]:
    return lambda process, block=0: _commit(process, score, Quota(), block)


def maskgit(process: Any, noise: float = 4.5) -> Recipe:
    """Drawn tokens of highest probability first, with fading noise, by the cosine quota."""
    return _commit(process, Annealed(Candidate(), noise), Quota(CosineMD4()))


def llada(process: Any, block: int = 0) -> Recipe:
    """Drawn tokens of highest probability first, by the linear quota, block by block."""
    return _commit(process, Candidate(), Quota(), block)


def dream(process: Any, order: str = "entropy", noise: float = 0.0, block: int = 0) -> Recipe:
    """Dream's `alg`: "maskgit_plus" (confidence), "topk_margin" or "entropy", with noise that does not fade."""
    names = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}
    checked("order", order, order in names, f"choose from {', '.join(names)}")
    return _commit(process, Annealed(Sure(names[order]), noise, "constant"), Quota(), block)


def fast_dllm(process: Any, tau: float = 0.9, block: int = 0) -> Recipe:
    """Every token of confidence at least tau, at least one per step."""
    return _commit(process, Sure("confidence"), Threshold(tau), block)


def fast_dllm_factor(process: Any, factor: float = 1.0, block: int = 0) -> Recipe:
    """As many of the surest tokens as the factor rule allows."""
    return _commit(process, Sure("confidence"), Factor(factor), block)


def llada2(process: Any, tau: float = 0.95, edit: float = 0.9, block: int = 0) -> Recipe:
    """Threshold decoding that replaces committed tokens of its block for which the network now prefers another."""
    return _commit(process, Sure("confidence"), Threshold(tau), block, edit=edit)


def klass(process: Any, tau: float = 0.9, eps: float = 0.01, history: int = 2, block: int = 0) -> Recipe:
    """Every token that is sure and whose prediction has stood still for `history` steps."""
    return _commit(process, Sure("confidence"), Stable(tau, eps, history), block)


def purity(process: Any, noise: float = 1.0, sharpen: float = 1.0) -> Recipe:
    """Positions drawn by their purity, predictions sharpened by it."""
    score = Annealed(Sure("confidence"), noise, "constant")
    return _commit(process, score, Quota())._replace(wrap=partial(Sharpen, r=sharpen) if sharpen else None)


def token_critic(process: Any, critic: Any = None, noise: float = 1.0) -> Recipe:
    """All positions ranked by a critic `(state, step) -> (batch, length)` of the whole candidate, the worst masked again."""
    checked("critic", critic, callable(critic), "give a function (state, step) -> (batch, length), higher is better")
    return Recipe(Replan(Annealed(Critic(critic), noise), CosineMD4(), process=process))


def dd_vla(
    process: Any,
    score: str = "confidence",
    noise: float = 1.0,
    low: float = 0.1,
    high: float = 0.4,
    drop: float = 0.3,
    share: float = 0.1,
    limit: int = 2,
    rescore: str = "visible",
) -> Recipe:
    """Surest positions first ("confidence" or "margin") with fading noise; what has lost its probability is masked again."""
    names = ("confidence", "margin")
    checked("score", score, score in names, f"choose from {', '.join(names)}")
    commit = Commit(Annealed(Sure(score), noise), Quota(CosineMD4()), process)
    return Recipe(Recheck(commit, low, high, drop, share, limit, rescore))


def dd_vla_released(process: Any, noise: float = 1.0) -> Recipe:
    """All positions in one ranking of drawn tokens with fading noise, committed ones at a probability that falls to 0."""
    return Recipe(Replan(Annealed(Discounted(Candidate()), noise), CosineMD4(), process=process))


def ud_vla(process: Any, noise: float = 1.0, jointly: bool = False) -> Recipe:
    """Future image and actions in one run, each ranked by confidence with fading noise, by the cosine quota."""
    return _commit(process, Annealed(Sure("confidence"), noise), Quota(CosineMD4()), jointly=jointly)


def ud_vla_released(process: Any, noise: float = 1.0, jointly: bool = True) -> Recipe:
    """As released: drawn tokens of all modalities in one ranking, noise that fades by the product of its factors."""
    return _commit(process, Annealed(Candidate(), noise, "cumulative"), Quota(CosineMD4()), jointly=jointly)


def edlm(
    process: Process,
    energy: Any = None,
    k: int = 2,
    window: float = 1.0,
    energy_temperature: float = 1.0,
    block: int = 0,
) -> Recipe:
    """Ancestral steps whose clean tokens are chosen together, among k candidates, by an energy."""
    checked("energy", energy, callable(energy), "give (candidates, state, t) -> (batch, k), low is good")
    return Recipe(Ancestral(process, EnergyResampled(energy, k, window, energy_temperature)), _blocks(block))


def remdm_switch(process: Process, eta: float = 0.02, t_switch: float = 0.5) -> Recipe:
    return Recipe(Remask(process, Switch(Cap(eta), t_switch)))


def remdm_loop(
    process: Any, eta: float = 0.02, t_on: float = 0.55, t_off: float = 0.05, alpha_on: float = 0.9
) -> Recipe:
    """Fill up to alpha_on, then re-mask and refill while time stands still, then finish."""
    clock = Plateau(t_on, t_off, alpha_on, process.schedule)
    return Recipe(Remask(process, Held(Cap(eta))), clock)


def gibbs(process: Process, calls: int = 1, parallel: int = 1, budget: int = 0, start: float = 0.5) -> Recipe:
    """Ancestral steps, each followed by `calls` redraws of one token given all others."""
    return _corrected(process, Gibbs(calls, parallel, process), budget, start)


def informed(process: Process, k: int = 4, noise: float = 1.0, budget: int = 0, start: float = 0.5) -> Recipe:
    """Ancestral steps, each followed by a redraw of the k least likely tokens."""
    return _corrected(process, Informed(k, noise, process=process), budget, start)


def renoise(process: Process, back: float = 1.0, budget: int = 0, start: float = 1.0) -> Recipe:
    """Ancestral steps, each followed by a step back in time and forward again."""
    return _corrected(process, Renoise(back, process), budget, start)


def _corrected(process: Process, corrector: Any, budget: int, start: float) -> Recipe:
    within = Budget(corrector, budget or None, start=start)
    return Recipe(Chain((Ancestral(process), within)))


_GREEDY = {"temperature": 0.0}

PRESETS: dict[str, Preset] = {
    "ancestral": Preset(ancestral, LIMIT, "MDLM 2406.07524, BD3LM 2503.09573", "reverse process, in blocks if asked"),
    "first_hitting": Preset(
        lambda process: Recipe(FirstHitting(process)), EXACT, "2409.02908", "one token per step at its own random time"
    ),
    "random": Preset(_order(Random()), EXACT, "LLaDA 2502.09992", "random order"),
    "left_to_right": Preset(_order(LeftToRight()), EXACT, "-", "reading order, as an autoregressive model"),
    "halton": Preset(
        lambda process: _commit(process, Lattice(), Quota(Arccos())), EXACT, "2503.17076", "low-discrepancy lattice order"
    ),
    "confidence": Preset(_order(Sure("confidence")), EXACT, "-", "surest position first"),
    "margin": Preset(_order(Sure("margin")), EXACT, "2502.06768", "largest lead of the best token first"),
    "entropy": Preset(_order(Sure("entropy")), EXACT, "-", "lowest entropy first"),
    "maskgit": Preset(maskgit, BIASED, "2202.04200", "likeliest drawn tokens first, fading noise", {"steps": 12}),
    "llada": Preset(llada, BIASED, "2502.09992", "low-confidence re-masking, greedy", _GREEDY),
    "dream": Preset(dream, EXACT, "Dream 2508.15487", "Dream's orders", {"temperature": 0.2}),
    "fast_dllm": Preset(fast_dllm, BIASED, "2505.22618", "all above a confidence threshold, greedy", _GREEDY),
    "fast_dllm_factor": Preset(fast_dllm_factor, BIASED, "2505.22618", "factor rule, greedy", _GREEDY),
    "llada2": Preset(llada2, BIASED, "LLaDA2", "threshold, with editing of committed tokens, greedy", _GREEDY),
    "eb": Preset(
        lambda process, gamma=0.1, block=0: _commit(process, Sure("entropy"), EntropyBound(gamma), block), BIASED,
        "2505.24857", "as many tokens as an entropy bound allows",
    ),
    "klass": Preset(klass, BIASED, "2511.05664", "sure and stable tokens, greedy", _GREEDY),
    "purity": Preset(purity, BIASED, "2205.16007", "purity prior and sharpening of Improved VQ-Diffusion"),
    "p2": Preset(
        lambda process, eta=1.0: Recipe(Replan(Candidate(), eta=eta, process=process)), BIASED, "2502.03540",
        "path planning: all positions ranked by the network itself, the worst masked again",
    ),
    "token_critic": Preset(token_critic, BIASED, "2209.04439", "all positions ranked by a critic"),
    "dd_vla": Preset(
        dd_vla, BIASED, "DD-VLA 2508.20072", "surest positions first, doubtful tokens masked again", {"steps": 12}
    ),
    "dd_vla_released": Preset(
        dd_vla_released, BIASED, "DD-VLA 2508.20072", "all positions ranked, committed ones ever lower", {"steps": 12}
    ),
    "ud_vla": Preset(
        ud_vla, EXACT, "UD-VLA 2511.01718", "surest positions of each modality first, fading noise", {"steps": 72}
    ),
    "ud_vla_released": Preset(
        ud_vla_released, BIASED, "UD-VLA 2511.01718", "likeliest drawn tokens of all modalities first", {"steps": 72}
    ),
    "edlm": Preset(edlm, BIASED, "EDLM 2410.21357", "ancestral, whole candidates re-weighted by an energy"),
    "remdm_cap": Preset(
        lambda process, eta=0.02: Recipe(Remask(process, Cap(eta))), LIMIT, "2503.00307", "re-masking, capped chance"
    ),
    "remdm_rescale": Preset(
        lambda process, eta=0.02: Recipe(Remask(process, Rescale(eta))), LIMIT, "2503.00307", "re-masking, rescaled chance"
    ),
    "remdm_switch": Preset(remdm_switch, LIMIT, "2503.00307", "re-masking late in the run only"),
    "remdm_loop": Preset(remdm_loop, BIASED, "2503.00307", "re-masking while time stands still"),
    "remdm_conf": Preset(
        lambda process, eta=0.04: Recipe(RemaskConf(process, Rescale(eta))), BIASED, "2503.00307",
        "re-masking of the tokens that were least sure",
    ),
    "forward_backward": Preset(
        lambda process: Recipe(Remask(process, ForwardBackward())), LIMIT, "2205.14987", "forward-backward as re-masking"
    ),
    "dfm": Preset(
        lambda process, beta=1.0: Recipe(Remask(process, DFM(beta))), LIMIT, "2407.15595", "discrete flow matching corrector"
    ),
    "gibbs": Preset(gibbs, LIMIT, "-", "ancestral with Gibbs redraws"),
    "informed": Preset(informed, BIASED, "2407.21243", "ancestral with the informed corrector"),
    "renoise": Preset(renoise, LIMIT, "2205.14987", "ancestral with a forward-backward corrector"),
}  # fmt: skip
