"""OllamaEmbedOperator, run by Airflow against the stand-in."""

import json
import math

import pytest
from pyarrow import parquet

from ollama_provider.testing import Answer, Fail, Model

TASK = "OllamaEmbedOperator(task_id='t', model='nomic-embed-text', retries=3, "


def inputs(ollama):
    """The texts of each request for vectors."""
    return [seen.json["input"] for seen in ollama.stand_in.requests if seen.path == "/api/embed"]


def test_vectors_in_xcom(run_task, ollama) -> None:
    """A list of numbers for each text, in their order, all of length 1."""
    ran = run_task(f"{TASK}texts=['a cat', 'a car', '{{{{ params.what }}}}'])", params={"what": "a cat"})

    assert ran.state == "success"
    cat, car, again = ran.value
    assert cat == again
    assert cat != car
    assert math.isclose(sum(number * number for number in cat), 1, rel_tol=1e-3)
    assert ran.usage["texts"] == 3
    assert ran.usage["texts_cut"] == 0
    assert ran.usage["prompt_tokens"] > 0
    assert len(ran.usage["digest"]) == 64
    assert (
        f"Model nomic-embed-text:latest at {ollama.url}: 3 texts, {ran.usage['prompt_tokens']} prompt tokens" in ran.log
    )


def test_one_text(run_task) -> None:
    """A single text gives a list with one vector, cut to the dimensions asked for."""
    ran = run_task(f"{TASK}texts='a cat', dimensions=16)")

    assert [len(vector) for vector in ran.value] == [16]


def test_texts_of_another_task(run_task, ollama) -> None:
    """A list comes whole out of another task."""
    ran = run_task(f"""
        @task
        def texts():
            return ['one', 'two']

        {TASK}texts=texts())
    """)

    assert len(ran.value) == 2
    assert inputs(ollama) == [["one", "two"]]


def test_no_texts(run_task, ollama) -> None:
    """An empty list is not an error: there was nothing to do."""
    ran = run_task(f"{TASK}texts=[])")

    assert (ran.state, ran.value) == ("success", [])
    assert inputs(ollama) == []


def test_many_texts_go_in_pieces(run_task, ollama) -> None:
    """Many texts are many requests, and one result."""
    ran = run_task(f"{TASK}texts=['text %d' % n for n in range(70)], dimensions=8)")

    assert len(ran.value) == 70
    assert [len(texts) for texts in inputs(ollama)] == [32, 32, 6]


def test_too_much_for_xcom(run_task, ollama) -> None:
    """The first vector shows it, so hours of work are not thrown away; the text says what to do."""
    ran = run_task(f"{TASK}texts=['text'] * 5000)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "5000 vectors of 768 numbers are about" in ran.log
    assert "set output_path to a .jsonl or .parquet file" in ran.log
    assert len(inputs(ollama)) == 1


def test_json_lines(run_task, ollama, tmp_path) -> None:
    """A row a text in the file; XCom says where and what."""
    path = tmp_path / "new" / "vectors.jsonl"

    task = f"{TASK}texts=['a cat', 'näh\\u2028e'] * 20, output_path='{tmp_path}/{{{{ params.folder }}}}/vectors.jsonl')"
    ran = run_task(task, params={"folder": "new"})

    assert ran.value == {
        "path": f"{path}",
        "rows": 40,
        "dimensions": 768,
        "model": "nomic-embed-text:latest",
        "digest": ran.usage["digest"],
    }
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(40))
    assert [row["text"] for row in rows[:2]] == ["a cat", "näh\u2028e"]
    assert {len(row["embedding"]) for row in rows} == {768}
    assert not any(row["prompt_cut"] for row in rows)


def test_parquet(run_task, tmp_path) -> None:
    """The same as a table, on any ObjectStoragePath."""
    ran = run_task(f"{TASK}texts=['a cat', 'a car'], output_path='file://{tmp_path}/vectors.parquet', dimensions=4)")

    assert ran.value["dimensions"] == 4
    table = parquet.read_table(tmp_path / "vectors.parquet")
    assert table.column("text").to_pylist() == ["a cat", "a car"]
    assert [len(vector) for vector in table.column("embedding").to_pylist()] == [4, 4]
    assert table.column("index").to_pylist() == [0, 1]


def test_no_half_file(run_task, ollama, tmp_path) -> None:
    """When a later piece fails there is no file, not even the one of yesterday's name with half its rows."""
    path = tmp_path / "vectors.jsonl"
    path.write_text("yesterday\n")
    ollama.stand_in.script(
        Fail("this model does not support embeddings", status=501), where=lambda body: "text 69" in body["input"]
    )

    ran = run_task(f"{TASK}texts=['text %d' % n for n in range(70)], output_path='{path}')")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert path.read_text() == "yesterday\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("texts=''", "texts.0: it is empty"),
        ("texts=['a', ' ']", "texts.1: it is empty"),
        ("texts=['a', 3]", "texts.1: a text is needed, not int"),
        ("texts={'a': 1}", "texts: a text or a list of texts is needed, not dict"),
        ("texts='a', output_path='/tmp/vectors.csv'", "'vectors.csv' must end in .jsonl or .parquet"),
        ("texts='a', on_truncation='ignore'", "on_truncation: 'ignore' is not one of 'warn', 'fail'"),
        ("texts='a', dimensions=0", "dimensions: Input should be greater than or equal to 1"),
        ("texts='a', options={'num_ctxt': 1}", "did you mean 'num_ctx'"),
    ],
)
def test_what_cannot_be_right_fails_at_once(run_task, ollama, arguments, told) -> None:
    """It is found before anything is sent, and no retry is wasted on it."""
    ran = run_task(f"{TASK}{arguments})")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert ollama.stand_in.requests == []


def test_model_that_cannot(run_task) -> None:
    """A model for text has no vectors; the text says what to choose."""
    ran = run_task("OllamaEmbedOperator(task_id='t', model='llama3.2', texts='a', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "Choose a model with that capability" in ran.log


def test_too_few_vectors(run_task, ollama) -> None:
    """A reply that lacks a vector is no reply."""
    ollama.stand_in.script(Answer(vectors=[[1.0, 0.0]]), always=True)

    ran = run_task("OllamaEmbedOperator(task_id='t', model='nomic-embed-text', texts=['a', 'b'])")

    assert ran.state == "failed"
    assert "2 texts" in ran.log


LONG = "OllamaEmbedOperator(task_id='t', model='small', texts=['a', 'word ' * 500, 'b'], retries=3"


@pytest.fixture
def small(ollama) -> None:
    """An embedding model whose context is small."""
    ollama.stand_in.install(Model("small", ("embedding",), context_length=64))


@pytest.mark.usefixtures("small")
def test_text_over_the_context_is_cut_and_flagged(run_task, tmp_path) -> None:
    """Only the text that is too long is cut, and its row has a flag."""
    ran = run_task(f"{LONG}, output_path='{tmp_path}/vectors.jsonl')")

    assert ran.state == "success"
    rows = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    assert [row["prompt_cut"] for row in rows] == [False, True, False]
    assert ran.usage["texts_cut"] == 1
    assert "1 of 3 texts were longer than the context and were cut" in ran.log


@pytest.mark.usefixtures("small")
def test_text_over_the_context_fails_if_asked_to(run_task) -> None:
    """``on_truncation="fail"`` names the text by its place."""
    ran = run_task(f"{LONG}, on_truncation='fail')")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "texts.1: " in ran.log


@pytest.mark.parametrize("template", ["{{ params.texts }}", "{{ params.texts | tojson }}"])
@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_a_template_that_gives_a_list(run_task, ollama, template, native) -> None:
    """A vector for each text of the list, and not one for its brackets and quotes."""
    ran = run_task(
        f"{TASK}texts='{template}')", params={"texts": ["it's one", "two"]}, render_template_as_native_obj=native
    )

    assert ran.state == "success"
    assert inputs(ollama) == [["it's one", "two"]]


def test_a_text_that_looks_like_a_list_is_a_text(run_task, ollama) -> None:
    """Where no template made it: a document may be JSON."""
    run_task(f'{TASK}texts=\'["a", "b"]\')')
    run_task(f"{TASK}texts=['{{{{ params.text }}}}'])", params={"text": '["a", "b"]'})

    assert inputs(ollama) == [['["a", "b"]']] * 2


def test_a_number_that_was_a_text(run_task, ollama) -> None:
    """Where the DAG renders natively; the text says what to do."""
    native = {"params": {"text": "7"}, "render_template_as_native_obj": True}
    bad = run_task(f"{TASK}texts='{{{{ params.text }}}}')", **native)
    good = run_task(f"{TASK}texts='{{{{ params.text | tojson }}}}')", **native)

    assert (bad.state, bad.tries) == ("failed", 1)
    assert "texts: a text or a list of texts is needed, not int" in bad.log
    assert "tojson" in bad.log
    assert good.state == "success"
    assert inputs(ollama) == [["7"]]


def test_a_function_that_returns_a_template_of_a_list(run_task, ollama) -> None:
    """The decorator reads it as the operator does."""
    ran = run_task(
        """
        @task.ollama_embed(model='nomic-embed-text')
        def t():
            return '{{ params.texts }}'

        t()
        """,
        params={"texts": ["one", "two"]},
    )

    assert len(ran.value) == 2
