"""Slow work has threads of its own, and a request waits for it within a limit."""

import asyncio
import subprocess
import sys
import textwrap
from threading import Event, current_thread

import pytest

from ollama_provider.ui.threads import Cached, TooSlowError, in_thread


@pytest.fixture
def hanging():
    """A function that hangs until the test has ended."""
    end = Event()
    yield end.wait
    end.set()


async def test_it_runs_in_a_thread_of_the_page():
    """And neither in that of the requests nor in those of the API server."""
    assert (await in_thread(lambda: current_thread().name)).startswith("ollama-page")


async def test_what_hangs_holds_no_request(hanging):
    """It is told after the time limit, and the request goes on."""
    with pytest.raises(TooSlowError, match="no answer within 0 s"):
        await in_thread(hanging, seconds=0.05)


def test_what_hangs_keeps_no_process_from_ending():
    """The API server ends when it is told to, whatever hangs."""
    code = """
        import asyncio, threading
        from ollama_provider.ui.threads import TooSlowError, in_thread
        try:
            asyncio.run(in_thread(threading.Event().wait, seconds=0.05))
        except TooSlowError as error:
            print(error)
    """

    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )

    assert ended.stdout == "no answer within 0 s\n"


async def test_an_error_comes_to_the_request():
    """Also a time limit of its own, which is none of ours."""
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="of the disk"):
        await in_thread(raises, TimeoutError("of the disk"))


def raises(error):
    raise error


async def test_requests_at_the_same_time_share_a_result():
    """One thread computes, the others wait; so do later ones for a while."""
    calls, go = [], Event()

    def slow(key):
        calls.append(key)
        go.wait()
        return f"result {key}"

    cached: Cached[str] = Cached(seconds=60)
    waiting = [asyncio.create_task(cached.get(key, slow, key)) for key in "aab"]
    await asyncio.sleep(0)
    go.set()

    assert await asyncio.gather(*waiting) == ["result a", "result a", "result b"]
    assert await cached.get("a", slow, "a") == "result a"
    assert sorted(calls) == ["a", "b"]


async def test_a_result_that_is_too_old_is_computed_again():
    """After the seconds that it is kept for, here none."""
    results = iter(range(3))
    cached: Cached[int] = Cached(seconds=0)

    def fetch():
        return next(results)

    first = await cached.get("a", fetch)
    while (second := await cached.get("a", fetch)) == first:
        await asyncio.sleep(0.01)

    assert (first, second) == (0, 1)


async def test_who_gives_up_leaves_the_work_to_the_next(hanging):
    """It is not begun a second time while it goes on."""
    calls = []

    def slow():
        calls.append(1)
        hanging()

    cached: Cached[None] = Cached(seconds=60)
    for _ in range(2):
        with pytest.raises(TooSlowError):
            await cached.get("a", slow, seconds=0.05)

    assert calls == [1]


async def test_an_error_is_kept_like_a_result():
    """A directory that cannot be read is not tried again by each request."""
    calls = []

    def fails():
        calls.append(1)
        raise OSError("no such disk")

    cached: Cached[None] = Cached(seconds=60)
    for _ in range(2):
        with pytest.raises(OSError, match="no such disk"):
            await cached.get("a", fails)

    assert calls == [1]


async def test_a_result_that_comes_while_old_ones_go_is_not_kept_for_ever():
    """Its thread ends in the midst of another request's clearing: here where that looks at its key."""
    go, ended = Event(), Event()

    class Key(str):
        __slots__ = ()

        def __hash__(self):
            if cleaning:
                go.set()
                ended.wait()
            return super().__hash__()

    cached: Cached[int] = Cached(seconds=0, times=0)
    cleaning = False
    slow, results = Key("slow"), iter(range(2))

    def fetch():
        go.wait()
        return next(results)

    first = asyncio.create_task(cached.get(slow, fetch))
    await asyncio.sleep(0)
    cached._entries[slow].future.add_done_callback(lambda _: ended.set())
    cleaning = True
    other = asyncio.create_task(cached.get("other", str))
    await asyncio.sleep(0)
    cleaning = False
    await asyncio.gather(first, other)

    assert await cached.get(slow, fetch) == 1


async def test_only_so_many_are_kept():
    """The oldest goes first."""
    cached: Cached[str] = Cached(seconds=60, size=2)
    for key in "abc":
        await cached.get(key, str, key)

    assert await cached.get("c", str, "again") == "c"
    assert await cached.get("a", str, "again") == "again"
