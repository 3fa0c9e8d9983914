"""What the engine needs of an endpoint: how to ask for rows, and what the replies are worth.

`Generate` and `Chat` (`tasks.py`, judged in `replies.py`) and `Embed` (`embedding.py`) are such.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ollama_provider.api.errors import OllamaError
from ollama_provider.api.schemas import Options, Request
from ollama_provider.batch.forms import Form
from ollama_provider.batch.records import Outcome
from ollama_provider.batch.tickets import Ticket


class Task(Protocol):
    """How to ask for rows."""

    @property
    def model(self) -> str:
        """Name to ask for, without digest."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What the model must be able to do, in the words of ``/api/show``."""

    @property
    def sent_options(self) -> Options:
        """The options with the context that was chosen."""

    @property
    def schema(self) -> Any:
        """The schema of an answer, as plain data; None where there is none."""

    def identity(self) -> Mapping[str, Any]:
        """Return what bears on the answer, as plain data, but prompt, images, model and schema."""

    def goes_alone(self, prompt: str) -> bool:
        """Tell whether a row shall not share its request."""

    def request(self, ticket: Ticket) -> Request[Any]:
        """Return the request for a ticket and its riders."""

    def load(self) -> Request[Any]:
        """Return the request that only loads the model, with the options of the run."""


class Judge(Protocol):
    """What replies are worth. A reply is of the kind that the task's requests have."""

    def accept(self, ticket: Ticket, request: Any, reply: Any, seconds: float) -> list[Outcome]:
        """Return the outcomes of a good reply: the ticket's and its riders'.

        Raises:
            RejectedReplyError: it is no good.
        """

    def reject(self, ticket: Ticket, error: OllamaError, reply: Any, seconds: float) -> Outcome:
        """Return the outcome of a row that failed for good; *reply* is None if none came."""

    def another_form(self, ticket: Ticket, error: OllamaError, reply: Any) -> Form | None:
        """Return the form in which the row is to be asked at once again; None if that is no help."""

    def revalidate(self, key: str, line: Mapping[str, Any]) -> tuple[Outcome, str] | None:
        """Judge a kept raw reply anew.

        Args:
            key: of the work with the new schema.
            line: of a part, with the reply and its provenance.

        Returns:
            The outcome and what it has in common with those of its run, or None: the row must be asked.
        """

    def is_final(self, error: OllamaError) -> bool:
        """Tell whether the row has failed for good, whatever attempts are left."""

    def ends_batch(self, error: OllamaError, *, answered: bool) -> bool:
        """Tell whether the batch ends because of this one row; *answered* says that another one got a good answer."""
