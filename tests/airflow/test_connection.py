"""What a connection says becomes Settings, or an error that names the field."""

import json
from types import SimpleNamespace

import pytest

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings, Timeouts
from ollama_provider.connection import SETTINGS, readable_uri, settings_from_connection
from ollama_provider.hooks import OllamaHook
from ollama_provider.provider_info import EXTRA_FIELDS


def connection(extra=None, **fields):
    """A connection as Airflow returns it, with a text as extra."""
    empty = {"conn_id": "gpu", "host": None, "port": None, "schema": None, "login": None, "password": None}
    text = extra if isinstance(extra, str | None) else json.dumps(extra)
    return SimpleNamespace(**{**empty, **fields}, extra=text)


def read(extra=None, **fields) -> Settings:
    return settings_from_connection(connection(extra, **fields))


def refusal(extra=None, **fields) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read(extra, **fields)
    return str(caught.value)


def test_an_empty_connection_is_this_machine_with_all_defaults():
    """Nothing has to be filled in for an Ollama on the same machine."""
    assert read() == Settings()


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "gpu1"}, "http://gpu1:11434"),
        ({"host": "gpu1:8080"}, "http://gpu1:8080"),
        ({"host": "gpu1", "port": 8080}, "http://gpu1:8080"),
        ({"host": "gpu1", "schema": "https"}, "https://gpu1:443"),
        ({"host": "https://ollama.example.com/base"}, "https://ollama.example.com:443/base"),
        ({"host": "https://ollama.example.com/base/"}, "https://ollama.example.com:443/base"),
        ({"host": "http://gpu1", "port": 11434}, "http://gpu1:11434"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:11434"),  # noqa: S104  # nothing is bound
        ({"host": "[::1]"}, "http://[::1]:11434"),
        ({"host": "::1", "port": 8080}, "http://[::1]:8080"),
        ({"host": " gpu1 ", "schema": ""}, "http://gpu1:11434"),
        ({"host": "gpu1", "port": 0}, "http://gpu1:11434"),
        ({"host": "gpu1", "port": "0"}, "http://gpu1:11434"),
        ({"host": "gpu1", "port": ""}, "http://gpu1:11434"),
        ({"host": "gpu1", "port": "8080"}, "http://gpu1:8080"),
        ({"host": "gpu1:0", "port": 8080}, "http://gpu1:8080"),
        ({"host": "https://ollama.example.com:0/base", "port": 0}, "https://ollama.example.com:443/base"),
    ],
)
def test_host_port_and_scheme_make_the_address(fields, base_url):
    """*Host* takes what OLLAMA_HOST takes, base path included; the other fields fill in what it leaves open."""
    assert read(**fields).base_url == base_url


def test_several_hosts_are_several_servers_with_the_same_fields():
    """The other fields fill in for each what it leaves open."""
    settings = read({"model": "llama3.2"}, host="gpu1, https://gpu2/base, gpu3:1", port=8080, password="secret")

    assert settings.urls == ("http://gpu1:8080", "https://gpu2:8080/base", "http://gpu3:1")
    assert {(server.model, server.password.get_secret_value()) for server in settings.servers} == {
        ("llama3.2", "secret")
    }


def test_login_and_password_are_taken_over():
    """They are what Basic and Bearer auth are made of."""
    settings = read(login="ada", password="secret")

    assert settings.login == "ada"
    assert settings.password.get_secret_value() == "secret"


def test_credentials_in_the_host_are_refused_with_their_place():
    """Airflow shows *Host* to everybody who may see connections, and masks it nowhere."""
    told = refusal(host="https://ada:hunter2@ollama.example.com", login="ada", password="hunter2")

    assert "connection 'gpu': host: " in told
    assert "Login and Password" in told
    assert "hunter2" not in told


EVERYTHING = {
    "model": "llama3.2",
    "options": {"num_ctx": 8192, "temperature": 0},
    "keep_alive": "5m",
    "auto_pull": False,
    "pull_allow": "hf.co/ours/*, hf.co/theirs/*",
    "first_token_timeout": 1800,
    "idle_timeout": 60,
    "total_timeout": 3600,
    "connect_timeout": 2.5,
    "pull_stall_timeout": 30,
    "max_attempts": 2,
    "max_retry_seconds": 60,
    "verify": "/etc/ca.pem",
    "client_cert": "/etc/client.pem",
    "headers": {"X-Tenant": "team-blue"},
    "trust_env": False,
}


def test_every_extra_field_arrives():
    """No field of the extra is read and forgotten."""
    settings = read(EVERYTHING)

    assert settings == Settings(
        model="llama3.2",
        options={"num_ctx": 8192, "temperature": 0},
        keep_alive="5m",
        auto_pull=False,
        pull_allow=("hf.co/ours/*", "hf.co/theirs/*"),
        timeouts=Timeouts(connect=2.5, first_token=1800, idle=60, total=3600, pull_stall=30),
        max_attempts=2,
        max_retry_seconds=60,
        verify="/etc/ca.pem",
        client_cert="/etc/client.pem",
        headers={"X-Tenant": "team-blue"},
        trust_env=False,
    )
    assert set(EVERYTHING) == SETTINGS


def test_text_is_as_good_as_values():
    """A form of Airflow 2.11 and a URI in the environment hold nothing but text."""
    as_text = {
        name: json.dumps(value) if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else value
        for name, value in EVERYTHING.items()
    }

    assert read({name: str(value) for name, value in as_text.items()}) == read(EVERYTHING)


@pytest.mark.parametrize("empty", [None, ""])
def test_empty_fields_count_as_absent(empty):
    """Forms save empty fields; they mean the default."""
    assert read(dict.fromkeys(EVERYTHING, empty)) == Settings()


def test_what_the_test_button_of_airflow_2_sends_is_read():
    """It sends every field of the form a second time, by the name that it has in the page."""
    sent = {"model": "llama3.2", "auto_pull": "false"}

    assert read(sent | {f"extra__ollama__{name}": text for name, text in sent.items()}) == read(sent)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("true", True),
        ("False", False),
        (False, False),
        ("no", False),
        ("0", False),
        (0, False),
        (" off ", False),
        ("YES", True),
        ("1", True),
        ("on", True),
        ("/ca.pem", "/ca.pem"),
    ],
)
def test_verify_is_a_switch_or_a_file(given, meant):
    """The word no is not taken for a file, which would be looked for in vain."""
    assert read({"verify": given}).verify == meant


@pytest.mark.parametrize(
    ("uri", "base_url"),
    [
        ("ollama://https://host/base?verify=no", "https://host:443/base"),
        ("ollama://https://ada:secret@host:8443/base/v2/", "https://host:8443/base/v2"),
        ("ollama://http://gpu1", "http://gpu1:80"),
        ("ollama://gpu1:11434", "http://gpu1:11434"),
        ("ollama://gpu1/https", "https://gpu1:443"),
    ],
)
def test_a_connection_that_is_written_as_a_uri_keeps_its_base_path(monkeypatch, uri, base_url):
    """Airflow puts the path into the field for the scheme."""
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_URI", uri)

    settings = OllamaHook("ollama_uri").settings

    assert settings.base_url == base_url
    assert settings.verify is ("verify=no" not in uri)
    # Airflow takes login and password out of the URI by itself.
    assert (settings.login == "ada") is ("ada" in uri)


def test_an_override_wins_and_none_leaves_the_connection_alone():
    """An operator's own timeout replaces the connection's; None keeps it."""
    conn = connection({"first_token_timeout": 60, "max_attempts": 2})

    settings = settings_from_connection(conn, first_token_timeout=1800, max_attempts=None)

    assert settings.timeouts.first_token == 1800
    assert settings.max_attempts == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("{not json", ["extra", "not valid JSON"]),
        ("[1]", ["extra", "JSON object"]),
        ("[" * 100_000, ["extra", "not valid JSON"]),
        ('{"options": "%s"}' % ("[" * 100_000), ["options", "JSON object"]),
        ('{"options": {"temperature": NaN}}', ["extra", "not valid JSON"]),
        ('{"idle_timeout": 1e400}', ["extra", "not valid JSON"]),
        ({"idle_timeout": "inf"}, ["idle_timeout", "less than or equal to 31536000"]),
        ({"modle": "x"}, ["'modle'", "did you mean 'model'"]),
        ({"idle_time_out": 3}, ["'idle_time_out'", "did you mean 'idle_timeout'"]),
        ({"zzz": 3}, ["'zzz'", "known fields are", "keep_alive"]),
        ({"idle_timeout": "soon"}, ["idle_timeout", "valid number"]),
        ({"total_timeout": -1}, ["total_timeout", "greater than 0"]),
        ({"max_attempts": 0}, ["max_attempts", "greater than or equal to 1"]),
        ({"auto_pull": "perhaps"}, ["auto_pull", "boolean"]),
        ({"keep_alive": "five"}, ["keep_alive", "5m"]),
        ({"options": {"num_ctxt": 8192}}, ["options.num_ctxt", "did you mean 'num_ctx'"]),
        ({"options": {"num_ctx": "many"}}, ["options.num_ctx", "integer"]),
        ({"options": "{'num_ctx': 8192}"}, ["options", "JSON object", "double quotes"]),
        ({"headers": ["X-Tenant"]}, ["headers", "dictionary"]),
        ({"headers": {"X-Tenant": 7}}, ["headers.X-Tenant", "string"]),
    ],
)
def test_a_bad_extra_field_is_named_with_what_is_allowed(extra, words):
    """Whoever reads the error knows the connection, the field, and what to write instead."""
    text = refusal(extra)

    assert "'gpu'" in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "two words"}, ["host", "gpu1:11434"]),
        ({"host": "ftp://gpu1"}, ["ftp", "http or https"]),
        ({"host": "gpu1", "schema": "htps"}, ["htps", "http or https"]),
        ({"host": "gpu1", "port": 99999}, ["port", "99999"]),
        ({"host": "gpu1", "port": -1}, ["port", "-1"]),
        ({"host": "gpu1", "port": "http"}, ["port", "'http'"]),
        ({"host": "gpu1", "port": True}, ["port", "'True'"]),
    ],
)
def test_a_bad_address_is_named(fields, words):
    """So does one who mistypes host, port or scheme."""
    text = refusal(**fields)

    assert "'gpu'" in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    "extra",
    [
        {"headers": {"X-Key": {"nested": "hunter2!"}}},
        {"headers": '{"X-Key": "hunter2!"'},
        {"max_attempts": "hunter2!"},
        '{"headers": {"X-Key": "hunter2!"}',
    ],
)
def test_an_error_never_quotes_a_value(extra):
    """A value may be a secret in the wrong place, and errors go to the log."""
    assert "hunter2!" not in refusal(extra)


def test_the_form_has_only_fields_that_are_read():
    """A field of the form that nothing reads would be a lie."""
    assert EXTRA_FIELDS.keys() <= SETTINGS


def test_the_form_tells_the_defaults_that_hold():
    """A default stands in Settings; the form may only repeat it."""
    fields = Settings.model_fields | {f"{name}_timeout": field for name, field in Timeouts.model_fields.items()}
    for name, field in EXTRA_FIELDS.items():
        default, text = fields[name].default, field["description"]
        if "default" in field["schema"]:
            assert field["schema"]["default"] == default
        elif "If empty" in text and default is not None:
            assert f"If empty, {str(default).lower()}." in text
        elif "If empty" not in text:
            assert not isinstance(default, bool | int | float), name


@pytest.mark.parametrize(
    "value",
    [
        '{"conn_type": "ollama", "host": "gpu1", "port": 0}',
        '{"conn_type": "ollama", "host": "gpu1", "port": "0"}',
        '{"conn_type": "ollama", "host": "gpu1:0"}',
        "ollama://gpu1:0",
        "ollama://gpu1",
    ],
)
def test_port_0_is_no_port_however_airflow_reads_it(value, monkeypatch):
    """Airflow's form sends 0 for a port that is not set, and stores a 0 that a user typed."""
    monkeypatch.setenv("AIRFLOW_CONN_GPU", value)

    assert OllamaHook("gpu").settings.base_url == "http://gpu1:11434"


@pytest.mark.parametrize(
    "host",
    [
        "gpu1",
        "https://gpu1/base",
        "gpu1, gpu2:11435",
        "gpu1, https://gpu2.example.com/base",
        "gpu1:1, https://gpu2.example.com/base, http://gpu3",
        "https://gpu1/base, gpu2, http://gpu3:1",
        "[::1]:1, http://gpu2",
        "::1, gpu2:3",
    ],
)
@pytest.mark.parametrize(
    "fields", [{}, {"login": "ada", "password": "p,a/s@s:", "port": 5}, {"extra": '{"model": "a,b://c@d"}'}]
)
def test_the_uri_of_the_test_button_is_read_back(host, fields, monkeypatch):
    """Airflow writes the connection into the environment as a URI, and cannot read every list of hosts from that."""
    from airflow.models.connection import Connection

    uri = Connection(conn_id="gpu", conn_type="ollama", host=host, **fields).get_uri()
    read_back = Connection(conn_id="gpu", uri=readable_uri(uri))

    assert settings_from_connection(read_back) == read(host=host, **fields)


@pytest.mark.parametrize(
    "value",
    [
        '{"conn_type": "ollama", "host": "http://gpu1, http://gpu2"}',
        "ollama://gpu1",
        "ollama://https://gpu1/base",
        "http://a, https://b",
    ],
)
def test_another_value_of_the_environment_is_left_alone(value):
    """Connections in the form of JSON, above all."""
    assert readable_uri(value) == value
