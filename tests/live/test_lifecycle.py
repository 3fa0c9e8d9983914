"""The lifecycle operators against a server, each twice: the second time nothing changes."""

import json

import pytest

from ollama_provider.operators import (
    OllamaCopyModelOperator,
    OllamaCreateModelOperator,
    OllamaDeleteModelOperator,
    OllamaLoadModelOperator,
    OllamaPruneModelsOperator,
    OllamaPullModelOperator,
    OllamaUnloadModelOperator,
)


@pytest.fixture
def run(base_url, monkeypatch):
    """Return a function that runs an operator twice, and returns what both runs returned."""
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps({"conn_type": "ollama", "host": base_url}))

    def twice(kind, **arguments):
        return [kind(task_id="t", **arguments).execute({}) for _ in range(2)]

    return twice


def test_a_life(run, client, model, options, fresh_name):
    """Made, copied, loaded, unloaded, pruned and deleted."""
    keep = options.model_dump(exclude_none=True)
    copy = f"{fresh_name}-copy"
    steps = [
        ("pulled", OllamaPullModelOperator, {"model": model}, False),
        ("created", OllamaCreateModelOperator, {"model": fresh_name, "from_": model, "system": "Be brief."}, True),
        (
            "created",
            OllamaCreateModelOperator,
            {"model": fresh_name, "from_": model, "parameters": {"stop": "é"}},
            True,
        ),
        ("copied", OllamaCopyModelOperator, {"model": fresh_name, "destination": copy}, True),
        ("loaded", OllamaLoadModelOperator, {"model": fresh_name, "options": keep, "keep_alive": "5m"}, True),
        ("unloaded", OllamaUnloadModelOperator, {"model": fresh_name}, True),
        ("deleted", OllamaDeleteModelOperator, {"model": fresh_name}, True),
    ]

    for what, operator, arguments, changes in steps:
        first, second = run(operator, **arguments)
        assert (what, first[what], second[what]) == (what, changes, False)

    dry, _ = run(OllamaPruneModelsOperator, match=copy)
    first, second = run(OllamaPruneModelsOperator, match=copy, dry_run=False)
    assert dry["models"] == first["models"] == [f"{copy}:latest"]
    assert second["models"] == []


def test_a_loaded_model_is_deleted_and_gone(run, model, fresh_name):
    """From disk and from memory."""
    run(OllamaCreateModelOperator, model=fresh_name, from_=model, system="Be brief.")
    run(OllamaLoadModelOperator, model=fresh_name)

    first, second = run(OllamaDeleteModelOperator, model=fresh_name)

    assert (first["deleted"], second["deleted"]) == (True, False)
    assert run(OllamaUnloadModelOperator, model=fresh_name)[0]["unloaded"] is False
