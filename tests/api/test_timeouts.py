"""How long an attempt waits for its next byte, and what it is called when none comes."""

import math

import pytest

from ollama_provider.api import errors
from ollama_provider.api.schemas import (
    CreateRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    PushRequest,
    Request,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Timeouts
from ollama_provider.api.timeouts import timeouts_for

GENERATE = GenerateRequest(model="m")
TIMEOUTS = Timeouts(first_token=900, idle=120, pull_stall=300)


def timed_out(timeouts):
    return timeouts.timeout_error(host="http://h", model="m")


def test_the_first_token_has_its_own_timeout():
    """Queue, load and prompt come before the first byte, so it may take long."""
    timeouts = timeouts_for(GENERATE, TIMEOUTS, now=1000)

    assert timeouts.deadline == 1900
    error = timed_out(timeouts)
    assert type(error) is errors.FirstTokenTimeoutError
    assert "900 s" in str(error)


def test_once_it_began_only_a_pause_counts():
    """Every byte gives the answer another idle_timeout."""
    timeouts = timeouts_for(GENERATE, TIMEOUTS, now=0)

    timeouts.received(1, 800)
    assert timeouts.deadline == 920
    timeouts.received(1, 910)
    assert timeouts.deadline == 1030
    assert type(timed_out(timeouts)) is errors.IdleTimeoutError


def test_the_total_bounds_the_whole_attempt():
    """An answer that keeps coming ends at total_timeout, if there is one."""
    timeouts = timeouts_for(GENERATE, Timeouts(first_token=900, idle=120, total=100), now=0)

    assert timeouts.deadline == 100
    timeouts.received(1, 90)
    assert timeouts.deadline == 100
    assert type(timed_out(timeouts)) is errors.TotalTimeoutError
    assert not timed_out(timeouts).retryable


def test_an_embedding_has_to_be_worked_for_as_well():
    """It queues and loads like a generation."""
    assert timeouts_for(EmbedRequest(model="m", input="a"), TIMEOUTS, now=0).deadline == 900


@pytest.mark.parametrize(
    ("request_", "seconds"), [(VersionRequest(), 30), (TagsRequest(), 30), (CreateRequest(model="m"), 3600)]
)
def test_what_no_model_works_on_has_a_timeout_of_its_own(request_, seconds):
    """Metadata comes soon or never, whatever the timeouts of generation are."""
    timeouts = timeouts_for(request_, Timeouts(first_token=1, idle=1, total=1), now=0)

    assert timeouts.deadline == seconds
    timeouts.received(1, 5)
    assert timeouts.deadline == seconds + 5
    assert type(timed_out(timeouts)) is errors.ResponseTimeoutError
    for now in range(5, int(4 * seconds), 5):
        timeouts.received(1, now)
    assert timeouts.deadline == 4 * seconds
    assert "not complete" in str(timed_out(timeouts))


@pytest.mark.parametrize("kind", [PullRequest, PushRequest])
def test_a_pull_may_take_for_ever_as_long_as_it_moves(kind: type[Request]):
    """Neither total_timeout nor idle_timeout ends a pull; lines without a byte more do."""
    timeouts = timeouts_for(kind(model="m"), Timeouts(total=1, idle=1, pull_stall=300), now=0)
    line = {"status": "pulling 0123", "digest": "sha256:0123", "total": 10**9}

    timeouts.decoded({**line, "completed": 1000}, 100)
    assert timeouts.deadline == 400
    for now in range(101, 399):
        timeouts.received(1, now)
        timeouts.decoded({**line, "completed": 1000}, now)
    assert timeouts.deadline == 400
    error = timed_out(timeouts)
    assert type(error) is errors.PullStalledError
    assert "pulling 0123" in str(error)


def test_drops_prolong_nothing_for_ever():
    """A part of the answer has to be whole within ten times the idle timeout, whatever the total is."""
    timeouts = timeouts_for(GENERATE, TIMEOUTS, now=0)
    for now in range(0, 1200, 100):
        timeouts.received(1, now)
    assert timeouts.deadline == 1200
    timeouts.decoded({"response": "a"}, 1150)
    timeouts.received(1, 1150)
    assert timeouts.deadline == 1150 + 120


def test_the_end_of_a_finished_answer_is_waited_for_a_moment():
    """Of a pull as well, which else may be silent for an hour."""
    for request, last in ((GENERATE, {"done": True}), (PullRequest(model="m"), {"status": "success"})):
        timeouts = timeouts_for(request, TIMEOUTS, now=0)
        timeouts.decoded(last, 100)
        assert timeouts.deadline == 105


def test_without_a_total_there_is_no_end():
    """The default is no bound of the whole: a long answer is none to be cut."""
    timeouts = timeouts_for(GENERATE, TIMEOUTS, now=0)
    for now in range(0, 10**6, 100):
        timeouts.received(1, now)
        timeouts.decoded({"response": "a"}, now)

    assert timeouts.deadline == 10**6 - 100 + 120
    assert timeouts.deadline < math.inf
