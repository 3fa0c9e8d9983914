"""MySQL (since 8.0.17) and MariaDB (since 10.2).

Left to themselves both may cut what is too long, take ``a`` and ``A`` for the same key, and give a row with the id 0
another one. So sessions are strict, and tables whose key would join two ids are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar

from ollama_provider.sql.database import row_values
from ollama_provider.sql.dialects.standard import Destination, Dialect, UnfitTableError

#: Beside the modes of the server: nothing is cut to fit, and 0 is 0 in a column with AUTO_INCREMENT.
_MODES = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO"
_SETTINGS = (
    f"SET SESSION sql_mode = CONCAT(@@sql_mode, ',{_MODES}')",
    # At REPEATABLE READ, the default, an insert locks the gap beside its row, which other writers need.
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
)
#: Types that round a number with a fraction, in any mode.
_WHOLE = "'tinyint', 'smallint', 'mediumint', 'int', 'bigint'"
#: Characters of a text in a key: three such columns fit into an index.
_KEY_LENGTH = 255
#: Bytes that a byte of a value may take in a statement, and what is left for the rest of it.
_ESCAPED, _RESERVED = 2, 16 << 10


class MySql(Dialect):
    """An upsert is a clause of the insert, and applies to all unique indexes of the table."""

    types: ClassVar[Mapping[type, str]] = {
        bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "LONGTEXT CHARACTER SET utf8mb4",
    }  # fmt: skip

    def __init__(self, hook: Any) -> None:
        super().__init__(hook)
        self.quotes = ("`", "`")
        # The server's own values are known with the first connection.
        self._longest_statement = 1 << 20
        self._key_collation = "utf8mb4_bin"
        # Columns for whole numbers, in small letters; looked up when the first rows are written.
        self._whole: set[str] | None = None

    def connect(self) -> Any:
        """Return a new connection whose session is strict, and sends and receives all characters of Unicode."""
        connection = super().connect()
        # A statement would not do, since the driver has to know the character set, too. Drivers name this differently.
        (getattr(connection, "set_character_set", None) or connection.set_charset_collation)("utf8mb4")
        with closing(connection.cursor()) as cursor:
            for statement in _SETTINGS:
                cursor.execute(statement)
            cursor.execute("SELECT @@max_allowed_packet, VERSION()")
            longest, version = row_values(cursor.fetchone())
        self._longest_statement = int(longest)
        # Others ignore blanks at the end of a text.
        self._key_collation = "utf8mb4_nopad_bin" if "MariaDB" in str(version) else "utf8mb4_0900_bin"
        return connection

    def column_type(self, kind: type, *, in_key: bool) -> str:
        """Return the type of a column. A text in a key has a length, since an index needs one."""
        name = super().column_type(kind, in_key=in_key)
        if in_key and name == self.types[str]:
            return f"VARCHAR({_KEY_LENGTH}) CHARACTER SET utf8mb4 COLLATE {self._key_collation}"
        return name

    def upsert(self, to: Destination, values: Sequence[str]) -> str:
        """Return the statement that inserts a row or updates the one with the same key."""
        # INSERT IGNORE, for a table with nothing but its key, would hide other errors.
        update = ", ".join(f"{name} = VALUES({name})" for name in map(self.quote, to.rest or to.key))
        return f"{self.insert(to, values)} ON DUPLICATE KEY UPDATE {update}"

    def check(self, cursor: Any, to: Destination) -> None:
        """Check table, columns, the right to write, the unique indexes, and the collations of the key."""
        cursor.execute(f"EXPLAIN {self.upsert(to, ['NULL'] * len(to.columns))}")
        cursor.fetchall()
        self._check_indexes(cursor, to)
        self._check_collations(cursor, to)

    def _check_indexes(self, cursor: Any, to: Destination) -> None:
        indexes: dict[str, set[str]] = {}
        for index, column, length in self._catalogue(
            cursor, to, "INDEX_NAME, COLUMN_NAME, SUB_PART", "STATISTICS", "NON_UNIQUE = 0"
        ):
            # An index on the first characters of a text, or on an expression, is none on the column.
            indexes.setdefault(index, set()).add("" if length or column is None else column.lower())
        key, ours = ({name.lower() for name in names} for names in (to.key, to.columns))
        if key not in indexes.values():
            raise UnfitTableError(
                f"It has no unique index on its key. This creates one: {self.create_unique_index(to)}"
            )
        for index, columns in indexes.items():
            # What the batch does not write, such as a number with AUTO_INCREMENT, is the same in no two rows.
            if columns != key and columns <= ours | {""}:
                raise UnfitTableError(
                    f"It has another unique index beside that on its key, {index!r}. MySQL would update a row with the "
                    "same values there, whatever its key. Drop that index, or make it the key."
                )

    def _check_collations(self, cursor: Any, to: Destination) -> None:
        key = {name.lower() for name in to.key}
        for column, kind, charset, collation in self._catalogue(
            cursor, to, "COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME", "COLUMNS",
            "COLLATION_NAME IS NOT NULL",
        ):  # fmt: skip
            if column.lower() not in key:
                continue
            a = f"CONVERT('a' USING {charset}) COLLATE {collation}"
            cursor.execute(f"SELECT {a} = 'A', {a} = 'a '")
            for other, same in zip(("'A'", "'a '"), row_values(cursor.fetchone()), strict=True):
                if same:
                    raise UnfitTableError(
                        f"The collation of its key {column!r}, {collation}, takes 'a' for the same as {other}, so a "
                        f"row could overwrite another. This changes it: ALTER TABLE {self.table(to)} MODIFY "
                        f"{self.quote(column)} {kind} CHARACTER SET utf8mb4 COLLATE {self._key_collation} NOT NULL"
                    )

    def _catalogue(self, cursor: Any, to: Destination, what: str, view: str, which: str) -> list[tuple[Any, ...]]:
        *schema, table = to.parts
        (mark,) = self.placeholders(1)
        cursor.execute(
            f"SELECT {what} FROM information_schema.{view} WHERE {which} "  # noqa: S608  # constants
            f"AND TABLE_SCHEMA = {mark if schema else 'DATABASE()'} AND TABLE_NAME = {mark}",
            [*schema, table],
        )
        # Some drivers give names as bytes.
        return [
            tuple(value.decode() if isinstance(value, bytes | bytearray) else value for value in row_values(row))
            for row in cursor.fetchall()
        ]

    def write(self, cursor: Any, to: Destination, rows: Sequence[Sequence[Any]]) -> None:
        """Insert or update the rows."""
        self._check_whole(cursor, to, rows)
        statement = self.upsert(to, self.placeholders(len(to.columns)))
        for some in self._statements(rows):
            cursor.executemany(statement, some)

    def _check_whole(self, cursor: Any, to: Destination, rows: Sequence[Sequence[Any]]) -> None:
        """Raise a ValueError if a number would be rounded."""
        if self._whole is None:
            found = self._catalogue(cursor, to, "COLUMN_NAME", "COLUMNS", f"DATA_TYPE IN ({_WHOLE})")
            self._whole = {column.lower() for (column,) in found}
        places = [place for place, name in enumerate(to.columns) if name.lower() in self._whole]
        for row in rows:
            for place in places:
                if isinstance(value := row[place], float) and not value.is_integer():
                    raise ValueError(
                        f"the column {to.columns[place]!r} is for whole numbers, and would round its value"
                    )

    def _statements(self, rows: Sequence[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
        """Return the rows in groups that fit into one statement each, since drivers make one of a group."""
        most = self._longest_statement - _RESERVED
        group: list[Sequence[Any]] = []
        size = 0
        for row in rows:
            length = sum(_ESCAPED * len(str(value).encode()) + 4 for value in row)
            if length > most:
                raise ValueError(f"the row is too long for max_allowed_packet of the server, {self._longest_statement}")
            if group and size + length > most:
                yield group
                group, size = [], 0
            group.append(row)
            size += length
        if group:
            yield group
