"""The stored request and answers of a deferred task: how they travel from a worker to the triggerer and back.

A *payload* is a small JSON dict. It either holds the data itself (``body``) or the path of a file with the data
(``file``). Small data goes through Airflow's database, as arguments of the trigger and as its event. Larger data is
written to a file, if ``[ollama] handover_path`` names a directory on any ``ObjectStoragePath`` that the workers and the
triggerer share. The worker deletes each file after reading it. Files of killed tasks stay; they may be deleted after a
day, or when the DAG run is over.

Answers are stored as the server sent them, one JSON document a line; errors are stored as lines too.
`AnswerReader.send` returns them as if the server had answered at that moment, so a deferred task and one that waits in
the worker run the same code afterwards.
"""

import json
from collections.abc import Generator
from io import BytesIO
from typing import IO, Any, Self
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath, conf

from ollama_provider.api import errors
from ollama_provider.api.errors import IncompleteReplyError, InvalidRequestError, OllamaError
from ollama_provider.api.schemas import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    Reply,
    ReplyT,
    Request,
)

#: Largest request that goes through the database, in bytes of JSON. The arguments of a trigger are in a text column, of
#: which MySQL's holds 64 kB; Airflow 2 encrypts them, which takes a third more.
REQUEST_LIMIT = 48_000
#: Most answers that go through the database, in bytes of JSON. They stay in the task instance's row until it resumes.
ANSWERS_LIMIT = 256_000

_REQUEST_TYPES: dict[str, type[Request[Any]]] = {
    kind.path: kind for kind in (GenerateRequest, ChatRequest, EmbedRequest, PullRequest)
}


class PayloadStorageError(AirflowException):
    """The directory for payloads cannot be written. A retry may help, for instance on another worker."""


def handover_path() -> str | None:
    """Return the directory for payloads that are too large for Airflow's database; None if it is not configured."""
    return conf.get("ollama", "handover_path", fallback="").strip() or None


def write_request(request: Request[Any], folder: str | None) -> dict[str, str]:
    """Return the payload of a request, after writing a file to *folder* if the request is large.

    Raises:
        InvalidRequestError: the request is too large for the database, and *folder* is None.
        PayloadStorageError: the file cannot be written.
    """
    computed = set(type(request).model_computed_fields)
    body = request.model_dump_json(exclude_none=True, by_alias=True, exclude=computed)
    # Airflow stores the body as a string inside JSON, in ASCII.
    size = len(json.dumps(body))
    if size <= REQUEST_LIMIT:
        return {"endpoint": request.path, "body": body}
    if folder is None:
        raise _too_large("request", size, REQUEST_LIMIT)
    try:
        file = _new_file(folder, "request.json")
        file.write_bytes(body.encode())
    except OSError as error:
        raise _not_writable(folder, error) from None
    return {"endpoint": request.path, "file": str(file)}


def read_request(payload: dict[str, str]) -> Request[Any]:
    """Return the request of a payload that `write_request` returned.

    Raises:
        InvalidRequestError: its file cannot be read on this machine.
    """
    with _open(payload) as file:
        return _REQUEST_TYPES[payload["endpoint"]].model_validate_json(file.read())


def delete_payload(payload: dict[str, str]) -> None:
    """Delete the file of a payload, if it has one."""
    if "file" in payload:
        ObjectStoragePath(payload["file"]).unlink(missing_ok=True)


class AnswerWriter:
    """Collects the answers of a request in a payload: `put` each one, then `close`, or `abandon` all of them.

    Args:
        folder: directory for a file, if the answers become too large for the database; None if there is none.

    Attributes:
        size: bytes of JSON so far.
    """

    def __init__(self, folder: str | None) -> None:
        self.size = 0
        self._folder = folder
        self._lines: list[bytes] = []
        self._path: ObjectStoragePath | None = None
        self._file: IO[bytes] | None = None
        self._last: Reply | OllamaError | None = None

    def put(self, answer: Reply | OllamaError) -> None:
        """Add an answer; an error that was the last answer already is not added again.

        Raises:
            InvalidRequestError: the answers are too large for the database, and there is no folder.
            PayloadStorageError: the file cannot be created.
        """
        if answer is self._last:
            return
        self._last = answer
        line = _line(answer)
        self.size += len(line)
        if self._file is None and self.size > ANSWERS_LIMIT and not isinstance(answer, OllamaError):
            self._move_to_file()
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line)

    def close(self) -> dict[str, str]:
        """Return the payload with all answers."""
        if self._file is None:
            return {"body": b"".join(self._lines).decode()}
        self._file.close()
        return {"file": str(self._path)}

    def abandon(self) -> None:
        """Close and delete the file, if there is one, because no worker will read the answers."""
        if self._file is not None:
            delete_payload(self.close())

    def _move_to_file(self) -> None:
        if self._folder is None:
            raise _too_large("answer", self.size, ANSWERS_LIMIT)
        try:
            self._path = _new_file(self._folder, "answers.jsonl")
            self._file = self._path.open("wb")
        except OSError as error:
            raise _not_writable(self._folder, error) from None
        self._file.writelines(self._lines)
        self._lines = []


class AnswerReader:
    """Reads the answers of a payload in a worker, and deletes its file at the end of the ``with`` block.

    Args:
        payload: what `AnswerWriter.close` returned.
    """

    def __init__(self, payload: dict[str, str]) -> None:
        self._payload = payload
        self._lines = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        delete_payload(self._payload)

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Return the answer to a request; answers are returned in the order in which they were put in.

        Raises:
            OllamaError: the stored answer is this error.
            IncompleteReplyError: there are no more answers, or this one is damaged, for instance because the file was
                cut short.
        """
        line = next(self._lines, b"")
        try:
            fields = json.loads(line)
            answer = _error(**fields["error"]) if "error" in fields else _reply(request, **fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._damaged() from None
        if isinstance(answer, OllamaError):
            raise answer
        return answer

    def _damaged(self) -> IncompleteReplyError:
        where = self._payload.get("file", "Airflow's database")
        return IncompleteReplyError(
            f"the answer that the trigger stored in {where} is damaged or cut short",
            advice="The next try sends the request again. Is [ollama] handover_path full, or are files deleted there "
            "while tasks are deferred?",
        )

    def _read(self) -> Generator[bytes, None, None]:
        with _open(self._payload) as file:
            # Not the file itself: Airflow 2.11 wraps it in an object that cannot be iterated over.
            yield from iter(file.readline, b"")


def _open(payload: dict[str, str]) -> IO[bytes]:
    if "file" not in payload:
        return BytesIO(payload["body"].encode())
    try:
        file: IO[bytes] = ObjectStoragePath(payload["file"]).open("rb")
    except OSError as error:
        raise InvalidRequestError(
            f"{payload['file']} cannot be read here ({type(error).__name__}): [ollama] handover_path must be a "
            "directory that the workers and the triggerer share"
        ) from None
    return file


def _line(answer: Reply | OllamaError) -> bytes:
    if isinstance(answer, OllamaError):
        # All attributes of our errors are plain data, because Airflow pickles exceptions too.
        return json.dumps({"error": {"kind": type(answer).__name__, **answer.__dict__}}).encode() + b"\n"
    reply = answer.model_dump_json(exclude_none=True, by_alias=True)
    return f'{{"reply":{reply},"server":{json.dumps(answer.server)}}}\n'.encode()


def _reply(request: Request[ReplyT], reply: dict[str, Any], server: str = "") -> ReplyT:
    # Without the server if an earlier version has stored it.
    kind: type[Reply] = request.reply
    return kind.model_validate(reply).from_server(server)  # type: ignore[return-value]  # the class knows its reply


def _error(kind: str, what: str, **state: Any) -> OllamaError:
    error: OllamaError = getattr(errors, kind)(what)
    error.__dict__.update(state)
    return error


def _new_file(folder: str, name: str) -> ObjectStoragePath:
    directory = ObjectStoragePath(folder)
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{uuid4()}.{name}"


def _too_large(what: str, size: int, limit: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the {what} is {size / 1000:.0f} kB of JSON, and a deferred task passes {limit // 1000} kB at most "
        "through Airflow's database: set [ollama] handover_path to a directory on any ObjectStoragePath, or "
        "deferrable=False on the task"
    )


def _not_writable(folder: str, error: OSError) -> PayloadStorageError:
    return PayloadStorageError(
        f"{folder} cannot be written ({type(error).__name__}: {error.strerror or error}). A deferred task stores there "
        "what is too large for Airflow's database: [ollama] handover_path (without it, the folder of output_path) must "
        "be a directory that the workers and the triggerer can write, with free space. deferrable=False on the task "
        "needs no such directory"
    )
