"""The lm-evaluation-harness on our networks, and the likelihoods it asks for (extra `lm-eval`).

python -m discdiff.lm_eval run --model discdiff --model_args pretrained=runs/book,sampler=confidence --tasks NAME
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked, from_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.layout import LAYOUTS, TokenBatch
from discdiff.maskers import FixedCount
from discdiff.metrics import reconstruction
from discdiff.models import Network, load_network
from discdiff.noise import TIME, Noise
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing, Process
from discdiff.sampling import prompts, sampler
from discdiff.schedules import Linear
from discdiff.types import State, Step

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    LM = object

    def register_model(*names: str) -> Callable[[type], type]:
        return lambda kind: kind


logger = logging.getLogger(__name__)
ORDERS = ("any", "left_to_right")


class Scores(NamedTuple):
    """log p of each row's free tokens given the others, nats (batch,); its standard error; whether each token was the
    likeliest (left to right only, else None).
    """

    log_prob: Tensor
    stderr: Tensor
    greedy: Tensor | None


@torch.no_grad()
def bound(model: Any, process: Process, batch: TokenBatch, keys: Tensor, draws: int = 64, seed: int = 0) -> Scores:
    """Unbiased estimate of the evidence bound of the free tokens: E_t[elbo(x0; t)] <= log p(free | given).

    One time per 1/draws of [0, 1]; noise is keyed by (seed, draw, keys (batch,)), so rows do not depend on one another.
    Absorbing processes take the any-order form (RADD arXiv 2406.03736), of least variance. The standard error is that of
    neighbouring strata in pairs, sqrt(sum (a - b)^2) / draws, on average not too small. Raises ValueError unless draws is
    even and at least 2.
    """
    checked("draws", draws, draws >= 2 and draws % 2 == 0, "an even number of at least 2")
    absorbing = isinstance(process, Absorbing)
    kind = getattr(getattr(model, "config", None), "prediction", "cavity")
    checked("prediction", kind, kind in ("own", "cavity"), "log scores have no bound here")
    cut = 0.0 if absorbing else 1e-6
    objective = Elbo(process, FixedCount(Linear(), elbo=True) if absorbing else None, kind=kind, time_min=cut)
    keys, found = keys.to(batch.tokens.device), []
    for draw in range(draws):
        noise = Noise.training(seed, torch.full_like(keys, draw), keys, batch.valid)
        time = (draw + Noise(noise.key, torch.zeros_like(keys)[:, None]).uniform(TIME)[:, 0]) / draws
        nats = objective(model, batch, noise, time)[1]["nats"]
        found.append(nats if absorbing else nats + reconstruction(model, objective, batch, noise))
    each = torch.stack(found).double()  # (draws, batch)
    return Scores(-each.mean(0), (each[::2] - each[1::2]).square().sum(0).sqrt() / draws, None)


@torch.no_grad()
def left_to_right(denoiser: Any, batch: TokenBatch, chunk: int = 64) -> Scores:
    """Exact log p of the `left_to_right` sampler of an absorbing model: sum_i log p(x_i | given, x_<i, later ones masked).

    One network row per free token, `chunk` at a time.
    """
    row, column = batch.free.nonzero().unbind(1)
    total = torch.zeros(len(batch.tokens), dtype=torch.float64, device=row.device)
    greedy = torch.ones(len(batch.tokens), dtype=torch.bool, device=row.device)
    place = torch.arange(batch.tokens.shape[1], device=row.device)
    for at in torch.arange(len(row), device=row.device).split(chunk):
        part = batch.rows(row[at])
        hidden = part.free & (place >= column[at, None])
        tokens = part.tokens.masked_fill(hidden, batch.layout.vocab.mask)
        time = hidden.double()
        state = State(
            tokens, part.given, part.valid, ~hidden, time, torch.arange(len(at), device=row.device), part, {}, {}
        )
        sites = torch.arange(len(at), device=row.device) * tokens.shape[1] + column[at]
        share = float(hidden.sum() / part.free.sum().clamp(min=1))
        log_probs = denoiser(state, Step(0, share, 0.0)).log_probs(sites)
        symbol = part.symbols(part.tokens.reshape(-1)[sites], sites)
        total.index_add_(0, row[at], log_probs.gather(1, symbol[:, None])[:, 0].double())
        greedy[row[at][log_probs.argmax(1) != symbol]] = False
    return Scores(total, torch.zeros_like(total), greedy)


@register_model("discdiff")
class DiscDiffLM(LM):
    """A task folder, a folder of ours, or a `Network` with its tokenizer, for `lm_eval.simple_evaluate`.

    order: "any", the bound from `draws` noises per request, or "left_to_right", exact for that order of absorbing models.
    sampler and further knobs (`steps=64`) are those of `discdiff.PRESETS`; they decide temperature and the like, not the
    task's do_sample. Contexts are cut from the left where a row has no room. Noise is keyed by the request, so that their
    order does not matter. `stderrs` holds the standard errors (nats) of the last likelihoods, in the order of the requests.
    """

    def __init__(
        self,
        pretrained: str | Path | Network,
        tokenizer: Any = None,
        sampler: str = "ancestral",
        order: str = "any",
        draws: int = 64,
        seed: int = 0,
        batch_size: int | str = 32,
        max_gen_toks: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
        **knobs: Any,
    ) -> None:
        if LM is object:
            raise ImportError("DiscDiffLM needs the lm-evaluation-harness: pip install 'discdiff[lm-eval]'")
        super().__init__()
        checked("order", order, order in ORDERS, f"choose from {', '.join(ORDERS)}")
        checked("batch_size", batch_size, str(batch_size).isdigit() and int(batch_size) > 0, "a number of rows")
        if isinstance(pretrained, Network):
            checked("tokenizer", tokenizer, tokenizer is not None, "give that of the network")
            self.model: Any = pretrained
        else:
            folder = Path(pretrained)
            inner = folder / "model" if (folder / "model" / "config.json").exists() else folder
            self.model = load_network(inner)
            tokenizer = tokenizer or (folder / "tokenizer" if (folder / "tokenizer").exists() else folder)
        self.model = self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        self.tokenizer, self.process = tokenizer, process_of(self.model)
        exact = order == "left_to_right"
        checked("order", order, not exact or isinstance(self.process, Absorbing), "exact for absorbing models only")
        self.order, self.draws, self.seed = order, draws, seed
        self.batch_size, self.max_gen_toks = int(batch_size), max_gen_toks
        self.sampler = sampler_of(sampler, self.process, knobs)
        config = self.model.config
        layout = from_dict(config.layout, LAYOUTS) if config.layout else None
        self.layout = layout or self.model.vocab
        vocab = self.model.vocab
        bos = vocab.special("BOS") if layout and layout.prefix else tokenizer.bos_token_id
        self.begin = [] if bos is None else [bos]
        self.room = min(config.max_length, layout.length if layout else config.max_length) - len(self.begin)
        self.stderrs: list[float] = []

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p, whether greedy) of each (context, continuation); greedy is False, and warned of, where not known."""
        pairs = [self._pair(*request.args) for request in requests]
        scores = self._scores(pairs)
        if self.order == "any":
            logger.warning("order='any' does not tell whether a continuation is greedy: it is reported as not")
        return [(log_prob, greedy) for log_prob, _, greedy in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each whole text; behind the first full row, half a row of what precedes is the context."""
        windows: list[tuple[list[int], list[int]]] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            ids = self._encode(request.args[0])
            stops = [0, *range(self.room, len(ids), max(1, self.room - self.room // 2)), len(ids)]
            for start, stop in zip(stops, stops[1:], strict=False):
                windows.append((ids[max(0, stop - self.room) : start], ids[start:stop]))
                owner.append(number)
        totals, variances = [0.0] * len(requests), [0.0] * len(requests)
        for number, (log_prob, stderr, _) in zip(owner, self._scores(windows), strict=True):
            totals[number] += log_prob
            variances[number] += stderr**2
        self.stderrs = [variance**0.5 for variance in variances]
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text behind each context, up to its end token or the first of the task's stop strings."""
        jobs = []
        for number, request in enumerate(requests):
            context, asked = request.args[0], dict(request.args[1])
            until, most = asked.pop("until", []), int(asked.pop("max_gen_toks", self.max_gen_toks))
            if asked:
                logger.warning("the sampler's own knobs decide; of the task's settings these are not used: %s", asked)
            ids = self._encode(context)
            new = max(1, min(most, max(self.room - len(ids), self.room // 2)))
            ids = ids[len(ids) - min(len(ids), self.room - new) :]
            jobs.append(
                (new, len(ids), self._key(ids, [new]), ids, number, [until] if isinstance(until, str) else until)
            )
        out = [""] * len(requests)
        jobs.sort(key=lambda job: job[:3])
        while jobs:  # rows of as many new tokens: they decide the number of steps
            part = [job for job in jobs[: self.batch_size] if job[0] == jobs[0][0]]
            jobs = jobs[len(part) :]
            batch = prompts(self.layout, [self.begin + job[3] for job in part], part[0][0])
            state, _ = self.sampler(denoiser_of(self.model), batch.to(self.model.device), [job[2] for job in part])
            for row, free, job in zip(state.tokens.cpu(), batch.free, part, strict=True):
                text = self._decode(row[free].tolist())
                out[job[4]] = text[: min([text.find(stop) for stop in job[5] if stop and stop in text], default=None)]
        return out

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, float, bool]]:
        out: list[tuple[float, float, bool]] = [(0.0, 0.0, True)] * len(pairs)  # an empty continuation is certain
        cut = []
        for number, (context, ids) in enumerate(pairs):
            if len(ids) > self.room:
                raise ValueError(
                    f"a continuation has {len(ids)} tokens, a row {self.room}: the model is too short for it"
                )
            context = context[len(context) - min(len(context), self.room - len(ids)) :]
            cut += [(len(context) + len(ids), self._key(context, ids), number, context, ids)] if ids else []
        cut.sort(key=lambda item: item[:2])
        for first in range(0, len(cut), self.batch_size):
            part = cut[first : first + self.batch_size]
            batch = prompts(self.layout, [self.begin + x[3] for x in part], [len(x[4]) for x in part])
            tokens = batch.tokens.masked_scatter(batch.free, torch.tensor([i for x in part for i in x[4]]))
            batch = batch._replace(tokens=tokens).to(self.model.device)
            if self.order == "left_to_right":
                found = left_to_right(denoiser_of(self.model), batch, self.batch_size)
            else:
                found = bound(
                    self.model, self.process, batch, torch.tensor([x[1] for x in part]), self.draws, self.seed
                )
            greedy = [False] * len(part) if found.greedy is None else found.greedy.tolist()
            for x, *values in zip(part, found.log_prob.tolist(), found.stderr.tolist(), greedy, strict=True):
                out[x[2]] = (values[0], values[1], values[2])
        self.stderrs = [stderr for _, stderr, _ in out]
        if out:
            logger.info("standard error of a log-likelihood: %.4f nats on average", sum(self.stderrs) / len(out))
        return out

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, cut where the context alone ends; spaces between them belong to the continuation."""
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        whole, before = self._encode(context + continuation), self._encode(context)
        return whole[: len(before)], whole[len(before) :]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _decode(self, ids: list[int]) -> str:
        vocab = self.model.vocab
        ends = {vocab.special("EOS"), self.tokenizer.eos_token_id}
        stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return self.tokenizer.decode([i for i in ids[:stop] if i < vocab.text_size and i != vocab.mask])

    def _key(self, *parts: Sequence[int]) -> int:
        digest = hashlib.sha256(repr((self.seed, *map(list, parts))).encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation by the tokenizer's own template."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness remembers a chat template."""
        return str(getattr(self.tokenizer, "name_or_path", "") or "discdiff").replace("/", "__")


def sampler_of(name: str, process: Process, knobs: dict[str, Any]) -> Any:
    """The named sampler for a process; see `discdiff.sampler`."""
    return sampler(name, process, **knobs)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    import discdiff.lm_eval  # noqa: F401  registers "discdiff", under this module's own name

    cli_evaluate()
