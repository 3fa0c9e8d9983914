"""A rehearsal as text, for a terminal and for the log of a task."""

import json
from collections.abc import Iterator, Sequence

from ollama_provider.batch.rehearsal.result import ContextUse, Night, RehearsalResult, RehearsedRow, Spread
from ollama_provider.batch.report.page import number, percent, rate, visible
from ollama_provider.batch.results.progress import duration

#: Characters of an id, and of the answer or error in a line of the table.
_ID, _ANSWER = 24, 72


def rehearsal_as_text(result: RehearsalResult, *, texts: bool) -> str:
    """Return what a rehearsal found, as lines.

    Args:
        result: what it found.
        texts: with the prompt of one row in full, and the beginnings of the answers.
    """
    return "\n".join(_lines(result, texts=texts))


def _lines(result: RehearsalResult, *, texts: bool) -> Iterator[str]:
    total = f"{'' if result.counted else 'about '}{number(result.total)}"
    asked = sum(row.status is not None for row in result.rows)
    yield f"Rehearsal: {asked} of {total} rows with {result.model} at {result.server}"
    if result.stopped:
        yield f"Stopped    {visible(result.stopped)}"
    if texts and result.prompt is not None:
        yield ""
        yield "The prompt of one row:"
        yield from (f"  | {line}" for line in _readable(result.prompt).split("\n"))
    if result.rows:
        yield ""
        yield from _table(result.rows, texts=texts)
        yield ""
    if result.prompt_tokens is not None:
        yield f"Tokens in  {_spread(result.prompt_tokens)}"
    if result.tokens is not None:
        yield f"Tokens out {_spread(result.tokens)}"
    yield from _night(result.night, total)
    if result.context is not None:
        yield from _context(result.context, result.looked_at)
    if result.memory is not None:
        share = result.memory.in_vram / result.memory.size
        yield "Memory     " + (
            "the whole model is in the memory of GPUs"
            if result.memory.fits
            else f"{percent(share)} of the model is in the memory of GPUs, and the rest slows it down"
        )
    for failure in result.failures:
        yield f"Failed     {failure.count} of {asked}: {failure.error}. {failure.advice or visible(failure.text)}"
    yield f"All in all {percent(result.failing)} of all rows are expected to fail"
    yield f"Answers    are kept in {result.directory}, and are not asked again"
    if not texts:
        yield "           (mode=Rehearsal(show_texts=True) shows a prompt and the answers here)"


def _readable(prompt: str) -> str:
    """Return a prompt as it is, and the messages of a chat one after the other."""
    try:
        messages = json.loads(prompt)
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    except (ValueError, TypeError, KeyError):  # a prompt
        pass
    return str(visible(prompt))


def _table(rows: Sequence[RehearsedRow], *, texts: bool) -> Iterator[str]:
    lines = [("row", "chosen as", "tokens in", "out", "seconds", "answer" if texts else "")]
    lines += [
        (
            row_name(row),
            row.why,
            number(row.prompt_tokens),
            number(row.tokens),
            rate(row.seconds),
            what_came(row, texts=texts),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    for name, why, *numbers, answer in lines:
        columns = [f"{name:<{widths[0]}}", f"{why:<{widths[1]}}"]
        columns += [f"{each:>{width}}" for each, width in zip(numbers, widths[2:], strict=True)]
        yield "  ".join([*columns, answer]).rstrip()


def row_name(row: RehearsedRow) -> str:
    """Return the id of a row; of one that has none, where it is in the input."""
    if row.id is None:
        return one_line(row.place.rpartition("/")[2], _ID)
    return one_line(row.id if isinstance(row.id, str) else json.dumps(row.id, ensure_ascii=False), _ID)


def what_came(row: RehearsedRow, *, texts: bool) -> str:
    """Return the answer of a row, or why it has none, on one line; *texts*: with the beginning of the answer."""
    if row.status is None:
        return "was not asked"
    if row.error_class is not None:
        return f"{row.error_class}: {one_line(row.error or '', _ANSWER)}"
    marks = [words for is_so, words in ((row.answer_cut, "cut"), (row.prompt_cut, "prompt cut")) if is_so]
    if not row.fresh:
        marks.append("answered before")
    answer = one_line(row.output or "", _ANSWER) if texts else ""
    return " ".join(filter(None, (f"({', '.join(marks)})" if marks else "", answer)))


def one_line(text: str, most: int) -> str:
    """Return a text on one line of so many characters, in which a terminal finds nothing to obey."""
    text = str(visible(" ".join(text.split())))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _spread(spread: Spread) -> str:
    return f"median {number(spread.median)}, p95 {number(spread.p95)}, longest {number(spread.longest)}"


def _night(night: Night | None, total: str) -> Iterator[str]:
    if night is None:
        yield "Time       not known: too few rows were asked and answered"
        return
    yield (
        f"Time       {total} rows take {duration(night.seconds)} "
        f"({duration(night.low)} to {duration(night.high)}, nine times of ten)"
    )
    yield f"           from 22:00 to {night.ends} ({night.earliest} to {night.latest})"
    if night.window is not None:
        fits = "which is enough" if night.fits else "which may be too little"
        yield f"           the window is open for {duration(night.window)}, {fits}"
    at_a_time = (number if night.requests_at_a_time >= 1 else rate)(night.requests_at_a_time)
    yield (
        f"Pace       {rate(night.rows_per_second)} rows/s, {rate(night.tokens_per_second)} tokens/s, "
        f"{at_a_time} requests at a time"
        + ("" if night.waited else "; none had to wait, so the night tries more and may be faster")
    )


def _context(context: ContextUse, looked_at: int) -> Iterator[str]:
    yield (
        f"Context    {number(context.num_ctx)} tokens; {number(context.needed)} are needed for the longest prompt of "
        f"{number(looked_at)} that were looked at, and its answer"
    )
    yield (
        f"           {percent(context.too_long)} of the prompts do not fit, "
        f"{percent(context.answers_cut)} of the answers were cut"
    )
