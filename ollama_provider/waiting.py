"""Decides whether servers and models are ready, may become ready, or never will. No network, no clock.

The sensor (in a worker) and the health trigger (in the triggerer) send `Condition.requests` to each server once per
interval. They pass the replies to `Condition.evaluate`, or the error to `evaluate_error`, and the verdicts on all
servers to `Condition.evaluate_servers`. They act on the verdict that this returns.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_provider.api.errors import InvalidRequestError, OllamaError, ResponseTimeoutError
from ollama_provider.api.model_names import ModelName, listed_name_matches
from ollama_provider.api.schemas import (
    LocalModel,
    PsReply,
    PsRequest,
    Reply,
    Request,
    RunningModel,
    TagsReply,
    TagsRequest,
    VersionReply,
    VersionRequest,
)

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:-rc(\d+))?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{12,64})")


@dataclass(frozen=True)
class Ready:
    """The condition is met."""

    summary: str


@dataclass(frozen=True)
class NotYet:
    """Something is missing that may still appear, so waiting makes sense."""

    reason: str


@dataclass(frozen=True)
class Never:
    """Waiting is useless, because a person has to change something first."""

    reason: str


Verdict = Ready | NotYet | Never


@dataclass(frozen=True)
class Condition:
    """What must be true of a server, or of several, before a task goes on.

    Attributes:
        models: models that must be on its disk. ``name@sha256:…`` (12 hex digits or more) requires exactly that
            version; the digest is the one that ``ollama list`` shows. A cloud model counts as present, because it runs
            elsewhere.
        min_version: the oldest acceptable version, such as "0.6.4".
        loaded: models that must be in its memory.
        servers: on how many servers of the connection: ``"any"`` is one of them, ``"all"`` is each of them.

    Raises:
        InvalidRequestError: a name, digest, version or number is not valid.
    """

    models: tuple[str, ...] = ()
    min_version: str | None = None
    loaded: tuple[str, ...] = ()
    servers: str | int = "any"

    def __post_init__(self) -> None:
        for wanted in (*self.models, *self.loaded):
            _split(wanted)
        if self.min_version is not None and version_key(self.min_version) is None:
            raise InvalidRequestError(f"min_version is {self.min_version!r}; a version looks like 0.6.4")
        is_number = isinstance(self.servers, int) and not isinstance(self.servers, bool) and self.servers > 0
        if not is_number and self.servers not in {"any", "all"}:
            raise InvalidRequestError(f"servers is {self.servers!r}; use 'any', 'all' or a number from 1 on")

    @property
    def requests(self) -> tuple[Request[Any], ...]:
        """The requests to send. Each is cheap, and the server never queues it behind a generation."""
        return (
            TagsRequest(),
            *((VersionRequest(),) if self.min_version else ()),
            *((PsRequest(),) if self.loaded else ()),
        )

    def evaluate(self, replies: Iterable[Reply]) -> Ready | NotYet:
        """Return the verdict on the replies to `requests`."""
        missing: list[str] = []
        for reply in replies:
            match reply:
                case TagsReply():
                    missing += _missing(self.models, reply.models, "is not on the server")
                case VersionReply():
                    missing += self._too_old(reply.version)
                case PsReply():
                    missing += _missing(self.loaded, reply.models, "is not in memory")
        return NotYet("; ".join(missing)) if missing else Ready(self._summary())

    def evaluate_servers(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        """Return the verdict on a connection.

        Args:
            verdicts: the verdict on each of its servers, by base URL.
        """
        count = len(verdicts)
        needed = self.servers if isinstance(self.servers, int) else count if self.servers == "all" else 1
        if needed > count:
            return Never(f"servers is {needed}, and the connection has {count}")
        if count == 1:
            return next(iter(verdicts.values()))
        ready = sum(isinstance(verdict, Ready) for verdict in verdicts.values())
        hopeless = sum(isinstance(verdict, Never) for verdict in verdicts.values())
        each = "; ".join(f"{url}: {_text_of(verdict)}" for url, verdict in verdicts.items())
        text = f"{ready} of {count} servers are ready, {needed} needed: {each}"
        if ready >= needed:
            return Ready(text)
        return Never(text) if count - hopeless < needed else NotYet(text)

    def _too_old(self, version: str) -> list[str]:
        wanted, found = version_key(self.min_version or ""), version_key(version)
        if wanted and (found is None or found < wanted):
            return [f"the server is {version or 'of an unknown version'}, wanted is {self.min_version} or later"]
        return []

    def _summary(self) -> str:
        there = [
            f"{', '.join(self.models)} on the server" if self.models else "",
            f"{', '.join(self.loaded)} in memory" if self.loaded else "",
        ]
        return "; ".join(["the server answers", *(part for part in there if part)])


def _text_of(verdict: Verdict) -> str:
    return verdict.summary if isinstance(verdict, Ready) else verdict.reason


def evaluate_error(error: OllamaError) -> NotYet | Never:
    """Return the verdict on a request that failed."""
    temporary = error.retryable or isinstance(error, ResponseTimeoutError)
    return NotYet(str(error)) if temporary else Never(str(error))


def version_key(version: str) -> tuple[int, ...] | None:
    """Return a key to compare versions; None if *version* is not one. A build from source (0.0.0) counts as newest."""
    match = _VERSION.match(version)
    if not match:
        return None
    major, minor, patch = (int(number or 0) for number in match.group(1, 2, 3))
    # A release sorts after all its release candidates.
    candidate = int(match[4]) if match[4] else 1_000_000
    return (major, minor, patch, candidate) if major or minor or patch else (1_000_000,)


def _missing(wanted: Iterable[str], present: Sequence[LocalModel | RunningModel], fault: str) -> list[str]:
    """Return a text for each wanted model that is not among those *present*, or has another digest."""
    findings = []
    for text in wanted:
        name, digest = _split(text)
        entry = next((entry for entry in present if listed_name_matches(entry.tag, name)), None)
        if name.is_cloud:
            continue
        if entry is None:
            findings.append(f"{name} {fault}")
        elif digest and not entry.digest.removeprefix("sha256:").startswith(digest):
            findings.append(f"{name} is {entry.digest[:12]}, wanted is {digest[:12]}")
    return findings


def _split(wanted: str) -> tuple[ModelName, str | None]:
    """Split ``name@sha256:digest`` into name and digest."""
    name, at, digest = wanted.partition("@")
    match = _DIGEST.fullmatch(digest.strip().lower())
    if at and not match:
        raise InvalidRequestError(f"{wanted!r}: after the @ there must be sha256: and 12 to 64 hex digits")
    return ModelName.parse(name), match[1] if match else None
