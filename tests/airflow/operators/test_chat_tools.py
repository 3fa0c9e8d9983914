"""OllamaChatOperator with tools, run by Airflow against the stand-in."""

import pytest

from ollama_provider.testing import Answer

pytestmark = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)

TOOLS = '''
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

def forecast(city: str, days: int = 1) -> dict:
    """Return the weather to come.

    Args:
        city: where.
        days: how many.
    """
    return {"city": city, "weather": ["sunny"] * days}

def broken(city: str) -> str:
    """Return the weather, if it can."""
    raise KeyError(f"secret place {city}")

def hopeless(city: str) -> str:
    """Return nothing."""
    raise AirflowFailException("no weather any more")

def skip(city: str) -> str:
    """Return nothing."""
    raise AirflowSkipException("no weather today")
'''
SCHEMA = "{'type': 'function', 'function': {'name': 'forecast', 'description': 'd', 'parameters': {'type': 'object'}}}"


def task(arguments: str, model: str = "llama3.2") -> str:
    return f"OllamaChatOperator(task_id='t', model='{model}', messages='Weather?', retries=3, {arguments})"


def called(*calls: tuple[str, dict]) -> Answer:
    return Answer(tool_calls=calls)


def chats(ollama) -> list[dict]:
    return [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"]


def test_a_function_is_called_and_its_result_sent_to_the_model(run_task, ollama):
    """The function runs, its result is sent with the name and id of the call, and XCom gets the answer."""
    ollama.stand_in.script(called(("forecast", {"city": "Paris", "days": 2})), "Sunny in Paris.")

    ran = run_task(task("tools=[forecast]"), above=TOOLS)

    assert (ran.state, ran.value) == ("success", "Sunny in Paris.")
    first, second = chats(ollama)
    assert first["tools"][0]["function"]["parameters"]["required"] == ["city"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    told = second["messages"][2]
    assert told["content"] == '{"city":"Paris","weather":["sunny","sunny"]}'
    assert told["tool_name"] == "forecast"
    assert told["tool_call_id"] == second["messages"][1]["tool_calls"][0]["id"]


def test_each_call_is_logged_by_name_alone(run_task, ollama):
    """Arguments and results are content, and content is not logged."""
    ollama.stand_in.script(called(("forecast", {"city": "Atlantis"})), "Wet.")

    ran = run_task(task("tools=[forecast]"), above=TOOLS)

    assert "Tool forecast: called" in ran.log
    assert "Atlantis" not in ran.log
    assert "sunny" not in ran.log


def test_what_it_cost_is_the_sum(run_task, ollama):
    """Tokens of all rounds, and how often each tool was called."""
    ollama.stand_in.script(
        Answer(
            tool_calls=(("forecast", {"city": "a"}), ("forecast", {"city": "b"})), eval_count=10, prompt_eval_count=5
        ),
        Answer("Done.", eval_count=3, prompt_eval_count=20),
    )

    ran = run_task(task("tools=[forecast]"), above=TOOLS)

    assert (ran.usage["tokens"], ran.usage["prompt_tokens"]) == (13, 25)
    assert ran.usage["tool_calls"] == {"forecast": 2}
    assert ran.usage["done_reason"] == "stop"


def test_a_model_may_answer_at_once(run_task, ollama):
    """Tools are an offer."""
    ollama.stand_in.script("I just know.")

    ran = run_task(task("tools=[forecast]"), above=TOOLS)

    assert ran.value == "I just know."
    assert ran.usage["tool_calls"] == {}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("rm", {"path": "/"}), "error: there is no tool 'rm'; the tools are forecast, broken"),
        (("forecast", {}), "error: the arguments are not valid: city: Field required"),
        (
            ("forecast", {"city": "a", "days": "few"}),
            "error: the arguments are not valid: days: Input should be a valid int",
        ),
        (
            ("forecast", {"city": "a", "town": "b"}),
            "error: the arguments are not valid: town: there is no such argument",
        ),
        (("broken", {"city": "Atlantis"}), "error: KeyError: 'secret place Atlantis'"),
    ],
)
def test_the_error_of_a_failed_call_is_sent_to_the_model(run_task, ollama, call, told):
    """The model may try again or answer without the tool. The task goes on, and the log has a warning."""
    ollama.stand_in.script(called(call), "Never mind.")

    ran = run_task(task("tools=[forecast, broken]"), above=TOOLS)

    assert (ran.state, ran.value, ran.tries) == ("success", "Never mind.", 1)
    assert chats(ollama)[1]["messages"][2]["content"].startswith(told)
    assert f"Tool {call[0]}: " in ran.log
    assert "sent to the model" in ran.log
    assert "Atlantis" not in ran.log


def test_a_tool_that_raises_fails_the_task_if_asked_to(run_task, ollama):
    """With its own exception, so that the log shows where."""
    ollama.stand_in.script(called(("broken", {"city": "a"})))

    ran = run_task(task("tools=[broken], on_tool_error='fail'").replace("retries=3", "retries=0"), above=TOOLS)

    assert ran.state == "failed"
    assert "KeyError" in ran.log
    assert len(chats(ollama)) == 1


@pytest.mark.parametrize(("tool", "state"), [("hopeless", "failed"), ("skip", "skipped")])
def test_a_tool_can_end_the_task(run_task, ollama, tool, state):
    """By the exceptions that end any task of Airflow."""
    ollama.stand_in.script(called((tool, {"city": "a"})))

    ran = run_task(task(f"tools=[{tool}]"), above=TOOLS)

    assert (ran.state, ran.tries) == (state, 1)


def test_an_endless_loop_ends_at_the_bound(run_task, ollama):
    """The error says how often what was called, and takes no retry."""
    ollama.stand_in.script(called(("forecast", {"city": "a"})), always=True)

    ran = run_task(task("tools=[forecast], max_rounds=2"), above=TOOLS)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert (
        f"the model still calls tools after 2 rounds (forecast 3 times) (at {ollama.url} model 'llama3.2')" in ran.log
    )
    assert "Raise max_rounds" in ran.log
    assert len(chats(ollama)) == 3


def test_with_a_format_the_answer_is_asked_for_in_it(run_task, ollama):
    """Tools first, without the format; then the format, without the tools: servers take no both."""
    ollama.stand_in.script(called(("forecast", {"city": "a"})), "It is sunny.", {"weather": "sunny"})

    ran = run_task(task("tools=[forecast], output_type=dict[str, str]"), above=TOOLS)

    assert ran.value == {"weather": "sunny"}
    assert [("tools" in chat, "format" in chat) for chat in chats(ollama)] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_of_schemas_the_calls_are_the_result(run_task, ollama):
    """As plain data, for a later task to carry out."""
    ollama.stand_in.script(called(("forecast", {"city": "Paris"}), ("forecast", {"city": "Rome"})))

    ran = run_task(task(f"tools=[{SCHEMA}]"))

    assert [(call["name"], call["arguments"]) for call in ran.value] == [
        ("forecast", {"city": "Paris"}),
        ("forecast", {"city": "Rome"}),
    ]
    assert all(call["id"] for call in ran.value)
    assert len(chats(ollama)) == 1


def test_schemas_may_be_answered_too(run_task, ollama):
    """Then the text is the result."""
    ollama.stand_in.script("Look out of the window.")

    assert run_task(task(f"tools=[{SCHEMA}]")).value == "Look out of the window."


@pytest.mark.parametrize(("tool", "stays"), [("forecast", True), (SCHEMA, False)])
def test_functions_are_called_in_the_worker(run_task, ollama, tool, stays):
    """A task with functions is not deferred, because the worker calls them. Schemas are only data."""
    ollama.stand_in.script(called(("forecast", {"city": "a"})), *(["Done."] if stays else []))

    ran = run_task(task(f"tools=[{tool}], deferrable=True"), above=TOOLS)

    assert ran.state == "success"
    assert ("Not deferring: tools are called in the worker" in ran.log) is stays


def test_a_model_without_tools_is_refused_before_it_is_loaded(run_task, ollama):
    """The error names models that have them."""
    ran = run_task(task("tools=[forecast]", model="llava"), above=TOOLS)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "the model lacks tools; its capabilities are completion, vision" in ran.log
    assert "Suitable models on this server: qwen3:latest, llama3.2:latest" in ran.log
    assert ollama.stand_in.loads == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("tools=[forecast, dict(name='x')]", "use functions or schemas, not both"),
        ("tools=[lambda x: x]", "no name that a model can call"),
        ("tools=[forecast], max_rounds=0", "max_rounds: 0 is not at least 1"),
        ("tools=[forecast], on_tool_error='ignore'", "on_tool_error: 'ignore' is not one of 'tell', 'fail'"),
        ("tools=[dict(name='x')], format='json'", "tools that are schemas cannot be combined with a format"),
    ],
)
def test_what_cannot_be_right_fails_at_once(run_task, ollama, arguments, told):
    """Before anything is sent."""
    ran = run_task(task(arguments), above=TOOLS)

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert ollama.stand_in.requests == []


def test_a_chat_with_tools_may_be_mapped(run_task, run_dag, ollama):
    """Functions survive ``partial``."""
    ollama.stand_in.script(called(("forecast", {"city": "a"})), "Sunny.")

    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaChatOperator
{TOOLS}
with DAG("with_tools", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaChatOperator.partial(task_id="t", model="llama3.2", tools=[forecast]).expand(messages=["Weather?"])
""")

    assert str(run.state) == "success"
    assert chats(ollama)[1]["messages"][2]["tool_name"] == "forecast"
