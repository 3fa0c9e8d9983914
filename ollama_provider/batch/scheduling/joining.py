"""How servers come into a run: each is checked, and only those whose models are the same get rows.

The run begins with the servers that have answered. One that is down, or that pulls the model, joins when it is ready.
"""

import asyncio
from collections.abc import Sequence

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch.errors import ModelChangedError, NoServerError
from ollama_provider.batch.requests.preflight import Checked
from ollama_provider.batch.requests.selection import difference, reference
from ollama_provider.batch.scheduling.availability import log_left_out, stop_error, wait_after_failure
from ollama_provider.batch.scheduling.connections import Server
from ollama_provider.batch.scheduling.scheduler import Scheduler
from ollama_provider.batch.scheduling.steps import Verdict
from ollama_provider.batch.spec import BatchSpec

#: Seconds to wait for the other servers, once one is checked.
_OTHERS = 5.0


class Joining:
    """Checks the servers of a run, all at once, and again those that fail.

    Args:
        scheduler: holds the plan.
        servers: of the connection, in its order.
        spec: the batch.
    """

    def __init__(self, scheduler: Scheduler, servers: Sequence[Server], spec: BatchSpec) -> None:
        self._scheduler = scheduler
        self._servers = servers
        self._spec = spec
        self._checks: dict[str, asyncio.Task[Checked]] = {}
        self._reference: tuple[str, Checked] | None = None

    async def first(self, earlier: str | None) -> list[tuple[Server, Checked]]:
        """Return the servers that the run begins with, and what they say: those that answer soon, with the same models.

        Args:
            earlier: digest of the model in an earlier run of the batch; None if there is none, or none is known.

        Raises:
            ModelChangedError: there is one server, and a digest is not the demanded one.
            OllamaError: there is one server, and it does not answer, or a model cannot do what is asked.
            NoServerError: the same of all servers, where there are several.
        """
        if len(self._servers) == 1:
            (only,) = self._servers
            return [(only, await only.control.check(self._spec))]
        self._checks = {
            server.state.name: asyncio.create_task(server.control.check(self._spec)) for server in self._servers
        }
        await self._wait_for_some()
        found = {name: check.result() for name, check in self._checks.items() if _is_good(check)}
        if not found:
            raise self._no_server()
        chosen = reference(self._spec, found, earlier)
        self._reference = chosen, found[chosen]
        return [
            (server, found[server.state.name])
            for server in self._servers
            if server.state.name in found and self._is_same(server, found[server.state.name])
        ]

    async def later(self, server: Server) -> Checked | None:
        """Wait until a server can take part that could not when the run began; return what it says.

        Returns:
            None if it is left out, or if nothing is left to do.

        Raises:
            NoServerError: no server was in service for ``failures.max_outage``, or all are left out.
        """
        state, check = server.state, self._checks[server.state.name]
        while not state.left_out and not self._scheduler.finished:
            try:
                checked = await check
            except (OllamaError, ModelChangedError) as error:
                await wait_after_failure(self._scheduler, state, error)
                check = self._checks[state.name] = asyncio.create_task(server.control.check(self._spec))
                continue
            return checked if self._is_same(server, checked) else None
        return None

    def close(self) -> None:
        """Give up the checks that are not done."""
        for check in self._checks.values():
            check.cancel()

    async def _wait_for_some(self) -> None:
        """Wait until all checks are done, or one is good and the others have had some time."""
        loop, pending, end = asyncio.get_running_loop(), set(self._checks.values()), None
        while pending and (end is None or loop.time() < end):
            done, pending = await asyncio.wait(
                pending, timeout=end and end - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            if end is None and any(map(_is_good, done)):
                end = loop.time() + _OTHERS

    def _is_same(self, server: Server, checked: Checked) -> bool:
        """Return whether the models of a server are those of the batch; leave it out if not.

        Raises:
            NoServerError: no other server is left.
        """
        if self._reference is None:
            return True
        reason = difference(self._spec, checked, *self._reference)
        if reason is None:
            return True
        plan = self._scheduler.plan
        verdict = plan.leave_out(server.state, reason)
        log_left_out(server.state)
        if verdict is Verdict.STOP:
            plan.closed = True
            raise stop_error(plan, ModelChangedError(reason))
        return False

    def _no_server(self) -> NoServerError:
        errors = {name: check.exception() for name, check in self._checks.items()}
        for error in errors.values():
            if not isinstance(error, OllamaError | ModelChangedError):
                raise error or AssertionError(f"{self._checks} has a check that is good")
        return NoServerError(
            "None of the servers can be used",
            {name: str(error) for name, error in errors.items()},
            retryable=any(getattr(error, "retryable", False) for error in errors.values()),
        )


def _is_good(check: asyncio.Task[Checked]) -> bool:
    return check.done() and not check.cancelled() and check.exception() is None
