"""The plan over several servers, in simulated nights."""

import pytest

from ollama_provider.api.errors import (
    BadRequestError,
    FirstTokenTimeoutError,
    GatewayError,
    RunnerError,
    UnknownServerError,
)
from ollama_provider.batch.arguments import FailurePolicy
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.concurrency import ConcurrencyLimit, PackSize
from ollama_provider.batch.scheduling.plan import Plan
from ollama_provider.batch.scheduling.servers import ServerState
from ollama_provider.batch.scheduling.steps import Do

from .simulation import Machine, Simulation, machines


def run(servers, rows, **given):
    """Run a batch of which every row must be answered once."""
    found = Simulation(servers, rows, **given).run()
    assert found.stopped is None
    assert set(found.answers) == {1}
    assert found.failed == []
    return found


class TestShares:
    def test_each_server_has_rows_in_proportion_to_its_speed(self):
        """Its speed is measured, and so is the number of its slots."""
        found = run(machines(4, slowest=0.8, fastest=0.1), 4000)

        share = [
            server.ok / machine.capacity(1.0) for server, machine in zip(found.servers, found.machines, strict=True)
        ]
        assert max(share) < 1.1 * min(share)

    @pytest.mark.parametrize(
        "servers",
        [
            [(0.2, 4), (0.4, 2), (0.1, 8)],
            [(0.2, 1)],
            [(0.2, 4), (0.2, 4)],
            [(0.1, 1), (1.6, 1)],
            [(0.1, 8), (3.0, 1)],
        ],
        ids=str,
    )
    def test_the_slots_are_busy_to_the_end(self, servers):
        """A slow server takes none of the last rows that others would sooner have finished."""
        found = run([Machine(*each) for each in servers], 3000)

        assert found.finished_at < 1.03 * found.ideal()

    def test_a_slow_server_that_would_be_last_takes_no_row(self):
        """Eight rows are nothing for the fast one."""
        found = Simulation([Machine(0.1, 4), Machine(60.0, 1)], 8)
        for server, seconds in zip(found.servers, (0.1, 60.0), strict=True):
            server.row_seconds = seconds
        found.run()

        assert [server.sends for server in found.servers] == [8, 0]

    def test_an_unknown_server_is_tried(self):
        """How slow it is shows only when it has answered; the others help with its rows in the end."""
        found = run([Machine(0.1, 4), Machine(60.0, 1)], 1000)

        assert found.servers[1].sends >= 1
        assert found.finished_at < 60


class TestOutages:
    def test_many_servers_fail_and_come_back(self):
        """No row is lost or answered twice, and only what was in flight is sent again."""
        servers = machines(16)
        for number, machine in enumerate(servers[::3]):
            machine.outages = ((3.0 + number, 8.0 + 2 * number), (25.0 + number, 26.0 + number))

        found = run(servers, 10_000)

        assert sum(found.requests) - 10_000 < 12 * 2 * 12
        assert found.finished_at < 1.1 * found.ideal()

    def test_a_server_is_back_at_its_share_soon(self):
        """Ten seconds after it came up, it has as many rows in flight as before."""
        servers = [Machine(0.2, 4), Machine(0.2, 4, outages=((20.0, 40.0),)), Machine(0.2, 4)]
        found = Simulation(servers, 4000)
        seen = []
        found._at(19.0, lambda: seen.append(len(found.servers[1].in_flight)))
        found._at(50.0, lambda: seen.append(len(found.servers[1].in_flight)))
        found.run()

        assert set(found.answers) == {1}
        assert seen[1] >= seen[0] - 1 >= 3

    def test_the_batch_waits_while_no_server_is_left(self):
        """And goes on when one of them is back."""
        down = ((10.0, 200.0),)
        found = run([Machine(0.2, 4, outages=down), Machine(0.2, 4, outages=down)], 2000)

        assert found.finished_at > 200

    def test_the_batch_ends_after_max_outage_of_no_server(self):
        """Counted from when the last of them went."""
        servers = [Machine(0.2, 4, outages=((10.0, 1e9),)), Machine(0.2, 4, outages=((100.0, 1e9),))]
        found = Simulation(servers, 20_000, failures=FailurePolicy(max_outage=300)).run()

        assert found.stopped is not None
        assert 400 <= found.now < 440

    def test_a_server_that_stalls_in_the_end_holds_nothing_back(self):
        """Its last rows are given to the others, whose answers count."""
        found = run(
            [Machine(0.2, 4), Machine(0.2, 4, stalls=20.0)], 1000, limit=lambda machine: ConcurrencyLimit.fixed(4)
        )

        assert found.servers[1].discarded == 4
        assert sum(found.requests) <= 1000 + 4 + 2

    def test_a_silent_server_costs_no_row_an_attempt(self):
        """It answers nothing, and the row that met it first is answered elsewhere."""
        servers = [Machine(0.2, 4), Machine(0.2, 4)]
        found = run(
            servers,
            500,
            fails=lambda number, machine: FirstTokenTimeoutError("silent") if machine is servers[1] else None,
            failures=FailurePolicy(max_attempts=1),
        )

        assert found.servers[1].sends < 50


class TestRowsAndServersToBlame:
    @pytest.mark.parametrize(
        "error", [RunnerError("no GPU"), UnknownServerError("500"), BadRequestError("400"), GatewayError("502")]
    )
    def test_a_server_that_answers_every_row_with_an_error_costs_none(self, error):
        """It would be the fastest of all: its errors are put down to it, and others answer the rows."""
        servers = [Machine(0.2, 4), Machine(0.001, 4), Machine(0.2, 4)]
        found = run(servers, 2000, fails=lambda number, machine: error if machine is servers[1] else None)

        assert found.servers[1].sends < 100

    def test_a_row_that_crashes_every_model_goes_to_two_servers_at_most(self):
        """The second time it is alone, and stays with that server until its attempts are used up."""
        crashed = []

        def fails(number, machine):
            if number != 500:
                return None
            crashed.append(machine)
            return RunnerError("crashed")

        found = Simulation(machines(5), 2000, fails=fails).run()

        assert found.failed == [500]
        assert sum(found.answers) == 1999
        assert len(set(crashed)) <= 2

    @pytest.mark.parametrize("seconds", [3.0, 1e9])
    def test_a_row_that_brings_down_servers_does_not_bring_down_all(self, seconds):
        """After two of them it waits for the second, or for the end, when nothing else can be harmed by it."""
        found = Simulation(machines(8), 3000, killers={700: seconds}).run()

        assert found.stopped is None
        assert sum(found.answers) == 2999
        assert found.failed == [700]
        assert len(set(found.killed[700])) <= 3


def test_thousands_of_rows_for_another_server_wait_for_it():
    """After outages of many servers there may be so many rows that no third server may get."""
    servers = [
        ServerState(number, f"http://gpu{number}", ConcurrencyLimit.fixed(4), PackSize(1, settled=True))
        for number in range(3)
    ]
    plan = Plan(FailurePolicy(), servers)
    plan.queue.new.extend(WorkItem(number, "text", exclusive=True, only=1 + number % 2) for number in range(3000))

    assert plan.next(servers[0], 0.0, more=True).do is Do.IDLE
    assert plan.next(servers[1], 0.0, more=False).sent.item.number == 0
    assert plan.next(servers[2], 0.0, more=False).sent.item.number == 1
    assert plan.unfinished == 3000
