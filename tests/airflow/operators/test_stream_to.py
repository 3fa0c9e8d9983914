"""Answers that are shown while they come."""

import logging

import pytest

from ollama_provider.api.schemas import ChatReply, GenerateReply, Message
from ollama_provider.operators._stream_to import TextBuffer, open_display
from ollama_provider.testing import Answer, Cut

#: The wait is in the worker in any case.
WORKER = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)
LONG = " ".join(f"word{number}" for number in range(200))
TASK = "OllamaGenerateOperator(task_id='t', model='{model}', prompt='Tell', retries=1, {more})"


def answer(text: str) -> GenerateReply:
    return GenerateReply(response=text)


def thought(text: str) -> ChatReply:
    return ChatReply(message=Message(role="assistant", thinking=text))


def test_small_pieces_become_larger_ones():
    """Nothing is lost, and nothing is shown more often than was said."""
    throttle = TextBuffer(5, now=0)
    shown = [list(throttle.add(answer(f"{second} "), second)) for second in range(1, 13)]

    assert [piece for piece in shown if piece] == [[("answer", "1 2 3 4 5 ")], [("answer", "6 7 8 9 10 ")]]
    assert list(throttle.flush()) == [("answer", "11 12 ")]
    assert list(throttle.flush()) == []


def test_reasoning_and_answer_are_separate():
    """The answer begins a piece of its own."""
    throttle = TextBuffer(5, now=0)

    assert list(throttle.add(thought("Hm"), 1)) == []
    assert list(throttle.add(thought(" …"), 2)) == []
    assert list(throttle.add(answer("Yes"), 3)) == [("thinking", "Hm …")]
    assert list(throttle.flush()) == [("answer", "Yes")]


@WORKER
def test_a_file_gets_the_answer(run_task, ollama, tmp_path):
    """The whole answer, without the reasoning. XCom and usage are as without stream_to."""
    ollama.stand_in.script(Answer(LONG, thinking="Hm."))
    path = tmp_path / "new" / "answer.txt"

    ran = run_task(TASK.format(model="qwen3", more=f"think=True, stream_to='{path}'"))

    assert path.read_text() == ran.value == LONG
    assert ran.usage["tokens"] > 100
    assert "word7" not in ran.log


def test_a_file_grows_while_the_answer_comes(tmp_path):
    """So that a reader can follow it. It does not contain the reasoning."""
    path = tmp_path / "answer.txt"

    with open_display(path, logging.getLogger(), interval=0) as show:
        show(thought("Hm."))
        show(answer("one "))
        assert path.read_text() == "one "
        show(answer("two"))
        assert path.read_text() == "one two"


@WORKER
def test_the_log_shows_answer_and_thinking(run_task, ollama):
    """Somebody asked for the answer to be in the log, and there it is, the thinking marked as such."""
    ollama.stand_in.script(Answer(LONG, thinking="Let me see."))

    ran = run_task(TASK.format(model="qwen3", more="think=True, stream_to='log'"))

    assert ran.value == LONG
    assert "(thinking) Let me see." in ran.log
    assert LONG in ran.log


@WORKER
def test_an_answer_that_breaks_off_is_left_to_the_next_try(run_task, ollama, tmp_path):
    """A part was shown, so the request is not repeated in this try. The next try overwrites the file."""
    ollama.stand_in.script((Answer(LONG), Cut(after=5)), "Whole.")
    path = tmp_path / "answer.txt"

    ran = run_task(TASK.format(model="llama3.2", more=f"stream_to='{path}'"))

    assert (ran.state, ran.tries, ran.value) == ("success", 2, "Whole.")
    assert path.read_text() == "Whole."


@WORKER
def test_the_wait_stays_in_the_worker(run_task, ollama):
    """And logs why, if the task is deferrable."""
    ran = run_task(TASK.format(model="llama3.2", more="stream_to='log', deferrable=True"))

    assert ran.state == "success"
    assert "Not deferring: stream_to shows the answer while it is generated" in ran.log


@WORKER
def test_all_rounds_of_a_chat_are_shown(run_task, ollama, tmp_path):
    """With tools as without."""
    ollama.stand_in.script(Answer("Wait. ", tool_calls=(("now", {}),)), "Noon.")
    path = tmp_path / "answer.txt"

    ran = run_task(
        f"OllamaChatOperator(task_id='t', model='llama3.2', messages='Time?', tools=[now], stream_to='{path}')",
        above="def now() -> str:\n    return '12:00'",
    )

    assert ran.value == "Noon."
    assert path.read_text() == "Wait. Noon."


@WORKER
def test_where_nothing_can_be_written_nothing_is_asked(run_task, ollama):
    """The file is opened first."""
    ran = run_task(
        TASK.format(model="llama3.2", more="stream_to='/proc/nowhere/answer.txt'").replace("retries=1, ", "")
    )

    assert ran.state == "failed"
    assert "/api/generate" not in [seen.path for seen in ollama.stand_in.requests]
