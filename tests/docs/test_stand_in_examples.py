"""The examples of docs/howto/test-your-dags.md."""

# [start imports]
import pytest

from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, run_batch
from ollama_provider.hooks import OllamaHook
from ollama_provider.testing import Answer, Cut, Fail, Pace

# [end imports]


# [start script]
def test_the_prompt_names_the_document(ollama, ollama_conn):
    ollama.stand_in.script("It explains how to install.")

    answer = OllamaHook().generate("Summarise README.md", model="llama3.2").text

    assert answer == "It explains how to install."
    assert ollama.stand_in.requests[-1].json["prompt"] == "Summarise README.md"


# [end script]


# [start faults]
def test_a_bad_night(ollama, tmp_path):
    """The server is busy, then a connection breaks in the middle of an answer, then all is well."""
    ollama.stand_in.script(
        Fail("server busy, please try again.  maximum pending requests exceeded", status=503),
        (Answer("Rain fell and fell."), Pace(between_tokens=0.01), Cut(after=2)),
    )
    spec = BatchSpec(model="llama3.2", rows=["Rain fell.", "The sun shone."], prompt="Summarise: {{ row.text }}")

    summary = run_batch(spec, Settings(base_url=ollama.url), tmp_path)

    assert (summary.ok, summary.failed) == (2, 0)


# [end faults]


# [start servers]
@pytest.mark.ollama_servers({"parallel": 4}, {"parallel": 2})
def test_a_night_with_one_machine_down(ollama_servers, ollama_servers_conn, tmp_path):
    fast, slow = ollama_servers
    slow.stop()
    spec = BatchSpec(model="llama3.2", rows=["Rain fell.", "The sun shone."], prompt="Summarise: {{ row.text }}")

    summary = run_batch(spec, OllamaHook(ollama_servers_conn).settings, tmp_path)

    assert [(share.server, share.rows) for share in summary.servers] == [(fast.url, 2), (slow.url, 0)]


# [end servers]
