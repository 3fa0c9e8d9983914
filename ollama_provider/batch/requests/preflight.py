"""Checks before the first row: is the server there, has it the right model, and what do all requests have in common?

`ModelControl` asks the server. The functions decide from its replies, without a network.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import ModelNotFoundError, OllamaError, RejectedReplyError, UnsupportedError
from ollama_provider.api.model_names import same_model
from ollama_provider.api.pulls import check_pull_allowed
from ollama_provider.api.schemas import (
    EmbedReply,
    PsRequest,
    PullRequest,
    Request,
    RunningModel,
    ShowReply,
    ShowRequest,
    TagsReply,
    TagsRequest,
    VersionReply,
    VersionRequest,
)
from ollama_provider.api.schemas.base import ReplyT
from ollama_provider.api.truncation import oversized_context
from ollama_provider.batch.arguments import Embedding
from ollama_provider.batch.errors import InputError, ModelChangedError
from ollama_provider.batch.records import Provenance
from ollama_provider.batch.requests.embedding import Embed, VectorValidator
from ollama_provider.batch.requests.tasks import Chat, Generate, Task, unload
from ollama_provider.batch.requests.validation import AnswerValidator, RepairStrategy, ReplyValidator
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.store.keys import Keys

logger = logging.getLogger(__name__)

_PINNED = re.compile(r"(?P<name>.+)@sha256:(?P<digest>[0-9a-fA-F]{6,64})")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)", re.MULTILINE)

#: Bytes of UTF-8 for each token, as a low estimate: English has over 4, most other languages over 3, digits and rare
#: characters fewer. A prompt that does not fit after all is refused by the server and visible, never cut.
_BYTES_PER_TOKEN = 3
#: Tokens that a model's own template puts around the prompt.
_TEMPLATE_TOKENS = 128
#: Tokens that are reserved for an answer without a limit of its own.
_ANSWER_TOKENS = 1024
#: The smallest context that is chosen, in tokens, and the steps above it.
_SMALLEST, _STEP = 4096, 2048
#: Timeout of the requests about the loaded model at the end of a batch, in seconds.
_LAST_TIMEOUT = 10.0


def split_model(model: str) -> tuple[str, str | None]:
    """Return name and demanded digest of ``name`` or ``name@sha256:…``.

    Raises:
        InputError: what follows the ``@`` is no digest.
    """
    if "@" not in model:
        return model, None
    pinned = _PINNED.fullmatch(model)
    if pinned is None:
        raise InputError(f"{model!r}: after '@' there must be 'sha256:' and at least six hex digits.")
    return pinned["name"], pinned["digest"].lower()


@dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself and a model."""

    version: VersionReply
    show: ShowReply
    tags: TagsReply


@dataclass(frozen=True)
class Checked:
    """What a server says that was asked for the models of a batch, and has what is demanded.

    Attributes:
        model: about the model of the batch.
        fallback: about the fallback model; None where there is none.
    """

    model: ServerInfo
    fallback: ServerInfo | None = None


@dataclass(frozen=True)
class RunSetup:
    """What is decided before the first row, and is the same for all rows of a run.

    Attributes:
        task: makes the requests.
        keys: makes the keys of the rows.
        validator: decides what replies are worth.
        provenance: of all results.
        num_ctx: the context that was chosen, in tokens, to be kept for later runs; None where the user gave one.
        fallback: provenance of the results of the fallback model; None where there is none.
    """

    task: Task
    keys: Keys
    validator: ReplyValidator
    provenance: Provenance
    num_ctx: int | None
    fallback: Provenance | None = None


def run_setup(
    spec: BatchSpec, sample: Sequence[str], earlier_num_ctx: int | None, host: str, server: Checked
) -> RunSetup:
    """Return what all requests of a run have in common.

    Args:
        spec: the batch.
        sample: the first prompts.
        earlier_num_ctx: context that an earlier run in this directory chose, in tokens; a smaller one is never chosen.
        host: base URL of the server.
        server: what it says.
    """
    show = server.model.show
    num_ctx = None
    if warning := oversized_context(spec.options.num_ctx, show.context_length):
        logger.warning("Model %s: %s", split_model(spec.model)[0], warning)
    if spec.options.num_ctx is None:
        chosen = choose_num_ctx(sample, system=spec.system, num_predict=spec.options.num_predict, show=show)
        num_ctx = max(chosen, earlier_num_ctx or 0)
    return setup_at(spec, num_ctx, host, server)


def setup_at(spec: BatchSpec, num_ctx: int | None, host: str, server: Checked) -> RunSetup:
    """Return what all requests of a run to one server have in common.

    Args:
        spec: the batch.
        num_ctx: the context that was chosen for all servers, in tokens; None where the user gave one.
        host: base URL of the server.
        server: what it says.
    """
    name, _ = split_model(spec.model)
    task, version = task_of(spec, num_ctx), server.model.version.version
    options = task.sent_options.model_dump_json(exclude_none=True).encode()
    provenance = Provenance(
        model=name,
        digest=digest_of(server.model.tags, name),
        server=host,
        server_version=version,
        options_hash=blake2b(options, digest_size=8).hexdigest(),
        seed=spec.options.seed,
        num_ctx=task.sent_options.num_ctx,
    )
    fallback = None
    if server.fallback is not None and spec.failures.fallback_model is not None:
        second, _ = split_model(spec.failures.fallback_model)
        fallback = replace(provenance, model=second, digest=digest_of(server.fallback.tags, second))
    return RunSetup(
        task,
        keys_of(task, provenance.digest),
        validator_of(spec, task, host, version, server.model.show.context_length),
        provenance,
        num_ctx,
        fallback,
    )


def task_of(spec: BatchSpec, num_ctx: int | None = None) -> Generate | Chat | Embed:
    """Return what makes the requests of a batch.

    Args:
        spec: the batch.
        num_ctx: the context that was chosen, in tokens; None where the user gave one.
    """
    name, _ = split_model(spec.model)
    if spec.embedding is not None:
        return Embed(
            model=name,
            options=spec.options,
            num_ctx=num_ctx,
            keep_alive=spec.keep_alive,
            dimensions=spec.embedding.dimensions,
        )
    fallback_model = spec.failures.fallback_model
    return (Chat if spec.task == "chat" else Generate)(
        model=name,
        options=spec.options,
        num_ctx=num_ctx,
        system=spec.system,
        keep_alive=spec.keep_alive,
        think=spec.think,
        output_type=spec.output(),
        fallback_model=fallback_model and split_model(fallback_model)[0],
        sees=spec.images is not None,
    )


def keys_of(task: Task, digest: str | None) -> Keys:
    """Return what makes the keys of the rows.

    Args:
        task: what is asked.
        digest: of the model; None where the server lists none.
    """
    return Keys(digest or task.model, task.identity(), task.schema)


def validator_of(
    spec: BatchSpec, task: Generate | Chat | Embed, host: str, version: str, context_length: int | None = None
) -> ReplyValidator:
    """Return what validates the replies of a server of that version.

    Args:
        spec: the batch.
        task: what is asked.
        host: base URL of the server, for errors.
        version: of the server.
        context_length: tokens that the model was trained for; None if unknown.
    """
    if isinstance(task, Embed):
        return VectorValidator(task, host, (spec.embedding or Embedding()).on_long_text)
    failures = spec.failures
    return AnswerValidator(
        task=task,
        host=host,
        refuses_long_prompts=refuses_long_prompts(version),
        context_length=context_length,
        on_truncation=failures.on_truncation,
        allow_cut=failures.allow_cut,
        repairs=None
        if spec.output_type is None
        else RepairStrategy(spec.options.num_predict, spec.think, has_fallback=failures.fallback_model is not None),
    )


def digest_of(tags: TagsReply, name: str) -> str | None:
    """Return the digest of a model; None if the server does not list it."""
    return next((model.digest for model in tags.models if same_model(model.tag, name) and model.digest), None)


def check_digest(name: str, found: str | None, wanted: str | None, host: str) -> None:
    """Compare the model's digest with the one that the user demands.

    Raises:
        ModelChangedError: the digests differ.
    """
    if wanted is not None and (found is None or not found.startswith(wanted)):
        raise ModelChangedError(
            f"Model {name!r} at {host} has the digest {found or '(none)'}, not the demanded {wanted}. "
            "Pull the wanted version there, or change the digest after '@' if the new one is meant."
        )


def check_capabilities(name: str, show: ShowReply, needed: Sequence[str], host: str) -> None:
    """Check that the model can do what is needed. Servers before 0.6.4 do not say what a model can do, and pass.

    Raises:
        UnsupportedError: the model lacks a capability.
    """
    lacking = [capability for capability in needed if capability not in (show.capabilities or needed)]
    if lacking:
        raise UnsupportedError(
            f"the model lacks {' and '.join(map(repr, lacking))}; it has {', '.join(show.capabilities or [])}",
            host=host,
            model=name,
        )


def refuses_long_prompts(version: str) -> bool:
    """Return whether a server of this version obeys ``truncate: false``; one built from source says 0.0.0."""
    found = _VERSION.match(version)
    return found is not None and tuple(map(int, found.groups())) >= (0, 12, 6)


def choose_num_ctx(prompts: Iterable[str], *, system: str | None, num_predict: int | None, show: ShowReply) -> int:
    """Return the context for a run, in tokens, from a sample of its prompts.

    It has room for the longest of them, a quarter more, and the answer. It is never below 4096 and the model's own
    default, and never above what the model was trained for.

    Args:
        prompts: the sample.
        system: system message.
        num_predict: the user's limit for the answer, in tokens; None or negative is no limit.
        show: what the server says about the model.
    """
    longest = max((len(prompt.encode(errors="replace")) for prompt in prompts), default=0)
    tokens = 1.25 * (longest + len((system or "").encode(errors="replace"))) / _BYTES_PER_TOKEN + _TEMPLATE_TOKENS
    answer = num_predict if num_predict is not None and num_predict > 0 else _ANSWER_TOKENS
    own = _NUM_CTX.search(show.parameters)
    wanted = max(_SMALLEST, int(own[1]) if own else 0, _STEP * ceil((tokens + answer) / _STEP))
    return min(wanted, show.context_length or wanted)


class ModelControl:
    """The requests of a batch that are about its models: check, pull, load and unload them at one server.

    Args:
        client: its timeouts must allow for the load of a model.

    Attributes:
        has_loaded: the model was loaded here, or was being loaded when the run ended.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.has_loaded = False

    @property
    def host(self) -> str:
        """Base URL of the server."""
        return self._client.settings.base_url

    async def check(self, spec: BatchSpec) -> Checked:
        """Check that the server can do a batch. A missing model is pulled if the settings allow it.

        Raises:
            ModelChangedError: a digest is not the demanded one.
            UnsupportedError: a model cannot do what is asked.
            OllamaError: the server does not answer, or a model is missing.
        """
        needed = task_of(spec).capabilities
        model = await self._checked(spec.model, needed)
        if spec.failures.fallback_model is None:
            return Checked(model)
        # The fallback model may lack reasoning, which is off by then. It must answer, and see images if there are any.
        needed = [each for each in needed if each != "thinking"]
        return Checked(model, await self._checked(spec.failures.fallback_model, needed))

    async def _checked(self, model: str, needed: Sequence[str]) -> ServerInfo:
        name, wanted = split_model(model)
        version = await self._client.send(VersionRequest())
        info = ServerInfo(version, await self._show(name), await self._client.send(TagsRequest()))
        check_digest(name, digest_of(info.tags, name), wanted, self.host)
        check_capabilities(name, info.show, needed, self.host)
        return info

    async def digest(self, model: str) -> str | None:
        """Return the digest that the model has now; None if the server does not list it."""
        return digest_of(await self._client.send(TagsRequest()), model)

    async def _show(self, model: str) -> ShowReply:
        try:
            return await self._client.send(ShowRequest(model=model))
        except ModelNotFoundError as missing:
            check_pull_allowed(model, self._client.settings, missing)
            logger.info("Model %s is missing at %s, pulling it.", model, self._client.settings.base_url)
            await self._client.send(PullRequest(model=model))
            return await self._client.send(ShowRequest(model=model))

    async def in_memory(self, model: str) -> RunningModel | None:
        """Return what the server says of the loaded model; None if it is not loaded, or the server does not say."""
        try:
            async with asyncio.timeout(_LAST_TIMEOUT):
                running = await self._client.send(PsRequest())
        except (OllamaError, TimeoutError):
            return None
        return next((each for each in running.models if same_model(each.tag, model)), None)

    async def load(self, task: Task) -> None:
        """Load the model into memory, with the options of the run."""
        await self._load(task.load())

    async def vector_length(self, task: Task) -> int:
        """Load the model, and return how many numbers its vectors have. What ``/api/show`` says is no proof of that.

        Raises:
            RejectedReplyError: the model gives no vector.
            OllamaError: the server does not answer.
        """
        reply: EmbedReply = await self._load(task.load().model_copy(update={"input": ["a"]}))
        if not reply.embeddings or not reply.embeddings[0]:
            raise RejectedReplyError("a text got no vector", host=self.host, model=task.model)
        return len(reply.embeddings[0])

    async def _load(self, request: Request[ReplyT]) -> ReplyT:
        self.has_loaded = True
        try:
            return await self._client.send(request)
        except OllamaError:
            self.has_loaded = False
            raise

    async def unload(self, model: str) -> None:
        """Unload the model. A failure is only logged, since the results are complete without it."""
        try:
            async with asyncio.timeout(_LAST_TIMEOUT):
                await self._client.send(unload(model))
        except (OllamaError, TimeoutError) as error:
            logger.warning("Model %s was not unloaded and may still be in memory: %s", model, error)
