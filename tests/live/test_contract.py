"""What we rely on a server for: the shapes of its answers, its errors, and what it does when we hang up."""

import json
import math
import os
import re
import threading
import time

import pytest

from ollama_provider.api.client import Client
from ollama_provider.api.errors import (
    BadRequestError,
    BlobNotFoundError,
    ClientClosedError,
    ContextLengthError,
    EndpointNotFoundError,
    ModelNotFoundError,
    PullError,
    PullNotAllowedError,
    UnsupportedError,
)
from ollama_provider.api.model_names import same_model
from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbedRequest,
    GenerateRequest,
    HeadBlobRequest,
    PsRequest,
    PullRequest,
    PushBlobRequest,
    ShowRequest,
    TagsRequest,
    VersionRequest,
)
from ollama_provider.waiting import version_key

NOBODY = "airflow-provider-ollama-test-nobody"
NOWHERE = "sha256:" + "1" * 64
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


#: Seconds. A real server, up to 0.24 at least, can crash if it is asked what is in its memory while it unloads a model.
POLL_INTERVAL = 2.0 if os.environ.get("OLLAMA_HOST") else 0.05


def loaded(client, model) -> bool:
    return any(same_model(entry.tag, model) for entry in client.send(PsRequest()).models)


def wait_until_gone(client, model) -> None:
    """A model leaves memory when it is idle, some time after the server has said so."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
        if not loaded(client, model):
            return
    pytest.fail(f"{model} is still in memory after a minute")


def unload(client, model) -> None:
    client.send(GenerateRequest(model=model, keep_alive=0))
    wait_until_gone(client, model)


def test_version(client):
    """A version that can be compared."""
    assert version_key(client.send(VersionRequest()).version)


def test_tags(client, model):
    """Name, digest, size and date of each model."""
    entry = next(entry for entry in client.send(TagsRequest()).models if entry.tag == model)

    assert re.fullmatch("[0-9a-f]{64}", entry.digest)
    assert entry.size > 0
    assert entry.modified_at.tzinfo is not None


def test_show(client, model, since):
    """Capabilities, context, template, and the files that a model is made of."""
    since("0.6.4")
    about = client.send(ShowRequest(model=model))

    assert "completion" in about.capabilities
    assert about.context_length > 0
    assert re.search(r"^FROM .*sha256-[0-9a-f]{64}$", about.modelfile, re.MULTILINE)


def test_generate(client, model, options):
    """The whole answer with its numbers; it ends where it was told to."""
    reply = client.send(GenerateRequest(model=model, prompt="Tell me a story.", options=options, think=False))

    assert reply.text
    assert reply.done
    assert reply.done_reason in {"stop", "length"}
    assert 0 < reply.eval_count <= options.num_predict
    assert reply.prompt_eval_count > 0
    assert reply.total_duration >= reply.eval_duration > 0


def test_stream(client, model, options):
    """Piece by piece, and only the last one is done."""
    request = ChatRequest(model=model, messages="Tell me a story.", options=options, think=False)
    with client.stream(request) as parts:
        found = list(parts)

    assert [part.done for part in found] == [False] * (len(found) - 1) + [True]
    assert all(part.message.role == "assistant" for part in found)
    assert found[-1].eval_count > 0


def test_format(client, model, options, since):
    """A schema is kept to."""
    since("0.5.0")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    more = options.model_copy(update={"num_predict": 200})

    reply = client.send(GenerateRequest(model=model, prompt="Is it?", format=schema, options=more, think=False))

    assert json.loads(reply.text)["ok"] in {True, False}


def test_a_prompt_over_the_context_is_refused_when_it_may_not_be_cut(client, model, options, since):
    """And cut when it may."""
    since("0.12.6")
    request = GenerateRequest(model=model, prompt="word " * 5000, options=options, think=False, truncate=False)

    with pytest.raises(ContextLengthError):
        client.send(request)
    assert client.send(request.model_copy(update={"truncate": None})).done


def test_tools(client, model, options):
    """They are taken by a model that has them, and refused by one that has not."""
    request = ChatRequest(model=model, messages="Weather in Paris?", tools=[TOOL], options=options, think=False)

    if "tools" in (client.send(ShowRequest(model=model)).capabilities or ()):
        assert client.send(request).done
    else:
        with pytest.raises(UnsupportedError):
            client.send(request)


def test_embed(client, embedding_model):
    """A vector for each text, in their order, all equally long, of length 1; the same text has the same vector."""
    texts = ["A cat sleeps.", "Stocks fell.", "A cat sleeps."]

    reply = client.send(EmbedRequest(model=embedding_model, input=texts))

    assert len(reply.embeddings) == 3
    assert len({len(vector) for vector in reply.embeddings}) == 1
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in reply.embeddings)
    assert math.dist(reply.embeddings[0], reply.embeddings[2]) < math.dist(reply.embeddings[0], reply.embeddings[1])


def test_a_model_for_vectors_does_not_answer(client, embedding_model):
    """And says so before it is loaded."""
    with pytest.raises(UnsupportedError):
        client.send(ChatRequest(model=embedding_model, messages="Hi"))


def test_load_and_unload(client, model, options):
    """A load ends when the model is in memory; an unload, some time after."""
    assert client.send(GenerateRequest(model=model, options=options, keep_alive="10m")).done_reason == "load"

    entry = next(entry for entry in client.send(PsRequest()).models if same_model(entry.tag, model))
    assert entry.size > 0
    assert entry.expires_at.tzinfo is not None

    assert client.send(GenerateRequest(model=model, keep_alive=0)).done_reason == "unload"
    wait_until_gone(client, model)


def test_create_copy_delete(client, model, fresh_name):
    """A variant shares its base's weights; a copy is the same model; what is deleted is gone."""
    variant = CreateRequest(model=fresh_name, from_=model, system="Be brief.", parameters={"temperature": 0.5})
    copy = f"{fresh_name}-copy"

    assert client.send(variant).done
    about = client.send(ShowRequest(model=fresh_name))
    assert about.system == "Be brief."
    assert re.search(r"^temperature +0.5$", about.parameters, re.MULTILINE)

    client.send(CopyRequest(source=fresh_name, destination=copy))
    digests = {entry.tag: entry.digest for entry in client.send(TagsRequest()).models}
    assert digests[f"{copy}:latest"] == digests[f"{fresh_name}:latest"]

    # The same recipe makes the same model.
    client.send(variant)
    again = {entry.tag: entry.digest for entry in client.send(TagsRequest()).models}
    assert again[f"{fresh_name}:latest"] == digests[f"{fresh_name}:latest"]

    for name in (fresh_name, copy):
        client.send(DeleteRequest(model=name))
        with pytest.raises(ModelNotFoundError):
            client.send(DeleteRequest(model=name))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (GenerateRequest(model=NOBODY, prompt="Hi"), PullNotAllowedError),
        (ChatRequest(model=NOBODY, messages="Hi"), PullNotAllowedError),
        (EmbedRequest(model=NOBODY, input=["Hi"]), PullNotAllowedError),
        (ShowRequest(model=NOBODY), ModelNotFoundError),
        (CopyRequest(source=NOBODY, destination=f"{NOBODY}-copy"), ModelNotFoundError),
        (DeleteRequest(model=NOBODY), ModelNotFoundError),
        (PullRequest(model=NOBODY), PullError),
        (HeadBlobRequest(digest=NOWHERE), BlobNotFoundError),
        (PushBlobRequest(digest=NOWHERE, size=5, source=lambda: [b"hello"]), BadRequestError),
    ],
    ids=lambda value: value.target if hasattr(value, "target") else None,
)
def test_what_is_not_there(client, request_, error):
    """Each endpoint has its own way to say so, and each is understood."""
    with pytest.raises(error):
        client.send(request_)


def test_a_wrong_base_path(settings):
    """It is told from a missing model."""
    wrong = settings.model_copy(update={"base_url": f"{settings.base_url}/nowhere"})

    with Client(wrong) as client, pytest.raises(EndpointNotFoundError):
        client.send(TagsRequest())


def test_hanging_up_ends_the_work(client, model, options):
    """A model that still worked for us would not leave memory."""
    long = options.model_copy(update={"num_predict": 100_000})
    with client.stream(GenerateRequest(model=model, prompt="Count.", options=long, think=False)) as parts:
        next(iter(parts))

    unload(client, model)


def test_closing_ends_a_wait(settings, client, model, options):
    """From another thread, at any time; and the server is free for others."""
    long = options.model_copy(update={"num_predict": 100_000})
    caught: list[BaseException] = []
    began = threading.Event()
    own = Client(settings)

    def ask() -> None:
        try:
            with own.stream(GenerateRequest(model=model, prompt="Count.", options=long, think=False)) as parts:
                for _ in parts:
                    began.set()
        except ClientClosedError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert began.wait(600)
    own.close()
    asking.join(60)

    assert not asking.is_alive()
    # A tiny model may have been done before.
    assert len(caught) <= 1
    unload(client, model)
