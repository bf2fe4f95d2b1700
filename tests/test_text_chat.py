"""Conversations as rows: what is given and what is learned, what stands behind the end, several in a row."""

import json

import pytest

from discdiff.training import collate, token_batch
from tasks.text import rows as text_rows
from tasks.text import tokenizer as tokenizers
from tasks.text.chat import Chat, ChatRows, encode_chat, load_chats, render

OPEN = "{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}|{% endfor %}" + OPEN
TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "three"},
]


def tokenizer(template=TEMPLATE):
    made = tokenizers.bytes_()
    made.chat_template = template
    return made


def said(ids, flags):
    return bytes(i for i, flag in zip(ids, flags, strict=True) if flag).decode()


@pytest.mark.parametrize(("answers", "learned"), [("last", "three|"), ("all", "two|three|")])
def test_what_the_assistant_says_is_learned(answers, learned):
    ids, flags = encode_chat(tokenizer(), Chat(tuple(TURNS)), answers)
    assert bytes(ids).decode() == "<user>one?|<assistant>two|<user>and?|<assistant>three|"
    assert said(ids, flags) == learned


def test_without_a_template_lines_name_the_roles():
    plain = tokenizer(None)
    assert render(plain, TURNS[:1], ask=True) == "user: one?\nassistant:"
    ids, flags = encode_chat(plain, Chat(tuple(TURNS)))
    assert said(ids, flags) == " three\n"


def test_a_template_that_rewrites_the_past_is_refused():
    trims = "{{ messages[-1]['role'] }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites what was said"):
        encode_chat(tokenizer(trims), Chat(tuple(TURNS)))


def batch_of(rows):
    return token_batch(
        rows.layout, {k: v for k, v in collate([rows[i] for i in range(len(rows))]).items() if k != "id"}, check=True
    )


def test_learned_padding_is_noised_and_absent_padding_is_not_there():
    made = tokenizer()
    layout = text_rows.layout_for(made, 40)
    chats = [Chat(tuple(TURNS[:2])), Chat(({"role": "user", "content": "hm"}, TURNS[3]))]
    learned = batch_of(ChatRows(chats, made, layout))
    assert learned.valid.all()
    assert [
        said(r.tolist(), f.tolist())
        for r, f in zip(learned.tokens[:, :30], (learned.free & (learned.tokens < 256))[:, :30], strict=True)
    ] == ["two|", "three|"]
    end = layout.vocab.special("EOS")
    assert (learned.free & (learned.tokens == end)).sum(1).tolist() == [14, 14]  # behind BOS and 26 characters of 41
    absent = batch_of(ChatRows(chats, made, layout, padding="absent"))
    assert (absent.tokens == end).sum(1).tolist() == [1, 1] and absent.valid.sum(1).tolist() == [28, 28]
    packed = batch_of(ChatRows(chats, made, text_rows.layout_for(made, 60), padding="absent", pack=True))
    assert packed.valid.sum(1).tolist() == [56] and packed.sample[0, [0, 27, 28, 55]].tolist() == [0, 0, 1, 1]
    assert packed.slot[0, [0, 27, 28, 55]].tolist() == [0, 27, 0, 27]


def test_files_and_their_faults(tmp_path):
    file = tmp_path / "chats.jsonl"
    lines = [
        {"messages": TURNS},
        {"prompt": "p", "completion": "c"},
        {"instruction": "do", "input": "this", "output": "done"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    chats = load_chats(file)
    assert [len(c.messages) for c in chats] == [4, 2, 2] and chats[2].messages[0]["content"] == "do\nthis"
    faults = {
        '{"text": "x"}': "line 1 holds no conversation",
        json.dumps({"messages": TURNS[:1]}): "ends with a message of 'user'",
        '{"messages": [{"role": "user"}]}': "give a role and a content",
        "{": "no conversations in",
        "": "the file holds none",
    }
    for text, message in faults.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_chats(file)
    made = tokenizer()
    with pytest.raises(ValueError, match="conversation 0 has 56 tokens, a row 11"):
        ChatRows(chats[:1], made, text_rows.layout_for(made, 10))
    assert len(ChatRows(chats, made, text_rows.layout_for(made, 40), truncate=True)) == 2
    with pytest.raises(ValueError, match="goes with padding"):
        ChatRows(chats, made, text_rows.layout_for(made, 60), pack=True)
