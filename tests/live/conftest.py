"""A real server, named by OLLAMA_HOST, or else the stand-in; and a small model on it that works.

Nothing is pulled, and no model is changed but those that a test makes, which are gone in the end.
"""

import json
import os
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from ollama_provider.api.address import parse_address
from ollama_provider.api.client import Client
from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import (
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    LocalModel,
    Options,
    ShowReply,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.testing import serve
from ollama_provider.waiting import version_key

#: Short answers in a small context, the same in all tests: another context would load the model again.
OPTIONS = {"num_ctx": 2048, "num_predict": 8, "seed": 1, "temperature": 0}
#: How many models are tried until one works.
_TRIED = 8


def pytest_report_header() -> str:
    host = os.environ.get("OLLAMA_HOST")
    return f"Ollama: {parse_address(host)}" if host else "Ollama: the stand-in, since OLLAMA_HOST is not set"


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """The server's address."""
    if host := os.environ.get("OLLAMA_HOST"):
        yield parse_address(host)
    else:
        with serve() as server:
            yield server.url


@pytest.fixture(scope="session")
def settings(base_url: str) -> Settings:
    """Patient, without second attempts, and never pulling."""
    return Settings(base_url=base_url, auto_pull=False, max_attempts=1, timeouts=Timeouts(first_token=600))


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[Client]:
    """A client for the whole session."""
    with Client(settings) as client:
        yield client


@pytest.fixture(scope="session")
def options() -> Options:
    """Options of all requests; OLLAMA_TEST_OPTIONS adds to them (``{"num_thread": 1}`` on a busy machine)."""
    return Options(**OPTIONS, **json.loads(os.environ.get("OLLAMA_TEST_OPTIONS", "{}")))


@pytest.fixture(scope="session")
def since(client: Client) -> Callable[[str], None]:
    """Return a function that skips a test on servers older than a version."""
    found = client.send(VersionRequest()).version

    def check(version: str) -> None:
        if (version_key(found) or ()) < (version_key(version) or ()):
            pytest.skip(f"the server is {found}, and this holds since {version}")

    return check


def shown(client: Client, entry: LocalModel) -> ShowReply | None:
    """What the server says about a model, or nothing where it is broken."""
    try:
        return client.send(ShowRequest(model=entry.tag))
    except OllamaError:
        return None


def smallest(client: Client, capability: str, works: Callable[[str], object]) -> str:
    """The smallest model with a capability that is not broken."""
    tried = 0
    for entry in sorted(client.send(TagsRequest()).models, key=lambda entry: entry.size):
        about = shown(client, entry)
        if about is None or about.remote_model or capability not in (about.capabilities or ()):
            continue
        tried += 1
        try:
            works(entry.tag)
        except OllamaError:
            if tried == _TRIED:
                break
        else:
            return entry.tag
    pytest.skip(f"the server has no model with the capability {capability} that works; pull a small one")


@pytest.fixture(scope="session")
def model(client: Client, options: Options) -> str:
    """A small model that answers."""
    return smallest(
        client,
        "completion",
        lambda name: client.send(GenerateRequest(model=name, prompt="Hi", options=options, think=False)),
    )


@pytest.fixture(scope="session")
def embedding_model(client: Client) -> str:
    """A small model for vectors."""
    return smallest(client, "embedding", lambda name: client.send(EmbedRequest(model=name, input=["Hi"])))


@pytest.fixture
def fresh_name(client: Client) -> Iterator[str]:
    """The name of a model that is not there; what is made under it (or with ``-copy`` behind it) is deleted."""
    name = f"airflow-provider-ollama-test-{uuid4().hex[:8]}"
    yield name
    for made in (name, f"{name}-copy"):
        try:
            client.send(DeleteRequest(model=made))
        except OllamaError:
            continue
