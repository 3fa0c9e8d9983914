"""``@task.ollama_…`` in a DAG, run by Airflow, with the wait in the worker and in a trigger."""

import json
from collections.abc import Callable
from itertools import count
from textwrap import dedent, indent
from typing import Any

import pytest

from ollama_provider.testing import Answer, Model

_DAG = """
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, literal, task
from pydantic import BaseModel

class Review(BaseModel):
    stars: int
    topics: list[str] = []

with DAG(
    "decorated_{number}",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={{"what": "rain"}},
    default_args={{"retry_delay": timedelta(0), "deferrable": {deferrable}}},
):
{tasks}
"""
_NUMBERS = count()


class Ran:
    """What is left of a run: its state, and the XComs of each task, by map index for mapped ones."""

    def __init__(self, run) -> None:
        self.state = str(run.state)
        self._tasks = run.get_task_instances()

    def __getitem__(self, task: str) -> Any:
        return self.xcom(task)

    def xcom(self, task: str, key: str = "return_value") -> Any:
        values = {
            instance.map_index: instance.xcom_pull(task_ids=task, map_indexes=instance.map_index, key=key)
            for instance in self._tasks
            if instance.task_id == task
        }
        assert json.loads(json.dumps(list(values.values()), allow_nan=False)) == list(values.values())
        return values.get(-1) if -1 in values else [values[index] for index in sorted(values)]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def run(request, run_dag, ollama_conn) -> Callable[[str], Ran]:
    """Return a function that runs a DAG of these lines."""

    def run(tasks: str) -> Ran:
        # Another name each time: Airflow 3.1 takes half a minute to see that a DAG has other tasks than before.
        source = _DAG.format(tasks=indent(dedent(tasks), "    "), deferrable=request.param, number=next(_NUMBERS))
        return Ran(run_dag(source))

    return run


@pytest.fixture
def log(capfd, caplog) -> Callable[[], str]:
    """Return a function that returns what was logged, wherever this Airflow puts it."""
    return lambda: "".join(capfd.readouterr()) + caplog.text


def sent(ollama, path: str = "/api/generate") -> list[dict[str, Any]]:
    return [seen.json for seen in ollama.stand_in.requests if seen.path == path]


def test_generate(run, ollama) -> None:
    """The function returns the prompt; its arguments and its Jinja are filled in; the task is named after it."""
    ollama.stand_in.script("Drops.")

    ran = run("""
        @task.ollama_generate(model="llama3.2", system="Be brief.", options={"seed": 1})
        def describe(tongue: str, *, params=None) -> str:
            return f"Describe {{{{ params.what }}}} ({params['what']}) in {tongue}."

        describe("Dutch")
    """)

    assert (ran.state, ran["describe"]) == ("success", "Drops.")
    (request,) = sent(ollama)
    assert request["prompt"] == "Describe rain (rain) in Dutch."
    assert (request["system"], request["options"]) == ("Be brief.", {"seed": 1})
    assert ran.xcom("describe", "usage")["model"] == "llama3.2:latest"


def test_chat(run, ollama) -> None:
    """The function returns messages, with Jinja at any depth, and the answer of a task before."""
    ollama.stand_in.script("Rome.", "2.8 million.")

    ran = run("""
        @task.ollama_chat(model="llama3.2")
        def capital() -> str:
            return "Capital of Italy?"

        @task.ollama_chat(model="llama3.2")
        def people(city: str) -> list[dict]:
            return [
                {"role": "system", "content": "You know all about {{ params.what }}."},
                {"role": "user", "content": f"How many live in {city}"},
            ]

        people(capital())
    """)

    assert (ran.state, ran["people"]) == ("success", "2.8 million.")
    assert sent(ollama, "/api/chat")[1]["messages"] == [
        {"role": "system", "content": "You know all about rain."},
        {"role": "user", "content": "How many live in Rome."},
    ]


@pytest.mark.ollama(models=[Model("nomic-embed-text", ("embedding",))])
def test_embed(run, ollama) -> None:
    """The function returns texts; downstream gets a vector for each."""
    ollama.stand_in.script(Answer(vectors=[[1.0, 0.0], [0.0, 1.0]]))

    ran = run("""
        @task.ollama_embed(model="nomic-embed-text")
        def vectors() -> list[str]:
            return ["a cat", "about {{ params.what }}"]

        @task
        def count(vectors: list[list[float]]) -> int:
            return len(vectors)

        count(vectors())
    """)

    assert (ran.state, ran["count"]) == ("success", 2)
    assert sent(ollama, "/api/embed")[0]["input"] == ["a cat", "about rain"]


def test_a_class_gives_plain_data_downstream(run, ollama) -> None:
    """Validated, and with the defaults filled in; no class that the next task could not read."""
    ollama.stand_in.script({"stars": 4})

    ran = run("""
        @task.ollama_generate(model="llama3.2", output_type=Review)
        def review(text: str) -> str:
            return f"Judge: {text}"

        @task
        def stars(found: dict) -> int:
            return found["stars"] + len(found["topics"])

        stars(review("Nice."))
    """)

    assert (ran.state, ran["review"], ran["stars"]) == ("success", {"stars": 4, "topics": []}, 4)
    assert sent(ollama)[0]["format"]["properties"].keys() == {"stars", "topics"}


def test_multiple_outputs(run, ollama) -> None:
    """Each field of the answer is an XCom of its own."""
    ollama.stand_in.script({"stars": 4, "topics": ["price"]})

    ran = run("""
        @task.ollama_generate(model="llama3.2", output_type=Review, multiple_outputs=True)
        def review() -> str:
            return "Judge: Nice."

        @task
        def stars(stars: int) -> int:
            return stars

        stars(review()["stars"])
    """)

    assert (ran.state, ran["stars"]) == ("success", 4)
    assert ran.xcom("review", "topics") == ["price"]


def test_override_partial_expand(run, ollama) -> None:
    """A task for each text, with another model and another name than the function says."""
    ollama.stand_in.install(Model("mistral"))

    ran = run("""
        @task.ollama_generate(model="llama3.2")
        def describe(tongue: str, thing: str) -> str:
            return f"{thing} in {tongue}: {{{{ params.what }}}}"

        describe.override(task_id="t", model="mistral", options={"num_predict": 5}).partial(tongue="Dutch").expand(
            thing=["fog", "hail", "snow"]
        )
    """)

    assert ran.state == "success"
    assert len(ran["t"]) == 3
    requests = sent(ollama)
    assert sorted(request["prompt"] for request in requests) == [
        f"{thing} in Dutch: rain" for thing in ("fog", "hail", "snow")
    ]
    assert {request["model"] for request in requests} == {"mistral"}
    assert {request["options"]["num_predict"] for request in requests} == {5}


def test_map_over_the_answers_of_a_task(run, ollama) -> None:
    """A list that a model made is mapped over by the next."""
    ollama.stand_in.script(["fog", "hail"], "A.", "B.")

    ran = run("""
        @task.ollama_generate(model="llama3.2", output_type=list[str])
        def things() -> str:
            return "Kinds of weather?"

        @task.ollama_generate(model="llama3.2")
        def describe(thing: str) -> str:
            return f"Describe {thing}."

        describe.expand(thing=things())
    """)

    assert (ran.state, sorted(ran["describe"])) == ("success", ["A.", "B."])
    assert sorted(request["prompt"] for request in sent(ollama)[1:]) == ["Describe fog.", "Describe hail."]


def test_data_in_the_arguments_is_no_template(run, ollama) -> None:
    """Braces in a document are the document's: it may be sent as it is, and cannot read Airflow's variables."""
    ollama.stand_in.script("Done.", "Done.")

    ran = run("""
        @task
        def document() -> str:
            return "run: ${{ matrix.python }} and {{ params.what }}"

        @task.ollama_generate(model="llama3.2")
        def summarise(text: str):
            return literal(f"Summarise: {text}")

        @task.ollama_chat(model="llama3.2")
        def discuss(text: str):
            return [{"role": "system", "content": "{{ params.what }}"}, {"role": "user", "content": literal(text)}]

        summarise(document())
        discuss(document())
    """)

    assert ran.state == "success"
    text = "run: ${{ matrix.python }} and {{ params.what }}"
    assert sent(ollama)[0]["prompt"] == f"Summarise: {text}"
    assert [message["content"] for message in sent(ollama, "/api/chat")[0]["messages"]] == ["rain", text]


def test_braces_that_are_no_template_say_what_to_do(run, ollama, log) -> None:
    """A text that cannot be rendered fails for good, and is not quoted."""
    ran = run("""
        @task.ollama_generate(model="llama3.2", retries=3)
        def summarise():
            return "Summarise the diary: ${{ matrix.python }}"

        summarise()
    """)

    assert ran.state == "failed"
    assert sent(ollama) == []
    told = log()
    assert "summarise() returned cannot be rendered as a template (UndefinedError)" in told
    assert "return literal(...) of it" in told


@pytest.mark.parametrize(
    ("decorator", "value", "told"),
    [
        ("ollama_generate", "None", "prompt: it is empty"),
        ("ollama_generate", "4.2", "prompt: a text is needed, not float"),
        ("ollama_chat", "[]", "messages: empty; check the template"),
        ("ollama_embed", "['a', ' ']", "texts.1: it is empty"),
    ],
)
def test_a_function_that_returns_nothing_useful_fails_at_once(run, ollama, log, decorator, value, told) -> None:
    """With the name of the argument, before anything is sent."""
    ran = run(f"""
        @task.{decorator}(model="llama3.2", retries=3)
        def ask():
            return {value}

        ask()
    """)

    assert ran.state == "failed"
    assert told in log()
    assert ollama.stand_in.requests == []


def test_the_function_is_called_once(run, ollama, tmp_path) -> None:
    """Also when the task was deferred in between: it may cost something, or not return the same twice."""
    ollama.stand_in.script("Done.")

    ran = run(f"""
        @task.ollama_generate(model="llama3.2")
        def ask() -> str:
            with open({str(tmp_path / "calls")!r}, "a") as file:
                file.write("called ")
            return "Hi"

        ask()
    """)

    assert ran["ask"] == "Done."
    assert (tmp_path / "calls").read_text() == "called "
