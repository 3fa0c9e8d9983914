"""The end of a batch over several servers, where a slow server must not hold the last rows while fast ones are idle.

No network and no clock: `now` is an argument. All times are expectations, from what each server took for its own rows.
"""

from collections.abc import Sequence
from math import inf

from ollama_provider.batch.scheduling.servers import InFlight, ServerState

#: A request that takes so many times as long as its server's others is overdue.
_OVERDUE = 2.5
#: Of the time in which others would be done, what a server must be done in to take a row: estimates are no better.
_CLEARLY = 0.8
#: Seconds until a decision that depends on the time is made again, at least.
_AGAIN = 0.02


def should_take(server: ServerState, servers: Sequence[ServerState], waiting: int, now: float) -> bool:
    """Return whether a server should take the next row: not if others will sooner have finished all that wait.

    Args:
        server: with room for a request.
        servers: all of them.
        waiting: rows that wait, this one included.
        now: the time.
    """
    seconds = _CLEARLY * _seconds_to_answer(server, waiting)
    if not seconds:
        return True
    for other in servers:
        if other is not server and other.in_service:
            waiting -= _rows_finished(other, seconds, now)
            if waiting <= 0:
                return False
    return True


def overdue(server: ServerState, servers: Sequence[ServerState], now: float) -> InFlight | float:
    """Return the request of another server whose row this one should be sent, too, since nothing else is left to send.

    Args:
        server: with room for a request.
        servers: all of them.
        now: the time.

    Returns:
        The request, or the time when to ask again; 0 if nothing is in flight that may be sent twice.
    """
    again, own = 0.0, _request_seconds(server)
    for other in servers:
        if other is server:
            continue
        # One that has answered nothing yet is expected to be as fast as this one. What is overdue takes about as long
        # again as it took, and the copy must be sooner.
        patience = max(_OVERDUE * (_request_seconds(other) or own), own) if other.in_service else -inf
        for sent in other.in_flight:
            item = sent.item
            if item.copies > 1 or item.exclusive or item.variant.fallback or item.only >= 0 or not patience:
                continue
            due = sent.sent_at + patience
            if due <= now:
                return sent
            again = min(again or due, due)
            break  # the others were sent later
    return again


def look_again(server: ServerState, now: float) -> float:
    """Return when a server that took no row decides anew, though nothing may have changed but the time."""
    return now + max(_AGAIN, _request_seconds(server) / 4)


def rows_to_read(servers: Sequence[ServerState]) -> int:
    """Return how many rows must be queued, so that no server waits for the input and none takes a row too many.

    In the time in which the slowest of them answers a request, all others must find rows.
    """
    if len(servers) == 1:
        return servers[0].concurrency.target * servers[0].pack.size
    working = [server for server in servers if not server.left_out]
    rows = sum(server.concurrency.target * server.pack.size for server in working)
    known = [server for server in working if server.row_seconds and server.in_service]
    if len(known) < 2:
        return rows
    slowest = max(_request_seconds(server) for server in known)
    return max(rows, int(slowest * sum(_slots(server) / server.row_seconds for server in known)))


def _slots(server: ServerState) -> float:
    """Return how many requests the server works on at a time."""
    return max(1.0, server.in_flight_limit * (1 - server.queued_share))


def _request_seconds(server: ServerState) -> float:
    return server.row_seconds * server.pack.size


def _seconds_to_answer(server: ServerState, waiting: int) -> float:
    """Return the expected time of a request that is sent now; 0 if unknown."""
    slots = _slots(server)
    wait = max(0.0, len(server.in_flight) + 1 - slots) / slots
    return server.row_seconds * min(server.pack.size, waiting) * (1 + wait)


def _rows_finished(server: ServerState, seconds: float, now: float) -> int:
    """Return how many of the rows that wait the server would have finished after so many seconds."""
    request = _request_seconds(server)
    if not request:
        return 0
    slots, stalled = _slots(server), 0
    for sent in server.in_flight:
        if now - sent.sent_at < _OVERDUE * request:
            break
        stalled += 1
    slots -= stalled
    if slots < 1 or seconds < request:
        return 0
    free = slots - (len(server.in_flight) - stalled)
    return max(0, int(free + slots * (seconds / request - 1))) * server.pack.size
