"""The endpoints of OpenAI's API that Ollama has, under `/v1`.

As in Ollama, such a request is translated into a request of `/api`, and the reply is translated back. Fields that
Ollama ignores (`tool_choice`, `max_completion_tokens`, `n`) are ignored here, too.
"""

import base64
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_provider.testing.endpoints.calls import Call
from ollama_provider.testing.endpoints.requests import read
from ollama_provider.testing.exchange import Head, Line, Request, Response, Step, Steps
from ollama_provider.testing.go.encoding import BadRequestError, Json, check_base64, decode, dumps, unix_time
from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.server_state import ServerState

ENDPOINTS = {
    "/v1/chat/completions": ("0.1.24", "POST"),
    "/v1/completions": ("0.2.0", "POST"),
    "/v1/embeddings": ("0.2.6", "POST"),
    "/v1/models": ("0.2.0", "GET"),
    "/v1/models/:model": ("0.2.0", "GET"),
}
"""Path -> the first version that has it, and its method."""

_JSON = "application/json"
_EVENTS = "text/event-stream"
_KINDS = {400: "invalid_request_error", 404: "not_found_error"}
_EFFORTS = ("high", "medium", "low", "max", "none")
_IMAGES = tuple(f"data:{kind};base64," for kind in ("", "image/jpeg", "image/jpg", "image/png", "image/webp"))

_Objects = Callable[[dict[str, Json]], list[Json]]


@dataclass(frozen=True, slots=True)
class TranslatedRequest:
    """A request as Ollama's own API has it, with the way to translate the reply back.

    Attributes:
        request: A request of `/api`. The original request if it is not for `/v1`, or cannot be parsed.
        objects: Translates one JSON object of the reply into one or more; None leaves the reply as it is.
        streams: The reply is a stream of server-sent events.
    """

    request: Request
    objects: _Objects | None = None
    streams: bool = False

    def rewritten(self, steps: Steps) -> Steps:
        """Translate the steps of a reply into OpenAI's format.

        Args:
            steps: The reply to `request`.
        """
        if self.objects is None:
            yield from steps
            return
        for step in steps:
            yield from self._step(step, self.objects)

    def _step(self, step: Step, objects: _Objects) -> Steps:
        match step:
            case Head():
                yield replace(step, content_type=_EVENTS if self.streams else _JSON)
            case Line():
                yield Line(b"".join(_event(item) for item in self._read(step.data, objects)))
            case Response() if step.content_type is None or not step.content_type.startswith(_JSON) or step.foreign:
                yield step
            case Response() if step.status != 200:
                yield replace(step, body=_error(step.status, _text(step.body)), content_type=_JSON)
            case Response() if self.streams:
                yield Head(content_type=_EVENTS)
                yield Line(b"".join(_event(item) for item in self._read(step.body, objects)))
            case Response():
                yield replace(step, body=dumps(self._read(step.body, objects)[0]).encode() + b"\n", content_type=_JSON)
            case _:
                yield step

    def _read(self, data: bytes, objects: _Objects) -> list[Json]:
        try:
            value = json.loads(data)
        except ValueError:
            # Raw bytes from a test's script go out unchanged.
            return [data]
        # As in Ollama, an error after the first byte becomes an ordinary object that does not contain the error.
        return objects(value if isinstance(value, dict) else {})


def translate(state: ServerState, request: Request) -> TranslatedRequest:
    """Translate a request of OpenAI's API.

    Other requests stay as they are, and so do those that cannot be parsed: `explain_refusal` answers these.

    Args:
        state: For the version.
        request: Any request.
    """
    since, method = ENDPOINTS.get(route(request.path), ("", ""))
    if request.method != method or not state.since(since):
        return TranslatedRequest(request)
    try:
        return _translate(state, request)
    except BadRequestError:
        return TranslatedRequest(request, lambda value: [value])


def explain_refusal(state: ServerState, call: Call) -> Steps:
    """Handler for a request that `translate` could not parse: translate it again and let the error out.

    Raises:
        BadRequestError: With Ollama's error text.
    """
    _translate(state, call.request)
    yield from ()


def _translate(state: ServerState, request: Request) -> TranslatedRequest:
    match route(request.path):
        case "/v1/chat/completions":
            return _chat(state, request)
        case "/v1/completions":
            return _completion(state, request)
        case "/v1/embeddings":
            return _embeddings(request)
        case "/v1/models":
            return TranslatedRequest(replace(request, path="/api/tags"), _model_list)
        case _:
            name = request.path.removeprefix("/v1/models/")
            show = replace(request, method="POST", path="/api/show", body=dumps({"name": name}).encode())
            return TranslatedRequest(show, lambda shown: [_model(name, shown["modified_at"])])


def route(path: str) -> str:
    """The key of *path* in `ENDPOINTS`: the path itself, except for a model by its name."""
    name = path.removeprefix("/v1/models/")
    return "/v1/models/:model" if name != path and name and "/" not in name else path


def _read(request: Request) -> dict[str, Json]:
    if not request.body.strip():
        raise BadRequestError("EOF")
    return read(request.path, decode(request.body))


def _ollama_request(request: Request, path: str, body: Mapping[str, Json]) -> Request:
    return replace(request, path=path, body=dumps(dict(body)).encode())


def _chat(state: ServerState, request: Request) -> TranslatedRequest:
    body = _read(request)
    if not body.get("messages"):
        raise BadRequestError("[] is too short - 'messages'")
    fields: dict[str, Json] = {
        "model": body.get("model", ""),
        "messages": [message for given in body["messages"] for message in _messages(given, body["messages"])],
        "stream": body.get("stream", False),
        "options": _options(body),
    }
    if "tools" in body:
        fields["tools"] = body["tools"]
    if (effort := (body.get("reasoning") or {}).get("effort") or body.get("reasoning_effort")) is not None:
        if effort not in _EFFORTS:
            known = '"high", "medium", "low", "max", or "none"'
            raise BadRequestError(f"invalid reasoning value: '{effort}' (must be {known})")
        fields["think"] = effort if effort != "none" else False
    match (wanted := body.get("response_format") or {}).get("type", "").strip().lower():
        case "json_object":
            fields["format"] = "json"
        case "json_schema" if wanted.get("json_schema"):
            fields["format"] = wanted["json_schema"].get("schema")
    fields |= {key: body[key] for key in ("logprobs", "top_logprobs", "_debug_render_only") if key in body}
    reply = _ChatReply(state, _identity("chatcmpl", request), fields["stream"], _wants_usage(body))
    return TranslatedRequest(_ollama_request(request, "/api/chat", fields), reply.objects, fields["stream"])


def _messages(given: Mapping[str, Json], others: list[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Translate one message. Each part of a multi-part message becomes a message, as in Ollama."""
    base: dict[str, Json] = {"role": given.get("role", "")}
    more: dict[str, Json] = {"thinking": given.get("reasoning", "")}
    if given.get("tool_calls") is not None:
        more["tool_calls"] = [_tool_call(call) for call in given["tool_calls"]]
    more["tool_call_id"] = identity = given.get("tool_call_id", "")
    if base["role"].lower() == "tool":
        more["tool_name"] = given.get("name") or _called_function(identity, others)
    match content := given.get("content"):
        case str():
            return [base | {"content": content} | more]
        case list():
            found = [base | _part(part) for part in content]
            if found and more.get("tool_calls"):
                found[-1] |= more
            return found
        case _ if given.get("tool_calls") is None:
            raise BadRequestError(f"invalid message content type: {_go_type(content)}")
        case _:
            return [base | more]


def _go_type(value: Json) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int() | float():
            return "float64"
        case _:
            return "map[string]interface {}"


def _tool_call(call: Mapping[str, Json]) -> dict[str, Json]:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments", ""))
    except ValueError:
        arguments = ""
    if not isinstance(arguments, dict):
        raise BadRequestError("invalid tool call arguments")
    return {"id": call.get("id", ""), "function": {"name": function.get("name", ""), "arguments": arguments}}


def _called_function(identity: str, messages: list[Mapping[str, Json]]) -> str:
    """Name of the function in the last tool call with this id; empty if there is none."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    found = [(call.get("function") or {}).get("name", "") for call in calls if call.get("id", "") == identity]
    return found[-1] if found and identity else ""


def _part(part: Json) -> dict[str, Json]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"content": part["text"]}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return {"content": "", "images": [_image(url)]}
    raise BadRequestError("invalid message format")


def _image(url: str) -> str:
    if url.startswith(("http://", "https://")):
        raise BadRequestError("image URLs are not currently supported, please use base64 encoded data instead")
    for prefix in _IMAGES:
        if url.startswith(prefix):
            data = url.removeprefix(prefix)
            try:
                check_base64(data)
            except BadRequestError:
                break
            return data
    raise BadRequestError("invalid image input")


def _completion(state: ServerState, request: Request) -> TranslatedRequest:
    body = _read(request)
    stop = body.get("stop")
    for item in stop if isinstance(stop, list) else ():
        if not isinstance(item, str):
            raise BadRequestError(f"invalid type for 'stop' field: {_go_type(item)}")
    fields = {
        "model": body.get("model", ""),
        "prompt": body.get("prompt", ""),
        "suffix": body.get("suffix", ""),
        "stream": body.get("stream", False),
        "options": _options(body),
    }
    reply = _CompletionReply(state, _identity("cmpl", request), fields["stream"], _wants_usage(body))
    return TranslatedRequest(_ollama_request(request, "/api/generate", fields), reply.objects, fields["stream"])


def _embeddings(request: Request) -> TranslatedRequest:
    body = _read(request)
    encoding = body.get("encoding_format", "")
    if encoding and encoding.lower() not in {"float", "base64"}:
        known = "Supported values: ['float', 'base64']."
        raise BadRequestError(f"Invalid value for 'encoding_format' = {encoding}. {known}")
    texts = body.get("input")
    if texts is None or texts == []:
        raise BadRequestError("invalid input")
    model = body.get("model", "")
    fields = {"model": model, "input": [""] if texts == "" else texts, "dimensions": body.get("dimensions", 0)}

    def objects(reply: dict[str, Json]) -> list[Json]:
        found = [
            {
                "object": "embedding",
                "embedding": _base64_floats(vector) if encoding.lower() == "base64" else vector,
                "index": i,
            }
            for i, vector in enumerate(reply["embeddings"])
        ]
        count = reply.get("prompt_eval_count", 0)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return [{"object": "list", "data": found or None, "model": model, "usage": usage}]

    return TranslatedRequest(_ollama_request(request, "/api/embed", fields), objects)


def _base64_floats(vector: list[float | None]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *(value or 0.0 for value in vector))).decode()


def _options(body: Mapping[str, Json]) -> dict[str, Json]:
    options: dict[str, Json] = {"temperature": body.get("temperature", 1.0), "top_p": body.get("top_p", 1.0) or 1.0}
    match body.get("stop"):
        case str() as stop:
            options["stop"] = [stop]
        case list() as stops:
            options["stop"] = [item for item in stops if isinstance(item, str)]
    if "max_tokens" in body:
        options["num_predict"] = body["max_tokens"]
    return options | {key: body[key] for key in ("seed", "frequency_penalty", "presence_penalty") if key in body}


def _wants_usage(body: Mapping[str, Json]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _identity(kind: str, request: Request) -> str:
    return f"{kind}-{zlib.crc32(request.body) % 999}"


@dataclass(slots=True)
class _ChatReply:
    """Translates the objects of a chat's reply.

    Attributes:
        state: For version and clock.
        identity: The `id` of every object.
        streams: The objects are chunks of a stream.
        usage: The stream ends with a chunk of token counts.
        called: A chunk so far had a tool call.
        begun: A chunk has been sent.
    """

    state: ServerState
    identity: str
    streams: bool
    usage: bool
    called: bool = False
    begun: bool = False

    def objects(self, reply: dict[str, Json]) -> list[Json]:
        given = reply.get("message") or {}
        if not self.streams:
            message = _message(given.get("role", ""), given)
            reason = "tool_calls" if given.get("tool_calls") else reply.get("done_reason")
            choice = {"index": 0, "message": message, "finish_reason": reason} | _logprobs(reply)
            whole = self._object("chat.completion", reply, [choice])
            return [whole | {"usage": _usage(reply)} | _debug(reply)]
        done = bool(reply.get("done"))
        if self.state.since("0.32.10"):
            return self._chunks_since_0_32_10(reply, given, done=done)
        chunks = []
        for part in (parts := _parts(given)):
            calls = part.get("tool_calls")
            reason = reply.get("done_reason") if part is parts[-1] else None
            reason = "tool_calls" if reason and (self.called or calls) else reason
            logprobs = _logprobs(reply) if part is parts[0] else {}
            chunks.append(self._chunk(reply, _message("assistant", part), reason, logprobs))
            self.called = self.called or bool(calls)
        if not done:
            return chunks
        counts = [chunks[-1] | {"choices": [], "usage": _usage(reply)}] if self.usage else []
        return [*chunks, *counts, _DONE]

    def _chunks_since_0_32_10(self, reply: dict[str, Json], message: Mapping[str, Json], *, done: bool) -> list[Json]:
        """Since 0.32.10 only the first chunk has the role, and `finish_reason` comes in a chunk of its own."""
        chunks = []
        if not (done and self.begun and not any(message.get(key) for key in ("content", "thinking", "tool_calls"))):
            for part in (parts := _parts(message)):
                delta = _message("assistant", part)
                if self.begun:
                    del delta["role"]
                if part is not parts[-1]:
                    del delta["content"]
                logprobs = _logprobs(reply) if part is parts[0] else {}
                chunks.append(self._chunk(reply, delta, None, logprobs))
                self.called = self.called or bool(part.get("tool_calls"))
                self.begun = True
        if not done:
            return chunks
        reason = reply.get("done_reason") or "stop"
        end = self._chunk(reply, {}, "tool_calls" if reason == "stop" and self.called else reason)
        counts = [end | {"choices": [], "usage": _usage(reply)}] if self.usage else []
        return [*chunks, end, *counts, _DONE]

    def _chunk(
        self, reply: Mapping[str, Json], delta: Json, reason: str | None, more: Mapping[str, Json] | None = None
    ) -> dict[str, Json]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, **(more or {})}
        return self._object("chat.completion.chunk", reply, [choice])

    def _object(self, kind: str, reply: Mapping[str, Json], choices: list[Json]) -> dict[str, Json]:
        return {
            "id": self.identity,
            "object": kind,
            "created": int(self.state.clock()),
            "model": reply.get("model", ""),
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        }


@dataclass(slots=True)
class _CompletionReply:
    """Translates the objects of a completion's reply; the attributes are those of `_ChatReply`."""

    state: ServerState
    identity: str
    streams: bool
    usage: bool

    def objects(self, reply: dict[str, Json]) -> list[Json]:
        choice = {"text": reply.get("response", ""), "index": 0, "finish_reason": reply.get("done_reason")}
        base = {"id": self.identity, "object": "text_completion", "created": int(self.state.clock())}
        model = {"model": reply.get("model", ""), "system_fingerprint": "fp_ollama"}
        if not self.streams:
            return [base | model | {"choices": [choice], "usage": _usage(reply)}]
        chunk = base | {"choices": [choice]} | model
        if not self.usage:
            return [chunk, _DONE] if reply.get("done") else [chunk]
        counted = chunk | {"usage": _usage({})}
        if not reply.get("done"):
            return [counted]
        return [counted, chunk | {"choices": [], "usage": _usage(reply)}, _DONE]


def _parts(message: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """Split a message with thinking and content in two: each is sent as a chunk of its own."""
    if message.get("thinking") and (message.get("content") or message.get("tool_calls")):
        return [{"thinking": message["thinking"]}, {key: value for key, value in message.items() if key != "thinking"}]
    return [message]


_DONE = b"data: [DONE]\n\n"


def _event(item: Json) -> bytes:
    return item if isinstance(item, bytes) else b"data: " + dumps(item).encode() + b"\n\n"


def _message(role: str, given: Mapping[str, Json]) -> dict[str, Json]:
    message: dict[str, Json] = {"role": role, "content": given.get("content", "")}
    if given.get("thinking"):
        message["reasoning"] = given["thinking"]
    if given.get("tool_calls"):
        message["tool_calls"] = [_openai_call(call) for call in given["tool_calls"]]
    return message


def _openai_call(call: Mapping[str, Any]) -> dict[str, Json]:
    function = call["function"]
    return {
        "id": call.get("id", ""),
        "index": function["index"],
        "type": "function",
        "function": {"name": function["name"], "arguments": dumps(function["arguments"])},
    }


def _logprobs(reply: Mapping[str, Json]) -> dict[str, Json]:
    return {"logprobs": {"content": reply["logprobs"]}} if reply.get("logprobs") else {}


def _debug(reply: Mapping[str, Json]) -> dict[str, Json]:
    return {"_debug_info": reply["_debug_info"]} if "_debug_info" in reply else {}


def _usage(reply: Mapping[str, Json]) -> dict[str, Json]:
    prompt, answer = reply.get("prompt_eval_count", 0), reply.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _model_list(reply: dict[str, Json]) -> list[Json]:
    data = [_model(entry["name"], entry["modified_at"]) for entry in reply["models"]]
    return [{"object": "list", "data": data or None}]


def _model(name: str, modified_at: str) -> dict[str, Json]:
    parsed = model_names.parse(name)
    return {
        "id": name,
        "object": "model",
        "created": unix_time(modified_at),
        "owned_by": parsed.namespace if parsed else "",
    }


def _text(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    return str(value.get("error", "")) if isinstance(value, dict) else body.decode("utf-8", "replace")


def _error(status: int, text: str) -> bytes:
    kind = _KINDS.get(status, "api_error")
    return dumps({"error": {"message": text, "type": kind, "param": None, "code": None}}).encode() + b"\n"
