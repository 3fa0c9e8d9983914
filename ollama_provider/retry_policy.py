"""Retry policy for tasks that call the hook themselves (Airflow 3.3): it decides by the class of an `OllamaError`.

    from ollama_provider.retry_policy import OLLAMA_RETRY_POLICY

    @task(retries=5, retry_policy=OLLAMA_RETRY_POLICY)
    def ask() -> str:
        with OllamaHook() as hook:
            return hook.generate("Why is the sky blue?").text

The operators of this package need no policy: on every Airflow they raise `AirflowFailException` for errors that a retry
cannot fix.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ollama_provider.api.errors import OllamaError

try:
    from airflow.sdk import RetryDecision, RetryPolicy
except ImportError as error:  # only on an older Airflow
    raise ImportError(
        "OLLAMA_RETRY_POLICY needs Airflow 3.3. On older versions, raise AirflowFailException for an OllamaError that "
        "is not retryable, as the operators of this package do"
    ) from error

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class OllamaRetryPolicy(RetryPolicy):
    """Fail at once if a retry cannot fix the error; else retry, after the delay that ``Retry-After`` asked for.

    Without ``Retry-After`` the task's own ``retry_delay`` counts. Exceptions that have nothing to do with Ollama are
    left to the task's own ``retries`` and ``retry_delay``.
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
        """Return the serialized policy. It has no settings."""
        return {"__type": "OllamaRetryPolicy"}


def _ollama_error(exception: BaseException | None) -> OllamaError | None:
    """Return the first `OllamaError` among an exception, its cause and its context; None if there is none."""
    while exception is not None and not isinstance(exception, OllamaError):
        exception = exception.__cause__ or exception.__context__
    return exception


OLLAMA_RETRY_POLICY = OllamaRetryPolicy()
