"""What a batch is told to do, and how it is told to stop."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ollama_provider.api.schemas import KeepAlive, Options, Think
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.plan import Limits, Mode
from ollama_provider.batch.sources import Rows, is_path

OnTruncation = Literal["dead_letter", "fail", "flag"]


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """One batch. Everything but `model` and `rows` has a default.

    Attributes:
        model: name of the model; ``name@sha256:…`` (a beginning of the digest is enough) also demands these weights.
        rows: see `ollama_provider.batch.sources.read_rows`.
        prompt: Jinja template, rendered for each row in a sandbox: ``{{ row.text }}`` is the column ``text``. A path is
            read as a prompt file.
        system: system message for all rows.
        id_column: column whose value is carried through to the results.
        options: options of the model. ``num_ctx``, where it is not given, is chosen from the first rows and kept, since
            a change of it loads the model again.
        keep_alive: how long the model stays in memory afterwards.
        think: reasoning; sent in any case, since servers since 0.12.5 let a model that can think do so by default.
        mode: ``all`` asks what has no good result yet; ``failed_only`` asks again what failed, and nothing else.
        concurrency: requests in flight: a number, or ``auto`` to find it by measuring.
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
    """

    model: str
    rows: Rows
    prompt: str | PathLike[str] = "{{ row.text }}"
    system: str | None = None
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
            "rows": str(self.rows) if is_path(self.rows) else None,
            "prompt": self.template(),
            "options": self.options.model_dump(exclude_none=True),
            "keep_alive": self.keep_alive,
            "limits": asdict(self.limits),
        }


class StopSignal:
    """Says "stop now" to a running batch, from a signal handler or another thread."""

    def __init__(self) -> None:
        # No lock: a signal handler may run while this very thread would hold it.
        self._reason: str | None = None
        self._listeners: list[Callable[[], object]] = []

    @property
    def reason(self) -> str | None:
        """Why to stop; None while nobody said so."""
        return self._reason

    def set(self, reason: str = "stopped") -> None:
        """Ask the batch to seal what it has, close its requests and return. A second call changes nothing."""
        if self._reason is None:
            self._reason = reason
            for listener in self._listeners:
                listener()

    def subscribe(self, listener: Callable[[], object]) -> None:
        """Call *listener* when it is set, or at once if it is."""
        self._listeners.append(listener)
        if self._reason is not None:
            listener()

    def check(self) -> None:
        """Raise if it is set.

        Raises:
            StoppedError: it is.
        """
        if self._reason is not None:
            raise StoppedError(self._reason)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until it is set.

        Raises:
            StoppedError: it is set.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.05))
        self.check()


class StoppedError(Exception):
    """The batch was asked to stop; never leaves `run_batch`."""
