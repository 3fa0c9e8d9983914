"""An error repeats of a server's words neither what is ours nor what a terminal obeys."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.redaction import quote
from ollama_provider.api.schemas import ChatRequest, EmbedRequest, GenerateRequest
from ollama_provider.testing import Fail, Respond

PROMPT = "Dear diary,\ntoday I told nobody about the blue letter that came from Lisbon, nor will I ever do so."
PASSWORD = "hunter2secret"
HEADER = "key-4711-abcdef"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()

REQUESTS = [
    GenerateRequest(model="llama3.2", prompt=PROMPT),
    GenerateRequest(model="llama3.2", prompt="hi", system=PROMPT),
    ChatRequest(model="llama3.2", messages=[{"role": "user", "content": PROMPT}]),
    EmbedRequest(model="nomic-embed-text", input=["other", PROMPT]),
]
ECHOES = [
    PROMPT,
    PROMPT[20:60],
    PROMPT.replace("\n", "\\n"),
    " ".join(PROMPT.split()),
    PASSWORD,
    f"Authorization: Basic {BASIC}",
    f"x-api-key: {HEADER}",
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.path)
@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("how", ["error", "line", "title"])
def test_what_is_ours_is_cut_out(on, ollama, request_, echo, how):
    """A server, or a proxy, may echo the request in whatever it says."""
    turn = {
        "error": Fail(f"no luck with {echo} today", status=400),
        "line": Respond(200, json.dumps({"error": f"no luck with {echo} today"}).encode(), "application/x-ndjson"),
        "title": Respond(418, f"<html><title>{echo[:70]}</title></html>"),
    }[how]
    ollama.stand_in.script(turn, path=request_.path.removeprefix("/api/"))

    with pytest.raises(OllamaError) as raised:
        on.send(
            request_,
            base_url=ollama.url,
            login="me",
            password=PASSWORD,
            headers={"x-api-key": HEADER},
            max_attempts=1,
        )

    text = str(raised.value)
    for secret in ("diary", "blue letter", "Lisbon", PASSWORD, BASIC, HEADER):
        assert secret not in text
    if how != "title":
        assert "no luck with" in text
        assert "today" in text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("a\x00b\x08c\rd\ne", "a b c d e"),
        ("right\u202eleft\u2066x\u200b", "right left x"),
        ("näh 你好 😀", "näh 你好 😀"),
        ("see https://ollama.com/connect?key=secret now", "see (link) now"),
    ],
)
def test_what_a_terminal_obeys_is_cut_out(said, told):
    """Colours, overwritten lines and turned text have no place in a log."""
    assert quote(said) == told


def test_ordinary_words_stay():
    """A short prompt, or one that shares words with the error, takes nothing out of it that is not its own."""
    said = "the input length exceeds the context length"

    assert quote(said, ["hi", "the", "context of a long story", "length is no matter"]) == said
    assert quote("bad text: dogs", ["dogs"]) == "bad text: (cut)"


def test_a_long_text_is_shortened_first():
    """What is behind does not come forward when something is cut out."""
    assert quote("x" * 290 + " secret words of mine " + "y" * 9000, []).endswith("…")
    assert len(quote("word " * 10_000, ["word " * 10_000])) < 400


@pytest.mark.parametrize("before", range(280, 301))
def test_a_secret_at_the_end_of_what_is_quoted_is_not_cut_in_two(before):
    """Its first half would tell most of it."""
    told = quote("x" * before + " " + PASSWORD + " and more" * 50, [PASSWORD])

    assert "hunt" not in told


@pytest.mark.parametrize(
    "spelling",
    [
        "p&quot;w &lt;7&gt; &amp; Zo\u00eb",
        'p\\"w <7> & Zo\\u00eb',
        "p%22w+%3C7%3E+%26+Zo%C3%AB",
        'p"w  <7>\t& Zo\u00eb',
    ],
)
def test_other_spellings_are_recognised(spelling):
    """Of a page, of JSON, of a URL, and with other blanks."""
    assert quote(f"who is {spelling}, please?", ['p"w <7> & Zo\u00eb']) == "who is (cut), please?"


@given(
    st.text(max_size=60),
    st.integers(0, len(PROMPT) - 40),
    st.text(max_size=60),
    st.sampled_from([str, lambda text: json.dumps(text)[1:-1], lambda text: " ".join(text.split())]),
)
def test_no_part_of_a_prompt_is_quoted_wherever_it_stands(before, start, after, spell):
    """On one line, without what a terminal obeys, and bounded."""
    quoted = quote(before + spell(PROMPT[start : start + 40]) + after, [PROMPT])

    plain = " ".join(PROMPT.split())
    assert not any(plain[at : at + 16] in quoted for at in range(len(plain) - 15))
    assert quoted.isprintable()
    assert len(quoted) <= 400
