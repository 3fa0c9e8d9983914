"""What a batch asks of the server apart from its rows: what it and the model are, to load the model, to unload it."""

import asyncio
import logging

from ollama_provider.api.client import AsyncClient
from ollama_provider.api.errors import ModelNotFoundError, OllamaError
from ollama_provider.api.pulling import check_pull_allowed
from ollama_provider.api.schemas import PullRequest, ShowReply, ShowRequest, TagsRequest, VersionRequest
from ollama_provider.batch import preflight
from ollama_provider.batch.contracts import Task
from ollama_provider.batch.tasks import unload

logger = logging.getLogger(__name__)

#: Seconds for the word that the model is not needed any more.
_FAREWELL = 10.0


class Control:
    """Asks with a patient client.

    Args:
        client: patient enough for the load of a model.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def learn(self, model: str) -> preflight.Replies:
        """Return what the server says of itself and the model, which is pulled if it is missing and that is allowed."""
        version = await self._client.send(VersionRequest())
        return preflight.Replies(version, await self._show(model), await self._client.send(TagsRequest()))

    async def digest(self, model: str) -> str | None:
        """Return the model's digest; None if the server does not list it."""
        return preflight.digest_of(await self._client.send(TagsRequest()), model)

    async def _show(self, model: str) -> ShowReply:
        try:
            return await self._client.send(ShowRequest(model=model))
        except ModelNotFoundError as missing:
            check_pull_allowed(model, self._client.settings, missing)
            logger.info("Model %s is not at %s: pulling it.", model, self._client.settings.base_url)
            await self._client.send(PullRequest(model=model))
            return await self._client.send(ShowRequest(model=model))

    async def load(self, task: Task) -> None:
        """Have the model in memory, with the options of the run."""
        began = asyncio.get_running_loop().time()
        await self._client.send(task.load())
        seconds = asyncio.get_running_loop().time() - began
        logger.info("Model %s is loaded (%.1f s), context %s.", task.model, seconds, task.sent_options.num_ctx)

    async def unload(self, model: str) -> None:
        """Take the model out of memory, if the server listens; the results are there in any case."""
        try:
            async with asyncio.timeout(_FAREWELL):
                await self._client.send(unload(model))
        except (OllamaError, TimeoutError) as error:
            logger.warning("Model %s may still be in memory: %s", model, error)
