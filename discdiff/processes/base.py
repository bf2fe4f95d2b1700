"""The process contract: everything a sampler or a loss asks of a corruption process, in closed form and O(size).

Symbols 0..K-1 are tokens and K is the mask; S = K + 1 for every process, a process without a mask gives it probability 0.
All marginals are q_t(z | x0) = a_t 1[z = x0] + b_t(z) with b_t = u_t on tokens and g_t on the mask, so nothing needs an
S x S matrix (MDLM arXiv 2406.07524, VQ-Diffusion 2111.14822, UDLM 2412.10193, GIDD 2503.04482).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from discdiff.types import Alphabet

NEG_INF = float("-inf")


class Marginal(NamedTuple):
    """Keep coefficient, noise on each token, noise on the mask; float64, broadcastable. Also used for derivatives."""

    keep: Tensor
    token: Tensor
    mask: Tensor


def alphabet_size(alphabet: int | Alphabet) -> Any:
    """Number K of ordinary symbols."""
    return alphabet.size if isinstance(alphabet, Alphabet) else alphabet


def as_time(t: float | Tensor, like: Tensor) -> Tensor:
    """Time as float64 on `like`'s device, trailing axes added so that (batch,) meets (batch, length)."""
    time = torch.as_tensor(t, dtype=torch.float64, device=like.device)
    return time if time.ndim in (0, like.ndim) else time.reshape(*time.shape, *[1] * (like.ndim - time.ndim))


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b with 0 / 0 = 0."""
    return torch.where(a == 0, 0.0, a / b)


def safe_log(p: Tensor) -> Tensor:
    """log p, with gradient 0 instead of nan where p is 0 and the log -inf."""
    return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), NEG_INF)


@dataclass(frozen=True)
class Process:
    """A corruption process with two-valued noise; subclasses give `marginal`, its derivative, and the rates.

    Symbols are int64 of any shape; times are scalars, per row or per position, in [0, 1] with 0 clean and 1 noise;
    `alphabet` is the number of symbols K, or an `Alphabet` whose fields broadcast to the symbols.
    """

    mask_absorbing: ClassVar[bool] = False

    # -- what a subclass defines ------------------------------------------------------------------------------------

    def marginal(self, t: Tensor, size: Any) -> Marginal:
        """(a_t, u_t, g_t) of q_t(z | x0) = a_t 1[z = x0] + b_t(z)."""
        raise TypeError(f"{type(self).__name__} defines no marginal")

    def dmarginal(self, t: Tensor, size: Any) -> Marginal:
        """Time derivatives of `marginal`."""
        raise TypeError(f"{type(self).__name__} defines no dmarginal")

    def transition(self, s: Tensor, t: Tensor, size: Any) -> Marginal:
        """(a_ts, u_ts, g_ts) of the kernel s -> t out of a token: Q(y -> z) = a_ts 1[y = z] + b_ts(z)."""
        early, late = self.marginal(s, size), self.marginal(t, size)
        keep = ratio(late.keep, early.keep)
        token, mask = (late_b - keep * early_b for late_b, early_b in zip(late[1:], early[1:], strict=True))
        return Marginal(keep, token.clamp(min=0), mask.clamp(min=0))

    def rates(self, t: Tensor, size: Any) -> tuple[Tensor, Tensor]:
        """Instantaneous rates y -> z out of a token, to (each other token, the mask): rho = b' - (a'/a) b."""
        now, change = self.marginal(t, size), self.dmarginal(t, size)
        slope = change.keep / now.keep
        return change.token - slope * now.token, change.mask - slope * now.mask

    # -- sampling the forward process -------------------------------------------------------------------------------

    def at(self, alphabet: int | Alphabet) -> Process:
        """The process of positions that lie in one segment (itself, except for `PerSegment`)."""
        return self

    def require(self, names: tuple[str, ...]) -> None:
        """Raise ValueError unless this process covers the segments `names`."""

    def prior(self, uniform: Tensor, alphabet: int | Alphabet) -> Tensor:
        """Symbols from q_1 = a_1 / K + b_1, by inverse CDF from one uniform each."""
        size = alphabet_size(alphabet)
        now = self.marginal(uniform.new_ones(()), size)
        rest = (uniform - now.mask) / (1 - now.mask).clamp(min=1e-300)
        symbol = torch.minimum((rest * size).long(), torch.as_tensor(size, device=uniform.device) - 1)
        return torch.where(uniform < now.mask, size, symbol)

    def corrupt(self, x0: Tensor, t: float | Tensor, uniform: Tensor, alphabet: int | Alphabet) -> Tensor:
        """x_t ~ q_t(. | x0) by inverse CDF from one uniform each: keep, else mask, else a uniform token."""
        size, now = alphabet_size(alphabet), self.marginal(as_time(t, x0), alphabet_size(alphabet))
        rest = (uniform - now.keep - now.mask) / (now.token * size).clamp(min=1e-300)
        symbol = torch.minimum((rest.clamp(min=0) * size).long(), torch.as_tensor(size, device=x0.device) - 1)
        noisy = torch.where(uniform < now.keep + now.mask, size, symbol)
        return torch.where(uniform < now.keep, x0, noisy)

    def log_marginal(self, log_x0: Tensor, t: float | Tensor) -> Tensor:
        """log q_t(. | p0) = log(a_t p0 + b_t) over all S states, `(..., K) -> (..., K + 1)`."""
        now = _columns(self.marginal(as_time(t, log_x0[..., 0]), log_x0.shape[-1]), log_x0)
        p = log_x0.exp()
        return safe_log(torch.cat([now.keep * p + now.token, p.sum(-1, keepdim=True) * now.mask], -1))

    # -- the reverse step -------------------------------------------------------------------------------------------

    def log_posterior(self, log_x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """log p(x_s | x_t) = log sum_v p(x0 = v) q(x_s | x_t, v), mixture form, `(..., K) -> (..., K + 1)`.

        Exact iff log_x0 is the own posterior p(x0_i | x_t); in log_x0's precision. Source: D3PM (arXiv 2107.03006) eq. 4.
        """
        law = self.posterior(log_x0.exp(), x, t, s)
        return safe_log(law) if law.requires_grad else law.log_()

    def posterior(self, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """p(x_s | x_t) itself, from probabilities `x0` of the clean token, `(..., K) -> (..., K + 1)`; see `log_posterior`."""
        size = x0.shape[-1]
        t, s = as_time(t, x), as_time(s, x)
        step, early, late = self.transition(s, t, size), self.marginal(s, size), self.marginal(t, size)
        is_mask = x == size
        here = x.clamp(max=size - 1)[..., None]  # at a mask no column is special: `kept` is 0 there

        def columns(*values: Any) -> tuple[Tensor, ...]:
            wide = torch.stack([torch.as_tensor(value, device=x.device).expand(x.shape) for value in values])
            return wide.to(x0)[..., None].unbind(0)

        stay, back = (1.0, 0.0) if self.mask_absorbing else (step.keep + step.mask, step.token)
        other, kept, into, stays, to_mask, keep, token = columns(
            torch.where(is_mask, late.mask, late.token),
            torch.where(is_mask, 0.0, late.keep),
            torch.where(is_mask, step.mask, step.token),
            torch.where(is_mask, 0.0, step.keep),
            torch.where(is_mask, stay * early.mask, back * early.mask),
            early.keep,
            early.token,
        )
        possible = torch.where(other > 0, 1 / other, 0.0)  # 0: x_t has one origin only, x0 = x_t
        x0_here = x0.gather(-1, here)
        weight_here = torch.where(x0_here > 0, x0_here / (other + kept), 0.0)
        law = torch.nn.functional.pad(x0, (0, 1)).scatter_(-1, here, 0.0)  # the mask's column, and no x0 = x_t
        total = possible * law.sum(-1, keepdim=True) + weight_here  # not by 1 - x0_here, which may round to nothing
        law_here = (into + stays) * (keep * weight_here + token * total)
        slope, shift = possible * into * keep, into * token * total
        law = law * slope + shift if x0.requires_grad else law.mul_(slope).add_(shift)
        edges, ends = torch.cat([here, torch.full_like(here, size)], -1), torch.cat([law_here, to_mask * total], -1)
        return law.scatter(-1, edges, ends) if x0.requires_grad else law.scatter_(-1, edges, ends)

    def hold(self, x: Tensor, t: float | Tensor, s: float | Tensor, alphabet: int | Alphabet) -> Tensor:
        """min over x0 of q(x_s = x_t | x_t, x0): the chance, known without a network, that a position stays."""
        size = alphabet_size(alphabet)
        parts = self._parts(x, as_time(t, x), as_time(s, x), size)
        other, same = ratio(parts.stay, parts.noise), ratio(parts.stay_same, parts.noise_same)
        other = torch.where(parts.noise == 0, same, other)  # x_t is impossible under any other x0
        return torch.where(x == size, other, torch.minimum(other, same)).clamp(0, 1)

    def step(
        self,
        x: Tensor,
        x0: Tensor,
        t: float | Tensor,
        s: float | Tensor,
        uniform: Tensor,
        alphabet: int | Alphabet,
        rate: float | None = None,
    ) -> Tensor:
        """x_s ~ q(x_s | x_t, x0) by inverse CDF from one uniform, x_t first.

        Because x_t comes first and holds at least `hold`, a uniform below `hold` keeps the position whatever x0 is:
        deciding before computing is this line and nothing else. `rate` scales the chance to leave (LSD's Phi).
        """
        size = torch.as_tensor(alphabet_size(alphabet), device=x.device)
        parts = self._parts(x, as_time(t, x), as_time(s, x), size)
        same, is_mask, to_x0_mask = x == x0, x == size, x0 == size
        evidence = torch.where(same, parts.noise_same, parts.noise)
        stay = ratio(torch.where(same, parts.stay_same, parts.stay), evidence).clamp(0, 1)
        go = torch.where(same | to_x0_mask, 0.0, ratio(parts.go, evidence))
        mask = torch.where(is_mask, 0.0, ratio(parts.to_mask, evidence))
        if rate is not None:
            effective = torch.clamp(1 / (1 - stay).clamp(min=1e-300), max=rate)
            uniform = 1 - (1 - uniform) / effective
        u = uniform - stay
        others = size - torch.where(is_mask | same, 1, 2)
        spread = ((u - go - mask) / (1 - stay - go - mask).clamp(min=1e-300)).clamp(0, 1)
        low, high = torch.minimum(x, x0), torch.maximum(x, x0)
        symbol = torch.minimum((spread * others).long(), others - 1).clamp(min=0)
        symbol = symbol + (symbol >= low)
        symbol = symbol + (~same & ~is_mask & (symbol >= high))
        out = torch.where(u < go + mask, size, symbol)
        # rounding must not send a position to an impossible place: without noise on tokens x0 is the only way out
        only_x0 = (parts.to_mask == 0) & ((parts.others == 0) | (others <= 0))
        out = torch.where((u < go) | (only_x0 & ~same), x0, out)
        return torch.where((u < 0) | (only_x0 & same), x, out)

    def _parts(self, x: Tensor, t: Tensor, s: Tensor, size: Any) -> _Parts:
        step, early, late = self.transition(s, t, size), self.marginal(s, size), self.marginal(t, size)
        is_mask = x == size
        into = torch.where(is_mask, step.mask, step.token)
        keep = (
            torch.where(is_mask, torch.ones_like(step.keep), step.keep + step.token)
            if self.mask_absorbing
            else step.keep + into
        )
        noise_s, noise_t = (torch.where(is_mask, b.mask, b.token) for b in (early, late))
        return _Parts(
            noise=noise_t,
            noise_same=noise_t + late.keep,
            stay=keep * noise_s,
            stay_same=keep * (noise_s + early.keep),
            go=into * (early.keep + early.token),
            to_mask=torch.zeros_like(step.token) if self.mask_absorbing else step.token * early.mask,
            others=into * early.token,
        )

    # -- own and cavity predictions, scores ---------------------------------------------------------------------------

    def own_shift(self, x: Tensor, t: float | Tensor, alphabet: int | Alphabet) -> Tensor:
        """log q_t(x_t | x0 = x_t) - log q_t(x_t | x0 != x_t): what own(v) ∝ cavity(v) q_t(x_t | v) adds to the logit of
        x_t; 0 at a mask, inf where x_t can only come from itself.
        """
        size = alphabet_size(alphabet)
        now = self.marginal(as_time(t, x), size)
        return torch.where(x == size, 0.0, torch.log1p(now.keep / now.token))

    def own(self, log_cavity: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """log p(x0_i | x_t) from the cavity posterior log p(x0_i | x_t without position i), `(..., K)`."""
        return _tilt(log_cavity, x, self.own_shift(x, t, log_cavity.shape[-1]))

    def cavity(self, log_own: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """Inverse of `own`; undefined where `own_shift` is infinite (an unmasked token of a purely absorbing process)."""
        return _tilt(log_own, x, -self.own_shift(x, t, log_own.shape[-1]))

    def to_score(self, log_cavity: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """Concrete score log s_y = log p_t(y) / p_t(x_t), single-site, `(..., K) -> (..., K + 1)` (SEDD arXiv 2310.16834)."""
        log_q = self.log_marginal(log_cavity, t)
        return log_q - log_q.gather(-1, x[..., None])

    def from_score(self, log_score: Tensor, t: float | Tensor) -> Tensor:
        """Log cavity prediction from log concrete scores, `(..., K + 1) -> (..., K)`: x0 = (s / sum s - b_t) / a_t."""
        size = log_score.shape[-1] - 1
        now = _columns(self.marginal(as_time(t, log_score[..., 0]), size), log_score)
        if bool((now.mask > 0).all()) and bool(
            (now.token == 0).all()
        ):  # tokens carry all information, the mask's scale is free
            return log_score[..., :-1].log_softmax(-1)
        q = log_score.softmax(-1)[..., :-1]
        p = ((q - now.token) / now.keep).clamp(min=0)
        return (p / p.sum(-1, keepdim=True)).log()

    # -- losses -------------------------------------------------------------------------------------------------------

    def loss(self, log_x0: Tensor, x0: Tensor, x: Tensor, t: float | Tensor, kind: str = "cavity") -> Tensor:
        """Continuous-time NELBO density in nats per unit time, `(..., K), (...) -> (...)`; its mean is the bound.

        sum_{y != x_t} Q_t(y -> x_t) [rhat_y - r_y log rhat_y + r_y log r_y - r_y], r = q(y|x0)/q(x_t|x0), rhat from the
        prediction: one expression for every family (score entropy, arXiv 2310.16834; GIDD 2503.04482). All y but x0, x_t
        and the mask have one r, so that the sum needs no more than sum_y log q(y) of the width of the alphabet.
        """
        size = log_x0.shape[-1]
        log_cavity = (log_x0 if kind == "cavity" else self.cavity(log_x0, x, t)).double()
        time, is_mask, same = as_time(t, x), x == size, x == x0
        now, (to_token, to_mask) = self.marginal(time, size), self.rates(time, size)
        rate, here = torch.where(is_mask, to_mask, to_token), x.clamp(max=size - 1)[..., None]
        live = rate > 0  # elsewhere the terms may be infinite, and count nothing

        p = log_cavity.exp()
        q = now.keep[..., None] * p + now.token[..., None]
        q_here, q_x0 = (q.gather(-1, at)[..., 0] for at in (here, x0[..., None]))
        model = torch.where(live, torch.where(is_mask, now.mask, q_here), 1.0)  # q(x_t) of the prediction, then of x0
        truth = torch.where(live, torch.where(is_mask, now.mask, now.token + now.keep * same), 1.0)
        others = torch.where(is_mask, size, size - 1)  # tokens that are not x_t
        rest = torch.where(is_mask[..., None], p, p.scatter(-1, here, 0.0)).sum(-1) * now.keep + others * now.token
        noisy = live & (now.token > 0)  # r is 0 for all tokens but x0 without noise on tokens
        flat = torch.where(noisy[..., None], q, 1.0).log().sum(-1)
        flat = flat - torch.where(noisy & ~is_mask, q_here, 1.0).log()
        moved = live & ~same  # x0 is among the y
        log_x0_hat = torch.where(moved, q_x0, 1.0).log()
        noise, clean = now.token / truth, (now.token + now.keep) / truth
        ratios = others * noise + torch.where(same, 0.0, clean - noise)
        cross = (
            noise * (flat - torch.where(same | ~noisy, 0.0, log_x0_hat)) + torch.where(same, 0.0, clean) * log_x0_hat
        )
        own = (others - 1 + 1.0 * same) * torch.xlogy(noise, noise) + torch.where(same, 0.0, torch.xlogy(clean, clean))
        total = rest / model - (cross - ratios * model.log()) + own - ratios
        if not self.mask_absorbing:  # the mask is a y of its own; no prediction changes its q
            r, r_hat = now.mask / truth, now.mask / model
            total = total + torch.where(is_mask, 0.0, r_hat - r - r * (truth / model).log())
        return rate * torch.where(live, total, 0.0)

    def score_entropy(self, log_score: Tensor, x0: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """The same density for a model that outputs log concrete scores `(..., K + 1)`."""
        size = log_score.shape[-1] - 1
        time = as_time(t, x)
        now, (to_token, to_mask) = self.marginal(time, size), self.rates(time, size)
        clean = torch.nn.functional.one_hot(x0, size).double()
        q = torch.cat([clean * now.keep[..., None] + now.token[..., None], now.mask.expand(x0.shape)[..., None]], -1)
        r = q / q.gather(-1, x[..., None])
        rate = torch.where(x == size, to_mask, to_token)[..., None].expand(q.shape)
        from_mask = torch.where(x == size, 0.0, 0.0 if self.mask_absorbing else to_token)[..., None].expand(*x.shape, 1)
        rate = torch.cat([rate[..., :-1], from_mask], -1)
        rate = rate.scatter(-1, x[..., None], 0.0)
        live = rate > 0
        log_hat = torch.where(live, log_score, 0.0)
        r = torch.where(live, r, 0.0)
        density = log_hat.exp() - torch.where(r > 0, r * log_hat, 0.0) + torch.xlogy(r, r) - r
        return (rate * torch.where(live, density, 0.0)).sum(-1)

    def finite_loss(
        self, log_x0: Tensor, x0: Tensor, x: Tensor, t: float | Tensor, s: float | Tensor, kind: str = "own"
    ) -> Tensor:
        """KL(q(x_s | x_t, x0) || p(x_s | x_t)) in nats, `(..., K) -> (...)`; -log p(x0 | x_t) when s = 0 (D3PM eq. 1)."""
        log_own = log_x0 if kind == "own" else self.own(log_x0, x, t)
        exact = torch.nn.functional.one_hot(x0, log_x0.shape[-1]).double().log()
        log_q, log_p = (self.log_posterior(p.double(), x, t, s) for p in (exact, log_own))
        q = log_q.exp()
        return torch.where(q > 0, q * (log_q - log_p), 0.0).sum(-1)

    def prior_kl(self, size: int, t: float = 1.0) -> Tensor:
        """KL(q_1(. | x0) || prior) in nats per position; the prior spreads the kept mass a_1 over all tokens."""
        now = self.marginal(torch.tensor(t, dtype=torch.float64), size)
        prior = now.keep / size + now.token
        high, low = now.keep + now.token, now.token
        return torch.xlogy(high, ratio(high, prior)) + (size - 1) * torch.xlogy(low, ratio(low, prior))

    def reconstruction(self, log_x0: Tensor, x0: Tensor, x: Tensor, t: float | Tensor, kind: str = "cavity") -> Tensor:
        """-log p(x0 | x_t) at the smallest time in nats, `(..., K) -> (...)`: 0 where the schedule starts clean."""
        log_own = log_x0 if kind == "own" else self.own(log_x0, x, t)
        return -log_own.gather(-1, x0[..., None])[..., 0]

    def check(self, sizes: tuple[int, ...] = (2, 8, 4096), points: int = 200) -> None:
        """Raise ValueError where a step of the process would have a negative probability."""
        t = torch.linspace(0, 1, points + 1, dtype=torch.float64)
        for size in sizes:
            now = self.marginal(t, size)
            early, late = self.marginal(t[:-1], size), self.marginal(t[1:], size)
            keep = ratio(late.keep, early.keep)
            noise = [
                now.token.min(),
                now.mask.min(),
                *((b - keep * a).min() for a, b in zip(early[1:], late[1:], strict=True)),
            ]
            if float(min(noise)) < -1e-12:
                raise ValueError(
                    f"{self} is no valid process: with {size} symbols a step has probability {float(min(noise)):.2e}; "
                    "choose a schedule whose noise never shrinks faster than the signal"
                )


class _Parts(NamedTuple):
    """Unnormalised terms of q(x_s | x_t, x0): x0 != x_t unless `_same`."""

    noise: Tensor
    noise_same: Tensor
    stay: Tensor
    stay_same: Tensor
    go: Tensor
    to_mask: Tensor
    others: Tensor


def _columns(m: Marginal, like: Tensor) -> Marginal:
    """Coefficients with a trailing axis for the symbols."""
    return Marginal(*(x.to(like.device)[..., None] for x in m))


def _tilt(log_p: Tensor, x: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` to the logit of x_t and renormalise; an infinite shift gives the one-hot."""
    size = log_p.shape[-1]
    here = x.clamp(max=size - 1)[..., None]
    infinite = torch.isinf(shift) & (x < size)
    before = log_p.gather(-1, here)[..., 0]
    certain = torch.finfo(log_p.dtype).max / 2  # beside it the other logits are nothing
    after = torch.where(infinite, certain, before + torch.where(infinite | (x == size), 0.0, shift).to(before))
    return log_p.scatter(-1, here, after[..., None]).log_softmax(-1)
