"""Add the logs of Airflow to the report of a failed test."""

from collections.abc import Generator

import pytest

from tests.e2e.stack import Stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of Airflow's components to a failure."""
    report = yield
    if report.failed and isinstance(stack := getattr(item, "funcargs", {}).get("stack"), Stack):
        report.sections.append(("Airflow", stack.report()))
    return report
