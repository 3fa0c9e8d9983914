"""Which of several servers a request goes to: decided by what was seen, without a network and without a clock."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_provider.api import errors
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.events import Call
from ollama_provider.api.routing import AVOIDED_SECONDS, DEFAULT_KEEP_ALIVE, LISTED_SECONDS, Routing, error_of_all
from ollama_provider.api.schemas import (
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    HeadBlobRequest,
    PsReply,
    PullRequest,
    PushRequest,
    ShowRequest,
    TagsRequest,
)

REFUSED = errors.UnreachableError("connection refused")


def a_call(model: str = "llama3.2", **fields) -> Call:
    return Call(GenerateRequest(model=model, prompt="hi", **fields), None)


def listing(*models: str) -> PsReply:
    return PsReply.model_validate({"models": [{"model": model} for model in models]})


def asked(routing: Routing, *loaded: tuple[str, ...], now: float = 0) -> Routing:
    """The routing after all servers have said which models are in their memory."""
    for server, models in enumerate(loaded):
        routing.listed(server, listing(*models), now)
    return routing


def test_with_nothing_known_the_order_is_that_of_the_connection():
    """Whoever writes the list says what is preferred."""
    assert Routing(3).order(a_call(), 0) == [0, 1, 2]


def test_the_server_with_the_model_in_memory_comes_first():
    """Loading takes longer than anything else; how the model's name is written does not count."""
    routing = asked(Routing(3), (), ("qwen3:latest",), ("llama3.2:latest",))

    assert routing.order(a_call("LLAMA3.2"), 1) == [2, 0, 1]
    assert routing.order(a_call("qwen3"), 1) == [1, 0, 2]
    assert routing.order(a_call("mistral"), 1) == [0, 1, 2]


def test_among_equals_the_one_with_the_fewest_requests_in_flight_comes_first():
    """Ours are counted; of others nothing is known."""
    routing = Routing(3)
    first, second, third = calls = a_call(), a_call(), a_call()
    for call in calls:
        routing.start(call)
    routing.begin(first, 0)
    routing.begin(second, 0)
    routing.begin(third, 1)

    assert routing.order(a_call(), 0) == [2, 1, 0]
    routing.end(third)
    assert routing.order(a_call(), 0) == [1, 2, 0]


def test_a_call_is_not_counted_against_its_own_server():
    """On its next attempt it would otherwise flee from itself."""
    routing = Routing(2)
    call = a_call()
    routing.begin(call, 0)

    assert routing.order(call, 0) == [0, 1]


def test_the_server_that_answered_has_the_model_for_its_keep_alive():
    """Without asking anybody."""
    routing = Routing(2)
    routing.answered(a_call(), 1, now=0)

    assert routing.order(a_call(), DEFAULT_KEEP_ALIVE - 1) == [1, 0]
    assert routing.to_ask(a_call(), DEFAULT_KEEP_ALIVE - 1) == []
    assert routing.order(a_call(), DEFAULT_KEEP_ALIVE + 1) == [0, 1]
    assert routing.to_ask(a_call(), DEFAULT_KEEP_ALIVE + 1) == [0, 1]


@pytest.mark.parametrize(
    ("keep_alive", "until"),
    [(60, 60), ("1m", 60), ("1h30m", 5400), ("1.5s", 1.5), (-1, 10**9), ("-1m", 10**9), (0, 0), ("0s", 0)],
)
def test_the_requests_keep_alive_counts(keep_alive, until):
    """Seconds, Go's durations, no limit, and at once."""
    routing = Routing(2)
    routing.answered(a_call(keep_alive=keep_alive), 1, now=0)

    assert routing.order(a_call(), until - 0.1 if until else 0.1) == ([1, 0] if until else [0, 1])
    if until < 10**9:
        assert routing.order(a_call(), until + 0.1) == [0, 1]


def test_servers_are_asked_only_if_nobody_is_known_to_have_the_model():
    """And not again for some seconds: a poll while a model is loaded or unloaded can crash a server."""
    routing = Routing(3)
    assert routing.to_ask(a_call(), 0) == [0, 1, 2]

    asked(routing, (), ("qwen3",), ())

    assert routing.to_ask(a_call(), 1) == []
    assert routing.to_ask(a_call(), LISTED_SECONDS + 1) == [0, 1, 2]
    assert routing.to_ask(a_call("qwen3"), 1) == []


def test_nobody_is_asked_while_another_call_loads_the_model():
    """It is on its way into the memory of that server."""
    routing = Routing(2)
    routing.begin(a_call(), 1)

    assert routing.to_ask(a_call(), 0) == []
    assert routing.to_ask(a_call("qwen3"), 0) == [0, 1]


def test_a_server_that_failed_is_not_asked():
    """Neither for the models in its memory nor, where only one is left, the other one."""
    routing = Routing(3)
    routing.failed(a_call(), 1, REFUSED, 0)
    assert routing.to_ask(a_call(), 1) == [0, 2]

    routing.failed(a_call(), 0, REFUSED, 0)
    assert routing.to_ask(a_call(), 1) == []


@pytest.mark.parametrize("request_", [TagsRequest(), ShowRequest(model="llama3.2")])
def test_a_request_that_no_model_works_on_asks_nobody(request_):
    """Any server can answer it."""
    assert Routing(2).to_ask(Call(request_, None), 0) == []


def test_a_model_that_left_the_memory_is_forgotten():
    """The list of the server counts more than what was to be expected."""
    routing = Routing(2)
    routing.answered(a_call(), 1, now=0)
    routing.listed(1, listing(), 1)

    assert routing.order(a_call(), 2) == [0, 1]


def test_a_list_does_not_shorten_what_is_known_to_be_longer():
    """The keep_alive of our own request is known, that of others is not."""
    routing = Routing(2)
    routing.answered(a_call(), 1, now=0)
    routing.listed(1, listing("llama3.2"), 1)

    assert routing.order(a_call(), DEFAULT_KEEP_ALIVE - 1) == [1, 0]


@pytest.mark.parametrize("answer", [REFUSED, errors.AuthenticationError("401"), errors.ResponseTimeoutError("x")])
def test_a_server_that_does_not_say_what_it_has_comes_last(answer):
    """It is slow or broken."""
    routing = Routing(2)

    assert routing.listed(0, answer, 0) is answer
    assert routing.order(a_call(), 1) == [1, 0]
    assert routing.order(a_call(), AVOIDED_SECONDS + 1) == [0, 1]


def test_a_server_too_old_to_say_what_it_has_is_as_good_as_others():
    """Before 0.1.38 there is no /api/ps."""
    routing = Routing(2)
    routing.listed(0, errors.EndpointNotFoundError("404"), 0)

    assert routing.order(a_call(), 1) == [0, 1]


SERVERS_FAULT = [
    REFUSED,
    errors.ConnectionBrokenError("x"),
    errors.OverloadedError("503"),
    errors.GatewayError("502"),
    errors.TLSError("x"),
    errors.AuthenticationError("401"),
    errors.NotOllamaError("x"),
    errors.QuotaError("402"),
]
MODELS_FAULT = [errors.ModelNotFoundError("404"), errors.BrokenModelError("x"), errors.OutOfMemoryError("x")]
REQUESTS_FAULT = [
    errors.BadRequestError("400"),
    errors.ContextLengthError("x"),
    errors.RunnerError("x"),
    errors.UnknownServerError("500"),
    errors.FirstTokenTimeoutError("x"),
    errors.IncompleteReplyError("x"),
    errors.ClientClosedError("x"),
]


@pytest.mark.parametrize("error", SERVERS_FAULT, ids=lambda error: type(error).__name__)
def test_a_server_that_failed_is_not_first_again_for_half_a_minute(error):
    """Even with the model in memory; and the next one is tried at once."""
    routing = asked(Routing(2), ("llama3.2",), ())

    assert routing.failed(a_call(), 0, error, 1)
    assert routing.order(a_call(), 1 + AVOIDED_SECONDS - 0.1) == [1, 0]
    assert routing.order(a_call("other"), 1 + AVOIDED_SECONDS - 0.1) == [1, 0]
    assert routing.order(a_call(), 1 + AVOIDED_SECONDS + 0.1) == [0, 1]


@pytest.mark.parametrize("error", MODELS_FAULT, ids=lambda error: type(error).__name__)
def test_a_server_that_lacks_a_model_is_as_good_for_others(error):
    """What it said was about this model."""
    routing = Routing(2)

    assert routing.failed(a_call(), 0, error, 0)
    assert routing.order(a_call(), 1) == [1, 0]
    assert routing.order(a_call("other"), 1) == [0, 1]


@pytest.mark.parametrize("error", REQUESTS_FAULT, ids=lambda error: type(error).__name__)
def test_what_the_request_is_to_blame_for_ends_the_attempt(error):
    """Another server would say the same, or is tried after the backoff."""
    routing = Routing(2)

    assert not routing.failed(a_call(), 0, error, 0)
    assert routing.order(a_call(), 1) == [0, 1]


def test_the_next_attempt_begins_at_another_server():
    """One that gave no answer, or a bad one, may do so again."""
    routing = Routing(3)
    call = a_call()
    routing.failed(call, 0, errors.FirstTokenTimeoutError("x"), 0)

    assert routing.order(call, 1) == [1, 2, 0]


def test_a_request_that_crashed_the_model_stays_on_that_server():
    """It must not crash one after another."""
    routing = Routing(3)
    call = a_call()
    routing.failed(call, 1, errors.RunnerError("x"), 0)

    assert routing.order(call, 1) == [1]
    assert routing.order(a_call(), 1) == [0, 1, 2]


def test_a_proxy_may_ask_for_more_time():
    """Retry-After counts where it is longer."""
    routing = Routing(2)
    routing.failed(a_call(), 0, errors.OverloadedError("429", retry_after=120), 0)

    assert routing.order(a_call(), 119) == [1, 0]
    assert routing.order(a_call(), 121) == [0, 1]


def test_an_answer_makes_good_for_a_failure():
    """The server is back."""
    routing = Routing(2)
    routing.failed(a_call(), 0, REFUSED, 0)
    routing.answered(a_call(), 0, 1)

    assert routing.order(a_call(), 2) == [0, 1]


def test_a_pulled_model_is_no_longer_missing():
    """The request that needs it goes there."""
    routing = Routing(2)
    call = a_call()
    for server in (0, 1):
        routing.failed(call, server, errors.ModelNotFoundError("404"), 0)
    assert routing.lacking(call) == 0

    routing.answered(Call(PullRequest(model="llama3.2"), None), 0, 1)

    assert routing.order(call, 2) == [0, 1]


def test_a_failed_pull_says_nothing_about_the_server():
    """The registry is elsewhere."""
    routing = Routing(2)
    routing.failed(a_call(), 0, errors.TransientPullError("x"), 0)

    assert routing.order(a_call(), 1) == [0, 1]


@pytest.mark.parametrize(
    "request_",
    [
        PullRequest(model="m"),
        PushRequest(model="m"),
        CreateRequest(model="m", from_="n"),
        CopyRequest(source="m", destination="n"),
        DeleteRequest(model="m"),
        HeadBlobRequest(digest="sha256:" + "0" * 64),
    ],
)
def test_what_is_about_the_disk_of_one_server_names_it(request_):
    """Nobody chooses for the user from which of them a model is deleted."""
    call = Call(request_, None)
    with pytest.raises(InvalidRequestError, match=r"has 2.*OllamaHook\(server=…\)"):
        Routing(2).start(call)

    Routing(1).start(call)
    routing = Routing(2)
    routing.start(call, only=1)
    assert routing.order(call, 0) == [1]


def test_the_error_of_all_names_each_and_what_it_said():
    """With the advice of each kind once, and the class that decides about a new attempt."""
    error = error_of_all(
        [
            ("http://gpu1:11434", errors.AuthenticationError("the server answers 401", status=401)),
            ("http://gpu2:11434", REFUSED),
            ("http://gpu3:11434", REFUSED),
        ],
        "llama3.2",
        may_pull=True,
    )

    assert type(error) is errors.UnreachableError
    assert str(error) == (
        "none of the 3 servers could answer: http://gpu1:11434: the server answers 401; "
        "http://gpu2:11434: connection refused; http://gpu3:11434: connection refused (model 'llama3.2'). "
        "Check login and password (or the API key) of the connection. "
        "Is the server running, and are host and port of the connection right?"
    )


@pytest.mark.parametrize(
    ("found", "may_pull", "lead"),
    [
        ([errors.ModelNotFoundError("404"), REFUSED], True, errors.ModelNotFoundError),
        ([errors.ModelNotFoundError("404"), REFUSED], False, errors.UnreachableError),
        ([errors.AuthenticationError("401"), errors.NotOllamaError("x")], True, errors.AuthenticationError),
        ([errors.TLSError("x"), errors.ModelNotFoundError("404")], True, errors.ModelNotFoundError),
        ([errors.OverloadedError("503"), REFUSED], True, errors.OverloadedError),
        ([REFUSED], True, errors.UnreachableError),
    ],
)
def test_the_error_of_all_is_the_one_that_can_be_helped(found, may_pull, lead):
    """By a pull, or by waiting."""
    failures = [(f"http://gpu{number}:1", error) for number, error in enumerate(found)]

    assert type(error_of_all(failures, "m", may_pull=may_pull)) is lead


def test_all_servers_have_to_be_waited_for_only_as_long_as_the_first_of_them_asks():
    """A wait is over when one of them can answer."""
    failures = [
        ("http://gpu1:1", errors.OverloadedError("429", retry_after=60)),
        ("http://gpu2:1", errors.OverloadedError("429", retry_after=20)),
    ]
    assert error_of_all(failures, "m", may_pull=True).retry_after == 20
    assert error_of_all([*failures, ("http://gpu3:1", REFUSED)], "m", may_pull=True).retry_after == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "answered", "failed", "listed", "wait"]),
            st.integers(0, 2),
            st.integers(0, 3),
            st.sampled_from([*SERVERS_FAULT, *MODELS_FAULT, *REQUESTS_FAULT]),
        ),
        max_size=40,
    )
)
def test_whatever_happens_every_server_is_in_the_order_once(steps):
    """No server is lost and none is tried twice in a round; nothing is kept of calls that have ended."""
    routing, now = Routing(3), 0.0
    calls = [a_call(), a_call(), a_call("qwen3"), Call(EmbedRequest(model="e", input=["x"]), None)]
    for call in calls:
        routing.start(call)
    for what, server, number, error in steps:
        match what:
            case "begin":
                routing.begin(calls[number], server)
            case "end":
                routing.end(calls[number])
                calls[number] = a_call()
                routing.start(calls[number])
            case "answered":
                routing.answered(calls[number], server, now)
            case "failed":
                routing.failed(calls[number], server, error, now)
            case "listed":
                routing.listed(server, listing("qwen3") if number else REFUSED, now)
            case "wait":
                now += 7 * number
        for call in calls:
            order = routing.order(call, now)
            assert tuple(order) in set(permutations(range(3))) or len(order) == 1
    for call in calls:
        routing.end(call)
    fresh = a_call("fresh")
    later = routing.order(fresh, now + 10_000)
    routing.end(fresh)

    assert later == [0, 1, 2]
    assert not routing._attempts
