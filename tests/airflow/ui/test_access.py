"""Who may see the page."""

import pytest

from ollama_provider.links import batch_page

BATCH = "/" + batch_page("a_dag", "a_run", "a_task", -1)


@pytest.mark.parametrize("path", ["/ollama/", BATCH, "/ollama/static/page.css"])
def test_nobody_sees_it_who_is_not_logged_in(browse, path):
    """401, as for Airflow's own API, with a sentence for people."""
    answer = browse(path, "")

    assert answer.status_code == 401
    assert "Log in to Airflow" in answer.text


@pytest.mark.parametrize("path", ["/ollama/", BATCH])
def test_nobody_sees_it_who_has_no_rights(browse, path):
    """403: whoever may not read task instances sees no batch, and not whether there is one."""
    answer = browse(path, None)

    assert answer.status_code == 403
    assert "right to read" in answer.text


@pytest.mark.parametrize("role", ["viewer", "user", "op", "admin"])
def test_whoever_may_read_task_instances_sees_it(browse, role):
    """All roles of Airflow may read."""
    assert browse("/ollama/", role).status_code == 200
    assert browse(BATCH, role).status_code == 404  # there is none


@pytest.mark.parametrize(
    ("path", "status"), [("/ollama/", 200), ("/ollama/static/page.js", 200), (BATCH, 404), ("/ollama/nothing", 404)]
)
def test_an_answer_runs_no_script_but_ours(browse, path, status):
    """The policy allows neither inline script nor another host, and no frame but Airflow's."""
    answer = browse(path)

    assert answer.status_code == status
    policy = dict(each.strip().split(" ", 1) for each in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["frame-ancestors"] == "'self'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
