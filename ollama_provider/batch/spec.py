"""What a batch is to do: its arguments, and the shard of it that a run does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

from ollama_provider.api.schemas import KeepAlive, Options, Think
from ollama_provider.api.structured_output import Output
from ollama_provider.batch.arguments import (
    GROUPS,
    ArgumentGroup,
    Embedding,
    FailurePolicy,
    InputOptions,
    Pace,
    Timeouts,
    Window,
    read_argument,
    refuse_contradictions,
)
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import Mode, Query, Rows, Table, TaskName, paths_of, plain

#: Folder, in the directory of a batch, of the files that each shard keeps for itself.
SHARDS_FOLDER = "shards"


@dataclass(frozen=True)
class Names:
    """Names of the files that a run keeps beside the outcomes, from the directory of the batch."""

    batch: str = "batch.json"
    summary: str = "summary.json"
    progress: str = "progress.json"
    history: str = "history.json"
    prompts: str = "prompts.json"


@dataclass(frozen=True)
class Shard:
    """One of the shards that share the rows of a batch.

    Attributes:
        number: of this shard, from 0.
        of: number of shards.

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
        """Beginning of the names of its files."""
        return f"{self.number}of{self.of}"

    def owns(self, key: bytes) -> bool:
        """Return whether the row with this key belongs to the shard."""
        return int.from_bytes(key[-4:]) % self.of == self.number

    @property
    def names(self) -> Names:
        """Names of the files of its run."""
        return Names(*(f"{SHARDS_FOLDER}/{self.name}.{kind.name}.json" for kind in fields(Names)))

    @property
    def lock_name(self) -> str:
        """Name of the lock of its run."""
        return f"{SHARDS_FOLDER}/{self.name}.lock"


#: The files that a rehearsal keeps for itself.
REHEARSAL_NAMES = Names(*(f"rehearsal/{field.default}" for field in fields(Names)))

#: Settings that the runs of all shards must have in common. `BatchSpec.common` adds those that are in groups.
_SAME = (
    "model",
    "task",
    "rows",
    "prompt",
    "variables",
    "messages",
    "images",
    "system",
    "options",
    "think",
    "output_type",
)


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """One batch. Everything but `model` and `rows` has a default.

    Attributes:
        model: name of the model; ``name@sha256:…`` (a beginning of the digest is enough) also demands these weights.
        rows: see `ollama_provider.batch.rows.sources.read_rows`; or a `Query`, which is run once.
        input_options: how text is read out of the files of the rows.
        prompt: Jinja template, rendered for each row in a sandbox: ``{{ row.text }}`` is the column ``text``. A path is
            read as a prompt file.
        variables: values that are the same for all rows, by their names: *prompt*, *messages* and *images* use them
            beside ``row``. Dates and what else is no JSON are printed as in ``batch.json``.
        messages: messages of a chat instead of *prompt*, each with ``role`` and ``content``, which is a template as
            *prompt* is.
        embedding: ask for a vector of *prompt* instead of an answer.
        images: template of the path of an image, for models with vision: ``{{ row.path }}``; several, one a line. What
            is no image, or lies outside of *images_from*, fails its row.
        images_from: folder or bucket that images must lie in. A relative path begins there. None is the folder of the
            input, where that is files. See `ollama_provider.batch.rows.image_folder`.
        system: system message for all rows.
        output_type: what an answer must look like: ``"json"``, a JSON schema, or a type that pydantic knows. It is sent
            with the request, and each answer is checked; what follows when one does not
            fit is in `ollama_provider.batch.requests.validation`.
        id_column: column whose value is carried through to the results.
        keep_columns: columns that go into the results, as ``row``; ``"all"`` is every one.
        options: options of the model. ``num_ctx``, where it is not given, is chosen from the first rows and kept, since
            a change of it loads the model again.
        keep_alive: how long the model stays in memory after a request.
        think: reasoning; always sent, since servers since 0.12.5 let a model that can think do so by default.
        mode: ``all`` sends the rows without a good result; ``failed_only`` sends the rows that failed before, and no
            others; ``merge`` merges the results of the shards, and sends nothing; ``rehearse`` sends some rows from all
            over the input (`ollama_provider.batch.rehearse`).
        failures: what makes a row fail, what is tried again, and what is tolerated.
        pace: requests at a time, and the seconds between checkpoints and reports.
        window: when the batch stops, and whether it unloads the model.
        timeouts: how long to wait for the server.
        into: a table for the good results; see `ollama_provider.batch.results.table`.
        results: ``jsonl`` or ``parquet`` (needs pyarrow): what ``results.*`` is; None is Parquet for vectors, else JSON
            lines.
        report_prompts: show the beginnings of prompts in ``report.html``: those of the rows that it shows. They are in
            the directory then, which has no rendered prompts otherwise.
        due: when the run was due, where *window* counts from; None is the beginning of the run.
        shard: number (from 0) and how many: only these rows; see `ollama_provider.batch.store.shards`.

    Raises:
        InputError: arguments contradict each other.
        InvalidRequestError: *output_type* is no format, a variable has a name that templates cannot use, or an argument
            of a group is still a template.
    """

    model: str
    rows: Rows
    input_options: InputOptions = field(default_factory=InputOptions)
    prompt: str | PathLike[str] = "{{ row.text }}"
    variables: Mapping[str, Any] | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    embedding: Embedding | None = None
    images: str | None = None
    images_from: str | PathLike[str] | None = None
    system: str | None = None
    output_type: Any = None
    id_column: str | None = None
    keep_columns: Sequence[str] | Literal["all"] | None = None
    options: Options = field(default_factory=Options)
    keep_alive: KeepAlive | None = None
    think: Think = False
    mode: Mode = "all"
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    pace: Pace = field(default_factory=Pace)
    window: Window = field(default_factory=Window)
    timeouts: Timeouts = field(default_factory=Timeouts)
    into: Table | None = None
    results: Literal["jsonl", "parquet"] | None = None
    report_prompts: bool = False
    due: datetime | None = None
    shard: tuple[int, int] | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Return the batch for arguments as an operator or a command has them.

        Their values may come from templates or a form; see `ollama_provider.batch.arguments`. A group may be given as a
        dict of its arguments. None stands for its defaults.

        Raises:
            InvalidRequestError: a value has no meaning; the text names the argument.
            InputError: arguments contradict each other.
        """
        read = {name: read_argument(name, value) for name, value in given.items()}
        return cls(**{name: value for name, value in read.items() if value is not None or name not in GROUPS})

    def __post_init__(self) -> None:
        for group in self._groups().values():
            group.check()
        read_argument("variables", self.variables)
        refuse_contradictions({field.name: getattr(self, field.name) for field in fields(self)})
        self.the_shard()
        self.output()

    def _groups(self) -> dict[str, ArgumentGroup]:
        return {name: group for name in GROUPS if (group := getattr(self, name)) is not None}

    @property
    def task(self) -> TaskName:
        """What is asked for: an answer to `prompt` or `messages`, or a vector."""
        if self.embedding is not None:
            return "embed"
        return "generate" if self.messages is None else "chat"

    def output(self) -> Output | None:
        """Return the format that answers must have; None for text."""
        return None if self.output_type is None else Output(self.output_type)

    @property
    def names(self) -> Names:
        """Names of the files that its run keeps beside the outcomes."""
        if self.mode == "rehearse":
            return REHEARSAL_NAMES
        shard = self.the_shard()
        return Names() if shard is None else shard.names

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
        # Paths in object stores have their own read_text.
        path: Any = self.prompt if hasattr(self.prompt, "read_text") else Path(self.prompt)
        try:
            return str(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The prompt file {path} cannot be read: {error}.") from error

    def settings(self) -> dict[str, Any]:
        """Return the batch as plain data for ``batch.json``, without the rows themselves."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return (
            given
            | {name: _plain_group(group) for name, group in self._groups().items()}
            | {
                "task": self.task,
                "rows": self._rows(),
                "prompt": self.template(),
                "variables": plain(self.variables),
                "options": self.options.model_dump(exclude_none=True),
                "keep_alive": self.keep_alive,
                "output_type": self.schema(),
                "due": None if self.due is None else self.due.isoformat(),
                "messages": None if self.messages is None else [dict(message) for message in self.messages],
                "images_from": None if self.images_from is None else str(self.images_from),
                "into": None if self.into is None else self.into.target,
            }
        )

    def _rows(self) -> Any:
        if isinstance(self.rows, Query):
            return plain(self.rows.question)
        paths = paths_of(self.rows)
        if paths is None:
            return None
        return list(map(str, paths)) if isinstance(self.rows, list | tuple) else str(self.rows)

    def schema(self) -> Any:
        """Return the schema that answers must fit, as plain data; None for text."""
        output = self.output()
        return None if output is None else output.format

    def common(self) -> dict[str, Any]:
        """Return the settings that the shards of a batch must have in common, as plain data.

        The names are those of ``batch.json``, which the runs of other shards compare with theirs.
        """
        plain = self.settings()
        embedding = self.embedding or Embedding()
        return {name: plain[name] for name in _SAME} | {
            "dimensions": embedding.dimensions,
            "on_long_text": embedding.on_long_text,
            "fallback_model": self.failures.fallback_model,
            # Absent where they are the defaults, as in the manifests of versions without them.
            **{name: value for name, value in vars(self.input_options).items() if value is not None},
            "shards": self.shard[1] if self.shard else None,
        }


def _plain_group(group: ArgumentGroup) -> dict[str, Any]:
    # A time of day, a moment and a duration are no JSON.
    return {
        name: value if value is None or isinstance(value, str | int | float) else str(value)
        for name, value in asdict(group).items()
    }
