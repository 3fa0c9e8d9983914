"""OllamaBranchOperator and ``@task.ollama_branch``, run by Airflow against the stand-in."""

import re
import threading
from collections.abc import Callable
from itertools import count
from textwrap import dedent, indent
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, BaseOperator

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.operators import OllamaBranchOperator
from ollama_provider.testing import Answer, Fail, Model, Stall

_DAG = """
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, TaskGroup, task
from ollama_provider.operators import OllamaBranchOperator, OllamaGenerateOperator

with DAG(
    "branch_{number}",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={{"mail": "The lamp is broken.", "default": "archive"}},
    default_args={{"retry_delay": timedelta(0), "deferrable": {deferrable}}},
):
    @task
    def archive():
        "Keep it."
        return "kept"

    @task
    def refund():
        '''
        Pay the money back.

        By the end of the month.
        '''
        return "paid"

    @task
    def answer():
        return "answered"

    @task(trigger_rule="none_failed_min_one_success")
    def join():
        return "joined"

    def ask(**arguments):
        return OllamaBranchOperator(task_id="t", model="llama3.2", prompt="{{{{ params.mail }}}}", **arguments)

{tasks}
"""
_NUMBERS = count()


class Ran:
    """What is left of a run.

    Attributes:
        done: ids of the tasks that were run, without ``t``.
        skipped: ids of those that were skipped.
        states: of all tasks; of mapped ones, the last.
        value: XCom of ``t``.
        tries: of ``t``.
    """

    def __init__(self, run: Any) -> None:
        instances = run.get_task_instances()
        self.states = {instance.task_id: str(instance.state) for instance in instances}
        self.done = {name for name, state in self.states.items() if state == "success"} - {"t"}
        self.skipped = {name for name, state in self.states.items() if state == "skipped"}
        (self.value, self.tries) = next(
            (instance.xcom_pull(task_ids="t"), instance.try_number) for instance in instances if instance.task_id == "t"
        )


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def run(request, run_dag, ollama_conn) -> Callable[[str], Ran]:
    """Return a function that runs a DAG with these lines, with the wait in the worker and in a trigger."""

    def run(tasks: str) -> Ran:
        source = _DAG.format(tasks=indent(dedent(tasks), "    "), deferrable=request.param, number=next(_NUMBERS))
        return Ran(run_dag(source))

    return run


@pytest.fixture
def log(capfd, caplog) -> Callable[[], str]:
    """Return a function that returns what was logged, wherever this Airflow puts it."""
    return lambda: "".join(capfd.readouterr()) + caplog.text


def sent(ollama) -> list[dict[str, Any]]:
    return [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"]


def test_the_model_chooses_one_task(run, ollama, log) -> None:
    """It is told the names and what they are for, and can give no other; the mail is in no log."""
    ollama.stand_in.script({"task": "refund"})

    ran = run("ask(system='You read mails.', options={'seed': 1}) >> [archive(), refund(), answer()] >> join()")

    assert (ran.done, ran.skipped, ran.value) == ({"refund", "join"}, {"archive", "answer"}, "refund")
    (request,) = sent(ollama)
    assert request["format"] == {
        "type": "object",
        "properties": {"task": {"type": "string", "enum": ["answer", "archive", "refund"]}},
        "required": ["task"],
    }
    system, user = request["messages"]
    assert system["content"].startswith("You read mails.\n\nChoose the task that comes next. Answer in JSON")
    assert system["content"].endswith(":\n- answer\n- archive: Keep it.\n- refund: Pay the money back.")
    assert user == {"role": "user", "content": "The lamp is broken."}
    assert (request["options"], request["think"]) == ({"seed": 1}, False)
    told = log()
    assert "lamp" not in told
    assert "refund" in told


def test_several_tasks(run, ollama) -> None:
    """Each once, however often the model names it."""
    ollama.stand_in.script({"tasks": ["refund", "archive", "refund"]})

    ran = run("ask(allow_multiple_branches=True) >> [archive(), refund(), answer()] >> join()")

    assert (ran.done, ran.skipped) == ({"refund", "archive", "join"}, {"answer"})
    assert ran.value == ["refund", "archive"]
    assert sent(ollama)[0]["format"]["properties"]["tasks"]["minItems"] == 1


def test_tasks_of_groups_and_mapped_tasks_can_be_chosen(run, ollama) -> None:
    """By their whole ids."""
    ollama.stand_in.script({"task": "letter"}, "Dear A.", "Dear B.")

    # Chosen, since `dag.test` of Airflow 2.11 runs a mapped task also after a branch has skipped it.
    ran = run("""
        with TaskGroup("payments"):
            paying = refund()

        letters = OllamaGenerateOperator.partial(task_id="letter", doc_md="Write letters.", model="llama3.2")
        ask() >> [paying, letters.expand(prompt=["Write to A.", "Write to B."])]
    """)

    assert (ran.done, ran.skipped) == ({"letter"}, {"payments.refund"})
    told = sent(ollama)[0]["messages"][0]["content"]
    assert told.endswith("- letter: Write letters.\n- payments.refund: Pay the money back.")


def test_decorated(run, ollama) -> None:
    """The function returns the prompt."""
    ollama.stand_in.script({"task": "archive"})

    ran = run("""
        @task.ollama_branch(model="llama3.2", default="archive")
        def t(mail: str):
            return f"What to do with this? {mail} {{{{ params.mail }}}}"

        t("Hello.") >> [archive(), refund()]
    """)

    assert (ran.done, ran.skipped, ran.value) == ({"archive"}, {"refund"}, "archive")
    assert sent(ollama)[0]["messages"][1]["content"] == "What to do with this? Hello. The lamp is broken."


WRONG_ANSWERS = [
    {"task": "delete_everything"},
    {"tasks": ["refund"]},
    "refund",
    '{"task": "re',
    Answer("", thinking="Hm."),
]


@pytest.mark.parametrize("wrong", WRONG_ANSWERS, ids=str)
def test_no_other_answer_counts(run, ollama, log, wrong) -> None:
    """Also where a server ignores the schema; the text does not quote the answer."""
    ollama.stand_in.script(wrong)

    ran = run("ask() >> [archive(), refund()]")

    assert ran.states == {"t": "failed", "archive": "upstream_failed", "refund": "upstream_failed"}
    assert "delete_everything" not in log()


def test_the_default_comes_after_the_retries(run, ollama, log) -> None:
    """It is a template; the log says why it was followed."""
    ollama.stand_in.script({"task": "delete_everything"}, times=2)

    ran = run("ask(default='{{ params.default }}', retries=1) >> [archive(), refund()]")

    assert (ran.done, ran.skipped, ran.value, ran.tries) == ({"archive"}, {"refund"}, "archive", 2)
    assert len(sent(ollama)) == 2
    told = log()
    assert re.search("not chosen, so the default is followed: the answer does not fit the schema", told)
    assert "delete_everything" not in told


@pytest.mark.usefixtures("no_waiting")
def test_the_default_where_there_is_no_server(run, add_connection, ollama) -> None:
    """A night goes on without its model, with one task or a list of it."""
    add_connection(host="http://127.0.0.1:9", extra={"max_attempts": 1})

    ran = run("ask(default='archive', allow_multiple_branches=True) >> [archive(), refund()]")

    assert (ran.done, ran.skipped, ran.value) == ({"archive"}, {"refund"}, ["archive"])
    assert sent(ollama) == []


def test_the_default_does_not_hide_a_wrong_setup(run, ollama, log) -> None:
    """Nobody would hear for months that the key is wrong. The retries are not used."""
    ollama.stand_in.script(Fail("unauthorized", status=401), always=True)

    ran = run("ask(default='archive', retries=2) >> [archive(), refund()]")

    assert (ran.states["t"], ran.done, ran.tries) == ("failed", set(), 1)
    assert "default is followed" not in log()


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ("ask(default='refund') >> archive()", "default: 'refund' is not one of the tasks directly downstream: arch"),
        ("ask()", "no task comes after 't', so there is nothing to choose from"),
        ("OllamaBranchOperator(task_id='t', prompt=' ', default='archive') >> archive()", "prompt: it is empty"),
    ],
)
def test_a_mistake_in_the_dag_fails_at_once(run, ollama, log, tasks, told) -> None:
    """Before anything is asked, with or without a default."""
    ran = run(tasks)

    assert ran.states["t"] == "failed"
    assert told in log()
    assert ollama.stand_in.requests == []


@pytest.mark.ollama(models=[Model("qwen3", ("completion", "thinking"))])
def test_a_model_may_reason_before_it_chooses(run, ollama) -> None:
    """In a chat the schema is for the answer only."""
    ollama.stand_in.script(Answer('{"task": "refund"}', thinking="It is broken, so …"))

    ran = run("""
        OllamaBranchOperator(task_id="t", model="qwen3", prompt="Broken.", think=True) >> [archive(), refund()]
    """)

    assert ran.value == "refund"
    assert sent(ollama)[0]["think"] is True


def test_a_killed_task_follows_nothing(ollama, ollama_conn) -> None:
    """Whoever stopped it does not want its tasks to be run."""
    ollama.stand_in.script(Stall())
    with DAG("any", schedule=None):
        branch = OllamaBranchOperator(task_id="t", model="llama3.2", prompt="x", default="a", first_token_timeout=20)
        branch >> BaseOperator(task_id="a")

    def kill() -> None:
        ollama.stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        branch.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(AirflowException, match="the client was closed meanwhile"):
        branch.execute({"ti": SimpleNamespace(try_number=1, max_tries=0)})
    killer.join()


@pytest.mark.parametrize("name", ["format", "output_type", "output"])
def test_the_form_of_the_answer_is_not_the_dags(name) -> None:
    """Refused while the file is parsed."""
    with DAG("any", schedule=None), pytest.raises(InvalidRequestError, match=rf"^{name}: the answer of a branch is"):
        OllamaBranchOperator(task_id="t", prompt="x", **{name: "json"})


def test_a_teardown_is_no_choice() -> None:
    """It is run whatever comes before it."""
    with DAG("any", schedule=None):
        branch = OllamaBranchOperator(task_id="t", prompt="x")
        branch >> [BaseOperator(task_id="a"), BaseOperator(task_id="clean_up").as_teardown()]

    assert list(branch.choices()) == ["a"]
