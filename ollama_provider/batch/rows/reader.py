"""Rows in, prompts and keys out, up to a thousand at a time: reading and rendering happen in a thread of their own."""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import Row, Rows
from ollama_provider.batch.rows.image_folder import ImageFolder
from ollama_provider.batch.rows.prompts import ChatTemplate, EmptyTextError, PromptTemplate, RenderError
from ollama_provider.batch.rows.sources import RAW, canonical, folder_of, read_rows
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.store.keys import Keys

#: Rows that are looked at before anything is sent.
_SAMPLE = 100
#: A portion ends after so many rows or characters of prompts, whichever is first.
_ROWS, _CHARACTERS = 1024, 1 << 20


@dataclass(slots=True)
class PreparedRow:
    """A row, ready to be asked: or not, and then *fault* says why.

    Attributes:
        key: of its work.
        prompt: rendered; empty with a fault.
        request_key: of the request without its schema, where there is one.
        row_id: value of the id column, None if there is none.
        columns: as they were read.
        fault: class and text of what is wrong with the row.
        images: base64 texts.
    """

    key: bytes
    prompt: str
    row_id: Any
    columns: dict[str, Any]
    fault: dict[str, str] | None = None
    request_key: bytes | None = None
    images: tuple[str, ...] = ()


class RowReader:
    """Reads and renders the rows of a batch, once, in their order.

    Args:
        spec: what to make of the rows.
        rows: the input; that of *spec*, or what a query there has given.
    """

    def __init__(self, spec: BatchSpec, rows: Rows) -> None:
        self._spec = spec
        self._prompts = PromptTemplate(spec.template()) if spec.messages is None else ChatTemplate(spec.messages)
        self._images = None if spec.images is None else PromptTemplate(spec.images)
        self._folder = None if spec.images is None else _image_folder(spec)
        self._shard = spec.the_shard()
        self._rows: Iterator[Row] = iter(read_rows(rows))
        #: Columns of the first rows, known after `sample`.
        self.examples: list[dict[str, Any]] = []

    def sample(self) -> list[str] | None:
        """Look at the first rows, and return those prompts that can be made of them; None if there are no rows.

        Raises:
            InputError: none of them has a column that the template or ``id_column`` names; or one cannot be read, and
                the policy is to fail then.
        """
        head: list[Row] = []
        size = 0
        for row in islice(self._rows, _SAMPLE):
            self._refuse_broken(row)
            head.append(row)
            size += sum(len(value) for value in row.columns.values() if isinstance(value, str))
            if size >= _CHARACTERS:
                break
        if not head:
            return None
        self._rows = chain(head, self._rows)
        good = self.examples = [row.columns for row in head if row.fault is None]
        if not good:
            return []
        columns = set(chain.from_iterable(good))
        self._prompts.check(columns)
        if self._images is not None:
            self._images.check(columns)
        if self._spec.id_column is not None and self._spec.id_column not in columns:
            raise InputError(
                f"The id column {self._spec.id_column!r} is missing; the rows have the columns "
                f"{', '.join(map(repr, sorted(columns)))}."
            )
        return list(self._rendered(good))

    def _rendered(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        for columns in rows:
            try:
                yield self._render(columns)
            except RenderError:
                continue

    def next_chunk(self, keys: Keys) -> list[PreparedRow]:
        """Return the next rows; none at the end of the input.

        Raises:
            InputError: the input cannot be read; or a row cannot, and the policy is to fail then.
        """
        portion: list[PreparedRow] = []
        size = 0
        for row in self._rows:
            prepared = self._prepare(row, keys)
            if self._shard is not None and not self._shard.owns(prepared.key):
                continue
            portion.append(prepared)
            size += len(prepared.prompt) + sum(map(len, prepared.images))
            if len(portion) >= _ROWS or size >= _CHARACTERS:
                break
        return portion

    def _prepare(self, row: Row, keys: Keys) -> PreparedRow:
        columns = row.columns
        if row.fault is not None:
            self._refuse_broken(row)
            fault = {"class": "BrokenRow", "text": f"{row.place}: {row.fault}"}
            # Its place is part of the key, so that each broken line is told apart and named.
            return PreparedRow(keys.without_request(f"{row.place}: {columns[RAW]}"), "", None, columns, fault)
        row_id = columns.get(self._spec.id_column) if self._spec.id_column is not None else None
        try:
            prompt = self._render(columns)
            images = self._read_images(columns)
            key, request_key = keys.key_and_request_key(prompt, images)
            return PreparedRow(key, prompt, row_id, columns, None, request_key, images)
        except EmptyTextError as error:
            fault = {"class": "EmptyText", "text": str(error)}
        except RenderError as error:
            fault = {"class": "RenderError", "text": str(error)}
        except (InvalidRequestError, OSError) as error:
            fault = {"class": "ImageError", "text": str(error)}
        return PreparedRow(keys.without_request(_content(row)), "", row_id, columns, fault)

    def _render(self, columns: dict[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            EmptyTextError: it is empty.
            RenderError: see `PromptTemplate.render`; or no UTF-8 can say it.
        """
        prompt = self._prompts.render(columns)
        if not prompt or prompt.isspace():
            raise EmptyTextError(
                "an empty text has no vector" if self._spec.task == "embed" else "an empty prompt has no answer"
            )
        if not prompt.isascii():
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise RenderError("the prompt holds half a surrogate pair, which no UTF-8 can say") from None
        return prompt

    def _read_images(self, columns: dict[str, Any]) -> tuple[str, ...]:
        """Return the pictures of a row, as base64; their content is part of its work, not where they lie."""
        if self._images is None or self._folder is None:
            return ()
        files = [line.strip() for line in self._images.render(columns).splitlines() if line.strip()]
        data = [self._folder.read(file, f"images.{number}") for number, file in enumerate(files)]
        return tuple(base64.b64encode(image).decode("ascii") for image in data)

    def _refuse_broken(self, row: Row) -> None:
        if row.fault is not None and self._spec.on_broken_row == "fail":
            raise InputError(
                f'{row.place}: {row.fault}. Repair it, or let such rows fail alone with on_broken_row="dead_letter".'
            )


def _image_folder(spec: BatchSpec) -> ImageFolder:
    folder = folder_of(spec.rows) if spec.images_from is None else spec.images_from
    if folder is None:
        raise InputError(
            "images_from: the rows are not in one folder, so name the folder or bucket that the pictures lie in. "
            "Without it, whoever wrote the rows would choose what is read."
        )
    return ImageFolder(folder)


def _content(row: Row) -> str:
    try:
        return canonical(row.columns)
    except (ValueError, TypeError, RecursionError):  # a list of rows may hold what JSON cannot: itself, or odd names
        return row.place
