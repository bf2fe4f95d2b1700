"""Pictures are drawn again that the model itself does not hold for what was asked, or that repeat one it learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import make_batch
from discdiff.metrics import nearest_distances
from discdiff.noise import Noise
from tasks.common import generation
from tasks.common.methods import method_of
from tasks.image.generate import Trained, drawn
from tokenizers_vq.image import from_bytes

TIME = (
    0.8  # labels are told apart by the whole: of digits' codes, later times and a mean over all say less (decision 18)
)
ROWS = 256  # that the network sees at once
APART = 1_000_003  # from the seeds of one attempt to those of the next


# What pictures uint8 (n, channels, height, width), their codes (n, slots, depth), conditions and seeds are worth, (n,).
Judge = Callable[[Tensor, Tensor, Sequence[str], Sequence[int]], Tensor]


class Again(NamedTuple):
    """Pictures uint8 (n, channels, height, width), their codes (n, slots, depth), what each is worth (n,) float64, and how
    many were drawn for each (n,).
    """

    pictures: Tensor
    codes: Tensor
    worth: Tensor
    draws: Tensor


def drawn_again(
    trained: Trained, conditions: Sequence[str], judge: Judge, *, least: float, tries: int = 3, seed: int = 0,
    **sampler: Any,
) -> Again:  # fmt: skip
    """`drawn`, and anew, up to `tries` times in all, what is worth less than `least`; the worthiest is kept.

    A rejection sampler from the law given worth >= least. A picture depends on its seed alone, as far as its worth does.
    Raises ValueError for fewer tries than one.
    """
    checked("tries", tries, tries >= 1, "at least 1")
    best = torch.full((len(conditions),), -torch.inf, dtype=torch.float64)
    draws, kept, codes = torch.zeros(len(conditions), dtype=torch.int64), None, None
    for attempt in range(tries):
        rows = (best < least).nonzero()[:, 0]
        if not len(rows):
            break
        said, seeds = zip(*((conditions[row], seed + attempt * APART + row) for row in rows.tolist()), strict=True)
        made, ids = drawn(trained, said, seeds, **sampler)
        worth = judge(made, ids, said, seeds).double()
        draws[rows] += 1
        if kept is None or codes is None:
            kept, codes = made, ids
        better = worth > best[rows]
        kept[rows[better]], codes[rows[better]] = made[better], ids[better]
        best[rows[better]] = worth[better]
    assert kept is not None and codes is not None
    return Again(kept, codes, best, draws)


def apart(train: Tensor) -> Judge:
    """The distance to the nearest of training pictures uint8 (m, channels, height, width), their values in [-1, 1]."""
    known = from_bytes(train).flatten(1)
    return lambda made, codes, said, seeds: nearest_distances(from_bytes(made).flatten(1), known)


def usual_distance(pictures: Tensor, train: Tensor) -> float:
    """The median over real pictures that were not learned of `apart`."""
    return float(apart(train)(pictures, pictures, (), ()).quantile(0.5))


@torch.no_grad()
def sureness(
    trained: Trained, codes: Tensor, conditions: Sequence[str], others: Sequence[str], seeds: Sequence[int]
) -> Tensor:
    """p(condition | codes) among the condition of a picture and `others`, (n,) float64, all of them alike beforehand.

    p(y | x) = softmax_y of what the bound on log p(x | y) gathers at `TIME`, with the same noise for all y: one pass of the
    network each; the exact likelihood of an autoregressive model. codes (n, slots, depth), seeds (n,). Source: arXiv
    2303.16203, section 3, at one time only. Raises ValueError for a model that is told nothing, and for unknown words.
    """
    _check(trained, conditions, others)
    wanted = trained.generator
    others = list(dict.fromkeys(others))  # one that is named twice is no likelier
    layout, asked = generation.layout_of(trained.model), [list(conditions), *([other] * len(codes) for other in others)]
    objective = method_of(wanted.method, 0.0, 0.0, wanted.block).objective
    ids = torch.stack([trained.lexicon.ids(each) for each in asked], 1)  # (n, conditions, words)
    n, count, words = ids.shape
    tokens = generation.Rows(layout, _coded(ids.flatten(0, 1), codes.repeat_interleave(count, 0))).tokens
    given = (torch.arange(tokens.shape[1]) < words).expand_as(tokens)
    picture, found = torch.tensor(list(seeds)).repeat_interleave(count), []
    for part in torch.arange(n * count).split(ROWS):
        batch = make_batch(layout, tokens[part], given=given[part], check=False).to(trained.model.device)
        row = picture[part].to(trained.model.device)
        noise = Noise.training(0, torch.zeros_like(row), row, batch.valid)
        time = torch.full(row.shape, TIME, dtype=torch.float64, device=row.device)
        found.append(-objective(trained.model, batch, noise, time)[1]["nats"].double().cpu())
    same = torch.tensor([[k > 0 and each == own for k, each in enumerate((own, *others))] for own in conditions])
    return torch.cat(found).view(n, count).masked_fill(same, -torch.inf).softmax(1)[:, 0]


def drawn_surely(
    trained: Trained, conditions: Sequence[str], others: Sequence[str], *, least: float, **rest: Any
) -> Again:
    """`drawn_again` by `sureness`: what the model is less than `least` sure of. Raises ValueError for one outside [0, 1]."""
    checked("least", least, 0 <= least <= 1, "a probability in [0, 1]")
    _check(trained, conditions, others)

    def judge(made: Tensor, codes: Tensor, said: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return sureness(trained, codes, said, others, seeds)

    return drawn_again(trained, conditions, judge, least=least, **rest)


def _check(trained: Trained, conditions: Sequence[str], others: Sequence[str]) -> None:
    told = trained.generator.condition
    checked("condition", told, told != "", "the model is told nothing that it could doubt")
    for each in dict.fromkeys((*conditions, *others)):
        trained.lexicon.check(each)


def _coded(condition: Tensor, codes: Tensor) -> generation.Coded:
    return generation.Coded(condition, codes.cpu(), torch.ones(codes.shape[:2], dtype=torch.bool))
