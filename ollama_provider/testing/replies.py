"""The objects of generate and chat replies, and the lines they are streamed as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ollama_provider.testing.go import Json, dumps, timestamp
from ollama_provider.testing.state import Call, State
from ollama_provider.testing.steps import Head, Line, Pause, Steps

_TOOL_CALL_TOKENS = 2
_TOP = (" the", " a", " of", " and", " to", " in", " is", " it", " that", " for")
_PLACE = "\0"
"""Where a token goes in the pattern of a line."""


@dataclass(slots=True)
class Spoken:
    """What is said, cut where the options cut it.

    Attributes:
        thinking: Tokens of the thoughts.
        text: Tokens of the answer.
        done_reason: `stop` or `length`.
        tool_calls: Name and arguments of each call.
    """

    thinking: list[str]
    text: list[str]
    done_reason: str
    tool_calls: tuple[tuple[str, Mapping[str, Json]], ...]

    @property
    def count(self) -> int:
        """Tokens in all."""
        return len(self.thinking) + len(self.text) + _TOOL_CALL_TOKENS * len(self.tool_calls)


def stream(state: State, call: Call, spoken: Spoken, between: float, end: Callable[[], dict[str, Json]]) -> Steps:
    """The lines of a reply, one a token.

    Args:
        state: For version and clock.
        call: The request.
        spoken: What is said.
        between: Seconds before each token.
        end: What the last line adds, called when it is sent.
    """
    yield Head()
    for content, tokens in (
        (content_of(call, "", _PLACE), spoken.thinking),
        (content_of(call, _PLACE), spoken.text),
    ):
        pattern = ""
        for token in tokens:
            if between:
                yield Pause(between)
            if between or not pattern:
                # Encoded once for all tokens of a moment: the stand-in is the peer of benchmarks.
                pattern = dumps(envelope(call, timestamp(state.clock())) | content | {"done": False})
                before, _, after = pattern.rpartition(dumps(_PLACE))
            logprobs = logprobs_of(state, call, [token])
            extra = f",{dumps(logprobs)[1:]}" if logprobs else "}"
            yield Line(f"{before}{dumps(token)}{after[:-1]}{extra}\n".encode())
    if spoken.tool_calls:
        calls = content_of(call, "", tool_calls=tool_calls_of(state, spoken))
        yield _line(envelope(call, timestamp(state.clock())) | calls | {"done": False})
    yield _line(envelope(call, timestamp(state.clock())) | content_of(call, "") | end())


def _line(value: dict[str, Json]) -> Line:
    return Line(dumps(value).encode() + b"\n")


def envelope(call: Call, stamp: str) -> dict[str, Json]:
    """How every object begins; the model is named as the request named it."""
    return {"model": call.body["model"], "created_at": stamp}


def content_of(call: Call, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> dict[str, Json]:
    """`response` or `message`, whichever the endpoint has."""
    extra: dict[str, Json] = {"thinking": thinking} if thinking else {}
    if call.request.path == "/api/generate":
        return {"response": text} | extra
    if tool_calls:
        extra["tool_calls"] = tool_calls
    return {"message": {"role": "assistant", "content": text} | extra}


def tool_calls_of(state: State, spoken: Spoken) -> list[Json]:
    """The calls as the wire has them."""
    calls = []
    for index, (name, arguments) in enumerate(spoken.tool_calls):
        call = {"function": {"index": index, "name": name, "arguments": dict(arguments)}}
        calls.append(({"id": f"call_standin{index}"} if state.since("0.12.10") else {}) | call)
    return calls


def logprobs_of(state: State, call: Call, tokens: list[str]) -> dict[str, Json]:
    """`logprobs`, if the request wants them: the same number for every token."""
    if not call.body.get("logprobs") or not state.since("0.12.11"):
        return {}
    top = [_logprob(token, -1.0 - rank) for rank, token in enumerate(_TOP[: call.body.get("top_logprobs", 0)])]
    return {"logprobs": [_logprob(token, -0.5) | ({"top_logprobs": top} if top else {}) for token in tokens]}


def _logprob(token: str, value: float) -> dict[str, Json]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}
