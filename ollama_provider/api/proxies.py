"""The proxy between a client and its server, as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say."""

import ipaddress
import os
import re
import urllib.request
from fnmatch import fnmatchcase

import httpx

from ollama_provider.api import errors
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.headers import basic_auth
from ollama_provider.api.settings import Settings

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Errors that no proxy can have caused.
_UNRELATED = (InvalidRequestError, errors.ClientClosedError, errors.RejectedReplyError, errors.PullError)


class EnvironmentProxy(httpx.Proxy):
    """A proxy from the environment.

    Args:
        url: without credentials.
        headers: its credentials.
        variable: the variable that names it; "the system" if no variable does.
    """

    def __init__(self, url: httpx.URL, *, headers: dict[str, str], variable: str) -> None:
        super().__init__(url, headers=headers)
        self.variable = variable

    def __str__(self) -> str:
        return f"through the proxy {self.url} that {self.variable} names"

    def add_to(self, error: OllamaError, response: httpx.Response | None) -> None:
        """Add to an error that the request went through the proxy, and advice if the proxy may have caused the error.

        Args:
            error: of a request that went through the proxy.
            response: the head of the answer; None if there was none.
        """
        if isinstance(error, _UNRELATED):
            return
        error.what += f", {self}"
        by_ollama = response is not None and "json" in response.headers.get("content-type", "")
        waited = isinstance(error, errors.ResponseTimeoutError | errors.IncompleteReplyError)
        if not by_ollama and not waited:
            error.advice = (
                "It may be the proxy that says so: name the host in NO_PROXY to do without it, set trust_env to false "
                f"in the connection, or correct {self.variable} (its login too)."
            )


def proxy_for(settings: Settings) -> EnvironmentProxy | None:
    """Return the proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) for this server, if any.

    Both clients use this rule. Loopback addresses never go through a proxy, which could not reach them.

    Raises:
        InvalidRequestError: the kind of the proxy is not supported, or its address is invalid.
    """
    if not settings.trust_env:
        return None
    url = httpx.URL(settings.base_url)
    proxies = urllib.request.getproxies()
    port = url.port or (443 if url.scheme == "https" else 80)
    if _is_loopback(url.host) or is_exempt(url.host, port, proxies.get("no", "")):
        return None
    kind = url.scheme if proxies.get(url.scheme) else "all"
    proxy = proxies.get(kind, "").strip()
    # proxy_bypass() knows the exceptions of macOS and Windows, which are in no variable.
    if not proxy or ("no" not in proxies and urllib.request.proxy_bypass(url.host)):
        return None
    name = f"{kind}_proxy"
    variable = next((known for known in (name, name.upper()) if os.environ.get(known)), "the system")
    try:
        found = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
    except (httpx.InvalidURL, UnicodeError, ValueError):
        found = None
    if found is None or not re.fullmatch(rb"[\w.:-]+", found.raw_host) or not 0 < (found.port or 1) < 65536:
        # The value may hold a password.
        raise InvalidRequestError(f"{variable} of the environment is no address of a proxy, such as http://proxy:3128")
    if found.scheme not in ("http", "https"):
        raise InvalidRequestError(
            f"{variable} of the environment wants a proxy of the kind {found.scheme!r} for {url.host}, which is not "
            "supported: name the host in NO_PROXY, or set trust_env to false"
        )
    # Credentials as a header, which both transports send alike. httpx.Proxy would keep them apart, as a pair.
    headers = {}
    if found.username or found.password:
        headers["proxy-authorization"] = basic_auth(found.username, found.password)
    return EnvironmentProxy(found.copy_with(username=None, password=None), headers=headers, variable=variable)


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Return whether NO_PROXY exempts a host.

    Its entries, separated by commas or blanks, are: a host, which includes its subdomains (``svc``,
    ``.svc``, ``*.svc``, or with other ``*``); an address, IPv6 with or without brackets; a network
    (``10.0.0.0/8``); each of them with a port (``gpu1:11434``, ``[fd00::/8]:11434``) for that port alone; ``*`` for
    all.

    Args:
        host: a name or an address, without brackets.
        port: of the server.
        no_proxy: value of the variable.
    """
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    return any(_names(entry, name, _address(name), port) for entry in re.split(r"[\s,]+", no_proxy.lower()) if entry)


def _names(entry: str, name: str, address: _Address | None, port: int) -> bool:
    if (network := _network(entry)) is None:
        front, colon, number = entry.rpartition(":")
        if colon and number.isascii() and number.isdigit():
            if int(number) != port:
                return False
            entry, network = front, _network(front)
    if network is not None:
        return address is not None and address in network
    pattern = entry.removeprefix("*.").strip(".")
    return entry == "*" or fnmatchcase(name, pattern) or (bool(pattern) and name.endswith(f".{pattern}"))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network of an entry; an address counts as a network of one."""
    try:
        return ipaddress.ip_network(re.sub(r"^\[([^]]*)\]((?:/\d+)?)$", r"\1\2", entry), strict=False)
    except ValueError:
        return None


def _address(name: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")
