"""The public names of `ollama_provider.testing`."""

import pytest

from ollama_provider import testing


def test_every_public_name_is_there() -> None:
    """`__all__` is sorted and complete, and loading a name on demand finds it."""
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name


def test_other_names_are_not() -> None:
    """An unknown name raises an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        testing.nonsense  # noqa: B018
