"""Sampling loops of public repositories, restated plainly from their descriptions: what `benchmarks.samplers` is held to.

Each keeps what makes the original cost what it costs: logits of the whole vocabulary at all positions, noise over the
vocabulary, float64 where the original has it. A network is `tokens (batch, length) -> logits (batch, length, columns)`;
a loop yields the tokens after each of its steps, so that the caller may stop it early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]
FAR = -1e6


def ancestral(network: Network, tokens: Tensor, mask: int, steps: int, noise: torch.Generator) -> Iterator[Tensor]:
    """MDLM's "ddpm_cache" (arXiv 2406.07524): one token-or-stay categorical over the vocabulary at every position by
    exponential noise; the law is kept while no token of the batch has changed; a clean-up call takes the arg-max of
    what is left. The last column of the logits is the mask's.
    """
    times = torch.linspace(1, 1e-5, steps + 1).tolist()
    law: Tensor | None = None
    for t, s in zip(times, times[1:], strict=False):
        if law is None:
            law = _substituted(network(tokens), tokens, mask).exp()
        step = law * (t - s)  # not divided by t: the arg-max does not mind
        step[:, :, mask] = s
        after = torch.where(tokens == mask, _exponential_race(step, noise), tokens)
        if not torch.equal(after, tokens):
            law = None
        tokens = after
        yield tokens
    yield _substituted(network(tokens), tokens, mask).argmax(-1)


def _substituted(logits: Tensor, tokens: Tensor, mask: int) -> Tensor:
    """Log law of the clean token: never the mask, and a revealed token is itself."""
    logits[:, :, mask] = FAR
    logits = logits - logits.logsumexp(-1, keepdim=True)
    known = tokens != mask
    logits[known] = FAR
    logits[known, tokens[known]] = 0
    return logits


def _exponential_race(p: Tensor, noise: torch.Generator) -> Tensor:
    u = torch.rand(p.shape, generator=noise, dtype=p.dtype)
    return (p / (1e-10 - (u + 1e-10).log())).argmax(-1)


def low_confidence(
    network: Network,
    tokens: Tensor,
    mask: int,
    steps: int,
    noise: torch.Generator,
    prompt: int,
    block: int,
    temperature: float,
) -> Iterator[Tensor]:
    """LLaDA (arXiv 2502.09992): block by block, a candidate at every position (float64 Gumbel noise above temperature 0),
    of which the most probable of the block are kept, the same number in every step.
    """
    blocks = (tokens.shape[1] - prompt) // block
    count = block // (steps // blocks)
    for end in range(prompt + block, tokens.shape[1] + 1, block):
        for _ in range(steps // blocks):
            masked = tokens == mask
            logits = network(tokens)
            candidate = _perturbed(logits, temperature, noise).argmax(-1)
            p = logits.softmax(-1).gather(-1, candidate[..., None])[..., 0]
            p[:, end:] = -math.inf
            confidence = torch.where(masked, p, -math.inf)
            candidate = torch.where(masked, candidate, tokens)
            kept = torch.zeros_like(masked)
            for row in range(len(tokens)):
                kept[row, confidence[row].topk(count).indices] = True
            tokens = torch.where(kept, candidate, tokens)
            yield tokens


def confident(
    network: Network,
    tokens: Tensor,
    mask: int,
    steps: int,
    noise: torch.Generator,
    prompt: int,
    threshold: float,
    temperature: float,
) -> Iterator[Tensor]:
    """Fast-dLLM without a cache (arXiv 2505.22618), one block after the prompt: LLaDA's candidates with probabilities in
    float64; all at least `threshold` are kept, and always the best one.
    """
    for _ in range(steps):
        masked = tokens == mask
        logits = network(tokens)
        candidate = _perturbed(logits, temperature, noise).argmax(-1)
        p = logits.double().softmax(-1).gather(-1, candidate[..., None])[..., 0]
        confidence = torch.where(masked, p, -math.inf)
        candidate = torch.where(masked, candidate, tokens)
        kept = torch.zeros_like(masked)
        for row in range(len(tokens)):
            best = confidence[row].topk(int(masked[row].sum()))
            sure = best.values >= threshold
            sure[:1] = True
            kept[row, best.indices[sure]] = True
        tokens = torch.where(kept, candidate, tokens)
        yield tokens


def _perturbed(logits: Tensor, temperature: float, noise: torch.Generator) -> Tensor:
    """exp(logits) / (-log U)^temperature in float64, whose arg-max is a draw at that temperature."""
    if temperature == 0:
        return logits
    wide = logits.double()
    u = torch.rand(wide.shape, generator=noise, dtype=torch.float64)
    return wide.exp() / (-u.log()) ** temperature


class MaskAndReplace(NamedTuple):
    """Log coefficients of VQ-Diffusion's process: kept, moved to each code and masked, from 0 to t, to s, and from s to t;
    `lived` is log(1 - masked).
    """

    t: tuple[float, float, float, float]
    s: tuple[float, float, float, float]
    step: tuple[float, float, float, float]


def mask_and_replace(
    logits: Tensor, log_x: Tensor, process: MaskAndReplace, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """VQ-Diffusion's reverse step (arXiv 2111.14822 eq. 5, 11), all in log space over (batch, codes + 1, length): float64
    log-softmax, the whole posterior, a Gumbel draw, the drawn symbols as log one-hots. Also returns the log posterior.
    """
    log_x0 = logits.double().log_softmax(1).float()
    log_x0 = torch.cat([log_x0, torch.full_like(log_x0[:, :1], -70.0)], 1).clamp(-70, 0)
    masked = (log_x.argmax(1) == log_x.shape[1] - 1)[:, None]
    never = torch.full_like(log_x[:, -1:], math.log(1e-30))
    log_qt = torch.cat([_spread(log_x, process.t)[:, :-1], never], 1)
    log_qt = torch.where(masked, torch.full_like(log_qt, process.t[2]), log_qt)  # q(the mask | any code)
    one = torch.cat([_spread(log_x, process.step)[:, :-1], never], 1)
    to_mask = torch.cat([torch.full_like(one[:, :-1], process.step[2]), torch.zeros_like(never)], 1)
    one = torch.where(masked, to_mask, one)
    q = torch.cat([log_x0[:, :-1] - log_qt[:, :-1], never], 1)
    total = q.logsumexp(1, keepdim=True)
    log_p = (_spread(q - total, process.s) + one + total).clamp(-70, 0)
    u = torch.rand(log_p.shape, generator=noise)
    symbols = (log_p - (1e-30 - (u + 1e-30).log()).log()).argmax(1)
    hot = F.one_hot(symbols, log_x.shape[1]).movedim(-1, 1)
    return hot.float().clamp(min=1e-30).log(), log_p


def _spread(log_x: Tensor, coefficients: tuple[float, float, float, float]) -> Tensor:
    """log of the process's matrix times x: a code keeps, or is moved; all that lives may be masked."""
    kept, moved, masked, lived = coefficients
    codes = torch.logaddexp(log_x[:, :-1] + kept, torch.full_like(log_x[:, :-1], moved))
    mask = torch.logaddexp(log_x[:, -1:] + lived, torch.full_like(log_x[:, -1:], masked))
    return torch.cat([codes, mask], 1)
