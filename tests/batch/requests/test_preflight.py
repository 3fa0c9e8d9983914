"""Checks of server and model before the first row."""

import pytest

from ollama_provider.api.errors import UnsupportedError
from ollama_provider.api.schemas import ShowReply, TagsReply
from ollama_provider.batch.errors import InputError, ModelChangedError
from ollama_provider.batch.requests import preflight

DIGEST = "fa0194e42b82" + "0" * 52


def test_a_model_with_and_without_digest():
    """The digest is split off, and only the name is sent."""
    assert preflight.split_model("llama3.2") == ("llama3.2", None)
    assert preflight.split_model("hf.co/u/m:Q4@sha256:FA0194E42B82") == ("hf.co/u/m:Q4", "fa0194e42b82")


@pytest.mark.parametrize("model", ["m@", "m@latest", "m@sha256:", "m@sha256:xyz", "m@sha256:12345"])
def test_an_invalid_digest_is_refused(model):
    """Five digits are too few to identify a model."""
    with pytest.raises(InputError, match="sha256"):
        preflight.split_model(model)


def test_the_digest_is_found_under_any_spelling_of_the_name():
    """Names are compared as the server does: case and the tag ``latest`` do not count."""
    tags = TagsReply.model_validate(
        {"models": [{"name": "other:latest", "digest": "1"}, {"model": "llama3.2:latest", "digest": DIGEST}]}
    )

    assert preflight.digest_of(tags, "Llama3.2") == DIGEST
    assert preflight.digest_of(tags, "llama3.2:1b") is None


def test_a_beginning_of_the_digest_is_enough():
    """The error for another digest shows both of them."""
    preflight.check_digest("m", DIGEST, None, "http://gpu")
    preflight.check_digest("m", DIGEST, DIGEST[:12], "http://gpu")
    with pytest.raises(ModelChangedError, match=rf"http://gpu has the digest {DIGEST}, not the demanded 000000"):
        preflight.check_digest("m", DIGEST, "000000", "http://gpu")
    with pytest.raises(ModelChangedError, match=r"\(none\)"):
        preflight.check_digest("m", None, "000000", "http://gpu")


def test_capabilities():
    """The error names what the model lacks. A server that is too old to list capabilities passes."""
    preflight.check_capabilities("m", ShowReply(capabilities=["completion", "vision"]), ["completion"], "http://gpu")
    preflight.check_capabilities("m", ShowReply(), ["completion", "thinking"], "http://gpu")
    with pytest.raises(UnsupportedError, match="lacks 'thinking'; it has completion, vision"):
        preflight.check_capabilities(
            "m", ShowReply(capabilities=["completion", "vision"]), ["completion", "thinking"], "http://gpu"
        )


@pytest.mark.parametrize(
    ("version", "refuses"),
    [("0.12.5", False), ("0.12.6", True), ("0.13.0-rc1", True), ("1.0.0", True), ("0.0.0", False), ("", False)],
)
def test_which_servers_refuse_long_prompts(version, refuses):
    """They do so since 0.12.6. For unknown versions the count of tokens is checked instead."""
    assert preflight.refuses_long_prompts(version) is refuses


def choose(prompts, *, parameters="", trained=131_072, system=None, num_predict=None):
    info = {"general.architecture": "llama", "llama.context_length": trained}
    show = ShowReply(parameters=parameters, model_info=info)
    return preflight.choose_num_ctx(prompts, system=system, num_predict=num_predict, show=show)


def test_the_context_fits_the_longest_prompt_of_the_sample():
    """It has room for the answer, and grows in steps, so that a little more text does not load the model again."""
    assert choose(["short"]) == 4096
    assert choose(["short", "x" * 30_000]) == 14_336
    assert choose(["short", "x" * 30_000], num_predict=8000) == 22_528
    assert choose(["short"], system="x" * 30_000) == 14_336
    assert choose(["ü" * 15_000]) == 14_336
    assert choose([]) == 4096


def test_the_context_is_bounded_by_what_the_model_was_trained_for():
    """It is never below the default of the model."""
    assert choose(["x" * 30_000], trained=8192) == 8192
    assert choose(["short"], trained=2048) == 2048
    assert choose(["short"], parameters='stop "x"\nnum_ctx                        16384\n') == 16_384
