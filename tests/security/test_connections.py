"""Canaries through *Test*, and credentials where they do not belong."""

import pytest

from ollama_provider.api.client import Client
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.schemas import VersionRequest
from ollama_provider.api.settings import Settings
from ollama_provider.hooks import OllamaHook
from tests.airflow.conftest import add_connection  # noqa: F401  # a fixture
from tests.security.canaries import HEADER, KEY, LOGIN, PASSWORD, found_in, logged, told
from tests.security.hostile import FAULTS, hostile
from tests.tls import make_certificate, tls_server


@pytest.mark.parametrize("fault", FAULTS)
def test_the_button_does_not_say_what_was_sent(fault, add_connection, debug_log):  # noqa: F811
    """Its text is shown to everybody who may press it, who need not be the one who typed the password."""
    with hostile(FAULTS[fault]) as server:
        add_connection(host=server.url, login=LOGIN, password=PASSWORD, extra={"headers": {"X-Api-Key": HEADER}})
        passed, text = OllamaHook().test_connection()
        assert any(HEADER in seen.head for seen in server.seen)

    assert not passed
    assert found_in(text) == []
    assert logged(debug_log.records) == set()


def test_the_button_of_a_good_connection_neither(ollama, add_connection, debug_log):  # noqa: F811
    add_connection(host=ollama.url, login=LOGIN, password=PASSWORD, extra={"headers": {"X-Api-Key": HEADER}})

    passed, text = OllamaHook().test_connection()

    assert passed
    assert found_in(text) == []
    assert logged(debug_log.records) == set()


@pytest.mark.parametrize("where", ["gpu1", "[::1]:8000", "gpu1:8000/base", "gpu1, gpu2"])
@pytest.mark.parametrize("before", ["http://", "https://", "", "ftp://", "HTTPS://"])
@pytest.mark.parametrize("credentials", [f"{LOGIN}:{PASSWORD}", PASSWORD, f":{PASSWORD}", f"{LOGIN}:12/{PASSWORD}"])
def test_a_password_in_the_host_is_refused_and_not_shown(
    where, before, credentials, add_connection, debug_log  # noqa: F811
):  # fmt: skip
    """The text says where it belongs; the field itself can be seen in the list of connections."""
    add_connection(host=f"{before}{credentials}@{where}")

    passed, text = OllamaHook().test_connection()
    with pytest.raises(InvalidRequestError, match="Login and Password") as raised:
        OllamaHook().version()

    assert not passed
    assert "Login and Password" in text
    assert found_in(text + told(raised.value)) == []
    assert logged(debug_log.records) == set()


class TestClientCertificate:
    def test_the_key_is_not_shown_where_it_cannot_be_read(self, tmp_path, debug_log):
        """A file that is no PEM, or one whose key is damaged."""
        (tmp_path / "text.pem").write_text(KEY)
        certificate = (tmp_path / "whole.pem", make_certificate(tmp_path, "whole"))[0]
        (tmp_path / "damaged.pem").write_text(
            f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----\n{certificate.read_text()[:400]}"
        )

        for name in ("text.pem", "damaged.pem"):
            with (
                pytest.raises(OllamaError) as raised,
                Client(Settings(base_url="https://127.0.0.1:1", client_cert=str(tmp_path / name))) as client,
            ):
                client.send(VersionRequest())
            assert name in str(raised.value)
            assert found_in(told(raised.value)) == []
        assert logged(debug_log.records) == set()

    def test_nor_where_it_is_used(self, tmp_path, debug_log):
        """Accepted by a server, and refused by another that does not know it."""
        server, ours, other = (make_certificate(tmp_path, name) for name in ("server", "ours", "other"))
        with open(ours, "a") as file:  # noqa: PTH123
            file.write(KEY)
        certificates = {"base_url": "", "verify": server, "client_cert": ours, "max_attempts": 1}
        with (
            tls_server(server, client_ca=ours) as url,
            Client(Settings(**certificates | {"base_url": url})) as client,
        ):
            assert client.send(VersionRequest()).version
        with (
            tls_server(server, client_ca=other) as url,
            Client(Settings(**certificates | {"base_url": url})) as client,
            pytest.raises(OllamaError) as raised,
        ):
            client.send(VersionRequest())

        assert found_in(told(raised.value)) == []
        assert logged(debug_log.records) == set()
