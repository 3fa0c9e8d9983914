"""Is the server, or the model, ready, still coming, or never? No network, no clock.

Whoever waits (the sensor in a worker, a trigger in the triggerer) sends `Condition.requests` now and then, and hands
the replies to `Condition.judge`, or the error to `judge_error`. What the verdict is, is decided here alone.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_provider.api.errors import InvalidRequestError, OllamaError, ResponseTimeoutError
from ollama_provider.api.model_names import ModelName
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
    """What was waited for is there."""

    summary: str


@dataclass(frozen=True)
class NotYet:
    """Something is missing that may still come."""

    reason: str


@dataclass(frozen=True)
class Never:
    """Waiting is useless; a person has to change something."""

    reason: str


Verdict = Ready | NotYet | Never


@dataclass(frozen=True)
class Condition:
    """What has to be true of a server that answers.

    Attributes:
        models: names that have to be on its disk. ``name@sha256:…`` (12 hex digits or more) wants that very version, by
            the digest that ``ollama list`` shows. A cloud model counts as there: it runs elsewhere.
        min_version: the oldest version that will do, such as "0.6.4".
        loaded: names that have to be in its memory.

    Raises:
        InvalidRequestError: a name, digest or version is none.
    """

    models: tuple[str, ...] = ()
    min_version: str | None = None
    loaded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wanted in (*self.models, *self.loaded):
            _split(wanted)
        if self.min_version is not None and version_key(self.min_version) is None:
            raise InvalidRequestError(f"min_version is {self.min_version!r}; a version looks like 0.6.4")

    @property
    def requests(self) -> tuple[Request[Any], ...]:
        """What to ask the server, each cheap and never queued behind a generation."""
        return (
            TagsRequest(),
            *((VersionRequest(),) if self.min_version else ()),
            *((PsRequest(),) if self.loaded else ()),
        )

    def judge(self, replies: Iterable[Reply]) -> Ready | NotYet:
        """Judge the replies to `requests`."""
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


def judge_error(error: OllamaError) -> NotYet | Never:
    """Judge an answer that did not come, or that says no."""
    passing = error.retryable or isinstance(error, ResponseTimeoutError)
    return NotYet(str(error)) if passing else Never(str(error))


def version_key(version: str) -> tuple[int, ...] | None:
    """Return a key to compare versions by; None for what is none. A build from source (0.0.0) is newer than any."""
    match = _VERSION.match(version)
    if not match:
        return None
    major, minor, patch = (int(number or 0) for number in match.group(1, 2, 3))
    # A release comes after all its candidates.
    candidate = int(match[4]) if match[4] else 1_000_000
    return (major, minor, patch, candidate) if major or minor or patch else (1_000_000,)


def _missing(wanted: Iterable[str], there: Sequence[LocalModel | RunningModel], fault: str) -> list[str]:
    findings = []
    for text in wanted:
        name, digest = _split(text)
        entry = next((entry for entry in there if _is(entry.tag, name)), None)
        if name.is_cloud:
            continue
        if entry is None:
            findings.append(f"{name} {fault}")
        elif digest and not entry.digest.removeprefix("sha256:").startswith(digest):
            findings.append(f"{name} is {entry.digest[:12]}, wanted is {digest[:12]}")
    return findings


def _is(shown: str, wanted: ModelName) -> bool:
    try:
        return ModelName.parse(shown) == wanted
    except InvalidRequestError:
        # Another server may have names of another grammar.
        return False


def _split(wanted: str) -> tuple[ModelName, str | None]:
    """Take ``name@sha256:digest`` apart."""
    name, at, digest = wanted.partition("@")
    match = _DIGEST.fullmatch(digest.strip().lower())
    if at and not match:
        raise InvalidRequestError(f"{wanted!r}: after the @ comes sha256: and 12 to 64 hex digits")
    return ModelName.parse(name), match[1] if match else None
