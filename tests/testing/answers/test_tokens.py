"""The tokeniser."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.testing.answers.tokens import tokenise


@given(st.text())
def test_the_tokens_of_a_text_are_the_text(text: str) -> None:
    """The tokens joined are the text, so that a streamed answer is complete."""
    assert "".join(tokenise(text)) == text
