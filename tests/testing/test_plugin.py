"""The pytest plugin, used by the tests of another project."""

import sys

import pytest

# Pytester removes modules that are imported during its run from sys.modules. A package that is partly imported before
# would then have two copies of its classes.
import ollama_provider.testing.server  # noqa: F401

pytest_plugins = ["pytester"]

RUN = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio")


def test_a_test_gets_a_fresh_server_and_a_connection(pytester: pytest.Pytester) -> None:
    """No state passes from one test to the next, and the connection points at the server."""
    pytester.makepyfile(
        """
        import json, os
        import httpx

        def ask(ollama):
            return httpx.post(ollama.url + "/api/generate", json={"model": "llama3.2", "prompt": "x", "stream": False})

        def test_one(ollama):
            ollama.stand_in.script("scripted")
            assert ask(ollama).json()["response"] == "scripted"
            assert len(ollama.stand_in.requests) == 1

        def test_two(ollama, ollama_conn):
            assert ollama.stand_in.requests == []
            assert ollama_conn == "ollama_default"
            value = json.loads(os.environ["AIRFLOW_CONN_OLLAMA_DEFAULT"])
            assert value == {"conn_type": "ollama", "host": "http://127.0.0.1", "port": ollama.port}

        def test_three():
            assert "AIRFLOW_CONN_OLLAMA_DEFAULT" not in os.environ
        """
    )

    pytester.runpytest_inprocess(*RUN).assert_outcomes(passed=3)


def test_settings_come_from_the_marker(pytester: pytest.Pytester) -> None:
    """`@pytest.mark.ollama` gives arguments to the stand-in, and pytest knows the marker."""
    pytester.makepyfile(
        """
        import httpx, pytest

        @pytest.mark.ollama(version="0.1.30", models=["mine"])
        def test_old(ollama):
            assert httpx.get(ollama.url + "/api/version").json() == {"version": "0.1.30"}
            assert [model["name"] for model in httpx.get(ollama.url + "/api/tags").json()["models"]] == ["mine:latest"]
        """
    )

    pytester.runpytest_inprocess(*RUN, "--strict-markers").assert_outcomes(passed=1)


def test_several_servers_are_independent(pytester: pytest.Pytester) -> None:
    """Three by default, with a connection to all; the marker sets each one up; one can be down alone."""
    pytester.makepyfile(
        """
        import json, os
        import httpx, pytest

        def names(server):
            return [model["name"] for model in httpx.get(server.url + "/api/tags").json()["models"]]

        def test_three(ollama_servers, ollama_servers_conn):
            first, second, third = ollama_servers
            assert ollama_servers_conn == "ollama_default"
            value = json.loads(os.environ["AIRFLOW_CONN_OLLAMA_DEFAULT"])
            assert value == {"conn_type": "ollama", "host": f"{first.url}, {second.url}, {third.url}"}
            second.stand_in.retag("llama3.2")
            digests = [server.stand_in.model("llama3.2").digest for server in ollama_servers]
            assert digests[0] == digests[2] != digests[1]

        @pytest.mark.ollama_servers({"models": ["mine"]}, {"models": [], "version": "0.1.30"})
        def test_marker(ollama_servers):
            first, second = ollama_servers
            assert [names(first), names(second)] == [["mine:latest"], []]
            first.stop()
            with pytest.raises(httpx.ConnectError):
                names(first)
            assert names(second) == []
            first.start()
            assert names(first) == ["mine:latest"]
        """
    )

    pytester.runpytest_inprocess(*RUN, "--strict-markers").assert_outcomes(passed=2)


def test_an_unused_reply_of_one_of_several_servers_fails_the_test(pytester: pytest.Pytester) -> None:
    """The report says which server has it."""
    pytester.makepyfile(
        """
        def test_unused(ollama_servers):
            ollama_servers[1].stand_in.script("never asked for")
        """
    )

    result = pytester.runpytest_inprocess(*RUN)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no request has used:", "*server 1: generate, chat, embed*'never asked for'*"])


def test_an_unused_reply_fails_the_test(pytester: pytest.Pytester) -> None:
    """The test passes. Its teardown fails and prints the unused replies."""
    pytester.makepyfile(
        """
        from ollama_provider.testing import Fail

        def test_unused(ollama):
            ollama.stand_in.script("never asked for", model="qwen3")
            ollama.stand_in.script(Fail("always"), always=True)
        """
    )

    result = pytester.runpytest_inprocess(*RUN)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no request has used:", "*generate, chat, embed*of qwen3: 'never asked for'*"])


def test_a_strict_test_fails_on_what_it_did_not_script(pytester: pytest.Pytester) -> None:
    """The request is refused and listed at teardown. Listing models needs no script."""
    pytester.makepyfile(
        """
        import httpx, pytest

        @pytest.mark.ollama(strict=True)
        def test_strict(ollama):
            assert httpx.get(ollama.url + "/api/tags").status_code == 200
            refused = httpx.post(ollama.url + "/api/chat", json={"model": "qwen3", "messages": []})
            assert refused.status_code == 500
            assert "no script for /api/chat of qwen3" in refused.json()["error"]
        """
    )

    result = pytester.runpytest_inprocess(*RUN)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*not scripted:", "*/api/chat of qwen3*"])


def test_the_plugin_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    """pytest imports the plugin in every run on a machine where the package is installed."""
    heavy = {"aiohttp", "airflow", "httpx", "pydantic"}
    code = f"import sys, ollama_provider.testing.plugin; print(sorted({heavy} & set(sys.modules)))"

    result = pytester.run(sys.executable, "-c", code)

    result.stdout.fnmatch_lines(["[[]]"])
