"""When to give up: on a row, on a server, and on the whole batch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

from ollama_provider.api.schemas import KeepAlive, Options, Think
from ollama_provider.api.structured_output import Output
from ollama_provider.batch.arguments import read_argument
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import Mode, OnLongText, OnTruncation, Query, Rows, Table, TaskName, paths_of, plain
from ollama_provider.batch.window import StopAt


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        max_attempts: attempts for a row, the first included; an outage uses up none.
        max_failed_rows: failed rows that the batch tolerates; None leaves it to the ratio.
        max_failed_ratio: failed rows that the batch tolerates, of all rows (0.05 is 5 %).
        max_outage: seconds without one answer while the server is busy or gone.
        retry_delay: seconds before a row's own failure is tried again, if nothing else is to do.
    """

    max_attempts: int = 3
    max_failed_rows: int | None = None
    max_failed_ratio: float | None = None
    max_outage: float = 1800.0
    retry_delay: float = 1.0

    def too_many(self, failed: int, rows: int) -> bool:
        """Tell whether so many failed rows of so many are more than tolerated. Without a limit, one is too many."""
        if self.max_failed_rows is None and self.max_failed_ratio is None:
            return failed > 0
        by_count = self.max_failed_rows is not None and failed > self.max_failed_rows
        by_ratio = self.max_failed_ratio is not None and failed > self.max_failed_ratio * rows
        return by_count or by_ratio


# FROM batch.spec: What a batch is told to do, and how it is told to stop.

SHARDS_FOLDER = "shards"

LOCK = ".lock"


@dataclass(frozen=True)
class Names:
    """Where a run keeps what is not an outcome."""

    batch: str = "batch.json"
    summary: str = "summary.json"
    progress: str = "progress.json"


@dataclass(frozen=True)
class Shard:
    """One of the shards of a batch.

    Attributes:
        number: from 0.
        of: how many there are.

    Raises:
        InputError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise InputError(f"shard: there is no {self.number} of {self.of}; they count from 0 to {self.of - 1}.")

    @property
    def name(self) -> str:
        """How its files are called."""
        return f"{self.number}of{self.of}"

    def owns(self, key: bytes) -> bool:
        """Tell whether the row with this key is the shard's."""
        return int.from_bytes(key[-4:]) % self.of == self.number

    @property
    def names(self) -> Names:
        """Where its run keeps what is not an outcome."""
        return Names(*(f"{SHARDS_FOLDER}/{self.name}.{kind}.json" for kind in ("batch", "summary", "progress")))

    @property
    def lock_name(self) -> str:
        """The lock of its run."""
        return f"{SHARDS_FOLDER}/{self.name}{LOCK}"


#: What another run must have in common with this one, to be a shard of the same batch.
_SAME = (
    "model", "task", "rows", "prompt", "messages", "images", "system", "options", "think", "output_type", "dimensions",
    "on_long_text", "fallback_model",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """One batch. Everything but `model` and `rows` has a default.

    Attributes:
        model: name of the model; ``name@sha256:…`` (a beginning of the digest is enough) also demands these weights.
        rows: see `ollama_provider.batch.rows.sources.read_rows`; or a `Query`, which is asked once.
        prompt: Jinja template, rendered for each row in a sandbox: ``{{ row.text }}`` is the column ``text``. A path is
            read as a prompt file.
        task: ``generate`` (a completion), ``chat`` (an answer to `messages`) or ``embed`` (a vector of `prompt`).
        messages: turns of a chat, each with ``role`` and ``content``, which is a template as `prompt` is.
        images: template of the path of a picture, for models that see: ``{{ row.path }}``; several, one a line. What is
            no picture, or lies elsewhere than it may, fails its row.
        images_from: folder or bucket that such a path must lie in, and begins in if it is relative; None is the folder
            of the input, where that is files. See `ollama_provider.batch.rows.image_folder`.
        system: system message for all rows.
        output_type: what an answer must look like: ``"json"``, a JSON schema, or a type that pydantic knows. It is
            asked for, and checked; what follows when it does not fit is in `ollama_provider.batch.requests.validation`.
        fallback_model: asked, after all others are done, for the rows whose answers did not fit.
        dimensions: numbers of a vector, where the model can do with fewer than it has (0.11.11).
        on_long_text: a text over the context fails its row (``dead_letter``), or is cut by the server and marked in the
            result (``truncate``), or gets a vector, and a row of the results, for each of its overlapping pieces
            (``split``).
        pack: texts of one request for vectors: a number, or ``auto`` to find it by measuring.
        id_column: column whose value is carried through to the results.
        options: options of the model. ``num_ctx``, where it is not given, is chosen from the first rows and kept, since
            a change of it loads the model again.
        keep_alive: how long the model stays in memory afterwards.
        think: reasoning; sent in any case, since servers since 0.12.5 let a model that can think do so by default.
        mode: ``all`` asks what has no good result yet; ``failed_only`` asks again what failed, and nothing else.
        concurrency: requests in flight: a number, or ``auto`` to find it by measuring (for vectors: two).
        requests_per_minute: never more than that.
        limits: attempts, tolerated failures, patience.
        on_truncation: a prompt that does not fit the context fails its row (``dead_letter``), or the batch (``fail``),
            or is cut by the server and marked in the result (``flag``).
        allow_cut: an answer that ended at ``num_predict`` or the context is good.
        on_broken_row: a row that cannot be read stops the batch (``fail``) or fails alone (``dead_letter``).
        on_digest_change: what to do when the server's model changes during the run: ``stop`` or ``continue``.
        load_timeout: seconds for the first load of the model.
        checkpoint_every: seconds between two sealed parts: what a crash can lose.
        report_every: seconds between two lines of progress.
        into: a table for the good results; see `ollama_provider.batch.results.table`.
        results: ``jsonl`` or ``parquet`` (needs pyarrow): what ``results.*`` is; None is Parquet for vectors, else JSON
            lines.
        stop_at: when the night is over; see `ollama_provider.batch.window.closing_time`. No row is sent any more then,
            what is in flight comes back, and the next run goes on from there.
        timezone: IANA name or offset for *stop_at*; None is the machine's own.
        due: when the run was due; None is its beginning.
        unload_after: take the model out of memory at the end, also at an early one.
        shard: number (from 0) and how many: only these rows; see `ollama_provider.batch.store.shards`.

    Raises:
        InputError: arguments contradict each other.
        InvalidRequestError: *output_type* is no format.
    """

    model: str
    rows: Rows
    prompt: str | PathLike[str] = "{{ row.text }}"
    task: TaskName = "generate"
    messages: Sequence[Mapping[str, str]] | None = None
    images: str | None = None
    images_from: str | PathLike[str] | None = None
    system: str | None = None
    output_type: Any = None
    fallback_model: str | None = None
    dimensions: int | None = None
    on_long_text: OnLongText = "dead_letter"
    pack: int | Literal["auto"] = "auto"
    id_column: str | None = None
    options: Options = field(default_factory=Options)
    keep_alive: KeepAlive | None = None
    think: Think = False
    mode: Mode = "all"
    concurrency: int | Literal["auto"] = "auto"
    requests_per_minute: float | None = None
    limits: Limits = field(default_factory=Limits)
    on_truncation: OnTruncation = "dead_letter"
    allow_cut: bool = False
    on_broken_row: Literal["fail", "dead_letter"] = "fail"
    on_digest_change: Literal["stop", "continue"] = "stop"
    load_timeout: float = 1800.0
    checkpoint_every: float = 10.0
    report_every: float = 30.0
    into: Table | None = None
    results: Literal["jsonl", "parquet"] | None = None
    stop_at: StopAt | None = None
    timezone: str | None = None
    due: datetime | None = None
    unload_after: bool = False
    shard: tuple[int, int] | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Make one of arguments as an operator or a command has them: those of a batch and of its limits, side by side.

        Values may come out of templates or a form; see `ollama_provider.batch.arguments`.

        Raises:
            InvalidRequestError: a value has no meaning; the text names the argument.
            InputError: arguments contradict each other.
        """
        read = {name: read_argument(name, value) for name, value in given.items()}
        limits = {field.name: read.pop(field.name) for field in fields(Limits) if field.name in read}
        return cls(limits=Limits(**limits), **read)

    def __post_init__(self) -> None:
        if (self.task == "chat") != (self.messages is not None):
            raise InputError('messages: they belong to task="chat", and it needs them.')
        if self.task == "embed":
            given = [name for name in ("system", "images", "output_type", "fallback_model") if getattr(self, name)]
            if given or self.think:
                raise InputError(f'{", ".join(given) or "think"}: a vector needs none; leave it out with task="embed".')
            if self.into is not None:
                raise InputError('into: vectors go to a file, results.parquet; leave it out with task="embed".')
        elif self.dimensions is not None or self.pack != "auto":
            raise InputError('dimensions, pack: they belong to task="embed".')
        if self.fallback_model is not None and self.output_type is None:
            raise InputError("fallback_model: it is for answers that do not fit, so it needs output_type.")
        self.the_shard()
        self.output()

    def output(self) -> Output | None:
        """Return what checks an answer; None for text."""
        return None if self.output_type is None else Output(self.output_type)

    def the_shard(self) -> Shard | None:
        """Return the shard; None for a whole batch."""
        return None if self.shard is None else Shard(*self.shard)

    @property
    def format(self) -> str:
        """Suffix of the results."""
        return self.results or ("parquet" if self.task == "embed" else "jsonl")

    def template(self) -> str:
        """Return the text of the prompt's template.

        Raises:
            InputError: its file cannot be read.
        """
        if isinstance(self.prompt, str):
            return self.prompt
        # A path of an object store reads itself.
        path: Any = self.prompt if hasattr(self.prompt, "read_text") else Path(self.prompt)
        try:
            return str(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The prompt file {path} cannot be read: {error}.") from error

    def settings(self) -> dict[str, Any]:
        """Return it as plain data for ``batch.json``: without the rows themselves."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "rows": self._rows(),
            "prompt": self.template(),
            "options": self.options.model_dump(exclude_none=True),
            "keep_alive": self.keep_alive,
            "limits": asdict(self.limits),
            "output_type": self.schema(),
            "stop_at": None if self.stop_at is None else str(self.stop_at),
            "due": None if self.due is None else self.due.isoformat(),
            "messages": None if self.messages is None else [dict(message) for message in self.messages],
            "images_from": None if self.images_from is None else str(self.images_from),
            "into": None if self.into is None else self.into.target,
        }

    def _rows(self) -> Any:
        if isinstance(self.rows, Query):
            return plain(self.rows.question)
        paths = paths_of(self.rows)
        if paths is None:
            return None
        return list(map(str, paths)) if isinstance(self.rows, list | tuple) else str(self.rows)

    def schema(self) -> Any:
        """Return the schema of an answer, as plain data; None for text."""
        output = self.output()
        return None if output is None else output.format

    def common(self) -> dict[str, Any]:
        """Return, as plain data, what the shards of a batch have in common."""
        plain = self.settings()
        return {name: plain[name] for name in _SAME} | {"shards": self.shard[1] if self.shard else None}
