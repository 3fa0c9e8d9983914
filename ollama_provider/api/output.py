"""An answer that was asked for in a format, read back as plain JSON data.

The server's grammar is a help, no promise: an answer may be cut, and some versions ignore ``format`` together with
``think``. So every answer is checked here before anybody builds on it. No text quotes the answer.
"""

import json
from collections.abc import Callable
from typing import Any

from jsonschema import SchemaError  # type: ignore[import-untyped]  # it ships no types
from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from ollama_provider.api.errors import InvalidOutputError, InvalidRequestError

#: Faults told in one text; a long list helps nobody.
_FAULTS_TOLD = 3


class Output:
    """What an answer must look like.

    Args:
        wanted: ``"json"`` (any JSON), a JSON schema as a dict or as JSON text, or a type that pydantic knows: a model
            class, a dataclass, a ``TypedDict``, ``list[...]`` of one.

    Attributes:
        format: the request's ``format`` field: ``"json"`` or a schema.

    Raises:
        InvalidRequestError: this is no format.
    """

    def __init__(self, wanted: Any) -> None:
        if isinstance(wanted, str) and wanted.lstrip().startswith("{"):
            wanted = _read_schema(wanted)
        self.format: Any = wanted
        self._check: Callable[[Any], Any] = lambda data: data
        if isinstance(wanted, dict):
            self._check = _schema_check(wanted)
        elif isinstance(wanted, str):
            if wanted != "json":
                raise InvalidRequestError('format: use "json", a JSON schema, or a pydantic class')
        else:
            adapter = _adapter(wanted)
            self.format, self._check = adapter.json_schema(), _type_check(adapter)

    def read(self, text: str) -> Any:
        """Return the JSON data in *text*: dicts, lists, strings, finite numbers, booleans and None.

        Raises:
            InvalidOutputError: it is not JSON, or does not fit; the text names places and rules, never values.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            place = f" (at character {error.pos} of {len(text)})" if isinstance(error, json.JSONDecodeError) else ""
            raise InvalidOutputError(f"the answer is not JSON{place}") from None
        return self._check(data)


def _refuse_constant(name: str) -> None:
    # Python reads NaN and Infinity, which are not JSON and which XCom does not take.
    raise ValueError(name)


def _read_schema(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"format: the schema is not valid JSON: {error}") from None


def _schema_check(schema: dict[str, Any]) -> Callable[[Any], Any]:
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequestError(f"format: not a JSON schema: {_path(error.absolute_path)}: {error.message}") from None
    validator = kind(schema)

    def check(data: Any) -> Any:
        faults = list(validator.iter_errors(data))
        if faults:
            raise _misfit([(fault.absolute_path, f"{fault.validator} {fault.validator_value}") for fault in faults])
        return data

    return check


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise InvalidRequestError(
            f"output_type: pydantic cannot read {kind!r}; use a pydantic class, a dataclass, or list[...] of one"
        ) from None


def _type_check(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    def check(data: Any) -> Any:
        try:
            # From JSON text, where pydantic takes a list for a tuple and a string for a date.
            value = adapter.validate_json(json.dumps(data))
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            raise _misfit([(fault["loc"], fault["msg"]) for fault in faults]) from None
        # Back through JSON text too: it has no tuples, dates or NaN.
        return json.loads(adapter.dump_json(value))

    return check


def _misfit(faults: list[tuple[Any, str]]) -> InvalidOutputError:
    told = [f"{_path(place)}: {rule[:200]}" for place, rule in faults[:_FAULTS_TOLD]]
    more = [f"and {len(faults) - _FAULTS_TOLD} more"] if len(faults) > _FAULTS_TOLD else []
    return InvalidOutputError(f"the answer does not fit the schema: {'; '.join(told + more)}")


def _path(steps: Any) -> str:
    return ".".join(map(str, steps)) or "at the top"
