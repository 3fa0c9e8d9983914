"""A pure Ollama: a request in, the steps of a reply out. No socket, no waiting, no model."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from ollama_provider.testing.endpoints import openai
from ollama_provider.testing.endpoints.routes import earliest, error, handle
from ollama_provider.testing.exchange import Reply, Request, Steps, collect
from ollama_provider.testing.go.encoding import BadRequestError, Json, decode, dumps
from ollama_provider.testing.scripting.script import Script, Turn, rule
from ollama_provider.testing.state.catalogue import Model, default_models, default_registry
from ollama_provider.testing.state.scheduler import FOR_EVER, Scheduler
from ollama_provider.testing.state.server_state import State, wall_clock


@dataclass(frozen=True, slots=True)
class Seen:
    """A request the stand-in got.

    Attributes:
        method: Upper case.
        path: Without the query.
        headers: Names in lower case.
        json: The decoded body; None if there was none or it was no JSON.
        model: The model it names, empty if none.
    """

    method: str
    path: str
    headers: dict[str, str]
    json: Json
    model: str


class StandIn:
    """Ollama without a model.

    Ask it through a socket (`serve`), or by `answer` and `exchange` directly. It may be scripted and inspected from
    another thread than the one that serves it.

    Args:
        models: Installed at the start; a string is a plain completion model. By default llama3.2,
            nomic-embed-text, qwen3 and llava.
        registry: What can be pulled; by default the installed ones and a few more.
        version: Behaves as this version does where versions differ.
        parallel: Slots a model (OLLAMA_NUM_PARALLEL).
        max_queue: How many may wait for a load (OLLAMA_MAX_QUEUE).
        max_loaded: Models loaded at a time (OLLAMA_MAX_LOADED_MODELS).
        num_ctx: Default context (OLLAMA_CONTEXT_LENGTH).
        keep_alive: Default seconds a model stays loaded (OLLAMA_KEEP_ALIVE).
        load_seconds: How long a cold load takes.
        pull_seconds: How long a pull takes.
        tokens_per_second: Speed of generation; None is as fast as possible.
        strict: Inference without a script is refused and remembered in `unscripted`.
        loopback: Refuse foreign Host and Origin headers, as a server bound to loopback does.
        keep_requests: How many requests `requests` remembers.
        clock: Unix time.
    """

    def __init__(
        self,
        models: Iterable[Model | str] | None = None,
        *,
        registry: Iterable[Model | str] | None = None,
        version: str = "0.24.0",
        parallel: int = 1,
        max_queue: int = 512,
        max_loaded: int = 3,
        num_ctx: int = 4096,
        keep_alive: float = 300.0,
        load_seconds: float = 0.0,
        pull_seconds: float = 0.0,
        tokens_per_second: float | None = None,
        strict: bool = False,
        loopback: bool = True,
        keep_requests: int = 10_000,
        clock: Callable[[], float] = wall_clock,
    ) -> None:
        scheduler = Scheduler(parallel, max_queue, max_loaded, clock)
        self._state = State(
            version=version,
            num_ctx=num_ctx,
            keep_alive=keep_alive if keep_alive >= 0 else FOR_EVER,
            load_seconds=load_seconds,
            pull_seconds=pull_seconds,
            tokens_per_second=tokens_per_second,
            loopback=loopback,
            clock=clock,
            scheduler=scheduler,
        )
        installed = [self.install(model) for model in (default_models() if models is None else models)]
        # What is installed by default came from somewhere.
        self.offer(*((*default_registry(), *installed) if registry is None else registry))
        self._script = Script(strict)
        self._changed = threading.Condition()
        self._open: dict[int, Seen] = {}
        self._numbers = iter(range(1 << 62))
        self._requests: deque[Seen] = deque(maxlen=keep_requests)

    # What it will do

    def script(
        self,
        *turns: Turn,
        path: str | None = None,
        model: str | None = None,
        where: Callable[[dict[str, Json]], bool] | None = None,
        times: int = 1,
        always: bool = False,
    ) -> None:
        """Say what the next requests that match get, one turn each.

        Args:
            turns: A turn is an answer (text; a dict or list becomes JSON text; `Answer`), a `Pace`, a fault, or a tuple
                of these for one request.
            path: `"pull"` or `"/api/pull"`; `"blobs"` is the upload of any blob; `"*"` is any. By default generate,
                chat, embed and embeddings.
            model: Only requests for this model, in any spelling.
            where: Only requests whose JSON body satisfies this.
            times: Each turn is for so many requests.
            always: The one turn is for every request that matches, after all that are for a number of requests.

        Raises:
            ValueError: No turn, or more than one with *always*.
        """
        self._script.add(rule(turns, path=path, model=model, where=where, times=times, always=always))

    def install(self, model: Model | str) -> Model:
        """Have *model* installed, in place of one of the same name."""
        made = Model(model) if isinstance(model, str) else model
        self._state.install(made)
        return made

    def remove(self, name: str) -> None:
        """Have no model *name*; a loaded copy is unloaded.

        Raises:
            KeyError: There is none.
        """
        model = self.model(name)
        self._state.scheduler.unload(model)
        self._state.uninstall(model)

    def retag(self, name: str) -> Model:
        """Put other weights under *name*: another digest, as after a pull of a moved tag.

        Raises:
            KeyError: There is none.
        """
        return self._state.retag(self.model(name))

    def offer(self, *models: Model | str) -> None:
        """Make *models* pullable."""
        self._state.offer(Model(model) if isinstance(model, str) else model for model in models)

    def withdraw(self, name: str) -> None:
        """Make *name* unknown to the registry."""
        self._state.registry.pop(Model(name).parsed.key, None)

    def restart(self) -> None:
        """Forget what only lives in memory: the loaded models."""
        self._state.scheduler.forget()

    # What it has seen

    @property
    def version(self) -> str:
        """What `/api/version` says."""
        return self._state.version

    def model(self, name: str) -> Model:
        """The installed model *name*.

        Raises:
            KeyError: There is none.
        """
        if (model := self._state.find(name)) is None:
            raise KeyError(name)
        return model

    @property
    def models(self) -> list[Model]:
        """What is installed."""
        return list(self._state.models.values())

    @property
    def requests(self) -> list[Seen]:
        """The requests so far, the oldest first."""
        return list(self._requests)

    @property
    def open_requests(self) -> list[Seen]:
        """The requests that are being answered or wait for it."""
        return list(self._open.values())

    @property
    def loads(self) -> list[str]:
        """The names of the models in the order they were loaded, reloads included."""
        return list(self._state.scheduler.loads)

    @property
    def downloads(self) -> Counter[str]:
        """How often each model's weights were downloaded; pulls that share a download count once."""
        return Counter(self._state.downloads)

    @property
    def unused(self) -> list[str]:
        """Scripted turns that nobody asked for."""
        return self._script.unused

    @property
    def unscripted(self) -> list[str]:
        """Inference requests that a strict stand-in refused."""
        return list(self._script.unscripted)

    def wait_until(self, condition: Callable[["StandIn"], bool], *, seconds: float = 10.0) -> None:
        """Block this thread until *condition* holds; looked at after each beginning and end of a request.

        Raises:
            TimeoutError: It does not within *seconds*.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), seconds):
                raise TimeoutError(
                    f"not true within {seconds} s; open requests: {[seen.path for seen in self.open_requests]}"
                )

    # How it answers

    def answer(
        self, method: str, path: str, json: Json = None, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        """Answer without a socket and without waiting.

        Args:
            method: HTTP method.
            path: Path, and a query if there is one.
            json: Sent as the body.
            headers: Names in lower case.
            body: The body, if *json* is None.

        Raises:
            RuntimeError: The answer depends on another request that is still open.
        """
        data = body if json is None else dumps(json).encode()
        path, _, query = path.partition("?")
        return collect(self.exchange(Request(method, unquote(path), headers or {}, data, query)))

    def body_limit(self, method: str, path: str) -> int | None:
        """How many bytes of the body to read before the connection breaks; None is all, and no break."""
        return self._script.body_limit(_scripted_path(method, path))

    def exchange(self, request: Request) -> Steps:
        """The steps of an answer. Closing the iterator before its end is the client's hanging up."""
        with self._noted(request) as seen:
            translated = openai.translate(self._state, request)
            asked = translated.request
            plan = self._script.take(
                _scripted_path(asked.method, asked.path),
                seen.model,
                seen.json if isinstance(seen.json, dict) else {},
            )
            if plan is None:
                yield error(500, f"the stand-in is strict and has no script for {request.path} of {seen.model or '?'}")
                return
            handled = steps = handle(self._state, asked, plan)
            for fault in plan.faults:
                steps = fault.apply(steps, earliest(self._state, asked.path))
            try:
                yield from translated.rewritten(steps)
            finally:
                # A fault may have left it half-way: only its closing gives the slot back.
                handled.close()

    @contextmanager
    def _noted(self, request: Request) -> Iterator[Seen]:
        try:
            body = decode(request.body) if request.body and not request.path.startswith("/api/blobs/") else None
        except BadRequestError:
            body = None
        named = (body.get("model") or body.get("name") or "") if isinstance(body, dict) else ""
        seen = Seen(request.method, request.path, dict(request.headers), body, named if isinstance(named, str) else "")
        number = next(self._numbers)
        with self._changed:
            self._requests.append(seen)
            self._open[number] = seen
            self._changed.notify_all()
        try:
            yield seen
        finally:
            with self._changed:
                del self._open[number]
                self._changed.notify_all()


def _scripted_path(method: str, path: str) -> str:
    """The path by which a script speaks of a request."""
    return "/api/blobs" if method == "POST" and path.startswith("/api/blobs/") else path
