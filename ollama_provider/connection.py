"""Reads Airflow connections of type *Ollama* into `Settings`, and builds the connection form for older Airflows."""

import difflib
import json
import re
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import ValidationError

from ollama_provider.api.address import parse_addresses
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.schemas.base import explain
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.api.strict_json import read_json
from ollama_provider.provider_info import EXTRA_FIELDS

_TIMEOUTS = {f"{name}_timeout": name for name in Timeouts.model_fields}
#: The names that are allowed in a connection's extra and in a hook's overrides.
SETTINGS = (
    Settings.model_fields.keys() - {"base_url", "other_urls", "login", "password", "timeouts"}
) | _TIMEOUTS.keys()
_URI = "ollama://"
#: The *Test* button of Airflow 2.11 sends each field of its form twice: by its name, and by the name with this prefix.
_FORM_PREFIX = "extra__ollama__"


def readable_uri(uri: str) -> str:
    """Return a connection's URI with its list of hosts as Airflow can read it; anything else as it is.

    Airflow's *Test* button writes the connection into a URI, with the part of *Host* before the first ``://`` as it is.
    That is right for ``https://gpu1``. But of ``gpu1, https://gpu2`` it makes ``ollama://gpu1, https://gpu2``, which
    Airflow does not read back.
    """
    before, separator, rest = uri.removeprefix(_URI).partition("://")
    if not uri.startswith(_URI) or not separator or "," not in before:  # commas of all other fields are encoded
        return uri
    credentials, at, rest = rest.rpartition("@")
    return f"{_URI}{credentials}{at}{quote(f'{before}://', safe='')}{rest}"


class Connection(Protocol):
    """The attributes of an Airflow connection that are read here."""

    conn_id: str
    host: str | None
    port: int | str | None
    schema: str | None
    login: str | None
    password: str | None
    extra: str | None


def settings_from_connection(conn: Connection, **overrides: Any) -> Settings:
    """Read a connection.

    An empty field of the extra counts as absent. An unknown field is refused, because a misspelt timeout would
    otherwise be ignored.

    Args:
        conn: the connection.
        overrides: values that replace fields of the extra; None keeps the connection's value.

    Raises:
        InvalidRequestError: a value is not valid. The text names the connection, the field and what is allowed, and
            never a value that may be secret.
    """
    try:
        fields = _read_extra(conn.extra) | _without_empty(overrides)
        scheme, path = conn.schema or "", None
        if "://" in (conn.host or "") and scheme.strip().lower() not in {"http", "https"}:
            # Of the URI ollama://https://host/base Airflow puts the path into the schema.
            scheme, path = "", scheme
        base_url, *other_urls = parse_addresses(conn.host, conn.port, scheme, path)
        return _settings(
            fields,
            base_url=base_url,
            other_urls=other_urls,
            login=conn.login or None,
            password=conn.password or None,
        )
    except InvalidRequestError as error:
        what = error.what
    raise InvalidRequestError(f"connection {conn.conn_id!r}: {what}")


def _settings(fields: dict[str, Any], **address: Any) -> Settings:
    values = _values(fields)
    try:
        return Settings(**address, **values)
    except ValidationError as error:
        what = re.sub(r"\btimeouts\.(\w+)", r"\1_timeout", explain(Settings, error))
    raise InvalidRequestError(what)


def _read_extra(extra: str | None) -> dict[str, Any]:
    if not extra:
        return {}
    try:
        fields = read_json(extra)
    except ValueError:
        raise InvalidRequestError("its extra is not valid JSON") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError('its extra must be a JSON object, such as {"model": "llama3.2"}')
    return {name: value for name, value in _without_empty(fields).items() if not name.startswith(_FORM_PREFIX)}


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are not empty. Forms send empty values for fields that were not filled in."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert fields of the extra to arguments of `Settings`."""
    values: dict[str, Any] = {"timeouts": {}}
    for name, value in fields.items():
        if name in _TIMEOUTS:
            values["timeouts"][_TIMEOUTS[name]] = value
        elif name in {"options", "headers"}:
            values[name] = _read_json(name, value)
        elif name in SETTINGS:
            values[name] = value
        else:
            nearest = difflib.get_close_matches(name, SETTINGS, n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"known fields are {', '.join(sorted(SETTINGS))}"
            raise InvalidRequestError(f"its extra has no field {name!r}; {advice}")
    return values


def _read_json(name: str, value: Any) -> Any:
    """Parse a value that may come as JSON text, from a form without JSON fields."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError:
        raise InvalidRequestError(f"{name}: must be a JSON object, in double quotes") from None


def form_widgets() -> dict[str, Any]:  # only on an older Airflow
    """Return the widgets of the extra fields for the connection form of Airflow 2.11 to 3.1.

    3.1 has text fields, numbers and switches; options and headers are JSON in a text field. In 2.11 all fields are
    text, because its switch shows a stored ``false`` as on, and its number field refuses a stored 2.5.
    """
    # Only Airflow 2 has Flask. While the API server of 3.1 calls this function, it replaces exactly these classes of
    # Flask-AppBuilder and wtforms by substitutes.
    import airflow  # the rest of this module works without Airflow
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
    from wtforms import BooleanField, IntegerField, StringField
    from wtforms.validators import Optional

    text: dict[str, Any] = {"widget": BS3TextFieldWidget()}
    if only_text := airflow.__version__.startswith("2."):
        text = {"widget": _json_widget(), "validators": [_check]}
    widgets = {}
    for name, field in EXTRA_FIELDS.items():
        texts = {"label": field["label"], "description": field["description"]}
        kinds = field["schema"]["type"]
        if only_text or "string" in kinds or "object" in kinds:
            widgets[name] = StringField(**texts, **text)
        elif "boolean" in kinds:
            widgets[name] = BooleanField(**texts, default=field["schema"]["default"])
        else:
            widgets[name] = IntegerField(**texts, **text, validators=[Optional()])
    return widgets


def _json_widget() -> Any:  # only on an older Airflow
    """Return a widget for Airflow 2 that shows stored values as JSON. Its own shows a dict in Python's syntax."""
    from flask_appbuilder.fieldwidgets import BS3TextFieldWidget

    class JSONWidget(BS3TextFieldWidget):  # type: ignore[misc]  # Flask-AppBuilder has no types
        def __call__(self, field: Any, **kwargs: Any) -> Any:
            value = field.data
            if isinstance(value, list):
                value = ", ".join(map(str, value))
            text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
            return super().__call__(field, value=text, **kwargs)

    return JSONWidget()


def _check(form: Any, field: Any) -> None:  # only on an older Airflow
    """Validate a field on Save in Airflow 2, with the rules that `Settings` applies at run time.

    Airflow shows a stored false or 0 as an empty field, and deletes empty fields from the extra. This function keeps
    such a value, as a text, which the form shows from then on.

    Raises:
        wtforms.validators.ValidationError: the value is not valid; the text names the field and what is allowed.
    """
    from wtforms.validators import ValidationError

    if form.conn_type.data != "ollama":  # one form holds the fields of all connection types
        return
    name = field.name.removeprefix(_FORM_PREFIX)
    try:
        if not field.data and (stored := _read_extra(form.extra.data).get(name)) in (False, 0):
            field.data = json.dumps(stored)
        _settings(_without_empty({name: field.data}))
    except InvalidRequestError as error:
        raise ValidationError(error.what) from None
