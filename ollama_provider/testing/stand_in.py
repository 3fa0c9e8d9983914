"""`StandIn`: the object that a test scripts and inspects, and that answers requests. No socket, no waiting."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from ollama_provider.testing.endpoints import openai
from ollama_provider.testing.endpoints.routes import earliest_failure, error, handle
from ollama_provider.testing.exchange import Reply, Request, Steps, collect
from ollama_provider.testing.go.encoding import BadRequestError, Json, decode, dumps
from ollama_provider.testing.scripting.script import Script, ScriptedReply, rule
from ollama_provider.testing.state.catalogue import Model, default_models, default_registry
from ollama_provider.testing.state.scheduler import INFINITE_KEEP_ALIVE, Scheduler
from ollama_provider.testing.state.server_state import ServerState, wall_clock


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that the stand-in received.

    Attributes:
        method: Upper case.
        path: Without the query.
        headers: Names in lower case.
        json: The decoded body; None if there was none or it was no JSON.
        model: The name of the model in the body; empty if there is none.
    """

    method: str
    path: str
    headers: dict[str, str]
    json: Json
    model: str


class StandIn:
    """A stand-in for Ollama without a model.

    Send it requests through a socket (`serve`), or directly with `answer` and `exchange`. A test may script and inspect
    it from another thread than the one that serves it.

    Args:
        models: Installed at the start; a string is a plain completion model. By default llama3.2,
            nomic-embed-text, qwen3 and llava.
        registry: Models that can be pulled; by default the installed ones and a few more.
        version: The version of Ollama to behave as, where versions differ.
        parallel: Slots of each model (OLLAMA_NUM_PARALLEL).
        max_queue: Number of requests that may wait for a load (OLLAMA_MAX_QUEUE).
        max_loaded: Number of models loaded at a time (OLLAMA_MAX_LOADED_MODELS).
        num_ctx: Default context in tokens (OLLAMA_CONTEXT_LENGTH).
        keep_alive: Seconds that a model stays loaded by default (OLLAMA_KEEP_ALIVE); negative is infinite.
        load_seconds: Duration of loading a model.
        pull_seconds: Duration of pulling a model.
        tokens_per_second: Speed of generation; None is as fast as possible.
        strict: Refuse inference requests that are not scripted, and list them in `unscripted`.
        loopback: Refuse foreign Host and Origin headers, as a server that listens on loopback only does.
        keep_requests: Number of requests that `requests` keeps.
        clock: Returns Unix time.
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
        self._state = ServerState(
            version=version,
            num_ctx=num_ctx,
            keep_alive=keep_alive if keep_alive >= 0 else INFINITE_KEEP_ALIVE,
            load_seconds=load_seconds,
            pull_seconds=pull_seconds,
            tokens_per_second=tokens_per_second,
            loopback=loopback,
            clock=clock,
            scheduler=scheduler,
        )
        installed = [self.install(model) for model in (default_models() if models is None else models)]
        # By default the installed models can be pulled, too.
        self.offer(*((*default_registry(), *installed) if registry is None else registry))
        self._script = Script(strict)
        self._changed = threading.Condition()
        self._open: dict[int, Seen] = {}
        self._numbers = iter(range(1 << 62))
        self._requests: deque[Seen] = deque(maxlen=keep_requests)

    # Set it up

    def script(
        self,
        *replies: ScriptedReply,
        path: str | None = None,
        model: str | None = None,
        where: Callable[[dict[str, Json]], bool] | None = None,
        times: int = 1,
        always: bool = False,
    ) -> None:
        """Script the replies to the next requests that match. Each request takes one reply.

        Args:
            replies: Each is an answer (text; a dict or list, sent as JSON text; `Answer`), a `Pace`, a fault, or a
                tuple of these for one request.
            path: `"pull"` or `"/api/pull"`; `"blobs"` for the upload of any blob; `"*"` for any path. By default
                generate, chat, embed and embeddings.
            model: Only requests for this model, in any form of its name.
            where: Only requests whose JSON body it accepts.
            times: Number of requests that get each reply.
            always: Every request that matches gets the one reply, unless another rule without *always* matches.

        Raises:
            ValueError: There is no reply, or more than one with *always*.
        """
        self._script.add(rule(replies, path=path, model=model, where=where, times=times, always=always))

    def install(self, model: Model | str) -> Model:
        """Install *model*, in place of one of the same name."""
        made = Model(model) if isinstance(model, str) else model
        self._state.install(made)
        return made

    def remove(self, name: str) -> None:
        """Remove the model *name*, and unload it.

        Raises:
            KeyError: There is none.
        """
        model = self.model(name)
        self._state.scheduler.unload(model)
        self._state.uninstall(model)

    def retag(self, name: str) -> Model:
        """Replace the weights of *name*, so that its digest changes, as after a pull of a moved tag.

        Raises:
            KeyError: There is none.
        """
        return self._state.retag(self.model(name))

    def offer(self, *models: Model | str) -> None:
        """Add *models* to the registry, so that they can be pulled."""
        self._state.offer(Model(model) if isinstance(model, str) else model for model in models)

    def withdraw(self, name: str) -> None:
        """Remove *name* from the registry."""
        self._state.registry.pop(Model(name).parsed.key, None)

    def restart(self) -> None:
        """Unload all models, as a restart of the server does."""
        self._state.scheduler.unload_all()

    # Inspect it

    @property
    def version(self) -> str:
        """The version that it behaves as."""
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
        """The installed models."""
        return list(self._state.models.values())

    @property
    def requests(self) -> list[Seen]:
        """The requests received so far, the oldest first."""
        return list(self._requests)

    @property
    def open_requests(self) -> list[Seen]:
        """The requests whose reply is not complete."""
        return list(self._open.values())

    @property
    def loads(self) -> list[str]:
        """Names of the loaded models in the order of their loads, reloads included."""
        return list(self._state.scheduler.loads)

    @property
    def downloads(self) -> Counter[str]:
        """How often the weights of each model were downloaded. Pulls that share a download count once."""
        return Counter(self._state.downloads)

    @property
    def unused(self) -> list[str]:
        """Scripted replies that no request has taken, as text."""
        return self._script.unused

    @property
    def unscripted(self) -> list[str]:
        """Inference requests that were refused by `strict`, as text."""
        return list(self._script.unscripted)

    def wait_until(self, condition: Callable[["StandIn"], bool], *, seconds: float = 10.0) -> None:
        """Block this thread until *condition* is true. It is checked at every start and end of a request.

        Raises:
            TimeoutError: It is not true within *seconds*.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), seconds):
                raise TimeoutError(
                    f"not true within {seconds} s; open requests: {[seen.path for seen in self.open_requests]}"
                )

    # Send it requests

    def answer(
        self, method: str, path: str, json: Json = None, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        """Answer a request without a socket and without waiting.

        Args:
            method: HTTP method.
            path: The path, and the query if there is one.
            json: The body, encoded as JSON.
            headers: Names in lower case.
            body: The body, if *json* is None.

        Raises:
            RuntimeError: The reply has to wait for another request, or for a gate.
        """
        data = body if json is None else dumps(json).encode()
        path, _, query = path.partition("?")
        return collect(self.exchange(Request(method, unquote(path), headers or {}, data, query)))

    def body_limit(self, method: str, path: str) -> int | None:
        """Number of bytes to read before the connection is cut, as scripted; None to read the whole body."""
        return self._script.body_limit(_scripted_path(method, path))

    def exchange(self, request: Request) -> Steps:
        """The steps of a reply. Closing the generator early means that the client has disconnected."""
        with self._recorded(request) as seen:
            translated = openai.translate(self._state, request)
            ollama_request = translated.request
            plan = self._script.next_plan(
                _scripted_path(ollama_request.method, ollama_request.path),
                seen.model,
                seen.json if isinstance(seen.json, dict) else {},
            )
            if plan is None:
                yield error(500, f"the stand-in is strict and has no script for {request.path} of {seen.model or '?'}")
                return
            handled = steps = handle(self._state, ollama_request, plan)
            for fault in plan.faults:
                steps = fault.apply(steps, earliest_failure(self._state, ollama_request.path))
            try:
                yield from translated.rewritten(steps)
            finally:
                # A fault may leave it unfinished. Closing it returns the slot.
                handled.close()

    @contextmanager
    def _recorded(self, request: Request) -> Iterator[Seen]:
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
    """The path of a request as scripts know it."""
    return "/api/blobs" if method == "POST" and path.startswith("/api/blobs/") else path
