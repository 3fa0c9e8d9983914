"""A batch over several servers: one queue, every server busy, and none of their troubles costs a row."""

import gc
import pickle
import threading
import time
from typing import ClassVar

import httpx
import pytest

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import VersionRequest
from ollama_provider.api.settings import Settings
from ollama_provider.batch import Embedding, FailurePolicy, NoServerError
from ollama_provider.batch.stop import StopSignal
from ollama_provider.testing import Crash, Fail, Pace, Respond, Stall

from .conftest import Batch

PAGE = Respond(200, "<html>Welcome</html>", headers={"Content-Type": "text/html"})


def texts(count):
    return [f"text {number}" for number in range(count)]


class Servers(Batch):
    """Runs batches over several stand-ins."""

    def __init__(self, servers, directory):
        super().__init__(servers[0], directory)
        self.servers = servers
        self.more = {}

    @property
    def settings(self):
        first, *others = [server.url for server in self.servers]
        return Settings(base_url=first, other_urls=tuple(others), max_attempts=1, **self.more)

    def asked_of(self, server):
        return [
            request.json["prompt"]
            for request in server.stand_in.requests
            if request.path == "/api/generate" and request.json.get("prompt")
        ]

    @property
    def asked(self):
        return [prompt for server in self.servers for prompt in self.asked_of(server)]


@pytest.fixture
def batch(ollama_servers, tmp_path):
    return Servers(ollama_servers, tmp_path / "out")


def slow(server, seconds, **script):
    server.stand_in.script(
        Pace(first_token=seconds), where=lambda body: bool(body.get("prompt")), always=True, **script
    )


class TestTheWork:
    def test_all_servers_answer_and_each_result_names_its_own(self, batch, ollama_servers):
        """Every row is asked once, and the summary says what each server did."""
        for server in ollama_servers:
            slow(server, 0.02)

        summary = batch.run(texts(60), concurrency=2)

        assert (summary.complete, summary.ok, summary.failed, summary.requests) == (True, 60, 0, 60)
        assert sorted(batch.asked) == sorted(texts(60))
        named = {row["server"]: 0 for row in batch.results}
        for row in batch.results:
            named[row["server"]] += 1
        assert named == {server.url: len(batch.asked_of(server)) for server in ollama_servers}
        assert min(named.values()) > 5
        assert {share.server: share.rows for share in summary.servers} == named
        assert sum(share.tokens for share in summary.servers) == summary.tokens

    def test_the_model_is_loaded_and_unloaded_on_each_with_the_same_context(self, batch, ollama_servers):
        """A server with another context would give other answers."""
        for server in ollama_servers:
            slow(server, 0.02)

        batch.run(texts(30), concurrency=2, unload_after=True)

        for server in ollama_servers:
            assert list(server.stand_in.loads) == ["llama3.2:latest"]
            sent = [request.json for request in server.stand_in.requests if request.path == "/api/generate"]
            assert {body["options"]["num_ctx"] for body in sent if body.get("prompt")} == {4096}
            assert server.stand_in.requests[-1].json["keep_alive"] == 0

    def test_vectors_in_packs(self, batch, ollama_servers):
        """Each server finds its own pack size, and the last texts are shared."""
        for server in ollama_servers:
            server.stand_in.script(Pace(first_token=0.03), path="embed", always=True)

        summary = batch.run(texts(300), model="all-minilm", embedding=Embedding(), results="jsonl")

        assert (summary.complete, summary.ok) == (True, 300)
        assert sum(each.rows for each in summary.servers) == 300
        assert all(each.rows for each in summary.servers)

    def test_a_request_that_failed_does_not_stay_in_memory(self, batch, ollama_servers):
        """Not even until the garbage collector runs: in a long night there are thousands."""
        for server in ollama_servers:
            server.stand_in.script(Fail("boom"), where=lambda body: bool(body.get("prompt")), times=3)

        def failures() -> list[OllamaError]:
            return [found for found in gc.get_objects() if issubclass(type(found), OllamaError)]

        gc.collect()
        gc.disable()
        try:
            before = failures()  # of other tests
            summary = batch.run(texts(60), failures=FailurePolicy(retry_delay=0.01))
            more = [found for found in failures() if not any(found is old for old in before)]
        finally:
            gc.enable()

        assert summary.ok == 60
        assert more == []

    def test_the_fallback_model_is_asked_at_every_server(self, batch, ollama_servers):
        """Its answers name the server that gave them, and its own digest."""
        for server in ollama_servers:
            slow(server, 0.02, model="qwen3")
            server.stand_in.script(
                (Pace(first_token=0.02), "no JSON"),
                model="llama3.2",
                where=lambda body: bool(body.get("prompt")),
                always=True,
            )

        summary = batch.run(
            texts(24), concurrency=1, output_type="json", failures=FailurePolicy(fallback_model="qwen3", max_attempts=2)
        )

        assert (summary.complete, summary.ok + summary.failed) == (True, 24)
        fallback = [row for row in batch.results if "fallback_model" in row["rungs"]]
        assert len(fallback) == 24
        assert {row["model"] for row in fallback} == {"qwen3"}
        for server in ollama_servers:
            named = sum(row["server"] == server.url for row in fallback)
            sent = [seen.json for seen in server.stand_in.requests if seen.path == "/api/generate"]
            assert named == sum(body["model"] == "qwen3" and bool(body.get("prompt")) for body in sent)

    def test_the_shards_use_the_same_servers(self, batch, ollama_servers):
        """Each shard asks all servers, and the merge needs none."""
        for server in ollama_servers:
            slow(server, 0.01)
        for number in range(2):
            batch.run(texts(40), concurrency=2, shard=(number, 2))
        for server in ollama_servers:
            server.stop()

        summary = batch.run(texts(40), mode="merge")

        assert (summary.complete, summary.ok, summary.servers) == (True, 40, ())
        assert len({row["server"] for row in batch.results}) == 3


def share(summary, server):
    (found,) = [each for each in summary.servers if each.server == server.url]
    return found


class TestServersThatAreLeftOut:
    """The others do the work, and log and summary name the server and the reason."""

    def run(self, batch, caplog, bad, reason):
        good = [server for server in batch.servers if server is not bad]
        summary = batch.run(texts(12), concurrency=2)

        assert (summary.complete, summary.ok) == (True, 12)
        assert reason in share(summary, bad).reason
        assert batch.asked_of(bad) == []
        assert sorted(batch.asked) == sorted(texts(12))
        assert {row["server"] for row in batch.results} <= {server.url for server in good}
        assert bad.url in caplog.text
        assert reason in caplog.text
        return summary

    def test_another_digest(self, batch, ollama_servers, caplog):
        """Answers of two versions of a model are not mixed: the digest of most servers decides."""
        ollama_servers[0].stand_in.retag("llama3.2")

        self.run(batch, caplog, ollama_servers[0], "Pull the same version on all servers")

    @pytest.mark.ollama_servers({}, {})
    def test_another_digest_of_two(self, batch, ollama_servers, caplog):
        """In a tie the first server of the connection decides."""
        ollama_servers[1].stand_in.retag("llama3.2")

        self.run(batch, caplog, ollama_servers[1], "the digest")

    # They answer all at once, and far slower than a busy machine delays them: no row is overdue and sent twice.
    @pytest.mark.ollama_servers({}, {"parallel": 16}, {"parallel": 16})
    @pytest.mark.parametrize("shard", [None, (0, 2)])
    def test_another_digest_than_that_of_an_earlier_run(self, batch, ollama_servers, shard):
        """What was answered is not asked again, though most servers would have another digest now."""
        ollama_servers[0].stand_in.retag("llama3.2")
        for server in ollama_servers[1:]:
            slow(server, 0.3)
        batch.run(texts(12), shard=shard)  # the second and the third decide
        answered = len(batch.asked)
        ollama_servers[1].stop()

        if shard is None:
            assert batch.run(texts(12)).reused == 12
            assert len(batch.asked) == answered == 12
        else:
            batch.run(texts(12), shard=(1, 2))
            assert batch.run(texts(12), mode="merge").ok == 12
            assert sorted(batch.asked) == sorted(texts(12))
        assert batch.asked_of(ollama_servers[0]) == []

    def test_another_digest_than_the_demanded_one(self, batch, ollama_servers, caplog):
        """Also if most servers have that other one."""
        old = httpx.get(f"{ollama_servers[0].url}/api/tags").json()["models"]
        digest = next(model["digest"] for model in old if model["name"].startswith("llama3.2"))
        for server in ollama_servers[1:]:
            server.stand_in.retag("llama3.2")

        summary = batch.run(texts(6), model=f"llama3.2@sha256:{digest[:12]}")

        assert summary.ok == 6
        assert len(batch.asked_of(ollama_servers[0])) == 6
        assert all("not the demanded" in share(summary, server).reason for server in ollama_servers[1:])

    def test_no_model_and_no_pull(self, batch, ollama_servers, caplog):
        """The connection does not allow it."""
        batch.more = {"auto_pull": False}
        ollama_servers[1].stand_in.remove("llama3.2")

        self.run(batch, caplog, ollama_servers[1], "auto_pull is off")

    def test_refused_credentials(self, batch, ollama_servers, caplog):
        """401."""
        ollama_servers[2].stand_in.script(Respond(401, "no"), path="version", always=True)

        self.run(batch, caplog, ollama_servers[2], "401")

    def test_something_else_than_ollama(self, batch, ollama_servers, caplog):
        """A page."""
        ollama_servers[0].stand_in.script(PAGE, path="version", always=True)

        self.run(batch, caplog, ollama_servers[0], "text/html")

    def test_a_silent_server(self, batch, ollama_servers, caplog, monkeypatch):
        """It takes connections and says nothing."""
        monkeypatch.setattr(VersionRequest, "read_timeout", 0.3)
        ollama_servers[1].stand_in.script(Stall(), path="version", always=True)

        self.run(batch, caplog, ollama_servers[1], "nothing came")

    def test_credentials_that_are_revoked_in_mid_run(self, batch, ollama_servers):
        """The server is left out from then on; the row that met the refusal is answered by another."""
        for server in ollama_servers:
            slow(server, 0.02)
        bad = ollama_servers[2]
        bad.stand_in.script(Respond(401, "no"), where=lambda body: len(batch.asked_of(bad)) > 3, times=1)

        summary = batch.run(texts(60), concurrency=1, failures=FailurePolicy(max_attempts=1))

        assert summary.ok == 60
        assert "401" in share(summary, bad).reason

    def test_all_of_them(self, batch, ollama_servers):
        """One error names each server and what is wrong with it."""
        batch.more = {"auto_pull": False}
        first, second, third = ollama_servers
        first.stand_in.remove("llama3.2")
        second.stand_in.script(Respond(401, "no"), path="version", always=True)
        third.stop()

        with pytest.raises(NoServerError) as raised:
            batch.run(texts(6))

        lines = str(raised.value).split("\n")
        assert len(lines) == 4
        for line, server, reason in zip(lines[1:], ollama_servers, ("auto_pull", "401", "refused"), strict=True):
            assert server.url in line
            assert reason in line
        assert raised.value.retryable
        copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301  # our own, as Airflow does
        assert copy.reasons == raised.value.reasons


class TestServersThatJoinLater:
    def test_one_that_is_down_at_first(self, batch, ollama_servers):
        """It joins when it comes up."""
        late = ollama_servers[1]
        late.stop()
        for server in ollama_servers:
            slow(server, 0.05)
        helper = threading.Thread(
            target=lambda: (ollama_servers[0].stand_in.wait_until(lambda _: batch.asked), late.start())
        )
        helper.start()
        summary = batch.run(texts(150), concurrency=1)
        helper.join()

        assert (summary.ok, summary.requests) == (150, 150)
        assert len(batch.asked_of(late)) > 10
        assert share(summary, late).reason == ""
        assert share(summary, late).seconds_out > 0

    @pytest.mark.ollama_servers({}, {"models": ["qwen3"], "pull_seconds": 0.5}, {})
    def test_one_that_pulls_the_model(self, batch, ollama_servers, monkeypatch):
        """In the background, while the others are at work."""
        monkeypatch.setattr("ollama_provider.batch.scheduling.joining._OTHERS", 0.05)
        for server in ollama_servers:
            slow(server, 0.05)

        summary = batch.run(texts(100), concurrency=1)

        assert summary.ok == 100
        assert ollama_servers[1].stand_in.downloads
        assert len(batch.asked_of(ollama_servers[1])) > 5

    @pytest.mark.ollama_servers({}, {})
    def test_one_that_has_another_model_when_no_other_is_left(self, batch, ollama_servers):
        """The run ends with an error that names both; nobody could answer its rows."""
        first, late = ollama_servers
        late.stand_in.retag("llama3.2")
        late.stop()
        slow(first, 0.02)
        first.stand_in.script(Respond(401, "no"), where=lambda body: len(batch.asked_of(first)) > 3)

        def start():
            first.stand_in.wait_until(lambda _: len(batch.asked_of(first)) > 3)
            late.start()

        helper = threading.Thread(target=start)
        helper.start()
        with pytest.raises(NoServerError) as raised:
            batch.run(texts(60), concurrency=1)
        helper.join()

        assert "401" in raised.value.reasons[first.url]
        assert "the digest" in raised.value.reasons[late.url]
        assert not raised.value.retryable


class TestOutages:
    def test_one_is_killed_and_started_again(self, batch, ollama_servers):
        """Nothing is lost, nothing that was answered is asked again, and no row loses an attempt."""
        for server in ollama_servers:
            slow(server, 0.05)
        killed = ollama_servers[1]

        def kill():
            killed.stand_in.wait_until(lambda _: len(batch.asked_of(killed)) > 5)
            killed.stop()
            time.sleep(1)
            killed.start()

        helper = threading.Thread(target=kill)
        helper.start()
        summary = batch.run(texts(240), concurrency=2, failures=FailurePolicy(max_attempts=1))
        helper.join()

        assert (summary.complete, summary.ok, summary.failed) == (True, 240, 0)
        again = len(batch.asked) - 240
        assert 0 <= again <= 2 + summary.servers[1].discarded  # what was in flight when it was killed
        assert share(summary, killed).seconds_out > 0.5
        assert share(summary, killed).reason == ""
        last = [row["server"] for row in batch.results]
        assert killed.url in last[120:]

    def test_all_are_gone(self, batch, ollama_servers):
        """After max_outage of no server the run ends with an error that lists them."""

        def kill():
            ollama_servers[0].stand_in.wait_until(lambda _: len(batch.asked) > 20)
            for server in ollama_servers:
                server.stop()

        for server in ollama_servers:
            slow(server, 0.02)
        helper = threading.Thread(target=kill)
        helper.start()
        with pytest.raises(NoServerError) as raised:
            batch.run(texts(500), concurrency=2, failures=FailurePolicy(max_outage=1.5))
        helper.join()

        assert all(server.url in str(raised.value) for server in ollama_servers)
        assert raised.value.retryable

    @pytest.mark.ollama_servers({}, {})
    def test_a_server_that_stalls_at_the_end(self, batch, ollama_servers):
        """Its rows are given to the other one, whose answers count; its own request is cancelled."""
        stalled, other = ollama_servers
        slow(other, 0.02)
        slow_after = lambda body: len(batch.asked_of(stalled)) > 5 and bool(body.get("prompt"))  # noqa: E731
        stalled.stand_in.script(Stall(), where=slow_after)
        slow(stalled, 0.02)

        summary = batch.run(texts(40), concurrency=1)

        assert (summary.complete, summary.ok) == (True, 40)
        assert share(summary, stalled).discarded == 1
        assert len({row["key"] for row in batch.results}) == 40
        stalled.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    @pytest.mark.ollama_servers({}, {})
    def test_a_server_that_never_ends_loading_the_model(self, batch, ollama_servers):
        """The run ends when all rows are answered, and frees the memory there, too."""
        good, loading = ollama_servers
        loading.stand_in.script(Stall())

        summary = batch.run(texts(12), concurrency=2, unload_after=True)

        assert (summary.complete, summary.ok, share(summary, good).rows) == (True, 12, 12)
        assert loading.stand_in.requests[-1].json["keep_alive"] == 0
        loading.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)

    @pytest.mark.ollama_servers({}, {})
    def test_a_server_that_does_not_say_whether_it_is_back(self, batch, ollama_servers):
        """The run does not wait for that, when all rows are answered."""
        _, silent = ollama_servers
        failed = lambda: len(batch.asked_of(silent)) > 3  # noqa: E731
        silent.stand_in.script(Respond(503, "busy"), where=lambda body: bool(body.get("prompt")) and failed())
        silent.stand_in.script(Stall(), where=lambda body: not body.get("prompt") and failed())
        for server in ollama_servers:
            slow(server, 0.05)

        summary = batch.run(texts(60), concurrency=1)

        assert (summary.complete, summary.ok) == (True, 60)
        assert share(summary, silent).seconds_out > 0
        silent.stand_in.wait_until(lambda stand_in: not stand_in.open_requests)


def test_a_row_that_crashes_the_model_is_sent_to_two_servers_at_most(batch, ollama_servers):
    """First with others, then alone and to one server only, until its attempts are used up."""
    for server in ollama_servers:
        server.stand_in.script(Crash(), where=lambda body: body.get("prompt") == "text 7", always=True)
        slow(server, 0.01)

    summary = batch.run(texts(60), concurrency=2)

    assert (summary.ok, summary.failed) == (59, 1)
    assert sum("text 7" in batch.asked_of(server) for server in ollama_servers) <= 2


class TestAModelThatChangesInMidRun:
    """At one server: it is left out, and no result has an answer of the other model."""

    def run(self, batch, changed, after, rows=60, **arguments):
        def retag(body):
            if body.get("prompt") and len(batch.asked_of(changed)) == after:
                changed.stand_in.retag("llama3.2")
            return False

        changed.stand_in.script("never", where=retag, always=True)
        for server in batch.servers:
            slow(server, 0.03)
        return batch.run(texts(rows), concurrency=1, **arguments)

    def check(self, batch, summary, changed, caplog, rows=60):
        assert (summary.complete, summary.ok, summary.failed, summary.left) == (True, rows, 0, 0)
        assert "changed during the run" in share(summary, changed).reason
        assert f"Server {changed.url} is left out of this run: Model 'llama3.2' at {changed.url} changed" in caplog.text
        counted = dict.fromkeys((server.url for server in batch.servers), 0)
        for row in batch.results:
            counted[row["server"]] += 1
        assert {each.server: each.rows for each in summary.servers} == counted
        assert summary.tokens == sum(row["tokens"] for row in batch.results)

    @pytest.mark.parametrize("checkpoint_every", [0.2, 60])
    def test_its_answers_since_the_last_comparison_are_discarded(self, batch, ollama_servers, caplog, checkpoint_every):
        """The others answer these rows, also when it is noticed only after the last row."""
        changed = ollama_servers[1]
        own = httpx.get(f"{changed.url}/api/tags").json()["models"]
        digest = next(model["digest"] for model in own if model["name"].startswith("llama3.2"))

        summary = self.run(batch, changed, 5, checkpoint_every=checkpoint_every)

        self.check(batch, summary, changed, caplog)
        assert {row["digest"] for row in batch.results} == {digest}
        kept = {f"text {row['index']}" for row in batch.results if row["server"] == changed.url}
        assert kept <= set(batch.asked_of(changed)[:5])
        assert sorted(set(batch.asked)) == sorted(texts(60))
        before = len(batch.asked)
        ollama_servers[1].stop()
        assert batch.run(texts(60)).reused == 60
        assert len(batch.asked) == before
        assert "damaged" not in caplog.text

    def test_or_kept_without_a_digest(self, batch, ollama_servers, caplog):
        """With on_digest_change="continue"; no row is asked of the new model after that."""
        changed = ollama_servers[2]

        summary = self.run(batch, changed, 5, checkpoint_every=0.3, failures=FailurePolicy(on_digest_change="continue"))

        self.check(batch, summary, changed, caplog)
        assert len({row["digest"] for row in batch.results} - {None}) == 1
        without = [row for row in batch.results if row["digest"] is None]
        assert without
        assert {row["server"] for row in without} == {changed.url}

    @pytest.mark.ollama_servers({}, {})
    def test_at_all_of_them(self, batch, ollama_servers):
        """The run stops, since no server with its digest is left; nothing of the other model is kept."""

        before = []

        def retag(body):
            if not before and len(batch.asked) >= 6:
                before.extend(batch.asked)
                for server in ollama_servers:
                    server.stand_in.retag("llama3.2")
            return False

        ollama_servers[0].stand_in.script("never", where=retag, always=True, path="generate")
        for server in ollama_servers:
            slow(server, 0.02)
        with pytest.raises(NoServerError, match="changed during the run") as raised:
            batch.run(texts(60), concurrency=1, checkpoint_every=0.2)

        assert set(raised.value.reasons) == {server.url for server in ollama_servers}
        assert not raised.value.retryable
        kept = [line for part in batch.parts for line in part.read_text().splitlines() if line.strip()]
        assert len(kept) <= len(before)

    def test_failed_rows_of_the_other_model_are_asked_again(self, batch, ollama_servers, caplog):
        """Its failures count as little as its answers."""
        changed = ollama_servers[1]
        changed.stand_in.script(
            Respond(400, {"error": "no"}), where=lambda body: len(batch.asked_of(changed)) > 5, always=True
        )

        summary = self.run(batch, changed, 5, checkpoint_every=60, failures=FailurePolicy(max_attempts=1))

        self.check(batch, summary, changed, caplog)
        assert summary.errors == {}

    def test_rows_that_failed_there_get_into_the_table(self, batch, ollama_servers):
        """A checkpoint that sees the failure in an open part does not know yet whether it stays."""

        class Table:
            row_columns = ()
            target: ClassVar = {"table": 1}

            def __init__(self):
                self.written = []

            def open(self, examples, id_column, vectors):
                pass

            def of_row(self, own):
                return own["index"], []

            def write(self, results):
                self.written += [result["index"] for result in results]
                return {}

            def close(self):
                pass

        changed, table = ollama_servers[1], Table()
        # The digest of the changed server is read before the change, and its rows fail before the checkpoint is made.
        ollama_servers[0].stand_in.script("never", path="tags", where=lambda body: bool(time.sleep(0.4)), always=True)
        changed.stand_in.script(
            Respond(400, {"error": "no"}), where=lambda body: len(batch.asked_of(changed)) > 5, always=True
        )

        summary = self.run(batch, changed, 5, into=table, checkpoint_every=0.05, failures=FailurePolicy(max_attempts=1))

        assert (summary.ok, summary.written) == (60, 60)
        assert sorted(table.written) == list(range(60))

    def test_vectors_in_packs(self, batch, ollama_servers):
        """Every text of the packs that the other model has embedded is embedded again."""
        changed = ollama_servers[1]

        def retag(body):
            if sum(request.path == "/api/embed" for request in changed.stand_in.requests) == 5:
                changed.stand_in.retag("all-minilm")
            return False

        changed.stand_in.script("never", where=retag, path="embed", always=True)
        for server in ollama_servers:
            server.stand_in.script(Pace(first_token=0.03), path="embed", always=True)

        summary = batch.run(texts(600), model="all-minilm", embedding=Embedding(), results="jsonl", concurrency=2)

        assert (summary.complete, summary.ok, summary.failed) == (True, 600, 0)
        assert "changed during the run" in share(summary, changed).reason
        assert len({row["digest"] for row in batch.results}) == 1
        assert sum(each.rows for each in summary.servers) == 600

    def test_a_run_that_is_stopped_before_it_is_noticed(self, batch, ollama_servers, caplog):
        """The last checkpoint discards the answers of the other model; the next run asks these rows, and no others."""
        changed, stop = ollama_servers[1], StopSignal()

        def end(body):
            if len(batch.asked_of(changed)) == 8:
                stop.set("enough")
            return False

        changed.stand_in.script("never", where=lambda body: end(body) or retag(body), always=True)

        def retag(body):
            if body.get("prompt") and len(batch.asked_of(changed)) == 5:
                changed.stand_in.retag("llama3.2")
            return False

        for server in ollama_servers:
            slow(server, 0.03)
        summary = batch.run(texts(60), concurrency=1, stop=stop)
        assert not summary.complete
        assert "changed during the run" in share(summary, changed).reason
        assert batch.asked_of(changed)
        first = summary.ok

        again = batch.run(texts(60))

        assert (again.complete, again.ok, again.reused) == (True, 60, first)
        assert "changed during the run" in caplog.text
        assert "damaged" not in caplog.text
        assert len({row["digest"] for row in batch.results}) == 1
        assert share(summary, changed).rows == 0
