"""OllamaGenerateOperator, run by Airflow against the stand-in."""

import re

import pytest

from ollama_provider.testing import Answer, Fail, Model, Stall

REVIEW = """
from pydantic import BaseModel

class Review(BaseModel):
    stars: int
    topics: tuple[str, ...] = ()
"""
CRASH = Fail("llama runner process has terminated: signal: killed", status=500)


def test_answer_numbers_and_one_line(run_task, ollama) -> None:
    """XCom gets the answer, and ``usage`` its tokens and seconds, which are also logged; prompt and answer are not."""
    ollama.stand_in.script("Because of Rayleigh.")

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Why is the sky blue?')")

    assert (ran.state, ran.value) == ("success", "Because of Rayleigh.")
    usage = ran.usage
    assert usage["server"] == ollama.url
    assert usage["model"] == "llama3.2:latest"
    assert len(usage["digest"]) == 64
    assert usage["prompt_tokens"] > 0
    assert usage["tokens"] > 0
    assert usage["tokens_per_second"] > 0
    assert (usage["done_reason"], usage["answer_cut"], usage["prompt_cut"]) == ("stop", False, False)
    (line,) = set(re.findall(r"Model .* tokens/s", ran.log))
    assert line.startswith(f"Model llama3.2:latest at {ollama.url}: {usage['prompt_tokens']} prompt tokens, ")
    assert "Rayleigh" not in ran.log
    assert "sky" not in ran.log


def test_request(run_task, ollama) -> None:
    """What is given is sent, thinking is switched off explicitly, and the answer streams."""
    run_task("""
        OllamaGenerateOperator(
            task_id='t', model='llama3.2', prompt='Hi', system='Be brief.', options={'seed': 3, 'stop': '.'},
            keep_alive='10m',
        )
    """)

    sent = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate")
    assert sent == {
        "model": "llama3.2",
        "prompt": "Hi",
        "system": "Be brief.",
        "options": {"seed": 3, "stop": ["."]},
        "keep_alive": "10m",
        "think": False,
        "truncate": False,
        "stream": True,
    }


def test_templates(run_task, ollama) -> None:
    """Model, prompt, system, options and keep_alive are templates; numbers in options may come out of Jinja as text."""
    run_task(
        """
        OllamaGenerateOperator(
            task_id='t', model='{{ params.model }}', prompt='Describe {{ params.what }}',
            system='In {{ params.tongue }}',
            options={'temperature': '{{ params.temperature }}', 'num_ctx': '{{ 1024 * 8 }}'}, keep_alive='{{ 60 * 5 }}',
        )
        """,
        params={"model": "llama3.2", "what": "rain", "tongue": "Dutch", "temperature": 0.2},
    )

    sent = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate")
    assert (sent["model"], sent["prompt"], sent["system"]) == ("llama3.2", "Describe rain", "In Dutch")
    assert sent["options"] == {"temperature": 0.2, "num_ctx": 8192}
    assert sent["keep_alive"] == 300


@pytest.mark.parametrize("suffix", [".prompt", ".jinja2"])
def test_prompt_file(run_task, ollama, tmp_path, suffix) -> None:
    """A prompt may be a file, and the file a template."""
    (tmp_path / f"summary{suffix}").write_text("Summarise {{ params.what }}.\n")

    run_task(
        f"OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='summary{suffix}')", params={"what": "the news"}
    )

    assert ollama.stand_in.requests[0].json["prompt"] == "Summarise the news."


def test_a_sentence_that_ends_in_a_file_name_is_a_prompt(run_task, ollama) -> None:
    """Only suffixes that no sentence ends in make a file of it."""
    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Summarise README.md')")

    assert ran.state == "success"
    assert ollama.stand_in.requests[0].json["prompt"] == "Summarise README.md"


def test_default_model_of_the_connection(run_task, ollama, add_connection) -> None:
    """Without a model, the connection's."""
    add_connection(host=ollama.url, extra={"model": "qwen3"})

    ran = run_task("OllamaGenerateOperator(task_id='t', prompt='Hi')")

    assert ran.usage["model"] == "qwen3:latest"


def test_whole_reply(run_task, ollama) -> None:
    """``output="reply"`` gives all the server said, as plain data, and the two flags."""
    ollama.stand_in.script(Answer("Four.", thinking="Two and two …"))

    ran = run_task("OllamaGenerateOperator(task_id='t', model='qwen3', prompt='2+2?', think=True, output='reply')")

    assert ran.value["response"] == "Four."
    assert ran.value["thinking"] == "Two and two …"
    assert ran.value["done_reason"] == "stop"
    assert ran.value["eval_count"] > 0
    assert (ran.value["answer_cut"], ran.value["prompt_cut"]) == (False, False)


def test_pydantic_class_gives_plain_data(run_task, ollama) -> None:
    """The schema is sent, the answer validated, and downstream gets dicts and lists."""
    ollama.stand_in.script({"stars": 4, "topics": ["price"]})

    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Rate it', output_type=Review)", above=REVIEW
    )

    assert ran.value == {"stars": 4, "topics": ["price"]}
    assert ollama.stand_in.requests[0].json["format"]["properties"]["stars"] == {"title": "Stars", "type": "integer"}


def test_schema_and_reply(run_task, ollama) -> None:
    """With the whole reply, the data stands beside the server's text."""
    ollama.stand_in.script('{"n": 1}')

    ran = run_task("""
        OllamaGenerateOperator(
            task_id='t', model='llama3.2', prompt='Count', output='reply',
            format={'properties': {'n': {'type': 'integer'}}},
        )
    """)

    assert ran.value["response"] == '{"n": 1}'
    assert ran.value["data"] == {"n": 1}


def test_answer_that_does_not_fit_may_be_tried_again(run_task, ollama) -> None:
    """The next try of the task asks again."""
    ollama.stand_in.script("Sure! Here is it:", {"stars": 5})

    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Rate', output_type=Review, retries=1)",
        above=REVIEW,
    )

    assert (ran.state, ran.tries, ran.value) == ("success", 2, {"stars": 5, "topics": []})
    assert f"the answer is not JSON (at character 0 of 17) (at {ollama.url} model 'llama3.2')" in ran.log
    assert "Sure" not in ran.log


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "prompt='Hi', options={'temprature': 1}",
            "options.temprature: there is no such field; did you mean 'temperature'?",
        ),
        ("prompt='Hi', options={'num_ctx': 'many'}", "options.num_ctx: Input should be a valid integer"),
        ("prompt='Hi', format={'type': 'nonsense'}", "format: not a JSON schema: type"),
        ("prompt='Hi', format='xml'", 'format: use "json", a JSON schema, or a pydantic class'),
        ("prompt='Hi', format='json', output_type=dict", "use format or output_type, not both"),
        ("prompt='Hi', output='xml'", "output: 'xml' is not one of 'text', 'reply'"),
        ("prompt='Hi', on_truncation='ignore'", "on_truncation: 'ignore' is not one of 'warn', 'fail'"),
        ("prompt='Hi', idle_timeout=-1", "idle_timeout: Input should be greater than 0"),
        ("prompt=' \\n'", "prompt: it is empty"),
        ('prompt=\'{{ ti.xcom_pull(task_ids="nobody") or "" }}\'', "prompt: it is empty"),
        ("prompt='Hi', images=['photo.png']", "images.0: this text is not base64. If it names a file"),
        ("prompt='Hi', conn_id='nowhere'", "there is no connection 'nowhere'"),
    ],
)
def test_what_cannot_be_right_fails_at_once(run_task, ollama, arguments, told) -> None:
    """A wrong argument is found before anything is sent, and no retry is wasted on it."""
    ran = run_task(f"OllamaGenerateOperator(task_id='t', model='llama3.2', retries=3, **dict({arguments}))")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert ollama.stand_in.requests == []


def test_no_model_at_all(run_task) -> None:
    """Neither the task nor the connection names one."""
    ran = run_task("OllamaGenerateOperator(task_id='t', prompt='Hi', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "no model: name one, or set the default model of connection 'ollama_default'" in ran.log


def test_hopeless_error_takes_no_retry(run_task, ollama) -> None:
    """A refusal fails on the first try; the text says where and what, without httpx's traceback and the prompt."""
    ollama.stand_in.script(Fail("unauthorized", status=401))

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='My diary', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert f"unauthorized (at {ollama.url} model 'llama3.2')" in ran.log
    assert "check login and password" in ran.log
    assert "httpx" not in ran.log
    assert "diary" not in ran.log


def test_passing_error_takes_a_retry(run_task, ollama, add_connection) -> None:
    """An error that a retry may fix uses the task's retries."""
    add_connection(host=ollama.url, extra={"max_attempts": 1})
    ollama.stand_in.script(CRASH, "Here I am.")

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi', retries=3)")

    assert (ran.state, ran.tries, ran.value) == ("success", 2, "Here I am.")


def test_server_down(run_task, ollama, add_connection) -> None:
    """The text says what to check."""
    ollama.stop()
    add_connection(host=ollama.url, extra={"max_attempts": 1})

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi')")

    assert ran.state == "failed"
    assert "Is the server running, and are host and port of the connection right?" in ran.log
    assert "httpx" not in ran.log


def test_missing_model_is_pulled(run_task, ollama) -> None:
    """The download shows in the task's log, then the question is asked again."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi')")

    assert ran.state == "success"
    assert "llama3.2: success" in ran.log
    assert [seen.path for seen in ollama.stand_in.requests] == [
        "/api/generate",
        "/api/pull",
        "/api/generate",
        "/api/tags",
    ]


def test_missing_model_is_not_pulled_when_that_is_off(run_task, ollama) -> None:
    """``auto_pull=False`` on the operator wins over the connection."""
    ollama.stand_in.remove("llama3.2")

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi', auto_pull=False, retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "llama3.2" in ran.log
    assert "auto_pull" in ran.log
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate"]


def test_stall(run_task, ollama, add_connection) -> None:
    """An answer that stops coming ends the try; the operator's timeout wins over the connection's."""
    add_connection(host=ollama.url, extra={"max_attempts": 1})
    ollama.stand_in.script(Stall(after=1))

    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi', idle_timeout=0.05)")

    assert ran.state == "failed"
    assert "0.05 s" in ran.log


def test_cut_answer_warns(run_task, ollama) -> None:
    """An answer that ended at num_predict is delivered, with a flag and a warning."""
    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Tell me all', options={'num_predict': 3})"
    )

    assert ran.state == "success"
    assert (ran.usage["answer_cut"], ran.usage["tokens"]) == (True, 3)
    assert "the answer was cut after 3 tokens" in ran.log


def test_cut_answer_fails_if_asked_to(run_task) -> None:
    """``on_truncation="fail"``: it would be cut again, so there is no retry; the numbers are kept."""
    ran = run_task("""
        OllamaGenerateOperator(
            task_id='t', model='llama3.2', prompt='Tell me all', options={'num_predict': 3},
            on_truncation='fail', retries=3,
        )
    """)

    assert (ran.state, ran.tries, ran.value) == ("failed", 1, None)
    assert ran.usage["answer_cut"] is True
    assert "Raise options.num_predict" in ran.log


def test_truncated_json_is_reported_as_truncated(run_task, ollama) -> None:
    """Half a JSON text is not the model's fault, and another try would not help."""
    ollama.stand_in.script(Answer('{"stars": ', done_reason="length"))

    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Rate', output_type=Review, retries=3)",
        above=REVIEW,
    )

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "the answer was cut after" in ran.log


@pytest.mark.parametrize("kind", ["OllamaGenerateOperator(prompt", "OllamaChatOperator(messages"])
def test_all_tokens_spent_on_thinking(run_task, ollama, kind) -> None:
    """There is no answer to deliver, cut or not: the task fails, and the log says why and what to do."""
    ran = run_task(f"{kind}='Hi', task_id='t', model='qwen3', think=True, options={{'num_predict': 4}}, retries=3)")

    assert (ran.state, ran.tries, ran.value) == ("failed", 1, None)
    assert "the answer was cut after 4 tokens, all of them used for thinking: there is no answer" in ran.log
    assert "Raise options.num_predict" in ran.log
    assert ran.usage["answer_cut"] is True


def test_thinking_and_format_do_not_go_together_here(run_task, ollama) -> None:
    """In generate the format holds from the first token, which is a thought."""
    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='qwen3', prompt='Hi', think=True, format='json', retries=3)"
    )

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "use OllamaChatOperator, or think=False" in ran.log
    assert ollama.stand_in.requests == []


def test_reasoning_in_spite_of_think_false_is_no_answer(run_task, ollama) -> None:
    """The JSON is where the thoughts should be, and nothing is where the answer should be."""
    ollama.stand_in.script(Answer("", thinking='{"stars": 5}'))

    ran = run_task(
        "OllamaGenerateOperator(task_id='t', model='qwen3', prompt='Rate', output_type=Review, retries=3)", above=REVIEW
    )

    assert (ran.state, ran.tries, ran.value) == ("failed", 1, None)
    assert "the answer is empty; the model has produced only reasoning" in ran.log
    assert "Use OllamaChatOperator" in ran.log


def test_a_model_that_cannot_think_is_refused_before_it_is_loaded(run_task, ollama) -> None:
    """The error names models that can."""
    ran = run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi', think=True, retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "the model lacks thinking; its capabilities are completion, tools" in ran.log
    assert "Suitable models on this server: qwen3:latest" in ran.log
    assert ollama.stand_in.loads == []


LONG = "OllamaGenerateOperator(task_id='t', model='small', prompt='word ' * 500, options={'num_ctx': 64}"


@pytest.fixture
def small(ollama) -> None:
    """A model whose context is small."""
    ollama.stand_in.install(Model("small", context_length=64))


@pytest.mark.usefixtures("small")
def test_cut_prompt_warns(run_task, ollama) -> None:
    """A prompt over the context is cut only after the server has said that it must be; the flag is exact."""
    ran = run_task(f"{LONG})")

    assert ran.state == "success"
    assert ran.usage["prompt_cut"] is True
    assert "the prompt was longer than the context, and the server dropped a part of it" in ran.log
    sent = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate"]
    assert [body.get("truncate") for body in sent] == [False, None]


@pytest.mark.usefixtures("small")
def test_cut_prompt_fails_if_asked_to(run_task, ollama) -> None:
    """``on_truncation="fail"``: the server's refusal stands."""
    ran = run_task(f"{LONG}, on_truncation='fail', retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "Shorten the prompt, or raise options.num_ctx" in ran.log
    assert [seen.path for seen in ollama.stand_in.requests if seen.path != "/api/show"] == ["/api/generate"]


@pytest.mark.ollama(version="0.5.7")
@pytest.mark.usefixtures("small")
def test_cut_prompt_of_an_old_server(run_task) -> None:
    """Before 0.12.6 the server cuts in silence; with options.num_ctx set, the token count gives it away."""
    ran = run_task(f"{LONG})")

    assert ran.state == "success"
    assert ran.usage["prompt_cut"] is True


@pytest.mark.ollama(version="0.5.7")
@pytest.mark.usefixtures("small")
def test_context_larger_than_the_model(run_task) -> None:
    """The server makes no context larger than the model's. The log has a warning, and that cut is detected."""
    ran = run_task(LONG.replace("'num_ctx': 64", "'num_ctx': 8192") + ")")

    assert ran.state == "success"
    assert ran.usage["prompt_cut"] is True
    assert "options.num_ctx is 8192, and the model was trained for 64" in ran.log


@pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)
def test_killed_task_ends_the_work_on_the_server(run_task, ollama, killed) -> None:
    """SIGTERM is what Airflow sends: the waiting read ends at once, and the server has nothing to do any more."""
    ollama.stand_in.script(Stall(after=1))

    with killed(when=lambda stand_in: stand_in.open_requests):
        run_task("OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='Hi')")

    ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)
    assert [seen.path for seen in ollama.stand_in.requests] == ["/api/generate"]


def test_mapped(run_dag, ollama, ollama_conn) -> None:
    """``partial`` takes all arguments, a pydantic class and ``output`` among them; each text is its own task."""
    run = run_dag(f"""
from datetime import datetime
from airflow.providers.common.compat.sdk import DAG
from ollama_provider.operators import OllamaGenerateOperator
{REVIEW}
with DAG("mapped_under_test", schedule=None, start_date=datetime(2026, 1, 1)):
    OllamaGenerateOperator.partial(task_id="t", model="llama3.2", output_type=Review, output="reply").expand(
        prompt=["one", "two"]
    )
""")

    assert str(run.state) == "success"
    assert sorted(seen.json["prompt"] for seen in ollama.stand_in.requests if seen.path == "/api/generate") == [
        "one",
        "two",
    ]
