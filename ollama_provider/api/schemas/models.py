"""What the server has, and how that changes: tags, show, ps, version, pull, push, create, copy, delete."""

from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, computed_field

from ollama_provider.api.schemas.base import Int64, Label, Part, Reply, Request
from ollama_provider.api.schemas.generation import Message
from ollama_provider.api.schemas.options import Options


class Details(Reply):
    """What kind of model it is."""

    parent_model: Label = ""
    format: Label = ""
    family: Label = ""
    families: list[Label] | None = None
    parameter_size: Label = ""
    quantization_level: Label = ""


class ModelEntry(Reply):
    """A model in a list. ``digest`` is 64 hex digits, and another after every change of the tag."""

    name: Label = ""
    model: Label = ""
    size: Int64 = 0
    digest: Label = ""
    details: Details = Details()

    @property
    def tag(self) -> str:
        """The name as the server shows it; ``model`` since 0.1.21, ``name`` before."""
        return self.model or self.name


class LocalModel(ModelEntry):
    """A model on the server's disk. ``capabilities`` since 0.30; None is unknown."""

    modified_at: datetime | None = None
    capabilities: list[Label] | None = None


class RunningModel(ModelEntry):
    """A model in memory. ``context_length`` (since 0.10) is that of one parallel slot."""

    size_vram: Int64 = 0
    expires_at: datetime | None = None
    context_length: Int64 | None = None


class TagsReply(Reply):
    """The models on the server's disk."""

    models: list[LocalModel] = Field(default_factory=list)


class TagsRequest(Request[TagsReply]):
    """GET /api/tags."""

    method: ClassVar[str] = "GET"
    path: ClassVar[str] = "/api/tags"
    reply: ClassVar[type[Reply]] = TagsReply


class PsReply(Reply):
    """The models in memory."""

    models: list[RunningModel] = Field(default_factory=list)


class PsRequest(Request[PsReply]):
    """GET /api/ps (0.1.38)."""

    method: ClassVar[str] = "GET"
    path: ClassVar[str] = "/api/ps"
    reply: ClassVar[type[Reply]] = PsReply


class VersionReply(Reply):
    """The server's version; "0.0.0" for one built from source."""

    version: Label = Field(default="", max_length=200)


class VersionRequest(Request[VersionReply]):
    """GET /api/version (0.1.14): the best probe, it never waits."""

    method: ClassVar[str] = "GET"
    path: ClassVar[str] = "/api/version"
    reply: ClassVar[type[Reply]] = VersionReply


class Named(Part):
    """A request about one model. Servers up to 0.1.20 read ``name``, so both keys are sent."""

    model: str = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know a decorated property
    @property
    def name(self) -> str:
        """The model once more, under its old key."""
        return self.model


class ShowReply(Reply):
    """All about one model. ``capabilities`` since 0.6.4; None is unknown."""

    license: str | list[str] | None = None
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    details: Details = Details()
    messages: list[Message] | None = None
    model_info: dict[str, Any] = Field(default_factory=dict)
    capabilities: list[Label] | None = None
    modified_at: datetime | None = None
    remote_model: str | None = None
    remote_host: str | None = None

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained on; None where the server does not say (before 0.1.45)."""
        architecture = self.model_info.get("general.architecture")
        length = self.model_info.get(f"{architecture}.context_length")
        return length if isinstance(length, int) and 0 < length < 2**63 else None


class ShowRequest(Named, Request[ShowReply]):
    """POST /api/show."""

    path: ClassVar[str] = "/api/show"
    reply: ClassVar[type[Reply]] = ShowReply
    max_bytes: ClassVar[int] = 64 * 2**20

    verbose: bool | None = None


class ProgressReply(Reply):
    """A line of pull, push or create; the last one of a success says ``success`` and nothing else does."""

    status: Label = ""
    digest: Label | None = None
    total: Int64 | None = None
    completed: Int64 = 0

    @property
    def done(self) -> bool:
        """It is the line that proves success."""
        return self.status == "success"


class PullRequest(Named, Request[ProgressReply]):
    """POST /api/pull. ``insecure`` makes the server talk plain http to the registry."""

    path: ClassVar[str] = "/api/pull"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = ProgressReply
    max_bytes: ClassVar[int] = 2**30
    streamed: ClassVar[bool] = True

    insecure: bool | None = None


class PushRequest(Named, Request[ProgressReply]):
    """POST /api/push."""

    path: ClassVar[str] = "/api/push"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = ProgressReply
    max_bytes: ClassVar[int] = 2**30
    streamed: ClassVar[bool] = True

    insecure: bool | None = None


class CreateRequest(Named, Request[ProgressReply]):
    """POST /api/create, as servers since 0.5.5 read it. A ``from_`` that is not there is pulled by the server."""

    path: ClassVar[str] = "/api/create"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = ProgressReply
    max_bytes: ClassVar[int] = 2**30
    streamed: ClassVar[bool] = True
    # Converting and quantizing a large model is silent for long.
    read_timeout: ClassVar[float | None] = 3600

    from_: str | None = Field(default=None, serialization_alias="from")
    #: File name to blob digest ("sha256:…").
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    system: str | None = None
    license: str | list[str] | None = None
    parameters: Options | None = None
    messages: list[Message] | None = None
    quantize: str | None = None


class EmptyReply(Reply):
    """An answer without a body: the status alone says it."""


class CopyRequest(Request[EmptyReply]):
    """POST /api/copy."""

    path: ClassVar[str] = "/api/copy"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = EmptyReply
    answered: ClassVar[bool] = False

    source: str = Field(min_length=1)
    destination: str = Field(min_length=1)


class DeleteRequest(Named, Request[EmptyReply]):
    """DELETE /api/delete. Not repeatable: a second one answers 404 to a delete that worked."""

    method: ClassVar[str] = "DELETE"
    path: ClassVar[str] = "/api/delete"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = EmptyReply
    answered: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False
