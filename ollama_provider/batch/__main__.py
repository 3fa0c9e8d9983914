"""A batch from the command line, without Airflow: ``python -m ollama_provider.batch --help``.

Exit status: 0 complete, 3 incomplete (stopped, or the window closed; the same command goes on from there), 1 failed, 2
wrong arguments.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from ollama_provider.api.address import settings_for
from ollama_provider.api.errors import InvalidRequestError, OllamaError
from ollama_provider.api.schemas import Options
from ollama_provider.api.schemas.base import explain
from ollama_provider.api.settings import Settings
from ollama_provider.api.strict_json import read_json
from ollama_provider.batch.arguments import GROUPS, FailurePolicy, Pace, Rehearsal
from ollama_provider.batch.compare import candidates, compare_batches
from ollama_provider.batch.errors import BatchError, InputError
from ollama_provider.batch.rehearsal.comparison import comparison_as_text
from ollama_provider.batch.rehearsal.text import rehearsal_as_text
from ollama_provider.batch.rehearse import rehearse_batch
from ollama_provider.batch.report import run_report
from ollama_provider.batch.results.progress import ProgressBar
from ollama_provider.batch.run import run_batch
from ollama_provider.batch.spec import BatchSpec
from ollama_provider.batch.stop import StoppedError, StopSignal
from ollama_provider.batch.store.storage import as_path, open_storage

COMPLETE, FAILED, INCOMPLETE = 0, 1, 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ollama_provider.batch",
        description="Send each row of a file to a model. Started again after a crash, it goes on from where it was.",
        epilog="Exit status: 0 complete, 3 incomplete (stopped), 1 failed, 2 wrong arguments.",
    )
    what = parser.add_argument_group("what to do")
    what.add_argument(
        "--host",
        help="URL of the server, or several with commas between them "
        "(default: OLLAMA_HOST, else http://127.0.0.1:11434)",
    )
    what.add_argument("--login", metavar="NAME", help="for Basic auth at a proxy in front of the server")
    what.add_argument(
        "--password-file", metavar="FILE", type=Path, help="a file with the API key, or with the password of --login"
    )
    what.add_argument(
        "--model",
        required=True,
        action="append",
        help="name, or name@sha256:… to demand these weights; several for --rehearse, which compares them",
    )
    what.add_argument(
        "--rows",
        required=True,
        metavar="FILE",
        help=".jsonl, .json, .csv, .tsv, .parquet, documents; a glob in quotes",
    )
    what.add_argument("--embed", action="store_true", help="ask for a vector of the prompt instead of an answer")
    prompt = what.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEMPLATE", help="Jinja; the column 'text' is {{ row.text }}")
    prompt.add_argument(
        "--prompt-file",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a file with that template; several for --rehearse, which compares them",
    )
    prompt.add_argument(
        "--messages", metavar="FILE", type=_read_json, help="JSON list of messages with role and content (a template)"
    )
    what.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a text for the templates: --variable day=2026-01-01 is {{ day }}; may be given several times",
    )
    what.add_argument("--images", metavar="TEMPLATE", help="path of an image for each row: {{ row.path }}")
    what.add_argument("--images-from", metavar="FOLDER", help="where they must lie (default: the folder of --rows)")
    what.add_argument("--schema", metavar="FILE", type=_read_json, help="JSON schema that each answer must fit")
    what.add_argument("--results", choices=["jsonl", "parquet"], help="default: parquet for vectors, else jsonl")
    what.add_argument("--output", required=True, metavar="DIR", help="directory for results, and for resuming")
    what.add_argument("--system", metavar="TEXT", help="system message for all rows")
    what.add_argument("--id-column", metavar="NAME", help="column that is carried through to the results")
    what.add_argument(
        "--keep-columns", nargs="+", metavar="NAME", help="columns that go into the results, or the one word all"
    )
    what.add_argument(
        "--option",
        "-o",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the model: -o num_predict=200",
    )
    what.add_argument("--keep-alive", metavar="TIME", help="how long the model stays loaded afterwards: 5m, 0, -1")
    what.add_argument("--think", nargs="?", const="true", default="false", metavar="LEVEL", help="let the model reason")
    what.add_argument("--report-prompts", action="store_true", help="show prompts of its rows in report.html, too")
    what.add_argument(
        "--report", metavar="DIR", action=_WriteReport, help="only write report.html anew, for what is in DIR"
    )
    how = parser.add_argument_group("how to do it")
    how.add_argument(
        "--mode", choices=["all", "failed_only"], default="all", help="failed_only sends failed rows again"
    )
    part = how.add_mutually_exclusive_group()
    part.add_argument("--shard", type=_shard, metavar="I/N", help="only these rows: 0/4 to 3/4, then --merge")
    part.add_argument("--merge", action="store_true", help="merge the results of the shards; sends nothing")
    part.add_argument(
        "--rehearse",
        nargs="?",
        type=_from_one,
        const=Rehearsal.sample,
        metavar="N",
        help=f"ask N rows from all over the input (default: {Rehearsal.sample}), and tell how long the whole takes",
    )
    _add_groups(parser)
    return parser


class _WriteReport(argparse.Action):
    """Ends the command, as ``--help`` does: a report needs no other argument."""

    def __call__(self, parser: argparse.ArgumentParser, _space: Any, directory: Any, _option: Any = None) -> None:
        try:
            folder = as_path(directory)
            if not (folder / "batch.json").exists() and not (folder / "parts").exists():
                raise InputError(f"There is no batch in {directory}.")
            storage = open_storage(directory)
            try:
                print(run_report.write_report(storage))  # noqa: T201
            finally:
                storage.close()
        except (BatchError, OSError) as error:
            parser.exit(FAILED, f"{type(error).__name__}: {error}\n")
        parser.exit(COMPLETE)


def _add_groups(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `BatchSpec` has in groups, each by its own name. Only those given are in the result."""
    new = partial(parser.add_argument_group, argument_default=argparse.SUPPRESS)

    files = new("how the files of --rows are read")
    files.add_argument("--delimiter", metavar="CHARACTER", help=r"of CSV: ';' or '\t' (default: by suffix)")
    files.add_argument("--quote", metavar="CHARACTER", help="of CSV; '' for none (default: \")")
    files.add_argument("--encoding", metavar="NAME", help="latin-1, utf-16 (default: utf-8)")

    files.add_argument("--split-text", type=int, metavar="N", help="documents become pieces of N characters at most")

    failures = new("what fails and what is tolerated")
    failures.add_argument("--max-attempts", type=int, metavar="N", help=f"default: {FailurePolicy.max_attempts}")
    failures.add_argument("--max-failed-rows", type=int, metavar="N", help="tolerate so many (default: none)")
    failures.add_argument("--max-failed-ratio", type=float, metavar="SHARE", help="tolerate 0.01 for 1 %% of the rows")
    failures.add_argument("--max-outage", type=float, metavar="SECONDS", help=f"default: {FailurePolicy.max_outage:g}")
    failures.add_argument("--on-truncation", choices=["dead_letter", "fail", "flag"])
    failures.add_argument("--allow-cut", action="store_true", help="an answer that ended at num_predict is good")
    failures.add_argument("--on-broken-row", choices=["fail", "dead_letter"])
    failures.add_argument("--on-digest-change", choices=["stop", "continue"])
    failures.add_argument("--fallback-model", metavar="MODEL", help="asked last, for answers that did not fit --schema")

    pace = new("pace")
    pace.add_argument("--concurrency", type=_number_or_auto, metavar="N", help="a number, or auto (default)")
    pace.add_argument("--requests-per-minute", type=float, metavar="N")
    pace.add_argument("--checkpoint-every", type=float, metavar="SECONDS", help=f"default: {Pace.checkpoint_every:g}")
    pace.add_argument("--report-every", type=float, metavar="SECONDS", help=f"default: {Pace.report_every:g}")

    window = new("window")
    window.add_argument("--stop-at", metavar="TIME", help="06:00, or a moment in ISO 8601: send no row after that")
    window.add_argument("--timezone", metavar="NAME", help="of --stop-at: Europe/Berlin (default: this machine's)")
    window.add_argument("--unload-after", action="store_true", help="unload the model at the end")

    embedding = new("vectors (with --embed)")
    embedding.add_argument("--dimensions", type=int, metavar="N", help="length of a vector")
    embedding.add_argument("--on-long-text", choices=["dead_letter", "truncate", "split"])
    embedding.add_argument("--pack", type=_number_or_auto, metavar="N", help="texts in one request, or auto (default)")


def _number_or_auto(text: str) -> Any:
    if text == "auto":
        return text
    return _from_one(text)


def _from_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


def _read_json(file: str) -> Any:
    return read_json(Path(file).read_text(encoding="utf-8"))


def _options(pairs: Sequence[str]) -> Options:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = read_json(value)
        except ValueError:
            found[name] = value
    try:
        return Options.model_validate(found)
    except ValidationError as error:
        raise InvalidRequestError(explain(Options, error)) from None


def _variables(pairs: Sequence[str]) -> dict[str, str] | None:
    """Return the variables as texts: what looks like a number may be a version."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise InvalidRequestError(f"--variable: {wrong[0]!r} is no NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs) or None


def _read_password(file: Path) -> str:
    """Read a password from a file: everybody on the machine can read the arguments of a process."""
    try:
        password = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        password = ""
    if not password:
        raise InvalidRequestError(f"--password-file: {file} holds no UTF-8 text")
    return password


def _settings(given: argparse.Namespace) -> Settings:
    return settings_for(
        given.host,
        login=given.login,
        password=SecretStr(_read_password(given.password_file)) if given.password_file else None,
    )


def _spec(arguments: argparse.Namespace) -> BatchSpec:
    given = vars(arguments)
    groups = {
        name: {field.name: given[field.name] for field in fields(kind) if field.name in given}
        for name, kind in GROUPS.items()
    }
    if groups["embedding"] and not arguments.embed:
        raise InputError(f"{', '.join(groups['embedding'])}: they are for vectors, so they need --embed.")
    flat = {field.name: given[field.name] for field in fields(BatchSpec) if field.name in given}
    return BatchSpec.read(
        flat
        | groups
        | {
            "embedding": groups["embedding"] if arguments.embed else None,
            "model": arguments.model[0],
            "prompt": arguments.prompt or next(iter(arguments.prompt_file), BatchSpec.prompt),
            "variables": _variables(arguments.variable),
            "keep_columns": "all" if arguments.keep_columns == ["all"] else arguments.keep_columns,
            "output_type": arguments.schema,
            "options": _options(arguments.option),
            "mode": "merge" if arguments.merge else arguments.mode,
        }
    )


def _rehearse(given: argparse.Namespace, **run: Any) -> str:
    """Rehearse, or compare where there are several models or prompts; return what to print."""
    spec, settings = _spec(given), _settings(given)
    files = {path.name: path for path in given.prompt_file}
    if len(files) < len(given.prompt_file):
        files = {str(path): path for path in given.prompt_file}
    specs = candidates(spec, given.model, files if len(files) > 1 else {})
    if len(specs) == 1:
        return rehearsal_as_text(rehearse_batch(spec, settings, given.output, given.rehearse, **run), texts=True)
    return comparison_as_text(compare_batches(specs, settings, given.output, given.rehearse, **run), texts=True)


def _refuse_comparison(given: argparse.Namespace) -> None:
    for name, values in (("--model", given.model), ("--prompt-file", given.prompt_file)):
        if len(values) > 1:
            raise InputError(f"{name}: several are for a comparison; add --rehearse, or leave one.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a batch from the command line; return the exit status."""
    given = _parser().parse_args(arguments)
    by_hand = sys.stderr.isatty()
    logging.basicConfig(
        level=logging.WARNING if by_hand else logging.INFO,
        format="%(message)s" if by_hand else "%(asctime)s %(levelname)s %(message)s",
    )
    # Beside the bar: at the end why rows failed, what each server did, and where the report is.
    run_report.logger.setLevel(logging.INFO)
    stop = StopSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.set(f"stopped by {signal.Signals(number).name}"))
    run: dict[str, Any] = {"stop": stop, "on_progress": ProgressBar().show if by_hand else None}
    try:
        if given.rehearse is not None:
            print(_rehearse(given, **run))  # noqa: T201
            return INCOMPLETE if stop.reason else COMPLETE
        _refuse_comparison(given)
        summary = run_batch(_spec(given), _settings(given), given.output, **run)
    except StoppedError as stopped:  # before the first request of a rehearsal
        print(f"Nothing was asked: {stopped}.", file=sys.stderr)  # noqa: T201
        return INCOMPLETE
    except (BatchError, OllamaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  # this is a command
        return FAILED
    print(summary.as_json().decode(), end="")  # noqa: T201
    return COMPLETE if summary.complete else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
