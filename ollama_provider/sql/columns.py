"""What of a result goes into which column of a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from ollama_provider.batch import DatabaseError, Outcome, Provenance, Vectors, plain
from ollama_provider.sql.dialects import Vector

#: Sources of columns that are known before the model is asked.
_OWN = ("id", "index", "key", "row")
_FIELDS = {*_OWN, *(each.name for kind in (Outcome, Provenance) for each in fields(kind))} - {
    "status",
    "error",
    "reply",
}
#: The same of the pieces of a text that was longer than the context.
_PIECE = {"chunk", "start", "end"}
#: What has other values than text.
_TYPES: dict[str, type] = dict.fromkeys(("index", "tokens", "prompt_tokens", "attempts", "seed", "num_ctx"), int)
_TYPES |= dict.fromkeys(_PIECE, int)
_TYPES |= dict.fromkeys(("seconds", "queue_seconds", "tokens_per_second"), float)
_TYPES |= dict.fromkeys(("prompt_cut", "answer_cut"), bool)


class UnfitValueError(ValueError):
    """A result has no value for a column, or one that it cannot take."""


@dataclass(frozen=True)
class Columns:
    """What goes into the columns of a table.

    Attributes:
        sources: for each column what it takes, in the order of the columns; see `ollama_provider.sql.SqlTable`.
        key: names of the columns that identify a row.
        vectors: what is known of the vectors, where results are vectors.
    """

    sources: Mapping[str, str]
    key: Sequence[str]
    vectors: Vectors | None

    @property
    def of_vectors(self) -> list[str]:
        """The columns that take the vector."""
        return [] if self.vectors is None else [name for name, source in self.sources.items() if source == "output"]

    @property
    def of_chunk(self) -> str | None:
        """The column of the key that takes the number of a piece; None where texts are not split."""
        if self.vectors is None or not self.vectors.in_pieces:
            return None
        return next((name for name in self.key if self.sources.get(name) == "chunk"), None)

    def check(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> None:
        """Look whether results have what the columns take.

        Args:
            examples: the first rows of the input.
            id_column: see `BatchSpec`.

        Raises:
            DatabaseError: they have not, or the key does not tell results apart.
        """
        for name, source in self.sources.items():
            self._check_source(name, source, examples, id_column)
        own = [name for name in self.key if self.sources.get(name, "").partition(".")[0] in _OWN]
        if self.vectors is not None and self.vectors.in_pieces and (not own or self.of_chunk is None):
            raise DatabaseError(
                "SqlTable: a text that is split has a row for each piece, so the key must have the column that takes "
                "chunk, beside those that tell the texts apart."
            )
        for name in self.key:
            if name not in {*own, self.of_chunk}:
                raise DatabaseError(
                    f"SqlTable: the key {name!r} must be among the columns and take id, index, key or row.NAME: what "
                    "a model says cannot tell rows apart."
                )

    def _check_source(
        self, name: str, source: str, examples: Sequence[Mapping[str, Any]], id_column: str | None
    ) -> None:
        head, _, rest = source.partition(".")
        known = _FIELDS | _PIECE if self.vectors is not None and self.vectors.in_pieces else _FIELDS
        # A vector has no parts with names.
        may_have_rest = {"output"} if self.vectors is None else set()
        if head not in known or ((head == "row") != bool(rest) and head not in may_have_rest):
            raise DatabaseError(
                f"SqlTable: column {name!r} cannot take {source!r}; known are {', '.join(sorted(known))}, with "
                f"{' and '.join(f'{part}.NAME' for part in ('row', *may_have_rest))}."
            )
        if head == "id" and id_column is None:
            raise DatabaseError(f"SqlTable: column {name!r} takes the row's id, but no id_column says which that is.")
        if head == "row" and examples and not any(rest in row for row in examples):
            names = ", ".join(sorted({repr(column) for row in examples for column in row}))
            raise DatabaseError(f"SqlTable: column {name!r} takes {source!r}, but the rows have only {names}.")

    def types(self, examples: Sequence[Mapping[str, Any]], id_column: str | None) -> dict[str, type]:
        """Return the Python type of the values of each column, as far as the first rows show it; else text."""
        types = {}
        for name, source in self.sources.items():
            head, _, rest = source.partition(".")
            column = {"id": id_column, "row": rest}.get(head)
            seen = {type(row[column]) for row in examples if row.get(column) is not None} if column else set()
            own = seen.pop() if len(seen) == 1 else None
            types[name] = own or (None if rest else _TYPES.get(head)) or str
        return types

    def own_values(self, own: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return what does not come from the model: the values of the key, and those of all such columns."""
        values = {
            name: plain(_take(own, source)) for name, source in self.sources.items() if source.partition(".")[0] in _OWN
        }
        return [values[name] for name in self.key if name in values], values

    def rows(self, result: Mapping[str, Any], vector_text: Callable[[str, Vector], str]) -> list[list[Any]]:
        """Return the values of the row of a result, or of the rows of its pieces.

        Args:
            result: see `ollama_provider.batch.records.Table.write`.
            vector_text: makes a text of a vector, for a column.

        Raises:
            UnfitValueError: a column cannot take its value.
        """
        # A text that was short enough is its only piece.
        pieces = result.get("pieces", ({"chunk": 0},))
        of_vectors = self.of_vectors
        return [
            [
                vector_text(name, _finite(value)) if name in of_vectors else _parameter(value)
                for name, value in ((name, _take(result | piece, source)) for name, source in self.sources.items())
            ]
            for piece in pieces
        ]


def _take(result: Mapping[str, Any], source: str) -> Any:
    head, _, rest = source.partition(".")
    value = result.get(head)
    if head == "row":
        return value and value.get(rest)
    for name in rest.split(".") if rest else ():
        if not isinstance(value, Mapping) or name not in value:
            raise UnfitValueError(f"the output has no {source.partition('.')[2]!r}")
        value = value[name]
    return value


def _finite(vector: Vector) -> Vector:
    if not isfinite(sum(vector)):
        raise UnfitValueError("a vector with NaN or infinity")
    return vector


def _parameter(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
