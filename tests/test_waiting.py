"""Conditions that a sensor waits for: met, not yet met, or never met. Tested without network and clock."""

import pytest

from ollama_provider.api import errors
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas import PsReply, PsRequest, TagsReply, TagsRequest, VersionReply, VersionRequest
from ollama_provider.waiting import Condition, Never, NotYet, Ready, evaluate_error, version_key

DIGEST = "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72"


def tags(*names: str, digest: str = DIGEST) -> TagsReply:
    return TagsReply.model_validate({"models": [{"name": name, "model": name, "digest": digest} for name in names]})


def running(*names: str) -> PsReply:
    return PsReply.model_validate({"models": [{"name": name, "model": name} for name in names]})


@pytest.mark.parametrize(
    ("condition", "kinds"),
    [
        (Condition(), [TagsRequest]),
        (Condition(models=("llama3.2",)), [TagsRequest]),
        (Condition(min_version="0.6.4"), [TagsRequest, VersionRequest]),
        (Condition(loaded=("llama3.2",)), [TagsRequest, PsRequest]),
    ],
)
def test_asks_only_what_is_needed(condition, kinds):
    """A condition needs one request, and one more for each kind of fact that it is about."""
    assert [type(request) for request in condition.requests] == kinds


def test_a_server_that_answers_is_ready_when_nothing_more_is_wanted():
    """Without models or version, any reply of the server is enough."""
    assert Condition().evaluate([tags()]) == Ready("the server answers")


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("LLAMA3.2:3B", "llama3.2:3b"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2:latest", "llama3.2:latest"),
        ("hf.co/user/model", "hf.co/user/model:latest"),
        ("llama3.2:local", "llama3.2:latest"),
    ],
)
def test_names_are_compared_as_the_server_does(wanted, shown):
    """Default parts, upper and lower case, and `:local` at the end make no difference."""
    assert isinstance(Condition(models=(wanted,)).evaluate([tags(shown)]), Ready)


@pytest.mark.parametrize("shown", ["llama3.2:3b", "llama3:latest", "user/llama3.2:latest", "hf.co/u/llama3.2:latest"])
def test_a_similar_name_is_another_model(shown):
    """A prefix, another tag, another namespace or another registry is another model."""
    assert Condition(models=("llama3.2",)).evaluate([tags(shown)]) == NotYet("llama3.2:latest is not on the server")


def test_all_models_have_to_be_there_and_the_missing_ones_are_named():
    """One of three is not enough, and the reason names the other two."""
    verdict = Condition(models=("a", "b:7b", "c")).evaluate([tags("a:latest")])

    assert verdict == NotYet("b:7b is not on the server; c:latest is not on the server")


def test_a_cloud_model_counts_as_there():
    """It is never on the server's disk, so that waiting for it would never end."""
    assert isinstance(Condition(models=("gpt-oss:120b-cloud",)).evaluate([tags()]), Ready)


def test_a_name_that_only_the_server_understands_is_no_obstacle():
    """An installed model with an invalid name does not hide the wanted one."""
    assert isinstance(Condition(models=("llama3.2",)).evaluate([tags("weird name@!", "llama3.2:latest")]), Ready)


@pytest.mark.parametrize("wanted", [DIGEST, DIGEST[:12], DIGEST[:12].upper()])
def test_a_digest_wants_that_very_version(wanted):
    """The whole digest, or its first 12 digits as in `ollama list`, must be equal."""
    assert isinstance(Condition(models=(f"llama3.2@sha256:{wanted}",)).evaluate([tags("llama3.2:latest")]), Ready)


def test_another_digest_is_not_yet():
    """The sensor waits until the tag has the wanted digest, and the reason names both digests."""
    verdict = Condition(models=("llama3.2@sha256:" + "0" * 64,)).evaluate([tags("llama3.2:latest")])

    assert verdict == NotYet(f"llama3.2:latest is {DIGEST[:12]}, wanted is 000000000000")


@pytest.mark.parametrize(
    ("found", "wanted", "enough"),
    [
        ("0.6.4", "0.6.4", True),
        ("0.33.0", "0.6.4", True),
        ("0.6.3", "0.6.4", False),
        ("0.33.0-rc2", "0.33.0", False),
        ("0.33.0-rc10", "0.33.0-rc2", True),
        ("0.33.0", "0.33.0-rc2", True),
        ("0.9.6-custom-20250710", "0.9.6", True),
        ("1.0", "0.33.0", True),
        ("0.0.0", "0.33.0", True),
        ("", "0.6.4", False),
        ("unknown", "0.6.4", False),
    ],
)
def test_versions_are_compared_by_their_numbers(found, wanted, enough):
    """Versions are compared as numbers. A release candidate is older than its release; a source build is the newest."""
    verdict = Condition(min_version=wanted).evaluate([tags(), VersionReply(version=found)])

    assert isinstance(verdict, Ready if enough else NotYet)


def test_an_old_server_is_named_with_what_is_wanted():
    """The reason names both versions."""
    verdict = Condition(min_version="0.6.4").evaluate([tags(), VersionReply(version="0.5.1")])

    assert verdict == NotYet("the server is 0.5.1, wanted is 0.6.4 or later")


def test_a_model_on_the_disk_is_not_a_model_in_memory():
    """`loaded` checks the models in memory."""
    condition = Condition(loaded=("llama3.2",))

    assert condition.evaluate([tags("llama3.2:latest"), running()]) == NotYet("llama3.2:latest is not in memory")
    assert isinstance(condition.evaluate([tags("llama3.2:latest"), running("llama3.2:latest")]), Ready)


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ("two words",)},
        {"models": ("llama3.2@md5:123",)},
        {"models": ("llama3.2@sha256:abc",)},
        {"loaded": ("",)},
        {"min_version": "newest"},
    ],
)
def test_a_condition_that_can_never_be_true_is_refused(wrong):
    """An invalid name, digest or version is an error, not an endless wait."""
    with pytest.raises(InvalidRequestError):
        Condition(**wrong)


@pytest.mark.parametrize(
    "kind",
    [
        errors.UnreachableError,
        errors.FirstTokenTimeoutError,
        errors.TotalTimeoutError,
        errors.IncompleteReplyError,
        errors.OverloadedError,
        errors.GatewayError,
        errors.UnknownServerError,
    ],
)
def test_what_may_pass_is_waited_for(kind):
    """A server that is down, starting or busy may become ready."""
    assert evaluate_error(kind("no answer")) == NotYet(str(kind("no answer")))


@pytest.mark.parametrize(
    "kind",
    [
        errors.AuthenticationError,
        errors.EndpointNotFoundError,
        errors.NotOllamaError,
        errors.TLSError,
        errors.InvalidRequestError,
        errors.BadRequestError,
    ],
)
def test_what_a_person_has_to_change_is_never(kind):
    """Waiting for another password, path or certificate is useless."""
    assert evaluate_error(kind("no")) == Never(str(kind("no")))


def test_what_is_no_version_has_no_key():
    """Text without numbers cannot be compared."""
    assert version_key("newest") is None


READY, NOT_YET, NEVER = Ready("the server answers"), NotYet("connection refused"), Never("401")


@pytest.mark.parametrize(
    ("servers", "found", "verdict"),
    [
        ("any", [READY, NEVER, NOT_YET], Ready),
        ("any", [NOT_YET, NEVER, NEVER], NotYet),
        ("any", [NEVER, NEVER, NEVER], Never),
        ("all", [READY, READY, READY], Ready),
        ("all", [READY, READY, NOT_YET], NotYet),
        ("all", [READY, NOT_YET, NEVER], Never),
        (2, [READY, NEVER, READY], Ready),
        (2, [READY, NEVER, NOT_YET], NotYet),
        (2, [READY, NEVER, NEVER], Never),
        (1, [READY, NOT_YET, NEVER], Ready),
        (3, [READY, READY, NEVER], Never),
    ],
)
def test_the_verdict_on_several_servers(servers, found, verdict):
    """It waits as long as enough may still become ready, and tells of each what it said."""
    verdicts = {f"http://gpu{number}:1": each for number, each in enumerate(found, 1)}

    result = Condition(servers=servers).evaluate_servers(verdicts)

    assert type(result) is verdict
    text = result.summary if isinstance(result, Ready) else result.reason
    needed = {"any": 1, "all": 3}.get(servers, servers)
    assert text.startswith(f"{found.count(READY)} of 3 servers are ready, {needed} needed: http://gpu1:1: ")
    assert text.count("http://") == 3


@pytest.mark.parametrize("servers", ["any", "all", 1])
@pytest.mark.parametrize("verdict", [READY, NOT_YET, NEVER])
def test_the_verdict_on_one_server_is_its_own(servers, verdict):
    """With its own text."""
    assert Condition(servers=servers).evaluate_servers({"http://gpu1:1": verdict}) is verdict


def test_more_servers_than_there_are_is_useless():
    """Nobody waits for a server that the connection does not have."""
    result = Condition(servers=3).evaluate_servers(dict.fromkeys(["http://gpu1:1", "http://gpu2:1"], READY))

    assert result == Never("servers is 3, and the connection has 2")


@pytest.mark.parametrize("servers", [0, -1, True, "some", "", 1.5, None])
def test_a_wrong_number_of_servers_is_refused(servers):
    """With what is allowed."""
    with pytest.raises(InvalidRequestError, match="'any', 'all' or a number from 1 on"):
        Condition(servers=servers)
