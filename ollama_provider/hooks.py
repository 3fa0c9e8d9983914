"""A Connection becomes Settings, Settings become a Client."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import cached_property
from typing import Any, Self, TypeVar

from airflow.providers.common.compat.sdk import BaseHook

from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.schemas import (
    ChatReply,
    EmbedReply,
    GenerateReply,
    LocalModel,
    Message,
    Metrics,
    ProgressReply,
    Reply,
    ReplyT,
    Request,
    RunningModel,
    ShowReply,
)
from ollama_provider.api.settings import Settings

RequestT = TypeVar("RequestT", bound=Request)


class OllamaHook(BaseHook):
    """Talk to the Ollama server of an Airflow connection of type *Ollama*.

    Each method sends one request and returns its whole reply. The connection's default model, options and keep_alive
    fill in what a request does not name; the request's own win, options key by key. An option that is given as None
    takes the connection's away.

    Args:
        conn_id: the connection.
        overrides: values laid over the connection's extra fields for this hook alone, under the same names
            (``first_token_timeout=1800``, ``auto_pull=False``); None leaves the connection's own.

    Raises:
        InvalidRequestError: a value of the connection, an override or a field of a request is wrong; the text names it.
        AirflowNotFoundException: there is no such connection.
        OllamaError: the server could not be reached, or its answer says no; see `ollama_provider.api.errors`.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "ollama_default"
    conn_type = "ollama"
    hook_name = "Ollama"

    def __init__(self, conn_id: str = default_conn_name, **overrides: Any) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.overrides = overrides

    @cached_property
    def settings(self) -> Settings:
        """Where the server is and how to treat it, from the connection and the overrides."""
        raise NotImplementedError

    @property
    def client(self) -> Client:
        """The client, made at first use and kept until `close`; `close` is final."""
        raise NotImplementedError

    def get_conn(self) -> Client:
        """Return `client`: the name that Airflow gives to it."""
        return self.client

    def close(self) -> None:
        """End the requests in flight and close the client, from any thread or signal handler; twice does no harm."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @asynccontextmanager
    async def async_client(self) -> AsyncGenerator[AsyncClient, None]:
        """Yield a client for async code; the connection is fetched without blocking the event loop.

        Inside, `settings` and `request` may be used as well.
        """
        raise NotImplementedError
        yield

    def request(self, kind: type[RequestT], **fields: Any) -> RequestT:
        """Make a request, with the connection's defaults for the fields that *fields* does not name."""
        raise NotImplementedError

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send any request."""
        return self.client.send(request)

    def stream(self, request: Request[ReplyT]) -> AbstractContextManager[Any]:
        """Open a streamed reply: ``with hook.stream(hook.request(ChatRequest, messages=…)) as parts``."""
        return self.client.stream(request)

    def generate(self, prompt: str = "", **fields: Any) -> GenerateReply:
        """Complete a prompt; *fields* are those of `GenerateRequest` (model, system, format, options, …)."""
        raise NotImplementedError

    def chat(self, messages: str | list[Message] | list[dict[str, Any]], **fields: Any) -> ChatReply:
        """Answer a chat, or one message of the user; *fields* are those of `ChatRequest` (model, tools, …)."""
        raise NotImplementedError

    def embed(self, input: str | list[str], **fields: Any) -> EmbedReply:
        """Turn texts into vectors, one a text; *fields* are those of `EmbedRequest` (model, dimensions, …)."""
        raise NotImplementedError

    def pull(self, model: str | None = None, **fields: Any) -> ProgressReply:
        """Download a model to the server."""
        raise NotImplementedError

    def list_models(self) -> list[LocalModel]:
        """Return the models on the server's disk."""
        raise NotImplementedError

    def show(self, model: str | None = None, **fields: Any) -> ShowReply:
        """Return what the server knows about a model: capabilities, context length, parameters, …"""
        raise NotImplementedError

    def ps(self) -> list[RunningModel]:
        """Return the models in the server's memory (server 0.1.38)."""
        raise NotImplementedError

    def version(self) -> str:
        """Return the server's version; "0.0.0" for one built from source."""
        raise NotImplementedError

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name."""
        raise NotImplementedError

    def create(self, model: str, **fields: Any) -> ProgressReply:
        """Make a model of another one (``from_=…``) or of files; *fields* are those of `CreateRequest`."""
        raise NotImplementedError

    def delete(self, model: str) -> None:
        """Remove a model from the server's disk."""
        raise NotImplementedError

    def load(self, model: str | None = None, **fields: Any) -> Metrics:
        """Bring a model into memory and wait until it is there; *fields* are ``options`` and ``keep_alive``."""
        raise NotImplementedError

    def unload(self, model: str | None = None) -> Reply:
        """Take a model out of memory; the server answers before the memory is free."""
        raise NotImplementedError

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the server can be used, in words, within 10 s and without a download."""
        raise NotImplementedError
