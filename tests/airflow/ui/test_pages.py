"""The list of batches, and the page of one, over batches that have run."""

import re
from pathlib import Path

import pytest

from ollama_provider.links import batch_page


def path_of(run, task_id: str = "answers", map_index: int = -1) -> str:
    """The address of the page of a run's batch."""
    return "/" + batch_page(run.dag_id, run.run_id, task_id, map_index)


def texts(answer) -> str:
    """What a reader sees of a page: its text, without tags and on one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


def test_the_newest_batches_are_listed(run_batch, browse) -> None:
    """Each with where it stands, and a link to its page."""
    older, newer = run_batch("letters"), run_batch("parcels")

    page = browse("/ollama/")

    assert page.status_code == 200
    assert page.text.index(f'href="{path_of(newer)}"') < page.text.index(f'href="{path_of(older)}"')
    assert re.search(r"parcels / answers .* 5 of 5 1 [\d.]+ success", texts(page))
    assert "data-live" not in page.text


def test_a_user_sees_the_batches_of_the_dags_that_he_may_read(run_batch, browse) -> None:
    """A right on one DAG shows its batches, and nothing of others: neither in the list nor by their address."""
    mine, other = run_batch("letters"), run_batch("parcels")

    listed = browse("/ollama/", user="only letters").text

    assert path_of(mine) in listed
    assert "parcels" not in listed
    assert browse(path_of(mine), user="only letters").status_code == 200
    refused = browse(path_of(other), user="only letters")
    assert (refused.status_code, "Parcel" in refused.text) == (403, False)


def test_the_page_of_a_batch_is_its_report(run_batch, browse, tmp_path: Path) -> None:
    """As it is in the directory, with the way to the rows, the files and the task instance."""
    run = run_batch()

    page = browse(path_of(run))

    assert page.status_code == 200
    assert "1 of 5 rows failed" in texts(page)
    assert f"{tmp_path}/parcels/one" in texts(page)
    assert "&lt;script&gt;alert(&#39;error&#39;)" in page.text
    assert re.findall(r"<(?:script|style)[^>]*>", page.text) == ['<script src="/ollama/static/page.js?0.1.0">']
    assert not re.search(r"<[^>]* style=", page.text)
    for link in ("rows/failed", "rows/good", "files/results", "files/failed", "files/summary"):
        assert f'href="{path_of(run)}/{link}"' in page.text
    task = f"/dags/parcels/runs/{run.run_id.replace(':', '%3A').replace('+', '%2B')}/tasks/answers"
    assert f'href="{task}"' in page.text


@pytest.mark.parametrize(
    ("mode", "told", "section", "text"),
    [
        ("Rehearsal(sample=3)", "3 asked of 4 all take ", "rehearsal", "3 of 4 rows were asked beforehand."),
        (
            'Rehearsal(sample=3, models=["llama3.2", "qwen3"])',
            "6 asked of 4 compared: llama3.2, qwen3",
            "comparison",
            "3 of 4 rows were asked of each.",
        ),
    ],
)
@pytest.mark.parametrize("is_readable", [True, False])
def test_a_rehearsal_has_a_page_too(
    run_dag, ollama_conn, browse, tmp_path: Path, mode: str, told: str, section: str, text: str, *, is_readable: bool
) -> None:  # fmt: skip
    """It looks like no batch of which most is missing: it has no bar, and its page begins with what it has found."""
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import Rehearsal
from ollama_provider.operators import OllamaBatchOperator
with DAG("rehearsed", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator(
        task_id="answers", model="llama3.2", rows=["Rain.", "Snow.", "Hail.", "Fog."], mode={mode},
        output_path="file://{tmp_path}/out", resume="one",
    )
""")
    if not is_readable:
        (tmp_path / "out").rename(tmp_path / "on another machine")

    listed, page = browse("/ollama/"), browse(path_of(run))

    assert (listed.status_code, page.status_code) == (200, 200)
    (row,) = (row for row in re.findall("<tr>.*?</tr>", listed.text, re.DOTALL) if path_of(run) in row)
    assert told in " ".join(re.sub("<[^>]*>", " ", row).split())
    assert "<svg" not in row
    assert ">rehearsed<" in row
    if is_readable:
        assert "Rehearsed 3 of 4 rows asked" in texts(page)
        assert page.text.index(f'id="{section}"') < page.text.index('id="numbers"')
        assert text in texts(page)
    else:
        assert told in texts(page)
        assert "<svg" not in page.text


def test_a_rehearsal_and_its_night_share_a_report(run_dag, ollama_conn, browse, tmp_path: Path) -> None:
    """On the rehearsal's page it begins with what the rehearsal has found."""
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaBatchOperator
with DAG("rehearsed_night", schedule=None, start_date=datetime(2026, 1, 1)):
    batch = {{"model": "llama3.2", "rows": ["Rain.", "Snow."], "output_path": "file://{tmp_path}/out", "resume": "one"}}
    rehearsal = OllamaBatchOperator(task_id="rehearsal", mode="rehearse", **batch)
    rehearsal >> OllamaBatchOperator(task_id="night", **batch)
""")

    pages = [browse(path_of(run, task_id)) for task_id in ("rehearsal", "night")]

    for page in pages:
        assert "Complete All 2 rows have a good answer" in texts(page)
        assert page.text.count('id="rehearsal"') == 1
    assert [page.text.index('id="rehearsal"') < page.text.index('id="numbers"') for page in pages] == [True, False]


def test_a_mapped_batch_has_a_page_for_each_index(run_dag, ollama_conn, browse, tmp_path: Path) -> None:
    """The index is the last part of the address."""
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaBatchOperator
with DAG("mapped", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaBatchOperator.partial(
        task_id="answers", model="llama3.2", rows=["Rain."], output_path="file://{tmp_path}/out", resume="one"
    ).expand(system=["One.", "Two."])
""")

    for number in range(2):
        assert f"{tmp_path}/out/one/{number}" in texts(browse(path_of(run, map_index=number)))
    assert browse(path_of(run)).status_code == 404
    assert browse(path_of(run, map_index=2)).status_code == 404


@pytest.mark.parametrize("remove", ["the directory", "the right to read"])
def test_a_directory_that_cannot_be_read_is_said_in_a_sentence(run_batch, browse, tmp_path: Path, remove) -> None:
    """With what to do. The numbers of the summary are shown all the same, in the list as well."""
    run = run_batch()
    directory = tmp_path / "parcels/one"
    if remove == "the directory":
        directory.rename(tmp_path / "on another machine")
    else:
        (directory / "report.json").unlink()
        (directory / "report.json").mkdir()  # root may read all files, but nobody reads a folder

    page, listed = browse(path_of(run)), browse("/ollama/")

    assert page.status_code == 200
    assert str(directory) in texts(page)
    assert "API server" in texts(page)
    assert "Rows 5 Good 4 Failed 1" in texts(page)
    assert "5 of 5" in texts(listed)


@pytest.mark.parametrize("content", [None, "", "{", '{"state": "complete"}', '["<script>"]'])
def test_without_a_report_there_are_the_numbers(run_batch, browse, tmp_path: Path, content) -> None:
    """A run that was killed early has none, and one of another version may be none for us."""
    run = run_batch()
    report = tmp_path / "parcels/one/report.json"
    report.unlink() if content is None else report.write_text(content)

    page = browse(path_of(run))

    assert page.status_code == 200
    assert "There is no report yet" in texts(page)
    assert "Rows 5 Good 4 Failed 1" in texts(page)


@pytest.mark.parametrize(
    "path",
    [
        "/ollama/batches/parcels/no_run/answers/-1",
        "/ollama/batches/~/x/answers/-1",
        "/ollama/batches/..%2f/x/answers/-1",
        "/ollama/batches/parcels/%00/answers/-1",
    ],
)
def test_what_is_no_batch_is_not_found(run_batch, browse, path) -> None:
    """A path of the address is the name of a task instance, and nothing else."""
    run_batch()

    assert browse(path).status_code == 404


@pytest.mark.parametrize("number", ["x", "1.5", "-2", "99999999999999999999", "<script>"])
def test_a_map_index_is_a_number(browse, number) -> None:
    """Of the size that Airflow has. Anything else leads nowhere."""
    page = browse(f"/ollama/batches/parcels/run/answers/{number}")

    assert page.status_code == 404
    assert "There is no page with this address" in texts(page)


def test_a_value_of_another_operator_is_no_batch(run_dag, browse) -> None:
    """The XCom's name is a common word."""
    run = run_dag("""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
with DAG("others", schedule=None, start_date=datetime(2026, 1, 1)):
    @task
    def answers(ti=None):
        ti.xcom_push(key="results", value=[1, 2])
    answers()
""")

    assert browse(path_of(run)).status_code == 404
    assert "others" not in browse("/ollama/").text


@pytest.mark.parametrize("returned", [{"file": "a.csv"}, {"complete": "yes", "ok": [], "rows": 1.5}, [1], 7])
def test_what_another_operator_returns_breaks_no_page(run_batch, run_dag, browse, returned) -> None:
    """One that pushes a URL under that name looks like a batch; the other batches are shown all the same."""
    batch = run_batch()
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
with DAG("others", schedule=None, start_date=datetime(2026, 1, 1)):
    @task(multiple_outputs=False)
    def answers(ti=None):
        ti.xcom_push(key="results", value="file:///nowhere/at/all")
        return {returned!r}
    answers()
""")

    listed = browse("/ollama/")
    pages = [browse(path_of(run) + page) for page in ("", "/rows/good", "/rows/failed")]

    assert listed.status_code == 200
    assert path_of(batch) in listed.text
    assert [page.status_code for page in pages] == [200, 200, 200]
    assert all("/nowhere/at/all cannot be read" in texts(page) for page in (listed, *pages))


@pytest.mark.parametrize("progress", ['{"ok": "many"}', '{"ok": 1, "eta": NaN}', '{"ok": 1, "failed": []}'])
def test_what_a_file_holds_breaks_no_list(run_batch, run_dag, browse, tmp_path: Path, progress) -> None:
    """A damaged one is the trouble of its batch alone."""
    batch = run_batch()
    (tmp_path / "progress.json").write_text(progress)
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG, task
with DAG("damaged", schedule=None, start_date=datetime(2026, 1, 1)):
    @task
    def answers(ti=None):
        ti.xcom_push(key="results", value="file://{tmp_path}")
    answers()
""")

    listed, page = browse("/ollama/"), browse(path_of(run))

    assert (listed.status_code, page.status_code) == (200, 200)
    assert path_of(batch) in listed.text
    assert path_of(run) in listed.text


def test_a_setting_of_the_page_is_refused_before_the_batch(run_batch, ollama, monkeypatch) -> None:
    """And not when it has done its work."""
    monkeypatch.setenv("AIRFLOW__OLLAMA__SHOW_PAGE", "perhaps")

    run_batch()

    assert not ollama.stand_in.requests
