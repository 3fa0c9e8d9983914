"""The HTTP headers of every request, credentials included."""

import base64

from ollama_provider import __version__
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings


def headers_for(settings: Settings) -> list[tuple[str, str]]:
    """Return the headers of every request: login and password as Basic auth, a password alone as a Bearer token.

    Headers of the settings replace ours.

    Raises:
        InvalidRequestError: a header is not printable ASCII on one line.
    """
    ours = {
        "accept": "application/json, application/x-ndjson",
        # Compression would delay tokens until a block is full.
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": f"airflow-provider-ollama/{__version__}",
    }
    if (authorization := _authorization(settings)) is not None:
        ours["authorization"] = authorization
    theirs = {name.strip().lower(): value.get_secret_value() for name, value in settings.headers.items()}
    for name, value in theirs.items():
        if not (
            name and name.isascii() and value.isprintable() and value.isascii() and not set(name) & set(" :\t\r\n")
        ):
            raise InvalidRequestError(f"headers: {name!r} and its value must be printable ASCII on one line")
    return list((ours | theirs).items())


def _authorization(settings: Settings) -> str | None:
    password = settings.password.get_secret_value() if settings.password else ""
    if settings.login:
        return basic_auth(settings.login, password)
    if not password:
        return None
    if not (password.isascii() and password.isprintable()):
        raise InvalidRequestError("password: sent as a Bearer token it must be printable ASCII on one line")
    return f"Bearer {password}"


def basic_auth(login: str, password: str) -> str:
    """Return the value of an Authorization header with login and password."""
    return f"Basic {base64.b64encode(f'{login}:{password}'.encode()).decode()}"
