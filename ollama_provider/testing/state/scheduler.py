"""Which models are loaded, who loads next, who has a slot: the order in which requests are served.

One load at a time for the whole server, a bounded queue before it, then a first-come queue for the slots of the model.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.exchange import Gate, Pause, Step, Wait
from ollama_provider.testing.go.encoding import Json
from ollama_provider.testing.state.catalogue import Model

FOR_EVER = 2**63 / 1e9
"""Seconds of an infinite keep-alive: the longest Go duration, 292 years."""


class QueueFullError(Exception):
    """More requests wait for a load than OLLAMA_MAX_QUEUE."""


class LoadError(Exception):
    """The model cannot be loaded; the text is the runner's."""


@dataclass(eq=False)
class Runner:
    """A loaded model.

    Attributes:
        model: Under the name it was loaded by.
        settings: The options that only a reload can change.
        num_ctx: Context of one slot, after capping at what the model was trained for.
        parallel: Slots.
        keep_alive: Seconds it stays after its last request.
        expires_at: Unix time.
        busy: Slots in use.
        queue: Who waits for a slot.
        retiring: A request with other settings waits for it to be idle.
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
        parallel: Slots a model (OLLAMA_NUM_PARALLEL); embedding models always have one.
        max_queue: Requests that may wait for a load (OLLAMA_MAX_QUEUE).
        max_loaded: Models at a time (OLLAMA_MAX_LOADED_MODELS).
        clock: Unix time.
        loads: Names of the models in the order they were loaded, reloads included.
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
        """What `/api/ps` shows: the one that stays longest first."""
        now = self.clock()
        for key, runner in list(self._runners.items()):
            if not runner.busy and not runner.queue and runner.expires_at <= now:
                del self._runners[key]
        return sorted(self._runners.values(), key=lambda runner: -runner.expires_at)

    def unload(self, model: Model) -> None:
        """Drop a model as soon as it is idle."""
        if runner := self._runners.get(_key(model)):
            runner.keep_alive = 0.0
            self._settle(runner)

    def forget(self) -> None:
        """Drop all models at once, as a server does that stops."""
        self._runners.clear()

    def acquire(
        self,
        model: Model,
        settings: Mapping[str, Json],
        keep_alive: float | None,
        default_keep_alive: float,
        load_seconds: float,
    ) -> Generator[Step, None, Runner]:
        """Load the model if it must be and take a slot; give it back with `release`.

        Args:
            model: What to load.
            settings: The options that only a reload can change, `num_ctx` among them.
            keep_alive: Seconds; None keeps what a loaded model has.
            default_keep_alive: For a fresh load without *keep_alive*.
            load_seconds: How long a load takes.

        Raises:
            QueueFullError: Too many wait for a load.
            LoadError: The model is broken.
        """
        runner = self._fitting(model, settings)
        if runner is None:
            runner = yield from self._load_in_turn(model, settings, default_keep_alive, load_seconds)
        if keep_alive is not None:
            runner.keep_alive = keep_alive
        yield from self._take_slot(runner)
        return runner

    def release(self, runner: Runner) -> None:
        """Give a slot back: to the next in the queue, if there is one."""
        if runner.queue:
            runner.queue.popleft().open()
        else:
            runner.busy -= 1
            self._settle(runner)

    def _settle(self, runner: Runner) -> None:
        runner.expires_at = self.clock() + runner.keep_alive
        if runner.busy:
            return
        if runner.keep_alive <= 0 and self._runners.get(_key(runner.model)) is runner:
            del self._runners[_key(runner.model)]
        for gate in runner.on_idle:
            gate.open()
        runner.on_idle.clear()

    def _fitting(self, model: Model, settings: Mapping[str, Json]) -> Runner | None:
        runner = self._runners.get(_key(model))
        if runner is None or runner.retiring or runner.settings != settings:
            return None
        if not runner.busy and runner.expires_at <= self.clock():
            return None
        return runner

    def _load_in_turn(
        self, model: Model, settings: Mapping[str, Json], keep_alive: float, seconds: float
    ) -> Generator[Step, None, Runner]:
        # The one that is being loaded has left the queue.
        if len(self._pending) > self.max_queue:
            raise QueueFullError
        turn = Gate()
        self._pending.append(turn)
        try:
            if self._pending[0] is not turn:
                yield Wait(turn)
            return self._fitting(model, settings) or (yield from self._load(model, settings, keep_alive, seconds))
        finally:
            self._pending.remove(turn)
            if self._pending:
                self._pending[0].open()

    def _load(
        self, model: Model, settings: Mapping[str, Json], keep_alive: float, seconds: float
    ) -> Generator[Step, None, Runner]:
        if (old := self._runners.get(_key(model))) is not None:
            yield from self._retire(old)
        while len(self.loaded) >= self.max_loaded:
            victims = sorted(self._runners.values(), key=lambda runner: (runner.busy, runner.keep_alive))
            yield from self._retire(victims[0])
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
    # Runners belong to weights, not to names.
    return model.layers[0][0]
