"""Slow work for the page, in a few threads of its own, with time limits.

Airflow's API server answers its requests in a pool of threads. A directory or a server that hangs must not take those,
so what reads one runs here.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Seconds that a request waits for its thread.
WAIT = 10.0


class TooSlowError(Exception):
    """It takes longer than a request to the page may wait."""


class Threads:
    """Some threads, which are started when they are needed. Only one thread may submit.

    Those of a `concurrent.futures.ThreadPoolExecutor` would keep the API server from ending while one of them hangs.

    Args:
        count: at most.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._started = 0
        self._queue: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[object, ...]]] = SimpleQueue()

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Let one of the threads call *function*, and return its future."""
        future: Future[T] = Future()
        self._queue.put((future, function, args))
        if self._started < self._count:
            self._started += 1
            Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, function, args = self._queue.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(*args)
            except BaseException as error:  # whoever waits for it is told
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, function, args  # else they would be kept until the next one comes


#: For all requests to the page in a process of the API server.
_THREADS = Threads(8, "ollama-page")


async def in_thread(function: Callable[..., T], *args: object, seconds: float = WAIT) -> T:
    """Call *function* in a thread and return its result.

    Args:
        function: what to call.
        *args: its arguments.
        seconds: to wait for it.

    Raises:
        TooSlowError: it is not done. It goes on in its thread, since a thread cannot be stopped.
    """
    return await _result(_THREADS.submit(function, *args), seconds)


@dataclass
class _Entry(Generic[T]):
    """A future, and until when its result holds. Its thread sets that: it leaves the dict of entries to requests."""

    future: Future[T]
    until: float = math.inf


class Cached(Generic[T]):
    """Results of slow functions, by key. What one request computes, others wait for, and it is kept for a while.

    A result is kept for some times the seconds that it took, if that is longer: so a large directory that many look at
    keeps a tenth of a thread busy at most. Errors are kept like results.

    Args:
        seconds: to keep a result at least.
        size: results to keep at most.
        times: the seconds that it took.
        threads: in which the functions run.
    """

    def __init__(self, seconds: float, size: int = 100, *, times: float = 10, threads: Threads = _THREADS) -> None:
        self._seconds = seconds
        self._size = size
        self._times = times
        self._threads = threads
        self._entries: dict[Hashable, _Entry[T]] = {}

    async def get(self, key: Hashable, function: Callable[..., T], *args: object, seconds: float = WAIT) -> T:
        """Return the result for *key*, from *function* if there is none or it is too old.

        Args:
            key: what the result depends on.
            function: see `in_thread`.
            *args: see there.
            seconds: see there.

        Raises:
            TooSlowError: it is not done. It goes on, and a later request gets the result.
        """
        entry = self._entries.get(key)
        if entry is None or entry.until < time.monotonic():
            entry = self._begin(key, function, *args)
        return await _result(entry.future, seconds)

    def _begin(self, key: Hashable, function: Callable[..., T], *args: object) -> _Entry[T]:
        now = time.monotonic()
        self._entries = {each: entry for each, entry in self._entries.items() if entry.until >= now}
        while len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        entry = self._entries[key] = _Entry(self._threads.submit(function, *args))

        def done(_: Future[T]) -> None:
            ended = time.monotonic()
            entry.until = ended + max(self._seconds, self._times * (ended - now))

        entry.future.add_done_callback(done)
        return entry


async def _result(future: Future[T], seconds: float) -> T:
    waiting = asyncio.wrap_future(future)
    # Nobody may be waiting any more when it ends with an error: asyncio would log that.
    waiting.add_done_callback(lambda each: each.cancelled() or each.exception())
    # Others may wait for the same future: waiting ends, and the future goes on.
    done, _ = await asyncio.wait([waiting], timeout=seconds)
    if not done:
        raise TooSlowError(f"no answer within {seconds:.0f} s")
    return waiting.result()
