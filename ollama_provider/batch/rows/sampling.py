"""A few rows of an input, spread over all of it, without reading large files whole where their format allows that.

A file of JSON lines is read in blocks all over it, a Parquet file in some of its rows, and of many documents only some
are opened. Everything else is read to its end, with few rows in memory: compressed files, JSON lists, other encodings
than UTF-8, and CSV, where a line break may be a part of a field.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import accumulate, chain
from random import Random
from typing import Any, BinaryIO, Generic, TypeVar

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.records import DOCUMENTS, Row, Rows, paths_of
from ollama_provider.batch.rows.formats import suffixes_of
from ollama_provider.batch.rows.json_files import read_json_lines
from ollama_provider.batch.rows.parquet_files import read_parquet_rows
from ollama_provider.batch.rows.sources import find_files, read_rows, readable, size_of
from ollama_provider.batch.rows.text_files import MAX_LINE, is_too_long, printable, readlines
from ollama_provider.batch.store.storage import open_file

#: Bytes of input that are read whole.
_SMALL = 16 << 20
#: Places in larger files, and for each row that is wanted, at least; bytes that are read at each.
_PLACES, _PLACES_A_ROW, _BLOCK = 64, 4, 1 << 16
#: Documents that are opened for each row that is wanted.
_DOCUMENTS_A_ROW = 2
#: Rows that are measured.
_MEASURED = 1000
_LINES = {(".jsonl", ""), (".ndjson", "")}

T = TypeVar("T")


@dataclass(frozen=True)
class SampledRow:
    """A row of a sample.

    Attributes:
        row: as it was read.
        why: ``first``, ``last``, ``shortest``, ``longest`` or ``random``. Shortest and longest are those of the rows
            that were looked at, by the characters of their columns.
    """

    row: Row
    why: str


@dataclass(frozen=True)
class RowSample(Generic[T]):
    """Some rows of an input, and what they say about all.

    Attributes:
        rows: the sample, in the order of the input.
        total: rows of the input.
        exact: they were counted; otherwise `total` is an estimate.
        looked_at: rows that the sample was chosen from.
        lengths: what was measured of up to a thousand rows, chosen at random.
    """

    rows: tuple[SampledRow, ...]
    total: int
    exact: bool
    looked_at: int
    lengths: tuple[T, ...]


def sample_rows(
    rows: Rows,
    options: InputOptions,
    count: int,
    measure: Callable[[Row], T | None],
    check: Callable[[], object] = lambda: None,
) -> RowSample[T]:
    """Return up to *count* rows: the first and the last, the shortest and the longest, and random ones.

    The random numbers have a fixed seed, so that the same input gives the same sample.

    Args:
        rows: see `ollama_provider.batch.rows.sources.read_rows`; no query.
        options: how text is written in the files.
        count: rows that are wanted, from 1 on.
        measure: returns the length of a row, or its lengths; None for a row that has none.
        check: called for each row; may raise to give up.

    Raises:
        InputError: the input cannot be read.
        StorageError: the disk or the store fails; another attempt may succeed.
    """
    paths = paths_of(rows)
    files = [file for path in paths or () for file in find_files(path)]
    sizes = [size_of(file) for file in files]
    found = _Found()
    if paths is None or (None not in sizes and sum(size or 0 for size in sizes) <= _SMALL):
        looked_at = found.whole(read_rows(rows, options))
    else:
        looked_at = _look_into(files, sizes, options, count, found)
    selection = _Selection(count, measure)
    for row in looked_at:
        check()
        selection.add(row)
    total = max(selection.count, round(found.total()))
    return RowSample(selection.rows(), total, found.exact, selection.count, tuple(selection.lengths))


class _Selection(Generic[T]):
    """Selects rows out of a stream of unknown length, in which each random one has the same chance."""

    def __init__(self, count: int, measure: Callable[[Row], T | None]) -> None:
        self.count = 0
        self.lengths: list[T] = []
        self._wanted = count
        self._measure = measure
        self._random = Random(1)  # noqa: S311  # nothing secret
        self._special: dict[str, tuple[int, Row]] = {}
        self._sizes: dict[str, int] = {}
        self._random_rows: list[tuple[int, Row]] = []

    def add(self, row: Row) -> None:
        number, self.count = self.count, self.count + 1
        size = sum(len(value) for value in row.columns.values() if isinstance(value, str | bytes))
        if not number:
            self._special["first"] = number, row
        self._special["last"] = number, row
        for why, beats in (("shortest", size < self._sizes.get("shortest", size + 1)),
                           ("longest", size > self._sizes.get("longest", -1))):  # fmt: skip
            if beats:
                self._special[why], self._sizes[why] = (number, row), size
        self._keep(self._random_rows, self._wanted, number, lambda: (number, row))
        self._keep(self.lengths, _MEASURED, number, partial(self._measure, row))

    def _keep(self, kept: list[Any], most: int, number: int, value: Callable[[], Any]) -> None:
        """Keep a value with the same chance as all others (Vitter's algorithm R); None is dropped."""
        place = number if number < most else self._random.randrange(number + 1)
        if place < most and (made := value()) is not None:
            if place < len(kept):
                kept[place] = made
            else:
                kept.append(made)

    def rows(self) -> tuple[SampledRow, ...]:
        chosen: dict[int, SampledRow] = {}
        special = [(why, *self._special[why]) for why in ("first", "last", "shortest", "longest") if self._special]
        for why, number, row in chain(special, (("random", *each) for each in self._random_rows)):
            if len(chosen) == self._wanted:
                break
            chosen.setdefault(number, SampledRow(row, why))
        return tuple(row for _, row in sorted(chosen.items()))


@dataclass
class _Found:
    """What is known of the number of rows, while parts of the input are read.

    Attributes:
        read: of each kind of files: rows, the bytes (or files) that they were found in, and those that there are.
    """

    read: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, kind: str, rows: int, seen: int, there: int = 0) -> None:
        before = self.read.get(kind, (0, 0, 0))
        self.read[kind] = before[0] + rows, before[1] + seen, before[2] + there

    def whole(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.add("whole", 1, 1, 1)
            yield row

    def total(self) -> float:
        return sum(rows * there / seen for rows, seen, there in self.read.values() if seen)

    @property
    def exact(self) -> bool:
        return all(seen == there for _, seen, there in self.read.values())


def _look_into(
    files: list[Any], told: list[int | None], options: InputOptions, count: int, found: _Found
) -> Iterator[Row]:
    """Return rows from places all over the files, in their order, and note how many rows that makes in all."""
    kinds = [_kind(file, size, options) for file, size in zip(files, told, strict=True)]
    sizes = [size or 0 for size in told]
    places = {
        kind: _places([size if each == kind else 0 for size, each in zip(sizes, kinds, strict=True)], count)
        for kind in ("lines", "parquet")
    }
    opened = _some_documents([number for number, kind in enumerate(kinds) if kind == "document"], sizes, count)
    for number, (file, size, kind) in enumerate(zip(files, sizes, kinds, strict=True)):
        if kind == "whole":
            yield from found.whole(read_rows([file], options))
        elif kind == "document":
            rows = list(read_rows([file], options)) if number in opened else []
            whole = options.split_text is None  # then each is one row
            found.add(kind, 1 if whole else len(rows), whole or number in opened, 1)
            yield from rows
        else:
            found.add(kind, 0, 0, size)
            if here := places[kind].get(number):
                look = _look_into_lines if kind == "lines" else _look_into_parquet
                with readable(file), open_file(file) as content:
                    yield from look(content, printable(file), size, here, found)


def _kind(file: Any, size: int | None, options: InputOptions) -> str:
    suffixes = suffixes_of(file)
    if suffixes[0] in DOCUMENTS:
        return "document"
    if size is None:  # so nobody knows what is in the middle of it
        return "whole"
    if suffixes in _LINES:
        return "lines" if options.encoding is None else "whole"
    return "parquet" if suffixes[0] == ".parquet" else "whole"


def _places(sizes: list[int], count: int) -> dict[int, list[int]]:
    """Return offsets in some of the files, by their numbers: one in each equal part of all bytes, begin and end."""
    ends, parts = list(accumulate(sizes)), max(_PLACES, _PLACES_A_ROW * count)
    random, there = Random(1), ends[-1]  # noqa: S311  # nothing secret
    found: defaultdict[int, list[int]] = defaultdict(list)
    if there:
        inside = (int((number + random.random()) * there / parts) for number in range(parts))
        for offset in sorted({0, *inside, there - 1}):
            number = bisect_right(ends, offset)
            found[number].append(offset - (ends[number] - sizes[number]))
    return found


def _some_documents(numbers: list[int], sizes: list[int], count: int) -> set[int]:
    """Return which documents are opened: first and last, smallest and largest, and random ones."""
    most = _DOCUMENTS_A_ROW * count
    if len(numbers) <= most:
        return set(numbers)
    by_size = sorted(numbers, key=sizes.__getitem__)
    rest = Random(1).sample(numbers, most)  # noqa: S311  # nothing secret
    return {numbers[0], numbers[-1], by_size[0], by_size[-1], *rest}


def _look_into_lines(file: BinaryIO, name: str, size: int, places: list[int], found: _Found) -> Iterator[Row]:
    """Return the rows of blocks of lines; each begins with the first line that begins after its place."""
    at = 0
    for place in places:
        begin = max(0, min(place, size - _BLOCK))
        if begin < at:
            continue
        back, first = _BLOCK, _next_line(file, begin, at)
        # A last line that is longer than a block is looked for from farther before it.
        while first >= size and begin > at:
            back *= 2
            begin = max(at, size - back)
            first = _next_line(file, begin, at)
        is_last_alone = back > _BLOCK
        lines: list[bytes] = []
        for line in readlines(file):
            if is_last_alone:
                first += sum(map(len, lines))
                lines.clear()
            lines.append(line)
            if is_too_long(line, file) or (not is_last_alone and sum(map(len, lines)) >= _BLOCK):
                break
        length = sum(map(len, lines))
        at = first + length
        rows = list(read_json_lines(BytesIO(b"".join(lines)), name))
        if is_last_alone:  # it says nothing of the other lines
            found.add("lines", 0, 0, -length)
            found.add("last line", len(rows), length, length)
        else:
            found.add("lines", len(rows), length)
        for row in rows:
            yield replace(row, place=f"{name}, after byte {begin}")


def _next_line(file: BinaryIO, begin: int, at: int) -> int:
    """Go to the first line that begins at a place or after it, and return where that is; *at* begins one."""
    file.seek(begin)
    if begin == at:
        return begin
    line = file.readline(MAX_LINE)  # in the middle of it
    is_too_long(line, file)
    return begin + len(line)


def _look_into_parquet(file: BinaryIO, name: str, size: int, places: list[int], found: _Found) -> Iterator[Row]:
    """Return the rows at places of a file, which are given in bytes."""
    total, rows = read_parquet_rows(file, name, [place / size for place in places])
    found.add("parquet", total, size)
    yield from rows
