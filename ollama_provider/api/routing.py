"""Which of several servers a request is sent to. No network, no clock: the time and the replies are arguments.

A server that has the model in memory comes first, then the one with the fewest requests of this client in flight, then
the order of the connection. A server that failed comes after all others for a while.

Whether a model is in memory is learned from answers, not by polling: the server that has answered for a model keeps it
for its ``keep_alive``. Only if no server is known to have it, all are asked with ``/api/ps``. That can crash a server
(up to 0.24 at least) which loads or unloads a model at the same moment, so an answer counts for `LISTED_SECONDS`.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ollama_provider.api import errors
from ollama_provider.api.errors import Blame, InvalidRequestError, OllamaError
from ollama_provider.api.events import Call
from ollama_provider.api.model_names import ModelName
from ollama_provider.api.schemas import PsReply
from ollama_provider.api.schemas.options import keep_alive_seconds

#: Seconds for which a server that failed is asked after all others.
AVOIDED_SECONDS = 30.0
#: Seconds for which an answer to ``/api/ps`` counts.
LISTED_SECONDS = 10.0
#: Seconds for which a server keeps a model in memory, if the request does not say.
DEFAULT_KEEP_ALIVE = 300.0

#: Errors that say nothing about requests to the server for other models.
_ABOUT_THE_MODEL = (errors.ModelNotFoundError, errors.BrokenModelError, errors.OutOfMemoryError)


@dataclass
class _Server:
    """What is known of a server. All times are seconds of one monotonic clock.

    Attributes:
        in_flight: calls that are waiting for this server.
        avoided_until: when it may be first again.
        listed_at: when it was last asked which models are in its memory.
        loaded_until: by model, when it will have left the memory unless it is used again.
        unable_until: by model, when the server may be first for it again.
    """

    in_flight: set[Call[Any]] = field(default_factory=set)
    avoided_until: float = -math.inf
    listed_at: float = -math.inf
    loaded_until: dict[Hashable, float] = field(default_factory=dict)
    unable_until: dict[Hashable, float] = field(default_factory=dict)

    def is_avoided(self, model: Hashable, now: float) -> bool:
        return now < self.avoided_until or now < self.unable_until.get(model, -math.inf)

    def has_loaded(self, model: Hashable, now: float) -> bool:
        return now < self.loaded_until.get(model, -math.inf)


@dataclass
class _Attempts:
    """What has become of a call so far.

    Attributes:
        failed: servers at which it failed, through no fault of theirs.
        only: the one server that it may go to.
        lacking: the first of the servers, in the connection's order, that did not have its model.
        pulled: its model was pulled to that server.
    """

    failed: set[int] = field(default_factory=set)
    only: int | None = None
    lacking: int | None = None
    pulled: bool = False


class Routing:
    """Chooses servers for the calls of a client. Servers are numbers from 0 on, in the order of the connection.

    Args:
        count: number of servers.
    """

    def __init__(self, count: int) -> None:
        self._servers = [_Server() for _ in range(count)]
        self._attempts: dict[Call[Any], _Attempts] = {}

    def start(self, call: Call[Any], only: int | None = None) -> None:
        """Begin with a call.

        Args:
            call: the call.
            only: the one server that it may be sent to; None for any.

        Raises:
            InvalidRequestError: the request is about the disk of a certain server, and there are several.
        """
        if len(self._servers) == 1:
            return
        if only is None and call.request.for_one_server:
            raise InvalidRequestError(
                f"{call.request.path} is for one server, and the connection has {len(self._servers)}: use one of the "
                "hook's `servers`, or name one with OllamaHook(server=…)"
            )
        self._attempts_of(call).only = only

    def to_ask(self, call: Call[Any], now: float) -> list[int]:
        """Return the servers to ask for the models in their memory, before `order` is called.

        None, if a server is known to have the model or is loading it for another call.
        """
        if not call.request.needs_model or self._attempts_of(call).only is not None:
            return []
        model = _key(call.model)
        usable = {i: server for i, server in enumerate(self._servers) if not server.is_avoided(model, now)}
        for server in usable.values():
            if server.has_loaded(model, now) or any(_key(other.model) == model for other in list(server.in_flight)):
                return []
        return (
            [i for i, server in usable.items() if now - server.listed_at >= LISTED_SECONDS] if len(usable) > 1 else []
        )

    def listed(self, server: int, reply: PsReply | OllamaError, now: float) -> OllamaError | None:
        """Note the answer of a server to ``/api/ps``. Return its error, if it is avoided for that."""
        known = self._servers[server]
        known.listed_at = now
        if isinstance(reply, PsReply):
            names = {_key(entry.tag) for entry in reply.models}
            known.loaded_until = {
                name: max(now + LISTED_SECONDS, known.loaded_until.get(name, -math.inf)) for name in names
            }
        elif not isinstance(
            reply, errors.EndpointNotFoundError
        ):  # the server is older than 0.1.38, and no worse for it
            known.avoided_until = now + AVOIDED_SECONDS
            return reply
        return None

    def order(self, call: Call[Any], now: float) -> list[int]:
        """Return the servers in the order in which to try them."""
        attempts, model = self._attempts_of(call), _key(call.model)
        if attempts.only is not None:
            return [attempts.only]

        def rank(i: int) -> tuple[bool, bool, bool, int, int]:
            server = self._servers[i]
            return (
                server.is_avoided(model, now),
                i in attempts.failed,
                not server.has_loaded(model, now),
                len(server.in_flight) - (call in server.in_flight),
                i,
            )

        return sorted(range(len(self._servers)), key=rank)

    def begin(self, call: Call[Any], server: int) -> None:
        """Note that a call is sent to a server."""
        self._leave(call)
        self._servers[server].in_flight.add(call)

    def answered(self, call: Call[Any], server: int, now: float) -> None:
        """Note that a server has answered a call, or has begun to."""
        known, model = self._servers[server], _key(call.model)
        known.avoided_until = -math.inf
        known.unable_until.pop(model, None)
        if call.request.needs_model:
            known.loaded_until[model] = now + _keep_alive_of(call.request)

    def failed(self, call: Call[Any], server: int, error: OllamaError, now: float) -> bool:
        """Note that a call failed at a server. Return whether to try the next server at once."""
        known, attempts, model = self._servers[server], self._attempts_of(call), _key(call.model)
        self._leave(call)
        if isinstance(error, errors.ModelNotFoundError):
            attempts.lacking = server if attempts.lacking is None else min(server, attempts.lacking)
        if isinstance(error, errors.RunnerError):
            # The prompt may have crashed the model's process, and must not do that on one server after another.
            attempts.only = server
            known.loaded_until.pop(model, None)
        if not goes_on_after(error):
            attempts.failed.add(server)
            return False
        until = now + max(AVOIDED_SECONDS, error.retry_after or 0)
        if isinstance(error, errors.UnreachableError):
            known.loaded_until.clear()
        if isinstance(error, _ABOUT_THE_MODEL):
            known.unable_until[model] = until
            known.loaded_until.pop(model, None)
        elif not isinstance(error, errors.PullError):  # whose cause is the registry, or the way to it
            known.avoided_until = until
        return True

    def lacking(self, call: Call[Any]) -> int:
        """Return the server that should pull the model of a call, the same for all calls that no server can answer."""
        attempts = self._attempts.get(call)
        return attempts.lacking or 0 if attempts else 0

    def pulled(self, call: Call[Any]) -> None:
        """Note that the model of a call was pulled, which is done once: a server has it now, though others lack it."""
        self._attempts_of(call).pulled = True

    def has_pulled(self, call: Call[Any]) -> bool:
        """Return whether the model of a call was pulled."""
        return self._attempts_of(call).pulled

    def end(self, call: Call[Any]) -> None:
        """Forget a call."""
        if self._attempts.pop(call, None) is not None:
            self._leave(call)

    def _leave(self, call: Call[Any]) -> None:
        for server in self._servers:
            server.in_flight.discard(call)

    def _attempts_of(self, call: Call[Any]) -> _Attempts:
        return self._attempts.setdefault(call, _Attempts())


def goes_on_after(error: OllamaError) -> bool:
    """Return whether another server may succeed: not this request is at fault, but the server or its setup."""
    return error.blame is not Blame.REQUEST or isinstance(error, errors.OutOfMemoryError)


def error_of_all(failures: Sequence[tuple[str, OllamaError]], model: str | None, *, may_pull: bool) -> OllamaError:
    """Return the error of a call that has failed at all servers, with what each of them said.

    Its class decides what happens next. It is that of a missing model, if that may be pulled; else that of the first
    error after which a new attempt may succeed; else that of the first error.

    Args:
        failures: the base URL of each server, and its error.
        model: of the request.
        may_pull: whether a missing model may be pulled.
    """
    if len(failures) == 1:
        return failures[0][1]
    missing = [error for _, error in failures if may_pull and isinstance(error, errors.ModelNotFoundError)]
    return _joined(f"none of the {len(failures)} servers could answer", failures, model, missing)


def error_of_some(failures: Sequence[tuple[str, OllamaError]], count: int) -> OllamaError:
    """Return the error of work that had to be done on all servers, and failed on some of them.

    Args:
        failures: the base URL of each server that failed, and its error.
        count: number of all servers.
    """
    models = {error.model for _, error in failures}
    model = models.pop() if len(models) == 1 else None
    return _joined(f"{len(failures)} of {count} servers failed", failures, model, [])


def _joined(
    summary: str, failures: Sequence[tuple[str, OllamaError]], model: str | None, first: Sequence[OllamaError]
) -> OllamaError:
    """Return an error with all texts, of the class of one in *first*, else of one after which a retry may help."""
    found = [error for _, error in failures]
    again = [error for error in found if error.retryable]
    lead = [*first, *again, *found][0]
    return type(lead)(
        f"{summary}: {'; '.join(f'{url}: {error.what}' for url, error in failures)}",
        model=model,
        status=lead.status,
        retry_after=min(error.retry_after or 0 for error in again) if lead.retryable else None,
        advice=" ".join(dict.fromkeys(error.advice for error in found if error.advice)),
    )


@lru_cache(maxsize=1024)
def _key(model: str | None) -> Hashable:
    """Return what all names of the same model have in common."""
    try:
        return ModelName.parse(model or "").identity
    except InvalidRequestError:
        return model


def _keep_alive_of(request: Any) -> float:
    keep_alive = request.keep_alive
    if keep_alive is None:
        return DEFAULT_KEEP_ALIVE
    seconds = keep_alive_seconds(keep_alive)
    return math.inf if seconds < 0 else seconds
