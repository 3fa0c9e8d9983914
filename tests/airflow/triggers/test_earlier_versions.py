"""Tasks that were deferred by an earlier version, and go on with today's code: trigger, event and worker.

``tests/data/README.md`` says where the data comes from, and how that of the next version is added.
"""

import asyncio
import json
from importlib import import_module

import pytest

from ollama_provider import operators
from ollama_provider.sensors import OllamaHealthSensor
from ollama_provider.testing import Model
from tests.airflow.deferring import Pushed, fired
from tests.docs.pages import ROOT

STORED = [
    pytest.param(name, stored, id=f"{name}, {version.parent.name}")
    for version in sorted((ROOT / "tests/data").glob("written-by-*/triggers.json"))
    for name, stored in json.loads(version.read_text()).items()
]
#: What the task returns, or has done.
EXPECTED = {
    "OllamaGenerateOperator": lambda result, _: "stand-in for Ollama" in result,
    "OllamaChatOperator": lambda result, _: "stand-in for Ollama" in result,
    "OllamaEmbedOperator": lambda result, _: [len(vector) for vector in result] == [8, 8],
    "OllamaPullModelOperator": lambda _, stand_in: stand_in.model("mistral"),
    "OllamaHealthSensor": lambda _, stand_in: stand_in.requests,
}


@pytest.mark.ollama(models=["llama3.2", Model("emb", ("embedding",), embedding_length=8)])
@pytest.mark.parametrize(("name", "stored"), STORED)
def test_a_task_deferred_by_an_earlier_version_is_completed(ollama, ollama_conn, name, stored):
    """The trigger is made of what the database has, and the task goes on with its event."""
    path, arguments = stored["trigger"]
    module, _, kind = path.rpartition(".")
    # Its deadline, if it had one, is long over.
    trigger = getattr(import_module(module), kind)(**arguments | {"deadline": None})
    operator = OllamaHealthSensor if name == "OllamaHealthSensor" else getattr(operators, name)
    task = operator(task_id="earlier", deferrable=True, **stored["arguments"])

    event = asyncio.run(fired(trigger))
    result = task.resume_execution(stored["method"], {**(stored["kwargs"] or {}), "event": event}, {"ti": Pushed()})

    assert EXPECTED[name](result, ollama.stand_in)
