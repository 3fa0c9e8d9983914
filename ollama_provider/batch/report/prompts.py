"""The beginnings of the prompts that the report shows, where that is wanted: ``prompts.json``.

Nothing else in a directory has prompts, and at the end of a run its input may be gone. So they are kept when a row gets
its outcome: of the first failed rows of each reason, and of some good ones. These are the rows that the report shows.

A group keeps the rows with the lowest ranks, however many there are and in whatever order they come. So what several
runs and shards have kept can be put together.
"""

import json
from bisect import insort
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from ollama_provider.batch.records import Outcome
from ollama_provider.batch.store.storage import Storage, write

_FORMAT = 1
#: Good rows that the report shows of each group, and in all; random ones make them up to that.
GOOD_ROWS = {"first": 3, "last": 3, "longest": 4, "slowest": 4, "random": 20}
ALL_GOOD_ROWS = 20
#: Failed rows that it shows of a reason, reasons, and characters of a text.
ROWS_OF_REASON, REASONS, TEXT = 10, 50, 1000


def beginning(text: str) -> str:
    """Return the beginning of a text, as long as the report shows it."""
    return text if len(text) <= TEXT else f"{text[:TEXT]} …"


class Kept(NamedTuple):
    """A row whose prompt is kept.

    Attributes:
        rank: the lowest ones of a group are kept.
        key: of the row, 32 hex digits.
        prompt: its beginning.
    """

    rank: float
    key: str
    prompt: str


_Group = Annotated[list[Kept], Field(max_length=max(ALL_GOOD_ROWS, ROWS_OF_REASON))]


class _Saved(BaseModel):
    format: int
    pass_number: int
    good: dict[str, _Group] = Field(max_length=len(GOOD_ROWS))
    failed: dict[str, _Group] = Field(max_length=REASONS)


class ShownPrompts:
    """The prompts of some rows of a pass over the input.

    Args:
        pass_number: that pass.
        good: rows by the reason for which they are shown, a name in `GOOD_ROWS`.
        failed: rows by the class of their error.
    """

    def __init__(
        self, pass_number: int, good: dict[str, list[Kept]] | None = None, failed: dict[str, list[Kept]] | None = None
    ) -> None:
        self.pass_number = pass_number
        self.good = good or {}
        self.failed = failed or {}

    def add(self, outcome: Outcome, prompt: str, now: float) -> None:
        """Keep the beginning of a prompt, if the row is one to show.

        Args:
            outcome: of the row.
            prompt: as it is read by people; empty if it could not be rendered.
            now: seconds since 1970.
        """
        if not prompt:
            return
        key = outcome.key
        if outcome.error is not None:
            self._add_failed(outcome.error["class"], Kept(now, key, prompt))
            return
        self._add_good("first", Kept(now, key, prompt))
        self._add_good("last", Kept(-now, key, prompt))
        self._add_good("random", Kept(int(key[:12], 16), key, prompt))  # keys are as good as random numbers
        if outcome.tokens:
            self._add_good("longest", Kept(-outcome.tokens, key, prompt))
        if outcome.seconds:
            self._add_good("slowest", Kept(-outcome.seconds, key, prompt))

    def merge(self, other: "ShownPrompts") -> None:
        """Add what another run has kept."""
        for why, rows in other.good.items():
            for row in rows:
                self._add_good(why, row)
        for reason, rows in other.failed.items():
            for row in rows:
                self._add_failed(reason, row)

    def _add_good(self, why: str, row: Kept) -> None:
        _add(self.good.setdefault(why, []), row, GOOD_ROWS[why])

    def _add_failed(self, reason: str, row: Kept) -> None:
        if reason in self.failed or len(self.failed) < REASONS:
            _add(self.failed.setdefault(reason, []), row, ROWS_OF_REASON)

    def by_key(self) -> dict[str, str]:
        """Return all prompts, by the keys of their rows."""
        return {row.key: row.prompt for groups in (self.good, self.failed) for rows in groups.values() for row in rows}

    def good_keys(self) -> Iterator[tuple[str, str]]:
        """Return why a good row is shown, and its key, in the order of `GOOD_ROWS`; some rows more than once."""
        for why in GOOD_ROWS:
            for row in self.good.get(why, ()):
                yield why, row.key

    def as_json(self) -> bytes:
        """Return the content of ``prompts.json``."""

        def copied(groups: dict[str, list[Kept]]) -> dict[str, Any]:
            # This runs in a thread while rows are added.
            return {name: tuple(rows) for name, rows in tuple(groups.items())}

        content = {
            "format": _FORMAT,
            "pass_number": self.pass_number,
            "good": copied(self.good),
            "failed": copied(self.failed),
        }
        return (json.dumps(content) + "\n").encode()

    def save(self, storage: Storage, name: str) -> None:
        """Write it.

        Raises:
            StorageError: it cannot be written.
        """
        write(storage, name, self.as_json())


def _add(rows: list[Kept], row: Kept, most: int) -> None:
    if len(rows) == most and row.rank >= rows[-1].rank:
        return
    if any(row.key == each.key for each in rows):  # it was asked again
        return
    insort(rows, row._replace(prompt=beginning(row.prompt)))
    del rows[most:]


def read_prompts(storage: Storage, name: str) -> ShownPrompts | None:
    """Return the prompts that a directory has kept; None if there are none that can be read.

    Raises:
        StorageError: the directory cannot be read.
    """
    content = storage.read(name)
    try:
        saved = None if content is None else _Saved.model_validate_json(content)
    except ValidationError:
        return None
    if saved is None or saved.format > _FORMAT or not saved.good.keys() <= GOOD_ROWS.keys():
        return None
    return ShownPrompts(saved.pass_number, saved.good, saved.failed)


def prompts_for(storage: Storage, name: str, pass_number: int) -> ShownPrompts:
    """Return the prompts that a run goes on with: those of its pass over the input, or none yet.

    Raises:
        StorageError: the directory cannot be read.
    """
    found = read_prompts(storage, name)
    return found if found is not None and found.pass_number == pass_number else ShownPrompts(pass_number)
