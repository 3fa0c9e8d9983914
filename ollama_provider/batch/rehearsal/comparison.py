"""Several rehearsals of the same rows side by side, as text and as plain data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollama_provider.batch.rehearsal.result import RehearsalResult, RehearsedRow
from ollama_provider.batch.rehearsal.text import one_line, row_name, what_came
from ollama_provider.batch.report.page import number, rate
from ollama_provider.batch.results.progress import duration

#: Columns of a terminal that all answers of a row share, and those that one has at least.
_WIDTH, _LEAST = 110, 24


def comparison_as_dict(results: Mapping[str, RehearsalResult], *, texts: bool) -> dict[str, Any]:
    """Return plain data, fit for XCom: under ``compared`` what was found of each, by its name.

    What a `Summary` has as well is under the same names, for all of them together.

    Args:
        results: by the names of what is compared; one at least.
        texts: with prompt and answers.
    """
    compared = {name: found.as_dict(prompt=texts, answers=texts) for name, found in results.items()}
    return {
        "complete": False,
        "reason": f"a comparison of {len(results)}",
        "rows": next(iter(results.values())).total,
        "ok": sum(found["ok"] for found in compared.values()),
        "failed": sum(found["failed"] for found in compared.values()),
        "compared": compared,
    }


def comparison_as_text(results: Mapping[str, RehearsalResult], *, texts: bool) -> str:
    """Return the rehearsals side by side, row by row, and then how fast and how good each was.

    Args:
        results: by the names of what is compared; one at least.
        texts: with the beginnings of the answers.
    """
    return "\n".join(_lines(results, texts=texts))


def _lines(results: Mapping[str, RehearsalResult], *, texts: bool) -> Iterator[str]:
    first = next(iter(results.values()))
    total = f"{'' if first.counted else 'about '}{number(first.total)}"
    yield f"Comparison: {len(first.rows)} of {total} rows"
    yield ""
    width = max(_LEAST, _WIDTH // len(results))
    table = [
        (row_name(rows[0]), *(_cell(row, width, texts=texts) for row in rows))
        for rows in zip(*(found.rows for found in results.values()), strict=True)
    ]
    yield from _aligned([("row", *(one_line(name, width) for name in results)), *table])
    yield ""
    heads = ("", "good", "failed", "did not fit", "tokens out", "s a row", "tokens/s", f"{total} rows take", "(range)")
    yield from _aligned([heads, *(_measures(one_line(name, width), found) for name, found in results.items())])
    yield ""
    yield "Did not fit: first answers that were not what the schema asks for, and how many of these were repaired."
    yield f"All answers are kept in {first.directory}, and are not asked again."


def _cell(row: RehearsedRow, width: int, *, texts: bool) -> str:
    length = f"[{number(row.tokens)}] " if row.tokens is not None else ""
    return one_line(length + what_came(row, texts=texts), width)


def _measures(name: str, found: RehearsalResult) -> tuple[str, ...]:
    night = found.night
    return (
        name,
        number(sum(row.status == "ok" for row in found.rows)),
        number(found.failed),
        f"{found.misfits} ({found.repaired})" if found.misfits else "0",
        "?" if found.tokens is None else number(found.tokens.median),
        rate(found.row_seconds),
        "?" if night is None else rate(night.tokens_per_second),
        "?" if night is None else duration(night.seconds),
        "" if night is None else f"({duration(night.low)} to {duration(night.high)})",
    )


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
