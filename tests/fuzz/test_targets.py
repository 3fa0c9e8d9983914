"""The targets of `make fuzz` hold for the inputs that their search begins with; the search itself needs atheris."""

import pytest

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds(name: str) -> None:
    """Whatever was recorded, and a small file of each kind, keeps what the target promises."""
    inputs = seeds(name)

    assert inputs
    for data in inputs:
        TARGETS[name](data)
        TARGETS[name](data[: len(data) // 2])
