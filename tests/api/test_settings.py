"""Settings are one validated value, and say which field is wrong."""

import pytest
from pydantic import ValidationError

from ollama_provider.api.settings import Settings, Timeouts


@pytest.mark.parametrize("url", ["gpu1:11434", "ftp://gpu1", "http://", "http://me:secret@gpu1:11434", ""])
def test_a_base_url_is_a_whole_one_without_credentials(url):
    """What would fail at every request fails at once, and a password in it is not quoted."""
    with pytest.raises(ValidationError, match="base_url") as raised:
        Settings(base_url=url)

    assert "secret" not in str(raised.value)


def test_a_slash_at_the_end_does_not_double():
    """Ollama redirects `//api/chat`, and a redirect turns POST into GET."""
    assert Settings(base_url="http://gpu1:11434/ollama/").base_url == "http://gpu1:11434/ollama"


def test_secrets_are_not_shown():
    """Neither repr nor str tells a password or the value of a header."""
    settings = Settings(login="me", password="secret", headers={"X-Key": "secret"})

    assert "secret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "fields",
    [{"timeouts": {"idle": 0}}, {"timeouts": {"total": -1}}, {"max_attempts": 0}, {"max_attemps": 3}],
)
def test_a_wrong_value_is_refused(fields):
    """A time of nothing, no attempt at all, a misspelling."""
    with pytest.raises(ValidationError):
        Settings(**fields)


def test_patterns_may_stand_in_one_text():
    """As a connection's form gives them."""
    assert Settings(pull_allow="hf.co/ours/*, registry.example.com/*").pull_allow == (
        "hf.co/ours/*",
        "registry.example.com/*",
    )


def test_settings_are_a_value():
    """Equal fields are equal settings, and nobody changes them."""
    assert Settings(timeouts={"idle": 5}) == Settings(timeouts=Timeouts(idle=5))
    with pytest.raises(ValidationError):
        Settings().max_attempts = 1
