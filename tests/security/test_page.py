"""Canaries through the page in Airflow's UI: what its answers hold, and its log."""

import json

import airflow
import pytest

from ollama_provider.links import batch_page
from tests.airflow.conftest import (  # noqa: F401  # fixtures
    add_connection,
    airflow_db,
    no_settling,
    run_dag,
)
from tests.airflow.ui.conftest import api_server, browse, stored  # noqa: F401  # fixtures
from tests.security.canaries import ANSWER, HEADER, KEY, LOGIN, PASSWORD, PROMPT, found_in, logged
from tests.security.hostile import FAULTS, hostile, once_it_is_trusted

if airflow.__version__.startswith("2."):
    pytest.skip("this Airflow has no such page", allow_module_level=True)

SECRETS = {"login": LOGIN, "password": PASSWORD, "extra": f'{{"headers": {{"X-Api-Key": "{HEADER}"}}}}'}


@pytest.mark.parametrize("fault", FAULTS)
def test_servers_do_not_tell_what_was_sent(fault, stored, browse, debug_log):  # noqa: F811
    """Not even one that quotes it: whoever may read connections may not read their passwords."""
    with hostile(FAULTS[fault]) as server:
        stored("test_canary", host=f"{server.url}, 127.0.0.1:9", **SECRETS)
        answers = [browse(f"/ollama/servers{path}", "op") for path in ("", "/test_canary/test")]
        assert any(HEADER in seen.head for seen in server.seen)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert "cannot be used" in answers[0].text
    assert found_in("".join(f"{answer.text}{answer.headers}" for answer in answers)) == []
    assert logged(debug_log.records) == set()


def test_a_connection_that_is_not_valid_neither(stored, browse, debug_log):  # noqa: F811
    """The texts name the field, and no value that may be a secret."""
    odd = (
        {"host": f"http://{LOGIN}:{PASSWORD}@gpu1"},
        {"extra": f'{{"key": "{KEY}"}}'},
        {"extra": f'{{"headers": "{KEY}"}}'},
    )
    for number, fields in enumerate(odd):
        stored(f"test_canary_{number}", **{"host": "gpu1"} | fields)

    answers = [
        browse(f"/ollama/servers{path}", "op") for path in ("", *(f"/test_canary_{number}/test" for number in range(3)))
    ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[0].text.count("reason failed") == 3
    assert found_in("".join(answer.text for answer in answers)) == []
    assert logged(debug_log.records) == set()


_DAG = """
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import FailurePolicy
from ollama_provider.operators import OllamaBatchOperator
with DAG("canaries", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(
        task_id="answers", model="llama3.2", rows="file://{folder}/rows.jsonl", output_path="file://{folder}/out",
        resume="one", failures=FailurePolicy(max_failed_ratio=1.0, retry_delay=0.0, max_attempts=1), auto_pull=False,
    )
"""


@pytest.fixture
def pages(run_dag, add_connection, browse, tmp_path, no_waits):  # noqa: F811
    """Return a function that runs a batch with a canary in its rows, and gets all pages of it."""

    def run(url: str) -> dict[str, str]:
        (tmp_path / "rows.jsonl").write_text(f'{{"text": {json.dumps(PROMPT)}}}\n')
        add_connection(host=url, **SECRETS)
        done = run_dag(_DAG.format(folder=tmp_path))
        batch = "/" + batch_page(done.dag_id, done.run_id, "answers", -1)
        paths = {"list": "/ollama/", "report": batch}
        paths |= {name: f"{batch}/{name}" for name in ("rows/good", "rows/failed", "files/results", "files/failed")}
        answers = {name: browse(path) for name, path in (paths | {"files/summary": f"{batch}/files/summary"}).items()}
        return {name: f"{answer.text}{answer.headers}" for name, answer in answers.items() if answer.status_code == 200}

    return run


def test_a_batch_shows_answers_and_no_prompts(pages, ollama, debug_log):
    """Answers are where answers are asked for; prompts and secrets are nowhere."""
    ollama.stand_in.script(ANSWER, always=True)

    found = {name: found_in(text) for name, text in pages(ollama.url).items()}

    assert found == {
        "list": [], "report": ["answer"], "rows/good": ["answer"], "rows/failed": [], "files/results": ["answer"],
        "files/failed": [], "files/summary": [],
    }  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_batch_of_a_server_that_quotes(fault, pages, debug_log):
    """Its errors are cleaned before they are stored. A broken answer may be shown as the raw reply that it is."""
    with hostile(once_it_is_trusted(FAULTS[fault])) as server:
        answers = pages(server.url)

    assert len(answers) >= 2
    for name, text in answers.items():
        assert set(found_in(text)) <= {"answer"}, name
