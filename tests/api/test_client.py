"""Both clients against a server that answers as Ollama does."""

from ollama_provider.api.events import CallEnded
from ollama_provider.api.schemas import ChatRequest, EmbedRequest, GenerateRequest, TagsRequest, VersionRequest


def test_the_pieces_of_an_answer_are_joined(on, ollama):
    """`send` returns the whole answer with the numbers of its last object."""
    ollama.stand_in.script("Rome is the capital.")

    (reply,) = on.send(GenerateRequest(model="llama3.2", prompt="Capital?"), base_url=ollama.url)

    assert reply.text == "Rome is the capital."
    assert reply.done
    assert reply.done_reason == "stop"
    assert reply.eval_count > 0


def test_a_stream_gives_the_pieces_as_they_come(on, ollama):
    """`stream` yields each object; together they are the answer, and the last one says done."""
    ollama.stand_in.script("Rome is the capital.")

    parts = on.stream(ChatRequest(model="llama3.2", messages="Capital?"), base_url=ollama.url)

    assert len(parts) > 1
    assert "".join(part.text for part in parts) == "Rome is the capital."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_one_client_serves_many_endpoints(on, ollama):
    """Requests of all kinds go through one client, each with its own reply."""
    version, tags, vectors = on.send(
        VersionRequest(),
        TagsRequest(),
        EmbedRequest(model="nomic-embed-text", input=["a", "b"]),
        base_url=ollama.url,
    )

    assert version.version == "0.24.0"
    assert {model.tag for model in tags.models} >= {"llama3.2:latest"}
    assert len(vectors.embeddings) == 2


def test_a_listener_hears_how_a_call_ended(on, ollama):
    """Each call is told once, with the server's numbers and without its texts."""
    on.send(GenerateRequest(model="llama3.2", prompt="hello"), base_url=ollama.url)

    (event,) = on.events
    assert isinstance(event, CallEnded)
    assert (event.path, event.model, event.error) == ("/api/generate", "llama3.2", None)
    assert event.metrics is not None
    assert event.metrics.eval_count > 0
    assert not hasattr(event.metrics, "response")
