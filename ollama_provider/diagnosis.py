"""Tests whether servers can be used, for the *Test* button: a verdict in words, within 10 s, without a download."""

import difflib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from ollama_provider.api import errors
from ollama_provider.api.client import Client
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.model_names import TAG, ModelName
from ollama_provider.api.proxies import proxy_for
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.schemas import LocalModel, TagsReply, TagsRequest, VersionRequest
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.waiting import Condition, Ready

T = TypeVar("T")

#: The first version with /api/chat and /api/version.
MINIMUM_VERSION = "0.1.14"
#: Seconds for the whole test. One of the few threads of Airflow's API server waits for it.
BUDGET = 9.0

_SHOWN = 5
_LATEST = f":{TAG}"
_NOT_OLLAMA_ERRORS = (errors.NotOllamaError, errors.ConnectionBrokenError, errors.IncompleteReplyError)
_CHECK_ADDRESS = "Check host, port and base path of the connection, and http or https."


class Finding(NamedTuple):
    """What a test of one server has found.

    Attributes:
        usable: it can be used, and has the default model of the connection.
        text: version and models, or what is wrong.
        version: of the server; empty where no Ollama answers.
        models: on its disk.
    """

    usable: bool
    text: str
    version: str = ""
    models: tuple[LocalModel, ...] = ()


def _nothing_more(client: Client, finding: Finding) -> None:
    pass


def diagnose(settings: Settings, budget: float = BUDGET) -> tuple[bool, str]:
    """Request the version and the list of models of each server, of all at the same time.

    Args:
        settings: settings of the connection. Its timeouts and max_attempts are not used here.
        budget: seconds for the whole test; half of them for the TCP connection.

    Returns:
        Whether all servers can be used, and a text: on success version and models, else what is wrong. For several
        servers it begins with the number of those that can be used, and has a line for each.

    Raises:
        OllamaError: the only server could not be reached, or refused the request; the text says why.
    """
    if len(settings.servers) == 1:
        finding = _examine(settings, budget)
        return finding.usable, finding.text
    with ThreadPoolExecutor(len(settings.servers), "ollama-diagnosis") as pool:
        found = list(pool.map(lambda server: examine(server, budget), settings.servers))
    usable = sum(finding.usable for finding in found)
    summary = f"{usable} of {len(found)} servers can be used:"
    return usable == len(found), "\n".join([summary, *(finding.text for finding in found)])


def examine(
    settings: Settings, budget: float = BUDGET, then: Callable[[Client, Finding], None] = _nothing_more
) -> Finding:
    """Test one server, and look further at it.

    Args:
        settings: see `diagnose`; of one server.
        budget: see `diagnose`.
        then: called in another thread if Ollama answers, to ask more within the same time: the client is closed at the
            end of it.

    Returns:
        What was found; an error is a text as well.
    """
    try:
        return _examine(settings, budget, then)
    except OllamaError as error:
        return Finding(usable=False, text=str(error))


def _examine(settings: Settings, budget: float, then: Callable[[Client, Finding], None] = _nothing_more) -> Finding:
    end = time.monotonic() + budget
    timeouts = Timeouts(connect=budget / 2)
    client = Client(settings.model_copy(update={"timeouts": timeouts, "max_attempts": 1}))
    result: Future[Finding] = Future()
    looked: Future[None] = Future()
    # In a thread, because no timeout of httpx bounds the total of name resolution, connecting and two responses.
    Thread(target=_run, args=(client, settings, then, result, looked), name="ollama-diagnosis", daemon=True).start()
    try:
        finding = result.result(budget)
        if wait([looked], max(0.0, end - time.monotonic())).done:
            with suppress(OllamaError):  # what was found until then stays
                looked.result()
        return finding  # noqa: TRY300  # the client is closed when nothing is asked any more
    except FutureTimeoutError:
        return Finding(usable=False, text=(
            f"no answer within {budget:g} s ({_where(settings)}). Is it Ollama that listens there, "
            "does the name of its host resolve, and does a firewall drop packets?"
        ))  # fmt: skip
    except errors.ConnectTimeoutError:
        # The text of the error names connect_timeout, which has no effect here.
        return Finding(usable=False, text=(
            f"no connection within {timeouts.connect:g} s ({_where(settings)}). "
            "Is the server running, are host and port right, and does a firewall drop packets?"
        ))  # fmt: skip
    except OllamaError as error:
        error.advice = _advice(error)
        raise
    finally:
        client.close()


def _run(
    client: Client,
    settings: Settings,
    then: Callable[[Client, Finding], None],
    result: "Future[Finding]",
    looked: "Future[None]",
) -> None:
    _fulfil(result, _check, client, settings)
    if result.exception() is None and result.result().version:
        _fulfil(looked, then, client, result.result())
    else:
        looked.set_result(None)


def _fulfil(future: "Future[T]", function: Callable[..., T], *args: Any) -> None:
    try:
        future.set_result(function(*args))
    except BaseException as error:  # it is raised where the result is wanted
        future.set_exception(error)


def _where(settings: Settings) -> str:
    proxy = proxy_for(settings)
    return f"at {settings.base_url}, {proxy}" if proxy else f"at {settings.base_url}"


def _advice(error: OllamaError) -> str:
    """Return what to do about an error. Unlike in a task, the address of the connection is the likely cause."""
    if error.advice != type(error).advice:
        return error.advice  # more specific than the advice of its class
    if isinstance(error, errors.EndpointNotFoundError):
        return "Check the base path of the connection. Or does another program listen there?"
    if isinstance(error, _NOT_OLLAMA_ERRORS) or error.status == 400:
        # A TLS port answers plain HTTP in one of these ways, or with a redirect.
        return _CHECK_ADDRESS
    if error.status in {502, 503, 504}:
        return "A proxy answers there: is the server behind it running?"
    return error.advice


def _check(client: Client, settings: Settings) -> Finding:
    where = _where(settings)
    try:
        version = client.send(VersionRequest()).version
    except errors.EndpointNotFoundError as missing:
        # Older servers have no /api/version, but they have the list of models.
        if _has_model_list(client):
            text = f"This Ollama is too old ({where}). Update it to {MINIMUM_VERSION} or later."
            return Finding(usable=False, text=text)
        raise missing from None
    reply = client.send(TagsRequest())
    if not version or not _is_model_list(reply):
        return Finding(usable=False, text=f"What answers there is not Ollama ({where}). {_CHECK_ADDRESS}")
    server, models = f"Ollama {version} {where}", tuple(reply.models)
    if settings.model and (problem := _model_problem(settings.model, settings, reply)):
        return Finding(usable=False, text=f"{server} answers, but {problem}", version=version, models=models)
    text = f"{server} has {_describe_models(reply.models)}."
    return Finding(usable=True, text=text, version=version, models=models)


def _has_model_list(client: Client) -> bool:
    try:
        return _is_model_list(client.send(TagsRequest()))
    except (errors.EndpointNotFoundError, errors.NotOllamaError):
        return False


def _is_model_list(reply: TagsReply) -> bool:
    return "models" in reply.model_fields_set


def _model_problem(model: str, settings: Settings, reply: TagsReply) -> str:
    """Return what is wrong with the default model and what to do; an empty text if the server has it."""
    try:
        ModelName.parse(model)
    except errors.InvalidRequestError as error:
        return f"the default model {error}."
    if isinstance(Condition(models=(model,)).evaluate([reply]), Ready):
        return ""
    # Compare without ":latest": as part of short names it would make unlike names look alike.
    names = [entry.tag.removesuffix(_LATEST) for entry in reply.models]
    nearest = difflib.get_close_matches(model.removesuffix(_LATEST), names, n=3)
    others = f"It has {_describe_models(reply.models)}."
    if nearest:
        others = f"Did you mean {' or '.join(map(repr, nearest))}?"
    return f"does not have the default model {model!r}. {others} {_how_to_get(model, settings)}"


def _how_to_get(model: str, settings: Settings) -> str:
    """Return whether a task would pull the model, or why it may not."""
    try:
        check_pull_allowed(model, settings, errors.ModelNotFoundError("missing"))
    except errors.PullNotAllowedError as refused:
        return refused.advice
    return "It will be pulled when it is first used."


def _describe_models(models: list[LocalModel]) -> str:
    if not models:
        return "no models yet"
    names = ", ".join(model.tag for model in models[:_SHOWN])
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return f"{len(models)} model{'s' if len(models) > 1 else ''}: {names}{more}"
