"""The hook: one line of a DAG, one request, the connection's defaults in it."""

import threading

import airflow
import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection, redact

from ollama_provider.api.errors import (
    AuthenticationError,
    ClientClosedError,
    InvalidRequestError,
    PullNotAllowedError,
    UnreachableError,
)
from ollama_provider.api.schemas import ChatRequest, EmbedRequest, GenerateRequest, ShowRequest, TagsRequest
from ollama_provider.connection import settings_from_connection
from ollama_provider.hooks import OllamaHook
from ollama_provider.testing import Model, Respond, Stall


@pytest.fixture
def hook(ollama_conn):
    with OllamaHook(ollama_conn) as hook:
        yield hook


def bodies(ollama, path):
    """The JSON bodies of the requests to a path, in their order."""
    return [seen.json for seen in ollama.stand_in.requests if seen.path == path]


class TestConnection:
    def test_an_unknown_connection_is_named_with_how_to_add_it(self):
        """Whoever mistypes an id reads which one, and two ways to add it."""
        with pytest.raises(AirflowNotFoundException) as caught:
            OllamaHook("no_such_one").version()

        assert "'no_such_one'" in str(caught.value)
        assert "AIRFLOW_CONN_NO_SUCH_ONE" in str(caught.value)

    def test_an_extra_that_is_not_json_is_an_error(self, add_connection):
        """Airflow itself would log it and use an empty extra; 3.1 would not return the connection."""
        conn_id = add_connection(extra="{model: llama3.2")
        if airflow.__version__.startswith("3.1."):
            expected = pytest.raises(AirflowNotFoundException, match="'ollama_default', or Airflow cannot read it")
        else:
            expected = pytest.raises(InvalidRequestError, match="'ollama_default': its extra is not valid JSON")

        with expected:
            OllamaHook(conn_id).version()

    def test_overrides_are_this_hooks_alone(self, add_connection):
        """One operator's patience does not change the connection."""
        conn_id = add_connection(extra={"first_token_timeout": 60})

        assert OllamaHook(conn_id, first_token_timeout=1800).settings.timeouts.first_token == 1800
        assert OllamaHook(conn_id).settings.timeouts.first_token == 60

    def test_an_override_that_does_not_exist_is_refused(self, ollama_conn):
        """A misspelt one would otherwise do nothing."""
        with pytest.raises(InvalidRequestError, match="'first_token_timeot'; did you mean 'first_token_timeout'"):
            _ = OllamaHook(ollama_conn, first_token_timeot=1800).settings

    def test_airflow_makes_the_hook_from_a_connection(self, ollama, ollama_conn):
        """`BaseHook.get_hook` gives this class, bound to the connection."""
        hook = BaseHook.get_hook(ollama_conn)

        assert isinstance(hook, OllamaHook)
        assert hook.version() == ollama.stand_in.version

    @pytest.mark.parametrize(
        ("fields", "base_url"),
        [
            ({"host": "https://ollama.example.com/base"}, "https://ollama.example.com:443/base"),
            ({"host": "ollama.example.com/base", "schema": "https"}, "https://ollama.example.com:443/base"),
            ({"host": "gpu1:8080"}, "http://gpu1:8080"),
            ({"host": "[::1]", "port": 8080, "login": "ada", "password": "p/@:w"}, "http://[::1]:8080"),
            ({"host": "gpu1", "extra": '{"model": "llama3.2", "options": {"num_ctx": 8192}}'}, "http://gpu1:11434"),
        ],
    )
    def test_a_connection_survives_as_a_uri(self, monkeypatch, fields, base_url):
        """The Test button gets it from Airflow like this, and so do tasks from many secrets backends."""
        whole = Connection(conn_id="gpu", conn_type="ollama", **fields)
        monkeypatch.setenv("AIRFLOW_CONN_GPU", whole.get_uri())

        settings = OllamaHook("gpu").settings

        assert settings == settings_from_connection(whole)
        assert settings.base_url == base_url

    @pytest.mark.parametrize("header", ["X-Tenant", "Authorization"])
    def test_header_values_do_not_show_in_the_log(self, add_connection, ollama, header):
        """A custom header may be a key, whatever its name is, so its value is masked."""
        secret = f"s3cr3t-of-{header.lower()}"
        conn_id = add_connection(host=ollama.url, extra={"headers": {header: secret}})
        OllamaHook(conn_id).version()

        assert redact(f"sent {secret}") == "sent ***"
        assert ollama.stand_in.requests[0].headers[header.lower()] == secret

    async def test_a_password_in_the_host_is_refused(self, add_connection):
        """In tasks, in triggers and by *Test*, none of which quotes it."""
        hook = OllamaHook(add_connection(host="http://ada:hunter2@gpu1"))

        with pytest.raises(InvalidRequestError, match="Login and Password") as in_task:
            hook.version()
        with pytest.raises(InvalidRequestError, match="Login and Password") as in_trigger:
            async with hook.async_client():
                pass
        passed, told = hook.test_connection()

        assert (passed, "Login and Password" in told) == (False, True)
        assert "hunter2" not in f"{in_task.value!r} {in_trigger.value!r} {told}"


class TestDefaults:
    @pytest.fixture
    def hook(self, ollama, add_connection):
        extra = {"model": "llama3.2", "options": {"num_ctx": 8192, "seed": 7}, "keep_alive": "1h"}
        with OllamaHook(add_connection(host=ollama.url, extra=extra)) as hook:
            yield hook

    @pytest.mark.parametrize("kind", [GenerateRequest, ChatRequest, EmbedRequest])
    def test_the_connections_defaults_fill_in_what_a_request_leaves_out(self, hook, kind):
        """Model, options and keep_alive need not be repeated in every task."""
        required = {"input": "x"} if kind is EmbedRequest else {}
        request = hook.request(kind, **required)

        assert request.model == "llama3.2"
        assert request.options.model_dump(exclude_none=True) == {"num_ctx": 8192, "seed": 7}
        assert request.keep_alive == "1h"

    def test_a_requests_own_values_win(self, hook):
        """Options are merged key by key, the rest is replaced."""
        request = hook.request(GenerateRequest, model="qwen3", options={"seed": 1, "temperature": 0}, keep_alive=0)

        assert request.model == "qwen3"
        assert request.options.model_dump(exclude_none=True) == {"num_ctx": 8192, "seed": 1, "temperature": 0}
        assert request.keep_alive == 0

    def test_an_option_of_none_removes_the_default(self, hook):
        """Else there would be no way back to the model's own value."""
        request = hook.request(GenerateRequest, options={"num_ctx": None})

        assert request.options.model_dump(exclude_none=True) == {"seed": 7}

    @pytest.mark.parametrize("options", [{"num_ctxt": 1}, ["num_ctx"]])
    def test_wrong_options_are_still_refused(self, hook, options):
        """The merge lets no misspelling and no wrong type slip through."""
        with pytest.raises(InvalidRequestError, match="options"):
            hook.request(GenerateRequest, options=options)

    def test_a_request_without_a_place_for_them_gets_no_defaults(self, hook):
        """`/api/show` knows neither options nor keep_alive, and `/api/tags` no model."""
        assert hook.request(ShowRequest) == ShowRequest(model="llama3.2")
        assert hook.request(TagsRequest) == TagsRequest()

    def test_without_any_model_the_error_says_where_to_set_it(self, ollama_conn):
        """Neither the task nor the connection names one."""
        with pytest.raises(InvalidRequestError, match=r"no model: .* connection 'ollama_default'"):
            OllamaHook(ollama_conn).generate("Why is the sky blue?")


class TestMethods:
    def test_generate_chat_and_embed_answer(self, ollama, hook):
        """The three ways to use a model, each one line."""
        ollama.stand_in.script("Because of Rayleigh.", path="generate")
        ollama.stand_in.script("Hello.", path="chat")

        assert hook.generate("Why is the sky blue?", model="llama3.2").text == "Because of Rayleigh."
        assert hook.chat("Hi", model="llama3.2").text == "Hello."
        assert len(hook.embed(["one", "two"], model="all-minilm").embeddings) == 2

    def test_stream_gives_an_answer_piece_by_piece(self, ollama, hook):
        """The pieces together are the answer."""
        ollama.stand_in.script("one two three")

        with hook.stream(hook.request(GenerateRequest, model="llama3.2", prompt="Count")) as parts:
            assert "".join(part.text for part in parts) == "one two three"

    def test_models_are_pulled_copied_made_listed_shown_and_deleted(self, ollama, hook):
        """Everything about a model's life on the server."""
        before = {model.tag for model in hook.list_models()}
        ollama.stand_in.offer(Model("fresh"))

        assert hook.pull("fresh").done
        hook.copy("fresh", "copied")
        assert hook.create("made", from_="fresh", system="Be brief.").done
        assert {model.tag for model in hook.list_models()} - before == {"fresh:latest", "copied:latest", "made:latest"}
        assert hook.show("made").system == "Be brief."
        hook.delete("copied")
        assert "copied:latest" not in {model.tag for model in hook.list_models()}

    def test_delete_has_no_default_model(self, ollama, add_connection):
        """A forgotten argument must not delete the default model."""
        with pytest.raises(TypeError):
            OllamaHook(add_connection(host=ollama.url, extra={"model": "llama3.2"})).delete()

    @pytest.mark.parametrize("model", ["llama3.2", "all-minilm"])
    def test_load_and_unload_take_any_kind_of_model(self, ollama, hook, model):
        """One that only embeds refuses to generate; it is loaded by the way it takes."""
        hook.load(model)
        assert f"{model}:latest" in {running.tag for running in hook.ps()}

        hook.unload(model)
        assert f"{model}:latest" not in {running.tag for running in hook.ps()}

    def test_load_uses_the_connections_options(self, ollama, add_connection):
        """Loaded with another context length, the model would be loaded a second time by the first request."""
        conn_id = add_connection(host=ollama.url, extra={"model": "llama3.2", "options": {"num_ctx": 8192}})
        with OllamaHook(conn_id) as hook:
            hook.load()
            hook.generate("Hi")

        assert len(ollama.stand_in.loads) == 1

    def test_version(self, ollama, hook):
        """What the server says."""
        assert hook.version() == ollama.stand_in.version

    def test_a_missing_model_is_not_pulled_if_the_hook_may_not(self, ollama, ollama_conn):
        """`auto_pull=False` on the hook is enough."""
        ollama.stand_in.offer(Model("fresh"))
        with OllamaHook(ollama_conn, auto_pull=False) as hook, pytest.raises(PullNotAllowedError, match="fresh"):
            hook.generate("Hi", model="fresh")

        assert not bodies(ollama, "/api/pull")


class TestFaults:
    def test_a_server_that_is_down_is_named(self, ollama, ollama_conn):
        """Refused: the text says where, and what to look at."""
        ollama.stop()
        with pytest.raises(UnreachableError, match=rf"refused \(at {ollama.url}") as caught:
            OllamaHook(ollama_conn, max_attempts=1).version()

        assert "host and port of the connection" in str(caught.value)

    @pytest.mark.parametrize("status", [401, 403])
    def test_wrong_credentials_are_named_and_not_shown(self, ollama, add_connection, status):
        """The text points at the fields to check, and holds neither login nor password."""
        ollama.stand_in.script(Respond(status, {"error": "unauthorized"}), path="version")
        conn_id = add_connection(host=ollama.url, login="ada-the-user", password="hunter2!")
        with pytest.raises(AuthenticationError, match="login and password") as caught:
            OllamaHook(conn_id).version()

        assert "hunter2!" not in str(caught.value)
        assert "ada-the-user" not in str(caught.value)


class TestClose:
    def test_the_client_is_made_once(self, hook):
        """One pool of connections a hook."""
        assert hook.client is hook.client is hook.get_conn()

    def test_close_ends_a_request_in_flight(self, ollama, ollama_conn):
        """What on_kill does: the read that waits for the model returns, and the server sees the connection go."""
        ollama.stand_in.script(Stall())
        hook = OllamaHook(ollama_conn)
        errors = []

        def ask():
            try:
                hook.generate("Hi", model="llama3.2")
            except ClientClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        ollama.stand_in.wait_until(lambda stand_in: len(stand_in.open_requests) == 1)
        hook.close()
        thread.join()

        assert len(errors) == 1
        ollama.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    def test_closed_is_closed(self, ollama_conn):
        """A kill that comes before the first request is not forgotten."""
        hook = OllamaHook(ollama_conn)
        hook.close()
        hook.close()

        with pytest.raises(ClientClosedError):
            hook.version()


class TestAsync:
    async def test_async_code_gets_a_client_and_the_same_requests(self, ollama, add_connection):
        """The connection's defaults hold there too."""
        ollama.stand_in.script("Hello.")
        hook = OllamaHook(add_connection(host=ollama.url, extra={"model": "llama3.2"}))

        async with hook.async_client() as client:
            reply = await client.send(hook.request(GenerateRequest, prompt="Hi"))

        assert reply.text == "Hello."
        assert bodies(ollama, "/api/generate")[0]["model"] == "llama3.2"

    async def test_the_connection_is_fetched_without_blocking_the_loop(self, ollama, ollama_conn, monkeypatch):
        """The synchronous look-up is not used: it would block the event loop of the triggerer."""
        monkeypatch.setattr(OllamaHook, "get_connection", None)

        async with OllamaHook(ollama_conn).async_client() as client:
            assert (await client.send(TagsRequest())).models

    async def test_an_unknown_connection_is_named(self):
        """With the same words as in blocking code."""
        with pytest.raises(AirflowNotFoundException, match="there is no connection 'no_such_one'"):
            async with OllamaHook("no_such_one").async_client():
                pass


class TestSeveralServers:
    @pytest.fixture
    def hook(self, ollama_servers_conn):
        """A hook for three servers."""
        with OllamaHook(ollama_servers_conn) as hook:
            yield hook

    def test_a_request_is_answered_by_one_that_is_up(self, hook, ollama_servers):
        """And its reply says by which."""
        ollama_servers[0].stop()

        assert hook.generate("hi", model="llama3.2").server == ollama_servers[1].url
        assert hook.version() == ollama_servers[1].stand_in.version

    async def test_coroutines_are_answered_by_one_that_is_up(self, hook, ollama_servers):
        """In a trigger as in a worker."""
        ollama_servers[0].stop()

        async with hook.async_client() as client:
            reply = await client.send(hook.request(GenerateRequest, model="llama3.2", prompt="hi"))

        assert reply.server == ollama_servers[1].url

    def test_each_server_has_a_hook_of_its_own(self, hook, ollama_servers):
        """With the fields of the connection, and the overrides."""
        hooks = OllamaHook(hook.conn_id, idle_timeout=5).servers

        assert [each.settings.base_url for each in hooks] == [server.url for server in ollama_servers]
        assert [each.servers for each in hooks] == [(each,) for each in hooks]
        assert {each.settings.timeouts.idle for each in hooks} == {5}
        assert hooks[2].generate("hi", model="llama3.2").server == ollama_servers[2].url

    def test_a_connection_with_one_server_has_this_hook(self, ollama_conn):
        """There is nothing to choose."""
        hook = OllamaHook(ollama_conn)

        assert hook.servers == (hook,)

    async def test_one_server_is_named(self, hook, ollama_servers):
        """For a request as for a coroutine."""
        url = ollama_servers[1].url
        with OllamaHook(hook.conn_id, server=url) as one:
            assert one.generate("hi", model="llama3.2").server == url
        async with OllamaHook(hook.conn_id, server=url.removeprefix("http://")).async_client() as client:
            assert client.settings.urls == (url,)

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("gpu1", "http://gpu1:11434"),
            ("GPU1:11434", "http://gpu1:11434"),
            ("http://gpu1:11434/", "http://gpu1:11434"),
            ("gpu2:1", "http://gpu2:1"),
            ("gpu3.example.com", "https://gpu3.example.com:443/base"),
            ("https://gpu3.example.com/base", "https://gpu3.example.com:443/base"),
            ("https://gpu3.example.com:443/base", "https://gpu3.example.com:443/base"),
            ("::1", "http://[::1]:11434"),
            ("[::1]", "http://[::1]:11434"),
        ],
    )
    def test_a_server_is_named_as_in_the_connection(self, add_connection, name, url):
        """Or by its whole URL, or by no more than the host."""
        conn_id = add_connection(host="gpu1, gpu2:1, gpu2:2, https://gpu3.example.com/base, ::1")

        assert OllamaHook(conn_id, server=name).settings.urls == (url,)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("gpu9", "'gpu9' is not one of"),
            ("gpu2", "'gpu2' is the name of several"),
            ("", "'' is not"),
            ("http://ada:secret@gpu1", "a login or a password is no part"),
        ],
    )
    def test_another_name_is_refused_with_the_right_ones(self, add_connection, name, says):
        """Of a server that is not there, or of two."""
        conn_id = add_connection(host="gpu1, gpu2:1, gpu2:2")
        with pytest.raises(InvalidRequestError, match="connection 'ollama_default': server: ") as caught:
            _ = OllamaHook(conn_id, server=name).settings

        assert says in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "@" in name or "they are http://gpu1:11434, http://gpu2:1, http://gpu2:2" in str(caught.value)

    @pytest.mark.parametrize(
        ("method", "arguments", "path"),
        [
            ("pull", {"model": "mistral"}, "/api/pull"),
            ("create", {"model": "mine", "from_": "llama3.2"}, "/api/create"),
            ("copy", {"source": "llama3.2", "destination": "mine"}, "/api/copy"),
            ("delete", {"model": "llama3.2"}, "/api/delete"),
            ("load", {"model": "llama3.2"}, "/api/generate"),
            ("unload", {"model": "llama3.2"}, "/api/generate"),
        ],
    )
    def test_what_changes_a_server_is_done_on_all(self, hook, ollama_servers, method, arguments, path):
        """Whoever pulls for a connection wants the model on each of its servers."""
        getattr(hook, method)(**arguments)
        assert [[seen.path for seen in server.stand_in.requests] for server in ollama_servers] == [[path]] * 3

    def test_one_that_fails_does_not_stop_the_others(self, hook, ollama_servers):
        """The error has its name and what to do."""
        ollama_servers[1].stop()

        with pytest.raises(UnreachableError, match="1 of 3 servers failed") as caught:
            OllamaHook(hook.conn_id, max_attempts=1).pull("mistral")

        assert f"{ollama_servers[1].url}: connection refused" in str(caught.value)
        assert "mistral" in {model.name for model in ollama_servers[2].stand_in.models}

    def test_an_embedding_model_is_loaded_on_all(self, hook, ollama_servers):
        """Each refuses the empty prompt, and loads it for no texts."""
        hook.load("nomic-embed-text")

        assert [server.stand_in.loads for server in ollama_servers] == [["nomic-embed-text:latest"]] * 3

    def test_close_ends_the_work_on_all(self, hook, ollama_servers):
        """`on_kill` calls it from a signal handler."""
        for server in ollama_servers:
            server.stand_in.script(Stall(), path="pull")
        failed = []

        def pull() -> None:
            try:
                hook.pull("mistral")
            except ClientClosedError as error:
                failed.append(error)

        thread = threading.Thread(target=pull)
        thread.start()
        for server in ollama_servers:
            server.stand_in.wait_until(lambda stand_in: stand_in.open_requests)
        hook.close()
        thread.join(5)

        assert "3 of 3 servers failed" in str(failed[0])
        for server in ollama_servers:
            server.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    def test_the_log_says_which_server_is_meant(self, hook, ollama_servers, logged):
        """Of the progress of three pulls at the same time, too."""
        hook.pull("mistral")

        log = logged()
        assert all(f"{server.url}: mistral: success" in log for server in ollama_servers)

    def test_the_log_says_where_a_request_went_on(self, hook, ollama_servers, logged):
        """Nothing is passed over in silence."""
        ollama_servers[0].stop()
        hook.generate("hi", model="llama3.2")

        went_on = f"going on with {ollama_servers[1].url}: connection refused (at {ollama_servers[0].url}"
        assert went_on in logged()

    @pytest.fixture
    def logged(self, capfd, caplog):
        """Return a function that returns what was logged: Airflow 3 writes it, Airflow 2 hands it to logging."""
        caplog.set_level("INFO")
        return lambda: "".join(capfd.readouterr()) + caplog.text
