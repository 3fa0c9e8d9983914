"""The arguments of OllamaBatchOperator beside those of the engine."""

import dataclasses
import inspect

from ollama_provider.batch.limits import Limits
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.operators import OllamaBatchOperator

#: The connection has defaults of its own for these.
OF_THE_CONNECTION = {"model", "options"}


def test_defaults_are_those_of_the_engine() -> None:
    """They are written out in the operator, which a DAG file loads without the engine."""
    arguments = inspect.signature(OllamaBatchOperator.__init__).parameters
    fields = [field for kind in (BatchSpec, Limits) for field in dataclasses.fields(kind)]
    engine = {field.name: field.default for field in fields if field.name in arguments.keys() - OF_THE_CONNECTION}
    required = {name for name, default in engine.items() if default is dataclasses.MISSING}

    assert required == {"rows"}
    assert {name: arguments[name].default for name in engine.keys() - required} == {
        name: default for name, default in engine.items() if name not in required
    }
