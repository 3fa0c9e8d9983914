"""The operator that creates models from other models or from files."""

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.pulls import PullProgress
from ollama_provider.api.schemas import CreateRequest
from ollama_provider.observability import describe_pull
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._model_diff import differences
from ollama_provider.operators._model_files import Blob, paths_in, read_blobs, upload
from ollama_provider.operators._server_models import find_model, show_if_there, show_or_pull

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger


class OllamaCreateModelOperator(OllamaOperator):
    """Create a model from another one or from files, on every server of the connection (server 0.5.5).

    If the model exists and would not change, nothing is done. To find that out, the result of ``/api/show`` is compared
    with the arguments. Of weights that the server converts or quantizes only the quantization level can be compared, so
    safetensors are converted again, to the same digest. A file is uploaded only if the server has no file with its
    SHA-256.

    XCom gets ``model``, ``digest``, ``size`` (bytes) and ``created`` (whether anything changed). If the connection has
    several servers, it gets that of each, by its base URL.

    Args:
        model: name of the model to create; there is no default. An existing model of that name is replaced.
        from_: the base model. It is pulled first, if the server lacks it and that is allowed.
        files: instead of *from_*: a path or a list of paths of a GGUF file, or of safetensors with their
            configuration, on any ``ObjectStoragePath``. Each file is read twice, for its digest and for the upload.
        adapters: a path or a list of paths of LoRA adapters.
        system: system prompt; None means the base's. May be the name of a ``.prompt`` or ``.jinja2`` file.
        template: prompt template in Go's template language; None means the base's. Airflow does not render it.
        parameters: default options (``{"temperature": 0, "num_ctx": 8192}``). They are merged with the base's, and win.
        messages: messages with which every chat begins.
        license: text that is appended to the base's license.
        quantize: quantization level, such as ``"q4_K_M"``; the weights must be F16 or F32.
        auto_pull: pull *from_* if the server lacks it; None means the connection's setting.
        pull_stall_timeout: seconds without progress after which a pull fails; None means the connection's setting.
    """

    template_fields: Sequence[str] = (
        *OllamaOperator.template_fields,
        "from_",
        "files",
        "adapters",
        "system",
        "parameters",
        "messages",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"system": "md", "parameters": "json", "messages": "json"}
    hook_overrides = ("auto_pull", "pull_stall_timeout")
    list_fields = ("files", "adapters")

    def __init__(
        self,
        *,
        model: str,
        from_: str | None = None,
        files: Any = None,
        adapters: Any = None,
        system: str | None = None,
        template: str | None = None,
        parameters: dict[str, Any] | None = None,
        messages: list[dict[str, Any]] | None = None,
        license: str | list[str] | None = None,  # noqa: A002  # Ollama's name of the field
        quantize: str | None = None,
        auto_pull: bool | None = None,
        pull_stall_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.from_ = from_
        self.files = files
        self.adapters = adapters
        self.system = system
        self.template = template
        self.parameters = parameters
        self.messages = messages
        self.license = license
        self.quantize = quantize
        self.auto_pull = auto_pull
        self.pull_stall_timeout = pull_stall_timeout

    def reads(self) -> list[Any]:
        """Return the files of weights and adapters."""
        return [*paths_in(self.files), *paths_in(self.adapters)]

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Create the model on every server where it is missing or would change."""
        if bool(self.from_) == bool(self.files):
            raise InvalidRequestError("set either from_ (a model) or files")
        files, adapters = read_blobs("files", self.files), read_blobs("adapters", self.adapters)
        request = self._request(files, adapters)
        blobs = [*files.values(), *adapters.values()]
        return self.on_servers(lambda hook, log: self._create_unless_there(hook, log, request, blobs))

    def _create_unless_there(
        self, hook: "OllamaHook", log: "Logger", request: CreateRequest, blobs: list[Blob]
    ) -> dict[str, Any]:
        base = show_or_pull(hook, request.from_) if request.from_ else None
        before, shown = find_model(hook, request.model), show_if_there(hook, request.model)
        changes = ["model"] if before is None or shown is None else differences(request, shown, base)
        if changes:
            for blob in blobs:
                upload(hook, blob, log)
            _create(hook, log, request)
        now = find_model(hook, request.model)
        created = now is None or before is None or now.digest != before.digest
        if before is None:
            log.info("Model %s was created", request.model)
        elif created:
            log.info("Model %s was recreated: %s changed", request.model, ", ".join(changes))
        else:
            log.info("Model %s exists, nothing has changed", request.model)
        return {
            "model": now.tag if now else request.model,
            "digest": now and now.digest,
            "size": now and now.size,
            "created": created,
        }

    def _request(self, files: dict[str, Blob], adapters: dict[str, Blob]) -> CreateRequest:
        return CreateRequest(
            model=self.model or "",
            from_=self.from_ or None,
            files={name: blob.digest for name, blob in files.items()} or None,
            adapters={name: blob.digest for name, blob in adapters.items()} or None,
            system=self.system,
            template=self.template,
            parameters=self.parameters,
            messages=self.messages,
            license=self.license,
            quantize=self.quantize,
        )


def _create(hook: "OllamaHook", log: "Logger", request: CreateRequest) -> None:
    progress = PullProgress(request.model, stall=0, now=monotonic())
    with hook.stream(request) as lines:
        for line in lines:
            if moved := progress.add(line.model_dump(), monotonic()):
                log.info("%s", describe_pull(moved))
