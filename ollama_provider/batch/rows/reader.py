"""Reads rows and renders their prompts, up to a thousand at a time, for a thread that does nothing else.

A row that cannot be read or rendered becomes a `PreparedRow` with a fault: it fails alone.
"""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from time import monotonic
from typing import Any

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, Row, canonical_json, plain
from ollama_provider.batch.rows.image_folder import ImageFolder
from ollama_provider.batch.rows.prompts import ChatTemplate, EmptyTextError, PromptTemplate, RenderError
from ollama_provider.batch.rows.sources import folder_of
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.store.json_values import columns_as_json
from ollama_provider.batch.store.keys import Keys

#: Rows of the sample that is checked before any request is sent.
_SAMPLE = 100
#: A chunk ends after so many rows, characters of prompts or seconds, whichever comes first.
_ROWS, _CHARACTERS, _SECONDS = 1024, 1 << 20, 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of an input.

    Attributes:
        prompts: of those rows that can be rendered.
        rows: columns of those rows that can be read.
    """

    prompts: list[str]
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class PreparedRow:
    """A row with its key and prompt, or with what is wrong with it.

    Attributes:
        key: says which rows are the same work; see `ollama_provider.batch.store.keys`.
        prompt: the rendered prompt; empty with a fault.
        row_id: value of the id column; None if there is none.
        columns: as they were read.
        fault: class and text of what is wrong with the row; None if a request can be sent for it.
        request_key: of the request without its schema, where there is one.
        images: base64 texts.
        kept: columns for the results as JSON, null for a row that cannot be read; empty if none are kept.
        index: its place in the input, from 0; rows of other shards count.
    """

    key: bytes
    prompt: str
    row_id: Any
    columns: dict[str, Any]
    fault: dict[str, str] | None = None
    request_key: bytes | None = None
    images: tuple[str, ...] = ()
    kept: bytes = b""
    index: int = 0


class RowReader:
    """Reads and renders the rows of a batch once, in their order.

    Args:
        spec: templates, id column, shard, and the policy for rows that cannot be read.
        rows: of the input.

    Raises:
        InputError: a template is wrong, or it is unknown where images are.
    """

    def __init__(self, spec: BatchSpec, rows: Iterable[Row]) -> None:
        self._spec = spec
        variables = plain(spec.variables)
        self._prompts = (
            PromptTemplate(spec.template(), variables)
            if spec.messages is None
            else ChatTemplate(spec.messages, variables)
        )
        self._images = None if spec.images is None else PromptTemplate(spec.images, variables)
        self._folder = None if spec.images is None else _image_folder(spec)
        self._shard = spec.the_shard()
        # The results of a shard come with the merge.
        self._keeps = spec.keep_columns is not None and self._shard is None
        self._kept_names = None if spec.keep_columns == "all" else spec.keep_columns
        self._rows: Iterator[Row] = iter(rows)
        self._count = 0

    def sample(self) -> Sample | None:
        """Return a sample of the first rows, which are read again by `next_chunk`; None if there are no rows.

        Raises:
            InputError: a column that a template or ``id_column`` names is missing in all of them; or a row cannot be
                read, and the policy is to fail then.
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
        good = [row.columns for row in head if row.fault is None]
        if not good:
            return Sample([], [])
        columns = set(chain.from_iterable(good))
        self._prompts.check(columns)
        if self._images is not None:
            self._images.check(columns)
        if self._spec.id_column is not None and self._spec.id_column not in columns:
            raise InputError(
                f"The id column {self._spec.id_column!r} is missing; the rows have the columns "
                f"{', '.join(map(repr, sorted(columns)))}."
            )
        self._refuse_missing_columns(columns)
        return Sample(list(self._rendered(good)), good)

    def _refuse_missing_columns(self, columns: set[str]) -> None:
        if missing := [name for name in self._kept_names or () if name not in columns]:
            raise InputError(
                f"keep_columns: {', '.join(map(repr, missing))} missing; the rows have the columns "
                f"{', '.join(map(repr, sorted(columns)))}."
            )

    def _rendered(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        for columns in rows:
            try:
                yield self._render(columns)
            except RenderError:
                continue

    def prompt(self, row: Row) -> str | None:
        """Return the prompt of a row; None if it has none. This is not the place to learn why."""
        try:
            return None if row.fault is not None else self._render(row.columns)
        except RenderError:
            return None

    def next_chunk(self, keys: Keys) -> list[PreparedRow]:
        """Return the next rows; an empty list at the end of the input. Rows of other shards are left out.

        Args:
            keys: makes the keys of the rows.

        Raises:
            InputError: the input cannot be read; or a row cannot, and the policy is to fail then.
        """
        chunk: list[PreparedRow] = []
        size = 0
        end = monotonic() + _SECONDS  # a PDF may take that long, and the model waits
        for row in self._rows:
            prepared = self._prepare(row, keys)
            prepared.index = self._count
            self._count += 1
            if self._shard is not None and not self._shard.owns(prepared.key):
                continue
            if self._keeps:
                prepared.kept = b"null" if row.fault else columns_as_json(row.columns, self._kept_names)
            chunk.append(prepared)
            size += len(prepared.prompt) + len(prepared.kept) + sum(map(len, prepared.images))
            if len(chunk) >= _ROWS or size >= _CHARACTERS or monotonic() > end:
                break
        return chunk

    def _prepare(self, row: Row, keys: Keys) -> PreparedRow:
        columns = row.columns
        if row.fault is not None:
            self._refuse_broken(row)
            fault = {"class": "BrokenRow", "text": f"{row.place}: {row.fault}"}
            # The place is part of the key: each broken line is a failed row of its own.
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
            RenderError: the template cannot be rendered with this row, or UTF-8 cannot encode the prompt.
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
                raise RenderError("the prompt has half a surrogate pair, which UTF-8 cannot encode") from None
        return prompt

    def _read_images(self, columns: dict[str, Any]) -> tuple[str, ...]:
        """Return the images of a row as base64. Their content is part of the row's key; their paths are not."""
        if self._images is None or self._folder is None:
            return ()
        files = [line.strip() for line in self._images.render(columns).splitlines() if line.strip()]
        data = [self._folder.read(file, f"images.{number}") for number, file in enumerate(files)]
        return tuple(base64.b64encode(image).decode("ascii") for image in data)

    def _refuse_broken(self, row: Row) -> None:
        if row.fault is not None and self._spec.failures.on_broken_row == "fail":
            raise InputError(
                f'{row.place}: {row.fault}. Repair it, or let such rows fail alone with on_broken_row="dead_letter".'
            )


def _image_folder(spec: BatchSpec) -> ImageFolder:
    folder = folder_of(spec.rows) if spec.images_from is None else spec.images_from
    if folder is None:
        raise InputError(
            "images_from: the rows are not in one folder, so name the folder or bucket of the images. Without it, the "
            "rows could name any file of this machine."
        )
    return ImageFolder(folder)


def _content(row: Row) -> str:
    try:
        return canonical_json(row.columns)
    except (ValueError, TypeError, RecursionError):  # not JSON: a row that contains itself, or mixed types of names
        return row.place
