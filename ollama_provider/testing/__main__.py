"""The command that serves stand-ins: `python -m ollama_provider.testing --port 11434`."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ollama_provider.testing.server import Server
from ollama_provider.testing.stand_in import StandIn
from ollama_provider.testing.state.catalogue import Model, default_registry
from ollama_provider.testing.state.model_names import parse

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_FOR_EACH_SERVER = ("parallel", "version", "tokens_per_second", "load_seconds", "pull_seconds")
"""Options that take one value, or one for each server."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        arguments: The command line, by default that of this process.

    Returns:
        Exit status: 0 after a signal, 1 if it cannot listen on a port.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    stand_ins, outages = _stand_ins(parser, options), _outages(parser, options)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    servers = [
        Server(stand_in, host=options.host, port=options.port and options.port + number)
        for number, stand_in in enumerate(stand_ins)
    ]
    try:
        for server in servers:
            _listen(server)
        _describe(servers)
        _take_out_of_service(servers, outages, stopped)
        stopped.wait()
    except OSError as error:
        _print(f"Cannot listen at {error.filename}: {error.strerror}. Choose another --port.", sys.stderr)
        return 1
    finally:
        for server in servers:
            server.close()
    _print("Stopped.")
    return 0


def _listen(server: Server) -> None:
    try:
        server.start()
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{server.host}:{server.port}") from None


def _describe(servers: list[Server]) -> None:
    """Print version, URL and models of each, and what to enter as host of a connection to all of them."""
    several = len(servers) > 1
    for server in servers:
        stand_in = server.stand_in
        names = ", ".join(model.parsed.short for model in stand_in.models) or "none"
        _print(f"Stand-in for Ollama {stand_in.version}, with no model behind it, at {server.url}")
        _print(f"Models: {names}." if several else f"Models: {names}. Stop with Ctrl-C.")
    if several:
        _print(f"Host of a connection to all: {', '.join(server.url for server in servers)}. Stop with Ctrl-C.")


def _take_out_of_service(
    servers: list[Server], outages: list[list[tuple[float, float]]], stopped: threading.Event
) -> None:
    """Stop and start servers at the seconds of their outages, until the last is over or *stopped* is set."""
    began = time.monotonic()
    changes = [
        (second, number, up)
        for number, of_server in enumerate(outages)
        for begin, end in of_server
        for second, up in ((begin, False), (end, True))
    ]
    for second, number, up in sorted(changes):
        if stopped.wait(max(0.0, began + second - time.monotonic())):
            return
        server = servers[number]
        if up:
            _listen(server)
        else:
            server.stop()
        _print(f"{server.url} is {'up again' if up else 'down'}.")


def _print(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ollama_provider.testing",
        description="A stand-in for Ollama: the same HTTP API, no model behind it. For demonstrations and tests.",
        epilog="With --servers 3, the options from --parallel on take one value for all servers, or one for each, "
        "separated by commas: --parallel 4,2,8. A value may be empty: --model qwen3,qwen3, leaves it out of the third.",
    )

    def add(option: str, kind: Callable[[str], Any], metavar: str, help_text: str, *, repeated: bool = False) -> None:
        action, default = ("append", []) if repeated else ("store", [None])
        parser.add_argument(option, action=action, type=_values(kind), default=default, metavar=metavar, help=help_text)

    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=11434, help="0 takes a free one; other servers take the next (default: %(default)s)"
    )
    parser.add_argument("--servers", type=int, default=1, metavar="N", help="number of servers (default: %(default)s)")
    add("--parallel", int, "N", "requests a model answers at a time (default: 1)")
    add("--model", _model, "NAME", "installed model, may be repeated (default: four usual ones)", repeated=True)
    add("--version", str, "VERSION", "version to behave as (default: 0.24.0)")
    add("--tokens-per-second", float, "N", "speed of generation (default: no delay)")
    add("--load-seconds", float, "S", "time a cold model takes to load (default: 0)")
    add("--pull-seconds", float, "S", "time a pull takes (default: 0)")
    add("--outage", _outage, "FROM-TO", "seconds after the start to be down, may be repeated", repeated=True)
    return parser


def _values(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a reader of values separated by commas; an empty one is None."""

    def read(text: str) -> list[Any]:
        return [kind(part.strip()) if part.strip() else None for part in text.split(",")]

    read.__name__ = kind.__name__.strip("_")  # argparse names it in its message
    return read


def _spread(parser: argparse.ArgumentParser, option: str, values: list[Any], servers: int) -> list[Any]:
    """The values of an option, one for each server."""
    if len(values) not in {1, servers}:
        parser.error(f"--{option.replace('_', '-')} has {len(values)} values for {servers} servers")
    return values if len(values) == servers else values * servers


def _stand_ins(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[StandIn]:
    if options.servers < 1:
        parser.error("--servers has to be 1 or more")
    if not 0 <= options.port <= 65536 - options.servers:
        parser.error("--port has to be between 0 and 65535, that of the last server included")
    settings: list[dict[str, Any]] = [{} for _ in range(options.servers)]
    for option in _FOR_EACH_SERVER:
        values = _spread(parser, option, getattr(options, option), options.servers)
        for setting, value in zip(settings, values, strict=True):
            if value is not None:
                setting[option] = value
    # Without the option: the usual models. With it, a server may have none.
    models = [_spread(parser, "model", values, options.servers) for values in options.model]
    for number, setting in enumerate(settings):
        setting["models"] = [values[number] for values in models if values[number]] if models else None
    return [StandIn(**setting, loopback=options.host in _LOOPBACK, keep_requests=0) for setting in settings]


def _outages(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[list[tuple[float, float]]]:
    """The outages of each server, in seconds after the start."""
    outages = [_spread(parser, "outage", values, options.servers) for values in options.outage]
    return [[values[number] for values in outages if values[number]] for number in range(options.servers)]


def _outage(text: str) -> tuple[float, float]:
    begin, _, end = text.partition("-")
    outage = (float(begin), float(end))
    if not 0 <= outage[0] < outage[1]:
        raise ValueError(text)
    return outage


def _model(text: str) -> Model:
    name = parse(text)
    if name is None:
        raise argparse.ArgumentTypeError(f"not a model name: {text!r}")
    known = {model.parsed.key: model for model in default_registry()}
    return known.get(name.key) or Model(text)


if __name__ == "__main__":
    sys.exit(main())
