"""Can this server be used? In words, soon, and without a download."""

import difflib
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Thread

from ollama_provider.api import errors
from ollama_provider.api.client import Client
from ollama_provider.api.connections import proxy_for
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.model_names import TAG, ModelName
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.schemas import LocalModel, TagsReply, TagsRequest, VersionRequest
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.waiting import Condition, Ready

#: The first with /api/chat and with /api/version.
MINIMUM_VERSION = "0.1.14"
#: Seconds in all. Airflow's API server waits for the answer, with one of its few threads.
BUDGET = 9.0

_SHOWN = 5
_LATEST = f":{TAG}"
_OF_ANOTHER_PROGRAM = (errors.NotOllamaError, errors.ConnectionBrokenError, errors.IncompleteReplyError)
_CHECK_ADDRESS = "Check host, port and base path of the connection, and http or https."


def diagnose(settings: Settings, budget: float = BUDGET) -> tuple[bool, str]:
    """Ask the server for its version and models.

    Args:
        settings: of the connection; its own patience and attempts do not count here.
        budget: seconds in all, whatever is asked; half of them for a connection.

    Returns:
        Whether the server can be used, and why not; on success its version and models.

    Raises:
        OllamaError: it could not be reached, or its answer says no; the text says why.
    """
    quick = Timeouts(connect=budget / 2)
    client = Client(settings.model_copy(update={"timeouts": quick, "max_attempts": 1}))
    verdict: Future[tuple[bool, str]] = Future()
    # In a thread, since nothing else bounds all of it: the resolver, the connect, two answers.
    Thread(target=_probe, args=(client, settings, verdict), name="ollama-diagnosis", daemon=True).start()
    try:
        return verdict.result(budget)
    except FutureTimeoutError:
        return False, (
            f"no answer within {budget:g} s ({_where(settings)}). Is it Ollama that listens there, "
            "does the name of its host resolve, and does a firewall drop packets?"
        )
    except errors.ConnectTimeoutError:
        # Its own text speaks of connect_timeout, which has no effect here.
        return False, (
            f"no connection within {quick.connect:g} s ({_where(settings)}). "
            "Is the server running, are host and port right, and does a firewall drop packets?"
        )
    except OllamaError as error:
        error.advice = _advice(error)
        raise
    finally:
        client.close()


def _probe(client: Client, settings: Settings, verdict: "Future[tuple[bool, str]]") -> None:
    try:
        verdict.set_result(_judge(client, settings))
    except BaseException as error:  # the thread that waits for it raises it again
        verdict.set_exception(error)


def _where(settings: Settings) -> str:
    proxy = proxy_for(settings)
    return f"at {settings.base_url}, {proxy}" if proxy else f"at {settings.base_url}"


def _advice(error: OllamaError) -> str:
    """Return what to do, where the error has a task's request in mind and the address is more likely to be wrong."""
    if error.advice != type(error).advice:
        return error.advice  # it knows better than its class
    if isinstance(error, errors.EndpointNotFoundError):
        return "Check the base path of the connection. Or does another program listen there?"
    if isinstance(error, _OF_ANOTHER_PROGRAM) or error.status == 400:
        # A port of TLS answers plain HTTP in one of these ways, or with a redirect.
        return _CHECK_ADDRESS
    if error.status in {502, 503, 504}:
        return "A proxy answers there: is the server behind it running?"
    return error.advice


def _judge(client: Client, settings: Settings) -> tuple[bool, str]:
    where = _where(settings)
    try:
        version = client.send(VersionRequest()).version
    except errors.EndpointNotFoundError as missing:
        # Before the minimum version there was no such endpoint, but the list of models there was.
        if _has_list(client):
            return False, f"This Ollama is too old ({where}). Update it to {MINIMUM_VERSION} or later."
        raise missing from None
    reply = client.send(TagsRequest())
    if not version or not _is_list(reply):
        return False, f"What answers there is not Ollama ({where}). {_CHECK_ADDRESS}"
    server = f"Ollama {version} {where}"
    if settings.model and (fault := _fault(settings.model, settings, reply)):
        return False, f"{server} answers, but {fault}"
    return True, f"{server} has {_list(reply.models)}."


def _has_list(client: Client) -> bool:
    try:
        return _is_list(client.send(TagsRequest()))
    except (errors.EndpointNotFoundError, errors.NotOllamaError):
        return False


def _is_list(reply: TagsReply) -> bool:
    return "models" in reply.model_fields_set


def _fault(model: str, settings: Settings, reply: TagsReply) -> str:
    """Return what is wrong with the default model, and what to do; nothing if it is there."""
    try:
        ModelName.parse(model)
    except errors.InvalidRequestError as error:
        return f"the default model {error}."
    if isinstance(Condition(models=(model,)).judge([reply]), Ready):
        return ""
    # Without the tag that everybody leaves out: it would make short names unlike, and others alike.
    names = [there.tag.removesuffix(_LATEST) for there in reply.models]
    nearest = difflib.get_close_matches(model.removesuffix(_LATEST), names, n=3)
    others = f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"It has {_list(reply.models)}."
    return f"does not have the default model {model!r}. {others} {_way(model, settings)}"


def _way(model: str, settings: Settings) -> str:
    try:
        check_pull_allowed(model, settings, errors.ModelNotFoundError("missing"))
    except errors.PullNotAllowedError as refused:
        return refused.advice
    return "It will be pulled when it is first used."


def _list(models: list[LocalModel]) -> str:
    if not models:
        return "no models yet"
    names = ", ".join(model.tag for model in models[:_SHOWN])
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return f"{len(models)} model{'s' if len(models) > 1 else ''}: {names}{more}"
