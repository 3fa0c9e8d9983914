"""The pages of the documentation, and the blocks on them that are no Python."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    language: str
    text: str


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks() -> list[Block]:
    """Return every block of every page but those of Python, which have a test of their own."""
    found = ((page, block) for page in PAGES for block in _BLOCK.finditer(page.read_text()))
    return [
        Block(name(page), block["language"], re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE))
        for page, block in found
        if block["language"] != "python"
    ]
