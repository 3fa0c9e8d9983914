"""The model decides what happens to a mail: one of three tasks is run, the other two are skipped.

The names and docstrings of the tasks are all that the model is told about them. Trigger it with a ``mail`` of your own.
If the model is not there, or says nothing that fits, somebody reads the mail.
"""

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, task

with DAG(
    "ollama_route_mails",
    description="A model chooses the task that a mail needs",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"model": "llama3.2", "mail": "The coffee machine arrived broken. I want my money back."},
    tags=["ollama"],
):
    # [start branch]
    @task.ollama_branch(
        model="{{ params.model }}",
        system="You read the mails of customers of a shop.",
        options={"temperature": 0, "num_predict": 50},
        default="read_it",
    )
    def route() -> str:
        """Return the prompt."""
        return "{{ params.mail }}"

    @task
    def refund() -> str:
        """Pay the money back: the customer returns something, or it came broken."""
        return "paid back"

    @task
    def send_manual() -> str:
        """Send the manual: the customer does not know how to use something."""
        return "sent"

    @task
    def read_it() -> str:
        """Show the mail to a person: anything else, and every threat and praise."""
        return "shown"

    route() >> [refund(), send_manual(), read_it()]
    # [end branch]
