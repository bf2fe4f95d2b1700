"""OpenAI's completions from a diffusion model: what a request may say, and the answer whole or step by step; no web in it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from discdiff.config import build, checked
from discdiff.denoisers import denoiser_of
from discdiff.layout import TokenBatch, make_batch
from discdiff.sampling import sampler
from discdiff.types import Info, State
from tasks.text.chat import render
from tasks.text.folder import Trained, is_chat, load_model, load_task
from tasks.text.infill import Continuation
from tasks.text.rows import text_of

HOLE, END = "░", "■"  # a slot that is still masked, and an end token, in rows as they stand
_PROMPTS = {False: "prompt", True: "messages"}


@dataclass(frozen=True)
class Served:
    """A model under a name; chat: whether it answers conversations; lock: of the model, held for a step at a time."""

    name: str
    trained: Trained
    tokenizer: PreTrainedTokenizerFast
    chat: bool = True
    sampler: str = "ancestral"
    lock: Lock = field(default_factory=Lock)


def load(path: Path, sampler: str = "ancestral") -> Served:
    """What training or fine-tuning left in a folder, under the folder's name."""
    return Served(path.resolve().name, load_model(path / "model"), load_task(path)[1], is_chat(path), sampler)


@dataclass(frozen=True)
class Asked:
    """The fields of OpenAI's requests that have a meaning here; max_tokens None is the rest of the row, seed None a new one."""

    model: str
    prompt: str = ""
    messages: tuple[dict, ...] = ()
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    stream: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("max_tokens", 1, 2**31), ("n", 1, 64), ("seed", 0, 2**63 - 1), ("temperature", 0, 2)):
            value = getattr(self, name)
            checked(name, value, value is None or low <= value <= high, f"give {low} to {high}")
        checked("stop", self.stop, all(self.stops) and len(self.stops) <= 4, "give up to 4 texts, none of them empty")
        for message in self.messages:
            ok = set(message) == {"role", "content"} and all(isinstance(x, str) for x in message.values())
            checked("messages", message, ok, "give a role and a content, both text")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Part(NamedTuple):
    """What is settled of one choice: its text, how many tokens that took, and why it ended (None: it has not)."""

    text: str
    tokens: int
    reason: str | None


class Answer:
    """The answer to a request's body; raises ValueError for what cannot be answered, before the first network call."""

    def __init__(self, served: Served, body: Mapping[str, Any], chat: bool) -> None:
        checked(_PROMPTS[chat], None, bool(body.get(_PROMPTS[chat])), "it is needed, and not empty")
        checked(_PROMPTS[not chat], "given", _PROMPTS[not chat] not in body, "it belongs to the other endpoint")
        asked: Asked = build(Asked, {name: x for name, x in body.items() if x is not None})
        checked("model", asked.model, asked.model == served.name, f"this server has {served.name!r}")
        checked("model", asked.model, served.chat or not chat, "it has learned no conversations: ask for a completion")
        model, layout, process = served.trained
        checked("model", served.name, process is not None, "an autoregressive twin is no diffusion model")
        text = render(served.tokenizer, asked.messages, ask=True) if chat else asked.prompt
        begun = Continuation(layout, served.tokenizer, text, chat=False)
        room = layout.length - 1 - len(begun.ids)
        size = room if asked.max_tokens is None else asked.max_tokens
        checked("max_tokens", size, size <= room, f"a row has {layout.length - 1}, the prompt takes {len(begun.ids)}")
        self.served, self.asked, self.chat, self.size, self.start = served, asked, chat, size, 1 + len(begun.ids)
        self.seed = secrets.randbits(62) if asked.seed is None else asked.seed
        self.said = {"id": f"discdiff-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        batch = shortened(begun.batch(asked.n, model.device), self.start + size)
        chosen = sampler(served.sampler, process, temperature=asked.temperature, nucleus=asked.top_p)
        self.final = chosen.kernel.final
        self._run = chosen.iterate(denoiser_of(model), batch, self.seed)
        self._first = self._next()  # a sampler's objections come here

    def whole(self) -> dict[str, Any]:
        """OpenAI's completion object."""
        for parts, _ in self._steps():  # noqa: B007
            pass
        choices = [self._choice(i, part.text, part.reason, "message", True) for i, part in enumerate(parts)]
        return {**self.said, "object": self._object(), "choices": choices, "usage": self._usage(parts)}

    def stream(self) -> Iterator[dict[str, Any]]:
        """OpenAI's chunks: what was settled left to right since the last; `discdiff.rows` are the rows as they stand."""
        sent, ended = [""] * self.asked.n, [False] * self.asked.n
        for number, (parts, rows) in enumerate(self._steps()):
            choices = []
            for i, part in enumerate(parts):
                if not ended[i]:
                    new = (part.text if part.reason else self._held(part.text))[len(sent[i]) :]
                    sent[i], ended[i] = sent[i] + new, part.reason is not None
                    choices.append(self._choice(i, new, part.reason, "delta", number == 0))
            usage = {"usage": self._usage(parts)} if all(ended) else {}
            own = {"step": number, "rows": rows}
            yield {**self.said, "object": self._object(".chunk"), "choices": choices, **usage, "discdiff": own}

    def _steps(self) -> Iterator[tuple[list[Part], list[str]]]:
        found: tuple[State, Info] | None = self._first
        while found is not None:
            slots = slice(self.start, self.start + self.size)
            ids, settled = found[0].tokens[:, slots].tolist(), found[0].committed[:, slots] & self.final
            rows, count = [self._shown(row) for row in ids], settled.long().cumprod(1).sum(1).tolist()
            parts = [self._part(row[:k]) for row, k in zip(ids, count)]
            yield parts, rows
            if all(part.reason for part in parts):
                return
            found = self._next()
        yield [self._part(row) for row in ids], rows  # a sampler that takes tokens back is settled only at its end

    def _next(self) -> tuple[State, Info] | None:
        with self.served.lock:  # not while a client reads: a slow one keeps nobody waiting
            return next(self._run, None)

    def _part(self, ids: list[int]) -> Part:
        """The choice that begins with these ids: up to the end token, or to what first completes a stop string."""
        layout, full = self.served.trained.layout, len(ids) == self.size
        end = layout.vocab.special("EOS")
        closed = end in ids
        ids = ids[: ids.index(end)] if closed else ids
        text = text_of(self.served.tokenizer, layout, ids)
        if any(stop in text for stop in self.asked.stops):
            for count in range(1, len(ids) + 1):
                text = text_of(self.served.tokenizer, layout, ids[:count])
                places = [text.index(stop) for stop in self.asked.stops if stop in text]
                if places:
                    return Part(text[: min(places)], count, "stop")
        return Part(text, len(ids), "stop" if closed else "length" if full else None)

    def _held(self, text: str) -> str:
        """What no later token changes: without half a character, and what may turn out to begin a stop string."""
        text = text.rstrip("\ufffd")
        return text[: len(text) - max((len(stop) - 1 for stop in self.asked.stops), default=0)]

    def _shown(self, ids: list[int]) -> str:
        layout = self.served.trained.layout
        signs = {layout.vocab.mask: HOLE, layout.vocab.special("EOS"): END}
        runs = [(sign, list(run)) for sign, run in groupby(ids, signs.get)]
        return "".join(sign * len(run) if sign else text_of(self.served.tokenizer, layout, run) for sign, run in runs)

    def _object(self, chunk: str = "") -> str:
        return f"chat.completion{chunk}" if self.chat else "text_completion"

    def _choice(self, index: int, text: str, reason: str | None, key: str, role: bool) -> dict[str, Any]:
        said = {**({"role": "assistant"} if role else {}), "content": text}
        own = {key: said} if self.chat else {"text": text, "logprobs": None}
        return {"index": index, **own, "finish_reason": reason}

    def _usage(self, parts: list[Part]) -> dict[str, int]:
        prompt, made = self.start - 1, sum(part.tokens for part in parts)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def shortened(batch: TokenBatch, length: int) -> TokenBatch:
    """The rows with nothing behind their first `length` slots, as if they were that short."""
    if length >= batch.tokens.shape[1]:
        return batch
    valid = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens) < length
    tokens = batch.tokens.masked_fill(~valid, batch.layout.vocab.pad)
    return make_batch(batch.layout, tokens, valid=valid, given=batch.given)
