"""Structured output: the ``format`` of a request, and the validation of the answer, which becomes plain JSON data.

The grammar that the server applies is no guarantee: an answer may be cut, and some versions ignore ``format`` together
with ``think``. So every answer is validated here. No error text quotes the answer.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from ollama_provider.api.errors import InvalidOutputError, InvalidRequestError
from ollama_provider.api.strict_json import is_finite, mend, read_json

#: Faults named in an error text.
_FAULTS_NAMED = 3


class Output:
    """The format that an answer must have.

    Args:
        wanted: ``"json"`` (any JSON), a JSON schema as a dict or as JSON text, or a type that pydantic knows: a model
            class, a dataclass, a ``TypedDict``, ``list[...]`` of one.

    Attributes:
        format: the request's ``format`` field: ``"json"`` or a schema.

    Raises:
        InvalidRequestError: *wanted* is none of these.
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

        Half a surrogate pair in a text (a cut emoji) becomes U+FFFD.

        Raises:
            InvalidOutputError: it is not JSON, or does not fit the schema. The error names places and rules, no values.
                A number that overflows and nesting deeper than 100 levels do not count as JSON.
            InvalidRequestError: the schema turns out to be invalid.
        """
        try:
            data = read_json(mend(text))
        except json.JSONDecodeError as error:
            raise InvalidOutputError(f"the answer is not JSON (at character {error.pos} of {len(text)})") from None
        except ValueError as error:
            raise InvalidOutputError(f"the answer is not JSON: {error}") from None
        return self._check(data)


def _read_schema(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise InvalidRequestError(f"format: the schema is not valid JSON: {error}") from None


def _schema_check(schema: dict[str, Any]) -> Callable[[Any], Any]:
    # Here, because it loads as much as httpx does (checkers of formats, time zones), and most batches have no schema.
    from jsonschema import SchemaError  # type: ignore[import-untyped]  # it ships no types
    from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequestError(f"format: not a JSON schema: {_path(error.absolute_path)}: {error.message}") from None
    validator, known = kind(schema), _property_names(schema)

    def check(data: Any) -> Any:
        try:
            faults = list(validator.iter_errors(data))
        except (RecursionError, OverflowError):  # deeply nested data, or a number with hundreds of digits
            raise InvalidOutputError("the answer is too deep, or a number in it too large, to be checked") from None
        except Exception as error:  # a broken reference in the schema is found only when the data need it
            raise InvalidRequestError(f"format: the schema cannot be applied: {str(error)[:200]}") from None
        if faults:
            raise _misfit(
                [(fault.absolute_path, f"{fault.validator} {fault.validator_value}") for fault in faults], known
            )
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
    known = _property_names(adapter.json_schema())

    def check(data: Any) -> Any:
        try:
            # From JSON text, where pydantic accepts a list for a tuple and a string for a date.
            value = adapter.validate_json(json.dumps(data))
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            raise _misfit([(fault["loc"], _rule(fault)) for fault in faults], known) from None
        # pydantic reads a large number, or the text "Infinity", as an infinite float, and writes null for it.
        if not is_finite(adapter.dump_python(value)):
            raise InvalidOutputError("the answer holds a number that is not finite")
        # Back through JSON text, so that the result has no tuples and no dates.
        return json.loads(adapter.dump_json(value))

    return check


def _rule(fault: Any) -> str:
    # This text of pydantic quotes a value; those of a validator of the type's own are their author's.
    return "no member of the union has this tag" if fault["type"] == "union_tag_invalid" else fault["msg"]


def _property_names(schema: Any) -> set[str]:
    """Return the names of the properties of a schema, and of all that is in it."""
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    names = {name for part in inside for name in _property_names(part)}
    own = schema.get("properties") if isinstance(schema, dict) else None
    return names | set(own) if isinstance(own, dict) else names


def _misfit(faults: list[tuple[Any, str]], known: set[str]) -> InvalidOutputError:
    # A key that the schema does not have was made up by the model, and is a part of the answer.
    told = [
        f"{_path(step if isinstance(step, int) or step in known else '*' for step in place)}: {rule[:200]}"
        for place, rule in faults[:_FAULTS_NAMED]
    ]
    more = [f"and {len(faults) - _FAULTS_NAMED} more"] if len(faults) > _FAULTS_NAMED else []
    return InvalidOutputError(f"the answer does not fit the schema: {'; '.join(told + more)}")


def _path(steps: Any) -> str:
    return ".".join(map(str, steps)) or "at the top"
