"""CSV and other text with a separator between its columns, row by row."""

import csv
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, Row
from ollama_provider.batch.rows import text_files
from ollama_provider.batch.rows.text_files import first_line, is_too_long, too_long

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


_NOT_UTF8 = 'is not UTF-8. Say what it is, such as input_options={"encoding": "latin-1"}'


class _TextLines:
    """Lines for the CSV reader. A byte that is not UTF-8 becomes a lone surrogate, so that its row can be found."""

    def __init__(self, first: str, file: BinaryIO) -> None:
        self._first: str | None = first
        self._file = file
        #: Lines so far.
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number += 1
        if self._first is not None:
            first, self._first = self._first, None
            return first
        line = self._file.readline(text_files.MAX_LINE)
        if not line:
            raise StopIteration
        if is_too_long(line, self._file):
            raise csv.Error(too_long())
        return line.decode("utf-8", "surrogateescape")


def read_csv(file: BinaryIO, path: str, options: InputOptions, usual: str) -> Iterator[Row]:
    """Return the rows of a file whose first line names the columns.

    Args:
        file: UTF-8.
        path: for error texts.
        options: separator and quote.
        usual: the separator where *options* names none.

    Raises:
        InputError: the first line is missing a separator or names a column twice, or a field does not end.
    """
    # Python's own limit is 128 kB a field.
    csv.field_size_limit(text_files.MAX_LINE)
    delimiter = options.delimiter or usual
    first = first_line(file.readline(text_files.MAX_LINE), path).decode("utf-8", "surrogateescape")
    if options.delimiter is None:
        _refuse_separators(first, path, usual)
    lines = _TextLines(first, file)
    if first.rstrip("\r\n") == f"sep={delimiter}":  # what Excel writes to tell itself
        next(lines)
    reader = _reader(lines, delimiter, '"' if options.quote is None else options.quote, path)
    try:
        names = next((names for names in reader if names), [])
    except csv.Error as error:
        raise InputError(f"{path} has no readable first line: {error}.") from error
    if not all(map(_is_utf8, names)):
        raise InputError(f"{path}: its first line {_NOT_UTF8}.")
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a column twice: {', '.join(map(repr, names))}.")
    while True:
        start = lines.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error) or (str(error) == too_long() and lines.number > start):
                # What follows is the rest of the field, and must not be read as rows.
                raise InputError(
                    f"{path}, line {start}: a field that begins here is longer than {text_files.MAX_LINE >> 20} MB. "
                    "Is its quote closed?"
                ) from None
            words = "a quote that opens here is never closed" if "end of data" in str(error) else str(error)
            yield Row({RAW: ""}, f"{path}, line {start}", f"this is not CSV: {words}")
            continue
        if not values:
            continue
        place = f"{path}, line {start}"
        fault = _fault_of_csv(values, names)
        yield Row(dict(zip(names, values, strict=True)), place) if not fault else Row({RAW: repr(values)}, place, fault)


def _reader(lines: Iterator[str], delimiter: str, quote: str, path: str) -> "Iterator[list[str]]":
    if delimiter == quote:
        raise InputError(f"{path}: input_options name {quote!r} both as delimiter and as quote.")
    if not quote:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)


def _fault_of_csv(values: list[str], names: list[str]) -> str | None:
    if len(values) != len(names):
        return f"it has {len(values)} fields, where the first line names {len(names)}"
    return None if all(map(_is_utf8, values)) else f"it {_NOT_UTF8}"


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_separators(line: str, path: str, delimiter: str) -> None:
    """Refuse a first line without *delimiter*, and with what may be one."""
    names = re.sub(r'"[^"]*"', "", line)
    found = next((sign for sign in _SEPARATORS if sign in names), None)
    if found is not None and delimiter not in names:
        raise InputError(
            f"{path}: its first line separates the names with {_SEPARATORS[found]}, and it is read with "
            f"{_SEPARATORS[delimiter]}. Say so with input_options={json.dumps({'delimiter': found})}."
        )
