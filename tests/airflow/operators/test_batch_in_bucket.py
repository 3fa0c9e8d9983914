"""Rows and results in a bucket of an S3 server, over HTTP."""

import gzip
import io
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, DirectoryBusyError, InputError, StorageError, rehearse_batch, run_batch
from ollama_provider.batch.rows.sources import read_rows
from ollama_provider.batch.store.locks import LeaseLock
from ollama_provider.batch.store.storage import open_storage
from ollama_provider.operators._storage_paths import storage_path
from ollama_provider.testing import Gate, Pace, Stall
from tests.processes import free_port


def lines(count: int) -> str:
    """So many rows as JSON lines."""
    return "".join(json.dumps({"id": number, "text": f"Row {number}."}) + "\n" for number in range(count))


@pytest.fixture
def run(bucket, ollama):
    """Return a function that runs a batch in the bucket, in this process."""

    def run_it(rows: str = "rows.jsonl", out: str = "out", url: str = bucket.url, **arguments):
        spec = BatchSpec(model="llama3.2", rows=storage_path(f"{bucket.url}/{rows}"), **arguments)
        return run_batch(spec, Settings(base_url=ollama.url), storage_path(f"{url}/{out}"))

    return run_it


@pytest.fixture
def quick_lease(monkeypatch):
    """A run that was killed is found out in a second."""
    monkeypatch.setattr(LeaseLock, "lease", 1.0)


def asked(ollama) -> list[str]:
    """What was asked of the model."""
    return [body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt")]


@pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)
def test_rows_and_results(run_task, ollama, bucket) -> None:
    """As a user of MinIO has it: an address with the connection in it. The next run asks nothing."""
    bucket.put("rows.jsonl", lines(5))
    task = (
        f"OllamaBatchOperator(task_id='t', model='llama3.2', rows='{bucket.url}/rows.jsonl', id_column='id', "
        f"output_path='{bucket.url}/out', resume='task')"
    )

    first, second = run_task(task), run_task(task)

    assert (first.state, first.value["ok"], first.value["directory"]) == ("success", 5, f"{bucket.url}/out")
    assert (second.value["ok"], second.value["reused"]) == (5, 5)
    assert [json.loads(line)["id"] for line in bucket.read("out/results.jsonl").splitlines()] == list(range(5))
    assert "5 of 5" in bucket.read("out/report.html")
    assert json.loads(bucket.read("out/summary.json"))["complete"] is True
    assert "lock.json" not in bucket.names("out/")
    assert len(asked(ollama)) == 5
    assert bucket.connection["password"] not in first.log


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.json", "rows.parquet"])
def test_rows_of_each_format(bucket, name) -> None:
    """The library of a store reads files in its own way."""
    rows = [{"text": f"Row {number}."} for number in range(1000)]
    json_lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    parquet.write_table(pa.Table.from_pylist(rows), packed := io.BytesIO())
    content = {
        ".jsonl": json_lines,
        ".gz": gzip.compress(json_lines),
        ".csv": b"text\n" + b"".join(b"Row %d.\n" % number for number in range(1000)),
        ".json": json.dumps(rows).encode(),
        ".parquet": packed.getvalue(),
    }
    bucket.put(name, content[Path(name).suffix])

    assert [row.columns for row in read_rows(storage_path(f"{bucket.url}/{name}"))] == rows


def test_what_others_change_is_seen(run, bucket) -> None:
    """The library keeps what it has listed for as long as the process lives."""
    for name in "ab":
        bucket.put(f"notes/{name}.md", f"Note {name}.")
    first = run("notes/**/*.md")
    bucket.put("notes/b.md", "Note b, and more of it.")
    bucket.put("notes/deep/c.md", "Note c.")

    second = run("notes/**/*.md")

    assert (first.ok, second.ok, second.reused) == (2, 3, 1)
    assert 'beginning with \\"Note b, and' in bucket.read("out/results.jsonl")


def test_a_rehearsal(ollama, bucket) -> None:
    """It looks into the file at many places, and reads no more of it than it needs."""
    bucket.put("rows.jsonl", lines(2000))
    spec = BatchSpec(model="llama3.2", rows=storage_path(f"{bucket.url}/rows.jsonl"))

    found = rehearse_batch(spec, Settings(base_url=ollama.url), storage_path(f"{bucket.url}/out"), 5)

    assert (found.total, len(found.rows)) == (2000, 5)
    assert len(asked(ollama)) == 5


SCRIPT = """
import sys
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, Pace, run_batch
from ollama_provider.operators._storage_paths import storage_path
url, bucket = sys.argv[1:]
run_batch(
    BatchSpec(
        model="llama3.2", rows=storage_path(f"{bucket}/rows.jsonl"), pace=Pace(concurrency=4, checkpoint_every=1)
    ),
    Settings(base_url=url), storage_path(f"{bucket}/out"),
)
"""


@pytest.mark.usefixtures("quick_lease")
def test_killed_half_way_and_resumed(run, ollama, bucket) -> None:
    """kill -9 after the first checkpoint: its rows are not asked again."""
    bucket.put("rows.jsonl", lines(200))
    ollama.stand_in.script(Pace(first_token=0.05), always=True, where=lambda body: body.get("prompt"))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, ollama.url, bucket.url], env=dict(os.environ), stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 90
        while not bucket.names("out/parts/"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    kept = sum(len(bucket.read(f"out/parts/{name}").splitlines()) for name in bucket.names("out/parts/"))
    before = len(asked(ollama))

    summary = run()

    assert 0 < kept < 200
    assert (summary.ok, summary.reused) == (200, kept)
    assert len(asked(ollama)) - before == 200 - kept
    assert len(bucket.read("out/results.jsonl").splitlines()) == 200


@pytest.mark.usefixtures("quick_lease")
def test_two_runs_at_a_time(run, bucket, ollama) -> None:
    """The second one is refused, and says who is at work."""
    bucket.put("rows.jsonl", lines(3))
    ollama.stand_in.script(Stall(until=(gate := Gate())), where=lambda body: body.get("prompt"))
    with ThreadPoolExecutor() as threads:
        first = threads.submit(run)
        try:
            ollama.stand_in.wait_until(lambda stand_in: bool(stand_in.open_requests))
            with pytest.raises(DirectoryBusyError, match=rf"{bucket.url}/out \(process {os.getpid()} on"):
                run()
        finally:
            gate.open()

        assert first.result().ok == 3


def test_a_file_that_is_replaced_while_it_is_read(bucket) -> None:
    """A lease, a summary: its content is that before or that after."""
    storage = open_storage(storage_path(f"{bucket.url}/out"))
    contents = [f"{number}".encode() * 3 for number in range(200)]
    with ThreadPoolExecutor() as threads:
        bucket.put("out/lock.json", contents[0])
        written = threads.submit(lambda: [bucket.put("out/lock.json", each) for each in contents])
        read = [storage.read("lock.json")]
        while not written.done():
            read.append(storage.read("lock.json"))

    assert set(read) <= set(contents)
    assert len(set(read)) > 1


def nobody(an_s3, connect_s3) -> str:
    return connect_s3(an_s3.user("nobody"))[0]


def wrong_secret(an_s3, connect_s3) -> str:
    return connect_s3({**an_s3.owner, "password": "a-wrong-secret"})[0]


def unknown_key(an_s3, connect_s3) -> str:
    return connect_s3({"login": "AKIAUNKNOWN", "password": "a-wrong-secret"})[0]


@pytest.mark.parametrize("user", [nobody, wrong_secret, unknown_key])
def test_refused_credentials(run, bucket, an_s3, connect_s3, user) -> None:
    """It is said what is missing, where, and never with which secret."""
    bucket.put("rows.jsonl", lines(1))
    url = f"s3://{user(an_s3, connect_s3)}@{bucket.name}"

    with pytest.raises(StorageError, match=rf"{url}/out cannot be read: .*lack the right to list, read, write") as out:
        run(url=url)
    with pytest.raises(InputError, match=rf"{url}/rows\.jsonl cannot be read: .*lack the right to list") as rows:
        list(read_rows(storage_path(f"{url}/rows.jsonl")))

    assert "secret" not in str(out.value) + str(rows.value)


def test_no_such_bucket(run, bucket) -> None:
    """Neither for the results nor for the rows."""
    bucket.put("rows.jsonl", lines(1))
    url = bucket.url.replace(bucket.name, "no-such-bucket")

    with pytest.raises(StorageError, match=rf"{url}/out cannot be written: The specified bucket does not exist"):
        run(url=url)
    with pytest.raises(InputError, match=rf"There is no file {url}/rows\.jsonl"):
        list(read_rows(storage_path(f"{url}/rows.jsonl")))


def test_a_busy_store(run, bucket, an_s3, connect_s3) -> None:
    """Some refusals of a store under load are waited out; then the run ends, and the next one goes on."""
    bucket.put("rows.jsonl", lines(3))
    an_s3.slow_down(2)
    assert run().ok == 3

    conn_id, _ = connect_s3(an_s3.owner, config_kwargs={"retries": {"max_attempts": 0}})
    url = f"s3://{conn_id}@{bucket.name}"
    an_s3.slow_down(1000)
    try:
        with pytest.raises(StorageError, match=f"{url}/out cannot be read: Service Unavailable") as caught:
            run(url=url)
    finally:
        an_s3.slow_down(0)

    assert caught.value.retryable
    assert run(url=url).reused == 3


def test_a_store_that_does_not_answer(run, bucket, connect_s3, an_s3) -> None:
    """The errors of its library are its own, and no part of ours."""
    conn_id, _ = connect_s3(
        an_s3.owner, endpoint_url=f"http://127.0.0.1:{free_port()}", config_kwargs={"retries": {"max_attempts": 0}}
    )
    bucket.put("rows.jsonl", lines(1))
    url = f"s3://{conn_id}@{bucket.name}"

    with pytest.raises(StorageError, match=f"{url}/out cannot be read: the store's library raised EndpointConn"):
        run(url=url)


def test_the_command_line(ollama, bucket, an_s3, monkeypatch, capsys) -> None:
    """Outside of Airflow the library takes its credentials from the environment; an address has no connection then."""
    from ollama_provider.batch.__main__ import main

    bucket.put("rows.jsonl", lines(2))
    for name, value in {
        "AWS_ACCESS_KEY_ID": an_s3.owner["login"],
        "AWS_SECRET_ACCESS_KEY": an_s3.owner["password"],
        "AWS_ENDPOINT_URL": an_s3.url,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{bucket.name}"
    arguments = [
        "--model",
        "llama3.2",
        "--rows",
        f"{url}/rows.jsonl",
        "--prompt",
        "{{ row.text }}",
        "--host",
        ollama.url,
    ]

    assert main([*arguments, "--output", f"{url}/out"]) == 0
    with pytest.raises(SystemExit) as ended:
        main(["--report", f"{url}/out"])
    with pytest.raises(SystemExit) as none:
        main(["--report", f"{url}/nothing"])

    assert (ended.value.code, none.value.code) == (0, 1)
    assert len(bucket.read("out/results.jsonl").splitlines()) == 2
    said = capsys.readouterr()
    assert f"{url}/out/report.html" in said.out
    assert f"There is no batch in {url}/nothing" in said.err
