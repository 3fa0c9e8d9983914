"""Every status that says no, with every kind of body."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

from tests.api.faults.fault import (
    AUTHENTICATION,
    BAD_REQUEST,
    BLOB_NOT_FOUND,
    ENDPOINT,
    FORBIDDEN,
    GATEWAY,
    NOT_OLLAMA,
    OVERLOADED,
    OVERLOADED_FOR_LONG,
    PULL_FAILED,
    QUOTA,
    UNKNOWN,
    UNSUPPORTED,
    Fault,
    Outcome,
    everywhere,
    whole,
)
from tests.api.faults.operations import Group
from tests.api.faults.server import Call, Script, Step

#: By the name that the page has for it: content type and body, which repeats what it can of the request.
BODIES: dict[str, tuple[str, Callable[[str], str]]] = {
    "Ollama's JSON": ("application/json", lambda echo: json.dumps({"error": f"something new: {echo}"})),
    "others' JSON": ("application/json", lambda echo: json.dumps({"message": echo, "errors": [echo]})),
    "a page": ("text/html", lambda echo: f"<html><title>{echo}</title><body>{echo}</body></html>"),
    "text": ("text/plain", lambda echo: f"no: {echo}"),
    "nothing": ("text/plain", lambda _: ""),
}

_ALL = tuple(BODIES)
_JSON, _NOTHING, _OTHERS = _ALL[:1], _ALL[-1:], _ALL[1:-1]

#: What a status means, by the bodies that it has.
_MEANINGS: list[tuple[tuple[int, ...], tuple[str, ...], Outcome, dict[Group, Outcome]]] = [
    ((300, 301, 302, 303, 304, 305, 307, 308), _ALL, NOT_OLLAMA, {}),
    ((400, 406, 409, *range(411, 425), *range(426, 429), 431), _ALL, BAD_REQUEST, {}),
    ((401, 407), _ALL, AUTHENTICATION, {}),
    ((402, 410), _ALL, QUOTA, {}),
    ((403,), _ALL, FORBIDDEN, {}),
    ((404,), _JSON, NOT_OLLAMA, {Group.HEAD: BLOB_NOT_FOUND}),
    ((404,), _ALL[1:], NOT_OLLAMA, {Group.HEAD: BLOB_NOT_FOUND, Group.UPLOAD: BLOB_NOT_FOUND}),
    ((405,), _ALL, ENDPOINT, {}),
    ((408, 425, 499), _ALL, GATEWAY, {}),
    ((429, 503), _ALL, OVERLOADED, {}),
    ((500,), _JSON, UNKNOWN, {Group.PULL: PULL_FAILED}),
    ((500,), _NOTHING, UNKNOWN, {}),
    # An answer to HEAD has no body.
    ((500,), _OTHERS, GATEWAY, {Group.HEAD: UNKNOWN}),
    ((501,), _JSON, UNSUPPORTED, {Group.HEAD: GATEWAY}),
    ((501,), _ALL[1:], GATEWAY, {}),
    ((502, 504, 505, 511, *range(520, 527), 530, 599), _ALL, GATEWAY, {}),
]


def _answer(status: int, body: str, call: Call, *headers: str) -> list[Step]:
    kind, data = BODIES[body]
    echo = call.operation.echo
    if 300 <= status < 400:
        headers = (f"Location: http://sso.example.com/?{echo.replace(' ', '+')}", *headers)
    if status == 304:  # which never has a body
        echo, data = "", BODIES["nothing"][1]
    return whole(call, data(echo).encode(), f"Content-Type: {kind}", *headers, status=status)


def _ranges(statuses: tuple[int, ...]) -> str:
    """Return statuses as text, with those that follow each other as a range."""
    found: list[list[int]] = []
    for status in statuses:
        if found and status == found[-1][-1] + 1:
            found[-1].append(status)
        else:
            found.append([status])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in found)


def _fault(statuses: tuple[int, ...], bodies: tuple[str, ...], outcome: Outcome, others: dict[Group, Outcome]) -> Fault:
    what = "whatever the body" if bodies == _ALL else f"with {' or '.join(bodies)}"
    return Fault(
        f"{_ranges(statuses)}, {what}",
        everywhere(outcome, others),
        {f"{status} {body}": partial(_answer, status, body) for status in statuses for body in bodies},
    )


STATUSES = [
    *(_fault(*meaning) for meaning in _MEANINGS),
    Fault(
        "404, with the text `404 page not found`",
        everywhere(ENDPOINT, {Group.HEAD: BLOB_NOT_FOUND}),
        {"404": lambda call: whole(call, b"404 page not found", "Content-Type: text/plain", status=404)},
    ),
]


def _retry_after(value: str | int, status: int) -> Script:
    """Return the answer with that header; a number is seconds from the moment of the answer, sent as a date."""
    return lambda call: _answer(
        status, "a page", call, f"Retry-After: {value if isinstance(value, str) else _in(value)}"
    )


def _in(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def _name(value: str | int) -> str:
    return value if isinstance(value, str) else f"a date {abs(value)} s {'ahead' if value > 0 else 'ago'}"


RETRY_AFTER = [
    Fault(
        "429 or 503 with `Retry-After` up to five minutes, negative, or unreadable",
        everywhere(OVERLOADED),
        {
            f"{status}, {_name(value)}": _retry_after(value, status)
            for status in (429, 503)
            for value in ("0", "2", "2.5", "-5", "soon", "1e3", 20, -20, "Mon, 99 Foo 2026 99:99:99 GMT", "")
        },
    ),
    Fault(
        "429 or 503 with `Retry-After` beyond `max_retry_seconds`, however far",
        everywhere(OVERLOADED_FOR_LONG),
        {
            f"{status}, {_name(value)}": _retry_after(value, status)
            for status in (429, 503)
            for value in ("3600", "9" * 400, 3600, "Fri, 31 Dec 9999 23:59:59 GMT")
        },
    ),
]
