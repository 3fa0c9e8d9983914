"""What the servers of the connections of type *Ollama* say of themselves: models on disk and in memory."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models import Connection
from airflow.utils.session import create_session
from sqlalchemy import select

from ollama_provider.api.client import Client
from ollama_provider.api.errors import EndpointNotFoundError, InvalidRequestError, ModelNotFoundError, OllamaError
from ollama_provider.api.schemas import LocalModel, PsRequest, RunningModel, ShowRequest
from ollama_provider.api.settings import Settings
from ollama_provider.connection import settings_from_connection
from ollama_provider.diagnosis import Finding, diagnose, examine
from ollama_provider.hooks import OllamaHook

logger = logging.getLogger(__name__)

#: Seconds for a look at a server.
LOOK = 5.0
#: Servers of a connection, models of a server, and capabilities of a model that are shown.
_SERVERS, _MODELS, _CAPABILITIES = 20, 100, 10
#: Models whose details are remembered. They change only with the digest.
_REMEMBERED = 1000
_DECADE = timedelta(days=3650)


class _Shown(NamedTuple):
    context: int | None
    capabilities: tuple[str, ...] | None


#: What servers have shown of their models, by URL and digest.
_remembered: dict[tuple[str, str], _Shown] = {}


@dataclass(frozen=True)
class OllamaConnection:
    """A connection of type *Ollama* in Airflow's database.

    Attributes:
        conn_id: its id.
        settings: what it says; None if it is not valid.
        error: what is wrong with it; empty if nothing is.
    """

    conn_id: str
    settings: Settings | None
    error: str = ""

    @property
    def servers(self) -> tuple[Settings, ...]:
        """The settings of its first servers."""
        return self.settings.servers[:_SERVERS] if self.settings else ()


@dataclass(frozen=True)
class ModelOnDisk:
    """A model that a server has, and what is known of it: None is unknown.

    Attributes:
        name: with its tag.
        size: in bytes.
        parameters: how many it has, such as ``3.2B``.
        quantization: such as ``Q4_K_M``.
        context: in tokens.
        capabilities: such as ``tools``.
    """

    name: str
    size: int
    parameters: str
    quantization: str
    context: int | None
    capabilities: tuple[str, ...] | None


@dataclass(frozen=True)
class ModelInMemory:
    """A model that a server has loaded.

    Attributes:
        name: with its tag.
        size: in bytes.
        size_vram: how much of it is in the memory of GPUs, in bytes.
        context: of one parallel slot, in tokens; None is unknown.
        until: when it is unloaded; None for no limit.
    """

    name: str
    size: int
    size_vram: int
    context: int | None
    until: datetime | None


@dataclass(frozen=True)
class ServerState:
    """What a server has said.

    Attributes:
        url: its base URL.
        usable, text, version: see `Finding`.
        on_disk: its models.
        in_memory: its loaded models; None where it does not say.
        models: how many it has, of which *on_disk* may be the first ones.
    """

    url: str
    usable: bool
    text: str
    version: str = ""
    on_disk: tuple[ModelOnDisk, ...] = ()
    in_memory: tuple[ModelInMemory, ...] | None = None
    models: int = 0


def readable_connections(user: Any) -> list[OllamaConnection]:
    """Return the connections of type *Ollama* in Airflow's database that a user may read, by their ids."""
    with create_session() as session:
        ids = list(session.scalars(_ids().order_by(Connection.conn_id)))
    return [_read(conn_id) for conn_id in ids if _may_read(user, conn_id)]


def find_connection(conn_id: str) -> OllamaConnection | None:
    """Return a connection of type *Ollama* in Airflow's database; None if there is none of that id."""
    with create_session() as session:
        found = session.scalar(_ids().where(Connection.conn_id == conn_id))
    return None if found is None else _read(found)


def _ids() -> Any:
    return select(Connection.conn_id).where(Connection.conn_type == OllamaHook.conn_type)


def _may_read(user: Any, conn_id: str) -> bool:
    # Airflow 3.1 cannot list the connections that a user may read.
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return bool(get_auth_manager().is_authorized_connection(method="GET", details=details, user=user))


def _read(conn_id: str) -> OllamaConnection:
    try:
        with create_session() as session:
            # It is decrypted when it is loaded, so one that cannot be would fail a query for all.
            connection = session.scalars(select(Connection).where(Connection.conn_id == conn_id)).one()
            return OllamaConnection(conn_id, settings_from_connection(connection))
    except InvalidRequestError as error:
        return OllamaConnection(conn_id, None, str(error))
    except Exception as error:  # of many classes, some of cryptography
        return OllamaConnection(
            conn_id,
            None,
            f"connection {conn_id!r} cannot be read ({type(error).__name__}). Does the API server have the fernet_key "
            "that it was stored with?",
        )


def test(settings: Settings) -> tuple[bool, str]:
    """Return what the button *Test* of a connection says."""
    try:
        return diagnose(settings)
    except OllamaError as error:
        return False, str(error)


def look(settings: Settings) -> ServerState:
    """Ask a server what it has, within `LOOK` seconds. What it has not said until then is unknown.

    Args:
        settings: of one server.
    """
    details = _Details(settings.base_url)
    try:
        finding = examine(settings, LOOK, details.ask)
    except Exception as error:  # of one server; the others are shown
        logger.exception("Looking at the Ollama server %s failed.", settings.base_url)
        finding = Finding(
            usable=False, text=f"an unexpected {type(error).__name__}; the log of the API server has more"
        )
    return ServerState(
        url=settings.base_url,
        usable=finding.usable,
        text=finding.text,
        version=finding.version,
        on_disk=tuple(map(details.on_disk, finding.models[:_MODELS])),
        in_memory=None if details.loaded is None else tuple(map(_in_memory, details.loaded[:_MODELS])),
        models=len(finding.models),
    )


class _Details:
    """What a server says of its models beyond their list.

    Args:
        url: of the server.

    Attributes:
        loaded: models in memory; None where it does not say.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._shown: dict[str, _Shown] = {}
        self.loaded: list[RunningModel] | None = None

    def ask(self, client: Client, finding: Finding) -> None:
        """Ask for the models in memory, and for the details of each on disk that are not known."""
        with suppress(EndpointNotFoundError):  # before 0.1.38
            self.loaded = client.send(PsRequest()).models
        for model in finding.models[:_MODELS]:
            place = self._url, model.digest
            shown = _remembered.get(place)  # another thread may clear it
            if shown is None:
                try:
                    reply = client.send(ShowRequest(model=model.tag))
                except ModelNotFoundError:  # it was removed at this moment
                    continue
                shown = _Shown(reply.context_length, _first(reply.capabilities))
                if len(_remembered) >= _REMEMBERED:
                    _remembered.clear()
                _remembered[place] = shown
            self._shown[model.tag] = shown

    def on_disk(self, model: LocalModel) -> ModelOnDisk:
        """Return what is known of a model."""
        shown = self._shown.get(model.tag, _Shown(None, None))
        details = model.details
        return ModelOnDisk(
            name=model.tag,
            size=model.size,
            parameters=details.parameter_size,
            quantization=details.quantization_level,
            context=shown.context,
            capabilities=shown.capabilities if model.capabilities is None else _first(model.capabilities),
        )


def _first(capabilities: list[str] | None) -> tuple[str, ...] | None:
    return None if capabilities is None else tuple(capabilities[:_CAPABILITIES])


def _in_memory(model: RunningModel) -> ModelInMemory:
    until, now = model.expires_at, datetime.now(UTC)
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    # For keep_alive=-1 a server gives a date in some centuries, which other time zones may not have.
    if until is not None and not now - _DECADE < until < now + _DECADE:
        until = None
    return ModelInMemory(model.tag, model.size, model.size_vram, model.context_length, until and until.astimezone(UTC))
