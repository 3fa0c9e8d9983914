"""The connection's page says what the code does."""

import json
import re
from pathlib import Path

from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.connection import SETTINGS
from ollama_provider.diagnosis import MINIMUM_VERSION
from ollama_provider.provider_info import EXTRA_FIELDS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "connection.md").read_text()
_ROW = re.compile(r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
#: Label and default of each row of the table of extra fields, by its name.
ROWS = {name: (label, default) for label, name, default in _ROW.findall(PAGE)}


def test_every_field_has_a_row_and_no_row_lacks_its_field():
    """The form's fields first and in its order, then those that only the JSON has."""
    assert list(ROWS)[: len(EXTRA_FIELDS)] == list(EXTRA_FIELDS)
    assert ROWS.keys() == SETTINGS


def test_labels_are_those_of_the_form():
    """Without the unit, which the page tells in words."""
    for name, field in EXTRA_FIELDS.items():
        assert ROWS[name][0] == field["label"].removesuffix(" (s)")


def test_defaults_are_those_that_hold():
    """Numbers and switches as they are; what nobody set is none, or the server's."""
    holds = Settings().model_dump() | {f"{name}_timeout": value for name, value in Timeouts().model_dump().items()}
    for name, (_, default) in ROWS.items():
        allowed = {json.dumps(holds[name])} if holds[name] else {"none", "the server's"}

        assert default.removesuffix(".0") in {text.removesuffix(".0") for text in allowed}, name


def test_the_oldest_server_is_named():
    """The same version that the Test button names."""
    assert f"{MINIMUM_VERSION} is the oldest" in PAGE
