"""Make a small value that satisfies a JSON schema. The same schema and prompt always give the same value."""

import zlib
from collections.abc import Mapping

from ollama_provider.testing.answers.summaries import summarise
from ollama_provider.testing.go.encoding import Json

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "stand-in@example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
}
_MAX_DEPTH = 6


class InvalidSchemaError(ValueError):
    """The schema cannot be turned into a grammar. The text is llama.cpp's."""


def instance(schema: Mapping[str, Json], prompt: str) -> Json:
    """Make a value that satisfies *schema*.

    An `enum` gives the first of its values that the prompt mentions, else one that depends on the prompt, so that a
    classification of many rows gives several labels.

    Args:
        schema: A JSON schema; `$ref` to its own `$defs`, `anyOf`, `oneOf` and `allOf` are followed.
        prompt: The prompt of the request.

    Raises:
        InvalidSchemaError: A type is unknown, a reference cannot be resolved, or the value of a keyword has the wrong
            type.
    """
    try:
        return _InstanceMaker(schema, prompt).make(schema, "", 0)
    except InvalidSchemaError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        # Some keyword has a value of the wrong type; which one does not matter.
        raise InvalidSchemaError("unsupported value of a keyword") from error


class _InstanceMaker:
    def __init__(self, root: Mapping[str, Json], prompt: str) -> None:
        self._root = root
        self._prompt = prompt
        self._folded = prompt.lower()

    def make(self, schema: Json, name: str, depth: int) -> Json:  # noqa: PLR0911 - one return a type
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._from_enum(schema["enum"])
        for union in ("anyOf", "oneOf"):
            if schema.get(union):
                return self._from_union(schema[union], name, depth)
        wanted = _type(schema)
        match wanted:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "string":
                return self._string(schema, name)
            case "integer" | "number":
                return self._number(schema, whole=wanted == "integer")
            case "boolean":
                return bool(self._index_by_prompt(2))
            case _:
                return None

    def _resolve(self, schema: Json) -> Mapping[str, Json]:
        if not isinstance(schema, Mapping):
            return {}
        seen = 0
        while "$ref" in schema:
            reference = schema["$ref"]
            target: Json = self._root
            for part in str(reference).removeprefix("#").strip("/").split("/"):
                if not part:
                    continue
                if not isinstance(target, Mapping) or part not in target:
                    raise InvalidSchemaError(f"cannot resolve $ref {reference}, {part} not found")
                target = target[part]
            seen += 1
            if not isinstance(target, Mapping) or seen > 20:
                raise InvalidSchemaError(f"cannot resolve $ref {reference}")
            schema = target
        merged = dict(schema)
        for part in schema.get("allOf", ()):
            merged |= self._resolve(part)
        return merged

    def _from_enum(self, values: list[Json]) -> Json:
        for value in values:
            if isinstance(value, str) and value.lower() in self._folded:
                return value
        return values[self._index_by_prompt(len(values))]

    def _index_by_prompt(self, count: int) -> int:
        return zlib.crc32(self._prompt.encode("utf-8", "replace")) % count

    def _from_union(self, schemas: list[Json], name: str, depth: int) -> Json:
        nullable = any(_type(self._resolve(schema)) == "null" for schema in schemas)
        if nullable and depth >= _MAX_DEPTH:
            return None
        return self.make(
            next((schema for schema in schemas if _type(self._resolve(schema)) != "null"), {}), name, depth
        )

    def _object(self, schema: Mapping[str, Json], depth: int) -> dict[str, Json]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        return {
            name: self.make(properties.get(name, {}), name, depth + 1)
            for name in dict.fromkeys([*properties, *required])
            if depth < _MAX_DEPTH or name in required
        }

    def _array(self, schema: Mapping[str, Json], name: str, depth: int) -> list[Json]:
        first = [self.make(item, name, depth + 1) for item in schema.get("prefixItems", ())]
        least = schema.get("minItems", 0 if depth >= _MAX_DEPTH else 1)
        wanted = min(least, schema.get("maxItems", least))
        items = schema.get("items", {})
        return first + [self.make(items, name, depth + 1) for _ in range(wanted - len(first))]

    def _string(self, schema: Mapping[str, Json], name: str) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = summarise(self._prompt) if "summar" in name.lower() else "stand-in"
        return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", len(text) + 10_000)]

    def _number(self, schema: Mapping[str, Json], *, whole: bool) -> int | float:
        step = schema.get("multipleOf", 1 if whole else 0.5)
        low = schema.get("minimum")
        if low is None and "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + step
        high = schema.get("maximum")
        if high is None and "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - step
        value = low if low is not None else min(high, 0) if high is not None else 0
        return int(value) if whole else float(value)


def _type(schema: Mapping[str, Json]) -> str:
    found = schema.get("type")
    if isinstance(found, list):
        found = next((item for item in found if item != "null"), "null")
    if found is None:
        return "object" if "properties" in schema or not schema else "array" if "items" in schema else "any"
    if found not in _TYPES:
        raise InvalidSchemaError(f"unrecognized type {found}")
    return str(found)
