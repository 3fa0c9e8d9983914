"""Files of text: their encoding, and their lines, none of which is read without a limit."""

import io
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, cast

from ollama_provider.batch.errors import InputError

#: Maximum bytes of a line, and characters of a field of CSV. A file with a longer one has no line breaks.
MAX_LINE = 1 << 26
_BOM = b"\xef\xbb\xbf"


def as_utf8(file: BinaryIO, encoding: str | None) -> BinaryIO:
    """Return a file whose bytes are UTF-8; *encoding* is that of *file*, None for UTF-8."""
    return file if encoding is None else cast("BinaryIO", _Recoded(file, encoding))


class _Recoded:
    """A file in another encoding, read as UTF-8. A byte that the encoding does not have stays as it is."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        # A line ends with \n and nothing else, as in a file of bytes.
        self._text = io.TextIOWrapper(file, encoding, "surrogateescape", newline="\n")

    def readline(self, size: int) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogateescape")

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode("utf-8", "surrogateescape")


def readlines(file: BinaryIO) -> Iterator[bytes]:
    """Return the lines of a file; of one that is too long, its beginning (see `is_too_long`)."""
    # Airflow 2 wraps a file of an object store in an object that cannot be iterated, so the lines are read.
    return iter(partial(file.readline, MAX_LINE), b"")


def is_too_long(line: bytes, file: BinaryIO) -> bool:
    """Return whether the line is longer than what was read of it, and skip the rest of it."""
    if len(line) < MAX_LINE or line.endswith(b"\n"):
        return False
    for rest in iter(partial(file.readline, 1 << 20), b""):
        if rest.endswith(b"\n"):
            break
    return True


def too_long() -> str:
    """Return what is wrong with a line for which `is_too_long` is true."""
    return f"the line is longer than {MAX_LINE >> 20} MB"


def first_line(line: bytes, path: Any) -> bytes:
    """Return the beginning of a file without the byte order mark that editors of Windows write.

    Raises:
        InputError: the file is UTF-16 or UTF-32.
    """
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or (line[:1] == b"\0") != (line[1:2] == b"\0"):
        raise InputError(
            f'{path} is UTF-16, and text is read as UTF-8. Say so with input_options={{"encoding": "utf-16"}}, or '
            "convert it: iconv -f UTF-16 -t UTF-8 old > new."
        )
    return line.removeprefix(_BOM)


def printable(path: Any) -> str:
    """Return a path as text that UTF-8 can encode: a file name need not be, and what is said about its rows must."""
    return str(path).encode("utf-8", "backslashreplace").decode()
