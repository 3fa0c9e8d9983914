"""What a person needs when a test with a real Airflow fails."""

from collections.abc import Generator

import pytest

from tests.e2e.stack import Stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what Airflow's components logged."""
    report = yield
    if report.failed and isinstance(stack := getattr(item, "funcargs", {}).get("stack"), Stack):
        report.sections.append(("Airflow", stack.report()))
    return report
