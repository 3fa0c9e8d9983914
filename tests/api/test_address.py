"""Addresses in the style of OLLAMA_HOST are understood as Ollama understands them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.api.address import parse_address, parse_addresses, settings_for
from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("gpu1", "http://gpu1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("gpu1:8000", "http://gpu1:8000"),
        (":5678", "http://127.0.0.1:5678"),
        ("http://gpu1", "http://gpu1:80"),
        ("https://gpu1", "https://gpu1:443"),
        ("HTTPS://gpu1", "https://gpu1:443"),
        ("http://gpu1:11434", "http://gpu1:11434"),
        ("gpu1:1/ollama/", "http://gpu1:1/ollama"),
        ("https://ollama.example.com/base", "https://ollama.example.com:443/base"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:1", "http://[::1]:1"),
        ("ollama.com", "https://ollama.com:443"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104  # nothing is bound
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("[::]", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
        ("fe80::1", "http://[fe80::1]:11434"),
        ("[::]:8000", "http://[::1]:8000"),
        (' "gpu1:8000" ', "http://gpu1:8000"),
        ("'gpu1'", "http://gpu1:11434"),
        ("my_ollama", "http://my_ollama:11434"),
        ("gpu1.", "http://gpu1.:11434"),
    ],
)
def test_forms_of_ollama_host(host, url):
    """Host, port, scheme, base path, quotes, IPv6 and the address a server binds to."""
    assert parse_address(host) == url


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "gpu1", "port": 8000}, "http://gpu1:8000"),
        ({"host": "gpu1:9000", "port": 8000}, "http://gpu1:9000"),
        ({"host": "gpu1", "scheme": "https"}, "https://gpu1:443"),
        ({"host": "gpu1", "scheme": "https", "port": 11434}, "https://gpu1:11434"),
        ({"host": "gpu1", "scheme": "HTTP"}, "http://gpu1:11434"),
        ({"host": "http://gpu1", "scheme": "https"}, "http://gpu1:80"),
        ({"host": "http://gpu1", "port": 11434}, "http://gpu1:11434"),
        ({"host": "gpu1", "path": "ollama"}, "http://gpu1:11434/ollama"),
        ({"host": "gpu1/a", "path": "/b/"}, "http://gpu1:11434/a/b"),
        ({"host": None, "port": 8000}, "http://127.0.0.1:8000"),
    ],
)
def test_fields_of_a_connection_fill_the_gaps(fields, url):
    """What the host itself says wins; port, scheme and path serve where it says nothing."""
    assert parse_address(**fields) == url


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "http://me:hunter2@gpu1"},
        {"host": "HTTPS://me:hunter2@gpu1:8000/base"},
        {"host": "me:hunter2@gpu1"},
        {"host": "me:hunter2@gpu1:8000", "scheme": "https", "port": 443},
        {"host": "http://me:hunter2@[::1]:11434"},
        {"host": "me:hunter2@[fd00::5%25eth0]"},
        {"host": "me:hunter2@0.0.0.0"},
        {"host": "http://:hunter2@gpu1"},
        {"host": "http://hunter2@gpu1"},
        {"host": "ftp://me:hunter2@gpu1"},
        {"host": "me:hunter2@x://gpu1"},
        {"host": "http://me:p@hunter2@gpu1"},
        {"host": "http://me:12/hunter2@gpu1"},
        {"host": "http://me:12?hunter2@gpu1"},
        {"host": "http://me:12#hunter2@gpu1"},
        {"host": "http://me:12\\hunter2@gpu1"},
        {"host": " 'http://me:hunter2@gpu1' "},
        {"host": "gpu1", "scheme": "http://me:hunter2@gpu1"},
        {"host": "gpu1", "path": "/me:hunter2@gpu1"},
    ],
)
def test_credentials_are_refused_with_their_place(fields):
    """Whatever stands around them. They would show in logs, in lists of connections, and in the list of processes."""
    with pytest.raises(InvalidRequestError, match=r"Login and Password .*--login and --password-file") as raised:
        parse_address(**fields)

    assert "hunter2" not in f"{raised.value} {raised.value!r}"
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"host": "ftp://gpu1"}, "use http or https"),
        ({"host": "gpu1", "scheme": "gopher"}, "use http or https"),
        ({"host": "gpu1:port"}, "1 to 65535"),
        ({"host": "gpu1:99999"}, "1 to 65535"),
        ({"host": "gpu1", "port": 70000}, "not between 1 and 65535"),
        ({"host": "gpu 1"}, "'gpu1:11434'"),
        ({"host": "http://gpu1?x=1"}, "no query"),
        ({"host": "gpu1#x"}, "no query and no fragment"),
        ({"host": "a..b"}, "'gpu1:11434'"),
        ({"host": "[::1"}, "'gpu1:11434'"),
    ],
)
def test_what_is_no_address_is_refused(fields, says):
    """The error says what is allowed."""
    with pytest.raises(InvalidRequestError, match=says):
        parse_address(**fields)


@pytest.mark.parametrize(
    ("host", "urls"),
    [
        ("gpu1", ["http://gpu1:11434"]),
        (None, ["http://127.0.0.1:11434"]),
        (
            "gpu1, gpu2:11435, https://gpu3.example.com/ollama",
            ["http://gpu1:11434", "http://gpu2:11435", "https://gpu3.example.com:443/ollama"],
        ),
        ("gpu1,gpu2", ["http://gpu1:11434", "http://gpu2:11434"]),
        (" gpu1 ,, gpu2 , ", ["http://gpu1:11434", "http://gpu2:11434"]),
        ("gpu1,", ["http://gpu1:11434"]),
        ("gpu1, http://gpu1:11434, gpu1/", ["http://gpu1:11434"]),
        ("gpu2, gpu1, gpu2", ["http://gpu2:11434", "http://gpu1:11434"]),
        ("::1, [::1]:1, fe80::1", ["http://[::1]:11434", "http://[::1]:1", "http://[fe80::1]:11434"]),
        ("0.0.0.0, :5678", ["http://127.0.0.1:11434", "http://127.0.0.1:5678"]),
        ("'gpu1', \"gpu2:1\"", ["http://gpu1:11434", "http://gpu2:1"]),
        ("'gpu1, gpu2'", ["http://gpu1:11434", "http://gpu2:11434"]),
        ("gpu1\n,gpu2\n", ["http://gpu1:11434", "http://gpu2:11434"]),
    ],
)
def test_several_addresses_stand_between_commas(host, urls):
    """In their order, without blanks, gaps and repetitions."""
    assert list(parse_addresses(host)) == urls


def test_port_and_scheme_serve_those_addresses_that_name_none():
    """As they do for a single address."""
    addresses = parse_addresses("gpu1, gpu2:1, http://gpu3, https://gpu4:2/a", 8000, "https", "b")

    assert list(addresses) == [
        "https://gpu1:8000/b",
        "https://gpu2:1/b",
        "http://gpu3:8000/b",
        "https://gpu4:2/a/b",
    ]


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (",", "this is no host name"),
        ("gpu1, gpu 2", "'gpu1:11434'"),
        ("gpu1; gpu2", "'gpu1:11434'"),
        ("gpu1 gpu2", "'gpu1:11434'"),
        ("gpu1, ftp://gpu2", "use http or https"),
        ("gpu1, gpu2:x", "1 to 65535"),
        ("gpu1, http://me:secret@gpu2", "Login and Password"),
        ("http://secret@gpu1, gpu2", "Login and Password"),
        ("http://me:12,secret@gpu1", "Login and Password"),
        ("secret://x,me@gpu1", "Login and Password"),
    ],
)
def test_one_wrong_address_of_several_is_refused(host, says):
    """With the same text as if it were alone; nothing is left out that somebody has written."""
    with pytest.raises(InvalidRequestError, match=says) as raised:
        parse_addresses(host)

    assert "secret" not in str(raised.value)


_HOST_PIECES = [
    "gpu1",
    "http://",
    "HTTPS://",
    ":",
    "11434",
    "/",
    "base",
    ",",
    " ",
    "::1",
    "[",
    "]",
    "@",
    "%",
    "?",
    "#",
    '"',
]
_HOST_PIECES += ["0.0.0.0", "\u00fc", "..", "\0", "_", "127.1"]  # noqa: S104  # a text that is read


@given(
    st.lists(st.sampled_from(_HOST_PIECES), max_size=8).map("".join) | st.text(max_size=80),
    st.none() | st.integers(-2, 70_000) | st.text(max_size=6),
    st.sampled_from([None, "", "http", "https", "ftp"]),
    st.sampled_from([None, "", "a/b", "/x/", "a#b", "a?", '"', " a ", "a b"]),
)
def test_any_host_is_addresses_that_read_as_themselves_or_is_refused(host, port, scheme, path):
    """What is accepted can be used as it is shown, and holds no credentials."""
    try:
        urls = parse_addresses(host, port, scheme, path)
    except InvalidRequestError:
        return
    settings = Settings(base_url=urls[0], other_urls=urls[1:])
    assert settings.urls == urls
    assert all(parse_addresses(url) == (url,) and "@" not in url for url in urls)


@pytest.mark.parametrize(
    ("host", "path", "says"),
    [
        ("gpu1/#", None, "no fragment"),
        ("gpu1?", None, "no query"),
        ("gpu1", "a#b", "no fragment"),
        (',/"/', None, "no quotes"),
        ("gpu1", "a'", "no quotes"),
        ("/ / ", None, "no blanks"),
        ("gpu1", "a b", "no blanks"),
    ],
)
def test_a_path_holds_nothing_that_ends_it(host, path, says):
    """It would be read as another address the next time, and requests would lose what follows."""
    with pytest.raises(InvalidRequestError, match=says):
        parse_addresses(host, path=path)


class TestSettings:
    def test_of_the_environment(self, monkeypatch):
        """OLLAMA_HOST says where the servers are, unless they are named."""
        monkeypatch.setenv("OLLAMA_HOST", "gpu1, gpu2")

        assert settings_for().urls == ("http://gpu1:11434", "http://gpu2:11434")
        assert settings_for("gpu3", max_attempts=1) == Settings(base_url="http://gpu3:11434", max_attempts=1)

    def test_a_wrong_field_is_named(self):
        """As our error, with the nearest name; nothing is quoted that may be a secret."""
        with pytest.raises(InvalidRequestError, match=r"pasword: there is no such field; did you mean 'password'\?"):
            settings_for("gpu1", pasword="hunter2")
        with pytest.raises(InvalidRequestError, match="Login and Password") as raised:
            settings_for("http://ada:hunter2@gpu1")
        assert "hunter2" not in str(raised.value)
