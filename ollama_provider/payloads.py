"""How a request travels from a worker to the triggerer, and its answers back.

Airflow carries what a trigger is given, and what it tells, in its database. What is small goes that way; what is not
goes by file, if there is a place for it: ``[ollama] handover_path``, a directory on any ``ObjectStoragePath`` that the
workers and the triggerer reach. A file is removed by the worker that has read it; what a killed task has left behind
there may be deleted after a day or when the DAG run is over.

Answers are handed over as the server gave them, one JSON document a line, and errors in between. The worker takes them
as if they came from the server at that moment (`AnswerReader.send`), so nothing of what follows can differ from a task
that has waited itself.
"""

import json
from collections.abc import Generator
from io import BytesIO
from typing import IO, Any, Self
from uuid import uuid4

from airflow.providers.common.compat.sdk import ObjectStoragePath, conf

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

#: Bytes of JSON that a trigger is given at most: Airflow encrypts them into a text column, of which MySQL holds 64 kB.
REQUEST_LIMIT = 48_000
#: Bytes of JSON that a trigger tells at most: they wait in the row of the task until it goes on.
ANSWERS_LIMIT = 256_000

_KINDS: dict[str, type[Request[Any]]] = {
    kind.path: kind for kind in (GenerateRequest, ChatRequest, EmbedRequest, PullRequest)
}


def handover_path() -> str | None:
    """Return the directory for what is too large for Airflow's database; None if there is none."""
    return conf.get("ollama", "handover_path", fallback="").strip() or None


def write_request(request: Request[Any], folder: str | None) -> dict[str, str]:
    """Return a request as small JSON data.

    Raises:
        InvalidRequestError: it is too large, and *folder* is None.
    """
    computed = set(type(request).model_computed_fields)
    body = request.model_dump_json(exclude_none=True, by_alias=True, exclude=computed)
    # As Airflow will write it: a string in JSON, in ASCII.
    size = len(json.dumps(body))
    if size <= REQUEST_LIMIT:
        return {"endpoint": request.path, "body": body}
    if folder is None:
        raise _too_large("request", size, REQUEST_LIMIT)
    file = _new_file(folder, "request.json")
    file.write_bytes(body.encode())
    return {"endpoint": request.path, "file": str(file)}


def read_request(parcel: dict[str, str]) -> Request[Any]:
    """Return the request that was packed.

    Raises:
        InvalidRequestError: its file cannot be read here.
    """
    with _open(parcel) as file:
        return _KINDS[parcel["endpoint"]].model_validate_json(file.read())


def delete_payload(parcel: dict[str, str]) -> None:
    """Remove the file of a parcel, if it has one."""
    if "file" in parcel:
        ObjectStoragePath(parcel["file"]).unlink(missing_ok=True)


class AnswerWriter:
    """Answers on their way to a worker: put them in one after another, then `close`, or `abandon` them.

    Args:
        folder: where a file may be made; None if nowhere.

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
        """Take an answer; the same error twice in a row is one.

        Raises:
            InvalidRequestError: all together is too large, and there is no folder.
        """
        if answer is self._last:
            return
        self._last = answer
        line = _line(answer)
        self.size += len(line)
        if self._file is None and self.size > ANSWERS_LIMIT and not isinstance(answer, OllamaError):
            self._spill()
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line)

    def close(self) -> dict[str, str]:
        """Return the answers as small JSON data."""
        if self._file is None:
            return {"body": b"".join(self._lines).decode()}
        self._file.close()
        return {"file": str(self._path)}

    def abandon(self) -> None:
        """Close and remove the file, if there is one: nobody will take the answers out."""
        if self._file is not None:
            delete_payload(self.close())

    def _spill(self) -> None:
        if self._folder is None:
            raise _too_large("answer", self.size, ANSWERS_LIMIT)
        self._path = _new_file(self._folder, "answers.jsonl")
        self._file = self._path.open("wb")
        self._file.writelines(self._lines)
        self._lines = []


class AnswerReader:
    """Answers as a worker takes them out.

    Args:
        parcel: what `AnswerWriter.close` returned.
    """

    def __init__(self, parcel: dict[str, str]) -> None:
        self._parcel = parcel
        self._lines = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        delete_payload(self._parcel)

    def send(self, request: Request[ReplyT]) -> ReplyT:
        """Return the answer to a request; they come in the order in which they were put in.

        Raises:
            OllamaError: such was the answer.
            IncompleteReplyError: there is no further answer, or it is damaged: its file was cut short.
        """
        line = next(self._lines, b"")
        try:
            fields = json.loads(line)
            answer = _error(**fields["error"]) if "error" in fields else request.reply.model_validate(fields["reply"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise self._damaged() from None
        if isinstance(answer, OllamaError):
            raise answer
        return answer  # type: ignore[return-value]  # the class knows its reply

    def _damaged(self) -> IncompleteReplyError:
        where = self._parcel.get("file", "Airflow's database")
        return IncompleteReplyError(
            f"the answer that the trigger left in {where} is damaged or cut short",
            advice="The next try asks again. Is [ollama] handover_path full, or cleaned up while tasks are deferred?",
        )

    def _read(self) -> Generator[bytes, None, None]:
        with _open(self._parcel) as file:
            # Not the file itself: Airflow 2.11 wraps it in something that cannot be iterated over.
            yield from iter(file.readline, b"")


def _open(parcel: dict[str, str]) -> IO[bytes]:
    if "file" not in parcel:
        return BytesIO(parcel["body"].encode())
    try:
        file: IO[bytes] = ObjectStoragePath(parcel["file"]).open("rb")
    except OSError as error:
        raise InvalidRequestError(
            f"{parcel['file']} cannot be read here ({type(error).__name__}): [ollama] handover_path must be a "
            "directory that the workers and the triggerer share"
        ) from None
    return file


def _line(answer: Reply | OllamaError) -> bytes:
    if isinstance(answer, OllamaError):
        # What is known of it is plain data, so that it also survives the pickling by Airflow.
        return json.dumps({"error": {"kind": type(answer).__name__, **answer.__dict__}}).encode() + b"\n"
    return b'{"reply":' + answer.model_dump_json(exclude_none=True, by_alias=True).encode() + b"}\n"


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
        f"the {what} is {size / 1000:.0f} kB of JSON, and a deferred task hands over {limit // 1000} kB at most "
        "through Airflow's database: set [ollama] handover_path to a directory on any ObjectStoragePath, or "
        "deferrable=False on the task"
    )
