"""README and docs: what they show is what runs, and their links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest
from airflow.configuration import conf

from ollama_provider.provider_info import get_provider_info
from tests.docs.pages import PAGES, ROOT, name

_BLOCK = re.compile(r"(?:<!-- from (?P<path>\S+?)(?:#(?P<mark>[\w-]+))? -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")


def piece(path: str, mark: str | None) -> str:
    """A whole file, or what stands in it between ``# [start mark]`` and ``# [end mark]``."""
    text = (ROOT / path).read_text()
    if mark is None:
        return text
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.strip() == f"# [start {mark}]")
    end = next(i for i, line in enumerate(lines) if line.strip() == f"# [end {mark}]")
    indent = len(lines[start]) - len(lines[start].lstrip())
    return "\n".join(line[indent:] for line in lines[start + 1 : end]) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_on_a_page_is_a_copy_of_code_that_a_test_runs(page: Path) -> None:
    """Every Python block names the file it stands in (under dags/ or tests/, all of which run), and equals it."""
    for block in _BLOCK.finditer(page.read_text()):
        path = block["path"]

        assert path, f"{page.name}: a Python block without '<!-- from FILE -->' above it:\n{block['code'][:200]}"
        assert path.startswith(("dags/", "tests/"))
        assert block["code"].strip() == piece(path, block["mark"]).strip()


def anchors(page: Path) -> set[str]:
    """Where links into a page may lead: GitHub's names of its headings."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> str:
    """What a page shows as code, in its text and in blocks."""
    text = page.read_text()
    return "\n".join([*_FENCED.findall(text), *_CODE.findall(_FENCED.sub("", text))])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link or picture is a file of the repository, and its anchor is a heading there."""
    for link in _LINK.finditer(page.read_text()):
        target, _, anchor = (link["target"] or link["image"]).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page

        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


def test_pictures_are_taken_by_a_test_and_shown_on_a_page() -> None:
    """Each picture is the work of one screenshot() in the browser's tests, or drawn (SVG), and a page has it."""
    pictures = {path.name for path in (ROOT / "docs/images").iterdir()}
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/e2e/browser").glob("test_*.py"))
    taken = re.findall(r'screenshot\(\w+, "([\w-]+)"\)', tests)
    linked = {Path(link["image"]).name for page in PAGES for link in _LINK.finditer(page.read_text()) if link["image"]}

    assert sorted(f"{picture}.png" for picture in taken) == sorted(
        picture for picture in pictures if not picture.endswith(".svg")
    )
    assert linked == pictures


def test_targets_of_make_exist() -> None:
    """Every `make something` of the pages is in the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z][\w-]*)", code(page))}

    assert len(named) > 5
    assert named <= targets


def test_extras_exist() -> None:
    """Every `airflow-provider-ollama[extra]` of the pages can be installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {found for page in PAGES for found in re.findall(r"airflow-provider-ollama\[(.*?)\]", code(page))}

    assert named
    assert named <= extras.keys()


def test_paths_in_the_text_exist() -> None:
    """A path that begins like one of this repository is one."""
    begins = ("dags/", "docs/", "tests/", "ollama_provider/", "constraints/", ".ci/")
    words = {
        word for page in PAGES for found in _CODE.findall(_FENCED.sub("", page.read_text())) for word in found.split()
    }
    paths = {word.partition("::")[0] for word in words if word.startswith(begins)}

    assert len(paths) > 5
    assert {path for path in paths if not any(ROOT.glob(path.rstrip("/")))} == set()


def test_settings_of_airflow_exist() -> None:
    """`AIRFLOW__SECTION__OPTION` is an option of Airflow's or of this provider's."""
    ours = {section: set(known["options"]) for section, known in get_provider_info()["config"].items()}
    named = {found for page in PAGES for found in re.findall(r"AIRFLOW__(\w+?)__(\w+)", code(page))}

    assert named
    for section, option in ((section.lower(), option.lower()) for section, option in named):
        assert option in ours.get(section, set()) or conf.has_option(section, option), (section, option)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_can_be_read(page: Path) -> None:
    """Paragraphs are wrapped: no line of a page is longer than 120 characters, but those of tables and pictures."""
    lines = _FENCED.sub("", page.read_text()).splitlines()

    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))] == []
