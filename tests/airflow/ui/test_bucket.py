"""The page over a batch in a bucket of an S3 server."""

import html
import json
import re

import pytest

from ollama_provider.links import batch_page

PAGES = ("", "/rows/failed", "/rows/good")


def path_of(run) -> str:
    return "/" + batch_page(run.dag_id, run.run_id, "answers", -1)


def texts(answer) -> str:
    """What a reader sees of a page: its text, without tags and on one line."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", answer.text).split()))


@pytest.fixture
def batch(run_batch, bucket):
    """The address of the page of a batch of 120 rows in the bucket, of which one failed."""
    rows = [{"id": f"order-{n}", "text": f"Parcel no {n if n < 5 else f'x{n}'}"} for n in range(120)]
    return path_of(run_batch(id_column="id", rows=rows, output_path=f"{bucket.url}/parcels"))


def test_a_batch_in_a_bucket(batch, browse, bucket):
    """Its report, its rows by range, and its files, as those of a directory."""
    listed, report, failed, good = browse("/ollama/"), *(browse(batch + page) for page in PAGES)
    files = {name: browse(f"{batch}/files/{name}") for name in ("results", "failed", "summary")}

    assert "120 of 120" in texts(listed)
    assert "1 of 120 rows failed" in texts(report)
    assert f"{bucket.url}/parcels/one" in texts(report)
    assert "order-2 row 2 BadRequestError" in texts(failed)
    assert "order-50" in texts(good)
    last = browse(html.unescape(re.search(r'<a href="([^"]*)"[^>]*>Next page</a>', good.text)[1]))
    assert "order-99" in texts(last)
    for name, answer in files.items():
        kind = "json" if name == "summary" else "jsonl"
        assert answer.text == bucket.read(f"parcels/one/{name}.{kind}")
    assert json.loads(files["summary"].text)["rows"] == 120


def test_what_a_worker_writes_is_seen(batch, browse, bucket):
    """The API server lives long, and the library of the store would keep what it has listed once."""
    bucket.delete("parcels/one/summary.json")
    parts = {f"parcels/one/parts/{name}": "" for name in bucket.names("parcels/one/parts/")}
    for name in parts:
        parts[name] = bucket.read(name)
        bucket.delete(name)
    bucket.put("parcels/one/parts/of-somebody-else", "")
    before = browse(f"{batch}/rows/good")

    for name, content in parts.items():
        bucket.put(name, content)
    after = browse(f"{batch}/rows/good")

    assert "beginning with" not in texts(before)
    assert "order in which they were answered" in texts(after)
    assert "beginning with" in texts(after)


def test_no_rights_in_the_bucket(run_batch, browse, bucket, an_s3, connect_s3):
    """It is said in a sentence; the numbers of the summary are shown all the same."""
    conn_id, connection = connect_s3(an_s3.user("worker", "s3:*"))
    url = f"s3://{conn_id}@{bucket.name}/parcels"
    run = run_batch(output_path=url)
    an_s3.revoke("worker")

    listed, *pages = browse("/ollama/"), *(browse(path_of(run) + page) for page in PAGES)
    download = browse(path_of(run) + "/files/results")

    assert [page.status_code for page in (listed, *pages)] == [200] * 4
    assert download.status_code == 404
    for page in (*pages, download):
        assert f"{url}/one cannot be read: " in texts(page)
        assert "lack the right to list, read" in texts(page)
        assert connection["password"] not in page.text
    assert "Rows 5 Good 4 Failed 1" in texts(pages[0])
    assert "5 of 5" in texts(listed)
