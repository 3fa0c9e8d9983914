"""Texts that must not turn up where they do not belong, and how to look for them."""

import base64
import html
import json
import logging
import traceback
from collections.abc import Iterable
from urllib.parse import quote

LOGIN = "canary-login"
PASSWORD = "canary-password-7Q4xZk2mVt"
HEADER = "canary-header-9Lw3Rb8sYc"
PROXY_PASSWORD = "canary-proxy-5Hn6Jd1fGa"
KEY = "canary-key-2Pv8Ue4oXi"
#: With what a page, JSON and a URL would escape.
PROMPT = 'canary-prompt: "Zoë & Bo" owe <quetzal> to the bank of Lugano'
ANSWER = 'canary-answer: "Zoë & Bo" paid <axolotl> at the bank of Zurich'

SECRETS = {"password": PASSWORD, "header": HEADER, "proxy": PROXY_PASSWORD, "key": KEY}
TEXTS = {"prompt": PROMPT, "answer": ANSWER}
#: Parts of the texts that are long enough to tell.
_MARKS = {"prompt": ("canary-prompt", "quetzal", "Lugano"), "answer": ("canary-answer", "axolotl", "Zurich")}


def _spellings(text: str) -> set[str]:
    encoded = base64.b64encode(text.encode()).decode()
    return {text, json.dumps(text)[1:-1], html.escape(text), quote(text), text.lower(), encoded.rstrip("=")}


def found_in(text: str | bytes, *names: str) -> list[str]:
    """Return which canaries are in a text: of those named, or of all."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    found = [name for name, secret in SECRETS.items() if any(spelling in text for spelling in _spellings(secret))]
    if basic(LOGIN, PASSWORD) in text or basic(LOGIN, PROXY_PASSWORD) in text:
        found.append("credentials")
    found += [name for name, marks in _MARKS.items() if any(mark in text for mark in marks)]
    return [name for name in found if not names or name in names]


def basic(login: str, password: str) -> str:
    """Return the value of Basic auth."""
    return base64.b64encode(f"{login}:{password}".encode()).decode()


def logged(records: Iterable[logging.LogRecord], *names: str) -> set[tuple[str, str]]:
    """Return which loggers have written which canaries.

    httpcore's own log at DEBUG has the heads of answers, and so what a server puts there: docs/security.md says so.
    """
    return {
        (record.name, canary)
        for record in records
        for canary in found_in(record.getMessage() + (record.exc_text or ""), *names)
        if not record.name.startswith("httpcore.")
    }


def told(error: BaseException) -> str:
    """Return all that a log may show of an exception: its text, its chain, and its attributes."""
    chain = "".join(traceback.format_exception(error))
    return f"{chain}\n{error!r}\n{vars(error)}"
