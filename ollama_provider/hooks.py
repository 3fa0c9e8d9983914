"""The hook: a client for the servers of an Airflow connection."""

import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import copy_context
from functools import cached_property
from threading import RLock
from typing import Any, Self, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret
from asgiref.sync import sync_to_async

from ollama_provider import diagnosis
from ollama_provider.api.client import AsyncClient, Client
from ollama_provider.api.errors import InvalidRequestError, OllamaError, UnsupportedError
from ollama_provider.api.routing import error_of_some
from ollama_provider.api.schemas import (
    ChatReply,
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedReply,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    LocalModel,
    Message,
    Options,
    ProgressReply,
    PsRequest,
    PullRequest,
    ReplyT,
    Request,
    RunningModel,
    ShowReply,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings
from ollama_provider.api.shared_clients import shared_client
from ollama_provider.connection import Connection, form_widgets, readable_uri, settings_from_connection
from ollama_provider.observability import ServerLogger, TaskObserver
from ollama_provider.provider_info import UI_FIELD_BEHAVIOUR

RequestT = TypeVar("RequestT", bound=Request)
T = TypeVar("T")


class OllamaHook(BaseHook):
    """Client for the Ollama servers of an Airflow connection of type *Ollama*.

    Each method sends one request and returns its whole reply. Of several servers, one answers: the one that has the
    model in memory, then the one with the fewest requests in flight, then the first of the connection; the reply's
    ``server`` tells which. `pull`, `create`, `copy`, `delete`, `load` and `unload` do their work on all servers at the
    same time, return the reply of the first one, and fail if one of them failed.

    The connection's default model, options and keep_alive are used where a request sets none. Options are merged key by
    key, and those of the request win; an option that is None removes the connection's.

    Args:
        conn_id: id of the connection.
        server: the one server of the connection to use: its host (``gpu2``), with the port if that is not enough, or
            its URL. None means all.
        overrides: values that replace the connection's extra fields for this hook only, under the same names
            (``first_token_timeout=1800``, ``auto_pull=False``); None keeps the connection's value.

    Raises:
        InvalidRequestError: a value of the connection, an override or a field of a request is wrong; the text names it.
        AirflowNotFoundException: there is no such connection.
        OllamaError: the server could not be reached, or its answer is an error; see `ollama_provider.api.errors`.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "ollama_default"
    conn_type = "ollama"
    hook_name = "Ollama"

    def __init__(self, conn_id: str = default_conn_name, server: str | None = None, **overrides: Any) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.server = server
        self.overrides = overrides
        self._client: Client | None = None
        self._closed = False
        # Reentrant: on_kill calls `close` in a signal handler, which may interrupt the creation of the client.
        self._lock = RLock()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the widgets of the extra fields in the connection form, for Airflow 2.11 to 3.1."""
        return form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return labels and placeholders of the standard fields of the connection form, for Airflow 2.11 to 3.1."""
        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @cached_property
    def settings(self) -> Settings:
        """Settings of the connection, with the overrides applied."""
        try:
            settings = self._read(self.get_connection(self.conn_id))
        except AirflowNotFoundException:
            raise self._no_such_connection() from None
        mask_secret(_secrets(settings))
        return settings

    def _read(self, conn: Connection) -> Settings:
        settings = settings_from_connection(conn, **self.overrides)
        if self.server is None:
            return settings
        try:
            return settings.of_server(self.server)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"connection {self.conn_id!r}: {error.what}") from None

    @cached_property
    def servers(self) -> "tuple[Self, ...]":
        """A hook for each server of the connection, in its order; if there is only one, this hook itself."""
        if len(self.settings.urls) == 1:
            return (self,)
        return tuple(self._of_server(settings) for settings in self.settings.servers)

    def _of_server(self, settings: Settings) -> Self:
        hook = type(self)(self.conn_id, server=settings.base_url, **self.overrides)
        hook.settings = settings
        hook.listener = TaskObserver(ServerLogger(self.log, settings.base_url))
        if self._closed:
            hook.close()
        return hook

    def at(self, url: str) -> Self:
        """Return the hook of the server with this base URL; this hook, if the connection has no such server."""
        return next((hook for hook in self.servers if hook.settings.base_url == url), self)

    def on_servers(self, work: Callable[[Self], T]) -> dict[str, T]:
        """Do some work on every server, at the same time; one that fails does not stop the others.

        Args:
            work: called with each hook of `servers`, in a thread of its own if there are several.

        Returns:
            What *work* has returned, by the base URL of the server.

        Raises:
            OllamaError: some servers failed; the text names each of them and what it said.
        """
        if len(self.servers) == 1:
            return {self.settings.base_url: work(self)}
        with ThreadPoolExecutor(len(self.servers), "ollama-server") as pool:
            # Logging and Airflow keep what belongs to the task in context variables.
            done = [pool.submit(copy_context().run, work, hook) for hook in self.servers]
        results: dict[str, T] = {}
        failures: list[tuple[str, OllamaError]] = []
        for url, future in zip(self.settings.urls, done, strict=True):
            try:
                results[url] = future.result()
            except OllamaError as error:
                failures.append((url, error))
        if failures:
            raise error_of_some(failures, len(self.servers))
        return results

    def _on_all(self, work: Callable[[Self], T]) -> T:
        """Do some work on every server, and return the result of the first one."""
        return next(iter(self.on_servers(work).values()))

    def _no_such_connection(self) -> AirflowNotFoundException:
        return AirflowNotFoundException(
            f"there is no connection {self.conn_id!r}, or Airflow cannot read it (its log would say why). "
            "Add one of type Ollama (Admin, Connections), "
            f"or set AIRFLOW_CONN_{self.conn_id.upper()} in the environment of the workers."
        )

    @cached_property
    def listener(self) -> TaskObserver:
        """What logs and counts the requests."""
        return TaskObserver(self.log)

    @property
    def client(self) -> Client:
        """The client, created on first use. After `close`, which is final, it refuses requests."""
        with self._lock:
            if self._client is None:
                self._client = Client(self.settings, listener=self.listener)
            if self._closed:
                self._client.close()
            return self._client

    def get_conn(self) -> Client:
        """Return `client`. This is the name that Airflow's hooks use."""
        return self.client

    def close(self) -> None:
        """Cancel the requests in flight and close the client. Safe in any thread and signal handler, and twice."""
        self._closed = True
        if self._client is not None:
            self._client.close()
        for hook in self.__dict__.get("servers", ()):
            if hook is not self:
                hook.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def read_connection(self) -> None:
        """Read the connection without blocking the event loop; afterwards `settings` and `servers` do not block it."""
        if "settings" in self.__dict__:
            return
        try:
            settings = self._read(await get_async_connection(self.conn_id))
        except AirflowNotFoundException:
            raise self._no_such_connection() from None
        if secrets := _secrets(settings):
            # In a thread, because it talks to the supervisor, and another coroutine may be doing that too.
            await sync_to_async(mask_secret, thread_sensitive=False)(secrets)
        self.settings = settings

    @asynccontextmanager
    async def async_client(self, *, concurrency: int = 16) -> AsyncGenerator[AsyncClient, None]:
        """Yield a client for async code. The connection is read without blocking the event loop.

        Inside the ``async with`` block, `settings` and `request` can be used as well. In an event loop, hooks with the
        same settings share one client. Do not close it: that happens when the last of them leaves its block.

        Args:
            concurrency: most requests in flight at a time to a server, counted over all users of the shared client.
        """
        await self.read_connection()
        async with shared_client(self.settings, listener=self.listener, concurrency=concurrency) as client:
            yield client

    def request(self, kind: type[RequestT], **fields: Any) -> RequestT:
        """Return a request, with the connection's defaults for fields that are not in *fields*."""
        settings, known = self.settings, kind.model_fields
        if "model" in known and not fields.get("model"):
            if settings.model is None:
                raise InvalidRequestError(
                    f"no model: name one, or set the default model of connection {self.conn_id!r}"
                )
            fields["model"] = settings.model
        if "keep_alive" in known and fields.get("keep_alive") is None:
            fields["keep_alive"] = settings.keep_alive
        if "options" in known and settings.options is not None:
            fields["options"] = _merge(settings.options, fields.get("options"))
        return kind(**fields)

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Send any request."""
        return self.client.send(request)

    def stream(self, request: Request[ReplyT]) -> AbstractContextManager[Any]:
        """Open a streamed reply: ``with hook.stream(hook.request(ChatRequest, messages=…)) as parts``."""
        return self.client.stream(request)

    def generate(self, prompt: str = "", **fields: Any) -> GenerateReply:
        """Generate a completion. *fields* are those of `GenerateRequest` (model, system, format, options, …)."""
        return self.send(self.request(GenerateRequest, prompt=prompt, **fields))

    def chat(self, messages: str | list[Message] | list[dict[str, Any]], **fields: Any) -> ChatReply:
        """Generate the next message of a chat. *fields* are those of `ChatRequest` (model, tools, …)."""
        return self.send(self.request(ChatRequest, messages=messages, **fields))

    def embed(self, input: str | list[str], **fields: Any) -> EmbedReply:  # noqa: A002  # Ollama's own name
        """Compute one embedding vector for each text. *fields* are those of `EmbedRequest` (model, dimensions, …)."""
        return self.send(self.request(EmbedRequest, input=input, **fields))

    def pull(self, model: str | None = None, **fields: Any) -> ProgressReply:
        """Pull a model to every server. *fields* are those of `PullRequest`."""
        return self._on_all(lambda hook: hook.send(hook.request(PullRequest, model=model, **fields)))

    def list_models(self) -> list[LocalModel]:
        """Return the models on the server's disk; of several servers, on that of one."""
        return self.send(TagsRequest()).models

    def show(self, model: str | None = None, **fields: Any) -> ShowReply:
        """Return details of a model: capabilities, context length, parameters, template and others."""
        return self.send(self.request(ShowRequest, model=model, **fields))

    def ps(self) -> list[RunningModel]:
        """Return the models in the server's memory (server 0.1.38); of several servers, in that of one."""
        return self.send(PsRequest()).models

    def version(self) -> str:
        """Return the server's version. A server built from source reports "0.0.0"."""
        return self.send(VersionRequest()).version

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name, on every server."""
        request = CopyRequest(source=source, destination=destination)
        self._on_all(lambda hook: hook.send(request))

    def create(self, model: str, **fields: Any) -> ProgressReply:
        """Create a model from another one (``from_=…``) or from files, on every server.

        *fields* are those of `CreateRequest`.
        """
        request = CreateRequest(model=model, **fields)
        return self._on_all(lambda hook: hook.send(request))

    def delete(self, model: str) -> None:
        """Delete a model from every server's disk. The connection's default model is not used here."""
        request = DeleteRequest(model=model)
        self._on_all(lambda hook: hook.send(request))

    def load(self, model: str | None = None, **fields: Any) -> GenerateReply | EmbedReply:
        """Load a model into every server's memory and wait until it is loaded.

        *fields* are ``options`` and ``keep_alive``.
        """

        def load(hook: Self) -> GenerateReply | EmbedReply:
            try:
                return hook.send(hook.request(GenerateRequest, model=model, **fields))
            except UnsupportedError:
                # An embedding model refuses even an empty generate request.
                return hook.send(hook.request(EmbedRequest, model=model, input=[], **fields))

        return self._on_all(load)

    def unload(self, model: str | None = None) -> GenerateReply:
        """Unload a model of any kind from every server's memory. A server answers before the memory is free."""
        return self._on_all(lambda hook: hook.send(hook.request(GenerateRequest, model=model, keep_alive=0)))

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the servers can be used, and why not. It takes less than 10 s and downloads nothing."""
        variable = f"AIRFLOW_CONN_{self.conn_id.upper()}"
        if uri := os.environ.get(variable):
            os.environ[variable] = readable_uri(uri)
        try:
            return diagnosis.diagnose(self.settings)
        except (OllamaError, AirflowNotFoundException) as error:
            return False, str(error)


def _merge(defaults: Options, own: Any) -> Any:
    """Merge options over *defaults*. A value of the wrong type is returned as it is; the request refuses it."""
    if own is None:
        return defaults
    if isinstance(own, Options):
        own = own.model_dump(exclude_unset=True)
    return {**defaults.model_dump(exclude_none=True), **own} if isinstance(own, dict) else own


def _secrets(settings: Settings) -> list[str]:
    """Return the values to mask in logs. By itself Airflow masks those of its standard fields only."""
    password = [settings.password] if settings.password else []
    return [value.get_secret_value() for value in (*password, *settings.headers.values())]
