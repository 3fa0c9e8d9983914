"""Answers that XCom could not hold: numbers beyond any, half an emoji. An error of ours, or text that all can read."""

import json

import pytest

from ollama_provider.testing import Answer, Model, Respond

CLASS = "import pydantic\nclass Found(pydantic.BaseModel):\n    n: float"


@pytest.mark.parametrize(
    ("kind", "arguments", "number"),
    [
        ("Generate", "format='json'", "1e400"),
        ("Generate", "output_type=Found", "-1e999"),
        ("Generate", "format='json', output='reply'", "NaN"),
        ("Chat", "output_type=Found", "1e400"),
        ("Chat", "format='json'", "1" * 5000),
    ],
    ids=lambda value: value[:30],
)
def test_numbers_that_overflow_are_an_error(run_task, ollama, kind, arguments, number) -> None:
    """And never null, which the model has not answered."""
    given = "prompt='?'" if kind == "Generate" else "messages='?'"
    ollama.stand_in.script(Answer(f'{{"n": {number}}}'), times=1)

    ran = run_task(f"Ollama{kind}Operator(task_id='t', model='llama3.2', {given}, {arguments})", above=CLASS)

    assert (ran.state, ran.value) == ("failed", None)
    assert "the answer is not JSON" in ran.log
    assert "Out of range" not in ran.log


@pytest.mark.parametrize("arguments", ["", ", output='reply'", ", format='json'"])
def test_half_an_emoji_is_replaced(run_task, ollama, arguments) -> None:
    """As Ollama itself writes half a character."""
    text = '{\\"a\\": \\"x\\ud83d\\"}'
    line = f'{{"model": "llama3.2", "response": "{text}", "done": true, "done_reason": "stop", "eval_count": 1}}\n'
    ollama.stand_in.script(Respond(200, line.encode()))

    ran = run_task(f"OllamaGenerateOperator(task_id='t', model='llama3.2', prompt='?'{arguments})")

    assert ran.state == "success", ran.log
    assert "x\ufffd" in json.dumps(ran.value, ensure_ascii=False)


@pytest.mark.ollama(models=[Model("emb", ("embedding",), embedding_length=2)])
@pytest.mark.parametrize("number", ["1e400", "NaN", "null"])
def test_vectors_that_overflow_are_an_error(run_task, ollama, number) -> None:
    """Whatever the server has computed."""
    body = f'{{"model": "emb", "embeddings": [[0.1, {number}]], "prompt_eval_count": 1}}'
    ollama.stand_in.script(Respond(200, body.encode()), path="embed", always=True)

    ran = run_task("OllamaEmbedOperator(task_id='t', model='emb', texts='a')")

    assert (ran.state, ran.value) == ("failed", None)
    assert "Out of range" not in ran.log
