"""Which rows are asked: what the journal knows of them decides, and what the user wants of this run."""

from enum import Enum, auto
from typing import Literal

from ollama_provider.batch.journal import State

#: ``merge`` asks nothing: it only puts together what the shards of a batch have.
Mode = Literal["all", "failed_only", "merge"]


class Choice(Enum):
    """What to do with a row that was just read."""

    RUN = auto()
    #: Its outcome is there, or on its way.
    REUSE = auto()
    #: Leave it alone: it has no outcome, and only failed rows were asked for.
    SKIP = auto()


def choose(state: State, mode: Mode) -> Choice:
    """Decide from what the journal knows of the row's key."""
    match state:
        case State.NEW:
            return Choice.RUN if mode == "all" else Choice.SKIP
        case State.FAILED_BEFORE:
            return Choice.REUSE if mode == "merge" else Choice.RUN
        case _:
            return Choice.REUSE
