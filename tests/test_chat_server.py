"""The example server: its answers are the library's own samples, whole or streamed, and what it cannot answer is a 400."""

import json
import threading

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from dataclasses import replace

from fastapi.testclient import TestClient

from discdiff.processes import Uniform
from discdiff.sampling import generate
from examples.chat_server import tiny
from examples.serving import completions
from examples.serving.app import app
from examples.serving.completions import END, HOLE, Answer, Asked
from tasks.text.chat import render
from tasks.text.folder import save_task
from tasks.text.infill import Continuation
from tasks.text.settings import Corpus

SERVED = tiny(length=24)
CLIENT = TestClient(app(SERVED))
ASK = {"model": "tiny", "prompt": "ab", "seed": 3}
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 3}
PATHS = {"completions": ASK, "chat/completions": HELLO}


def post(path, body):
    found = CLIENT.post(f"/v1/{path}", json=body)
    assert found.status_code == 200, found.text
    return found


def texts(answer):
    return [c["message"]["content"] if "message" in c else c["text"] for c in answer["choices"]]


def streamed(path, body):
    """The chunks, and what their deltas add up to by choice with the reason each choice ended."""
    found = post(path, {**body, "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    total, reasons = {}, {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        i, text = choice["index"], choice["text"] if "text" in choice else choice["delta"]["content"]
        assert reasons.get(i) is None
        total[i], reasons[i] = total.get(i, "") + text, choice["finish_reason"]
    return chunks, [total[i] for i in sorted(total)], [reasons[i] for i in sorted(reasons)]


def library(text, count=1, **knobs):
    """What the library itself samples behind a text, in full rows."""
    model, layout, _ = SERVED.trained
    begun = Continuation(layout, SERVED.tokenizer, text, chat=False)
    return begun.texts(generate(model, begun.batch(count), "ancestral", seed=3, **knobs)[0])


def test_answers_are_the_librarys_own_samples():
    assert CLIENT.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert texts(post("completions", ASK).json()) == library("ab")
    found = post("completions", {**ASK, "n": 3, "temperature": 0.7, "top_p": 0.8}).json()
    assert texts(found) == library("ab", 3, temperature=0.7, nucleus=0.8)
    assert len(set(texts(found))) == 3
    found = post("chat/completions", HELLO).json()
    assert found["object"] == "chat.completion" and found["choices"][0]["message"]["role"] == "assistant"
    assert texts(found) == library(render(SERVED.tokenizer, HELLO["messages"], ask=True))


def test_usage_counts_tokens_and_a_row_is_as_short_as_asked():
    found = post("completions", {**ASK, "max_tokens": 5, "n": 2}).json()
    assert [c["finish_reason"] for c in found["choices"]] == ["length"] * 2
    assert [len(text) for text in texts(found)] == [5, 5]
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12}
    assert len(streamed("completions", {**ASK, "max_tokens": 5})[0][0]["discdiff"]["rows"][0]) == 5


@pytest.mark.parametrize("path", PATHS)
def test_the_stream_adds_up_to_the_whole(path):
    body = {**PATHS[path], "n": 2}
    whole = post(path, body).json()
    chunks, total, reasons = streamed(path, body)
    assert total == texts(whole) and reasons == [c["finish_reason"] for c in whole["choices"]]
    assert chunks[-1]["usage"] == whole["usage"] and not any("usage" in chunk for chunk in chunks[:-1])
    rows = [chunk["discdiff"]["rows"] for chunk in chunks]
    assert set("".join(rows[0])) == {HOLE} and [row.split(END)[0] for row in rows[-1]] == total
    for before, after in zip(rows, rows[1:]):  # a mask becomes a character, for good
        for one, other in zip("".join(before), "".join(after), strict=True):
            assert one in (HOLE, other)


def test_stop_strings_cut_both_ways_and_end_the_run():
    text = texts(post("completions", ASK).json())[0]
    stop = text[4:7]
    at = text.index(stop)
    body = {**ASK, "stop": [stop, "never there"]}
    whole = post("completions", body).json()
    assert texts(whole) == [text[:at]] and whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == at + 3
    chunks, total, reasons = streamed("completions", body)
    assert total == [text[:at]] and reasons == ["stop"]
    assert texts(post("completions", {**ASK, "stop": text[-1:]}).json()) == [text[: text.index(text[-1:])]]


def test_an_end_token_ends_the_choice():
    answer, end = Answer(SERVED, ASK, False), SERVED.trained.layout.vocab.special("EOS")
    assert answer._part([1, 2, end, 3]) == completions.Part(SERVED.tokenizer.decode([1, 2]), 2, "stop")
    assert answer._part([1, 2]).reason is None


@pytest.mark.parametrize("kind", ["remdm_cap", "uniform"])
def test_what_may_still_change_is_not_sent(kind):
    if kind == "uniform":
        served = replace(SERVED, trained=SERVED.trained._replace(process=Uniform()))
    else:
        served = replace(SERVED, sampler=kind)
    body = {**ASK, "max_tokens": 6}
    whole, chunks = Answer(served, body, False).whole(), list(Answer(served, body, False).stream())
    assert all(chunk["choices"][0]["text"] == "" for chunk in chunks[:-1])
    assert chunks[-1]["choices"][0]["text"] == texts(whole)[0] == chunks[-1]["discdiff"]["rows"][0].split(END)[0]


def test_half_a_character_is_held_back():
    answer = Answer(SERVED, {**ASK, "stop": "abc"}, False)
    assert answer._held("12345") == "123" and answer._held("1") == "" and answer._held("12\ufffd") == ""
    assert Answer(SERVED, ASK, False)._held("12\ufffd") == "12"


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("completions", {"best_of": 2}, "unknown setting of Asked 'best_of'"),
        ("completions", {"model": "gpt-4"}, "this server has 'tiny'"),
        ("completions", {"prompt": "x" * 30}, "the prompt has 30 tokens"),
        ("completions", {"prompt": "x" * 20, "max_tokens": 5}, "a row has 24, the prompt takes 20"),
        ("completions", {"prompt": None}, "prompt is None"),
        ("completions", {"prompt": ["a", "b"]}, "Asked.prompt is"),
        ("completions", {"prompt": "é"}, "'é'"),
        ("completions", {"messages": HELLO["messages"]}, "other endpoint"),
        ("completions", {"temperature": -1}, "temperature is -1"),
        ("completions", {"top_p": 0}, "nucleus is 0"),
        ("completions", {"n": 0}, "n is 0"),
        ("completions", {"seed": "one"}, "Asked.seed is 'one'"),
        ("completions", {"stop": ""}, "stop is ''"),
        ("chat/completions", {"messages": []}, "messages is None"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "give a role and a content"),
        ("chat/completions", {"messages": "hello"}, "Asked.messages is 'hello'"),
    ],
)
def test_what_it_does_not_know_is_refused(path, change, said):
    for more in ({}, {"stream": True}):
        found = CLIENT.post(f"/v1/{path}", json={**PATHS[path], **change, **more})
        assert found.status_code == 400
        error = found.json()["error"]
        assert error["type"] == "invalid_request_error" and said in error["message"]


def test_no_json_a_model_without_conversations_and_a_twin_are_refused():
    found = CLIENT.post("/v1/completions", content="{", headers={"content-type": "application/json"})
    assert found.status_code == 400 and "JSON" in found.json()["error"]["message"]
    with pytest.raises(ValueError, match="learned no conversations"):
        Answer(replace(SERVED, chat=False), HELLO, True)
    with pytest.raises(ValueError, match="autoregressive twin"):
        Answer(replace(SERVED, trained=SERVED.trained._replace(process=None)), ASK, False)


def test_the_lock_is_free_between_events():
    """A client that reads slowly, or goes away, keeps nobody waiting; answers do not depend on who else asks."""
    slow = Answer(SERVED, ASK, False).stream()
    next(slow)
    assert isinstance(SERVED.lock, type(threading.Lock())) and not SERVED.lock.locked()
    assert texts(post("completions", ASK).json()) == library("ab")
    assert "".join(chunk["choices"][0]["text"] for chunk in slow) == library("ab")[0]


def test_a_folder_of_the_text_task(tmp_path):
    corpus = Corpus(source="nothing.txt", length=24)
    save_task(tmp_path / "mine", {"corpus": corpus}, SERVED.tokenizer)
    SERVED.trained.model.save_pretrained(tmp_path / "mine" / "model")
    found = completions.load(tmp_path / "mine")
    assert found.name == "mine" and not found.chat
    body = {**ASK, "model": "mine"}
    assert texts(Answer(found, body, False).whole()) == library("ab")


def test_a_seed_that_is_not_given_is_a_new_one():
    assert Asked("tiny").seed is None
    assert len({Answer(SERVED, {"model": "tiny", "prompt": "ab"}, False).seed for _ in range(4)}) == 4
