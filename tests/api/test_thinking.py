"""What a model thought is told from its answer, in one piece or many, and a tag that is only quoted stays."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.replies import Collector, StreamedReplies
from ollama_provider.api.schemas import ChatRequest, GenerateRequest

GENERATE = GenerateRequest(model="m", prompt="hi")
CHAT = ChatRequest(model="m", messages="hi")
JSON = GenerateRequest(model="m", prompt="hi", format="json")


def parts_of(request, pieces, **last):
    def part(text, **more):
        place = {"message": {"role": "assistant", "content": text}} if request is CHAT else {"response": text}
        return {**place, "done": False, **more}

    return [*map(part, pieces), part("", done=True, done_reason="stop", **last)]


def sent(request, *pieces):
    collector = Collector(request, host="http://h")
    for part in parts_of(request, pieces):
        collector.add(part)
    reply = collector.reply()
    return reply.thinking, reply.text


def streamed(request, *pieces):
    reader = StreamedReplies(request, host="http://h")
    replies = [reader.read(json.loads(json.dumps(part))) for part in parts_of(request, pieces)]
    return "".join(reply.thinking or "" for reply in replies) or None, "".join(reply.text for reply in replies)


SPLIT = {
    "<think>\nI will greet back.\n</think>\n\nHello!": ("I will greet back.", "Hello!"),
    "<think>\n\n</think>\n\nHello!": (None, "Hello!"),
    "<think></think>Hello!": (None, "Hello!"),
    " \n<think>secret plan</think>Hello!": ("secret plan", "Hello!"),
    '<think>x</think>\n{"a": 1}': ("x", '{"a": 1}'),
    "<think>a <think> in it</think>b</think>": ("a <think> in it", "b</think>"),
    "<think>never closed": ("never closed", ""),
    "<think>nearly closed </thin": ("nearly closed </thin", ""),
}
KEPT = [
    "Hello!",
    "",
    "  two blanks before",
    "<thi",
    "<thinking> is another tag",
    "The tags are <think> and </think>.",
    "Close it with </think>.",
    "Like this:\n<think>\nno\n</think>\nyes",
    "```\n</think>\n```\nis the end of a thought",
    "The last line is\n</think>",
    '{"html": "</think>"}',
]


@pytest.mark.parametrize("request_", [GENERATE, CHAT, JSON], ids=["generate", "chat", "json"])
@pytest.mark.parametrize("text", SPLIT)
def test_a_thought_at_the_beginning_is_split_off(request_, text):
    """Models whose template knows no thinking leave the tags in the answer."""
    assert sent(request_, text) == SPLIT[text]
    assert streamed(request_, text) == SPLIT[text]
    assert streamed(request_, *text) == SPLIT[text]


@pytest.mark.parametrize("request_", [GENERATE, CHAT], ids=["generate", "chat"])
@pytest.mark.parametrize("text", KEPT)
def test_a_tag_that_is_quoted_stays(request_, text):
    """An answer may speak of the tags."""
    assert sent(request_, text) == (None, text)
    assert streamed(request_, *text) == (None, text)


tokens = st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "</", " ", "\n", "a", "b"]), max_size=12)


@given(tokens=tokens, data=st.data())
def test_pieces_say_what_the_whole_says(tokens, data):
    """However an answer with an opening tag is cut into pieces, the same comes out."""
    text = "<think>" + "".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert streamed(GENERATE, *pieces) == sent(GENERATE, *pieces)


@pytest.mark.parametrize("request_", [GENERATE, CHAT, JSON], ids=["generate", "chat", "json"])
def test_a_closing_tag_on_a_line_of_its_own_ends_a_thought(request_):
    """Where the model's template ends in the opening tag, the answer holds the closing one alone."""
    assert sent(request_, "Let me see.\nYes.\n</think>\n\nHello!") == ("Let me see.\nYes.", "Hello!")
    assert sent(request_, "</think>\n\nHello!") == (None, "Hello!")


@pytest.mark.parametrize(
    "request_",
    [
        JSON,
        GenerateRequest(model="m", prompt="User: hi\nAssistant: <think>\n", raw=True),
        GenerateRequest(model="m", prompt="hi", template="{{ .Prompt }}<think>"),
        ChatRequest(model="m", messages=[{"role": "assistant", "content": "<think>"}]),
    ],
    ids=["an answer in JSON", "a raw prompt", "a template", "a last message"],
)
def test_a_closing_tag_anywhere_where_a_thought_is_certain(request_):
    """Prose before JSON, or a prompt that ended in the opening tag, leave no doubt."""
    collector = Collector(request_, host="http://h")
    text = 'Let me see.</think>{"a": 1}'
    place = (
        {"message": {"role": "assistant", "content": text}} if isinstance(request_, ChatRequest) else {"response": text}
    )
    collector.add({**place, "done": True})

    assert (collector.reply().thinking, collector.reply().text) == ("Let me see.", '{"a": 1}')


def test_what_the_server_split_off_is_kept():
    """Its own field and a thought in the answer come one after the other; a lone closing tag is then no thought's."""

    def reply(text):
        collector = Collector(GENERATE, host="http://h")
        collector.add({"response": text, "thinking": "first", "done": True})
        return collector.reply()

    assert (reply("<think>second</think>a").thinking, reply("<think>second</think>a").text) == ("first\nsecond", "a")
    assert (reply("b\n</think>\na").thinking, reply("b\n</think>\na").text) == ("first", "b\n</think>\na")
