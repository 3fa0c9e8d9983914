"""OllamaBatchOperator with shards, windows, vectors and schemas, run by Airflow against the stand-in."""

import base64
import json

import pytest
from pyarrow import parquet

from ollama_provider.testing import Model, Stall

#: One grey pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)


def batch(tmp_path, *arguments: str, model: str = "llama3.2") -> str:
    """The source of a batch task with forty rows."""
    rows = "[{'text': f'text {n}'} for n in range(40)]"
    given = [f"rows={rows}", f"output_path='{tmp_path}/out'", "resume='task'", f"model='{model}'", *arguments]
    return f"task_id='t', {', '.join(given)}"


def prompts(ollama) -> list:
    """What was asked of the model."""
    return [body["prompt"] for seen in ollama.stand_in.requests if (body := seen.json or {}).get("prompt")]


def test_shards_are_mapped_tasks_and_merged(run_task, ollama, tmp_path) -> None:
    """Each row is asked once, and the output of the group is the summary of all."""
    above = "from ollama_provider.operators.batch import sharded"

    ran = run_task(
        f"""
        @task
        def t(summary):
            return summary
        t(sharded(3, {batch(tmp_path).replace("task_id='t'", "task_id='all'")}).output)
        """,
        above=above,
    )

    assert ran.state == "success"
    assert (ran.value["complete"], ran.value["rows"], ran.value["reused"], ran.value["requests"]) == (True, 40, 40, 0)
    assert sorted(prompts(ollama)) == sorted(f"text {number}" for number in range(40))
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 40


def test_shards_wait_for_the_task_that_makes_their_rows(run_task, ollama, tmp_path) -> None:
    """And not only their merge does: else they would ask the rows of last night."""
    above = "from ollama_provider.operators.batch import sharded"
    given = f"rows='{tmp_path}/rows.jsonl', output_path='{tmp_path}/out', resume='task', model='llama3.2'"

    ran = run_task(
        f"""
        @task
        def extract():
            open('{tmp_path}/rows.jsonl', 'w').write('{{"text": "fresh"}}\\n')

        @task
        def t():
            return open('{tmp_path}/out/results.jsonl').read().count('"status":"ok"')

        extract() >> sharded(2, task_id='all', {given}) >> t()
        """,
        above=above,
    )

    assert ran.state == "success", ran.log
    assert ran.value == 1
    assert prompts(ollama) == ["fresh"]


def test_a_closed_window_is_no_failure(run_task, ollama, tmp_path) -> None:
    """The task succeeds, says that it is not complete, and asks nothing."""
    given = batch(tmp_path, "window=Window(stop_at='2020-01-01T06:00')")
    ran = run_task(f"OllamaBatchOperator({given})")

    assert (ran.state, ran.value["complete"]) == ("success", False)
    assert "before this run began" in ran.value["reason"]
    assert prompts(ollama) == []


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_values_of_a_trigger_form(run_task, ollama, tmp_path, native) -> None:
    """Text, null and numbers, in templates of either kind; a text that names row is for the rows."""
    turns = "[{'role': 'system', 'content': '{{ params.tone }}'}, {'role': 'user', 'content': '{{ row.text }}'}]"
    given = batch(
        tmp_path,
        f"messages={turns}",
        "pace=Pace(concurrency='{{ params.concurrency }}')",
        "failures=FailurePolicy(max_failed_ratio='{{ params.ratio }}', allow_cut='{{ params.allow_cut }}')",
        "window=Window(stop_at='{{ params.stop_at }}')",
        "id_column='{{ params.id_column }}'",
    ).replace("resume='task'", "resume='{{ params.resume }}'")
    params = {
        "tone": "Be brief.",
        "concurrency": 2,
        "ratio": 0.5,
        "allow_cut": True,
        "stop_at": None,
        "id_column": None,
        "resume": "202611",
    }

    ran = run_task(f"OllamaBatchOperator({given})", params=params, render_template_as_native_obj=native)

    assert (ran.state, ran.value["ok"]) == ("success", 40), ran.log
    assert ran.value["directory"] == f"{tmp_path}/out/202611"
    sent = [seen.json["messages"] for seen in ollama.stand_in.requests if seen.path == "/api/chat"]
    assert [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "text 0"}] in sent


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_a_prompt_knows_the_run_it_is_in(run_task, ollama, tmp_path, native) -> None:
    """Its day, its parameters and what a task before has returned; braces in those are data."""
    above = "@task\ndef tone():\n    return 'Dry {{ params.tone }}'"
    given = batch(
        tmp_path,
        "prompt='{{ day }}: {{ said }} {{ words | join(\"+\") }} {{ row.text }}'",
        "variables={'day': '{{ run_id[:6] }}', 'said': tone(), 'words': ['{{ params.tone }}', 'b']}",
    )

    ran = run_task(
        f"OllamaBatchOperator({given})", above=above, params={"tone": "a"}, render_template_as_native_obj=native
    )

    assert ran.state == "success", ran.log
    assert "manual: Dry {{ params.tone }} a+b text 7" in prompts(ollama)
    assert json.loads((tmp_path / "out/batch.json").read_text())["settings"]["variables"] == {
        "day": "manual",
        "said": "Dry {{ params.tone }}",
        "words": ["a", "b"],
    }


def test_another_day_asks_again_only_where_the_prompt_has_it(run_task, ollama, tmp_path) -> None:
    """A variable is no part of a row's key but through its prompt."""
    prompt = "prompt='{{ day if row.text.endswith(\"7\") }} {{ row.text }}'"
    ran = [
        run_task(f"OllamaBatchOperator({batch(tmp_path, prompt, f'variables=dict(day={day!r})')})")
        for day in ("Monday", "Tuesday")
    ]

    assert [(each.state, each.value["requests"]) for each in ran] == [("success", 40), ("success", 4)]
    assert sum(text.startswith("Tuesday") for text in prompts(ollama)) == 4


def test_messages_and_the_path_of_an_image_know_the_variables(run_task, ollama, tmp_path) -> None:
    """Also a message that does not name the row: without the variable Airflow would render it as nothing."""
    turns = "[{'role': 'system', 'content': 'It is {{ day }}.'}, {'role': 'user', 'content': '{{ row.text }}'}]"
    images = ("images='{{ file }}.png'", f"images_from='{tmp_path}'")
    given = batch(tmp_path, f"messages={turns}", "variables=named()", *images, model="llava")
    (tmp_path / "dot.png").write_bytes(PNG)
    ollama.stand_in.install(Model("llava", ("completion", "vision")))

    ran = run_task(
        f"OllamaBatchOperator({given})", above="@task\ndef named():\n    return {'day': 'Monday', 'file': 'dot'}"
    )

    assert (ran.state, ran.value["ok"]) == ("success", 40), ran.log
    sent = [seen.json["messages"] for seen in ollama.stand_in.requests if seen.path == "/api/chat"]
    assert {messages[0]["content"] for messages in sent} == {"It is Monday."}
    assert all(messages[1]["images"] for messages in sent)


def test_a_name_of_airflows_is_no_variable_by_itself(run_task, ollama, tmp_path) -> None:
    """The text says what to do, before anything is asked, and no retry is used."""
    given = batch(tmp_path, "retries=2", "prompt='{{ ds }} {{ row.text }}'")

    ran = run_task(f"OllamaBatchOperator({given})")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "uses 'ds', but knows only 'row': write row.ds for a column of that name, or define it in var" in ran.log
    assert prompts(ollama) == []


def test_shards_must_have_the_same_variables(run_task, tmp_path) -> None:
    """Else their keys would share the rows in two ways, and a row would be nobody's."""
    given = batch(tmp_path, "prompt='{{ n }} {{ row.text }}'", "variables={'n': '{{ ti.map_index }}'}")
    above = "from ollama_provider.operators.batch import sharded"

    ran = run_task(
        f"""
        @task(trigger_rule="all_done")
        def t():
            return None
        sharded(2, {given.replace("task_id='t'", "task_id='all'")}) >> t()
        """,
        above=above,
    )

    assert "belongs to a batch with other settings (variables)" in ran.log


def test_a_text_that_native_rendering_has_made_a_number_is_refused(run_task, tmp_path) -> None:
    """It may have been 1.10, and is not asked for again."""
    given = batch(tmp_path, "retries=2").replace("resume='task'", "resume='{{ params.version }}'")

    ran = run_task(f"OllamaBatchOperator({given})", params={"version": "1.10"}, render_template_as_native_obj=True)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "resume: a text is needed, not float" in ran.log
    assert "render_template_as_native_obj" in ran.log


@pytest.mark.usefixtures("run_task")
def test_a_dag_with_a_fixed_offset(run_dag, tmp_path) -> None:
    """Its timezone has no name of its own, and its half past ten is not that of London."""
    ran = run_dag(f"""
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.batch import Window
from ollama_provider.operators import OllamaBatchOperator

start = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
with DAG("with_an_offset", schedule=None, start_date=start):
    OllamaBatchOperator({batch(tmp_path, "window=Window(stop_at='2020-01-01T22:30')")})
""")

    (instance,) = ran.get_task_instances()
    assert str(instance.state) == "success"
    assert "had closed at 2020-01-01T22:30+02:00" in instance.xcom_pull(task_ids="t")["reason"]


def test_a_window_that_is_open(run_task, tmp_path) -> None:
    """A time of day counts from the beginning of the DAG run, in the DAG's timezone."""
    window = "window=Window(stop_at=timedelta(hours=1), unload_after=True)"
    ran = run_task(f"OllamaBatchOperator({batch(tmp_path, window)})")

    assert (ran.state, ran.value["complete"]) == ("success", True)


@pytest.mark.ollama(models=[Model("emb", ("embedding",), embedding_length=16)])
def test_vectors(run_task, tmp_path) -> None:
    """Into Parquet."""
    given = batch(tmp_path, "embedding=Embedding()", model="emb")
    ran = run_task(f"OllamaBatchOperator({given})")

    assert ran.state == "success", ran.log
    table = parquet.read_table(tmp_path / "out/results.parquet")
    assert (table.num_rows, table.schema.field("output").type.list_size) == (40, 16)


def test_a_pydantic_class(run_task, tmp_path) -> None:
    """Its schema is asked for and its rules are checked; the answers are data."""
    above = "import pydantic\nclass Label(pydantic.BaseModel):\n    name: str\n    score: int"

    ran = run_task(f"OllamaBatchOperator({batch(tmp_path, 'output_type=Label')})", above=above)

    assert ran.state == "success", ran.log
    first = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])
    assert set(first["output"]) == {"name", "score"}


def test_groups_of_mapped_tasks(run_task, ollama, tmp_path) -> None:
    """Templates in them are rendered for each task, and the value that the tasks share is left as it is."""
    given = batch(tmp_path, "pace=SHARED").replace("task_id='t'", "task_id='each'")

    ran = run_task(
        f"""
        @task
        def policies():
            return [{{'max_attempts': 1}}]

        @task
        def t(summaries, more):
            assert repr(SHARED) == "Pace(concurrency='{{{{ params.concurrency }}}}')"
            return [summary['ok'] for summary in [*summaries, *more]]

        each = OllamaBatchOperator.partial({given})
        t(
            each.expand(failures=[FailurePolicy(max_attempts='{{{{ params.n }}}}'), {{'allow_cut': True}}]).output,
            OllamaBatchOperator.partial({given.replace("'each'", "'more'")}).expand(failures=policies()).output,
        )
        """,
        above="SHARED = Pace(concurrency='{{ params.concurrency }}')",
        params={"concurrency": 2, "n": 5},
    )

    assert (ran.state, ran.value) == ("success", [40, 40, 40]), ran.log
    settings = [json.loads((tmp_path / "out" / str(index) / "batch.json").read_text())["settings"] for index in (0, 1)]
    assert [each["failures"]["allow_cut"] for each in settings] == [False, True]
    assert {each["pace"]["concurrency"] for each in settings} == {2}


def test_a_group_of_a_decorated_task(run_task, tmp_path) -> None:
    """The function has the rows, the decorator all else; the output of another task is waited for."""
    ran = run_task(f"""
        @task
        def slots():
            return 2

        @task.ollama_batch(
            model='llama3.2', output_path='{tmp_path}/out', resume='task', pace=Pace(concurrency=slots()),
            failures=FailurePolicy(max_failed_ratio='{{{{ params.ratio }}}}'),
        )
        def t():
            return ['a', 'b']

        t()
        """, params={"ratio": 0.5})  # fmt: skip

    assert (ran.state, ran.value["ok"]) == ("success", 2), ran.log
    settings = json.loads((tmp_path / "out/batch.json").read_text())["settings"]
    assert settings["pace"]["concurrency"] == 2
    assert settings["failures"]["max_failed_ratio"] == 0.5


def test_a_function_returns_a_table(run_task, ollama, tmp_path) -> None:
    """As it is: it is not rendered, and what is in its cells is no template."""
    ran = run_task(f"""
        @task.ollama_batch(model='llama3.2', output_path='{tmp_path}/out', resume='task', keep_columns='all')
        def t():
            import pyarrow as pa

            return pa.table({{'text': ['{{{{ ds }}}}', 'b'], 'n': [1, 2]}})

        t()
        """)

    assert (ran.state, ran.value["ok"]) == ("success", 2), ran.log
    rows = [json.loads(line)["row"] for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert rows == [{"text": "{{ ds }}", "n": 1}, {"text": "b", "n": 2}]


def test_timeouts_are_laid_over_those_of_the_connection(run_task, ollama, tmp_path) -> None:
    """Those that are given."""
    ollama.stand_in.script(Stall(after=1), always=True, where=lambda body: body.get("prompt") == "text 7")
    given = batch(tmp_path, "timeouts=Timeouts(idle='{{ params.idle }}')", "failures={'max_failed_rows': 1}")

    ran = run_task(f"OllamaBatchOperator({given})", params={"idle": 0.3})

    assert (ran.state, ran.value["errors"]) == ("success", {"IdleTimeoutError": 1}), ran.log
