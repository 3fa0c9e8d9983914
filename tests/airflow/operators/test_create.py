"""OllamaCreateModelOperator, run by Airflow against the stand-in."""

import hashlib
from dataclasses import replace

import pytest

from ollama_provider.testing import CutUpload, Fail, Ordinary, StandIn

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

VARIANT = """
OllamaCreateModelOperator(
    task_id='t', model='nightly', from_='llama3.2', retries=3,
    system='Be brief.', parameters={'temperature': '0', 'num_ctx': 8192, 'stop': ['END', 'a "b" é']},
)
"""
NOTHING = "Model nightly exists, nothing has changed"


def paths(stand_in: StandIn) -> list[str]:
    return [seen.path for seen in stand_in.requests]


@pytest.fixture
def weights(tmp_path):
    """A GGUF file of a few megabytes."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 20_000)
    return path


def digest_of(path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_variant_is_created_once(run_task, ollama):
    """The second run changes nothing, and logs that."""
    first = run_task(VARIANT)
    made = ollama.stand_in.model("nightly")
    second = run_task(VARIANT)

    assert (first.state, second.state) == ("success", "success")
    assert first.value == {
        "model": "nightly:latest",
        "digest": made.digest,
        "size": first.value["size"],
        "created": True,
    }
    assert first.value["size"] > 0
    assert (made.system, made.parameters["temperature"], made.parameters["num_ctx"]) == ("Be brief.", 0, 8192)
    assert "Model nightly was created" in first.log
    assert "nightly: success" in first.log
    assert second.value == {**first.value, "created": False}
    assert NOTHING in second.log
    assert paths(ollama.stand_in).count("/api/create") == 1


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("system='Be long.'", "system"),
        ("parameters={'temperature': 1}", "parameters"),
        ("template='{{ .Prompt }} END'", "template"),
        ("messages=[{'role': 'user', 'content': 'q'}]", "messages"),
        ("license='Ours'", "license"),
        ("quantize='q4_K_M'", "quantize"),
    ],
)
def test_a_changed_field_is_named_and_the_model_recreated(run_task, ollama, argument, field):
    """A model that differs from the arguments is recreated, once."""
    task = "OllamaCreateModelOperator(task_id='t', model='nightly', from_='llama3.2', {})"
    ollama.stand_in.install(replace(ollama.stand_in.model("llama3.2"), quantization_level="F16"))
    run_task(task.format(""))

    changed, again = run_task(task.format(argument)), run_task(task.format(argument))

    assert changed.value["created"] is True
    assert f"Model nightly was recreated: {field} changed" in changed.log
    assert again.value["created"] is False


def test_new_weights_of_the_base_are_noticed(run_task, ollama):
    """The base was pulled again, so the variant is no longer made of it."""
    run_task(VARIANT)
    ollama.stand_in.retag("llama3.2")

    ran = run_task(VARIANT)

    assert ran.value["created"] is True
    assert "from changed" in ran.log


def test_a_missing_base_is_pulled(run_task, ollama):
    """With progress in the log, and before anything is created."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task(VARIANT)

    assert ran.state == "success"
    assert "llama3.2: success, 100 % of" in ran.log
    assert paths(ollama.stand_in).index("/api/pull") < paths(ollama.stand_in).index("/api/create")


def test_a_missing_base_is_not_pulled_unless_allowed(run_task, ollama):
    """The server itself would pull it when asked to create, so it is not asked."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task(VARIANT.replace("retries=3", "retries=3, auto_pull=False"))

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "the server does not have the model, and auto_pull is off" in ran.log
    assert ollama.stand_in.downloads == {}
    assert not {"/api/create", "/api/pull"} & set(paths(ollama.stand_in))


def test_another_registry_is_not_contacted_unless_allowed(run_task, ollama):
    """The host in a name is one that the server would talk to."""
    ran = run_task(VARIANT.replace("'llama3.2'", "'evil.example/a/b'"))

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "pull_allow" in ran.log
    assert "/api/create" not in paths(ollama.stand_in)


def test_files_are_uploaded_once(run_task, ollama, weights):
    """By their digest: the second run sends nothing and creates nothing."""
    task = f"OllamaCreateModelOperator(task_id='t', model='own', files='{weights}', system='Hello.')"

    first, second = run_task(task), run_task(task)

    assert (first.value["created"], second.value["created"]) == (True, False)
    assert "tiny.gguf: uploaded, 5.1 MB" in first.log
    assert [(seen.method, seen.path) for seen in ollama.stand_in.requests if "blobs" in seen.path] == [
        ("HEAD", f"/api/blobs/{digest_of(weights)}"),
        ("POST", f"/api/blobs/{digest_of(weights)}"),
    ]
    created = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/create")
    assert created["files"] == {"tiny.gguf": digest_of(weights)}


def test_an_interrupted_upload_is_retried(run_task, ollama, weights):
    """In the middle of the bytes, and in the same task."""
    ollama.stand_in.script(CutUpload(after=1_000_000), path="blobs")

    ran = run_task(f"OllamaCreateModelOperator(task_id='t', model='own', files='{weights}')")

    assert ran.state == "success"
    assert "attempt 1 failed" in ran.log


def test_the_next_try_sends_only_what_is_not_there(run_task, ollama, add_connection, weights, tmp_path):
    """Of two files one arrived before the connection broke; the task's next try sends the other."""
    add_connection(host=ollama.url, extra={"max_attempts": 1})
    other = tmp_path / "second.gguf"
    other.write_bytes(b"GGUF!")
    ollama.stand_in.script(Ordinary(), CutUpload(after=1), path="blobs")

    ran = run_task(f"OllamaCreateModelOperator(task_id='t', model='own', files=['{weights}', '{other}'], retries=1)")

    assert (ran.state, ran.tries) == ("success", 2)
    assert "tiny.gguf: already on the server" in ran.log
    posts = [seen.path for seen in ollama.stand_in.requests if (seen.method, "blobs" in seen.path) == ("POST", True)]
    assert posts == [f"/api/blobs/{digest}" for digest in (digest_of(weights), digest_of(other), digest_of(other))]


def test_a_file_that_changes_during_the_upload_is_an_error(run_task, ollama, weights):
    """The server's check of the digest fails, and the text says what that means."""
    mismatch = 'digest mismatch, expected "sha256:1", got "sha256:2"'
    ollama.stand_in.script(Fail(mismatch, status=400), path="blobs")

    ran = run_task(f"OllamaCreateModelOperator(task_id='t', model='own', files='{weights}')")

    assert ran.state == "failed"
    assert "tiny.gguf changed while it was uploaded" in ran.log
    assert "/api/create" not in paths(ollama.stand_in)


def test_adapters_are_uploaded_and_compared(run_task, ollama, weights, tmp_path):
    """An adapter is a file like any other, and part of what the model is."""
    lora = tmp_path / "lora.gguf"
    lora.write_bytes(b"GGUF lora")
    task = f"OllamaCreateModelOperator(task_id='t', model='own', from_='llama3.2', adapters='{lora}')"

    first, second = run_task(task), run_task(task)
    lora.write_bytes(b"GGUF another")
    third = run_task(task)

    assert [ran.value["created"] for ran in (first, second, third)] == [True, False, True]
    assert "adapters changed" in third.log


def test_lists_that_templates_made_texts_of_are_lists_of_files(run_task, ollama, weights, tmp_path):
    """As they come out of other tasks."""
    lora = tmp_path / "lora.gguf"
    lora.write_bytes(b"GGUF lora")

    ran = run_task(
        """
        OllamaCreateModelOperator(
            task_id='t', model='own', files='{{ params.files }}', adapters='{{ params.adapters | tojson }}'
        )
        """,
        params={"files": [str(weights)], "adapters": [str(lora)]},
    )

    assert ran.state == "success"
    created = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/create")
    assert list(created["files"]) == ["tiny.gguf"]
    assert list(created["adapters"]) == ["lora.gguf"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "set either from_ (a model) or files"),
        ("from_='llama3.2', files='/nowhere.gguf'", "set either from_ (a model) or files"),
        ("files='/nowhere.gguf'", "files: there is no file /nowhere.gguf"),
        ("files=__file__.replace('.py', '.gguf')", "is not a GGUF file, despite its name"),
        ("files=['/a/x.gguf', '/b/x.gguf']", "files: there"),
        ("from_='llama3.2', parameters={'temprature': 0}", "did you mean 'temperature'?"),
        ("from_='llama3.2', messages=[{'content': 'q'}]", "messages.0.role: Field required"),
    ],
)
def test_what_cannot_be_right_fails_at_once(run_task, ollama, dags_folder, arguments, told):
    """Before anything is sent but a question."""
    (dags_folder / "dag_under_test.gguf").write_bytes(b"no GGUF")

    ran = run_task(f"OllamaCreateModelOperator(task_id='t', model='own', retries=3, **dict({arguments}))")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert not {"/api/create", "/api/pull"} & set(paths(ollama.stand_in))


def test_an_invalid_name_is_refused(run_task, ollama):
    """In the server's words, without a retry."""
    ran = run_task("OllamaCreateModelOperator(task_id='t', model='a:b:c', from_='llama3.2', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "'a:b:c' is not a model's name" in ran.log


def test_a_creation_that_fails_says_why(run_task, ollama):
    """The error comes in the stream, after a 200."""
    ollama.stand_in.script(Fail("unsupported model architecture"), path="create")

    ran = run_task(VARIANT)

    assert ran.state == "failed"
    assert "unsupported model architecture" in ran.log


def test_a_go_template_is_left_alone(run_task, ollama):
    """Its braces are the server's business: Airflow does not render them."""
    ran = run_task(VARIANT.replace("system=", "template='{{ .System }} {{ .Prompt }}', system="))

    assert ran.state == "success"
    assert ollama.stand_in.model("nightly").template == "{{ .System }} {{ .Prompt }}"
