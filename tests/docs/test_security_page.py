"""What the page says of security is held by tests that exist."""

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", PAGE)))


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_exists(named) -> None:
    """A file, or a class or function in it."""
    file, *steps = named.split("::")
    scope = ast.parse((ROOT / file).read_text()).body
    for step in steps:
        found = [node for node in scope if getattr(node, "name", None) == step]
        assert found, f"{file} has no {step}"
        scope = found[0].body


def test_every_test_of_security_is_named() -> None:
    """By its file at least: what is tested there is a promise."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/security").glob("test_*.py")}

    assert files <= {named.partition("::")[0] for named in NAMED}
