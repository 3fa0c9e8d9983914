"""docs/reference/errors.md says of each error what its class says."""

import re
from pathlib import Path

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError

PAGE = Path(__file__).parents[2] / "docs/reference/errors.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| [^|]+ \| (?P<again>[^|]+) \| (?P<blame>[^|]+) \|$", re.MULTILINE)


def leaves(kind: type[OllamaError]) -> set[type[OllamaError]]:
    """The classes below one that are raised themselves: a parent only groups, unless it is raised too."""
    below = kind.__subclasses__()
    return {kind}.union(*(leaves(child) for child in below))


def test_every_error_is_on_the_page_with_what_its_class_says() -> None:
    """The table names each class that can be raised, whether it is tried again, and whose fault it is."""
    rows = {row["name"]: row for row in ROW.finditer(PAGE.read_text())}
    grouping = {
        "OllamaError",
        "TransportError",
        "ResponseTimeoutError",
        "ServerError",
        "PullError",
        "RejectedReplyError",
    }

    assert set(rows) | grouping == {kind.__name__ for kind in leaves(OllamaError) if kind.__module__ == errors.__name__}
    for name, row in rows.items():
        kind = getattr(errors, name)
        assert (row["again"].strip() == "no") is not kind.retryable, name
        assert row["blame"].strip() == kind.blame.value, name
