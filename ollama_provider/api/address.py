"""Where a server is, or several: values in the style of OLLAMA_HOST."""

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas.base import explain
from ollama_provider.api.settings import NO_CREDENTIALS, Settings

DEFAULT_PORT = 11434
_SCHEMES = {"http": 80, "https": 443}
_ALLOWED = (
    "use a host ('gpu1'), a host with port ('gpu1:11434', '[::1]:11434') or a URL ('https://ollama.example.com/base')"
)


def parse_address(
    host: str | None, port: int | str | None = None, scheme: str | None = None, path: str | None = None
) -> str:
    """Read an address as Ollama reads OLLAMA_HOST, together with the other fields of a connection.

    An address holds no credentials: it stands in logs, errors and ``batch.json``, and Airflow shows it to everybody who
    may see connections.

    Args:
        host: ``gpu1``, ``gpu1:11434``, ``[::1]``, ``https://ollama.example.com/base``, ``:5678`` or nothing (this
            machine). Blanks and quotes around it are dropped. ``0.0.0.0`` and ``::``, which a server binds to, become
            loopback.
        port: for a *host* that names none, as a number or its text; 0 counts as none, as forms send it for an empty
            field. Without it: 11434, or the scheme's own (80, 443) where *host* is a URL; with
            *scheme* ``https`` and no port anywhere, 443.
        scheme: ``http`` (the default) or ``https``, for a *host* that names none.
        path: base path, behind that of *host*.

    Returns:
        Scheme, host, port and base path, without a slash at the end: a ``base_url`` of `Settings`.

    Raises:
        InvalidRequestError: it is no address, or it holds a login or a password; the text says what is allowed, and
            never quotes what may be a password.
    """
    _refuse_credentials(f"{host}{scheme}{path}")
    text = (host or "").strip().strip("\"'").strip()
    given, separator, rest = text.partition("://")
    own_scheme = given.lower() if separator else None
    chosen = own_scheme or (scheme or "").strip().lower() or ("https" if text.lower() == "ollama.com" else "http")
    if chosen not in _SCHEMES:
        raise InvalidRequestError(f"host: {chosen!r} is no scheme Ollama speaks; use http or https")
    try:
        parts = urlsplit(f"//{_bracketed(rest if separator else text)}")
        name, own_port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidRequestError(f"host: the port must be a number from 1 to 65535; {_ALLOWED}") from None
    if set("?#") & set(f"{text}{path or ''}"):
        raise InvalidRequestError(f"host: an address has no query and no fragment; {_ALLOWED}")
    base = _join(parts.path, (path or "").strip())
    if any(mark in "\"'" or mark.isspace() or not mark.isprintable() for mark in base):  # those around it are gone
        raise InvalidRequestError(f"host: a path has no quotes and no blanks; {_ALLOWED}")
    name = _reachable(name or "127.0.0.1")
    number = own_port or _number(port) or _default_port(own_scheme, chosen, name)
    if not 1 <= number <= 65535:
        raise InvalidRequestError(f"port: {number} is not between 1 and 65535")
    return _checked(f"{chosen}://{name}:{number}{base}")


def parse_addresses(
    host: str | None, port: int | str | None = None, scheme: str | None = None, path: str | None = None
) -> tuple[str, ...]:
    """Read one address or several, separated by commas, each as `parse_address` does.

    Empty ones (as behind a trailing comma) are left out, and so are repetitions of the same address.

    Args:
        host: ``gpu1``, or ``gpu1, gpu2:11435, https://gpu3.example.com/ollama``.
        port: for those that name none.
        scheme: for those that name none.
        path: base path of all, behind their own.

    Raises:
        InvalidRequestError: one of them is no address, or one holds a login or a password.
    """
    _refuse_credentials(f"{host}{scheme}{path}")
    parts = [part for part in (host or "").split(",") if part.strip()] or [host or ""]
    return tuple(dict.fromkeys(parse_address(part, port, scheme, path) for part in parts))


def settings_for(host: str | None = None, **others: Any) -> Settings:
    """Return the settings of a client for one server or several, without an Airflow connection.

    Args:
        host: as in `parse_addresses`. None or an empty text: what the environment's OLLAMA_HOST says, else this
            machine (``http://127.0.0.1:11434``).
        others: fields of `Settings` (``password``, ``verify``, ``timeouts``, …) that differ from their defaults.

    Raises:
        InvalidRequestError: *host* is no address, or holds a login or a password; or one of *others* is wrong.
    """
    base_url, *other_urls = parse_addresses(host or os.environ.get("OLLAMA_HOST"))
    try:
        return Settings(base_url=base_url, other_urls=tuple(other_urls), **others)
    except ValidationError as error:
        raise InvalidRequestError(explain(Settings, error)) from None


def _refuse_credentials(text: str) -> None:
    # An "@" anywhere, before any part of the text is quoted: in "http://ada:12/34@gpu1" the host is ada, the port 12.
    if "@" in text:
        raise InvalidRequestError(f"host: {NO_CREDENTIALS}")


def _bracketed(text: str) -> str:
    """Put a bare IPv6 address, which a server may be told to bind to, into brackets."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return text
    return f"[{text}]"


def _number(port: int | str | None) -> int:
    """Read a port that a secrets backend may have kept as text."""
    text = "" if port is None else str(port).strip()
    try:
        return int(text or 0)
    except ValueError:
        raise InvalidRequestError(f"port: {text!r} is not a number from 1 to 65535") from None


def _default_port(own_scheme: str | None, scheme: str, name: str) -> int:
    explicit = own_scheme is not None or scheme == "https" or name == "ollama.com"
    return _SCHEMES[scheme] if explicit else DEFAULT_PORT


def _reachable(name: str) -> str:
    """Return a name that can be connected to, with brackets for IPv6."""
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        if not all(part and len(part) <= 63 for part in name.rstrip(".").split(".")) or not _is_host(name):
            raise InvalidRequestError(f"host: this is no host name; {_ALLOWED}") from None
        return name
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{name}]" if address.version == 6 else name


def _is_host(name: str) -> bool:
    return all(character.isalnum() or character in "-._" for character in name)


def _join(first: str, second: str) -> str:
    parts = [part.strip("/") for part in (first, second)]
    return "".join(f"/{part}" for part in parts if part)


def _checked(url: str) -> str:
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        raise InvalidRequestError(f"host: this is no address; {_ALLOWED}") from None
    return url
