"""Conversations as rows for supervised fine-tuning: what was said is given, the answers are noised.

rows = ChatRows(load_chats("answers.jsonl"), tokenizer, layout, answers="last", padding="learned")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from discdiff.config import checked
from discdiff.layout import Layout
from tasks.text.tokenizer import encoder

ANSWERS = ("last", "all")
PADDINGS = ("learned", "absent")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("instruction", "output"))
PLAIN = "{role}: {content}\n"


class Chat(NamedTuple):
    """One conversation: messages of a role and a content each, the last one of the assistant."""

    messages: tuple[dict[str, str], ...]


def load_chats(path: str | Path) -> list[Chat]:
    """Conversations of a JSON-lines file: `{"messages": [{"role", "content"}, ...]}`, or a pair such as prompt and completion.

    Raises ValueError naming the line that is neither, or whose last message is not the assistant's.
    """
    found = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_chat(json.loads(line), f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"no conversations in {str(path)!r} ({error}): give a file of JSON lines") from error
    checked("conversations", str(path), bool(found), "the file holds none")
    return found


def _chat(record: Any, where: str) -> Chat:
    record = record if isinstance(record, dict) else {}
    messages = record.get("messages")
    for prompt, answer in _PAIRS:
        if messages is None and {prompt, answer} <= set(record):
            said = "\n".join(x for x in (record[prompt], record.get("input", "")) if x)
            messages = [{"role": "user", "content": said}, {"role": "assistant", "content": record[answer]}]
    pairs = ", ".join(" + ".join(pair) for pair in _PAIRS)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} holds no conversation: give messages, or one of {pairs}")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"{where} holds the message {message!r}: give a role and a content, both text")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{where} ends with a message of {messages[-1]['role']!r}: the assistant's answer is learned")
    return Chat(tuple({"role": m["role"], "content": m["content"]} for m in messages))


def render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]], ask: bool = False) -> str:
    """The text of messages by the tokenizer's chat template, "role: content" lines where it has none; `ask` opens an answer."""
    if tokenizer.chat_template:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))
    return "".join(PLAIN.format(**message) for message in messages) + ("assistant:" if ask else "")


def encode_chat(tokenizer: PreTrainedTokenizerFast, chat: Chat, answers: str = "last") -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant has to say (bool), the end of its turns included.

    Raises ValueError for a template whose text changes when the conversation goes on.
    """
    encode, before = encoder(tokenizer), ""
    ids: list[int] = []
    learned: list[bool] = []
    for number, message in enumerate(chat.messages):
        last = number == len(chat.messages) - 1
        spoken = message["role"] == "assistant" and (last or answers == "all")
        stops = [(render(tokenizer, chat.messages[:number], ask=True), False)] if spoken else []
        stops.append((render(tokenizer, chat.messages[: number + 1]), spoken))
        for text, said in stops:
            if not text.startswith(before):
                raise ValueError(
                    f"the chat template rewrites what was said before message {number}: {before!r} is no beginning of {text!r}"
                )
            part = [int(i) for i in encode([text[len(before) :]])[0]]
            ids, learned, before = [*ids, *part], [*learned, *[said] * len(part)], text
    return ids, learned


class ChatRows:
    """Rows [BOS | conversation] of a layout with given prompts, for `DiffusionTrainer`.

    answers: whose tokens are noised, the "last" answer or "all". padding: what stands behind the end token, "learned" end
    tokens up to the row's end, which teach the model when to stop (LLaDA arXiv 2502.09992), or nothing ("absent").
    pack: several conversations in a row, each seeing itself only; with absent padding. Raises ValueError for a
    conversation that does not fit, naming its number and length, unless `truncate`, which drops it.
    """

    def __init__(
        self,
        chats: Iterable[Chat],
        tokenizer: PreTrainedTokenizerFast,
        layout: Layout,
        *,
        answers: str = "last",
        padding: str = "learned",
        pack: bool = False,
        truncate: bool = False,
    ) -> None:
        checked("answers", answers, answers in ANSWERS, f"choose from {', '.join(ANSWERS)}")
        checked("padding", padding, padding in PADDINGS, f"choose from {', '.join(PADDINGS)}")
        checked(
            "pack", pack, not pack or padding == "absent", 'it goes with padding="absent": packed rows have no room'
        )
        self.layout, self.padding = layout, padding
        vocab, room = layout.vocab, layout.length
        parts = []
        for number, chat in enumerate(chats):
            ids, learned = encode_chat(tokenizer, chat, answers)
            ids, learned = [vocab.special("BOS"), *ids, vocab.special("EOS")], [False, *learned, True]
            if len(ids) <= room:
                parts.append((np.array(ids), np.array(learned)))
            elif not truncate:
                raise ValueError(
                    f"conversation {number} has {len(ids)} tokens, a row {room}: raise length, or drop it with truncate=True"
                )
        checked("conversations", len(parts), bool(parts), "none fits into a row")
        self.rows = _first_fit(parts, room) if pack else [[part] for part in parts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        parts, vocab, length = self.rows[index], self.layout.vocab, self.layout.length
        sizes = [len(ids) for ids, _ in parts]
        used = sum(sizes)
        tokens = np.full(length, vocab.special("EOS") if self.padding == "learned" else vocab.pad)
        given = np.zeros(length, bool)
        tokens[:used] = np.concatenate([ids for ids, _ in parts])
        given[:used] = ~np.concatenate([learned for _, learned in parts])
        row = {"tokens": tokens, "given": given, "id": index}
        if self.padding == "absent":
            slot, sample = np.zeros(length, np.int64), np.full(length, -1)
            slot[:used] = np.concatenate([np.arange(size) for size in sizes])
            sample[:used] = np.repeat(np.arange(len(sizes)), sizes)
            row |= {"valid": np.arange(length) < used, "slot": slot, "sample": sample}
        return row


def _first_fit(parts: list[tuple[np.ndarray, np.ndarray]], room: int) -> list[list[Any]]:
    """The longest first, each into the first row that has room for it."""
    rows: list[list[Any]] = []
    free: list[int] = []
    for part in sorted(parts, key=lambda part: -len(part[0])):
        place = next((i for i, left in enumerate(free) if left >= len(part[0])), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(room)
        rows[place].append(part)
        free[place] -= len(part[0])
    return rows
