"""A discrete simulation of a batch over several servers: the plan as it is, and servers that are numbers.

No network and no waiting: a night passes in seconds. Used by tests and by `tests/benchmarks/simulation.py`.
"""

import heapq
import random
import time
from collections import deque
from dataclasses import dataclass, field
from math import exp

from ollama_provider.api.errors import ConnectionBrokenError, OllamaError, UnreachableError
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.servers import InFlight, ServerState
from ollama_provider.batch.scheduling.steps import Do, Verdict
from ollama_provider.batch.scheduling.tail import rows_to_read

#: Spread of the service times: the sigma of their logarithms.
SIGMA = 0.5
#: Seconds to load the model.
LOAD = 2.0
#: Rows that are read at a time.
CHUNK = 1000


@dataclass(eq=False)
class Machine:
    """A simulated server.

    Attributes:
        seconds: mean service time of a row.
        slots: rows at a time.
        outages: begin and end of the times when it is down.
        stalls: from then on it accepts requests and answers none.
    """

    seconds: float
    slots: int
    outages: tuple[tuple[float, float], ...] = ()
    stalls: float = float("inf")
    working: int = 0
    waiting: deque["Request"] = field(default_factory=deque)
    busy_seconds: float = 0.0
    starts: int = 0

    def is_down(self, now: float) -> bool:
        """Return whether it takes no connection."""
        return any(begin <= now < end for begin, end in self.outages)

    def capacity(self, seconds: float) -> float:
        """Return how many rows it can answer until then, down times left out."""
        down = sum(max(0.0, min(end, seconds) - begin) for begin, end in self.outages)
        return (min(seconds, self.stalls) - down) * self.slots / self.seconds


@dataclass(eq=False)
class Request:
    """A request that a machine has. A machine that goes down forgets those of before."""

    sent: InFlight
    came: float
    start: int
    began: float = 0.0
    seconds: float = 0.0


class Simulation:
    """Runs a batch of so many rows over machines.

    Args:
        machines: the servers.
        rows: of the input.
        seed: of the service times.
        fails: returns the error of a row at a machine; None if it is answered.
        killers: rows that bring down the machine that works on them, and for how many seconds.
        failures: of the plan.
        limit: returns the concurrency limit of a server.

    Attributes:
        killed: the machines that each of the killers has brought down.
        now: simulated seconds since the start.
        answers: how often each row was given to a worker as good.
        requests: how often each row was sent.
        decisions: real seconds of the processor that the plan took for all decisions.
        stopped: the error that ended the run.
    """

    def __init__(
        self,
        machines: list[Machine],
        rows: int,
        *,
        seed: int = 0,
        fails=lambda number, machine: None,
        killers: dict[int, float] | None = None,
        failures: FailurePolicy | None = None,
        limit=lambda machine: ConcurrencyLimit(),
    ) -> None:
        self.machines = machines
        self.rows = rows
        self.servers = [
            ServerState(index, f"http://gpu{index}", limit(machine), PackSize(1, settled=True))
            for index, machine in enumerate(machines)
        ]
        self.plan = Plan(failures or FailurePolicy(), self.servers)
        self.fails = fails
        self.killers = killers or {}
        self.killed: dict[int, list[Machine]] = {}
        self.now = 0.0
        self.answers = bytearray(rows)
        self.requests = bytearray(rows)
        self.failed: list[int] = []
        self.decisions = 0.0
        self.stopped: OllamaError | None = None
        self.finished_at = 0.0
        self._read = 0
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, object, tuple]] = []
        self._count = self._count_again = self._wanted = 0
        self._woken: dict[int, float] = {}

    @property
    def more(self) -> bool:
        """The input is not read to its end."""
        return self._read < self.rows

    def ideal(self) -> float:
        """Return the seconds that the machines need at least, if all are busy from the first moment to the last."""
        low, high = 0.0, 1e9
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            enough = sum(machine.capacity(middle) for machine in self.machines) >= self.rows
            low, high = (low, middle) if enough else (middle, high)
        return high

    def run(self) -> "Simulation":
        """Run until every row has an outcome, or the batch stops."""
        for machine in self.machines:
            for begin, _ in machine.outages:
                self._at(begin, self._go_down, machine)
        self._fill()
        self._wake_all()
        while self._events and self.stopped is None and (self.more or self.plan.unfinished):
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        return self

    def _at(self, when: float, act, *arguments) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act, arguments))

    def _fill(self) -> None:
        while self.more and len(self.plan.queue.new) <= self._rows_ahead():
            end = min(self._read + CHUNK, self.rows)
            self.plan.queue.new.extend(WorkItem(number, "") for number in range(self._read, end))
            self._read = end

    def _rows_ahead(self) -> int:
        if self._count >= self._count_again:
            self._wanted, self._count_again = rows_to_read(self.servers), self._count + len(self.servers)
        return self._wanted

    def _wake_all(self) -> None:
        for server in self.servers:
            if not server.is_full:
                self._wake(server)

    def _wake(self, server: ServerState) -> None:
        """Let a server's workers take what the plan gives them."""
        while self.stopped is None:
            began = time.process_time()
            step = self.plan.next(server, self.now, more=self.more)
            self.decisions += time.process_time() - began
            if step.do is Do.SEND:
                self._send(server, step.sent)
            elif step.do is Do.PROBE:
                self._at(self.now + LOAD, self._probed, server, step.item)
            else:
                if step.do is Do.WAIT and self._woken.get(server.index) != step.until:
                    self._woken[server.index] = step.until
                    self._at(max(step.until, self.now), self._look_again, server, step.until)
                return

    def _look_again(self, server: ServerState, until: float) -> None:
        if self._woken.get(server.index) == until:
            del self._woken[server.index]
            self._wake(server)

    def _send(self, server: ServerState, sent: InFlight) -> None:
        machine, number = self.machines[server.index], sent.item.number
        self.requests[number] += 1
        if machine.is_down(self.now):
            self._at(self.now + 0.001, self._failed, sent, UnreachableError("refused"))
            return
        request = Request(sent, self.now, machine.starts)
        if machine.working < machine.slots:
            self._begin(machine, request)
        else:
            machine.waiting.append(request)
        self._fill()

    def _begin(self, machine: Machine, request: Request) -> None:
        machine.working += 1
        number = request.sent.item.number
        if number in self.killers:
            self.killed.setdefault(number, []).append(machine)
            machine.outages += ((self.now, self.now + self.killers[number]),)
            self._at(self.now, self._go_down, machine)
        request.began = self.now
        request.seconds = machine.seconds * exp(self._random.gauss(-(SIGMA**2) / 2, SIGMA))
        if self.now < machine.stalls:
            self._at(self.now + request.seconds, self._done, machine, request)

    def _done(self, machine: Machine, request: Request) -> None:
        if request.start != machine.starts:  # it went down meanwhile
            return
        machine.working -= 1
        machine.busy_seconds += request.seconds
        if machine.waiting:
            self._begin(machine, machine.waiting.popleft())
        sent = request.sent
        if sent.discarded:
            return
        number = sent.item.number
        if error := self.fails(number, machine):
            self._failed(sent, error)
            return
        began = time.process_time()
        seconds = self.now - request.came
        sent.server.observe(sent, seconds, request.began - request.came, 1, 100)
        self.plan.succeeded(sent, self.now)
        self.decisions += time.process_time() - began
        self.answers[number] += 1
        self.finished_at = self.now
        self._after(sent.server)

    def _failed(self, sent: InFlight, error: OllamaError) -> None:
        if sent not in sent.server.in_flight:  # it was cancelled, or had failed with all others of its server
            return
        verdict = self.plan.failure(sent, error, self.now)
        if verdict is Verdict.FAILED:
            self.failed.append(sent.item.number)
        elif verdict is Verdict.STOP:
            self.stopped = error
        self._wake_all()

    def _probed(self, server: ServerState, item: WorkItem | None) -> None:
        if not self.machines[server.index].is_down(self.now):
            self.plan.probe_succeeded(server, item)
        elif self.plan.probe_failed(server, item, UnreachableError("refused"), self.now) is Verdict.STOP:
            self.stopped = UnreachableError("refused")
        self._wake_all()

    def _after(self, server: ServerState) -> None:
        """Wake those that an answer may concern: the server's own workers, and in the end all."""
        if self.more or len(self.plan.queue) > CHUNK:
            self._wake(server)
        else:
            self._wake_all()

    def _go_down(self, machine: Machine) -> None:
        """All requests that the machine has are reset."""
        machine.starts += 1
        machine.working = 0
        machine.waiting.clear()
        server = self.servers[self.machines.index(machine)]
        for sent in list(server.in_flight):
            self._failed(sent, ConnectionBrokenError("reset"))


def machines(count: int, *, slowest: float = 1.6, fastest: float = 0.2, slots: int = 4) -> list[Machine]:
    """Return machines whose speeds are evenly spread."""
    speeds = [1 / slowest + (1 / fastest - 1 / slowest) * index / max(count - 1, 1) for index in range(count)]
    return [Machine(1 / speed, slots) for speed in speeds]
