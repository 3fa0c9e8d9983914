"""The arguments of a batch: values that group those that belong together, and how each argument is read.

Arguments that are not templates are read while a DAG file is parsed, so nothing heavy is imported here.
"""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from datetime import date, time, timedelta, tzinfo
from functools import partial
from keyword import iskeyword
from typing import Any, ClassVar, Literal, Self

from ollama_provider.api.arguments import is_null, one_of, read_flag, read_list, read_number, read_text, read_whole
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import OnLongText, OnTruncation
from ollama_provider.batch.window import StopAt, read_stop_at, read_timezone, timezone_name

#: Names of a template that no variable can have: the row, Jinja's constants, variables and functions.
RESERVED_NAMES = frozenset(
    {"row", "true", "false", "none", "loop", "self", "super", "caller", "varargs", "kwargs", "range", "dict", "lipsum"}
    | {"cycler", "joiner", "namespace"}
)


def _auto(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.strip() == "auto":
        return "auto"
    try:
        return read_whole(name, value, least=1)
    except InvalidRequestError:
        raise InvalidRequestError(f"{name}: {value!r} is neither 'auto' nor a number from 1 on") from None


def _seconds(name: str, value: Any) -> float:
    seconds = read_number(name, value)
    if not seconds:
        raise InvalidRequestError(f"{name}: {value!r} is not a number of seconds above 0")
    return seconds


def _stop_at(name: str, value: Any) -> Any:
    return _named(name, read_stop_at, value)


def _timezone(name: str, value: Any) -> str | None:
    zone = _named(name, read_timezone, value)
    return None if zone is None else _named(name, timezone_name, zone)


def _named(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    """Read *value*; an error text begins with the full name of the argument (``window.stop_at: …``)."""
    try:
        return read(value)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name.rpartition('.')[0]}.{error}") from None


def _think(name: str, value: Any) -> Any:
    try:
        return read_flag(name, value)
    except InvalidRequestError:
        return one_of(name, value, "low", "medium", "high", "max")


def _messages(name: str, value: Any) -> Any:
    value = (read_list(value) or value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise InvalidRequestError(f"{name}: a list of messages, each with 'role' and 'content', is needed")
    return [
        {key: read_text(f"{name}.{number}.{key}", text) for key, text in message.items()}
        for number, message in enumerate(value)
    ]


def _variables(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"{name}: a dict of names and values is needed, not {type(value).__name__}. What another task returns is "
            "given as its .output"
        )
    for key in value:
        if not isinstance(key, str) or not key.isidentifier() or iskeyword(key):
            better = re.sub(r"\W|^(?=\d)", "_", str(key))
            better = f"{better}_" if iskeyword(better) or not better else better
            raise InvalidRequestError(
                f"{name}: a template cannot use {key!r} as a name, which consists of letters, digits and _; call it "
                f"{better!r}"
            )
        if key in RESERVED_NAMES:
            raise InvalidRequestError(
                f"{name}: {key!r} already means something in a template ({', '.join(sorted(RESERVED_NAMES))} do); call "
                f"it {f'the_{key}'!r}"
            )
    # The XComs of mapped tasks are a sequence that would look up its elements in each row.
    return {
        key: list(item) if isinstance(item, Sequence) and not isinstance(item, str | bytes) else item
        for key, item in value.items()
    }


def _delimiter(name: str, value: Any) -> str:
    value = "\t" if value == r"\t" else value
    if not isinstance(value, str) or len(value) != 1 or value in "\r\n":
        raise InvalidRequestError(f"{name}: {value!r} is not one character, such as ';' (a tab is '\\t')")
    return value


def _quote(name: str, value: Any) -> str:
    return "" if value == "" else _delimiter(name, value)


def _encoding(name: str, value: Any) -> str | None:
    try:
        " ".encode(read_text(name, value))
        found = codecs.lookup(value).name
    except (LookupError, ValueError):
        raise InvalidRequestError(
            f"{name}: Python knows no encoding of text called {value!r}; examples are 'latin-1', 'cp1252' and 'utf-16'"
        ) from None
    # Both are read without it.
    return None if found in {"utf-8", "utf-8-sig"} else found


def _columns(name: str, value: Any) -> Any:
    if isinstance(value, str):
        value = "all" if value.strip() == "all" else read_list(value) or value
    if value != "all" and not (isinstance(value, list | tuple) and value and all(isinstance(n, str) for n in value)):
        raise InvalidRequestError(f"{name}: {value!r} is neither 'all' nor a list of names of columns")
    return value if value == "all" else list(dict.fromkeys(value))


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = read_list(value) or value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) and each for each in value):
        raise InvalidRequestError(f"{name}: {value!r} is not a list of texts")
    return list(value)


def _path(name: str, value: Any) -> Any:
    return value if hasattr(value, "__fspath__") or hasattr(value, "read_text") else read_text(name, value)


def is_final(value: Any, template_files: Sequence[str] = ()) -> bool:
    """Return whether a value is known already: no template, no output of another task.

    Args:
        value: an argument as a DAG file has it.
        template_files: suffixes of texts that name a template file.
    """
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value and not value.endswith(tuple(template_files))
    return value is None or isinstance(value, bool | int | float | time | date | timedelta | tzinfo | ArgumentGroup)


@dataclass(frozen=True, kw_only=True, repr=False)
class ArgumentGroup:
    """Arguments of a batch that belong together, as one value.

    A value never changes, so several DAGs can share it. Each of its arguments may be a Jinja template, or the output of
    another task. What is known when it is made is read and checked at once; the rest when the batch begins, by
    `read_argument` and `check`.

    Raises:
        InvalidRequestError: an argument has a wrong value; the text names it (``failures.max_attempts: …``).
    """

    #: Name of the argument of `BatchSpec` and of `OllamaBatchOperator` that takes the value.
    argument: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, value in self._values().items():
            if is_final(value):
                object.__setattr__(self, name, self._read(name, value))

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _read(self, name: str, value: Any) -> Any:
        return read_argument(name, value, label=f"{self.argument}.{name}")

    def check(self) -> None:
        """Make sure that every argument has its final value.

        Raises:
            InvalidRequestError: one is still a template, or has a wrong value; the text names it.
        """
        for name, value in self._values().items():
            self._read(name, value)

    def unknown(self) -> dict[str, Any]:
        """Return the arguments whose value is not known yet: templates and outputs of other tasks."""
        return {name: value for name, value in self._values().items() if not is_final(value)}

    def render(self, render: Callable[[Any], Any]) -> Self:
        """Return a copy with the templates rendered by *render*.

        The copy is not read yet: while Airflow renders, an error would not fail the task at once, as it does later.
        """
        rendered = copy(self)
        for name, value in self.unknown().items():
            object.__setattr__(rendered, name, render(value))
        return rendered

    def __repr__(self) -> str:
        """Return the value as it would be written, without the arguments that have their defaults."""
        given = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class FailurePolicy(ArgumentGroup):
    """What makes a row fail, what is tried again, and how many failed rows are tolerated.

    Args:
        max_attempts: requests for a row, the first included. Server outages do not count.
        max_failed_rows: the task succeeds with up to so many failed rows. Without this and *max_failed_ratio*, one
            failed row fails the task, after all other rows are done.
        max_failed_ratio: the same as a share of all rows (0.05 is 5 %).
        max_outage: seconds without any answer from the server, or from the table of the results, after which the task
            fails.
        retry_delay: seconds before a failed row is sent again when no other row waits.
        on_truncation: a prompt that is longer than the context fails its row (``"dead_letter"``) or the task
            (``"fail"``), or is cut by the server and marked in the result (``"flag"``).
        allow_cut: accept an answer that was cut off at ``num_predict`` or at the end of the context.
        on_broken_row: an input row that cannot be read stops the task (``"fail"``) or fails alone
            (``"dead_letter"``).
        on_digest_change: ``"stop"`` or ``"continue"`` when the model is replaced on the server during the run. With
            several servers that server is left out, and what it answered since the last checkpoint is asked again
            elsewhere (``"stop"``) or kept without a digest (``"continue"``).
        fallback_model: another model for the rows whose answers did not fit *output_type*. It is asked after all
            other rows are done.
    """

    argument: ClassVar[str] = "failures"

    max_attempts: int = 3
    max_failed_rows: int | None = None
    max_failed_ratio: float | None = None
    max_outage: float = 1800.0
    retry_delay: float = 1.0
    on_truncation: OnTruncation = "dead_letter"
    allow_cut: bool = False
    on_broken_row: Literal["fail", "dead_letter"] = "fail"
    on_digest_change: Literal["stop", "continue"] = "stop"
    fallback_model: str | None = None

    def too_many(self, failed: int, rows: int) -> bool:
        """Return whether more rows failed than are tolerated. Without a limit, one is too many.

        Args:
            failed: number of failed rows.
            rows: number of all rows.
        """
        if self.max_failed_rows is None and self.max_failed_ratio is None:
            return failed > 0
        by_count = self.max_failed_rows is not None and failed > self.max_failed_rows
        by_ratio = self.max_failed_ratio is not None and failed > self.max_failed_ratio * rows
        return by_count or by_ratio


@dataclass(frozen=True, kw_only=True, repr=False)
class Pace(ArgumentGroup):
    """How many requests at a time, and how often the batch saves and reports.

    Args:
        concurrency: requests in flight at each server, or ``"auto"`` to find the best number for each by measuring (for
            vectors: two).
        requests_per_minute: upper limit; None is none.
        checkpoint_every: seconds between two checkpoints. A power cut loses the answers since the last one; in an
            object store a killed worker does, too.
        report_every: seconds between two progress lines in the log, and at least between two versions of
            ``report.html``.
    """

    argument: ClassVar[str] = "pace"

    concurrency: int | Literal["auto"] = "auto"
    requests_per_minute: float | None = None
    checkpoint_every: float = 10.0
    report_every: float = 30.0


@dataclass(frozen=True, kw_only=True, repr=False)
class Window(ArgumentGroup):
    """When the batch must be off the server.

    Args:
        stop_at: a time of day (``"06:00"`` or a `time`: the first one after the DAG run began), a moment (a `datetime`
            or ISO 8601), or how long after the DAG run began (a `timedelta`, or ``"PT6H"``). From then on no row is
            sent; requests in flight are finished, and the task succeeds with ``complete`` False. The next run with the
            same results goes on (``resume="task"``).
        timezone: of *stop_at*, such as ``"Europe/Berlin"`` or ``"+02:00"``; None is the DAG's, and without Airflow the
            machine's own.
        unload_after: unload the model at the end of the run, also when it ends early.
    """

    argument: ClassVar[str] = "window"

    stop_at: StopAt | None = None
    timezone: str | tzinfo | None = None
    unload_after: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class Embedding(ArgumentGroup):
    """Ask for the vector of each prompt instead of an answer.

    Args:
        dimensions: length of a vector, for models that can do with less than their own (server 0.11.11).
        on_long_text: a text that is longer than the context fails its row (``"dead_letter"``), is cut by the server and
            marked in the result (``"truncate"``), or is split into overlapping pieces, each with a vector and a row of
            the results (``"split"``).
        pack: texts in one request, or ``"auto"`` to find the best number by measuring.
    """

    argument: ClassVar[str] = "embedding"

    dimensions: int | None = None
    on_long_text: OnLongText = "dead_letter"
    pack: int | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True, repr=False)
class Timeouts(ArgumentGroup):
    """How long the batch waits for the server, in seconds.

    Args:
        load: for the first load of the model.
        first_token: for the first token of an answer, which includes the server's queue and the reading of the prompt;
            None is the connection's setting.
        idle: between two pieces of an answer; None is the connection's setting.
        total: for one attempt in all; None is the connection's setting.
    """

    argument: ClassVar[str] = "timeouts"

    load: float = 1800.0
    first_token: float | None = None
    idle: float | None = None
    total: float | None = None

    def of_requests(self) -> dict[str, float]:
        """Return the timeouts that differ from the connection's, by their names in `api.settings.Timeouts`."""
        given = {"first_token": self.first_token, "idle": self.idle, "total": self.total}
        return {name: seconds for name, seconds in given.items() if seconds is not None}


@dataclass(frozen=True, kw_only=True, repr=False)
class InputOptions(ArgumentGroup):
    """How the text of input files is read, where their suffixes do not say enough.

    Args:
        delimiter: one character that separates the columns of CSV and TSV; None is a comma for ``.csv``, and a tab for
            ``.tsv``.
        quote: character around a field of CSV or TSV that holds separators or line breaks; an empty text if there is
            none, so that every quote is a part of its field. None is ``"``.
        encoding: of text, JSON, CSV and HTML, by Python's name, such as ``"latin-1"`` or ``"utf-16"``; None is UTF-8,
            and for HTML what it says of itself.
        split_text: maximum characters of a document's text in a row. A longer one is split into pieces that overlap by
            a tenth, each a row with its number, from 0, in the column ``chunk``; None splits none.
    """

    argument: ClassVar[str] = "input_options"

    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    split_text: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Rehearsal(ArgumentGroup):
    """Ask some rows from all over the input, and tell what the night will be like: *mode* of a batch.

    Args:
        sample: how many rows, from 1 on: the first and the last, the shortest and the longest, and random ones.
        show_texts: put a prompt in full, and the beginnings of the answers, into the task's log and its XCom, where all
            may read them who may see the task. The command prints them in any case.
        models: compare these models, each asked for the same rows; None is the one of the batch.
        prompts: compare these prompts, templates or names of files with them; None is the one of the batch.
    """

    argument: ClassVar[str] = "mode"

    sample: int = 20
    show_texts: bool = False
    models: Sequence[str] | None = None
    prompts: Sequence[str] | None = None


#: The groups, by the arguments that take them.
GROUPS: dict[str, type[ArgumentGroup]] = {
    kind.argument: kind for kind in (FailurePolicy, Pace, Window, Embedding, Timeouts, InputOptions)
}


def _group(name: str, value: Any) -> ArgumentGroup:
    return _as_group(GROUPS[name], name, value)


def _as_group(kind: type[ArgumentGroup], name: str, value: Any) -> ArgumentGroup:
    if isinstance(value, kind):
        # To make it is to read it: templates may have been rendered meanwhile.
        return replace(value)
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"{name}: a {kind.__name__} is needed, or a dict of its arguments, not {type(value).__name__}"
        )
    known = [field.name for field in fields(kind)]
    if unknown := [str(key) for key in value if key not in known]:
        raise InvalidRequestError(f"{name}: {kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(**value)


def _mode(name: str, value: Any) -> Any:
    if isinstance(value, Rehearsal | Mapping):
        return _as_group(Rehearsal, name, value)
    return one_of(name, value, "all", "failed_only", "merge", "rehearse")


Reader = Callable[[str, Any], Any]

#: How each argument is read, by its name. Arguments that are not here (rows, options, classes) are taken as they are.
_READERS: dict[str, Reader] = {
    "prompt": _path,
    "think": _think,
    "report_prompts": read_flag,
    "mode": _mode,
    # of FailurePolicy
    "max_attempts": partial(read_whole, least=1),
    "max_outage": read_number,
    "retry_delay": read_number,
    "on_truncation": lambda name, value: one_of(name, value, "dead_letter", "fail", "flag"),
    "allow_cut": read_flag,
    "on_broken_row": lambda name, value: one_of(name, value, "fail", "dead_letter"),
    "on_digest_change": lambda name, value: one_of(name, value, "stop", "continue"),
    # of Pace
    "concurrency": _auto,
    "checkpoint_every": read_number,
    "report_every": read_number,
    # of Window
    "unload_after": read_flag,
    # of Embedding
    "on_long_text": lambda name, value: one_of(name, value, "dead_letter", "truncate", "split"),
    "pack": _auto,
    # of Timeouts
    "load": _seconds,
    # of Rehearsal
    "sample": partial(read_whole, least=1),
    "show_texts": read_flag,
}
#: The same for arguments that may be None.
_OPTIONAL: dict[str, Reader] = {
    "variables": _variables,
    "messages": _messages,
    "images": read_text,
    "images_from": _path,
    "system": read_text,
    "id_column": read_text,
    "keep_columns": _columns,
    "results": lambda name, value: one_of(name, value, "jsonl", "parquet"),
    **dict.fromkeys(GROUPS, _group),
    # of FailurePolicy
    "max_failed_rows": partial(read_whole, least=0),
    "max_failed_ratio": partial(read_number, most=1.0),
    "fallback_model": read_text,
    # of Pace
    "requests_per_minute": read_number,
    # of Window
    "stop_at": _stop_at,
    "timezone": _timezone,
    # of Embedding
    "dimensions": partial(read_whole, least=1),
    # of Timeouts
    "first_token": _seconds,
    "idle": _seconds,
    "total": _seconds,
    # of Rehearsal
    "models": _texts,
    "prompts": _texts,
    # of InputOptions
    "delimiter": _delimiter,
    "quote": _quote,
    "encoding": _encoding,
    "split_text": partial(read_whole, least=100),
}


def read_argument(name: str, value: Any, *, label: str | None = None) -> Any:
    """Return the value of an argument in the type that `BatchSpec`, or the group that it is in, has for it.

    Args:
        name: of the argument.
        value: as a DAG file, a template, a form or a command line gives it.
        label: how an error text names the argument; None is *name*.

    Raises:
        InvalidRequestError: the value is wrong; the text names the argument.
    """
    if name in _OPTIONAL:
        return None if is_null(value) else _OPTIONAL[name](label or name, value)
    return _READERS[name](label or name, value) if name in _READERS else value


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Refuse arguments that make no sense together.

    Args:
        given: arguments by their names. What is not known yet is ignored.

    Raises:
        InputError: two contradict each other; the text names them.
    """
    known = {name for name, value in given.items() if value is not None and is_final(value)}
    # A class, a schema, messages and a table are values that no template makes.
    known |= {name for name in ("messages", "output_type", "into") if given.get(name) is not None}
    failures = given.get("failures")
    fallback_model = failures.fallback_model if isinstance(failures, FailurePolicy) else None
    if fallback_model is not None and is_final(fallback_model):
        known.add("failures.fallback_model")
    if not given.get("think"):
        known.discard("think")
    if given.get("embedding") is not None:
        if "messages" in known:
            raise InputError("messages, embedding: a batch asks for answers or for vectors; leave one of them out.")
        unused = ("system", "images", "output_type", "failures.fallback_model", "think")
        if wrong := [name for name in unused if name in known]:
            raise InputError(f"{', '.join(wrong)}: a vector needs none; leave it out with embedding.")
    if "failures.fallback_model" in known and given.get("output_type") is None:
        raise InputError("failures.fallback_model: it is for answers that do not fit, so it needs output_type.")
