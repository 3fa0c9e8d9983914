"""The page of a `Report`: one HTML file without scripts, that loads nothing.

What comes from a server, a model or a row is shown as text: HTML is escaped, and a character that a terminal or a
reader would obey instead of showing it becomes a visible one.
"""

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ollama_provider import __version__
from ollama_provider.batch.report import charts
from ollama_provider.batch.report.gather import Report
from ollama_provider.batch.results.progress import duration

_HERE = Path(__file__).parent
#: Style sheet of the page.
STYLE = _HERE / "report.css"
#: Control characters but for tab and line feed, those that change the direction of writing, and those without width.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def render(report: Report) -> bytes:
    """Return the page in UTF-8."""
    style = STYLE.read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    page = report_environment().get_template("report.html.jinja")
    return page.render(report_values(report), style=style, style_digest=digest).encode()


def report_values(report: Report) -> dict[str, Any]:
    """Return what the template of the page needs to know, but for the style."""
    return {
        "report": report,
        "timeline": charts.timeline(report.samples, report.events),
        "histograms": [(each, charts.histogram(each)) for each in report.distributions],
        "charts": charts,
        "rehearsal_first": report.state == "rehearsed",
        "version": __version__,
    }


@cache
def report_environment(*folders: Path) -> Environment:
    """Return what renders the page.

    Args:
        folders: with more templates, which may use those of the report, for a page elsewhere.
    """
    environment = Environment(
        autoescape=True,
        finalize=visible,
        loader=FileSystemLoader([*folders, _HERE]),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "rate": rate, "percent": percent, "duration": duration, "moment": moment}
    return environment


def visible(value: Any) -> Any:
    r"""Return a text in which every character can be seen: an escape becomes ``␛``, and U+202E ``\u202e``."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")  # else it is a piece of the template
    return _INVISIBLE.sub(_symbol, value) if is_text else value


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"


def number(value: float | None) -> str:
    """Return a count with its thousands apart; ``?`` if it is unknown."""
    return "?" if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Return a rate with as many digits as tell something."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def percent(share: float) -> str:
    """Return a share of 1 as percent. What is not all is never rounded to all, nor something to nothing."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def moment(at: float) -> str:
    """Return a moment as text, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
