"""The command that serves a stand-in: `python -m ollama_provider.testing --port 11434`."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from ollama_provider.testing.server import serve
from ollama_provider.testing.stand_in import StandIn
from ollama_provider.testing.state.catalogue import Model, default_registry
from ollama_provider.testing.state.model_names import parse

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        arguments: The command line, by default that of this process.

    Returns:
        Exit status: 0 after a signal, 1 if it cannot listen on the port.
    """
    options = _parser().parse_args(arguments)
    stand_in = StandIn(
        [_model(name) for name in options.model] or None,
        version=options.version,
        parallel=options.parallel,
        load_seconds=options.load_seconds,
        pull_seconds=options.pull_seconds,
        tokens_per_second=options.tokens_per_second,
        loopback=options.host in _LOOPBACK,
        keep_requests=0,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with serve(stand_in, host=options.host, port=options.port) as server:
            names = ", ".join(model.parsed.short for model in stand_in.models)
            _print(f"Stand-in for Ollama {stand_in.version}, with no model behind it, at {server.url}")
            _print(f"Models: {names}. Stop with Ctrl-C.")
            stopped.wait()
    except OSError as error:
        _print(f"Cannot listen at {options.host}:{options.port}: {error.strerror}. Choose another --port.", sys.stderr)
        return 1
    _print("Stopped.")
    return 0


def _print(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ollama_provider.testing",
        description="A stand-in for Ollama: the same HTTP API, no model behind it. For demonstrations and tests.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=11434, help="0 takes a free port")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="requests a model answers at a time")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="installed model, may be repeated (default: four usual ones)",
    )
    parser.add_argument("--version", default="0.24.0", help="version to behave as")
    parser.add_argument("--tokens-per-second", type=float, metavar="N", help="speed of generation (default: no delay)")
    parser.add_argument("--load-seconds", type=float, default=0.0, metavar="S", help="time a cold model takes to load")
    parser.add_argument("--pull-seconds", type=float, default=0.0, metavar="S", help="time a pull takes")
    return parser


def _model(text: str) -> Model:
    name = parse(text)
    if name is None:
        raise SystemExit(f"not a model name: {text!r}")
    known = {model.parsed.key: model for model in default_registry()}
    return known.get(name.key) or Model(text)


if __name__ == "__main__":
    sys.exit(main())
