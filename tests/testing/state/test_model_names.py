"""Model names are parsed as the server does."""

import pytest

from ollama_provider.testing.state.model_names import parse


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("llama2", "llama2:latest"),
        ("library/llama2", "llama2:latest"),
        ("registry.ollama.ai/library/llama2:latest", "llama2:latest"),
        ("https://registry.ollama.ai/library/llama2", "llama2:latest"),
        (" llama3.2:3b ", "llama3.2:3b"),
        ("user/m", "user/m:latest"),
        ("hf.co/a/b", "hf.co/a/b:latest"),
        ("localhost:5000/a/b:q4", "localhost:5000/a/b:q4"),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
        ("gpt-oss:cloud", "gpt-oss:cloud"),
        ("m:local", "m:latest"),
    ],
)
def test_names_are_completed(text: str, short: str) -> None:
    """Host, namespace and tag have defaults; the short form leaves the first two out when they are the default."""
    assert parse(text).short == short


@pytest.mark.parametrize(
    "text", ["", "a b", "m@sha256:1", "a/b/c/d", "a/b.c/d", "m:", ":t", "m/", "a:b:c", "-m", "m" * 81]
)
def test_invalid_names(text: str) -> None:
    """Blanks, digests, four parts, dotted namespaces, empty parts, two tags."""
    assert parse(text) is None


def test_names_are_compared_without_case() -> None:
    """The name keeps its case, its key is in lower case."""
    assert parse("LLaMA2:Latest").key == parse("llama2").key
    assert parse("LLaMA2").model == "LLaMA2"
    assert parse("llama3.2").key != parse("llama3.2:3b").key
    assert parse("hf.co/a/b").key != parse("huggingface.co/a/b").key
