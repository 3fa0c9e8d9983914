"""OLLAMA_RETRY_POLICY: the decisions on Airflow 3.3, and the ImportError on older versions."""

import importlib
import subprocess
import sys
from datetime import timedelta

import airflow
import pytest
from airflow.providers.common.compat.sdk import AirflowException

from ollama_provider.api.errors import AuthenticationError, OverloadedError, PullError
from ollama_provider.operators._base import airflow_errors

SINCE_3_3 = tuple(map(int, airflow.__version__.split(".")[:2])) >= (3, 3)
NAME = "ollama_provider.retry_policy"


@pytest.mark.skipif(SINCE_3_3, reason="is about Airflow before 3.3")
def test_older_airflows_say_what_to_do_instead():
    """At the import, in a DAG file that was written for another Airflow."""
    with pytest.raises(ImportError, match=r"needs Airflow 3\.3.*AirflowFailException"):
        importlib.import_module(NAME)


def test_only_who_asks_for_it_loads_it():
    """Older Airflows can import all the rest."""
    code = f"""
import sys
import ollama_provider.decorators, ollama_provider.hooks, ollama_provider.sensors, ollama_provider.triggers
print("loaded:", {NAME!r} in sys.modules)
"""

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert shown.splitlines()[-1] == "loaded: False"


@pytest.mark.skipif(not SINCE_3_3, reason="Airflow has retry policies since 3.3")
class TestPolicy:
    def decide(self, exception: BaseException):
        return importlib.import_module(NAME).OLLAMA_RETRY_POLICY.evaluate(exception, 1, 3)

    @pytest.mark.parametrize("error", [AuthenticationError("401", host="http://gpu1"), PullError("no such model")])
    def test_what_is_hopeless_fails_at_once_and_says_why(self, error):
        """Three more tries would end in the same way."""
        decision = self.decide(error)

        assert decision.action.value == "fail"
        assert decision.reason == str(error)

    def test_what_may_pass_is_tried_again_when_the_task_says(self):
        """Its retry_delay holds."""
        decision = self.decide(OverloadedError("503"))

        assert (decision.action.value, decision.retry_delay) == ("retry", None)

    def test_the_delay_of_retry_after_is_used(self):
        """A proxy's Retry-After."""
        assert self.decide(OverloadedError("503", retry_after=90)).retry_delay == timedelta(seconds=90)

    def test_the_error_behind_an_operators_exception_counts(self):
        """Operators raise Airflow's exceptions."""
        with pytest.raises(AirflowException) as caught, airflow_errors():
            raise OverloadedError("503", retry_after=90)

        assert self.decide(caught.value).retry_delay == timedelta(seconds=90)

    def test_other_exceptions_are_none_of_its_business(self):
        """The task's own settings hold."""
        assert self.decide(KeyError("x")).action.value == "default"

    def test_it_works_in_a_task(self, run_dag, ollama, ollama_conn):
        """Airflow asks it: one try, though three more were allowed."""
        run = run_dag("""
from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import DAG, task
from ollama_provider.hooks import OllamaHook
from ollama_provider.retry_policy import OLLAMA_RETRY_POLICY

with DAG("policy", schedule=None, start_date=datetime(2026, 1, 1)):

    @task(retries=3, retry_delay=timedelta(0), retry_policy=OLLAMA_RETRY_POLICY)
    def ask() -> str:
        with OllamaHook(auto_pull=False) as hook:
            return hook.generate("Hi", model="nonesuch").text

    ask()
""")

        (instance,) = run.get_task_instances()
        assert (str(instance.state), instance.try_number) == ("failed", 1)
