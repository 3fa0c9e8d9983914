"""docs/operate.md quotes log and errors as they are."""

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/operate.md").read_text()
#: The code, with texts that go on in the next line joined.
CODE = re.sub(
    r'"\s*\n\s*(?:\+ )?f?"', "", "\n".join(path.read_text() for path in (ROOT / "ollama_provider").rglob("*.py"))
)


def quotes() -> list[str]:
    """What the tables of ends and of log lines quote: code with more than one word."""
    tables = PAGE.partition("## What each end of the task means")[2].partition("## Repair the failed rows")[0]
    cells = [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| ")]
    return [quote for cell in cells for quote in re.findall(r"`([^`]+ [^`]+)`", cell)]


def test_there_are_quotes() -> None:
    """Of both tables."""
    assert len(quotes()) > 12


@pytest.mark.parametrize("quote", quotes())
def test_a_quote_is_in_the_code(quote: str) -> None:
    """Piece by piece; what stands for … (and N, M) is not on the page."""
    pieces = [piece.strip() for piece in re.split(r"…|\b[NM]\b", quote)]

    assert [piece for piece in pieces if piece not in CODE] == []
