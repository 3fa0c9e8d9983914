"""What the runs of a directory tell of themselves: that of the whole batch, or those of its shards side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.report.history import History, ShardShare, as_one, read_history
from ollama_provider.batch.report.prompts import ShownPrompts, read_prompts
from ollama_provider.batch.spec import Names
from ollama_provider.batch.store import shards as shard_files
from ollama_provider.batch.store.storage import Storage

#: Numbers of a server that are added up over the shards. It was out of service for all of them at the same time.
_ADDED = ("rows", "tokens", "tokens_per_second", "concurrency", "discarded")


class _Counts(BaseModel):
    """What is used of ``summary.json`` and ``progress.json``."""

    complete: bool = False
    rows: int | None = None
    ok: int = 0
    failed: int = 0
    left: int | None = None
    reused: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    total: int | None = None
    done: int = 0
    eta: float | None = None
    servers: list[ServerShare] = []


@dataclass(frozen=True)
class Runs:
    """The runs of a pass over the input.

    Attributes:
        counts: see `read_counts`.
        history: of these runs.
        prompts: that they have kept.
        state, reason: see `Report`.
    """

    counts: Mapping[str, Any]
    history: History
    prompts: ShownPrompts
    state: str
    reason: str

    def numbers(self) -> dict[str, Any]:
        """Return the attributes of a `Report` that these tell, without a look at a row; ``ok`` and ``failed`` if known.

        They cost the same however many rows there are.
        """
        counts, samples = self.counts, self.history.samples
        seconds = sum(sample.seconds for sample in samples)
        return {
            "state": self.state,
            "reason": self.reason,
            "rows": counts.get("rows"),
            **{name: counts[name] for name in ("ok", "failed") if name in counts},
            "left": counts.get("left"),
            "reused": counts.get("reused", 0),
            "seconds": seconds or counts.get("seconds", 0.0),
            "rows_per_second": _rate(sum(sample.rows for sample in samples), seconds),
            "tokens_per_second": _rate(sum(sample.tokens for sample in samples), seconds),
            "seconds_left": counts.get("seconds_left"),
            "servers": tuple(counts.get("servers") or self.history.servers),
            "samples": tuple(samples),
            "events": tuple(self.history.events),
            "shards": tuple(self.history.shards),
        }


def read_runs(storage: Storage) -> Runs:
    """Return the runs of the whole batch, or those of its shards, which are merged later: the newer ones.

    Raises:
        StorageError: the directory cannot be read.
    """
    whole, shards = _runs(storage, Names()), read_shards(storage)
    return whole if shards is None or whole.history.end >= shards.history.end else shards


def read_shards(storage: Storage) -> Runs | None:
    """Return the runs of all shards since the last merge, as one; None if there are none.

    Raises:
        StorageError: the directory cannot be read.
    """
    shards = shard_files.found(storage)
    if not shards:
        return None
    of_each = {f"{shard.number} of {shard.of}": _runs(storage, shard.names) for shard in shards}
    history = as_one({name: runs.history for name, runs in of_each.items()})
    history.shards = [_share(name, runs) for name, runs in of_each.items()]
    history.servers = _servers([runs.counts for runs in of_each.values()])
    prompts = ShownPrompts(0)
    for runs in of_each.values():
        prompts.merge(runs.prompts)
    counts = _sum([runs.counts for runs in of_each.values()], all_known=len(shards) == shards[0].of)
    return Runs(counts, history, prompts, *_state(history.shards, shards[0].of))


def read_counts(storage: Storage, names: Names) -> dict[str, Any]:
    """Return what the last run of these files has counted: its summary, or the same of its progress.

    Raises:
        StorageError: the directory cannot be read.
    """
    if summary := _read_counts(storage, names.summary):
        return summary
    progress = _read_counts(storage, names.progress)
    if not progress:
        return {}
    total = progress.get("total")
    left = None if total is None else max(0, total - progress.get("done", 0))
    return progress | {"complete": False, "rows": total, "left": left, "seconds_left": progress.get("eta")}


def _read_counts(storage: Storage, name: str) -> dict[str, Any]:
    content = storage.read(name)
    try:
        return {} if content is None else _Counts.model_validate_json(content).model_dump(exclude_unset=True)
    except ValidationError:  # a copy may be damaged; it is made again with the next run
        return {}


def _runs(storage: Storage, names: Names) -> Runs:
    counts, history = read_counts(storage, names), read_history(storage, names.history) or History(0)
    prompts = read_prompts(storage, names.prompts) or ShownPrompts(0)
    return Runs(counts, history, prompts, *history.state(complete=counts.get("complete", False)))


def _share(name: str, runs: Runs) -> ShardShare:
    history, counts = runs.history, runs.counts
    seconds = sum(sample.seconds for sample in history.samples)
    rows, tokens = sum(sample.rows for sample in history.samples), sum(sample.tokens for sample in history.samples)
    return ShardShare(
        name=name,
        state=runs.state,
        reason=runs.reason,
        rows=counts.get("rows"),
        ok=counts.get("ok", 0),
        failed=counts.get("failed", 0),
        left=counts.get("left"),
        began=history.events[0].at if history.events else 0.0,
        ended=history.end,
        seconds=round(seconds, 2),
        rows_per_second=round(rows / seconds, 3) if seconds else 0.0,
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
    )


def _servers(counts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the share of each server over all shards."""
    found: dict[str, dict[str, Any]] = {}
    for each in counts:
        for share in each.get("servers") or ():
            if (so_far := found.get(share["server"])) is None:
                found[share["server"]] = dict(share)
                continue
            for name in _ADDED:
                so_far[name] = round(so_far[name] + share[name], 1)
            so_far["seconds_out"] = max(so_far["seconds_out"], share["seconds_out"])
            so_far["reason"] = so_far["reason"] or share["reason"]
    return list(found.values())


def _sum(counts: Sequence[Mapping[str, Any]], *, all_known: bool) -> dict[str, Any]:
    """Return the counts of all shards; what is unknown of one is unknown of all."""

    def known(name: str) -> list[Any] | None:
        numbers = [each.get(name) for each in counts]
        return numbers if all_known and None not in numbers else None

    rows, left, seconds = known("rows"), known("left"), known("seconds_left")
    return {
        "rows": None if rows is None else sum(rows),
        "left": None if left is None else sum(left),
        **{name: sum(each.get(name, 0) for each in counts) for name in ("ok", "failed", "reused")},
        "seconds_left": None if seconds is None else max(seconds),
    }


def _state(shares: Sequence[ShardShare], of: int) -> tuple[str, str]:
    """Return the state of a batch whose shards are not merged yet, and why."""
    if any(share.state == "running" for share in shares):
        return "running", ""
    if failed := [share for share in shares if share.state == "failed"]:
        return "failed", f"shard {failed[0].name}: {failed[0].reason}"
    complete = sum(share.state == "complete" for share in shares)
    if complete < of:
        return "incomplete", f"{complete} of {of} shards are complete"
    return "incomplete", "all shards are complete, and are not merged yet"


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0
