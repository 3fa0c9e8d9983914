"""Loads, slots and queues, tested without a socket and without waiting."""

import json
from collections import Counter

import pytest

from ollama_provider.testing import Fail, Model, Pace, Reply, Stall, StandIn
from ollama_provider.testing.exchange import (
    Disconnect,
    Head,
    Line,
    Pause,
    Request,
    Response,
    Step,
    Steps,
    Wait,
    collect,
)
from ollama_provider.testing.go.encoding import dumps


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Exchange:
    """A request that is carried out up to the first wait or pause."""

    def __init__(self, stand_in: StandIn, body: dict, path: str = "/api/generate") -> None:
        self.steps: Steps = stand_in.exchange(Request("POST", path, {}, dumps(body).encode()))
        self.last: Step | None = None
        self.sent: list[Response | Head | Line] = []
        self.go_on()

    def go_on(self) -> None:
        """Carry out the steps until a pause, a wait for a gate that is not open, or the end."""
        if self.waits and not self.last.gate.is_open:
            return
        for step in self.steps:
            self.last = step
            if isinstance(step, Pause) or (isinstance(step, Wait) and not step.gate.is_open):
                return
            if not isinstance(step, Wait | Disconnect):
                self.sent.append(step)
        self.last = None

    @property
    def waits(self) -> bool:
        return isinstance(self.last, Wait)

    @property
    def pauses(self) -> bool:
        return isinstance(self.last, Pause)

    @property
    def status(self) -> int:
        return self.sent[0].status

    def hang_up(self) -> None:
        self.steps.close()


def ask(**fields: object) -> dict:
    return {"model": "llama3.2", "prompt": "hello", "stream": False, **fields}


def post(stand_in: StandIn, path: str, **body: object) -> Reply:
    return stand_in.answer("POST", f"/api/{path}", body)


def loaded(stand_in: StandIn) -> list[str]:
    return [model["name"] for model in stand_in.answer("GET", "/api/ps").json["models"]]


def test_a_cold_server_refuses_what_exceeds_its_queue() -> None:
    """Recorded with MAX_QUEUE=4: of 24 requests at once for a cold model 5 are served and 19 get 503."""
    stand_in = StandIn(parallel=2, max_queue=4, load_seconds=1)

    exchanges = [Exchange(stand_in, ask()) for _ in range(24)]
    while any(exchange.last for exchange in exchanges):
        for exchange in exchanges:
            exchange.go_on()

    assert Counter(exchange.status for exchange in exchanges) == {200: 5, 503: 19}
    assert b"server busy, please try again.  maximum pending requests exceeded" in exchanges[-1].sent[0].body
    assert stand_in.loads == ["llama3.2:latest"]


def test_a_loaded_model_has_an_endless_queue() -> None:
    """The limit counts only requests that wait for a load."""
    stand_in = StandIn(max_queue=1)
    post(stand_in, "generate", model="llama3.2")
    stand_in.script(Stall())
    held = Exchange(stand_in, ask())

    waiting = [Exchange(stand_in, ask()) for _ in range(50)]

    assert all(exchange.waits for exchange in waiting)
    held.hang_up()
    for exchange in waiting:
        exchange.go_on()
    assert {exchange.status for exchange in waiting} == {200}


def test_waiting_requests_are_served_in_their_order() -> None:
    """When a request leaves the queue, the next one gets the slot."""
    stand_in = StandIn()
    post(stand_in, "generate", model="llama3.2")
    stand_in.script(Stall())
    held, second, third = (Exchange(stand_in, ask(prompt=str(number))) for number in range(3))

    held.hang_up()

    assert second.last.gate.is_open
    assert not third.last.gate.is_open
    second.hang_up()
    assert third.last.gate.is_open


@pytest.mark.parametrize(
    ("path", "body"), [("generate", {"prompt": "a"}), ("embed", {"model": "nomic-embed-text", "input": "a"})]
)
def test_the_wait_for_a_slot_is_in_the_total_alone(path: str, body: dict) -> None:
    """As the server counts: no other duration has it."""
    stand_in = StandIn(clock=(clock := Clock()))
    stand_in.script(Stall())
    body = ask(stream=False) | body
    held, second = (Exchange(stand_in, body, f"/api/{path}") for _ in range(2))

    clock.now += 5
    held.hang_up()
    second.go_on()

    reply = json.loads(second.sent[-1].body)
    assert reply["total_duration"] == 5e9
    assert reply["load_duration"] + reply.get("prompt_eval_duration", 0) < 1e6


def test_one_load_at_a_time() -> None:
    """The second model waits until the first is loaded, although both fit."""
    stand_in = StandIn(load_seconds=1)
    first, second = Exchange(stand_in, ask()), Exchange(stand_in, ask(model="llava"))

    assert first.pauses
    assert second.waits
    first.go_on()
    second.go_on()
    assert second.pauses
    second.go_on()
    assert stand_in.loads == ["llama3.2:latest", "llava:latest"]


def test_a_load_that_is_aborted_starts_again_for_the_next() -> None:
    """If the client of the loading request disconnects, the load is cancelled, and the next request starts it again."""
    stand_in = StandIn(load_seconds=1)
    first, second = Exchange(stand_in, ask()), Exchange(stand_in, ask())

    first.hang_up()
    second.go_on()

    assert second.pauses
    assert stand_in.loads == []


@pytest.mark.parametrize(
    ("options", "loads"),
    [
        ([{}, {}, {"temperature": 0.1, "seed": 3}], 1),
        ([{"num_ctx": 8192}, {}], 2),
        ([{}, {"num_ctx": 4096}], 1),
        ([{"num_thread": 1}, {"num_thread": 2}, {"num_thread": 1}], 3),
        ([{"num_gpu": -1}, {}], 1),
        ([{"num_ctx": 131_072}, {"num_ctx": 10_000_000}], 1),
    ],
)
def test_options_that_reload(options: list[dict], loads: int) -> None:
    """Options for context, batch, GPU and threads reload the model, unless they have the value in use."""
    stand_in = StandIn()

    for each in options:
        stand_in.answer("POST", "/api/generate", ask(options=each))

    assert len(stand_in.loads) == loads


def test_a_reload_waits_for_the_running_requests() -> None:
    """Later requests wait until it is done."""
    stand_in = StandIn()
    stand_in.script(Stall())
    running = Exchange(stand_in, ask())
    other, same = Exchange(stand_in, ask(options={"num_ctx": 512})), Exchange(stand_in, ask())

    assert other.waits
    assert same.waits
    running.hang_up()
    other.go_on()
    same.go_on()
    assert other.status == same.status == 200
    assert len(stand_in.loads) == 3


def test_models_are_evicted_when_there_are_too_many() -> None:
    """The idle model with the shortest keep-alive is unloaded."""
    stand_in = StandIn(max_loaded=2)

    post(stand_in, "generate", model="llama3.2", keep_alive="1h")
    post(stand_in, "generate", model="llava", keep_alive="1m")
    post(stand_in, "generate", model="qwen3")

    assert sorted(loaded(stand_in)) == ["llama3.2:latest", "qwen3:latest"]


def test_keep_alive_belongs_to_the_model() -> None:
    """The last request that sets it decides. It counts from the end of the last request."""
    clock = Clock()
    stand_in = StandIn(clock=clock)
    post(stand_in, "generate", model="llama3.2", keep_alive="1h")
    clock.now += 1800
    post(stand_in, "generate", model="llama3.2")

    clock.now += 3599
    assert loaded(stand_in) == ["llama3.2:latest"]
    clock.now += 1
    assert loaded(stand_in) == []


def test_a_model_with_keep_alive_0_goes_when_it_is_idle() -> None:
    """With a prompt the model is unloaded after the answer, without one at once."""
    stand_in = StandIn()

    assert stand_in.answer("POST", "/api/generate", ask(keep_alive=0)).status == 200
    assert loaded(stand_in) == []

    post(stand_in, "generate", model="llama3.2")
    assert post(stand_in, "generate", model="llama3.2", keep_alive=0).json["done_reason"] == "unload"
    assert loaded(stand_in) == []


def test_embedding_models_have_one_slot() -> None:
    """OLLAMA_NUM_PARALLEL has no effect on them."""
    stand_in = StandIn(parallel=4)
    stand_in.script((Pace(first_token=1)), times=2)
    body = {"model": "nomic-embed-text", "input": "a"}

    first, second = Exchange(stand_in, body, "/api/embed"), Exchange(stand_in, body, "/api/embed")

    assert first.pauses
    assert second.waits


def test_a_broken_model_fails_every_load() -> None:
    """Requests for other models are served."""
    stand_in = StandIn([Model("broken", load_error="unable to load model"), "fine"])

    for _ in range(2):
        reply = post(stand_in, "generate", model="broken")
        assert (reply.status, reply.json) == (500, {"error": "unable to load model"})
    assert post(stand_in, "generate", model="fine").status == 200


def test_the_scripted_cold_load_happens_for_a_loaded_model() -> None:
    """`Pace(load=…)` unloads the model first."""
    stand_in = StandIn()
    post(stand_in, "generate", model="llama3.2")
    stand_in.script(Pace(load=2.5))

    reply = stand_in.answer("POST", "/api/generate", ask())

    assert reply.seconds == 2.5
    assert len(stand_in.loads) == 2


def test_another_revision_is_another_model() -> None:
    """The digest changes in all replies, and the new weights are loaded."""
    stand_in = StandIn()
    post(stand_in, "generate", model="llama3.2")
    before = stand_in.model("llama3.2").digest

    after = stand_in.retag("llama3.2").digest
    post(stand_in, "generate", model="llama3.2")

    assert before != after
    assert stand_in.loads == ["llama3.2:latest"] * 2
    assert after in {model["digest"] for model in stand_in.answer("GET", "/api/tags").json["models"]}


def test_an_answer_that_would_wait_is_an_error() -> None:
    """`answer` raises an error instead of waiting."""
    stand_in = StandIn()
    stand_in.script(Stall())

    with pytest.raises(RuntimeError, match="waits for a gate"):
        stand_in.answer("POST", "/api/generate", ask())


def test_a_failure_after_the_slot_gives_it_back() -> None:
    """After a request that is refused or fails, the next one gets the slot."""
    stand_in = StandIn()
    stand_in.script(Fail("it broke"))
    long = ask(prompt="word " * 5000, truncate=False)

    assert stand_in.answer("POST", "/api/generate", ask()).status == 500
    assert stand_in.answer("POST", "/api/generate", long).status == 400
    assert collect(stand_in.exchange(Request("POST", "/api/generate", {}, dumps(ask()).encode()))).status == 200
