"""What pages say to type is typed, and what they show is held to what is really there."""

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath
from openlineage.client import OpenLineageClient

from ollama_provider.api.settings import Settings
from ollama_provider.batch import BatchSpec, FailurePolicy, Progress, StopSignal, TooManyFailedError, run_batch
from ollama_provider.batch.records import ServerShare
from ollama_provider.batch.report.advice import advice
from ollama_provider.batch.report.shown_rows import Reason, ShownRow
from ollama_provider.batch.report.tables import reasons_table, servers_table
from ollama_provider.hooks import OllamaHook
from ollama_provider.operators import OllamaBatchOperator, OllamaPruneModelsOperator
from ollama_provider.operators._batch_run import run_in_task
from ollama_provider.operators._storage_paths import storage_path
from ollama_provider.provider_info import get_provider_info
from ollama_provider.testing import Model, Server, StandIn, serve
from tests.docs.pages import ROOT, Block, blocks
from tests.tracing import exported

#: Blocks that no test here runs, by page and beginning, and why.
NOT_RUN = {
    ("README.md", "make demo "): "CI runs both commands as they stand",
    ("CONTRIBUTING.md", "make setup"): "CI runs them",
    ("CONTRIBUTING.md", ".venv-3.3/bin/python -m pytest"): "is one of the tests that CI runs",
    ("docs/howto/docker-compose.md", "docker compose up"): "needs Docker; make e2e-celery checks the file",
    ("docs/howto/docker-compose.md", "docker compose --file"): "needs Docker; make e2e-celery checks both files",
    ("docs/howto/docker-compose.md", "sh secrets.sh"): "make e2e-celery runs it",
    ("docs/howto/end-to-end-tests.md", "PYTEST_ADDOPTS="): "starts a real Airflow and a browser; CI runs make e2e",
    ("docs/howto/end-to-end-tests.md", "pip install pre-commit"): "needs the network, and changes the checkout",
    ("docs/howto/vectors.md", "embedding=Embedding("): "a piece of a call: TestPieces of test_vectors.py",
    ("docs/howto/vectors.md", "SET maintenance_work_mem"): "tests/airflow/sql/test_vectors.py runs it",
    ("docs/quickstart.md", "OLLAMA_HOST="): "needs Ollama itself",
    ("docs/howto/tracing.md", "[traces]"): "is Airflow's own",
    ("docs/howto/lineage.md", "{"): "an event: tests/airflow/test_lineage.py",
    ("docs/design/architecture.md", "decorators "): "the layers: test_architecture_page.py",
    ("docs/design/architecture.md", "__main__\n"): "those inside the batch: test_architecture_page.py",
    ("docs/reference/metrics.md", "groups:"): "the alerts: test_metrics_page.py",
}
#: Blocks that a test here takes.
TAKEN: set[tuple[str, str]] = set()

Shell = Callable[[str], str]


def shown(page: str, start: str) -> Block:
    """Return the block of a page that begins so, and note that it is checked."""
    TAKEN.add((page, start))
    (found,) = (block for block in blocks() if block.page == page and block.text.startswith(start))
    return found


README_INSTALL = shown("README.md", "pip install")
README_TRY = shown("README.md", "mkdir -p docs")
QUICKSTART_INSTALL = shown("docs/quickstart.md", "pip install")
QUICKSTART_LOOK = shown("docs/quickstart.md", "head -n 1")
QUICKSTART_ROW = shown("docs/quickstart.md", '{"key"')
STAND_IN = shown("docs/howto/test-your-dags.md", "python -m ollama_provider.testing --port")
STAND_INS = shown("docs/howto/test-your-dags.md", "python -m ollama_provider.testing --servers")
PRUNED = shown("docs/howto/manage-models.md", "MODEL ")
LINEAGE = shown("docs/howto/lineage.md", "[openlineage]")
TRACE_ROWS = shown("docs/howto/tracing.md", "[ollama]")
TREE_OF_SPANS = shown("docs/howto/tracing.md", "worker.")
NO_PAGE = shown("docs/howto/airflow-page.md", "[ollama]")
HANDOVER = shown("docs/howto/wait-without-a-slot.md", "[ollama]")
CONNECTION = shown("docs/reference/connection.md", "airflow connections add")
SERVERS_CONNECTION = shown("docs/howto/several-servers.md", "airflow connections add")
SERVERS_TABLE = shown("docs/howto/several-servers.md", "server ")
CONNECTION_VARIABLE = shown("docs/reference/connection.md", "export AIRFLOW_CONN_")
PROGRESS = shown("docs/operate.md", "done=")
REASONS_TABLE = shown("docs/operate.md", "Failed rows: ")
REASONS = shown("docs/operate.md", "grep -o")
REPORT = shown("docs/operate.md", "python -m ollama_provider.batch --report")
REHEARSE = shown("docs/howto/rehearse.md", "python -m ollama_provider.batch --model llama3.2 --rows")
REHEARSAL = shown("docs/howto/rehearse.md", "Rehearsal: ")
COMPARE = shown("docs/howto/rehearse.md", "python -m ollama_provider.batch --model llama3.2 --model qwen3")
COMPARISON = shown("docs/howto/rehearse.md", "Comparison: ")
BUCKET_CONNECTION = shown("docs/howto/inputs.md", "airflow connections add minio")
INPUT_OPTIONS = shown("docs/howto/inputs.md", "OllamaBatchOperator(…, rows=")
DOCUMENTS = shown("docs/howto/inputs.md", "OllamaBatchOperator(\n")
KEPT_COLUMNS = shown("docs/howto/inputs.md", '{"key"')
IMPORTS = shown("docs/reference/operators.md", "from ollama_provider.operators")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home directory of somebody who has an Airflow that is set up."""
    home = tmp_path_factory.mktemp("home")
    run(home, "airflow db migrate")
    return home


@pytest.fixture
def home(migrated: Path, tmp_path: Path) -> Path:
    """The same for one test alone."""
    return Path(shutil.copytree(migrated, tmp_path / "home"))


@pytest.fixture
def shell(home: Path) -> Shell:
    """Return a function that runs commands as they are typed, and returns what they print."""
    return lambda commands: run(home, commands)


def run(home: Path, commands: str) -> str:
    """Run *commands* in *home* as bash does, up to the first that fails; returns what they print."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "API_KEY": "not-for-everybody"}
    # What `airflow db migrate` wrote down is where the database was when it did.
    environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{home}/airflow/airflow.db"
    environment["AIRFLOW__CORE__DAGS_FOLDER"] = f"{home}/airflow/dags"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=environment,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def without_pip(block: Block) -> str:
    """Return the commands after ``pip install``, which names this package."""
    first, _, rest = block.text.partition("\n")
    assert first == f"pip install {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['name']}"
    return rest


def settings(connection: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read a connection, as JSON, as a task does."""
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", connection)
    return OllamaHook().settings


def test_every_block_is_checked_or_there_is_a_reason() -> None:
    """A new block fails this test until somebody checks it or says why not; a reason without its block does, too."""
    named = [*TAKEN, *NOT_RUN]
    matches = {block: [n for n in named if block.page == n[0] and block.text.startswith(n[1])] for block in blocks()}

    assert {block: found for block, found in matches.items() if len(found) != 1} == {}
    assert {found[0] for found in matches.values()} == set(named)


def test_the_first_screen_of_the_readme(shell: Shell, home: Path, ollama: Server) -> None:
    """Connection, DAG, row and command, one after another as they stand there, give a summary of the row."""
    dags = home / "airflow/dags"
    dags.mkdir()
    shutil.copy(ROOT / "dags/ollama_first_batch.py", dags)
    commands = without_pip(README_INSTALL) + README_TRY.text

    address = "--conn-host localhost --conn-port 11434"
    assert address in commands
    said = shell(commands.replace(address, f"--conn-host {ollama.host} --conn-port {ollama.port}"))

    (row,) = (json.loads(line) for line in said.splitlines() if line.startswith('{"key"'))
    assert (row["status"], row["index"]) == ("ok", 0)
    assert row["output"]
    assert row["output"] in README_TRY.text


def test_airflow_lists_the_provider(shell: Shell) -> None:
    """The first thing that the quickstart lets look at."""
    assert "airflow-provider-ollama" in shell(without_pip(QUICKSTART_INSTALL))


def test_a_connection_from_the_command_line(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command makes the connection that it looks like."""
    shell(f"{CONNECTION.text}\nairflow connections export connections.json")
    made = json.loads((home / "connections.json").read_text())["ollama_default"]

    read = settings(json.dumps(made), monkeypatch)

    assert (read.base_url, read.model) == ("https://ollama.example.com:443/base", "llama3.2")
    assert read.options is not None
    assert read.options.num_ctx == 8192
    assert made["password"] == "not-for-everybody"


def test_a_connection_to_several_servers(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the three addresses that the command names."""
    shell(f"{SERVERS_CONNECTION.text}\nairflow connections export connections.json")
    made = json.loads((home / "connections.json").read_text())["ollama_default"]

    read = settings(json.dumps(made), monkeypatch)

    assert read.urls == ("http://gpu1:11434", "http://gpu2:11435", "https://gpu3.example.com:443/ollama")


def test_a_connection_to_a_bucket(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with it leads to the store that the command names."""
    shell(f"KEY=a-key SECRET=a-secret\n{BUCKET_CONNECTION.text}\nairflow connections export connections.json")
    made = json.loads((home / "connections.json").read_text())["minio"]
    monkeypatch.setenv("AIRFLOW_CONN_MINIO", json.dumps(made))

    store = storage_path("s3://minio@bucket/rows/*.jsonl").fs

    assert store.endpoint_url == "https://minio.example.com"
    assert (made["login"], made["password"]) == ("a-key", "a-secret")


def test_the_table_of_servers_in_the_log() -> None:
    """It has the columns that the log has."""
    shares = [
        ServerShare("http://gpu1:11434", rows=1200, tokens_per_second=310.2, concurrency=4),
        ServerShare(
            "http://gpu2:11434", rows=310, tokens_per_second=80.1, seconds_out=95.2, reason="the connection was refused"
        ),
    ]

    assert SERVERS_TABLE.text.rstrip() == servers_table(shares)


def test_the_table_of_reasons_in_the_log() -> None:
    """It has the columns and the advice that the log has."""

    def reason(error: str, count: int, *ids: str) -> Reason:
        rows = tuple(ShownRow("", row_id, 0, row_id, "", None, 1, None, None) for row_id in ids)
        return Reason(error, count, count / 14, advice(error), rows)

    reasons = [
        reason("ImageError", 12, "ticket-8", "ticket-31", "ticket-70"),
        reason("RenderError", 2, "ticket-12", "ticket-19"),
    ]

    assert REASONS_TABLE.text.rstrip() == f"Failed rows: 14\n{reasons_table(reasons, {})}"


def test_a_connection_in_the_environment(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line makes the connection that it looks like."""
    value = shell(f"{CONNECTION_VARIABLE.text}\nprintenv AIRFLOW_CONN_OLLAMA_DEFAULT")

    read = settings(value, monkeypatch)

    assert (read.base_url, read.model) == ("http://gpu1:11434", "llama3.2")


def test_the_stand_in_by_hand() -> None:
    """It starts with the options of the page, on another port; what is to be typed next stands in the README."""
    first, second = STAND_IN.text.splitlines()
    page = (ROOT / STAND_IN.page).read_text()
    command = first.replace("python", sys.executable, 1).replace("11434", "0").split()
    for option in re.findall(r"`(--[\w-]+)`", page):
        command += [option, "1"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = re.search(r"http://\S+", process.stdout.readline() + process.stdout.readline())
            assert url
            answer = httpx.get(f"{url[0]}/api/version")
        finally:
            process.kill()

    assert answer.json() == {"version": "0.24.0"}
    assert len(command) > 8
    assert second in README_INSTALL.text


def test_several_stand_ins_by_hand() -> None:
    """They start with the options of the page, on other ports; the third lacks the model that the page says."""
    command = STAND_INS.text.replace("\\\n", "").replace("python", sys.executable, 1).replace("11434", "0").split()

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(7)]
        finally:
            process.kill()

    assert [line for line in lines if line.startswith("Models: ")] == [
        "Models: llama3.2:latest, qwen3:latest.\n",
        "Models: llama3.2:latest, qwen3:latest.\n",
        "Models: llama3.2:latest.\n",
    ]
    assert lines[-1].startswith("Host of a connection to all: http://")


def test_a_row_of_the_results(shell: Shell, home: Path, ollama: Server) -> None:
    """The file is where the nightly DAG writes by default, and its rows have the keys that are shown, in that order."""
    dag = (ROOT / "dags/ollama_nightly_summaries.py").read_text()
    directory = re.search(r'Param\(f"file://\{AIRFLOW_HOME\}/(.+?)"', dag)
    assert directory
    rows = [{"name": "annotated-doc", "text": "Document parameters inline."}]
    spec = BatchSpec(model="llama3.2", rows=rows, prompt="{{ row.text }}", id_column="name")
    run_batch(spec, Settings(base_url=ollama.url), home / "airflow" / directory[1])
    real = json.loads(shell(QUICKSTART_LOOK.text))

    shown_row = json.loads(QUICKSTART_ROW.text.replace(",…}", "}"))

    assert list(shown_row) == list(real)[: len(shown_row)]
    assert len(shown_row) < len(real)
    assert {name: type(value) for name, value in shown_row.items()} == {name: type(real[name]) for name in shown_row}
    assert shown_row["id"] == real["id"]


@pytest.fixture
def aged() -> Iterator[Server]:
    """A server with the models of the page, as old and as large as they are there."""
    now = datetime.now(UTC)
    days = {"old-llama:70b": (200, 42.5e9), "nomic-embed-text": (150, 274.3e6), "nightly": (1, 2.0e9)}
    times = iter([(now - timedelta(days=age)).timestamp() for age, _ in days.values()])
    stand_in = StandIn([], clock=lambda: next(times, now.timestamp()))
    for model, (_, size) in days.items():
        stand_in.install(Model(model, size=int(size)))
    with serve(stand_in) as server:
        httpx.post(f"{server.url}/api/generate", json={"model": "nightly"})
        yield server


def test_the_table_of_models_that_go(
    aged: Server,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log of a dry run with these models, and with the rules of the DAG above it, is what is shown."""
    monkeypatch.setenv("AIRFLOW_CONN_OLLAMA_DEFAULT", json.dumps({"conn_type": "ollama", "host": aged.url}))
    operator = OllamaPruneModelsOperator(task_id="prune", older_than=timedelta(days=90), keep="nomic-embed-text")

    with caplog.at_level("INFO"):
        operator.execute({})

    # Airflow 3 prints what Airflow 2 hands to the handlers.
    said = caplog.text + capsys.readouterr().out
    positions = [said.find(line) for line in PRUNED.text.splitlines()]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_airflow_knows_the_options_shown() -> None:
    """Section and name are those that the provider tells Airflow."""
    shown_options = ConfigParser(interpolation=None)
    for block in (HANDOVER, TRACE_ROWS, NO_PAGE):
        shown_options.read_string(block.text)
    known = get_provider_info()["config"]

    assert shown_options["ollama"]["show_page"] == "False"  # that it is off then: tests/airflow/ui/test_plugin.py
    assert {name: set(shown_options[name]) for name in shown_options.sections()} == {
        name: set(section["options"]) for name, section in known.items()
    }


def test_the_spans_of_a_batch(tmp_path: Path, ollama: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and order of what stands below the task's span."""
    shown_names = [line.strip(" └─├│") for line in TREE_OF_SPANS.text.splitlines()[1:]]
    spec = BatchSpec(model="llama3.2", rows=["text"])
    work: dict[str, Any] = {}
    instance = SimpleNamespace(dag_id="d", task_id="t")
    monkeypatch.setenv("AIRFLOW__OLLAMA__TRACE_ROWS", "1")

    with exported(monkeypatch) as spans:
        run_in_task(
            spec,
            Settings(base_url=ollama.url),
            ObjectStoragePath(f"file://{tmp_path}"),
            instance=instance,
            log=logging.getLogger(),
            stop=StopSignal(),
            work=work,
        )

    assert [span.name for span in reversed(spans())] == [*shown_names[:1], *reversed(shown_names[1:])]


def test_the_day_of_a_run() -> None:
    """What docs/howto/sql.md writes for the day is one also where a run has no logical date."""
    (template,) = re.findall(r"`(\{\{ .*? \| ds \}\})`", (ROOT / "docs/howto/sql.md").read_text())
    without = SimpleNamespace(logical_date=None, run_after=datetime(2026, 11, 23, tzinfo=UTC))
    # Airflow 2.11 does not know run_after.
    of_airflow_2 = SimpleNamespace(logical_date=datetime(2026, 11, 22, tzinfo=UTC))
    day = DAG("of_the_page", schedule=None).get_template_env().from_string(template)

    assert [day.render(dag_run=run) for run in (without, of_airflow_2)] == ["2026-11-23", "2026-11-22"]


def test_the_line_of_progress() -> None:
    """It has the names of a real one, in their order."""
    parts = re.compile(r"([\w/]+)=|(%)")

    assert parts.findall(PROGRESS.text) == parts.findall(Progress(done=1, total=2).line())


def test_the_count_of_reasons(shell: Shell, home: Path, ollama: Server) -> None:
    """The command finds the class of each failed row."""
    spec = BatchSpec(model="llama3.2", rows=[{"text": "A"}, {"text": None}, {"text": None, "id": 2}])
    with contextlib.suppress(TooManyFailedError):
        run_batch(spec, Settings(base_url=ollama.url), home)

    assert shell(REASONS.text).split() == ["2", '"error":{"class":"RenderError"']


def test_where_lineage_goes() -> None:
    """OpenLineage's client takes what the page sets."""
    shown_options = ConfigParser(interpolation=None)
    shown_options.read_string(LINEAGE.text)
    transport = json.loads(shown_options["openlineage"]["transport"])

    assert OpenLineageClient(config={"transport": transport}).transport.kind == "http"


def test_the_report_is_made_anew(tmp_path: Path, ollama: Server) -> None:
    """Of a directory without one, whose path it prints with the page's name."""
    spec = BatchSpec(model="llama3.2", rows=["text"])
    run_batch(spec, Settings(base_url=ollama.url), tmp_path / "DIR")
    page = tmp_path / "DIR/report.html"
    page.unlink()

    assert run(tmp_path, REPORT.text) == "DIR/report.html\n"
    assert page.exists()


@pytest.fixture
def tickets(tmp_path: Path, ollama: Server) -> Shell:
    """Runs a command in a folder with the tickets of the page."""
    rows = [json.dumps({"id": f"ticket-{number}", "text": f"Ticket {number}."}) for number in range(3000)]
    (tmp_path / "tickets.jsonl").write_text("\n".join(rows))
    return lambda command: run(tmp_path, f"export OLLAMA_HOST={ollama.host}:{ollama.port}\n{command}")


def test_the_comparison(tickets: Shell) -> None:
    """It prints the tables that the page shows, with the same heads, for the same names."""
    names = re.compile(
        r"^(Comparison: .*|row  .*|   +good .*|llama3.2  |qwen3  |Did not fit: .*|All answers .*)", re.MULTILINE
    )

    assert [found.split() for found in names.findall(tickets(COMPARE.text))] == [
        found.split() for found in names.findall(COMPARISON.text)
    ]


def test_the_rehearsal(tickets: Shell) -> None:
    """It prints the lines that the page shows, under the same names."""
    names = re.compile(r"^(Rehearsal: \d+ of|The prompt of one row:|row +chosen as.*|[A-Z][a-z ]{9} )", re.MULTILINE)

    assert [found.split() for found in names.findall(tickets(REHEARSE.text))] == [
        found.split() for found in names.findall(REHEARSAL.text)
    ]


def test_the_imports_shown() -> None:
    """What operators are imported from, without the dots of "and so on"."""
    assert IMPORTS.text.count("…") == 1
    exec(IMPORTS.text.replace(", …", ""), {})  # noqa: S102  # the page's own imports


def made(text: str, **arguments: str) -> OllamaBatchOperator:
    """Return the operator that a page shows, with *arguments* and what every one needs in place of the dots."""
    needed = {"task_id": "t", "output_path": "o", **arguments}
    names = {"OllamaBatchOperator": OllamaBatchOperator, "FailurePolicy": FailurePolicy, "needed": needed}
    operator = eval(text.replace("…", "**needed", 1), names)  # noqa: S307  # the page's own call
    assert isinstance(operator, OllamaBatchOperator)
    return operator


def test_documents_as_rows() -> None:
    """The operator takes all of these arguments."""
    assert made(DOCUMENTS.text).failures.on_broken_row == "dead_letter"


def test_an_input_with_options_and_columns_beside_the_answers(tmp_path: Path, ollama: Server) -> None:
    """The operator takes the options, the command reads such a file, and a row of the results looks like that."""
    operator, command = INPUT_OPTIONS.text.splitlines()
    assert made(operator, prompt="p").rows == "export.csv"
    written = "id;title;url\n7;Äpfel;https://example.com\n".encode("latin-1")
    (tmp_path / "export.csv").write_bytes(written)
    needed = f"--host {ollama.url} --model llama3.2 --prompt '{{{{ row.title }}}}' --output out --id-column id"

    run(tmp_path, f"{command.replace('…', needed)} --keep-columns title url")

    row = json.loads((tmp_path / "out/results.jsonl").read_text())
    names = re.findall(r'"(\w+)":', KEPT_COLUMNS.text)
    assert list(row)[:4] == names[:4] == ["key", "index", "id", "row"]
    assert row["row"] == {"title": "Äpfel", "url": "https://example.com"}
    assert list(row["row"]) == names[4:6]
    assert list(row)[4:6] == names[6:]
