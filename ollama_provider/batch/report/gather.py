"""All that a directory says about a batch, as one value of plain data.

What failed is read as a whole, of the good rows a sample: see `ollama_provider.batch.report.shown_rows`.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from pydantic_core import from_json

from ollama_provider.batch.arguments import GROUPS
from ollama_provider.batch.report.history import Event, Sample, ShardShare
from ollama_provider.batch.report.prompts import (
    beginning,
)
from ollama_provider.batch.report.runs import read_runs
from ollama_provider.batch.report.samples import Distribution
from ollama_provider.batch.report.shown_rows import MARKS, Failures, GoodRows, Marks, Reason, ShownRow
from ollama_provider.batch.results.files import FAILED, RESULTS
from ollama_provider.batch.spec import REHEARSAL_NAMES, BatchSpec, Names
from ollama_provider.batch.store import manifest as manifests
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import KEY
from ollama_provider.batch.store.storage import Storage

#: Settings that hold, or are, what is asked: they are in ``batch.json`` and not in the report.
_PROMPTS = ("prompt", "messages", "system")


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
        settings: of the last run, or of the rehearsal where there was only that.
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
    found = (
        manifests.read(storage, name) for name in (names.batch, *shards.manifest_names(storage), REHEARSAL_NAMES.batch)
    )
    manifest = next(filter(None, found), manifests.Manifest())
    if journal is None:
        journal = Journal(storage, manifest.pass_number, only_reads=True)
    good, not_good = journal.stored()
    rows = GoodRows(journal, good, runs.prompts, vectors=(manifest.settings or {}).get("task") == "embed")
    marks = Marks()
    for line in journal.lines_with(MARKS, good, not_good):
        marks.add(from_json(line, cache_strings="keys"))
    failures = Failures(by_key)
    # Once the results are written, their lines have index and id, and there is one for each row.
    for line in _lines(storage, FAILED) if is_complete else journal.lines(not_good):
        failures.add(from_json(line, cache_strings="keys"))
    places = _places(storage, {row.key for row in rows.shown}) if is_complete else {}
    rehearsal = _rehearsal(storage)
    numbers = {"ok": len(good), "failed": failures.count, **runs.numbers()}
    if rehearsal and runs.state == "unknown":
        # Of a comparison, of which more answers are stored, the last rehearsal.
        numbers |= {"state": "rehearsed"} | {name: rehearsal[name] for name in ("rows", "ok", "failed")}
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
            row = from_json(line, cache_strings="keys")
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
