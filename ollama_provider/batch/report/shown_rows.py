"""The rows of the report: a fair sample of the good ones, some to look at, failed ones by their reason; what was cut.

Of the good rows only the sample is read, and of all lines only what a search for some bytes finds: a look at each line
would cost as much as the rest of a run that has nothing to ask. The random numbers have a fixed seed, so that a page
made again shows the same.
"""

import heapq
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from pydantic_core import from_json

from ollama_provider.batch.report.advice import advice, without_advice
from ollama_provider.batch.report.prompts import (
    ALL_GOOD_ROWS,
    GOOD_ROWS,
    REASONS,
    ROWS_OF_REASON,
    ShownPrompts,
    beginning,
)
from ollama_provider.batch.report.samples import Distribution, distribution
from ollama_provider.batch.store.journal import Journal

#: Rows whose numbers stand for all.
_SAMPLE = 2_000
#: What only a line has whose prompt or answer was cut, or that was repaired. (Or an answer, if it is such an object.)
#: The field beside it is there since a longer text is found in less time.
MARKS = (b',"prompt_cut":true,"answer_cut":', b',"answer_cut":true,"', b',"answer_cut":false,"rungs":["')
_NUMBERS = ("prompt_tokens", "tokens", "seconds", "tokens_per_second", "queue_seconds")
#: Why good rows are shown, in the order in which they are.
_ORDER = ("first", "longest", "slowest", "random", "last")


@dataclass(frozen=True)
class ShownRow:
    """A row to look at.

    Attributes:
        why: of a good row: ``first``, ``last``, ``longest``, ``slowest`` or ``random``.
        key: of the request.
        index, id: of the row in the input, where the results say it.
        text: the answer, or the error of a failed row.
        reply: the raw reply of a failed row.
        attempts, tokens, seconds: see `Outcome`.
        prompt: its beginning, where that was kept (``report_prompts``).
    """

    why: str
    key: str
    index: int | None
    id: Any
    text: str
    reply: str | None
    attempts: int
    tokens: int | None
    seconds: float | None
    prompt: str | None = None


@dataclass(frozen=True)
class Reason:
    """Failed rows of one class of error; *share* is that of the failed rows, from 0 to 1."""

    error: str
    count: int
    share: float
    advice: str
    rows: tuple[ShownRow, ...]


class Failures:
    """Failed rows by their reason.

    Args:
        prompts: by the keys of their rows, which are shown rather than others.
    """

    def __init__(self, prompts: Mapping[str, str]) -> None:
        self.count = 0
        self._prompts = prompts
        self._counts: dict[str, int] = {}
        self._rows: dict[str, list[ShownRow]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a failed row, a line of a part or of the results, and keep it if it is to be shown."""
        self.count += 1
        kind = (line.get("error") or {}).get("class") or "unknown"
        if kind not in self._counts and len(self._counts) >= REASONS:
            kind = "others"
        self._counts[kind] = self._counts.get(kind, 0) + 1
        rows = self._rows.setdefault(kind, [])
        prompt = self._prompts.get(line["key"])
        if len(rows) == ROWS_OF_REASON:
            without = next((row for row in reversed(rows) if row.prompt is None), None)
            if prompt is None or without is None:
                return
            rows.remove(without)
        rows.append(replace(_shown("", line), prompt=prompt))

    def reasons(self) -> tuple[Reason, ...]:
        """Return why rows failed, the most frequent first."""
        return tuple(
            Reason(kind, count, count / self.count, advice(kind), tuple(self._rows[kind]))
            for kind, count in sorted(self._counts.items(), key=lambda pair: -pair[1])
        )


@dataclass
class Marks:
    """What was cut, and what was repaired."""

    prompts_cut: int = 0
    answers_cut: int = 0
    ladder: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row, a line that has one of `MARKS`."""
        self.prompts_cut += bool(row.get("prompt_cut"))
        self.answers_cut += bool(row.get("answer_cut"))
        if rungs := row.get("rungs"):
            for rung in rungs:
                self.ladder.setdefault(rung, {"tried": 0, "good": 0})["tried"] += 1
            self.ladder[rungs[-1]]["good"] += row["status"] == "ok"


class GoodRows:
    """A fair sample of the good rows, and rows to look at.

    Args:
        journal: has them.
        good: where they are, from `Journal.stored`.
        prompts: of rows that are shown rather than others.
        vectors: their answers are not shown.

    Attributes:
        numbers: of the sample: `_NUMBERS` of each row.
    """

    def __init__(self, journal: Journal, good: Sequence[int], prompts: ShownPrompts, *, vectors: bool) -> None:
        self._vectors = vectors
        random = Random(1)  # noqa: S311  # nothing secret
        sample = random.sample(good, min(_SAMPLE, len(good)))
        self.numbers: list[list[float | None]] = []
        longest: list[tuple[float, int]] = []
        slowest: list[tuple[float, int]] = []
        for place, line in _with_places(journal, sorted(sample)):
            row = from_json(line, cache_strings="keys")
            numbers = [row.get(name) for name in _NUMBERS]
            self.numbers.append(numbers)
            _, tokens, seconds, *_ = numbers
            _keep_largest(longest, tokens, place, GOOD_ROWS["longest"])
            _keep_largest(slowest, seconds, place, GOOD_ROWS["slowest"])
        why: dict[int, str] = {}
        for reason, places in (
            *(
                (reason, _if_among(good, journal.place_of_key(bytes.fromhex(key))))
                for reason, key in prompts.good_keys()
            ),
            ("first", good[: GOOD_ROWS["first"]]),
            ("last", good[-GOOD_ROWS["last"] :]),
            ("longest", [place for _, place in longest]),
            ("slowest", [place for _, place in slowest]),
            ("random", sample),
        ):
            for place in places:
                if len(why) == ALL_GOOD_ROWS:
                    break
                why.setdefault(place, reason)
        #: The good rows that are shown, each once: random ones make them up to `ALL_GOOD_ROWS`.
        self.shown = sorted(
            (self._shown(why[place], line) for place, line in _with_places(journal, sorted(why))),
            key=lambda row: _ORDER.index(row.why),
        )

    def _shown(self, why: str, line: bytes) -> ShownRow:
        row = from_json(line, cache_strings="keys")
        if self._vectors:
            row["output"] = "a vector" if row.get("spans") is None else f"{len(row['spans'])} vectors"
        return _shown(why, row)

    def distributions(self) -> tuple[Distribution, ...]:
        """Return how the numbers of the sample are spread; none for a number that no row has."""
        rows = self.numbers
        columns = (
            ("Seconds a row", "s", [seconds for _, _, seconds, *_ in rows]),
            ("Seconds in the server's queue", "s", [queued for *_, queued in rows]),
            # What is left of the seconds when the generation of the answer is taken off.
            ("Seconds before the first token", "s", [
                max(0.0, seconds - tokens / speed) if seconds and tokens and speed else None
                for _, tokens, seconds, speed, _ in rows
            ]),
            ("Tokens read", "", [prompt for prompt, *_ in rows]),
            ("Tokens written", "", [tokens for _, tokens, *_ in rows]),
        )  # fmt: skip
        found = (
            distribution(label, unit, [each for each in column if each is not None]) for label, unit, column in columns
        )
        return tuple(each for each in found if each is not None)


def _if_among(places: Sequence[int], place: int | None) -> Sequence[int]:
    """Return a place if it is one of *places*, which are sorted, and else none."""
    at = len(places) if place is None else bisect_left(places, place)
    return places[at : at + 1] if at < len(places) and places[at] == place else ()


def _with_places(journal: Journal, places: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    return zip(places, journal.lines(places), strict=True)


def _keep_largest(heap: list[tuple[float, int]], size: float | None, place: int, most: int) -> None:
    if size is None or (len(heap) == most and size <= heap[0][0]):
        return
    heapq.heappush(heap, (size, place))
    if len(heap) > most:
        heapq.heappop(heap)


def _shown(why: str, line: Mapping[str, Any]) -> ShownRow:
    error, output, reply = line.get("error"), line.get("output"), line.get("reply")
    text = without_advice(error.get("class") or "", error.get("text") or "") if error else output
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    return ShownRow(
        why=why,
        key=line["key"],
        index=line.get("index"),
        id=line.get("id"),
        text=beginning(text),
        reply=beginning(reply) if error and reply is not None else None,
        attempts=line.get("attempts") or 0,
        tokens=line.get("tokens"),
        seconds=line.get("seconds"),
    )
