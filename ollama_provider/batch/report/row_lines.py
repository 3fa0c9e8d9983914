"""Lines of the results and of the parts, read from any place on; a cursor tells where a line ends."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from ollama_provider.batch.store.disk import storage_errors
from ollama_provider.batch.store.journal import Part
from ollama_provider.batch.store.lines import is_whole
from ollama_provider.batch.store.storage import Storage

#: Bytes of a line that are read. Of a longer one the beginning is shown.
LONGEST = 1 << 20
_CURSOR = re.compile(r"([\w.-]{1,80}):(\d{1,18})", re.ASCII)
#: Numbers beyond 64 bits stand in no file that the batch has written.
_COUNT = Field(default=None, ge=0, lt=1 << 63)


class Failure(BaseModel):
    """Why a row failed."""

    kind: str = Field(default="unknown", alias="class")
    text: str = ""


class Line(BaseModel):
    """What is shown of a row of the results, or of a line of a part. What is no such line is refused."""

    model_config = ConfigDict(allow_inf_nan=False, hide_input_in_errors=True)

    key: str = Field(max_length=64)
    index: int | None = _COUNT
    id: Any = None
    status: Literal["ok", "failed"]
    output: Any = None
    error: Failure | None = None
    reply: str | None = None
    spans: list[Any] | None = None
    start: int | None = _COUNT
    end: int | None = _COUNT
    attempts: int | None = _COUNT
    tokens: int | None = _COUNT
    seconds: float | None = None
    #: It was too long to be read as a whole.
    is_cut: bool = False


class Step(NamedTuple):
    """How far reading has come.

    Attributes:
        line: that was read; None if it was passed over.
        cursor: of what comes after it.
        share: of all there is up to here, from 0 to 1.
        is_damaged: what was passed over cannot be read.
    """

    line: Line | None
    cursor: str
    share: float
    is_damaged: bool = False


class LineFile(NamedTuple):
    """A file with a line for each row.

    Attributes:
        stamp: tells it from other files, in a cursor.
        names: of the file; it may have been renamed from one to the next.
        has_checksums: its lines end with one.
    """

    stamp: str
    names: tuple[str, ...]
    has_checksums: bool = False


def of_part(part: Part) -> LineFile:
    """Return a part as a file. An open one may be sealed at any time, which renames it."""
    sealed = part.sealed().name
    stamp = sealed.removeprefix("parts/").removesuffix(".jsonl")
    return LineFile(stamp, (part.name, sealed), has_checksums=bool(part.token))


def read_cursor(cursor: str) -> tuple[str, int] | None:
    """Return the stamp and the place that a cursor is made of; None if it is no cursor."""
    match = _CURSOR.fullmatch(cursor)
    return (match[1], int(match[2])) if match else None


class LineFiles:
    """Files whose lines are read one after the other.

    Args:
        storage: the directory.
        files: in their order.
        skip: whether a line, or the beginning of a long one, need not be parsed.
    """

    def __init__(self, storage: Storage, files: Sequence[LineFile], skip: Callable[[bytes], bool]) -> None:
        self._storage = storage
        self._files = files
        self._skip = skip

    def knows(self, cursor: str) -> bool:
        """Return whether a cursor is a place in these files."""
        return self._place(cursor) is not None

    def _place(self, cursor: str) -> tuple[int, int] | None:
        if not cursor:
            return 0, 0
        found = read_cursor(cursor)
        stamps = [file.stamp for file in self._files]
        return (stamps.index(found[0]), found[1]) if found and found[0] in stamps else None

    def steps(self, cursor: str) -> Iterator[Step]:
        """Read on from a cursor, or from the beginning.

        Raises:
            StorageError: a file cannot be read.
        """
        first, offset = self._place(cursor) or (0, 0)
        for number in range(first, len(self._files)):
            with storage_errors(self._storage.location, "read"):
                yield from self._steps_of_file(number, offset)
            offset = 0

    def _steps_of_file(self, number: int, offset: int) -> Iterator[Step]:
        stamp, names, has_checksums = self._files[number]
        file = next(filter(None, map(self._storage.open, names)), None)
        if file is None:  # it was discarded since it was listed
            return
        with file:
            size = file.seek(0, 2) or 1
            for piece, place in _pieces(file, min(offset, size)):
                cursor, share = f"{stamp}:{place}", min(1.0, (number + place / size) / len(self._files))
                if not piece or self._skip(piece):
                    yield Step(None, cursor, share)
                    continue
                line = _parse(piece, has_checksum=has_checksums)
                yield Step(line, cursor, share, is_damaged=line is None)


def _pieces(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int]]:
    """Return the lines from an offset on, each with the offset behind it.

    Of a line longer than `LONGEST` the beginning comes first, and then nothing for each further piece of it, so that
    the caller can stop in the midst of it. Half a line at the end of a file, which is being written, is left out.
    """
    # If a line ends before the offset, the rest of it is its line feed. Else the offset is in the midst of a line.
    place = max(0, offset - 1)
    file.seek(place)
    in_line = offset > 0
    while piece := file.readline(LONGEST):
        place += len(piece)
        ends = piece[-1:] == b"\n"
        if in_line:
            if place > offset:
                yield b"", place
        elif ends or len(piece) == LONGEST:
            yield piece, place
        in_line = not ends


def _parse(piece: bytes, *, has_checksum: bool) -> Line | None:
    """Return a line; None if it is damaged."""
    if is_cut := piece[-1:] != b"\n":
        has_checksum = False  # it is at the end
    if has_checksum and not is_whole(piece):
        return None
    try:
        found = from_json(piece, allow_partial="trailing-strings" if is_cut else "off")
        return Line.model_validate(found | {"is_cut": is_cut} if isinstance(found, dict) else found)
    except ValueError:
        return None
