"""Times by the law: what every interval costs when it is done in one step, measured once, and the cheapest path.

This is discdiff's own, in no paper: LSD's objective (scores in squared distance) does not bound the distance of laws.
Let a fine run take the states x_0, ..., x_F, and let a coarse step from x_a move every site as the fine run would, but
with the prediction made at x_a. The divergence of the two laws of whole fine paths is then a sum over intervals,

    D[a, b] = E sum_{a <= j < b} sum_i KL(p_i(x_{j+1} | x_j, prediction at x_j) || p_i(x_{j+1} | x_j, prediction at x_a)),

and bounds that of the final samples (data processing). For an absorbing process a term is the chance that the site is
revealed in fine step j times KL(p_i(. | x_j) || p_i(. | x_a)): with an exact denoiser and fine steps, the dependence
among the tokens that are revealed together. All D come from one set of fine runs; the best grid of every number of steps
is then exact by dynamic programming, hence in this bound no worse than any other grid over the same fine times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discdiff.distill.base import whole
from discdiff.distill.lockstep import Lane, Piece, at, check_process, pieces, start, symbols
from discdiff.kernels import Ancestral
from discdiff.kernels.base import select
from discdiff.layout import TokenBatch
from discdiff.noise import mix_int
from discdiff.processes import Absorbing, Process
from discdiff.sampling.grid import Grid
from discdiff.types import Step

FLOOR = -30.0  # a log probability counts as at least this, so that a token called impossible costs 30 nats
CLOSE = 1e-9
PIECE = 128 << 20  # bytes of log probabilities of all fine states at a time


class PathErrors(NamedTuple):
    """Measured cost of every interval: times (F + 1,) falling from 1 to 0, cost (F + 1, F + 1) float64 nats per row.

    cost[a, b] is D of one step from times[a] to times[b], 0 for b = a + 1, meaningless for b <= a.
    """

    times: tuple[float, ...]
    cost: Tensor

    def best(self, steps: int) -> Grid:
        """The cheapest grid of `steps` over the fine times. Raises ValueError for more steps than there are."""
        whole("steps", steps)
        fine = len(self.times) - 1
        if steps > fine:
            raise ValueError(f"{steps} steps over {fine} fine times: measure with more")
        # reach[b] = least cost to be at fine time b after m steps; from the last step only b = F counts
        allowed = torch.ones_like(self.cost).triu(1).bool()
        cost = torch.where(allowed, self.cost, torch.inf)
        reach, back = cost[0], []
        for _ in range(steps - 1):
            reach, source = (reach[:, None] + cost).min(0)
            back.append(source)
        path = [fine]
        for source in reversed(back):
            path.append(int(source[path[-1]]))
        return Grid(tuple(self.times[i] for i in (0, *reversed(path))))

    def error(self, grid: Grid) -> float:
        """The bound for a grid over the fine times, nats per row. Raises ValueError for a time that is none of them."""
        places = [self._place(t) for t in grid.times]
        if any(abs(self.times[i] - t) > CLOSE for i, t in zip(places, grid.times, strict=True)):
            raise ValueError(f"grid times {grid.times} are not all among the measured ones: take `nearest(grid)`")
        return sum(float(self.cost[a, b]) for a, b in zip(places, places[1:], strict=False))

    def nearest(self, grid: Grid) -> Grid:
        """The grid with every time moved to a measured one, all different. Raises ValueError where there are too few."""
        fine, steps = len(self.times) - 1, len(grid)
        if steps > fine:
            raise ValueError(f"{steps} steps over {fine} fine times: measure with more")
        places, last = [0], 0
        for left, t in zip(range(steps - 1, 0, -1), grid.times[1:-1], strict=True):
            last = min(max(self._place(t), last + 1), fine - left)
            places.append(last)
        return Grid(tuple(self.times[i] for i in (*places, fine)))

    def _place(self, t: float) -> int:
        return min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))


def measure(
    denoiser: Any,
    process: Process,
    batch: TokenBatch,
    fine: int = 48,
    *,
    rounds: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> PathErrors:
    """Interval costs along `Ancestral(process)` runs of `fine` equal steps on the rows of `batch`, `rounds` times.

    2 * fine network calls per round; each head runs once per fine state and hidden site. The trunks' outputs of one round
    are kept, log probabilities never: sites are compared in pieces of bounded memory. Late intervals rest on the few sites
    still hidden then: take some thousand rows * positions / fine. Raises ValueError before any call.
    """
    whole("fine", fine, 2)
    whole("rounds", rounds)
    check_process(process)
    grid, kernel = Grid.uniform(fine), Ancestral(process)
    total = torch.zeros(fine, fine, dtype=torch.float64)
    for number in range(rounds):
        lane = start(denoiser, kernel, batch, grid, seed if number == 0 else mix_int(seed + 7919 * number))
        lanes, predictions = [], []
        for step in tqdm(grid, desc="measure", disable=not progress):
            predictions.append(lane.predict(step))
            lanes.append(lane)
            lane = lane.advance(step)
        for piece in pieces(batch, process, select(lanes[0].state.free), copies=3 * fine, limit=PIECE):
            part = _absorbing if isinstance(piece.process, Absorbing) else _general
            total += part(piece, lanes, predictions, list(grid), predictions).cpu()
    along = total.triu().cumsum(1).clamp(min=0) / (rounds * len(batch.tokens))
    cost = torch.zeros(fine + 1, fine + 1, dtype=torch.float64)
    cost[:fine, 1:] = along
    return PathErrors(grid.times, cost)


def interval(lanes: list[Lane], predictions: list[Any], moves: list[Step], student: Any) -> float:
    """D of one step from the first of these fine states to the end of the moves, with the prediction `student` made there.

    Nats per row; `predictions` are the fine run's own. No step of finer states is worse in it than the untouched one.
    """
    first, total = lanes[0], 0.0
    for piece in pieces(first.state.batch, first.kernel.process, select(first.state.free), 3 * len(moves), PIECE):
        part = _absorbing if isinstance(piece.process, Absorbing) else _general
        total += float(part(piece, lanes, predictions, moves, [student]).sum())
    return total / len(first.state.tokens)


def _absorbing(
    piece: Piece, lanes: list[Lane], predictions: list[Any], moves: list[Step], students: list[Any]
) -> Tensor:
    """Row a, column j: sum over hidden sites of the reveal chance in fine step j times KL(p at j || student's p at a)."""
    hidden = torch.stack([symbols(lane.state, piece.index) == piece.size for lane in lanes])
    weight = []
    for lane, move in zip(lanes, moves, strict=True):
        now = lane.towards(move)
        t, s = at(now.t, piece.index), at(now.s, piece.index)
        early, late = (piece.process.marginal(time, piece.size).keep for time in (s, t))
        weight.append(torch.where(s > 0, (early - late) / (1 - late), 1.0))
    log_p = _table(piece, hidden, predictions)
    log_q = log_p if students is predictions else _table(piece, hidden[: len(students)], students)
    p = log_p.exp().mul_((hidden * torch.stack(weight)).to(log_p)[..., None])
    own = (p * log_p).sum((1, 2), dtype=torch.float64)
    return own - torch.einsum("jnk,ank->aj", p, log_q).double()


def _table(piece: Piece, hidden: Tensor, predictions: list[Any]) -> Tensor:
    """Log probabilities (F, n, K) of every fine state at the sites hidden in it, 0 elsewhere."""
    out: Any = None
    for j, prediction in enumerate(predictions):
        if len(index := piece.index[hidden[j]]):  # of few rows, all of a late state may be revealed
            found = prediction.log_probs(index)
            out = found.new_zeros(*hidden.shape, piece.size) if out is None else out
            out[j, hidden[j]] = found.clamp(min=FLOOR)
    return torch.zeros(*hidden.shape, piece.size, device=hidden.device) if out is None else out


def _general(piece: Piece, lanes: list[Lane], predictions: list[Any], moves: list[Step], students: list[Any]) -> Tensor:
    """The same for any process: the prediction at a, without the site's own token there, is told the one at j."""
    out = torch.zeros(len(students), len(lanes), dtype=torch.float64, device=piece.index.device)
    cavities: list[Tensor] = []
    for j, (lane, prediction, move) in enumerate(zip(lanes, predictions, moves, strict=True)):
        x, now = symbols(lane.state, piece.index), lane.towards(move)
        t, s = at(now.t, piece.index), at(now.s, piece.index)
        if j < len(students):
            log_student = students[j].log_probs(piece.index)
            cavities.append(piece.process.cavity(log_student, x, t).to(log_student))
        log_p = piece.process.log_posterior(prediction.log_probs(piece.index), x, t, s)
        p = log_p.exp()
        entropy = torch.where(p > 0, p * log_p.clamp(min=FLOOR), 0.0).sum(dtype=torch.float64)
        for a in range(min(j + 1, len(students))):
            told = piece.process.own(cavities[a], x, t).to(log_p)
            other = piece.process.log_posterior(told, x, t, s).clamp(min=FLOOR)
            out[a, j] = entropy - (p * other).sum(dtype=torch.float64)
    return out
