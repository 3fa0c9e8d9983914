"""How Sphinx makes a site of README.md and docs/: `make docs`.

The repository is the source directory, so that README and changelog are pages too, and every link that works in the
repository's own view works on the site. The pages hold nothing that only Sphinx understands: the navigation and the
pages of the Python API are made here.
"""

import os
import re
import tempfile
from importlib import import_module
from inspect import isroutine
from pathlib import Path

# Airflow writes its configuration into its home when it is first imported.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-docs-")

from sphinx.application import Sphinx

from ollama_provider import __version__

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"
#: Where Sphinx's own pages for the Python API come from: title and module.
MODULES = {
    "Hook": "ollama_provider.hooks",
    "Operators": "ollama_provider.operators",
    "Sensor": "ollama_provider.sensors",
    "Triggers": "ollama_provider.triggers",
    "Decorators": "ollama_provider.decorators",
    "SQL": "ollama_provider.sql",
    "Batch": "ollama_provider.batch",
    "Errors": "ollama_provider.api.errors",
    "Tools": "ollama_provider.tools",
    "Testing": "ollama_provider.testing",
}
#: The navigation: a page is found on the site only if it stands here, and Sphinx says which one does not.
NAVIGATION = {
    "Begin": ["docs/index", "docs/quickstart", "docs/concepts"],
    "How to": [
        "docs/howto/move-from-a-loop",
        "docs/howto/rehearse",
        "docs/operate",
        "docs/howto/airflow-page",
        "docs/howto/taskflow",
        "docs/howto/wait-without-a-slot",
        "docs/howto/several-servers",
        "docs/howto/inputs",
        "docs/howto/sql",
        "docs/howto/vectors",
        "docs/howto/assets",
        "docs/howto/manage-models",
        "docs/howto/tools",
        "docs/howto/images",
        "docs/howto/python-client",
        "docs/howto/test-your-dags",
        "docs/howto/docker-compose",
        "docs/howto/lineage",
        "docs/howto/tracing",
    ],
    "Reference": [
        "docs/reference/operators",
        "docs/reference/connection",
        "docs/reference/errors",
        "docs/reference/metrics",
        "docs/security",
        "docs/reference/versions",
    ],
    "Python API": [f"docs/api/{module}" for module in MODULES.values()],
    "Why it is as it is": ["docs/design/architecture", "docs/design/batch"],
    "Work on it": ["CONTRIBUTING", "docs/howto/end-to-end-tests", "CHANGELOG"],
}

project = "airflow-provider-ollama"
author = "the maintainers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "dist"]
templates_path = ["_templates"]

# Anchors as in the repository's view.
myst_heading_anchors = 4

# `name` in a docstring is code, and a link where there is something of that name.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"{project} {version}"
html_show_copyright = False
html_show_sourcelink = False
html_additional_pages = {"index": "to_the_readme.html"}

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:#]+)\)")


def write_api_pages(app: Sphinx, config: object) -> None:
    """Write a page for each module: what it lists as exported, else all that is public."""
    API.mkdir(exist_ok=True)
    for old in API.glob("*.rst"):
        old.unlink()
    for title, module in MODULES.items():
        lines = [title, "=" * len(title), "", f".. automodule:: {module}"]
        loaded = import_module(module)
        if exported := getattr(loaded, "__all__", ()):
            lines.append("   :no-members:")
        # Loaded at first use, so autodoc does not find them by itself.
        for name in exported:
            value = getattr(loaded, name)
            kind = "class" if isinstance(value, type) else "function" if isroutine(value) else "data"
            lines += ["", f".. auto{kind}:: {name}"]
            if module == "ollama_provider.operators":
                lines.append("   :no-members:")  # Airflow calls their methods, no DAG does
        (API / f"{module}.rst").write_text("\n".join([*lines, ""]))


def adapt_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to the first page, and take away links to folders, which a site does not have."""

    def shown(link: re.Match[str]) -> str:
        return link[1] if (ROOT / page).parent.joinpath(link[2]).is_dir() else link[0]

    source[0] = _LINK.sub(shown, source[0])
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            listed = "\n".join(f"/{name}" for name in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Mark what stands indented behind a paragraph as code: docstrings have it as Markdown has."""
    marked = list(lines)
    lines.clear()
    for number, line in enumerate(marked):
        paragraph, blank = marked[number - 2 : number] if number > 1 else ("", "")
        if line.startswith("    ") and not blank and paragraph and paragraph[0] not in " *:":
            lines += ["::", ""]
        lines.append(line)


def setup(app: Sphinx) -> None:
    """Connect the above with Sphinx."""
    app.connect("config-inited", write_api_pages)
    app.connect("source-read", adapt_page)
    app.connect("autodoc-process-docstring", mark_code, priority=400)  # before napoleon, which writes reStructuredText
