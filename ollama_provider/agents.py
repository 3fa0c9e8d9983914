"""A pydantic-ai model that uses an Airflow connection of type *Ollama*.

This package has no agents of its own; pydantic-ai and Airflow's common-ai provider have them. They use Ollama's ``/v1``
endpoints, which ignore ``num_ctx``, ``keep_alive`` and the other model options. Set such options in the model itself,
with the ``parameters`` of `OllamaCreateModelOperator`.
"""

from importlib import import_module
from typing import Any

import httpx

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.headers import headers_for
from ollama_provider.api.proxies import proxy_for
from ollama_provider.api.settings import Settings
from ollama_provider.api.tls import ssl_context_for
from ollama_provider.hooks import OllamaHook

#: Headers that the OpenAI client sets itself.
_CLIENT_HEADERS = {"accept", "accept-encoding", "content-type"}


def pydantic_ai_model(
    conn_id: str = OllamaHook.default_conn_name, model: str | None = None, *, server: str | None = None
) -> Any:
    """Return a model for ``pydantic_ai.Agent``: ``Agent(pydantic_ai_model("ollama_default", "llama3.2"))``.

    It uses the connection's address, credentials, headers, certificates and proxy, its timeouts for connecting and for
    the first token, and its number of attempts. Two defaults differ from pydantic-ai's own, because Ollama's ``/v1``
    silently ignores what pydantic-ai sends otherwise (0.24). Structured output is requested as a JSON schema, not by
    forcing a tool call. And ``max_tokens`` is sent under that name, so that it limits the answer.

    Args:
        conn_id: id of the connection.
        model: name of the model, which must be on the server (``/v1`` never pulls); None is the connection's default.
        server: the one to ask, if the connection has several: its host, with the port if that is not enough, or its
            URL.

    Returns:
        A ``pydantic_ai.models.ollama.OllamaModel``, for one event loop: make another one for another loop.

    Raises:
        ImportError: pydantic-ai 2 or later is not installed (``pip install 'pydantic-ai-slim[openai]'``).
        InvalidRequestError: neither the call nor the connection names a model, a server has to be named, or a value of
            the connection is wrong.
    """
    settings = OllamaHook(conn_id, server).settings
    if settings.other_urls:
        raise InvalidRequestError(
            f"connection {conn_id!r} has several servers, and pydantic-ai asks one: name it with server=…, one of "
            f"{', '.join(settings.urls)}"
        )
    name = model or settings.model
    if not name:
        raise InvalidRequestError(f"no model: name one, or set the default model of connection {conn_id!r}")
    try:
        models, providers, profiles, openai = map(
            import_module,
            ("pydantic_ai.models.ollama", "pydantic_ai.providers.ollama", "pydantic_ai.profiles.openai", "openai"),
        )
    except ImportError as error:
        raise ImportError(
            f"pydantic_ai_model needs pydantic-ai 2 or later: pip install 'pydantic-ai-slim[openai]' ({error})"
        ) from error
    client = openai.AsyncOpenAI(
        base_url=f"{settings.base_url}/v1",
        # The client requires a key. If the connection has an Authorization header, that header is sent instead.
        api_key="none",
        # Title case, as the client spells its headers: openai 2 merges them in a dict, and would send both spellings.
        default_headers={key.title(): value for key, value in headers_for(settings) if key not in _CLIENT_HEADERS},
        max_retries=settings.max_attempts - 1,
        http_client=_http_client(settings),
    )
    profile = profiles.OpenAIModelProfile(
        default_structured_output_mode="native",
        supports_forced_tool_choice=False,
        openai_chat_supports_max_completion_tokens=False,
    )
    return models.OllamaModel(name, provider=providers.OllamaProvider(openai_client=client), profile=profile)


def _http_client(settings: Settings) -> httpx.AsyncClient:
    timeouts = settings.timeouts
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeouts.total, connect=timeouts.connect, read=timeouts.first_token),
        verify=ssl_context_for(settings),
        proxy=proxy_for(settings),
        trust_env=False,
        follow_redirects=False,
    )
