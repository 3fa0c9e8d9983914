"""Errors are a tree, say where and what to do, and survive the way to another process."""

import copy
import pickle
import re

import pytest

from ollama_provider.api import errors
from ollama_provider.api.errors import OllamaError


def tree_of(kind: type[OllamaError], depth: int = 0) -> set[tuple[int, str, str]]:
    below = {line for child in kind.__subclasses__() for line in tree_of(child, depth + 1)}
    return below | {(depth, kind.__name__, kind.__base__.__name__)}


def drawn() -> set[tuple[int, str, str]]:
    found, above = set(), {-1: "Exception"}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            above[depth] = match[2]
            found.add((depth, match[2], above[depth - 1]))
    return found


def test_the_tree_is_the_one_that_is_drawn():
    """The drawing at the head of the module shows every class below the right one."""
    assert drawn() == tree_of(OllamaError)


@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])  # noqa: S301  # our own
def test_an_error_survives_the_way_to_another_process(way):
    """Airflow pickles what a task raises; nothing of it is lost."""
    error = errors.OverloadedError(
        "busy", host="http://h", model="m", status=503, retry_after=7, advice="Come back later."
    )

    found = way(error)

    assert type(found) is errors.OverloadedError
    assert str(found) == str(error) == "busy (at http://h model 'm'). Come back later."
    assert (found.status, found.retry_after, found.retryable) == (503, 7, True)


def test_the_advice_of_the_class_holds_where_an_error_has_none_of_its_own():
    """Every error of the setup says what to do about it."""
    assert str(errors.UnreachableError("refused", host="http://h")) == (
        "refused (at http://h). Is the server running, and are host and port of the connection right?"
    )
    assert str(errors.InvalidRequestError("wrong")) == "wrong"
