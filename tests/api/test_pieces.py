"""Pieces of text that arrive together are joined, and the reply is the one that the parser makes of each line."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.protocol import Decoder
from ollama_provider.api.replies import Collector
from ollama_provider.api.schemas import ChatRequest, GenerateRequest
from ollama_provider.api.settings import Settings

GENERATE = GenerateRequest(model="m", prompt="hi")
CHAT = ChatRequest(model="m", messages="hi")
HEAD = '{"model":"m","created_at":"2026-01-01T00:00:00Z",'
END = '{"model":"m","created_at":"2026-01-01T00:00:01Z","done":true,"done_reason":"stop","eval_count":3}'

#: What a JSON string may hold, and what it must not: escapes whole and cut, surrogates in all states, ends of lines.
BITS = [
    "a", " the", "é", "🙂", "\x85", "\u2028", "\x7f", "{", "[", ",", ":", "</think>", "<think>", "\n", "\r", "\t", "\0",
    '"', "\\", r"\"", r"\\", r"\/", r"\n", r"\u003c", r"\u00e9", r"\uD83D", r"\ude42", r"\ud83d\ude42", r"\u12", r"\x",
    r"\u 12", r"\uDFFF", r"\ud7ff", r"\ue000", '","done":false}', '","thinking":"t', '"},"done":false}',
]  # fmt: skip
texts = st.lists(st.sampled_from(BITS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=4).map("".join)
good_texts = st.text(st.characters(codec="utf-8"), max_size=5).map(lambda text: json.dumps(text)[1:-1])
#: Lines that are like a piece of text, and are none; or none that Ollama sends.
ODD = [
    "",
    " ",
    "{}",
    "null",
    "1,2",
    "[",
    "]",
    '"',
    "not JSON",
    '{"error":"no such luck"}',
    '{"object":"chat.completion"}',
    '{"response":null}',
    '{"response":5,"done":false}',
    '{"message":null}',
    '{"message":[]}',
    '{"message":{"content":5}}',
    '{"done":false}',
    HEAD + '"response":"a","response":"b","done":false}',
    HEAD + '"response":"a","done":false,"x":NaN}',
    HEAD + '"response":"a","done":false,"eval_count":1e400}',
    HEAD + '"response":"a","done":false,"x":' + "9" * 5000 + "}",
    HEAD + '"response":"a","done":false,"eval_count":99999999999999999999}',
    HEAD + '"response":"a","done":0}',
    HEAD + '"response":"a","done":false,"x":' + "[" * 200 + "]" * 200 + "}",
    HEAD + '"response": "a", "done": false}',
    HEAD + '"response":"a","done":false} ',
    HEAD + '"response":"a","done":false}\r',
    " " + HEAD + '"response":"a","done":false}',
    HEAD + '"response":"a","done":false}' + HEAD + '"response":"a","done":false}',
    HEAD + '"response":"a","done":true}',
    HEAD + '"response":"","done":false,"tool_calls":[{"function":{"name":"f"}}]}',
    HEAD + '"response":"a"',
    HEAD + '"message":{"role":"tool","content":"a"},"done":false}',
    '{"model":"other","created_at":"yesterday","done":false}',
    '{"model":"\\u006d","created_at":"x","response":"a","done":false}',
    '{"model":"n","created_at":"x","response":"a","done":false}',
    HEAD + '"message":{"role":"assistant","content":"a","content":"b"},"done":false}',
]


def of(request, answer, thought):
    """A line as Ollama writes it, the texts as they stand."""
    thinking = "" if thought is None else f',"thinking":"{thought}"'
    if request is CHAT:
        return f'{HEAD}"message":{{"role":"assistant","content":"{answer}"{thinking}}},"done":false}}'
    return f'{HEAD}"response":"{answer}"{thinking},"done":false}}'


def outcome(request, chunks, *, join):
    """The reply, or the error, and how many objects there were."""
    decoder = Decoder(request, 200, {}, settings=Settings(base_url="http://h"), now=datetime.now(UTC), join=join)
    collector, objects = Collector(request, host="http://h"), 0
    try:
        for chunk in chunks:
            for part in decoder.feed(chunk):
                collector.add(part)
                objects += 1
        for part in decoder.end():
            collector.add(part)
            objects += 1
        return collector.reply(), objects
    except OllamaError as error:
        return (type(error), str(error)), objects


def cut(whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def lines_of(request):
    some = st.builds(of, st.just(request), good_texts, st.none() | good_texts)
    other = st.builds(of, st.sampled_from([GENERATE, CHAT]), texts, st.none() | texts)
    return st.lists(some | some | some | other | st.sampled_from(ODD), max_size=8)


@given(request=st.sampled_from([GENERATE, CHAT]), data=st.data())
def test_any_lines_in_any_chunks_give_the_same_reply_or_error(request, data):
    """Joining is a matter of speed alone: whatever comes, what comes out is what it would be without."""
    lines = data.draw(lines_of(request)) + data.draw(st.sampled_from([[END], [], [END, END]]))
    whole = "".join(line + "\n" for line in lines).encode()
    chunks = cut(whole, data)

    assert outcome(request, chunks, join=True)[0] == outcome(request, chunks, join=False)[0]


@given(
    request=st.sampled_from([GENERATE, CHAT]),
    at=st.integers(0, 700),
    drop=st.integers(0, 3),
    put=st.binary(max_size=3) | st.sampled_from([b'"', b"\\", b"\n", b",", b"\xf0\x9f", b"\\ud83d", b'"a":1,']),
)
@example(request=GENERATE, at=53, drop=0, put=b"\xf0")
def test_a_damaged_answer_gives_the_same_reply_or_error(request, at, drop, put):
    """Some bytes in an answer of Ollama's are others, at any place."""
    texts = [(" the", None), ("é", " so"), (r"\u003c\n", None), ("🙂", "")]
    lines = [of(request, *pair) for pair in texts] + [END]
    whole = "".join(line + "\n" for line in lines).encode()
    damaged = whole[:at] + put + whole[at + drop :]

    assert outcome(request, [damaged], join=True)[0] == outcome(request, [damaged], join=False)[0]


def test_a_character_that_is_split_over_two_lines_is_a_damaged_line():
    """Either line is no UTF-8, whatever both would be together."""
    first, second = (of(GENERATE, "X", None).encode().replace(b"X", half) for half in (b"\xf0\x9f", b"\x99\x82"))
    chunk = b"\n".join([first, second, END.encode(), b""])

    (kind, _), objects = outcome(GENERATE, [chunk], join=True)

    assert issubclass(kind, OllamaError)
    assert objects == 0


@pytest.mark.parametrize("request_", [GENERATE, CHAT], ids=["generate", "chat"])
@pytest.mark.parametrize("thought", [None, "", r"so \"it\" is"])
def test_pieces_that_arrive_together_come_as_one_object(request_, thought):
    """Otherwise each would be parsed, which is most of the work on an answer."""
    lines = [of(request_, answer, thought) for answer in ("a", r"\n\u003cb\u003e", "🙂", "é" * 100)]
    together = [("\n".join([*lines, END]) + "\n").encode()]

    reply, objects = outcome(request_, together, join=True)

    assert objects == 2
    assert reply.text == "a\n<b>🙂" + "é" * 100
    assert (reply.thinking or "") == (r'so "it" is' * 4 if thought else "")
    assert outcome(request_, together, join=False) == (reply, 5)
