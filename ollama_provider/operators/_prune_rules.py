"""Decides which models are pruned, and why the others are kept. No network, no clock: the time is an argument.

Several names may share files: a model that was created from another one shares its weights, and a copy shares all
files. So each set of weights is counted once, and deleting frees space only if all names of a set are deleted.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.model_names import ModelName, listed_name_matches
from ollama_provider.observability import describe_size

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|M|G|T)B", re.IGNORECASE)
_NAME = re.compile(r"[\w.:/*?-]+")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Installed:
    """A model on the server's disk.

    Attributes:
        name: name as the server shows it.
        size: size in bytes, files shared with other models included.
        modified: when it was pulled, created or copied; None if unknown. Ollama does not record when it was used.
        weights: identifies its weights. Models with the same weights share them on the disk.
        loaded: whether it, or a copy of it, is in memory.
    """

    name: str
    size: int
    modified: datetime | None
    weights: str
    loaded: bool = False


@dataclass(frozen=True)
class Rules:
    """Which models may be deleted. A model must satisfy all rules.

    Attributes:
        older_than: delete only models that were pulled, created or copied longer ago than this.
        match: delete only models with these names or patterns; all if empty.
        max_total_size: delete only as many as needed to reduce the total to this many bytes, the oldest first.
        keep: never delete models with these names or patterns.
    """

    older_than: timedelta | None = None
    match: Sequence[str] = ()
    max_total_size: int | None = None
    keep: Sequence[str] = ()


@dataclass(frozen=True)
class Decision:
    """Whether a model is deleted, and why."""

    model: Installed
    delete: bool
    reason: str


def decide(models: Sequence[Installed], rules: Rules, now: datetime) -> list[Decision]:
    """Return a decision for each model, the oldest first.

    Raises:
        InvalidRequestError: no rule limits what is deleted, which is probably a mistake.
    """
    if rules.older_than is None and not rules.match and rules.max_total_size is None:
        raise InvalidRequestError(
            "set older_than, match or max_total_size: without one of them all models would be deleted "
            '(match="*" does that)'
        )
    ordered = sorted(models, key=lambda model: (model.modified is None, model.modified or now, model.name))
    kept = {model.name: reason for model in ordered if (reason := _reason_to_keep(model, rules, now))}
    if rules.max_total_size is not None:
        kept |= _kept_by_size(ordered, kept, rules.max_total_size)
    return [
        Decision(model, delete=model.name not in kept, reason=kept.get(model.name) or _age(model, now))
        for model in ordered
    ]


def disk_size(models: Iterable[Installed]) -> int:
    """Return the size of models on the disk in bytes, with shared weights counted once."""
    largest: dict[str, int] = {}
    for model in models:
        largest[model.weights] = max(model.size, largest.get(model.weights, 0))
    return sum(largest.values())


def matches(name: str, pattern: str) -> bool:
    """Return whether a model's name matches another name, or a pattern (``llama3*``, ``hf.co/ours/*``, ``*:latest``).

    A pattern is compared with the whole name and with the name without its tag. Case is ignored.
    """
    if not is_pattern(pattern):
        return listed_name_matches(name, ModelName.parse(pattern))
    return any(fnmatchcase(text, pattern.lower()) for text in (name.lower(), name.lower().rpartition(":")[0]))


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern and not a name."""
    return "*" in text or "?" in text


def read_names(field: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return names and patterns. They may be one text, separated by commas or spaces.

    Raises:
        InvalidRequestError: one is neither a name nor a pattern.
    """
    parts = [value] if isinstance(value, str) else list(value or ())
    # A number in a list is refused below, and not read as the name of a model.
    names = tuple(
        name for part in parts for name in (part.replace(",", " ").split() if isinstance(part, str) else [part])
    )
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequestError(f"{field}: {str(name)[:50]!r} is neither a name nor a pattern with * or ?")
        if not is_pattern(name):
            ModelName.parse(name)
    return names


def read_size(value: int | float | str) -> int:
    """Return a number of bytes; *value* may be a text such as "50 GB" (a GB is 10^9 bytes).

    Raises:
        InvalidRequestError: it is neither a number nor a size.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)
    text = str(value).strip()
    if text.isdecimal():
        return int(text)
    if match := _SIZE.fullmatch(text):
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise InvalidRequestError(f'max_total_size: {text[:50]!r} is not a size; write a number of bytes, or "50 GB"')


def table(decisions: Sequence[Decision], now: datetime) -> list[str]:
    """Return the decisions as lines of a table."""
    rows = [("MODEL", "SIZE", "CHANGED", "")]
    for decision in decisions:
        model = decision.model
        what = "delete" if decision.delete else f"keep: {decision.reason}"
        rows.append((model.name, describe_size(model.size), _age(model, now), what))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"{name:<{widths[0]}}  {size:>{widths[1]}}  {age:<{widths[2]}}  {what}".rstrip()
        for name, size, age, what in rows
    ]


def _reason_to_keep(model: Installed, rules: Rules, now: datetime) -> str:
    if model.loaded:
        return "in memory"
    if any(matches(model.name, pattern) for pattern in rules.keep):
        return "on the keep list"
    if rules.match and not any(matches(model.name, pattern) for pattern in rules.match):
        return "matches no pattern"
    if rules.older_than is not None and (model.modified is None or now - model.modified < rules.older_than):
        return "too young" if model.modified else "of unknown age"
    return ""


def _kept_by_size(ordered: Sequence[Installed], kept: dict[str, str], limit: int) -> dict[str, str]:
    """Return the models that the size limit keeps: enough is deleted already, or deleting them would free nothing."""
    groups: dict[str, list[Installed]] = {}
    for model in ordered:
        groups.setdefault(model.weights, []).append(model)
    more: dict[str, str] = {}
    # A set of weights is as old as its newest name.
    ages = {weights: max(ordered.index(model) for model in group) for weights, group in groups.items()}
    left = list(ordered)
    for weights, group in sorted(groups.items(), key=lambda item: ages[item[0]]):
        sharing = [model.name for model in group if model.name in kept]
        if sharing:
            more |= {model.name: f"shares its files with {sharing[0]}" for model in group if model.name not in kept}
        elif disk_size(left) <= limit:
            more |= {model.name: "there is room" for model in group}
        else:
            left = [model for model in left if model.weights != weights]
    return more


def _age(model: Installed, now: datetime) -> str:
    if model.modified is None:
        return "unknown"
    days = (now - model.modified).days
    return f"{days} day{'s' * (days != 1)} ago" if days > 0 else "today"
