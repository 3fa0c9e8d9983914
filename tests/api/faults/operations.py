"""Every request that a client can send, each with a good answer of Ollama's."""

import functools
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    HeadBlobRequest,
    LegacyEmbedRequest,
    PsRequest,
    PullRequest,
    PushBlobRequest,
    PushRequest,
    Request,
    ShowRequest,
    TagsRequest,
    VersionRequest,
    model_of,
)

#: Texts that no error may repeat. The server repeats them wherever it can.
PROMPT = "Dear diary, nobody may read the name Rumpelstiltskin"
PASSWORD = "hunter2-hunter2-hunter2"
SECRETS = (PROMPT, "Rumpelstiltskin", PASSWORD)


class Group(StrEnum):
    """Operations with the same outcome of the same fault; the value is their column on the page."""

    TEXT = "generate, chat"
    VECTORS = "embed"
    FACTS = "tags, ps, version, show"
    PULL = "pull"
    PUSH = "push"
    CREATE = "create"
    BARE = "copy, delete"
    UPLOAD = "upload of a blob"
    HEAD = "look for a blob"


#: Groups whose answer is a stream of objects, one a line.
STREAMS = frozenset({Group.TEXT, Group.PULL, Group.PUSH, Group.CREATE})
#: Groups whose success has no body.
EMPTY = frozenset({Group.BARE, Group.UPLOAD, Group.HEAD})


@dataclass(frozen=True)
class Operation:
    """A request, and how it is sent.

    Attributes:
        name: of the operation. It is the model's name, by which the server recognises the request.
        group: what other operations it is like.
        request: what is sent.
        answer: the body of a good answer.
        streamed: the caller reads the answer while it arrives (`Client.stream`).
    """

    name: str
    group: Group
    request: Request[Any]
    answer: bytes
    streamed: bool = False

    @property
    def echo(self) -> str:
        """What a server can repeat of the request."""
        has_prompt = self.group in {Group.TEXT, Group.VECTORS, Group.CREATE}
        return f"{PROMPT} {PASSWORD}" if has_prompt else PASSWORD

    @property
    def key(self) -> tuple[str, str | None]:
        """Path and model, by which a client's events tell operations apart."""
        return self.request.target, model_of(self.request)

    def limited(self, max_bytes: int | None = None, read_timeout: float | None = None) -> Request[Any]:
        """Return the request with other bounds, where it has a bound of that kind."""
        kind = type(self.request)
        if read_timeout is not None and self.request.read_timeout is not None:
            kind = _with(kind, "read_timeout", read_timeout)
        if max_bytes is not None:
            kind = _with(kind, "max_bytes", max_bytes)
        return kind.model_construct(**dict(self.request))


@functools.cache
def _with(kind: type[Request[Any]], bound: str, value: float) -> type[Request[Any]]:
    return type(kind.__name__, (kind,), {bound: value, "__annotations__": {bound: ClassVar[Any]}})


# Short, since answers are cut at each of their bytes.
_TEXT = b'{"response":"h"}\n{"done":true}\n'
_CHAT = b'{"message":{"role":"a","content":"h"}}\n{"done":true}\n'
_PROGRESS = b'{"status":"pulling a"}\n{"status":"success"}\n'

OPERATIONS = (
    Operation("generate", Group.TEXT, GenerateRequest(model="generate", prompt=PROMPT), _TEXT),
    Operation("generate-stream", Group.TEXT, GenerateRequest(model="generate-stream", prompt=PROMPT), _TEXT, True),
    Operation("chat", Group.TEXT, ChatRequest(model="chat", messages=PROMPT), _CHAT),
    Operation("chat-stream", Group.TEXT, ChatRequest(model="chat-stream", messages=PROMPT), _CHAT, True),
    Operation("embed", Group.VECTORS, EmbedRequest(model="embed", input=[PROMPT]), b'{"embeddings":[[1,0]]}'),
    Operation(
        "embeddings", Group.VECTORS, LegacyEmbedRequest(model="embeddings", prompt=PROMPT), b'{"embedding":[1,0]}'
    ),
    Operation("tags", Group.FACTS, TagsRequest(), b'{"models":[]}'),
    Operation("ps", Group.FACTS, PsRequest(), b'{"models":[]}'),
    Operation("version", Group.FACTS, VersionRequest(), b'{"version":"1"}'),
    Operation("show", Group.FACTS, ShowRequest(model="show"), b'{"model_info":{}}'),
    Operation("pull", Group.PULL, PullRequest(model="pull"), _PROGRESS),
    Operation("pull-stream", Group.PULL, PullRequest(model="pull-stream"), _PROGRESS, True),
    Operation("push", Group.PUSH, PushRequest(model="push"), _PROGRESS),
    Operation("create", Group.CREATE, CreateRequest(model="create", from_="x", system=PROMPT), _PROGRESS),
    Operation("copy", Group.BARE, CopyRequest(source="copy", destination="x"), b""),
    Operation("delete", Group.BARE, DeleteRequest(model="delete"), b""),
    Operation(
        "upload", Group.UPLOAD, PushBlobRequest(digest="sha256:" + "1" * 64, size=4, source=lambda: [b"GG", b"UF"]), b""
    ),
    Operation("blob", Group.HEAD, HeadBlobRequest(digest="sha256:" + "0" * 64), b""),
)
