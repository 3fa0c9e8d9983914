"""``batch.json``: what this directory is for, and which round it is in (see `ollama_provider.batch.journal`)."""

import json
from dataclasses import dataclass, replace
from typing import Any

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.plan import Mode
from ollama_provider.batch.sinks import SUMMARY
from ollama_provider.batch.storage import Storage, write

_NAME = "batch.json"
_FORMAT = 1


@dataclass(frozen=True)
class Round:
    """Where a directory stands.

    Attributes:
        number: counts from 1; see `ollama_provider.batch.journal`.
        mode: what the round asks.
        num_ctx: the context chosen for it and those before, in tokens; None where the user gave it.
        settings: of its last run, for people.
    """

    number: int = 1
    mode: Mode = "all"
    num_ctx: int | None = None
    settings: dict[str, Any] | None = None

    def next(self) -> "Round":
        """Return the round after this one."""
        return replace(self, number=self.number + 1)


def current_round(storage: Storage, mode: Mode) -> Round:
    """Return the round that a run with *mode* belongs to: the open one, or a new one.

    Raises:
        StorageError: ``batch.json`` was made by a later version of this package.
    """
    last = _read(storage)
    if last is None:
        return Round(mode=mode)
    ended = storage.read(SUMMARY) is not None
    # A repair is a round of its own: what failed in the open round is what it is to ask.
    if ended or (mode == "failed_only" and last.mode != mode):
        last = last.next()
    return replace(last, mode=mode)


def _read(storage: Storage) -> Round | None:
    content = storage.read(_NAME)
    if content is None:
        return None
    try:
        saved = json.loads(content)
        if saved["format"] > _FORMAT:
            raise StorageError(
                f"{storage.location}/{_NAME} was made by a later version of airflow-provider-ollama. Update it here."
            )
        return Round(saved["round"], saved["mode"], saved["num_ctx"], saved["settings"])
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{storage.location}/{_NAME} is damaged. The parts beside it are good: remove it.") from None


def begin(storage: Storage, current: Round) -> None:
    """Write *current* down, and take back that the directory is complete."""
    # In this order: a crash in between begins the round again, instead of going on with one that had ended.
    save(storage, current)
    storage.delete(SUMMARY)


def save(storage: Storage, current: Round) -> None:
    """Write *current* down."""
    content = {
        "format": _FORMAT,
        "round": current.number,
        "mode": current.mode,
        "num_ctx": current.num_ctx,
        "settings": current.settings,
    }
    write(storage, _NAME, (json.dumps(content, indent=2) + "\n").encode())
