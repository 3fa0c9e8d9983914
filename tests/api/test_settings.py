"""Settings are one validated value, and say which field is wrong."""

import pytest
from pydantic import ValidationError

from ollama_provider.api.settings import Settings, Timeouts


@pytest.mark.parametrize("url", ["gpu1:11434", "ftp://gpu1", "http://", ""])
def test_a_base_url_is_a_whole_one_without_credentials(url):
    """What would fail at every request fails at once."""
    with pytest.raises(ValidationError, match="base_url"):
        Settings(base_url=url)


@pytest.mark.parametrize("url", ["http://me:secret@gpu1:11434", "http://secret@[::1]", "http://me:1/secret@gpu1"])
def test_a_base_url_has_no_credentials(url):
    """The error says where they belong, and does not quote them."""
    with pytest.raises(ValidationError, match="Login and Password") as raised:
        Settings(base_url=url)

    assert "secret" not in f"{raised.value} {raised.value!r}"


def test_a_slash_at_the_end_does_not_double():
    """Ollama redirects `//api/chat`, and a redirect turns POST into GET."""
    assert Settings(base_url="http://gpu1:11434/ollama/").base_url == "http://gpu1:11434/ollama"


def test_secrets_are_not_shown():
    """Neither repr nor str tells a password or the value of a header."""
    settings = Settings(login="me", password="secret", headers={"X-Key": "secret"})

    assert "secret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "fields",
    [
        {"timeouts": {"idle": 0}}, {"timeouts": {"total": -1}}, {"max_attempts": 0}, {"max_attemps": 3},
        {"timeouts": {"connect": "inf"}}, {"timeouts": {"first_token": 1e10}}, {"max_retry_seconds": "nan"},
        {"options": {"temperature": "inf"}}, {"options": {"seed": 10**30}},
        {"keep_alive": "1" * 400}, {"keep_alive": "1" * 5000}, {"keep_alive": 1e10}, {"keep_alive": float("nan")},
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(fields):
    """A time of nothing or without an end, no attempt at all, a misspelling, numbers that neither JSON nor Go has."""
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


def test_one_server_has_the_settings_as_they_are():
    """Whoever goes through the servers does with one what was done before."""
    settings = Settings(base_url="http://gpu1:11434", max_attempts=2)

    assert settings.servers == (settings,)
    assert settings.urls == ("http://gpu1:11434",)


def test_several_servers_share_everything_but_the_url():
    """In the order in which they are preferred, each as if it were alone."""
    shared = {"login": "me", "password": "secret", "headers": {"X-Team": "data"}, "max_attempts": 2}
    settings = Settings(base_url="http://gpu1:1", other_urls=["http://gpu2:2/", "https://gpu3:3/base"], **shared)

    assert settings.urls == ("http://gpu1:1", "http://gpu2:2", "https://gpu3:3/base")
    assert settings.servers == tuple(Settings(base_url=url, **shared) for url in settings.urls)


@pytest.mark.parametrize("url", ["gpu2:11434", "http://me:secret@gpu2:11434"])
def test_the_urls_of_further_servers_are_checked_as_the_first(url):
    """Whole ones, without credentials."""
    with pytest.raises(ValidationError, match="other_urls") as raised:
        Settings(other_urls=[url])

    assert "secret" not in str(raised.value)


def test_a_server_is_named_once():
    """It would get the share of two."""
    with pytest.raises(ValidationError, match="named once"):
        Settings(base_url="http://gpu1:1", other_urls=["http://gpu2:1", "http://gpu1:1/"])
