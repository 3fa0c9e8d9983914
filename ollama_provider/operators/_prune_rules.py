"""Which models go, and why the others stay. No network, no clock: the time is an argument.

Names are not what takes up a disk: a model made of another one shares its weights, and a copy shares everything. So
sizes are counted for each set of weights once, and room is only made where all names of a set go.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.model_names import ModelName
from ollama_provider.observability import describe_size
from ollama_provider.operators._server_models import is_called

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|M|G|T)B", re.IGNORECASE)
_NAME = re.compile(r"[\w.:/*?-]+")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Installed:
    """A model on the server's disk.

    Attributes:
        name: as the server shows it.
        size: bytes, those shared with other models included.
        modified: when it was pulled, created or copied; None if unknown. Ollama does not note when it was used.
        weights: what it shares with the models made of it.
        loaded: it, or a copy of it, is in memory.
    """

    name: str
    size: int
    modified: datetime | None
    weights: str
    loaded: bool = False


@dataclass(frozen=True)
class Rules:
    """What may go.

    Attributes:
        older_than: only what was pulled, created or copied longer ago.
        match: only these names or patterns; all if empty.
        max_total_size: only as much as needed to come down to so many bytes, the oldest first.
        keep: never these names or patterns.
    """

    older_than: timedelta | None = None
    match: Sequence[str] = ()
    max_total_size: int | None = None
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What happens to a model, and why."""

    model: Installed
    goes: bool
    reason: str


def judge(models: Sequence[Installed], rules: Rules, now: datetime) -> list[Verdict]:
    """Return a verdict for each model, the oldest first.

    Raises:
        InvalidRequestError: there is no rule that would let anything stay, so it is more likely a mistake.
    """
    if rules.older_than is None and not rules.match and rules.max_total_size is None:
        raise InvalidRequestError(
            'give older_than, match or max_total_size: without one of them all models would go (match="*" says so)'
        )
    ordered = sorted(models, key=lambda model: (model.modified is None, model.modified or now, model.name))
    stay = {model.name: reason for model in ordered if (reason := _reason_to_stay(model, rules, now))}
    if rules.max_total_size is not None:
        stay |= _enough(ordered, stay, rules.max_total_size)
    return [
        Verdict(model, goes=model.name not in stay, reason=stay.get(model.name) or _age(model, now))
        for model in ordered
    ]


def disk_size(models: Iterable[Installed]) -> int:
    """Return the bytes that models take, what they share counted once."""
    largest: dict[str, int] = {}
    for model in models:
        largest[model.weights] = max(model.size, largest.get(model.weights, 0))
    return sum(largest.values())


def fits(name: str, pattern: str) -> bool:
    """Say whether a name is meant by another, or by a pattern (``llama3*``, ``hf.co/ours/*``, ``*:latest``).

    A pattern is held against the whole name and against the name without its tag, whatever the case.
    """
    if not is_pattern(pattern):
        return is_called(name, ModelName.parse(pattern))
    return any(fnmatchcase(text, pattern.lower()) for text in (name.lower(), name.lower().rpartition(":")[0]))


def is_pattern(text: str) -> bool:
    """Say whether a text is a pattern, and no name."""
    return "*" in text or "?" in text


def read_names(field: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return names and patterns, which may come as one text with commas or blanks between them.

    Raises:
        InvalidRequestError: one is neither, as in a list that a template has turned into text.
    """
    parts = [value] if isinstance(value, str) else list(value or ())
    names = tuple(name for part in parts for name in part.replace(",", " ").split())
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(f"{field}: {name[:50]!r} is neither a name nor a pattern with * or ?")
        if not is_pattern(name):
            ModelName.parse(name)
    return names


def read_size(value: int | float | str) -> int:
    """Read a number of bytes, or a text such as "50 GB" (a GB is 10^9 bytes).

    Raises:
        InvalidRequestError: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)
    text = str(value).strip()
    if text.isdecimal():
        return int(text)
    if match := _SIZE.fullmatch(text):
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise InvalidRequestError(f'max_total_size: {text[:50]!r} is no size; write a number of bytes, or "50 GB"')


def table(verdicts: Sequence[Verdict], now: datetime) -> list[str]:
    """Return the verdicts as lines of a table."""
    rows = [("MODEL", "SIZE", "CHANGED", "")]
    for verdict in verdicts:
        model = verdict.model
        what = "goes" if verdict.goes else f"stays: {verdict.reason}"
        rows.append((model.name, describe_size(model.size), _age(model, now), what))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"{name:<{widths[0]}}  {size:>{widths[1]}}  {age:<{widths[2]}}  {what}".rstrip()
        for name, size, age, what in rows
    ]


def _reason_to_stay(model: Installed, rules: Rules, now: datetime) -> str:
    if model.loaded:
        return "in memory"
    if any(fits(model.name, pattern) for pattern in rules.keep):
        return "on the keep list"
    if rules.match and not any(fits(model.name, pattern) for pattern in rules.match):
        return "matches no pattern"
    if rules.older_than is not None and (model.modified is None or now - model.modified < rules.older_than):
        return "too young" if model.modified else "of unknown age"
    return ""


def _enough(ordered: Sequence[Installed], stay: dict[str, str], bound: int) -> dict[str, str]:
    """Return why some more models stay: there is room enough, or their going would make none."""
    groups: dict[str, list[Installed]] = {}
    for model in ordered:
        groups.setdefault(model.weights, []).append(model)
    more: dict[str, str] = {}
    # A set is as old as the newest of its names.
    ages = {weights: max(ordered.index(model) for model in group) for weights, group in groups.items()}
    left = list(ordered)
    for weights, group in sorted(groups.items(), key=lambda item: ages[item[0]]):
        kept = [model.name for model in group if model.name in stay]
        if kept:
            more |= {model.name: f"shares its files with {kept[0]}" for model in group if model.name not in stay}
        elif disk_size(left) <= bound:
            more |= {model.name: "there is room" for model in group}
        else:
            left = [model for model in left if model.weights != weights]
    return more


def _age(model: Installed, now: datetime) -> str:
    if model.modified is None:
        return "unknown"
    days = (now - model.modified).days
    return f"{days} day{'s' * (days != 1)} ago" if days > 0 else "today"
