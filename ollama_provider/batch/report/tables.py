"""What the log says at the end of a run, as tables of text: what each server did, and why rows failed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.report.page import visible
from ollama_provider.batch.report.shown_rows import Reason, ShownRow

#: Reasons that have a line, rows that are named in it, and characters of an id.
_REASONS, _NAMED, _LONGEST_ID = 10, 3, 40


def servers_table(servers: Sequence[ServerShare]) -> str:
    """Return the shares of the servers as lines of text.

    For example::

        server                rows   tok/s  concurrency  out of service
        http://gpu1:11434    1,200     310            4
        http://gpu2:11434      310      80            0  95 s: the connection was refused
    """
    width = max(len(share.server) for share in servers)
    lines = [f"{'server':<{width}} {'rows':>9} {'tok/s':>7} {'concurrency':>12}  out of service"]
    for share in servers:
        out = ": ".join(filter(None, (f"{share.seconds_out:.0f} s" if share.seconds_out else "", share.reason)))
        numbers = f"{share.rows:>9,} {share.tokens_per_second:>7.0f} {share.concurrency:>12}"
        lines.append(f"{share.server:<{width}} {numbers}  {out}".rstrip())
    return "\n".join(lines)


def reasons_table(reasons: Sequence[Reason], places: Mapping[str, tuple[int, Any]]) -> str:
    """Return why rows failed as lines of text, the most frequent reason first, with three rows of each.

    Rows are named by their id, those without one by their index in the input (``row 7``).

    For example::

        rows  reason              such as              what to do
          12  InvalidOutputError  a-17, a-23, b-4      Read the replies: a plainer schema, …
           2  RenderError         c-1, c-9             Mend the prompt's template, or the columns of these rows.

    Args:
        reasons: from the report.
        places: index and id of rows by their key, for those of which the report knows neither.
    """
    lines = [("rows", "reason", "such as", "what to do")]
    for reason in reasons[:_REASONS]:
        named = ", ".join(_name(row, places) for row in reason.rows[:_NAMED])
        lines.append((f"{reason.count:,}", _on_one_line(reason.error), named, reason.advice))
    if rest := reasons[_REASONS:]:
        lines.append((f"{sum(reason.count for reason in rest):,}", f"{len(rest)} others", "", "See the report."))
    counts, kinds, names = (max(map(len, column)) for column in list(zip(*lines, strict=True))[:3])
    return "\n".join(
        f"{count:>{counts}}  {kind:<{kinds}}  {named:<{names}}  {todo}".rstrip() for count, kind, named, todo in lines
    )


def _name(row: ShownRow, places: Mapping[str, tuple[int, Any]]) -> str:
    index, row_id = (row.index, row.id) if row.index is not None else places.get(row.key, (None, None))
    if row_id is not None:
        name = _on_one_line(row_id if isinstance(row_id, str) else json.dumps(row_id, ensure_ascii=False))
        return name if len(name) <= _LONGEST_ID else f"{name[:_LONGEST_ID]}…"
    return f"key {row.key}" if index is None else f"row {index}"


def _on_one_line(text: str) -> str:
    """Return a text of the user's data, in which a terminal finds nothing to obey."""
    return str(visible(" ".join(text.split())))
