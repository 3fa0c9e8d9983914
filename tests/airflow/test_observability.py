"""What a call leaves behind in the task's log and in Airflow's metrics, and what it does not."""

import logging
from datetime import timedelta

import pytest
from airflow.providers.common.compat import sdk

from ollama_provider.api.errors import OllamaError, OverloadedError
from ollama_provider.api.events import PullMoved
from ollama_provider.hooks import OllamaHook
from ollama_provider.observability import describe_pull, server_tag, tag_value
from ollama_provider.testing import Answer, Model, Respond

LOG = "the task's log"
SECRET_WORDS = ("prompt-of-nobody", "answer-of-nobody", "header-of-nobody")


class Metrics:
    """Airflow's Stats, which remembers."""

    def __init__(self):
        self.seen = []

    def incr(self, stat, count=1, rate=1, *, tags=None):
        self.seen.append((stat, count, tags))

    def timing(self, stat, dt, *, tags=None):
        self.seen.append((stat, dt, tags))

    def of(self, stat):
        return [(value, tags) for name, value, tags in self.seen if name == stat]


@pytest.fixture
def metrics(monkeypatch):
    metrics = Metrics()
    monkeypatch.setattr(sdk, "Stats", metrics, raising=False)
    return metrics


@pytest.fixture
def hook(ollama, add_connection, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(OllamaHook, "log", logging.getLogger(LOG))
    conn_id = add_connection(host=ollama.url, extra={"headers": {"X-Key": "header-of-nobody"}})
    with OllamaHook(conn_id) as hook:
        yield hook


def tags_of(ollama, endpoint, model=""):
    return {"endpoint": endpoint, "model": model, "server": f"127.0.0.1:{ollama.port}"}


def lines(caplog, level=logging.DEBUG):
    """What the hook has logged, Airflow's own lines left out."""
    return [record.getMessage() for record in caplog.records if record.name == LOG and record.levelno >= level]


def test_a_retry_is_logged_once_with_its_cause(ollama, hook, caplog, metrics, no_waiting):
    """Whoever reads the log in the morning sees why it took longer."""
    ollama.stand_in.script(Respond(503, {"error": "server busy, please try again"}), "Hello.")
    hook.generate("Hi", model="llama3.2")

    (line,) = lines(caplog, logging.WARNING)
    assert "/api/generate: attempt 1 failed" in line
    assert "server busy" in line
    assert metrics.of("ollama.retries") == [
        (1, {**tags_of(ollama, "generate", "llama3.2"), "error": OverloadedError.__name__})
    ]


def test_the_progress_of_a_pull_is_logged(ollama, hook, caplog):
    """Percent and size, so that a running task does not look stuck."""
    ollama.stand_in.offer(Model("fresh"))
    hook.pull("fresh")

    told = [line for line in lines(caplog, logging.INFO) if line.startswith("fresh: ")]
    assert told
    assert "100 % of" in told[-1]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (PullMoved("m", "pulling manifest", 0, 0, None, None), "m: pulling manifest"),
        (
            PullMoved("m", "pulling abc", 500_000_000, 2_000_000_000, 85_100_000, 17.6),
            "m: pulling abc, 25 % of 2.0 GB, 85.1 MB/s, 0:00:18 left",
        ),
        (PullMoved("m", "verifying", 5_000_000, 5_000_000, None, None), "m: verifying, 100 % of 5.0 MB"),
    ],
)
def test_a_pulls_line_holds_what_is_known(event, line):
    """Percent, size, speed and remaining time, as far as they are known."""
    assert describe_pull(event) == line


def test_a_call_is_counted_and_timed(ollama, hook, caplog, metrics):
    """Requests, duration and tokens, by endpoint and model."""
    ollama.stand_in.script(Answer("one two", prompt_eval_count=30, eval_count=2))
    hook.generate("Hi", model="llama3.2")

    tags = tags_of(ollama, "generate", "llama3.2")
    assert metrics.of("ollama.requests") == [(1, {**tags, "outcome": "success"})]
    assert metrics.of("ollama.prompt_tokens") == [(30, tags)]
    assert metrics.of("ollama.answer_tokens") == [(2, tags)]
    ((duration, duration_tags),) = metrics.of("ollama.request_duration")
    assert duration > timedelta(0)
    assert duration_tags == tags
    assert not lines(caplog, logging.INFO)


def test_a_failure_is_counted_by_its_class(ollama, hook, metrics):
    """Not by its text, of which there are too many."""
    ollama.stand_in.script(Respond(401, {"error": "unauthorized"}), path="tags")
    with pytest.raises(OllamaError):
        hook.list_models()

    assert metrics.of("ollama.requests") == [(1, {**tags_of(ollama, "tags"), "outcome": "AuthenticationError"})]


def test_a_failure_of_one_server_is_counted_as_its_own(ollama_servers, add_connection, metrics, caplog, no_waiting):
    """The call is that of the server which answered."""
    first, second, *_ = ollama_servers
    first.stand_in.script(Respond(503, {"error": "server busy"}), path="generate")
    conn_id = add_connection(host=",".join(server.url for server in ollama_servers))
    with OllamaHook(conn_id) as hook:
        hook.generate("Hi", model="llama3.2")

    assert [tags["server"] for _, tags in metrics.of("ollama.retries")] == [f"127.0.0.1:{first.port}"]
    assert [tags["server"] for _, tags in metrics.of("ollama.requests")] == [f"127.0.0.1:{second.port}"]


@pytest.mark.parametrize(
    ("url", "tag"),
    [
        ("http://gpu1:11434", "gpu1:11434"),
        ("https://gpu.example.com:443/one", "gpu.example.com:443/one"),
        ("http://[::1]:11434", "[::1]:11434"),
        ("", ""),
    ],
)
def test_the_tag_of_a_server(url, tag):
    """Host and port, and the base path, since several servers may be behind one proxy."""
    assert server_tag(url) == tag


def test_tags_that_airflow_takes_in_the_style_of_influxdb(monkeypatch):
    """It would drop the metric, with a traceback in the log, for a colon in a model or a server."""
    monkeypatch.setattr("ollama_provider.observability._in_influxdb_style", lambda: True)

    assert server_tag("http://[::1]:11434/a") == "___1__11434/a"
    assert tag_value("hf.co/qwen/qwen3:8b-q4_K_M") == "hf.co/qwen/qwen3_8b-q4_K_M"


def test_no_content_is_left_behind(ollama, hook, caplog, metrics, no_waiting):
    """Prompt, answer and headers are not in the log at any level, and not in a metric."""
    ollama.stand_in.script(
        Respond(500, {"error": "llama runner process has terminated"}), "answer-of-nobody", Respond(400, "no")
    )
    hook.generate("prompt-of-nobody", model="llama3.2")
    with pytest.raises(OllamaError):
        hook.chat("prompt-of-nobody", model="llama3.2")

    left = "\n".join([*lines(caplog), repr(metrics.seen)])
    assert "/api/generate" in left
    assert [word for word in SECRET_WORDS if word in left] == []


def test_without_metrics_configured_nothing_happens(ollama, hook):
    """Without a collector, Airflow's Stats drops the metrics."""
    assert hook.version()
