"""Who is to blame for a failure that the error's class leaves open: the row or the server.

No network and no clock. One server alone is judged by what it answers in between; with others in service, also by what
they answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_provider.api.errors import (
    BadRequestError,
    Blame,
    ConnectTimeoutError,
    FirstTokenTimeoutError,
    IdleTimeoutError,
    OllamaError,
    OutOfMemoryError,
    OverloadedError,
    RunnerError,
    UnknownServerError,
    UnreachableError,
)
from ollama_provider.batch.requests.work_item import WorkItem
from ollama_provider.batch.scheduling.servers import InFlight, ServerState, others_in_service

#: A row is to blame itself after so many failures of a server with it, if the server answers other rows in between;
#: and only if so many in a row are less probable than this, given the share of other rows that servers failed with.
_SERVER_FAILURES, _CHANCE = 5, 1e-6
#: A row is to blame itself after so many servers failed with it, one after the other, the last while it had no other.
_SERVERS_FAILED = 3
#: So many crashes with different rows, and no good reply in between, are the fault of the server if others work.
_CRASHES = 3


@dataclass
class BlameRules:
    """Tells failures of rows from failures of servers.

    Attributes:
        servers: all of them, by their index.
        rows_sent: rows that were sent, each counted once.
        rows_hit: of these, the rows that a server has failed with.
    """

    servers: Sequence[ServerState]
    rows_sent: int = 0
    rows_hit: int = 0

    def is_of_server(self, sent: InFlight, error: OllamaError) -> bool:
        """Return whether a failure is put down to the server, and not to the row."""
        item, server = sent.item, sent.server
        if error.blame is not Blame.REQUEST:
            return not self._row_is_to_blame(sent, error)
        if not others_in_service(server, self.servers):
            return False
        if isinstance(error, RunnerError | OutOfMemoryError | UnknownServerError):
            # All that were in flight when it crashed are one crash, and so are all attempts of one row.
            server.crashes += sent.number > server.crashed_at and item is not server.crashed_with
            server.crashed_at, server.crashed_with = server.sends, item
            is_of_server = server.crashes >= _CRASHES
        elif isinstance(error, FirstTokenTimeoutError | IdleTimeoutError):
            is_of_server = item.failed_at < 0 and server.answers == sent.answers
        else:  # the server may be too old for these requests
            is_of_server = type(error) is BadRequestError and item.failed_at < 0 and not server.ok
        if is_of_server:
            self.note_server_failed(item, server, error)
        return is_of_server

    def _row_is_to_blame(self, sent: InFlight, error: OllamaError) -> bool:
        """Return whether a server fails because of this row: again and again with it, far more than with others."""
        item = sent.item
        if isinstance(error, OverloadedError):  # no row makes a server busy
            return False
        self.rows_hit += item.failed_at < 0 and not item.rest
        self.note_server_failed(item, sent.server, error)
        if item.rest:  # a pack is only halved, which costs no attempt
            return item.server_failures > 0
        if self.has_failed_servers(item) and sent.alone:
            return True
        share = (self.rows_hit - 1) / max(self.rows_sent - 1, 1)
        return item.server_failures >= _SERVER_FAILURES and share**item.server_failures < _CHANCE

    def note_server_failed(self, item: WorkItem, server: ServerState, error: OllamaError) -> None:
        """Remember that a server failed with an item."""
        if item.failed_at >= 0:
            item.server_failures += self.servers[item.failed_at].answers > item.answers_seen
        # A server that takes no connection has not seen the row.
        if item.failed_at != server.index and type(error) not in {UnreachableError, ConnectTimeoutError}:
            item.servers_failed += 1
            if item.servers_failed > 1:  # it may be what brought both down: no third one is risked while others wait
                item.exclusive, item.only = True, server.index
        item.failed_at, item.answers_seen = server.index, server.answers

    @staticmethod
    def has_failed_servers(item: WorkItem) -> bool:
        """Return whether so many servers failed with a row that no other one is risked for it."""
        return item.servers_failed >= _SERVERS_FAILED
