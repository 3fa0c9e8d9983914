"""Model names are read and compared as the server does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.model_names import ModelName, same_model


@pytest.mark.parametrize(
    "name",
    [
        "llama2",
        "llama2:latest",
        "LLAMA2",
        "  llama2 ",
        "library/llama2",
        "registry.ollama.ai/library/llama2:latest",
        "https://registry.ollama.ai/library/llama2:LATEST",
        "llama2:local",
        "llama2:latest:local",
    ],
)
def test_what_is_left_out_has_a_default(name):
    """Host, namespace and tag have defaults; letters' case, a scheme and `:local` do not count."""
    assert same_model(name, "llama2")
    assert hash(ModelName.parse(name)) == hash(ModelName.parse("llama2"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("llama3.2", "llama3.2:3b"),
        ("llama3", "llama3.2"),
        ("user/llama2", "llama2"),
        ("hf.co/a/b", "huggingface.co/a/b"),
        ("ollama.com/library/llama2", "llama2"),
        ("gpt-oss:cloud", "gpt-oss"),
    ],
)
def test_different_models_are_different(first, second):
    """Another tag, namespace or host is another model, whatever the names begin with."""
    assert not same_model(first, second)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("llama2", "llama2:latest"),
        ("registry.ollama.ai/library/Llama2:7B", "Llama2:7B"),
        ("registry.ollama.ai/user/m", "user/m:latest"),
        ("hf.co/a/b.gguf:Q4_K_M", "hf.co/a/b.gguf:Q4_K_M"),
        ("hf.co/library/b", "hf.co/library/b:latest"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss:cloud", "gpt-oss:cloud"),
    ],
)
def test_a_name_is_shown_as_the_server_shows_it(name, shown):
    """Defaults of host and namespace are left out, the tag is always there."""
    assert str(ModelName.parse(name)) == shown
    assert ModelName.parse(shown) == ModelName.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "a b",
        "m@sha256:0000",
        "a/b/c/d",
        "x/dotted.name/m",
        "dotted.name/m",
        "m:",
        ":t",
        "m/",
        "/m",
        "a:b:c",
        "m" * 81,
        "m:cloud:local",
        "m:7b-cloud:local",
        "-m",
    ],
)
def test_what_the_server_refuses_is_refused_here(name):
    """A name the server would answer 400 to is an error that says what a name looks like."""
    with pytest.raises(InvalidRequestError, match=r"\[host/\]\[namespace/\]model\[:tag\]"):
        ModelName.parse(name)


def test_a_long_text_in_place_of_a_name_is_not_quoted_whole():
    """A template gone wrong may give a document as the name; the error shows its beginning only."""
    with pytest.raises(InvalidRequestError) as raised:
        ModelName.parse("My secret diary. " * 100)

    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("gpt-oss:cloud", True),
        ("gpt-oss:20b-cloud", True),
        ("gpt-oss:20b:CLOUD", True),
        ("cloud", False),
        ("m:local", False),
    ],
)
def test_names_that_run_in_the_cloud_are_known(name, cloud):
    """`:cloud` and tags that end in `-cloud` send the prompt to ollama.com."""
    assert ModelName.parse(name).is_cloud is cloud


_PART = st.text("abcXYZ019_-.", min_size=1, max_size=8).map(lambda text: f"a{text}")


@given(model=_PART, tag=_PART, namespace=_PART.map(lambda text: text.replace(".", "")), host=_PART)
def test_every_name_survives_being_shown(model, tag, namespace, host):
    """What is shown is read as the same name again."""
    name = ModelName(model=model, tag=tag, namespace=namespace, host=host)

    assert ModelName.parse(str(name)) == name


_PIECES = st.sampled_from(
    ["a", "B2", "library", "hf.co", "latest", "-cloud", ":", "/", "cloud", "local", "://", ".", " ", "é", "\ud83d"]
)


@given(st.lists(_PIECES, max_size=9).map("".join) | st.text(max_size=400))
def test_any_text_is_a_name_or_is_refused_in_a_short_text(text):
    """A name is shown as the same name, however it was spelt, and refused texts are not quoted whole."""
    try:
        name = ModelName.parse(text)
    except InvalidRequestError as error:
        assert len(str(error)) < 1500
        return
    assert ModelName.parse(str(name)) == name
    assert same_model(text.swapcase(), text)
    assert hash(ModelName.parse(str(name).upper())) == hash(name)
