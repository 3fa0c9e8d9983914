"""What a request and a reply are."""

import difflib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.strict_json import read_json

#: A whole number of the server's, which has 64 bits; a larger one would end tables and divisions later on.
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
#: Characters of a label; the longest name of a model has about 600.
_LONGEST_LABEL = 1000


def printable(text: str) -> str:
    """Return a text with a blank for each character that a terminal or a log might obey, line breaks among them."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else " " for mark in text)


def _read_label(text: str) -> str:
    return printable(text[:_LONGEST_LABEL])


#: A name, version or state of the server's, which stands in logs and error texts.
Label = Annotated[str, AfterValidator(_read_label)]


class Part(BaseModel):
    """A piece of a request. Unknown fields are refused: the server would ignore them without a word."""

    # An error text must never quote a prompt, so pydantic is told to leave the input out of it. JSON has no infinite
    # number: pydantic would send null in its place, and the server its own default.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=(), allow_inf_nan=False
    )


class Reply(BaseModel):
    """An answer of the server, or one object of a streamed answer.

    Fields the server adds in later versions are kept (``extra="allow"``), and nearly every field may be absent: the
    server leaves out what is zero or empty. Null counts as absent, as it does for Go, the server's language.
    """

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data

    # A slot, since a private attribute of pydantic's costs more time than the validation.
    __slots__ = ("_server",)

    @property
    def server(self) -> str:
        """Base URL of the server that gave the answer, if one did. No field, since Ollama does not send it."""
        return getattr(self, "_server", "")

    def from_server(self, url: str) -> Self:
        """Note which server gave the answer, and return the reply itself."""
        object.__setattr__(self, "_server", url)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, with the server."""
        return super().model_copy(update=update, deep=deep).from_server(self.server)


ReplyT = TypeVar("ReplyT", bound=Reply)


class Request(Part, Generic[ReplyT]):
    """One call to the server, as a value: its fields are the JSON body, its class knows the rest.

    Raises:
        InvalidRequestError: a field is unknown or wrong; the text names it and, for a misspelling, the nearest known
            name.
    """

    method: ClassVar[str] = "POST"
    path: ClassVar[str]
    reply: ClassVar[type[Reply]]
    #: The answer comes as one JSON object a line.
    streamed: ClassVar[bool] = False
    #: Sending it twice does no harm, so a failed attempt may be tried again.
    repeatable: ClassVar[bool] = True
    #: A success has a body.
    answered: ClassVar[bool] = True
    #: It needs its model on the server, so a missing one may be pulled.
    needs_model: ClassVar[bool] = False
    #: It is about the disk of one server, so that of several one has to be named.
    for_one_server: ClassVar[bool] = False
    #: Seconds of silence granted; None where a model has to work first and the settings' timeouts hold. Metadata comes
    #: at once, except that /api/ps waits up to 5 s for memory to be released and /api/tags for the cache after a start.
    read_timeout: ClassVar[float | None] = 30
    #: Bytes that an answer may have; one that is longer is broken off. JSON in memory takes up to thirty times as much.
    max_bytes: ClassVar[int] = 8 * 2**20

    @model_validator(mode="wrap")
    @classmethod
    def _raise_invalid_request(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        try:
            request: Self = handler(data)
        except ValidationError as error:
            raise InvalidRequestError(explain(cls, error)) from None
        return request

    @staticmethod
    def decode(line: bytes) -> Any:
        """Return the JSON of one object of the answer.

        Raises:
            ValueError: it is not JSON that every reader takes.
        """
        return read_json(line)

    @property
    def target(self) -> str:
        """The path of this request."""
        return self.path

    def body(self) -> bytes | Iterable[bytes] | None:
        """Return the JSON body; None for a request without one."""
        return (
            None if self.method in {"GET", "HEAD"} else self.model_dump_json(exclude_none=True, by_alias=True).encode()
        )


def model_of(request: Request[Any]) -> str | None:
    """Return the name of the model that a request is about, if it is about one."""
    model: str | None = getattr(request, "model", None)
    return model


def explain(owner: type[BaseModel], error: ValidationError) -> str:
    """Summarise pydantic's errors in one line: each field with its error, and the nearest name for an unknown field."""
    findings = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        place = [str(step) for step in fault["loc"]]
        if fault["type"] == "extra_forbidden":
            findings.append(_unknown(owner, place))
        else:
            name = ".".join(place)
            findings.append(f"{name}: {fault['msg'].removeprefix('Value error, ')}" if name else fault["msg"])
    return "; ".join(findings)


def _unknown(owner: type[BaseModel], place: list[str]) -> str:
    known = list(_fields_at(owner, place[:-1]))
    nearest = difflib.get_close_matches(place[-1], known, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"
    return f"{'.'.join(place)}: there is no such field; {advice}"


def _fields_at(owner: type[BaseModel], place: list[str]) -> list[str]:
    """Return the field names of the model that *place* leads to, beginning at *owner*."""
    model = owner
    for step in place:
        if step in model.model_fields:
            inside = _models_in(model.model_fields[step].annotation)
            model = inside[0] if inside else model
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


class Metrics(Reply):
    """How long an inference took: nanoseconds, and counts of tokens. All absent before the last object."""

    created_at: datetime | None = None
    total_duration: Int64 = 0
    load_duration: Int64 = 0
    prompt_eval_count: Int64 = 0
    prompt_eval_duration: Int64 = 0
    eval_count: Int64 = 0
    eval_duration: Int64 = 0

    @property
    def seconds(self) -> float:
        """Seconds on the server, from the arrival of the request to its last token."""
        return self.total_duration / 1e9

    @property
    def load_seconds(self) -> float:
        """Seconds until the model was in memory, waiting behind other loads included."""
        return self.load_duration / 1e9

    @property
    def queue_seconds(self) -> float:
        """Seconds spent waiting for a parallel slot: what no other duration accounts for."""
        known = self.load_duration + self.prompt_eval_duration + self.eval_duration
        return max(0, self.total_duration - known) / 1e9

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens generated a second (thinking included); None when nothing was generated."""
        return self.eval_count / self.eval_duration * 1e9 if self.eval_count and self.eval_duration else None
