"""The way to a server: the headers that open it, the proxy in between, the certificates."""

import base64
import ipaddress
import ssl
import urllib.request
from pathlib import Path

import httpx

from ollama_provider import __version__
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings


def headers_for(settings: Settings) -> list[tuple[str, str]]:
    """Return the headers of every request: login and password as Basic auth, a password alone as a Bearer token.

    A header of the settings takes the place of one of ours.

    Raises:
        InvalidRequestError: a header holds what no header can.
    """
    ours = {
        "accept": "application/json, application/x-ndjson",
        # Compression would hold tokens back until a block is full.
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
        return _basic(settings.login, password)
    if not password:
        return None
    if not (password.isascii() and password.isprintable()):
        raise InvalidRequestError("password: sent as a Bearer token it must be printable ASCII on one line")
    return f"Bearer {password}"


def _basic(login: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{login}:{password}'.encode()).decode()}"


def proxy_for(settings: Settings) -> httpx.Proxy | None:
    """Return the proxy that the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) wants for this server.

    One rule for both clients. This machine is never asked for through a proxy, which could not reach it.

    Raises:
        InvalidRequestError: the proxy is of a kind that is not supported.
    """
    if not settings.trust_env:
        return None
    url = httpx.URL(settings.base_url)
    if _is_loopback(url.host) or urllib.request.proxy_bypass(url.netloc.decode()):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy:
        return None
    found = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme not in ("http", "https"):
        raise InvalidRequestError(
            f"the environment wants a proxy of the kind {found.scheme!r} for {url.host}, which is not supported: "
            "name the host in NO_PROXY, or set trust_env to false"
        )
    # As a header, which both transports take in the same way; httpx.Proxy would part it from the URL as a pair.
    headers = {}
    if found.username or found.password:
        headers["proxy-authorization"] = _basic(found.username, found.password)
    return httpx.Proxy(found.copy_with(username=None, password=None), headers=headers)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def ssl_context_for(settings: Settings) -> ssl.SSLContext:
    """Return how to check the server's certificate, and which one to show it.

    Raises:
        InvalidRequestError: a file is not there, or not what it should be.
    """
    if not settings.base_url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and loading the trusted certificates takes 30 ms
    if isinstance(settings.verify, str):
        context = _trusting(settings.verify)
    else:
        context = httpx.create_ssl_context(verify=settings.verify, trust_env=settings.trust_env)
    if settings.client_cert:
        try:
            context.load_cert_chain(settings.client_cert)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "it is no PEM file with certificate and key"
            raise InvalidRequestError(f"client_cert: cannot read {settings.client_cert!r}: {reason}") from None
    return context


def _trusting(file: str) -> ssl.SSLContext:
    path = Path(file)
    try:
        return ssl.create_default_context(capath=file) if path.is_dir() else ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it is no PEM file with certificates"
        raise InvalidRequestError(f"verify: cannot read {file!r}: {reason}") from None
