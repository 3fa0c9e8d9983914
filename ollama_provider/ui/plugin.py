"""The Airflow plugin that puts the page *Ollama* into the UI.

Every process of Airflow loads it, a task's as well, so it imports nothing heavy: the API server imports the page itself
when somebody first opens it.
"""

import asyncio
from importlib import import_module
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowPlugin

from ollama_provider.links import PAGE, has_page


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request to the page (ASGI)."""
    module = await asyncio.to_thread(import_module, "ollama_provider.ui.app")
    await module.app(scope, receive, send)


#: Without a leading slash an address is relative to that of the UI, which may lie below a path.
_VIEW = {
    "name": "Ollama",
    "href": f"{PAGE}/",
    "icon": f"{PAGE}/static/icon.svg",
    "url_route": PAGE,
    "destination": "nav",
    "nav_top_level": True,  # before 3.3, in the menu of plugins, if there are more
}


class OllamaPlugin(AirflowPlugin):
    """The menu entry *Ollama* and the page behind it. Airflow 2 loads it, and finds nothing in it."""

    name = "ollama"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = (
        [{"name": "Ollama", "app": page, "url_prefix": f"/{PAGE}"}] if has_page() else []
    )
    external_views: ClassVar[list[dict[str, Any]]] = [_VIEW] if has_page() else []
