"""A server that cannot be used: what the log says, when it is tried again, and the error when no server is left."""

import asyncio
import logging
from collections.abc import Sequence

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import ModelChangedError, NoServerError
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.results.progress import Counters
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.scheduling.servers import ServerState
from ollama_provider.batch.scheduling.steps import Verdict

logger = logging.getLogger(__name__)


async def wait_after_failure(scheduler: Scheduler, state: ServerState, error: OllamaError | ModelChangedError) -> None:
    """Wait until a server that is not in service is to be tried again; return at once if it is left out.

    Args:
        scheduler: holds the plan.
        state: of the server.
        error: of the check of the server, or of the load of its model.

    Raises:
        NoServerError: no server was in service for ``failures.max_outage``, or all are left out.
    """
    loop = asyncio.get_running_loop()
    plan = scheduler.plan
    if plan.not_joined(state, error, loop.time()) is Verdict.STOP:
        plan.closed = True
        raise stop_error(plan, error)
    if state.left_out:
        log_left_out(state)
        return
    log_pause(plan, state, error)
    while loop.time() < state.paused_until and not scheduler.finished:
        await scheduler.wait(state.paused_until)


def stop_error(plan: Plan, error: Exception) -> Exception:
    """Return the error that ends the run: that of the only server, or one that lists all servers.

    Args:
        plan: that stopped.
        error: the last one.
    """
    if len(plan.servers) == 1:
        return error
    return NoServerError(
        "None of the servers can be used",
        {server.name: server.reason for server in plan.servers},
        retryable=not all(server.left_out for server in plan.servers),
    )


def leave_out_changed(
    scheduler: Scheduler, counters: Counters, url: str, reason: str, discarded: Sequence[tuple[WorkItem, Outcome]]
) -> Exception | None:
    """Leave a server out whose model has changed, and give its rows to the others.

    Args:
        scheduler: holds the plan.
        counters: of the run.
        url: of the server.
        reason: for log and summary.
        discarded: rows that it answered and whose outcomes are discarded.

    Returns:
        The error that ends the run if no server is left.
    """
    plan = scheduler.plan
    state = next(server for server in plan.servers if server.name == url)
    verdict = plan.leave_out(state, reason)
    state.reason = reason  # it may have been left out before, but its answers are discarded for this one
    log_left_out(state)
    for _, outcome in discarded:
        counters.remove(outcome)
    for sent in plan.take_back(state, discarded):
        if (waiting := scheduler.waiting.get(sent)) is not None:  # else the run has ended, and its workers with it
            waiting.cancel()
    scheduler.notify()
    if verdict is not Verdict.STOP:
        return None
    plan.closed = True
    return stop_error(plan, ModelChangedError(reason))


def log_left_out(state: ServerState) -> None:
    """Warn that a server gets no rows for the rest of the run."""
    logger.warning("Server %s is left out of this run: %s", state.name, state.reason)


def log_pause(plan: Plan, state: ServerState, error: Exception) -> None:
    """Warn that a server gets no rows for a while."""
    if len(plan.servers) == 1:
        logger.warning(
            "Server unavailable, pausing all requests for %.0f s (no row loses an attempt): %s", state.pause, error
        )
    else:
        logger.warning(
            "Server %s is unavailable, trying it again in %.0f s; other servers get its rows (no row loses an "
            "attempt): %s", state.name, state.pause, error,
        )  # fmt: skip
