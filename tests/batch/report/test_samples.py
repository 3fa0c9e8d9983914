"""What some values say about all."""

import pytest

from ollama_provider.batch.report.samples import distribution


def test_nothing_is_made_up_where_there_is_nothing():
    """No values, no distribution."""
    assert distribution("x", "", []) is None


def test_a_distribution():
    """Percentiles are values that occurred; the last bar has what lies far out."""
    found = distribution("Tokens", "", [*range(1, 100), 10_000])

    assert (found.median, found.p95, found.p99) == (51, 96, 10_000)
    far = distribution("Tokens", "", [*range(1000), 10**9])
    assert far.edges[-1] == 990
    assert sum(far.bars) == pytest.approx(1)
    assert far.bars[-1] > far.bars[-2]


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0, 0.0]])
def test_equal_values_have_a_distribution(values):
    """With one bar."""
    found = distribution("Seconds", "s", values)

    assert (found.median, found.p95) == (values[0], values[0])
    assert sum(found.bars) == 1
