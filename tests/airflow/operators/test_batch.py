"""OllamaBatchOperator, run by Airflow against the stand-in; the engine has its own tests."""

import json
import re

import pytest

from ollama_provider.testing import Fail, Stall

# Rows are for the worker: a triggerer belongs to everybody.
pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

ROWS = "[{'name': 'a', 'text': 'Apples are red.'}, {'name': 'b', 'text': 'Bananas are yellow.'}]"


def batch(tmp_path, *arguments: str, rows: str = ROWS, resume: str = "task") -> str:
    """The source of a batch task."""
    pace = "pace=Pace(concurrency=1)"
    given = [f"rows={rows}", f"output_path='{tmp_path}/out'", f"resume='{resume}'", pace, *arguments]
    return f"OllamaBatchOperator(task_id='t', model='llama3.2', retries=3, {', '.join(given)})"


def results(tmp_path, name: str = "results.jsonl") -> list:
    """The rows of a file of results."""
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]


def answer(ollama, *answers: str) -> None:
    """Answer the next prompts so; the request that only loads the model is none."""
    ollama.stand_in.script(*answers, where=lambda body: body.get("prompt"))


def prompts(ollama) -> list:
    """What was asked of the model."""
    return [body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt")]


def test_summary_and_results(run_task, ollama, tmp_path, caplog) -> None:
    """The results are in files, in the order of the rows; XCom has the summary, the log the progress."""
    answer(ollama, "one", "two")
    caplog.set_level("INFO", "ollama_provider")

    ran = run_task(batch(tmp_path, "prompt='Shorten: {{ row.text }}'", "id_column='name'"))

    assert ran.state == "success"
    assert [(row["id"], row["output"]) for row in results(tmp_path)] == [("a", "one"), ("b", "two")]
    assert prompts(ollama) == ["Shorten: Apples are red.", "Shorten: Bananas are yellow."]
    summary = ran.value
    assert (summary["complete"], summary["rows"], summary["ok"], summary["failed"]) == (True, 2, 2, 0)
    assert summary["directory"] == f"{tmp_path}/out"
    assert summary["provenance"]["model"] == "llama3.2"
    assert "Apples" not in json.dumps(summary)
    assert "Apples" not in ran.log
    assert "done=2/2 (100 %) ok=2 failed=0" in caplog.text


def test_rows_of_a_file_that_is_no_plain_csv(run_task, ollama, tmp_path) -> None:
    """Its options are templates, as everything in a group is."""
    (tmp_path / "rows.csv").write_bytes("name;text\na;Größe\n".encode("latin-1"))
    options = 'input_options={"delimiter": "{{ \';\' }}", "encoding": "latin-1"}'

    ran = run_task(batch(tmp_path, options, "keep_columns='{{ [\"name\"] }}'", rows=f"'{tmp_path}/rows.csv'"))

    assert ran.state == "success"
    assert [row["row"] for row in results(tmp_path)] == [{"name": "a"}]
    assert prompts(ollama) == ["Größe"]


def test_rows_of_another_task_and_a_prompt_file(run_task, ollama, tmp_path) -> None:
    """Rows come through XCom as they are; a prompt file is a template for rows, not for Airflow."""
    (tmp_path / "shorten.prompt").write_text("Shorten: {{ row.text }}\n")

    ran = run_task(f"""
        @task
        def documents():
            return ['{{{{ not a template }}}}', 'plain']

        {batch(tmp_path, "prompt='shorten.prompt'", rows="documents()")}
    """)

    assert ran.state == "success"
    assert prompts(ollama) == ["Shorten: {{ not a template }}", "Shorten: plain"]


def test_a_list_of_rows_is_data(run_task, ollama, tmp_path) -> None:
    """Airflow renders templates at any depth, but not in rows."""
    run_task(batch(tmp_path, rows="['{{ params }} {% broken']"))

    assert prompts(ollama) == ["{{ params }} {% broken"]


@pytest.mark.parametrize(
    "rows", ["['{{ params.folder }}/b.jsonl', '{{ params.folder }}/a.jsonl']", "'{{ params.files }}'"]
)
def test_a_list_of_files(run_task, ollama, tmp_path, rows) -> None:
    """Also as text that a template has made of it; the model is never asked about the names."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}"\n')
    files = [f"{tmp_path}/b.jsonl", f"{tmp_path}/a.jsonl"]

    ran = run_task(batch(tmp_path, rows=rows), params={"folder": str(tmp_path), "files": files})

    assert ran.state == "success"
    assert prompts(ollama) == ["b", "a"]


def test_rows_out_of_a_template(run_task, ollama, tmp_path) -> None:
    """A list of dicts comes back from its text; nothing at all is refused in words."""
    good = run_task(batch(tmp_path, rows="'{{ params.rows }}'"), params={"rows": [{"text": "it's"}, {"text": "two"}]})
    bad = run_task(batch(tmp_path, rows="None"))

    assert good.state == "success"
    assert prompts(ollama) == ["it's", "two"]
    assert (bad.state, bad.tries) == ("failed", 1)
    assert "rows: they are None" in bad.log


@pytest.mark.parametrize("url", ["abfs://container/rows.jsonl", "nowhere://bucket/rows.jsonl"])
def test_a_store_without_its_driver(run_task, tmp_path, url) -> None:
    """Trying again would not install it."""
    ran = run_task(batch(tmp_path, rows=f"'{url}'"))

    scheme, _, place = url.partition("://")
    assert (ran.state, ran.tries) == ("failed", 1)
    # Airflow 2 writes the path of a store that it has no driver for with a third slash.
    assert re.search(rf"{scheme}:///?{place}", ran.log)
    assert "During handling of the above exception" not in ran.log


def test_rows_in_files(run_task, ollama, tmp_path) -> None:
    """A path is a template, and may be a glob on any ObjectStoragePath."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"text {name}"}) + "\n")

    ran = run_task(
        batch(tmp_path, rows=f"'file://{tmp_path}/{{{{ params.files }}}}'", resume="run"), params={"files": "*.jsonl"}
    )

    assert ran.value["rows"] == 2
    assert prompts(ollama) == ["text a", "text b"]


@pytest.mark.parametrize(
    ("resume", "folder"),
    [("task", ""), ("books", "/books"), ("{{ params.month }}", "/2026-11"), ("run", "/manual__20")],
)
def test_who_shares_results(run_task, tmp_path, resume, folder) -> None:
    """One run, all runs of a task, or all who use a name."""
    ran = run_task(batch(tmp_path, resume=resume), params={"month": "2026-11"})

    assert ran.value["directory"].startswith(f"{tmp_path}/out{folder}")
    assert ":" not in ran.value["directory"]


def test_next_run_asks_only_what_is_new(run_task, ollama, tmp_path) -> None:
    """Results are found by content."""
    run_task(batch(tmp_path))
    asked = len(prompts(ollama))

    ran = run_task(batch(tmp_path, rows="[{'text': 'Cherries.'}, " + ROWS[1:]))

    assert (ran.value["requests"], ran.value["reused"]) == (1, 2)
    assert prompts(ollama)[asked:] == ["Cherries."]
    assert len(results(tmp_path)) == 3


def test_failed_rows_fail_the_task_after_all_the_others(run_task, ollama, tmp_path) -> None:
    """The rows that succeeded are there, XCom says how it went, and the next try asks only the failed ones."""
    crash = Fail("llama runner process has terminated: signal: killed", status=500)
    ollama.stand_in.script(crash, where=lambda body: "Bananas" in body.get("prompt", ""), times=2)

    ran = run_task(batch(tmp_path, "failures=FailurePolicy(max_attempts=2)"))

    assert (ran.state, ran.tries) == ("success", 2)
    assert "1 of 2 rows failed" in ran.log
    assert prompts(ollama).count("Apples are red.") == 1
    assert ran.value["failed"] == 0


def test_summary_of_a_failed_task(run_task, ollama, tmp_path) -> None:
    """What was done is in XCom also when the task is red."""
    ollama.stand_in.script(Fail("invalid image", status=400), where=lambda body: "Bananas" in body.get("prompt", ""))

    ran = run_task(batch(tmp_path).replace("retries=3", "retries=0"))

    assert ran.state == "failed"
    assert (ran.value["complete"], ran.value["ok"], ran.value["failed"]) == (True, 1, 1)
    assert [row["error"]["class"] for row in results(tmp_path, "failed.jsonl")] == ["BadRequestError"]


def test_failed_rows_may_be_tolerated(run_task, ollama, tmp_path) -> None:
    """``max_failed_rows`` leaves the task green."""
    ollama.stand_in.script(Fail("invalid image", status=400), where=lambda body: "Bananas" in body.get("prompt", ""))

    ran = run_task(batch(tmp_path, "failures=FailurePolicy(max_failed_rows=1)"))

    assert (ran.state, ran.value["failed"]) == ("success", 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("prompt='{{ row.txt }}'", "'txt'"),
        ("prompt='{{ text }}'", "write row.text for a column of that name"),
        ("prompt='nowhere.prompt'", "there is no file 'nowhere.prompt'"),
        ("options={'temprature': 1}", "did you mean 'temperature'"),
        ("mode='{{ \"failed\" }}'", "mode: 'failed' is not one of 'all', 'failed_only'"),
        ("failures=FailurePolicy(on_truncation='{{ \"warn\" }}')", "failures.on_truncation: 'warn' is not one of"),
        ("pace=Pace(concurrency='{{ 0 }}')", "pace.concurrency: '0' is neither 'auto' nor a number from 1 on"),
        (
            "failures=FailurePolicy(max_failed_ratio='{{ 5 }}')",
            "failures.max_failed_ratio: '5' is not a number from 0 to 1",
        ),
        ("failures={'allow_cut': '{{ 1 }}'}", "failures.allow_cut: '1' is neither True nor False"),
        ("window=Window(stop_at='{{ 1350 }}')", "window.stop_at: '1350' is a number, as YAML makes of 22:30"),
        ("window=Window(timezone='{{ params.get(1) }}x')", "window.timezone: there is no 'Nonex'"),
        ("resume='../elsewhere'", "resume: '../elsewhere' is neither"),
        ("rows='/nowhere/*.jsonl'", "No file matches /nowhere/*.jsonl"),
    ],
)
def test_what_cannot_be_right_fails_at_once(run_task, ollama, tmp_path, arguments, told) -> None:
    """It is found before the first prompt is sent, and no retry is wasted on it."""
    given = {"resume": "'task'", "rows": ROWS, "pace": "Pace(concurrency=1)"}
    name, _, value = arguments.partition("=")
    source = ", ".join(f"{name}={value}" for name, value in {**given, name: value}.items())
    ran = run_task(f"""
        OllamaBatchOperator(task_id='t', model='llama3.2', retries=3, output_path='{tmp_path}/out', {source})
    """)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert prompts(ollama) == []


def test_killed_task_writes_what_it_has(run_task, ollama, tmp_path, killed) -> None:
    """SIGTERM ends the request in flight and keeps the rows that are done; the next run asks the rest."""
    answer(ollama, "one")
    ollama.stand_in.script(Stall(after=1), where=lambda body: "Bananas" in body.get("prompt", ""))
    task = batch(tmp_path).replace("retries=3", "retries=0")

    with killed(when=lambda stand_in: [seen for seen in stand_in.open_requests if "Bananas" in str(seen.json)]):
        run_task(task)
    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)
    ran = run_task(task)

    assert (ran.state, ran.value["reused"]) == ("success", 1)
    assert results(tmp_path)[0]["output"] == "one"
    assert prompts(ollama) == ["Apples are red.", "Bananas are yellow.", "Bananas are yellow."]
