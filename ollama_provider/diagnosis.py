"""Tests whether servers can be used, for the *Test* button: a verdict in words, within 10 s, without a download."""

import difflib
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Thread

from ollama_provider.api import errors
from ollama_provider.api.client import Client
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.model_names import TAG, ModelName
from ollama_provider.api.proxies import proxy_for
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.schemas import LocalModel, TagsReply, TagsRequest, VersionRequest
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.waiting import Condition, Ready

#: The first version with /api/chat and /api/version.
MINIMUM_VERSION = "0.1.14"
#: Seconds for the whole test. One of the few threads of Airflow's API server waits for it.
BUDGET = 9.0

_SHOWN = 5
_LATEST = f":{TAG}"
_NOT_OLLAMA_ERRORS = (errors.NotOllamaError, errors.ConnectionBrokenError, errors.IncompleteReplyError)
_CHECK_ADDRESS = "Check host, port and base path of the connection, and http or https."


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
        return _diagnose_one(settings, budget)

    def diagnose_one_of_several(server: Settings) -> tuple[bool, str]:
        try:
            return _diagnose_one(server, budget)
        except OllamaError as error:
            return False, str(error)

    with ThreadPoolExecutor(len(settings.servers), "ollama-diagnosis") as pool:
        found = list(pool.map(diagnose_one_of_several, settings.servers))
    usable = sum(fine for fine, _ in found)
    summary = f"{usable} of {len(found)} servers can be used:"
    return usable == len(found), "\n".join([summary, *(text for _, text in found)])


def _diagnose_one(settings: Settings, budget: float) -> tuple[bool, str]:
    timeouts = Timeouts(connect=budget / 2)
    client = Client(settings.model_copy(update={"timeouts": timeouts, "max_attempts": 1}))
    result: Future[tuple[bool, str]] = Future()
    # In a thread, because no timeout of httpx bounds the total of name resolution, connecting and two responses.
    Thread(target=_run_check, args=(client, settings, result), name="ollama-diagnosis", daemon=True).start()
    try:
        return result.result(budget)
    except FutureTimeoutError:
        return False, (
            f"no answer within {budget:g} s ({_where(settings)}). Is it Ollama that listens there, "
            "does the name of its host resolve, and does a firewall drop packets?"
        )
    except errors.ConnectTimeoutError:
        # The text of the error names connect_timeout, which has no effect here.
        return False, (
            f"no connection within {timeouts.connect:g} s ({_where(settings)}). "
            "Is the server running, are host and port right, and does a firewall drop packets?"
        )
    except OllamaError as error:
        error.advice = _advice(error)
        raise
    finally:
        client.close()


def _run_check(client: Client, settings: Settings, result: "Future[tuple[bool, str]]") -> None:
    try:
        result.set_result(_check(client, settings))
    except BaseException as error:  # `diagnose` raises it in its own thread
        result.set_exception(error)


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


def _check(client: Client, settings: Settings) -> tuple[bool, str]:
    where = _where(settings)
    try:
        version = client.send(VersionRequest()).version
    except errors.EndpointNotFoundError as missing:
        # Older servers have no /api/version, but they have the list of models.
        if _has_model_list(client):
            return False, f"This Ollama is too old ({where}). Update it to {MINIMUM_VERSION} or later."
        raise missing from None
    reply = client.send(TagsRequest())
    if not version or not _is_model_list(reply):
        return False, f"What answers there is not Ollama ({where}). {_CHECK_ADDRESS}"
    server = f"Ollama {version} {where}"
    if settings.model and (problem := _model_problem(settings.model, settings, reply)):
        return False, f"{server} answers, but {problem}"
    return True, f"{server} has {_describe_models(reply.models)}."


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
