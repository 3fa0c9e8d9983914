"""Airflow 2 shows a connection, takes it back from the browser, and leaves it as it was."""

import html.parser
import json
from collections.abc import Callable, Iterator
from typing import Any

import airflow
import pytest
from airflow.providers.common.compat.sdk import Connection

from ollama_provider.api.settings import Settings
from ollama_provider.connection import settings_from_connection
from ollama_provider.provider_info import EXTRA_FIELDS
from tests.airflow.test_connection import EVERYTHING

pytestmark = pytest.mark.skipif(not airflow.__version__.startswith("2."), reason="Airflow 3 has a form of its own")

FIELD = "extra__ollama__"


class Inputs(html.parser.HTMLParser):
    """The inputs of a page by name, with what they show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}
        self._textarea: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an input's value, and that a textarea begins."""
        told = dict(attrs)
        name = told.get("name")
        if tag == "input" and name:
            self.shown[name] = told.get("value") or ""
        self._textarea = name if tag == "textarea" else None

    def handle_data(self, data: str) -> None:
        """Note what a textarea shows."""
        if self._textarea:
            self.shown[self._textarea] = data.strip()

    def handle_endtag(self, tag: str) -> None:
        """Leave the textarea."""
        self._textarea = None


class Form:
    """The webserver's form, as an administrator's browser sees it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def add(self, conn_id: str, **fields: str) -> str:
        """Fill in the form of a new connection and press Save; the page that follows."""
        sent = {f"{FIELD}{name}": fields.pop(name, "") for name in EXTRA_FIELDS}
        return self._post("/connection/add", {"conn_id": conn_id, **sent, **fields})

    def edit(self, conn: Connection, **changes: str) -> str:
        """Open a connection, change some inputs and press Save; the page that follows."""
        return self._post(f"/connection/edit/{conn.id}", self.shown(conn) | changes)

    def shown(self, conn: Connection) -> dict[str, str]:
        """Open a connection: what its inputs show."""
        page = self._client.get(f"/connection/edit/{conn.id}").text
        inputs = Inputs(page).shown
        return {name: inputs[name] for name in inputs if name.startswith(FIELD) or hasattr(conn, name)}

    def _post(self, path: str, sent: dict[str, str]) -> str:
        return self._client.post(path, data={"conn_type": "ollama", **sent}, follow_redirects=True).text


@pytest.fixture(scope="module")
def app(airflow_db: Any) -> Any:
    """Airflow's webserver, without a browser's token against forgery."""
    from airflow.www.app import create_app

    app = create_app(testing=True)
    app.config["WTF_CSRF_ENABLED"] = False
    return app


@pytest.fixture
def form(app: Any) -> Form:
    """The form, for a user who may edit connections."""
    manager = app.appbuilder.sm
    ada = manager.find_user("ada") or manager.add_user(
        "ada", "Ada", "L", "ada@example.com", manager.find_role("Admin"), password="ada"
    )
    with app.test_client() as client, client.session_transaction() as session:
        session.update(_user_id=str(ada.id), _fresh=True)
    return Form(client)


@pytest.fixture
def stored(airflow_db: Any) -> Iterator[Callable[..., Connection]]:
    """Return a function that returns the connection *gpu* of the database, first made if there is an extra for it."""
    from airflow.utils.session import create_session

    def get(extra: dict[str, Any] | None = None) -> Connection:
        with create_session() as session:
            if extra is not None:
                session.add(Connection(conn_id="gpu", conn_type="ollama", host="gpu1", extra=json.dumps(extra)))
                session.commit()
            return session.query(Connection).filter_by(conn_id="gpu").one()

    yield get
    with create_session() as session:
        session.query(Connection).filter_by(conn_id="gpu").delete()


@pytest.mark.parametrize(
    "extra",
    [
        EVERYTHING,
        {"auto_pull": False, "trust_env": False, "verify": False, "keep_alive": 0, "max_retry_seconds": 0.5},
        {"auto_pull": True, "verify": True, "keep_alive": -1, "idle_timeout": 0.5, "pull_allow": ["hf.co/a/*", "b/*"]},
        {"auto_pull": "false", "options": '{"temperature": 0}', "first_token_timeout": "2.5"},
        {},
    ],
)
def test_a_connection_that_is_edited_keeps_what_it_has(form, stored, extra):
    """Whoever made it and however: a change of the host changes the host."""
    conn = stored(extra)
    before = settings_from_connection(conn)

    assert "Changed Row" in form.edit(conn, host="gpu2")

    after = settings_from_connection(stored())
    assert after == before.model_copy(update={"base_url": "http://gpu2:11434"})


def test_values_are_shown_as_json_and_texts_as_they_are(form, stored):
    """What the form shows is what may be typed there."""
    shown = form.shown(stored(EVERYTHING | {"auto_pull": True, "idle_timeout": 2.5}))

    assert shown[f"{FIELD}options"] == '{"num_ctx": 8192, "temperature": 0}'
    assert shown[f"{FIELD}auto_pull"] == "true"
    assert shown[f"{FIELD}idle_timeout"] == "2.5"
    assert shown[f"{FIELD}model"] == "llama3.2"


def test_a_false_that_was_not_shown_is_shown_after_save(form, stored):
    """Airflow fills in no false that a command or the API has stored; once saved it can be seen and taken away."""
    conn = stored({"auto_pull": False, "model": "llama3.2"})

    form.edit(conn)
    assert form.shown(stored())[f"{FIELD}auto_pull"] == "false"
    form.edit(stored(), **{f"{FIELD}auto_pull": ""})

    assert json.loads(stored().extra) == {"model": "llama3.2"}


def test_connections_of_other_types_are_left_alone(form, stored):
    """One form has the fields of all types: what is wrong here may be right there."""
    conn = stored({"max_attempts": 0, "auto_pull": "perhaps"})

    assert "Changed Row" in form.edit(conn, conn_type="http")
    assert json.loads(stored().extra) == {"max_attempts": 0, "auto_pull": "perhaps"}


def test_a_broken_extra_can_be_opened(form, stored):
    """Otherwise it could not be corrected in the form."""
    assert form.shown(stored([1]))[f"{FIELD}model"] == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ({}, {}),
        ({"auto_pull": "false", "idle_timeout": "2.5"}, {"auto_pull": False, "timeouts": {"idle": 2.5}}),
        ({"auto_pull": "False", "max_attempts": "2"}, {"auto_pull": False, "max_attempts": 2}),
        ({"options": '{"num_ctx": 8192}', "verify": "false"}, {"options": {"num_ctx": 8192}, "verify": False}),
        ({"model": "7", "keep_alive": "0"}, {"model": "7", "keep_alive": "0"}),
    ],
)
def test_what_is_typed_is_what_holds(form, stored, typed, meant):
    """A form with nothing filled in changes no default; above all it does not switch anything off."""
    assert "Added Row" in form.add("gpu", **typed)

    assert settings_from_connection(stored()) == Settings(**meant)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"auto_pull": "perhaps"}, "auto_pull: Input should be a valid boolean"),
        ({"idle_timeout": "0"}, "idle_timeout: Input should be greater than 0"),
        ({"max_attempts": "2.5"}, "max_attempts: Input should be a valid integer"),
        ({"options": "{'num_ctx': 8192}"}, "options: must be a JSON object, in double quotes"),
        ({"options": '{"num_ctxt": 8192}'}, "did you mean"),
    ],
)
def test_an_error_is_shown_on_save_and_the_input_is_kept(form, typed, told):
    """Not only when the first task reads it."""
    page = form.add("gpu", **typed)

    assert "Added Row" not in page
    assert told in page
    ((name, text),) = typed.items()
    assert Inputs(page).shown[f"{FIELD}{name}"] == text
