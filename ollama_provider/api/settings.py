"""Settings of a client: how to reach the server, timeouts, retries and pulls. Frozen and validated."""

from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas.options import KeepAlive, Options

NO_CREDENTIALS = (
    "an address holds no login and no password, because logs and lists show it; put them into Login and Password of "
    "the connection (of the command: --login and --password-file)"
)
_TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
}

#: A year. The clocks of sockets and threads end in an OverflowError at some centuries, and at infinity.
LONGEST_TIMEOUT = 365 * 24 * 3600
Seconds = Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)]


def _read_patterns(value: Any) -> Any:
    return [part for part in value.replace(",", " ").split() if part] if isinstance(value, str) else value


def _read_truth(value: Any) -> Any:
    """Read true and false from text: a connection in the form of a URI has nothing but text."""
    return _TRUTH.get(value.strip().lower(), value) if isinstance(value, str) else value


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if "@" in value:
        raise ValueError(NO_CREDENTIALS)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("use http:// or https://, a host, and a port (see address.parse_address)")
    return value.rstrip("/")


class Timeouts(BaseModel):
    """Timeouts in seconds, up to a year.

    Attributes:
        connect: until the connection is made, for each address of the host.
        first_token: until the first byte. Ollama sends no byte before the first token, so this covers the queue,
            loading the model and reading the prompt. Requests that no model works on have a timeout of their own.
        idle: between two pieces of an answer.
        total: for one attempt; None means no limit. A pull has no limit.
        pull_stall: without progress of a pull (a stalled pull keeps sending lines).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    connect: Seconds = 10
    first_token: Seconds = 900
    idle: Seconds = 120
    total: Seconds | None = None
    pull_stall: Seconds = 300


class Settings(BaseModel):
    """How to reach a server, or several that share all the rest, and what applies to every request.

    Attributes:
        base_url: scheme, host, port and base path; no credentials, no slash at the end.
        other_urls: the same of the further servers, in the order in which they are preferred.
        login, password: Basic auth; a password alone is sent as a Bearer token.
        headers: sent with every request.
        verify: whether to check the server's certificate, or a CA file to check it with.
        client_cert: PEM file with certificate and key.
        trust_env: use the proxy of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
        timeouts: see `Timeouts`.
        max_attempts: attempts of one request, including the first.
        max_retry_seconds: no retry begins after so many seconds.
        auto_pull: pull a missing model, then send the request again.
        pull_allow: patterns (``hf.co/ours/*``) of names outside Ollama's own registry that may be pulled automatically.
        model, options, keep_alive: defaults that the hook adds to requests without them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    base_url: Annotated[str, AfterValidator(_check_url)] = "http://127.0.0.1:11434"
    other_urls: tuple[Annotated[str, AfterValidator(_check_url)], ...] = ()
    login: str | None = None
    password: SecretStr | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    verify: Annotated[bool | str, BeforeValidator(_read_truth)] = True
    client_cert: str | None = None
    trust_env: bool = True
    timeouts: Timeouts = Timeouts()
    max_attempts: int = Field(default=4, ge=1)
    max_retry_seconds: Seconds = 300
    auto_pull: bool = True
    pull_allow: Annotated[tuple[str, ...], BeforeValidator(_read_patterns)] = ()
    model: str | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None

    @model_validator(mode="after")
    def _check_repetitions(self) -> Self:
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("other_urls: each server may be named once")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of all servers, in the order in which they are preferred."""
        return self.base_url, *self.other_urls

    @property
    def servers(self) -> "tuple[Settings, ...]":
        """The settings of each server: the same, with its URL as the only one."""
        if not self.other_urls:
            return (self,)
        return tuple(self.model_copy(update={"base_url": url, "other_urls": ()}) for url in self.urls)

    def of_server(self, name: str) -> "Settings":
        """Return the settings of one of the servers.

        Args:
            name: its URL, or as much of it as no other server has: ``gpu2``, ``gpu2:11435``.

        Raises:
            InvalidRequestError: none or several have that name; the text has the right ones.
        """
        if "@" in name:  # before any part of it is quoted
            raise InvalidRequestError("server: a login or a password is no part of its name")
        wanted = name.strip().rstrip("/").lower()
        found = [server for server in self.servers if wanted in _names_of(server.base_url)]
        if len(found) == 1:
            return found[0]
        many = "is the name of several servers" if found else "is not one of the servers"
        raise InvalidRequestError(f"server: {name!r} {many}; they are {', '.join(self.urls)}")


def _names_of(url: str) -> set[str]:
    """Return the names of a server: its URL, and the parts of it that name a host, in lower case."""
    parts = urlsplit(url.lower())
    host = parts.netloc.rpartition(":")[0]
    names = {parts.netloc, host, host.strip("[]")}
    if parts.port == {"http": 80, "https": 443}[parts.scheme]:
        names.add(f"{parts.scheme}://{host}")
    names.add(f"{parts.scheme}://{parts.netloc}")
    return names | {f"{name}{parts.path}" for name in names}
