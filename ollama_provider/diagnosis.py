"""Can this server be used? In words, soon, and without a download."""

import difflib
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Thread

from ollama_provider.api.client import Client
from ollama_provider.api.errors import EndpointNotFoundError
from ollama_provider.api.schemas import LocalModel, TagsRequest, VersionRequest
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.waiting import Condition, NotYet

#: The first with /api/chat and with /api/version.
MINIMUM_VERSION = "0.1.14"
#: Seconds in all. Airflow's API server waits for the answer, with one of its few threads.
BUDGET = 9.0

_SHOWN = 5


def diagnose(settings: Settings, budget: float = BUDGET) -> tuple[bool, str]:
    """Ask the server for its version and models.

    Args:
        settings: of the connection; its own patience does not count here.
        budget: seconds until the answer is given up.

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
            f"no answer within {budget:g} s (at {settings.base_url}). "
            "Is it Ollama that listens there, and does the name of its host resolve?"
        )
    finally:
        client.close()


def _probe(client: Client, settings: Settings, verdict: "Future[tuple[bool, str]]") -> None:
    try:
        verdict.set_result(_judge(client, settings))
    except BaseException as error:  # the thread that waits for it raises it again
        verdict.set_exception(error)


def _judge(client: Client, settings: Settings) -> tuple[bool, str]:
    where = f"at {settings.base_url}"
    try:
        version = client.send(VersionRequest()).version
    except EndpointNotFoundError:
        # Before the minimum version there was no such endpoint, but the list of models there was.
        client.send(TagsRequest())
        return False, f"This Ollama is too old ({where}). Update it to {MINIMUM_VERSION} or later."
    reply = client.send(TagsRequest())
    if not version or "models" not in reply.model_fields_set:
        return False, f"What answers there is not Ollama ({where}). Check host, port and base path of the connection."
    server = f"Ollama {version} {where}"
    if settings.model and isinstance(Condition(models=(settings.model,)).judge([reply]), NotYet):
        return False, f"{server} answers, but does not have the default model {settings.model!r}. " + _ways(
            settings, reply.models
        )
    return True, f"{server} has {_list(reply.models)}."


def _ways(settings: Settings, models: list[LocalModel]) -> str:
    names = [model.tag for model in models]
    nearest = difflib.get_close_matches(settings.model or "", names, n=3)
    advice = f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"It has {_list(models)}."
    return advice + (" It will be pulled when it is first used." if settings.auto_pull else " Pull it first.")


def _list(models: list[LocalModel]) -> str:
    if not models:
        return "no models yet"
    names = ", ".join(model.tag for model in models[:_SHOWN])
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return f"{len(models)} model{'s' if len(models) > 1 else ''}: {names}{more}"
