"""Whether and when Airflow tries a task again that has met an Ollama error (Airflow 3.3).

    from ollama_provider.retry_policy import OLLAMA_RETRY_POLICY

    @task(retries=5, retry_policy=OLLAMA_RETRY_POLICY)
    def ask() -> str:
        with OllamaHook() as hook:
            return hook.generate("Why is the sky blue?").text

It is for tasks that call the hook themselves. This package's operators decide the same on every Airflow: they raise
`AirflowFailException` for what trying again cannot mend.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ollama_provider.api.errors import OllamaError

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError as error:
    raise ImportError(
        "OLLAMA_RETRY_POLICY needs Airflow 3.3. Before, raise AirflowFailException for an OllamaError that is not "
        "retryable, as the operators of this package do"
    ) from error

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class OllamaRetryPolicy(RetryPolicy):
    """Decide by the error: what trying again cannot mend fails at once, and what a proxy asked for is waited for.

    An exception that has nothing to do with Ollama is left to the task's own ``retries`` and ``retry_delay``, and so
    is the delay unless the server named one.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002  # Airflow's signature
        max_tries: int,  # noqa: ARG002
        context: "Context | None" = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Return the decision, with the error's text as its reason."""
        error = _ollama_error(exception)
        if error is None:
            return RetryDecision.default()
        if not error.retryable:
            return RetryDecision.fail(reason=str(error))
        delay = None if error.retry_after is None else timedelta(seconds=error.retry_after)
        return RetryDecision.retry(delay=delay, reason=str(error))

    def serialize(self) -> dict[str, Any]:
        """Return what tells it from other policies; it has no settings."""
        return {"__type": "OllamaRetryPolicy"}


def _ollama_error(exception: BaseException | None) -> OllamaError | None:
    """Return the error behind an exception: itself, or what it was raised for."""
    while exception is not None and not isinstance(exception, OllamaError):
        exception = exception.__cause__ or exception.__context__
    return exception


OLLAMA_RETRY_POLICY = OllamaRetryPolicy()
