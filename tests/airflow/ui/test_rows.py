"""Rows of a batch as tables, and its files as downloads."""

import asyncio
import html
import json
import re
import shutil
from io import BufferedReader, RawIOBase
from pathlib import Path
from threading import Event, current_thread
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_provider.links import batch_page


def path_of(run) -> str:
    return "/" + batch_page(run.dag_id, run.run_id, "answers", -1)


def texts(answer) -> str:
    """What a reader sees of a page: its text, without tags and on one line."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", answer.text).split()))


def rows(answer) -> list[str]:
    """The rows of the table."""
    body = answer.text.partition("<tbody>")[2].partition("</tbody>")[0]
    return [html.unescape(" ".join(re.sub(r"<[^>]*>", " ", row).split())) for row in body.split("</tr>")[:-1]]


def link(answer, name: str) -> str:
    """The address of a link on the page."""
    return html.unescape(re.search(rf'<a href="([^"]*)"[^>]*>{name}</a>', answer.text)[1])


@pytest.fixture
def batch(run_batch, tmp_path: Path):
    """A batch of five rows that has run, of which one failed, and its directory."""
    run = run_batch(id_column="id", rows=[{"id": f"order-{n}", "text": f"Parcel no {n}"} for n in range(5)])
    return path_of(run), tmp_path / "parcels" / "one"


@pytest.mark.parametrize("page", ["rows/failed", "rows/good", "files/results", "files/failed", "files/summary"])
def test_who_may_see_rows_and_files(page, batch, browse):
    """Whoever may read the task instances of the DAG, and nobody else."""
    path = f"{batch[0]}/{page}"

    answers = [browse(path, ""), browse(path, None), browse(path, "viewer", "only letters")]

    assert [answer.status_code for answer in answers] == [401, 403, 403]
    assert not any("Parcel" in answer.text or "order-" in answer.text for answer in answers)
    for role in ("viewer", "user", "op", "admin"):
        assert browse(path, role).status_code == 200
    assert browse(path, "viewer", "only parcels").status_code == 200


def test_failed_rows(batch, browse):
    """With reason and error, which is text and nothing else."""
    page = browse(f"{batch[0]}/rows/failed")

    (row,) = rows(page)
    assert row.startswith("order-2 row 2 BadRequestError")
    assert "<script>alert('error')</script>" in row
    assert "<script>alert" not in page.text
    assert '<option value="BadRequestError">' in page.text


def test_good_rows(batch, browse):
    """In the order of the input."""
    page = browse(f"{batch[0]}/rows/good")

    found = rows(page)
    assert [row[:7] for row in found] == ["order-0", "order-1", "order-3", "order-4"]
    assert "<script>alert('answer')</script>" in found[2]
    assert "<script>alert" not in page.text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("good?search=ORDER-4", ["order-4"]),
        ("good?search=alert%28%27answer", ["order-3"]),
        ("good?search=%22%3E%3Cimg%20src%3Dx%3E", []),
        ("failed?reason=BadRequestError", ["order-2"]),
        ("failed?reason=CutAnswerError", []),
        ("failed?search=order-1", []),
    ],
    ids=["id", "answer", "hostile", "reason", "other-reason", "good-one"],
)
def test_search(query, expected, batch, browse):
    """The form keeps what was searched, as text."""
    page = browse(f"{batch[0]}/rows/{query}")

    assert page.status_code == 200
    assert [row[:7] for row in rows(page)] == expected
    assert ("No such row" in texts(page)) == (not expected)
    assert "<img" not in page.text
    assert browse(link(page, r"All \w+ rows")).status_code == 200


def test_pages(run_batch, browse):
    """Each row is on one of them."""
    run = run_batch(rows=[f"Parcel no x{n}" for n in range(120)])
    found, page = [], browse(f"{path_of(run)}/rows/good")
    while True:
        found.append([row.split(" ", 2)[1] for row in rows(page)])
        if "Next page" not in page.text:
            break
        page = browse(link(page, "Next page"))

    assert [len(each) for each in found] == [50, 50, 20]
    assert sum(found, []) == [str(n) for n in range(120)]  # noqa: RUF017  # three lists
    assert rows(browse(link(page, "First page")))[0].startswith("row 0")
    assert "written anew" in texts(browse(f"{path_of(run)}/rows/good?cursor=of-another-file:7"))


def test_a_long_search_says_how_far_it_came(run_batch, browse, monkeypatch):
    """And goes on from there."""
    run = run_batch(rows=[f"Parcel no x{n}" for n in range(60)])
    monkeypatch.setattr("ollama_provider.ui.rows._READERS", {"good": slow_reader})

    page = browse(f"{path_of(run)}/rows/good?search=x59")

    assert re.search(r"Nothing in the [\d.]+ % of the rows that were looked at", texts(page))
    assert "Search on" in page.text
    monkeypatch.undo()
    assert len(rows(browse(link(page, "Search on")))) == 1


def slow_reader(storage, **given):
    """One that has no time."""
    from ollama_provider.batch import read_rows

    return read_rows(storage, "ok", **given, seconds=0)


def test_a_batch_that_is_not_complete(batch, browse):
    """Its rows come out of the parts; there are no results to download yet."""
    path, directory = batch
    (directory / "summary.json").unlink()

    page = browse(f"{path}/rows/good")

    assert len(rows(page)) == 4
    assert "order in which they were answered" in texts(page)
    for name in ("results", "failed"):
        answer = browse(f"{path}/files/{name}")
        assert answer.status_code == 404
        assert "written when the batch is complete" in texts(answer)


def test_a_directory_that_cannot_be_read(batch, browse):
    """Is said in a sentence, with what to do. The summary is in Airflow's database."""
    path, directory = batch
    shutil.rmtree(directory)

    for page in ("rows/failed", "rows/good", "files/results", "files/failed"):
        answer = browse(f"{path}/{page}")
        assert answer.status_code == (200 if page.startswith("rows") else 404)
        assert f"{directory} cannot be read: No such file or directory" in texts(answer)
        assert "the workers and the API server share" in texts(answer)
    assert browse(f"{path}/files/summary").json()["rows"] == 5


@pytest.mark.parametrize(
    ("results", "kind"), [("jsonl", "application/jsonl"), ("parquet", "application/vnd.apache.parquet")]
)
def test_files(results, kind, run_batch, browse, tmp_path: Path):
    """Each is what is in the directory, to be saved and not shown."""
    run = run_batch(results=results)
    directory = tmp_path / "parcels" / "one"
    for name, file in (("results", f"results.{results}"), ("failed", "failed.jsonl")):
        answer = browse(f"{path_of(run)}/files/{name}")
        content = (directory / file).read_bytes()
        assert answer.content == content
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.headers["Content-Disposition"] == f'attachment; filename="parcels-answers-{file}"'
        assert answer.headers["Content-Type"] == (kind if name == "results" else "application/jsonl")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    summary = browse(f"{path_of(run)}/files/summary")
    assert summary.json() == json.loads((directory / "summary.json").read_text())
    assert summary.headers["Content-Disposition"] == 'attachment; filename="parcels-answers-summary.json"'
    assert len(rows(browse(f"{path_of(run)}/rows/good"))) == 4


def test_a_large_file(batch, browse):
    """Comes in pieces, and whole."""
    path, directory = batch
    content = bytes(range(256)) * 8000
    (directory / "results.jsonl").write_bytes(content)

    assert browse(f"{path}/files/results").content == content


def test_a_file_that_nobody_reads_is_closed(batch):
    """A browser may be gone before the first byte."""
    from ollama_provider.ui.rows import _File  # not on Airflow 2

    file = _File()
    file.open(f"file://{batch[1]}", "results")
    opened = file._file
    assert not opened.closed

    del file

    assert opened.closed


async def test_a_request_that_ends_does_not_wait_for_a_disk_that_hangs(batch):
    """The thread that reads closes the file: closing waits until no thread reads, and would hold all requests."""
    from ollama_provider.ui.rows import _File  # not on Airflow 2

    begun, go, closed = Event(), Event(), Event()
    closed_by = []

    class Hanging(RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            begun.set()
            go.wait(30)
            return 0

        def close(self):
            closed_by.append(current_thread().name)
            super().close()
            closed.set()

    file = _File()
    file.open(f"file://{batch[1]}", "results")
    file._file = BufferedReader(Hanging())
    file._left.callback(file._file.close)
    request = asyncio.create_task(anext(file.pieces()))
    del file
    assert await asyncio.to_thread(begun.wait, 30)
    request.cancel()
    await asyncio.wait([request])
    del request
    go.set()

    assert await asyncio.to_thread(closed.wait, 30)
    assert closed_by[0].startswith("ollama-page")


@pytest.mark.parametrize(
    "page",
    [
        "files/batch.json", "files/summary.json", "files/..%2Fbatch.json", "files/%2Fetc%2Fpasswd", "files/results%00",
        "rows/all", "rows/..%2Ffailed", "rows/good?cursor=" + "x" * 200, "rows/good?search=" + "x" * 300,
    ],
)  # fmt: skip
def test_no_parameter_names_a_file(page, batch, browse):
    """There are three files, two tables, and nothing longer than people write."""
    assert browse(f"{batch[0]}/{page}").status_code == 404


@pytest.fixture(scope="module")
def finished():
    """Filled by the first example: a batch that has run."""
    return []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    page=st.sampled_from(["rows/good", "rows/failed", "rows/", "files/results", "files/"]),
    more=st.text(st.characters(codec="utf-8"), max_size=8),
    query=st.dictionaries(
        st.sampled_from(["cursor", "search", "reason", "path"]),
        st.text(st.sampled_from("<'\"&\0\r\n%/.:01é\u202e{") | st.characters(codec="utf-8"), max_size=130),
    ),
)
def test_no_address_breaks_the_page(page, more, query, run_batch, browse, finished):
    """It answers or says that there is nothing, and shows what it was asked as text."""
    if not finished:
        finished.append(path_of(run_batch()))
    more = "" if page in {"rows/good", "rows/failed", "files/results"} else quote(more, safe="")

    answer = browse(f"{finished[0]}/{page}{more}?{urlencode(query)}")

    if answer.status_code == 307:  # a slash too many
        assert answer.headers["Location"].startswith("http://testserver/ollama/")
        return
    assert answer.status_code in {200, 404}
    if answer.headers["Content-Type"].startswith("text/html"):
        assert set(re.findall(r"<script[^>]*>", answer.text)) <= {'<script src="/ollama/static/page.js?0.1.0">'}
        assert not re.search("[\x00-\x08\x0e-\x1f\u202e]", answer.text)
