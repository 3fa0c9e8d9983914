"""Tools of a chat: their definitions, their calls, and the end of the chat."""

import datetime as dt
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from ollama_provider.api.errors import InvalidRequestError, ToolLoopError
from ollama_provider.api.schemas import ChatReply, ChatRequest, Message, ToolCall, ToolCallFunction
from ollama_provider.tools import KEYWORDS, FunctionTool, Toolbox, ToolChat, ToolError


class Place(BaseModel):
    """A place on earth."""

    city: str
    country: str | None = None


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Folder(BaseModel):
    inside: list["Folder"] = []


def forecast(place: Place, days: int = 2, *, unit: Literal["C", "F"] = "C") -> str:
    """Return the weather to come.

    It is made up.

    Args:
        place: where,
            anywhere on earth.
        days (int): how many.

    Returns:
        A sentence.
    """
    return f"{days} days in {place.city} at 20 °{unit}"


def call(name: str, call_id: str | None = None, **arguments) -> ToolCall:
    return ToolCall(id=call_id, function=ToolCallFunction(name=name, arguments=arguments))


def reply(*calls: ToolCall, text: str = "") -> ChatReply:
    return ChatReply(
        model="m", done=True, message=Message(role="assistant", content=text, tool_calls=list(calls) or None)
    )


def properties(function) -> dict:
    return FunctionTool(function).definition.function.parameters["properties"]


def test_a_function_is_offered_by_its_signature_and_docstring():
    """Name, description, and arguments with descriptions and defaults come from the function."""
    offer = FunctionTool(forecast).definition.function

    assert offer.name == "forecast"
    assert offer.description == "Return the weather to come.\n\nIt is made up."
    assert offer.parameters == {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "description": "where, anywhere on earth.",
                "properties": {
                    "city": {"type": "string"},
                    "country": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["city"],
            },
            "days": {"type": "integer", "description": "how many."},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["place"],
    }


def test_sphinx_docstrings_are_read_too():
    """Docstrings may have Sphinx's format instead of Google's."""

    def add(first: int, second: int) -> int:
        """Add.

        :param first: the one
        :param int second: the other
        """

    offer = FunctionTool(add).definition.function

    assert offer.description == "Add."
    assert [one["description"] for one in offer.parameters["properties"].values()] == ["the one", "the other"]


def test_only_words_that_the_server_keeps_are_sent():
    """Keywords that the server drops (defaults, bounds, references) would be misleading in the request."""

    def book(
        where: list[Place],
        pet: Annotated[Cat | Dog, Field(discriminator="kind")],
        nights: Annotated[int, Field(ge=1, le=30)] = 1,
        only: Literal["x"] = "x",
    ) -> None: ...

    def words(schema) -> set[str]:
        inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
        inner += [schema["items"]] if "items" in schema else []
        return set(schema).union(*map(words, inner))

    assert words(FunctionTool(book).definition.function.parameters) <= set(KEYWORDS)
    assert properties(book)["only"]["enum"] == ["x"]
    assert [one["properties"]["kind"]["enum"] for one in properties(book)["pet"]["anyOf"]] == [["cat"], ["dog"]]


def test_the_format_of_a_text_is_in_the_description():
    """The server drops ``format``, so the description says how a date is written."""

    def when(day: dt.date) -> None: ...

    assert properties(when)["day"] == {"type": "string", "description": "(format: date)"}


def test_annotated_descriptions_are_kept():
    """The description in an annotation is used if the docstring has none."""

    def near(city: Annotated[str, Field(description="a big one")]) -> None: ...

    assert properties(near)["city"]["description"] == "a big one"


def test_names_that_pydantic_reserves_are_names_of_arguments_like_any_other():
    """Arguments may have any name, although pydantic checks them."""

    def use(schema: str, copy: bool, _x: int = 0, model_config: str = "") -> str:
        return f"{schema} {copy} {_x} {model_config}"

    assert FunctionTool(use)({"schema": "s", "copy": True, "_x": 3, "model_config": "m"}) == "s True 3 m"


def test_arguments_are_read_as_the_function_wants_them():
    """The function gets values of its types, and its defaults for missing arguments."""
    assert FunctionTool(forecast)({"place": {"city": "Paris"}, "days": "3"}) == "3 days in Paris at 20 °C"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "place: Field required"),
        ({"place": {"city": ["Paris"]}}, "place.city: Input should be a valid string"),
        ({"place": {"city": "Paris"}, "days": "many"}, "days: Input should be a valid integer"),
        (
            {"place": {"city": "Paris"}, "town": 1},
            "town: there is no such argument; the arguments are place, days, unit",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    """The model gets a message with the wrong argument and the allowed values, so that it can correct the call."""
    with pytest.raises(ToolError, match="the arguments are not valid") as caught:
        FunctionTool(forecast)(arguments)

    assert words in str(caught.value)


class Unreadable:
    pass


def star(*numbers: int) -> None: ...
def positional(x: int, /) -> None: ...
def unknown(x: "Nowhere") -> None: ...  # noqa: F821
def unreadable(x: Unreadable) -> None: ...
def endless(x: Folder) -> None: ...
async def late(x: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, "no name"),
        (late, "late is async"),
        (star, "star takes *numbers"),
        (positional, "positional takes x"),
        (unknown, "'Nowhere' is not defined"),
        (unreadable, "annotations of unreadable"),
        (endless, "a Folder that contains itself"),
    ],
)
def test_what_no_model_could_call_is_refused(function, words):
    """The error names it before a request is sent."""
    with pytest.raises(InvalidRequestError) as caught:
        Toolbox([function])

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([forecast, {"name": "other"}], "functions or schemas, not both"),
        ([forecast, forecast], "several tools have the name 'forecast'"),
        (["forecast"], "tools.0: a function or a schema (a dict) is needed, not str"),
        ([{"type": "function"}], "tools.0: the schema has no name"),
        ([{"name": "f", "parametres": {}}], "did you mean 'parameters'?"),
    ],
)
def test_what_is_no_list_of_tools_is_refused(tools, words):
    """The error names the position and the reason."""
    with pytest.raises(InvalidRequestError) as caught:
        Toolbox(tools)

    assert words in str(caught.value)


def test_schemas_are_offered_as_they_are():
    """A schema may have the outer object of the API or not."""
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}

    for given in (function, {"type": "function", "function": function}):
        box = Toolbox([given])
        assert not box.callable
        assert [tool.model_dump() for tool in box.definitions] == [{"type": "function", "function": function}]


def give(value):
    """A tool that returns *value*."""

    def tool() -> object:
        return value

    return tool


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (Place(city="Köln"), '{"city":"Köln","country":null}'),
        (dt.date(2026, 1, 2), '"2026-01-02"'),
        (None, "null"),
    ],
)
def test_results_are_sent_as_json(value, text):
    """Plain text stays as it is."""
    assert Toolbox([give(value)]).call(call("tool")) == text


def test_results_that_are_not_json_are_sent_as_text():
    """Values that are no JSON are sent as text, by ``str``."""
    assert Toolbox([give(Unreadable)]).call(call("tool")) == str(Unreadable)


def test_a_tool_that_was_not_offered_is_an_error_for_the_model():
    """The model gets a message with the names of the tools."""
    with pytest.raises(ToolError, match=r"there is no tool 'rm'; the tools are forecast"):
        Toolbox([forecast]).call(call("rm"))


def test_what_a_tool_raises_is_let_through():
    """The caller handles exceptions of a tool, also a ValidationError, which is not taken for wrong arguments."""

    def broken(x: int) -> None:
        Place(city=["no"])

    with pytest.raises(ValueError, match="city"):
        Toolbox([broken]).call(call("broken", x=1))


def test_a_chat_grows_by_calls_and_their_outcomes():
    """The chat goes on with the model's message, and with each result under the name and id of its call."""
    talk = ToolChat(ChatRequest(model="m", messages="Weather?").messages, max_rounds=2)
    first, second = call("forecast", "call_1", place={"city": "Paris"}), call("forecast", "call_2")

    calls = talk.add_reply(reply(first, second))
    talk.add_result(first, "sunny")
    talk.add_result(second, "an error")

    assert calls == [first, second]
    assert [message.role for message in talk.messages] == ["user", "assistant", "tool", "tool"]
    assert talk.messages[1].tool_calls == [first, second]
    assert [(m.tool_name, m.tool_call_id, m.content) for m in talk.messages[2:]] == [
        ("forecast", "call_1", "sunny"),
        ("forecast", "call_2", "an error"),
    ]
    assert talk.add_reply(reply(text="Sunny.")) == []
    assert (talk.rounds, talk.calls) == (1, {"forecast": 2})


def test_a_chat_ends_at_its_bound():
    """A model that does not stop calling tools is stopped. The error has the number of calls of each tool."""
    talk = ToolChat([], max_rounds=2)
    talk.add_reply(reply(call("forecast")))
    talk.add_reply(reply(call("forecast"), call("other")))

    with pytest.raises(ToolLoopError, match=r"after 2 rounds \(forecast 3 times, other 1 time\)"):
        talk.add_reply(reply(call("forecast")))


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "two words", "x" * 65])
def test_a_name_that_can_be_none_is_not_shown(name):
    """The model may call anything anything; its text has no place in a log."""
    chat = ToolChat([], max_rounds=0)

    with pytest.raises(ToolLoopError, match=r"\(no name of a tool\) 1 time") as raised:
        chat.add_reply(ChatReply(message={"role": "assistant", "tool_calls": [{"function": {"name": name}}]}))

    assert str(raised.value).isprintable()
