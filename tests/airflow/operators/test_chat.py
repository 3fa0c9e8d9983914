"""OllamaChatOperator, run by Airflow against the stand-in; what it shares with generate is tested there."""

import pytest

from ollama_provider.testing import Answer


def test_a_string_is_one_message_of_the_user(run_task, ollama) -> None:
    """XCom gets the text of the assistant's message."""
    ollama.stand_in.script("Good morning.")

    ran = run_task(
        "OllamaChatOperator(task_id='t', model='llama3.2', messages='Hello {{ params.name }}')", params={"name": "Ada"}
    )

    assert ran.value == "Good morning."
    assert ran.usage["tokens"] > 0
    assert ollama.stand_in.requests[0].json["messages"] == [{"role": "user", "content": "Hello Ada"}]


def test_history(run_task, ollama, tmp_path) -> None:
    """Messages are templates at any depth, may be files, and may be another task's answer."""
    (tmp_path / "role.prompt").write_text("You are {{ params.role }}.")
    ollama.stand_in.script("Rome.", "2.8 million.")

    ran = run_task(
        """
        first = OllamaChatOperator(task_id='first', model='llama3.2', messages='Capital of Italy?')
        OllamaChatOperator(task_id='t', model='llama3.2', messages=[
            {'role': 'system', 'content': 'role.prompt'},
            {'role': 'user', 'content': 'Capital of Italy?'},
            {'role': 'assistant', 'content': first.output},
            {'role': 'user', 'content': 'How many live in {{ ti.xcom_pull(task_ids="first") }}?'},
        ])
        """,
        params={"role": "a geographer"},
    )

    assert ran.value == "2.8 million."
    sent = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"][1]
    assert [message["content"] for message in sent["messages"]] == [
        "You are a geographer.",
        "Capital of Italy?",
        "Rome.",
        "How many live in Rome.?",
    ]


def test_whole_reply(run_task, ollama) -> None:
    """The message with its thinking, as plain data."""
    ollama.stand_in.script(Answer("Four.", thinking="Two and two …"))

    ran = run_task("OllamaChatOperator(task_id='t', model='qwen3', messages='2+2?', think=True, output='reply')")

    assert ran.value["message"] == {"role": "assistant", "content": "Four.", "thinking": "Two and two …"}
    assert ran.value["answer_cut"] is False


def test_schema(run_task, ollama) -> None:
    """The assistant's text is validated and delivered as data."""
    ollama.stand_in.script({"capital": "Rome"})

    ran = run_task("OllamaChatOperator(task_id='t', model='llama3.2', messages='Capital?', output_type=dict[str, str])")

    assert ran.value == {"capital": "Rome"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("''", "messages: empty; check the template"),
        ("[]", "messages: empty; check the template"),
        ('\'{{ [{"role": "user", "content": "Hi"}] }}\'', "a list was rendered as text; pass the other task"),
        ("[{'content': 'Hi'}]", "messages.0.role: Field required"),
        ("[{'role': 'user', 'content': ['Hi']}]", "messages.0.content: Input should be a valid string"),
        ("[{'role': 'user', 'content': 'Hi', 'images': ['cat.png']}]", "messages.0.images.0: this text is not base64"),
    ],
)
def test_what_is_no_chat_is_refused(run_task, ollama, messages, told) -> None:
    """It is found before anything is sent, and no retry is wasted on it."""
    ran = run_task(f"OllamaChatOperator(task_id='t', model='llama3.2', messages={messages}, retries=3)")

    assert (ran.state, ran.tries) == ("failed", 1)
    assert told in ran.log
    assert ollama.stand_in.requests == []


def test_thinking_and_format(run_task, ollama) -> None:
    """A chat may think first and answer in the format then; both are sent, and only the answer is data."""
    ollama.stand_in.script(Answer('{"capital": "Rome"}', thinking="Italy …"))

    ran = run_task(
        "OllamaChatOperator(task_id='t', model='qwen3', messages='Capital?', think=True, output_type=dict[str, str])"
    )

    assert ran.value == {"capital": "Rome"}
    sent = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat")
    assert sent["think"] is True
    assert sent["format"]["type"] == "object"
