"""All that a directory says about a batch, as one value of plain data.

Of the good rows only a fair sample is read, and of all lines only what a search for some bytes finds: a look at each
line would cost as much as the rest of a run that has nothing to ask. What failed is read as a whole. The random numbers
have a fixed seed, so that a page made again shows the same.
"""

import heapq
import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from random import Random
from typing import Any, NamedTuple

from pydantic_core import from_json

from ollama_provider.batch.arguments import GROUPS
from ollama_provider.batch.report.advice import advice, without_advice
from ollama_provider.batch.report.history import Event, Sample, ShardShare
from ollama_provider.batch.report.prompts import (
    ALL_GOOD_ROWS,
    GOOD_ROWS,
    REASONS,
    ROWS_OF_REASON,
    ShownPrompts,
    beginning,
)
from ollama_provider.batch.report.runs import read_runs
from ollama_provider.batch.report.samples import Distribution, distribution
from ollama_provider.batch.results.files import FAILED, RESULTS
from ollama_provider.batch.spec import REHEARSAL_NAMES, BatchSpec, Names
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import KEY
from ollama_provider.batch.store.storage import Storage

#: Rows whose numbers stand for all.
_SAMPLE = 2_000
#: What only a line has whose prompt or answer was cut, or that was repaired. (Or an answer, if it is such an object.)
#: The field beside it is there since a longer text is found in less time.
_MARKS = (b',"prompt_cut":true,"answer_cut":', b',"answer_cut":true,"', b',"answer_cut":false,"rungs":["')
_NAMES = ("prompt_tokens", "tokens", "seconds", "tokens_per_second", "queue_seconds")
#: Why good rows are shown, in the order in which they are.
_ORDER = ("first", "longest", "slowest", "random", "last")
#: Settings that hold, or are, what is asked: they are in ``batch.json`` and not in the report.
_PROMPTS = ("prompt", "messages", "system")


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


class Setting(NamedTuple):
    """A setting of the last run, and its default; *changed* tells whether they differ."""

    name: str
    value: str
    default: str
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a directory says about a batch.

    Attributes:
        state: ``complete``, ``incomplete``, ``failed``, ``running``, ``rehearsed`` where there was only a rehearsal, or
            ``unknown`` where no run has noted its end.
        reason: why the last run ended, in a sentence; empty for a complete batch.
        directory: where it is.
        made: when this was gathered, in seconds since 1970.
        rows, ok, failed, left: see `Summary`; None where it is unknown.
        reused: of the good rows, those that the last run found done.
        seconds: that runs of this pass took in all.
        rows_per_second, tokens_per_second: over these seconds.
        seconds_left: at the last pace; None where it is unknown.
        provenance: see `Provenance`.
        servers: see `ServerShare`; of the last run.
        ladder: see `Summary`; of all stored rows.
        prompts_cut, answers_cut: rows with a prompt or an answer that was cut.
        outcomes: stored outcomes. Equal rows have one.
        damaged: lines that were damaged and are left out; the next run asks their rows again.
        sampled: how many of them the distributions are drawn from.
        distributions: of the good rows.
        reasons: why rows failed, the most frequent first.
        good: some good rows.
        settings: of the last run.
        samples, events: the history of this pass.
        shards: what each shard did, where the rows were shared by several.
        rehearsal: what the last one found; see `ollama_provider.batch.rehearsal.result`. None if there was none.
    """

    state: str
    reason: str
    directory: str
    made: float
    rows: int | None
    ok: int
    failed: int
    left: int | None
    reused: int
    seconds: float
    rows_per_second: float
    tokens_per_second: float
    seconds_left: float | None
    provenance: dict[str, Any] | None
    servers: tuple[dict[str, Any], ...]
    ladder: dict[str, dict[str, int]]
    prompts_cut: int
    answers_cut: int
    outcomes: int
    damaged: int
    sampled: int
    distributions: tuple[Distribution, ...]
    reasons: tuple[Reason, ...]
    good: tuple[ShownRow, ...]
    settings: tuple[Setting, ...]
    samples: tuple[Sample, ...]
    events: tuple[Event, ...]
    shards: tuple[ShardShare, ...] = ()
    rehearsal: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


def gather(storage: Storage, journal: Journal | None = None) -> Report:
    """Read the directory of a batch, which may be at work.

    Args:
        storage: the directory.
        journal: of a run in it, which spares another scan of the parts.

    Raises:
        StorageError: it cannot be read.
    """
    names = Names()
    runs = read_runs(storage)
    by_key, is_complete = runs.prompts.by_key(), runs.counts.get("complete", False)
    found = (manifests.read(storage, name) for name in (names.batch, *shards.manifest_names(storage)))
    manifest = next(filter(None, found), manifests.Manifest())
    if journal is None:
        journal = Journal(storage, manifest.pass_number, only_reads=True)
    good, not_good = journal.stored()
    rows = _Rows(journal, good, runs.prompts, vectors=(manifest.settings or {}).get("task") == "embed")
    marks = _Marks()
    for line in journal.lines_with(_MARKS, good, not_good):
        marks.add(from_json(line))
    failures = _Failures(by_key)
    # Once the results are written, their lines have index and id, and there is one for each row.
    for line in _lines(storage, FAILED) if is_complete else journal.lines(not_good):
        failures.add(from_json(line))
    places = _places(storage, {row.key for row in rows.shown}) if is_complete else {}
    rehearsal = _rehearsal(storage)
    numbers = {"ok": len(good), "failed": failures.count, **runs.numbers()}
    if rehearsal and runs.state == "unknown":
        numbers["state"] = "rehearsed"
    return Report(
        **numbers,
        directory=storage.location,
        made=time.time(),
        provenance=manifest.provenance,
        ladder=marks.ladder,
        prompts_cut=marks.prompts_cut,
        answers_cut=marks.answers_cut,
        outcomes=len(good) + len(not_good),
        damaged=journal.damaged,
        sampled=len(rows.numbers),
        distributions=rows.distributions(),
        reasons=failures.reasons(),
        good=tuple(replace(row, prompt=by_key.get(row.key), **places.get(row.key, {})) for row in rows.shown),
        settings=tuple(_settings(manifest.settings or {})),
        rehearsal=rehearsal,
    )


def _rehearsal(storage: Storage) -> dict[str, Any] | None:
    try:
        found = json.loads(storage.read(REHEARSAL_NAMES.summary) or b"null")
    except ValueError:  # a copy may be damaged
        return None
    return found if isinstance(found, dict) else None


class _Failures:
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
        return tuple(
            Reason(kind, count, count / self.count, advice(kind), tuple(self._rows[kind]))
            for kind, count in sorted(self._counts.items(), key=lambda pair: -pair[1])
        )


@dataclass
class _Marks:
    """What was cut, and what was repaired."""

    prompts_cut: int = 0
    answers_cut: int = 0
    ladder: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        self.prompts_cut += bool(row.get("prompt_cut"))
        self.answers_cut += bool(row.get("answer_cut"))
        if rungs := row.get("rungs"):
            for rung in rungs:
                self.ladder.setdefault(rung, {"tried": 0, "good": 0})["tried"] += 1
            self.ladder[rungs[-1]]["good"] += row["status"] == "ok"


class _Rows:
    """A fair sample of the good rows, and rows to look at.

    Args:
        journal: has them.
        good: where they are, from `Journal.stored`.
        prompts: of rows that are shown rather than others.
        vectors: their answers are not shown.

    Attributes:
        numbers: of the sample: `_NAMES` of each row.
    """

    def __init__(self, journal: Journal, good: Sequence[int], prompts: ShownPrompts, *, vectors: bool) -> None:
        self._vectors = vectors
        random = Random(1)  # noqa: S311  # nothing secret
        sample = random.sample(good, min(_SAMPLE, len(good)))
        self.numbers: list[list[float | None]] = []
        longest: list[tuple[float, int]] = []
        slowest: list[tuple[float, int]] = []
        for place, line in _with_places(journal, sorted(sample)):
            row = from_json(line)
            numbers = [row.get(name) for name in _NAMES]
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
            ("longest", [place for _, place in longest]),
            ("slowest", [place for _, place in slowest]),
            ("last", good[-GOOD_ROWS["last"] :]),
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
        row = from_json(line)
        if self._vectors:
            row["output"] = "a vector" if row.get("spans") is None else f"{len(row['spans'])} vectors"
        return _shown(why, row)

    def distributions(self) -> tuple[Distribution, ...]:
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


def _lines(storage: Storage, name: str) -> Iterator[bytes]:
    """Return the lines of a file of the results; none if it is not there, as with Parquet."""
    with storage_errors(storage.location, "read"):
        try:
            path = storage.local(name)
            with path.open("rb", buffering=1 << 20) as lines:
                yield from lines
        except FileNotFoundError:
            return


def _places(storage: Storage, keys: set[str]) -> dict[str, dict[str, Any]]:
    """Return index and id of the first row with each of these keys."""
    wanted, found = {key.encode() for key in keys}, {}
    for line in _lines(storage, RESULTS):
        if line[KEY] in wanted:
            wanted.discard(line[KEY])
            row = from_json(line)
            found[row["key"]] = {"index": row["index"], "id": row["id"]}
            if not wanted:
                break
    return found


def _settings(settings: Mapping[str, Any]) -> Iterator[Setting]:
    """Return the settings of a run in the order of `BatchSpec`, those of groups with the name of the group."""
    for known in fields(BatchSpec):
        value = settings.get(known.name)
        if known.name in _PROMPTS or known.name not in settings:
            continue
        group = GROUPS.get(known.name)
        if group is None or not isinstance(value, Mapping):
            yield _setting(known.name, value, {} if known.name == "options" else known.default)
            continue
        for inner in fields(group):
            yield _setting(f"{known.name}.{inner.name}", value.get(inner.name), inner.default)


def _setting(name: str, value: Any, default: Any) -> Setting:
    required = name in {"model", "rows"}
    changed = not required and value != default
    return Setting(name, _plain(value), "" if required else _plain(default), changed)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else beginning(json.dumps(value, ensure_ascii=False, default=str))
