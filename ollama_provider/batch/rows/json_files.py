"""JSON: a file with a value in each line, and a file that is one list."""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any, BinaryIO

from pydantic_core import from_json

from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, TEXT, Row
from ollama_provider.batch.rows import text_files
from ollama_provider.batch.rows.text_files import first_line, is_too_long, readlines, too_long

#: Bytes that are kept of a line that is too long, to tell it from others.
_KEPT = 1000


def read_json_lines(file: BinaryIO, path: str) -> Iterator[Row]:
    """Return the rows of a file with an object or a text in each line. Blank lines are skipped.

    Raises:
        InputError: the file is UTF-16.
    """
    name = f"{path}, line "
    for number, line in enumerate(readlines(file), start=1):
        if number == 1:
            line = first_line(line, path)  # noqa: PLW2901
        if not line or line.isspace():
            continue
        place = f"{name}{number}"
        try:
            value = from_json(line, cache_strings="keys")  # a fifth faster: few texts come twice
        except ValueError as error:
            if is_too_long(line, file):
                yield Row({RAW: line[:_KEPT].decode(errors="backslashreplace")}, place, too_long())
                continue
            fault = "a list begins here, and each line must hold an object" if line.strip() == b"[" else _reason(error)
            yield Row({RAW: line.decode(errors="backslashreplace")}, place, f"this is not JSON: {fault}")
            continue
        if type(value) is dict:
            yield Row(value, place)
        elif isinstance(value, str):
            yield Row({TEXT: value}, place)
        else:
            fault = f"a line must hold an object or a text, and this is {_kind(value)}"
            if isinstance(value, list):
                fault += "; a file that is one list is named .json"
            yield Row({RAW: line.decode(errors="backslashreplace")}, place, fault)


def _reason(error: ValueError) -> str:
    return str(error).partition(" at line ")[0]


def _kind(value: Any) -> str:
    return {list: "a list", bool: "a truth value", type(None): "null"}.get(type(value), "a number")


def read_json_list(file: BinaryIO, path: str) -> Iterator[Row]:
    """Return the rows of a file that is one list of objects and texts. Only one of them is in memory at a time.

    Raises:
        InputError: the file is no list; or it is not JSON somewhere, so that it is unknown where the next row begins.
    """
    text = _Text(file, path)
    match text.take():
        case "":
            return
        case "[":
            separator = text.take() if text.peek() == "]" else ","
        case _:
            raise InputError(
                f"{path} does not begin with a list. A .json file holds one list of objects or texts; one with an "
                "object in each line is named .jsonl."
            )
    number = 0
    while separator == ",":
        place = f"{path}, row {number}"
        value = text.next_value(place)
        if isinstance(value, dict):
            yield Row(value, place)
        elif isinstance(value, str):
            yield Row({TEXT: value}, place)
        else:
            fault = f"an object or a text is expected, and this is {_kind(value)}"
            yield Row({RAW: json.dumps(value)}, place, fault)
        number += 1
        separator = text.take()
        if separator not in {",", "]"}:
            raise InputError(f"{place}: neither a comma nor the end of the list follows.")
    if text.peek():
        raise InputError(f"{path}: something follows after the end of its list.")


class _Text:
    """The text of a file, of which a bounded piece is in memory."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._decode = getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._place = 0
        self._begun = False

    def _read_more(self, size: int) -> bool:
        """Append *size* bytes, and drop what was read before; return False at the end of the file."""
        data = self._file.read(size)
        ended = not data
        if not self._begun:
            self._begun, data = True, first_line(data, self._path)
        try:
            more = self._decode(data, ended)
        except UnicodeDecodeError:
            raise InputError(
                f'{self._path} is not UTF-8. Say what it is, such as input_options={{"encoding": "latin-1"}}.'
            ) from None
        self._text, self._place = self._text[self._place :] + more, 0
        return not ended

    def peek(self) -> str:
        """Return the next character that is no white space, without going on; an empty text at the end."""
        while True:
            while self._place < len(self._text):
                character = self._text[self._place]
                if character not in " \t\r\n":
                    return character
                self._place += 1
            if not self._read_more(1 << 20):
                return ""

    def take(self) -> str:
        """Return the same, and go on after it."""
        character = self.peek()
        self._place += len(character)
        return character

    def next_value(self, place: str) -> Any:
        """Return the next value, and go on after it.

        Raises:
            InputError: it is not JSON, or too long.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                # Not the error itself: it holds the piece, and would hold it until garbage is collected.
                fault = _what(error)
            else:
                # At the end of the piece a number may go on.
                if end < len(self._text) or isinstance(value, dict | str | list):
                    self._place = end
                    return value
                fault = "the list is not closed"
            size = len(self._text) - self._place
            if size >= text_files.MAX_LINE:
                raise InputError(f"{place}: it is not JSON, or longer than {text_files.MAX_LINE >> 20} MB: {fault}.")
            # Twice as much each time: what is parsed again is not more than what was read.
            if not self._read_more(max(size, 1 << 20)):
                raise InputError(f"{place}: this is not JSON, so the rest of the list cannot be read: {fault}.")


_DECODER = json.JSONDecoder()


def _what(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
