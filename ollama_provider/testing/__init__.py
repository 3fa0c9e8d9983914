r"""A stand-in for Ollama, for tests and for machines without one.

It answers over real HTTP as an Ollama 0.24.0 does (or another `version`), without a model: summaries are extracted from
the prompt, schemas are satisfied, vectors are hashed, and any other answer says that it comes from the stand-in.

    from ollama_provider.testing import StandIn, serve

    with serve(StandIn(parallel=2)) as server:
        httpx.get(server.url + "/api/tags")
        server.stand_in.requests[0].path        # "/api/tags"

Tests use the fixtures, which pytest finds as soon as the package is installed: `ollama` is such a `Server`, a new one
for each test, and `ollama_conn` is a connection to it. `@pytest.mark.ollama(...)` gives arguments to its `StandIn`. A
test fails if a scripted reply was not used.

    def test_my_dag(ollama, ollama_conn):
        ollama.stand_in.script("Paris", "Rome")

`ollama_servers` is a list of several, each with its own port, models and pace: three, or one for each dict of
`@pytest.mark.ollama_servers({"parallel": 4}, {"models": ["qwen3"]})`. `ollama_servers_conn` is a connection to all.

**Script.** `stand_in.script(reply, …, path=None, model=None, where=None, times=1, always=False)` scripts the replies to
the next requests that match, one reply for each; other requests get the usual answer. Without `path` it is about
generate, chat, embed and embeddings, and so about OpenAI's endpoints for them under `/v1`. A reply is

* an answer: `"text"`; `{"label": "red"}` (sent as JSON text); `Ordinary()`; or
  `Answer(text, thinking=…, tool_calls=(("f", {"x": 1}),), vectors=[[…]], done_reason=…, prompt_eval_count=…)`;
* a delay: `Pace(load=1.0, first_token=0.2, between_tokens=0.01)` in seconds;
* a fault, where `after` counts lines of the stream and None is before the first byte:
    * `Fail("llama runner process has terminated: signal: killed", status=500, after=None)` is Ollama's own error, a
      status when early or not streamed, else a line; `Fail("max retries exceeded: EOF")` with `path="pull"`;
    * `Crash(after=3)` ends the model's process; since 0.30 the error quotes log lines about other requests;
    * `Respond(502, "<html>…", headers={"Retry-After": "1"})` is a proxy or another program in Ollama's place;
    * `Stall(after=None, until=gate)` stops the reply; it continues at `gate.open()`, if a `Gate` is given;
    * `Cut(after=None, reset=False)` closes the connection; `CutUpload(after=1000)` with `path="blobs"` does so while
      the client still sends; `Unfinished(after=3)` ends the stream normally, but without `done`;
    * `Insert(b"{broken\n", after=1)` sends raw bytes; `StuckDownload(after=2)` is a pull that repeats its progress
      without an end;
* or a tuple of these for one request: `(Answer("a b c"), Pace(between_tokens=0.01), Cut(after=2))`.

    stand_in.script(Fail("server busy, please try again.  maximum pending requests exceeded", status=503), times=2)
    stand_in.script(Cut(after=3), model="qwen3", where=lambda body: "boom" in body.get("prompt", ""))

**State.** `stand_in.install(Model("m", ("embedding",)))`, `.remove("llama3.2")`, `.retag("llama3.2")` (another digest),
`.offer(…)` and `.withdraw(…)` (registry); ``.requests``, `.open_requests`, `.loads`, `.downloads`,
`.wait_until(lambda s: len(s.open_requests) == 2)`; `server.stop()` and `server.start()` on the same port.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_provider.testing.exchange import Gate, Reply
    from ollama_provider.testing.scripting.faults import (
        Crash,
        Cut,
        CutUpload,
        Fail,
        Insert,
        Respond,
        Stall,
        StuckDownload,
        Unfinished,
    )
    from ollama_provider.testing.scripting.script import Answer, Ordinary, Pace
    from ollama_provider.testing.server import Server, serve
    from ollama_provider.testing.stand_in import Seen, StandIn
    from ollama_provider.testing.state.catalogue import Model, default_models, default_registry

__all__ = [
    "Answer",
    "Crash",
    "Cut",
    "CutUpload",
    "Fail",
    "Gate",
    "Insert",
    "Model",
    "Ordinary",
    "Pace",
    "Reply",
    "Respond",
    "Seen",
    "Server",
    "Stall",
    "StandIn",
    "StuckDownload",
    "Unfinished",
    "default_models",
    "default_registry",
    "serve",
]

# Module -> its public names. They are imported on first use, since pytest imports this package in every run.
_MODULES = {
    "exchange": ("Gate", "Reply"),
    "scripting.faults": (
        "Crash",
        "Cut",
        "CutUpload",
        "Fail",
        "Insert",
        "Respond",
        "Stall",
        "StuckDownload",
        "Unfinished",
    ),
    "scripting.script": ("Answer", "Ordinary", "Pace"),
    "server": ("Server", "serve"),
    "stand_in": ("Seen", "StandIn"),
    "state.catalogue": ("Model", "default_models", "default_registry"),
}


def __getattr__(name: str) -> Any:
    for module, exported in _MODULES.items():
        if name in exported:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
