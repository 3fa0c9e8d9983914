"""README and docs: what they show is what runs, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"(?:<!-- from (?P<path>\S+?)(?:#(?P<mark>[\w-]+))? -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def piece(path: str, mark: str | None) -> str:
    """A file without its docstring, or what stands in it between ``# [start mark]`` and ``# [end mark]``."""
    text = (ROOT / path).read_text()
    if mark is None:
        return re.sub(r'\A""".*?"""\n+', "", text, flags=re.DOTALL)
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.strip() == f"# [start {mark}]")
    end = next(i for i, line in enumerate(lines) if line.strip() == f"# [end {mark}]")
    indent = len(lines[start]) - len(lines[start].lstrip())
    return "\n".join(line[indent:] for line in lines[start + 1 : end]) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_on_a_page_is_a_copy_of_code_that_a_test_runs(page: Path) -> None:
    """Every Python block names the file it stands in (under dags/ or tests/, all of which run), and equals it."""
    for block in _BLOCK.finditer(page.read_text()):
        path = block["path"]

        assert path, f"{page.name}: a Python block without '<!-- from FILE -->' above it:\n{block['code'][:200]}"
        assert path.startswith(("dags/", "tests/"))
        assert block["code"].strip() == piece(path, block["mark"]).strip()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link or picture is a file of the repository."""
    for link in _LINK.finditer(page.read_text()):
        target = (link["target"] or link["image"]).partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
