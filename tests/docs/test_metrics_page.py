"""docs/reference/metrics.md lists the metrics that are really sent, with their types and tags."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.providers.common.compat import sdk

from ollama_provider.api.client import Client
from ollama_provider.api.retry import without_waiting
from ollama_provider.api.schemas import GenerateRequest
from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, StopSignal
from ollama_provider.observability import TaskObserver
from ollama_provider.operators import _batch_run
from ollama_provider.testing import Respond, Server
from tests.docs.pages import ROOT, blocks

PAGE = "docs/reference/metrics.md"
TYPES = {"incr": "counter", "gauge": "gauge", "timing": "timer"}
ROW = re.compile(r"^\| `(ollama\.[\w.]+)` \| (\w+) \| ([^|]+) \|", re.MULTILINE)

Metric = tuple[str, str, tuple[str, ...]]


class Recorder:
    """Airflow's Stats, which remembers each metric, and from which line of which module it was sent."""

    def __init__(self) -> None:
        self.sent: set[Metric] = set()
        self.places: set[tuple[str, int]] = set()

    def __getattr__(self, method: str) -> Any:
        def send(stat: str, value: Any = 1, *, tags: dict[str, str]) -> None:
            caller = sys._getframe(1)
            self.sent.add((stat, TYPES[method], tuple(sorted(tags))))
            self.places.add((Path(caller.f_code.co_filename).name, caller.f_lineno))

        return send


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(sdk, "Stats", recorder, raising=False)
    monkeypatch.setattr(_batch_run, "Stats", recorder)
    return recorder


def calls_of_stats() -> Iterator[tuple[str, range]]:
    """Return module and lines of each ``Stats.…(…)`` in the package."""
    for path in (ROOT / "ollama_provider").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.search(r"\bStats\.\w+$", ast.unparse(node.func)):
                yield path.name, range(node.lineno, (node.end_lineno or node.lineno) + 1)


def on_the_page() -> set[Metric]:
    rows = ROW.findall((ROOT / PAGE).read_text())
    return {(name, kind, tuple(sorted(re.findall(r"`(\w+)`", tags)))) for name, kind, tags in rows}


def test_the_page_lists_what_is_sent(stats: Recorder, ollama_servers: list[Server], tmp_path: Path) -> None:
    """Each metric with its type and its tags, and no other; every line of the package that sends one was run."""
    first, second, *_ = ollama_servers
    observer = TaskObserver(SimpleNamespace(debug=print, info=print, warning=print))
    # A server that fails and is tried again, and one that is passed over for the other.
    for settings in (Settings(base_url=first.url), Settings(base_url=first.url, other_urls=(second.url,))):
        first.stand_in.script(Respond(503, "busy"), path="generate")
        with without_waiting(), Client(settings, listener=observer) as client:
            client.send(GenerateRequest(model="llama3.2", prompt="hello"))
    _batch_run.run_in_task(
        BatchSpec(model="llama3.2", rows=["a", "b"]),
        Settings(base_url=first.url),
        tmp_path,  # type: ignore[arg-type]
        instance=SimpleNamespace(dag_id="d", task_id="t"),
        log=SimpleNamespace(debug=print, info=print, warning=print),  # type: ignore[arg-type]
        stop=StopSignal(),
        work={},
    )

    assert stats.sent == on_the_page()
    not_run = [
        (module, lines) for module, lines in calls_of_stats() if not stats.places & {(module, line) for line in lines}
    ]
    assert not_run == []


def test_the_tags_are_explained() -> None:
    """Each that a metric has stands in the table of the tags."""
    table = (ROOT / PAGE).read_text().partition("## Tags\n")[2].partition("\n\nSo there")[0]
    explained = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")
    }

    assert explained == {tag for _, _, tags in on_the_page() for tag in tags}


def test_the_alerts_are_about_metrics_that_exist() -> None:
    """By the names that they have in Prometheus, grouped and labelled by tags that they have."""
    (block,) = (block for block in blocks() if (block.page, block.language) == (PAGE, "yaml"))
    tags_of = {f"airflow_{name.replace('.', '_')}": set(tags) for name, _, tags in on_the_page()}
    (group,) = yaml.safe_load(block.text)["groups"]

    assert len(group["rules"]) == 3
    for rule in group["rules"]:
        names = set(re.findall(r"\bairflow_\w+", rule["expr"]))
        labels = {label for by in re.findall(r"by \(([^)]+)\)", rule["expr"]) for label in by.split(", ")}
        assert names
        for name in names:
            assert labels <= tags_of[name]
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels
