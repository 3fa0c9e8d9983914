"""Loaded models, and the queues of requests that wait for a load or for a slot.

The server loads one model at a time. Requests wait for a load in a bounded queue, and then for a slot of the model in
the order in which they came.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.exchange import Gate, Pause, Step, Wait
from ollama_provider.testing.go.encoding import Json
from ollama_provider.testing.state.catalogue import Model

INFINITE_KEEP_ALIVE = 2**63 / 1e9
"""An infinite keep-alive in seconds: the longest duration of Go, 292 years."""


class QueueFullError(Exception):
    """The queue for loads is full: OLLAMA_MAX_QUEUE requests wait already."""


class LoadError(Exception):
    """The model cannot be loaded. The text is the runner's."""


@dataclass(eq=False)
class Runner:
    """A loaded model.

    Attributes:
        model: With the name by which it was loaded.
        settings: The options that need a reload to change.
        num_ctx: Context of one slot in tokens, at most what the model was trained for.
        parallel: Number of slots.
        keep_alive: Seconds it stays loaded after its last request.
        expires_at: When it will be unloaded, Unix time.
        busy: Slots in use.
        queue: Gates of the requests that wait for a slot.
        on_idle: Gates of the requests that wait until no slot is in use, to unload it.
        retiring: A request waits to unload it. New requests do not get its slots.
    """

    model: Model
    settings: Mapping[str, Json]
    num_ctx: int
    parallel: int
    keep_alive: float
    expires_at: float
    busy: int = 0
    queue: deque[Gate] = field(default_factory=deque)
    on_idle: list[Gate] = field(default_factory=list)
    retiring: bool = False


@dataclass
class Scheduler:
    """The loaded models and the two queues.

    Attributes:
        parallel: Slots of each model (OLLAMA_NUM_PARALLEL); embedding models always have one.
        max_queue: Number of requests that may wait for a load (OLLAMA_MAX_QUEUE).
        max_loaded: Number of models loaded at a time (OLLAMA_MAX_LOADED_MODELS).
        clock: Returns Unix time.
        loads: Names of the loaded models in the order of their loads, reloads included.
    """

    parallel: int
    max_queue: int
    max_loaded: int
    clock: Callable[[], float]
    loads: list[str] = field(default_factory=list)
    _runners: dict[str, Runner] = field(default_factory=dict)
    _pending: deque[Gate] = field(default_factory=deque)

    @property
    def loaded(self) -> list[Runner]:
        """The loaded models, the one that expires last first. Unloads those that have expired."""
        now = self.clock()
        for key, runner in list(self._runners.items()):
            if not runner.busy and not runner.queue and runner.expires_at <= now:
                del self._runners[key]
        return sorted(self._runners.values(), key=lambda runner: -runner.expires_at)

    def unload(self, model: Model) -> None:
        """Unload a model as soon as it is idle."""
        if runner := self._runners.get(_key(model)):
            runner.keep_alive = 0.0
            self._start_keep_alive(runner)

    def unload_all(self) -> None:
        """Unload all models at once, as when the server stops."""
        self._runners.clear()

    def acquire(
        self,
        model: Model,
        settings: Mapping[str, Json],
        keep_alive: float | None,
        default_keep_alive: float,
        load_seconds: float,
    ) -> Generator[Step, None, tuple[Runner, float]]:
        """Take a slot of the model, after loading it if needed. Return the slot with `release`.

        Args:
            model: The model.
            settings: The options that need a reload to change, including `num_ctx`.
            keep_alive: Seconds; None keeps the value of a loaded model.
            default_keep_alive: Seconds, for a load without *keep_alive*.
            load_seconds: Duration of a load.

        Returns:
            The loaded model, and the seconds that the request waited for the slot when it was loaded. The server counts
            them in `total_duration` and in no other.

        Raises:
            QueueFullError: The queue for loads is full.
            LoadError: The model cannot be loaded.
        """
        runner = self._loaded_with(model, settings)
        if runner is None:
            runner = yield from self._queue_and_load(model, settings, default_keep_alive, load_seconds)
        if keep_alive is not None:
            runner.keep_alive = keep_alive
        loaded = self.clock()
        yield from self._take_slot(runner)
        return runner, self.clock() - loaded

    def release(self, runner: Runner) -> None:
        """Return a slot: the next request in the queue takes it."""
        if runner.queue:
            runner.queue.popleft().open()
        else:
            runner.busy -= 1
            self._start_keep_alive(runner)

    def _start_keep_alive(self, runner: Runner) -> None:
        runner.expires_at = self.clock() + runner.keep_alive
        if runner.busy:
            return
        if runner.keep_alive <= 0 and self._runners.get(_key(runner.model)) is runner:
            del self._runners[_key(runner.model)]
        for gate in runner.on_idle:
            gate.open()
        runner.on_idle.clear()

    def _loaded_with(self, model: Model, settings: Mapping[str, Json]) -> Runner | None:
        runner = self._runners.get(_key(model))
        if runner is None or runner.retiring or runner.settings != settings:
            return None
        if not runner.busy and runner.expires_at <= self.clock():
            return None
        return runner

    def _queue_and_load(
        self, model: Model, settings: Mapping[str, Json], keep_alive: float, seconds: float
    ) -> Generator[Step, None, Runner]:
        # The first in `_pending` is the one that loads; it does not count as waiting.
        if len(self._pending) > self.max_queue:
            raise QueueFullError
        place = Gate()
        self._pending.append(place)
        try:
            if self._pending[0] is not place:
                yield Wait(place)
            return self._loaded_with(model, settings) or (yield from self._load(model, settings, keep_alive, seconds))
        finally:
            self._pending.remove(place)
            if self._pending:
                self._pending[0].open()

    def _load(
        self, model: Model, settings: Mapping[str, Json], keep_alive: float, seconds: float
    ) -> Generator[Step, None, Runner]:
        if (old := self._runners.get(_key(model))) is not None:
            yield from self._retire(old)
        while len(self.loaded) >= self.max_loaded:
            by_keep_alive = sorted(self._runners.values(), key=lambda runner: (runner.busy, runner.keep_alive))
            yield from self._retire(by_keep_alive[0])
        if seconds:
            yield Pause(seconds)
        if (broken := model.file_error or model.load_error) is not None:
            raise LoadError(broken)
        self.loads.append(model.parsed.short)
        runner = Runner(
            model,
            settings,
            min(max(int(settings["num_ctx"]), 4), model.context_length),
            1 if "embedding" in model.capabilities else self.parallel,
            keep_alive,
            self.clock() + keep_alive,
        )
        self._runners[_key(model)] = runner
        return runner

    def _retire(self, runner: Runner) -> Generator[Step, None, None]:
        runner.retiring = True
        try:
            while runner.busy:
                idle = Gate()
                runner.on_idle.append(idle)
                yield Wait(idle)
        except GeneratorExit:
            runner.retiring = False
            raise
        self._runners.pop(_key(runner.model), None)

    def _take_slot(self, runner: Runner) -> Generator[Step, None, None]:
        if runner.busy < runner.parallel:
            runner.busy += 1
            return
        slot = Gate()
        runner.queue.append(slot)
        try:
            yield Wait(slot)
        except GeneratorExit:
            if slot in runner.queue:
                runner.queue.remove(slot)
            else:
                self.release(runner)
            raise


def _key(model: Model) -> str:
    # Two names of the same weights share one runner.
    return model.layers[0][0]
