"""The payloads of deferred tasks: by file if a directory is configured, else refused before anything is sent."""

import json

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, ObjectStoragePath

from ollama_provider.api.errors import (
    ContextLengthError,
    IncompleteReplyError,
    InvalidRequestError,
    OllamaError,
    OverloadedError,
)
from ollama_provider.api.request_flow import inference_flow, run_flow
from ollama_provider.api.schemas import (
    ChatRequest,
    CopyRequest,
    EmbedRequest,
    GenerateReply,
    GenerateRequest,
    PullRequest,
)
from ollama_provider.operators import OllamaGenerateOperator
from ollama_provider.payloads import (
    ANSWERS_LIMIT,
    REQUEST_LIMIT,
    AnswerReader,
    AnswerWriter,
    PayloadStorageError,
    delete_payload,
    read_request,
    write_request,
)
from ollama_provider.testing import Answer
from tests.airflow.deferring import complete

LONG = "word " * 20_000
REQUESTS = [
    GenerateRequest(
        model="m", prompt="Größe \u2028 \x85", options={"stop": ["."], "seed": 1}, images=[b"\x89PNG"], keep_alive="5m"
    ),
    GenerateRequest(model="m", prompt="p", format={"type": "object", "properties": {}}, think="low", truncate=False),
    ChatRequest(model="m", messages=[{"role": "user", "content": "Hi", "images": [b"\x89PNG"]}], tools=[]),
    EmbedRequest(model="m", input=["a", "b"], dimensions=8),
    PullRequest(model="hf.co/a/b:Q4"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.path)
@pytest.mark.parametrize("large", [False, True])
def test_a_request_arrives_as_it_was_sent(request_, large, tmp_path, monkeypatch):
    """Every field of it, either way."""
    if large:
        monkeypatch.setattr("ollama_provider.payloads.REQUEST_LIMIT", 1)

    payload = json.loads(json.dumps(write_request(request_, str(tmp_path))))

    assert ("file" in payload) is large
    assert read_request(payload) == request_
    delete_payload(payload)
    assert list(tmp_path.iterdir()) == []


def test_a_request_of_the_wrong_kind_is_a_bug():
    """A trigger can send only some kinds of requests."""
    with pytest.raises(KeyError):
        read_request(write_request(CopyRequest(source="a", destination="b"), None))


def test_the_limit_counts_bytes_as_airflow_stores_them():
    """Six for a letter outside ASCII, and a quote within a string within a string is four."""
    most = "ä" * (REQUEST_LIMIT // 6 - 50)
    write_request(GenerateRequest(model="m", prompt=most), None)

    with pytest.raises(
        InvalidRequestError, match=r"request is \d+ kB of JSON.*48 kB at most.*\[ollama\] handover_path"
    ):
        write_request(GenerateRequest(model="m", prompt=most + "ä" * 50), None)


def test_answers_come_out_as_they_went_in():
    """Replies and errors, in their order; what an error says and decides is not lost."""
    too_long = ContextLengthError("too long", host="http://gpu1:11434", model="m", status=400)
    busy = OverloadedError("busy", retry_after=3.0, advice="Wait.")
    writer = AnswerWriter(None)
    writer.put(too_long)
    writer.put(GenerateReply(response="Größe \u2028 \x85\n", done=True, eval_count=3, context=[1, 2], new_field="kept"))
    writer.put(busy)
    request = REQUESTS[0]

    with AnswerReader(json.loads(json.dumps(writer.close()))) as reader:
        with pytest.raises(ContextLengthError) as caught:
            reader.send(request)
        reply = reader.send(request)
        with pytest.raises(OverloadedError) as caught_again:
            reader.send(request)

    assert caught.value.__dict__ == too_long.__dict__
    assert str(caught_again.value) == str(busy)
    assert caught_again.value.retry_after == 3
    assert (reply.text, reply.eval_count, reply.context) == ("Größe \u2028 \x85\n", 3, [1, 2])
    assert reply.model_extra == {"new_field": "kept"}


def test_every_error_can_be_stored_and_read():
    """A new class in the tree needs nothing here."""

    def tree(kind):
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    kinds = [kind for kind in tree(OllamaError) if kind.__module__ == "ollama_provider.api.errors"]
    for kind in kinds:
        writer = AnswerWriter(None)
        writer.put(kind("what", host="h"))
        with AnswerReader(writer.close()) as reader, pytest.raises(kind, match="what"):
            reader.send(REQUESTS[0])
    assert len(kinds) > 20


def test_large_answers_go_by_file(tmp_path):
    """From the first that is too much on, with all that came before; the worker removes the file."""
    writer = AnswerWriter(str(tmp_path / "new"))
    for number in range(3):
        writer.put(GenerateReply(response=f"{number}" * (ANSWERS_LIMIT // 2)))
    payload = writer.close()

    assert len(json.dumps(payload)) < 1000
    with AnswerReader(payload) as reader:
        replies = [reader.send(REQUESTS[0]) for _ in range(3)]
    assert [reply.text[0] for reply in replies] == ["0", "1", "2"]
    assert list((tmp_path / "new").iterdir()) == []


def test_large_answers_without_a_place_are_refused():
    """With the size, the bound, and what to set."""
    writer = AnswerWriter(None)

    with pytest.raises(
        InvalidRequestError, match=r"answer is \d+ kB of JSON.*256 kB at most.*\[ollama\] handover_path"
    ):
        writer.put(GenerateReply(response="0" * ANSWERS_LIMIT))


def test_a_file_that_is_not_there_says_what_must_be_shared(tmp_path):
    """A directory of the worker's own disk is the usual mistake."""
    payload = {"endpoint": "/api/generate", "file": str(tmp_path / "gone.json")}

    with pytest.raises(InvalidRequestError, match="the workers and the triggerer share"):
        read_request(payload)


@pytest.fixture
def unwritable(tmp_path):
    """A directory that cannot be made, since a file has its name."""
    (tmp_path / "payloads").write_text("")
    return str(tmp_path / "payloads")


def test_a_directory_that_cannot_be_written_is_named(unwritable):
    """With the system's words and what to do; for a request as for an answer."""
    large = GenerateRequest(model="m", prompt="x" * REQUEST_LIMIT)
    cause = rf"^{unwritable} cannot be written \(\w+: .*handover_path.*deferrable=False"

    with pytest.raises(PayloadStorageError, match=cause):
        write_request(large, unwritable)
    with pytest.raises(PayloadStorageError, match=cause):
        AnswerWriter(unwritable).put(GenerateReply(response="0" * ANSWERS_LIMIT))


class TestTask:
    def ask(self, **arguments):
        return complete(
            OllamaGenerateOperator(
                task_id="t", model="llama3.2", deferrable=True, options={"num_ctx": 65536}, **arguments
            )
        )

    def test_a_long_prompt_is_refused_before_anything_is_sent(self, ollama, ollama_conn):
        """No retry is wasted on it, and the text quotes none of it."""
        with pytest.raises(AirflowFailException, match=r"\[ollama\] handover_path") as caught:
            self.ask(prompt=LONG)

        assert "word" not in str(caught.value)
        assert not [seen for seen in ollama.stand_in.requests if seen.path == "/api/generate"]

    def test_a_long_answer_is_refused_with_what_to_set(self, ollama, ollama_conn):
        """Asking again would not make it shorter, so no retry."""
        ollama.stand_in.script(Answer("word " * 60_000))

        with pytest.raises(AirflowFailException, match=r"\[ollama\] handover_path"):
            self.ask(prompt="Tell me all.")

    def test_long_ones_go_by_file(self, ollama, ollama_conn, tmp_path, monkeypatch):
        """And nothing is left when the task is done."""
        monkeypatch.setenv("AIRFLOW__OLLAMA__HANDOVER_PATH", f"file://{tmp_path}/handover")
        ollama.stand_in.script(Answer("word " * 60_000))

        answer = self.ask(prompt=LONG)

        assert answer == "word " * 60_000
        assert ollama.stand_in.requests[-2].json["prompt"] == LONG
        assert list((tmp_path / "handover").iterdir()) == []

    @pytest.mark.parametrize("large", ["request", "answer"])
    def test_a_directory_that_cannot_be_written_fails_the_try(
        self, ollama, ollama_conn, unwritable, monkeypatch, large
    ):
        """In the worker or in the trigger; a retry may help, on another worker or when there is space."""
        monkeypatch.setenv("AIRFLOW__OLLAMA__HANDOVER_PATH", unwritable)
        if large == "answer":
            ollama.stand_in.script(Answer("word " * 60_000))

        with pytest.raises(AirflowException, match="payloads cannot be written") as caught:
            self.ask(prompt=LONG if large == "request" else "Tell me all.")

        assert not isinstance(caught.value, AirflowFailException)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("kept", [0, 1, 40, -3])
def test_an_answer_that_was_cut_short_is_an_error(ollama, ollama_conn, monkeypatch, tmp_path, kept):
    """An empty file is no answer of None, and half a line is no answer either; the next try asks again."""
    monkeypatch.setattr("ollama_provider.payloads.ANSWERS_LIMIT", 1)
    monkeypatch.setenv("AIRFLOW__OLLAMA__HANDOVER_PATH", str(tmp_path))
    close = AnswerWriter.close

    def cut(writer):
        payload = close(writer)
        written = (file := ObjectStoragePath(payload["file"])).read_bytes()
        file.write_bytes(written[:kept])
        return payload

    monkeypatch.setattr(AnswerWriter, "close", cut)

    with pytest.raises(AirflowException, match=r"is damaged or cut short.*next try sends the request again") as caught:
        complete(OllamaGenerateOperator(task_id="t", model="llama3.2", prompt="Why?", deferrable=True))

    assert not isinstance(caught.value, AirflowFailException)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["[]", "7", "{}", '{"reply": 7}', '{"error": {}}', '{"error": {"kind": "None", "what": ""}}']
)
def test_a_line_that_is_not_an_answer_is_an_error(line):
    """Whatever was written into its place."""
    with (
        AnswerReader({"body": line + "\n"}) as reader,
        pytest.raises(IncompleteReplyError, match="damaged or cut short"),
    ):
        reader.send(REQUESTS[0])


def test_the_end_of_an_iterator_is_no_end_of_a_conversation():
    """It was taken for one, with None as its result."""

    def send(_request):
        return next(iter(()))

    with pytest.raises(StopIteration):
        run_flow(inference_flow(REQUESTS[0], may_cut=False), send)
