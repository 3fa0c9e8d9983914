"""Few items that stand for many."""

import pytest

from ollama_provider.batch.report.samples import Reservoir, distribution


def reservoir(size, numbers):
    found = Reservoir(size)
    for number in numbers:
        found.offer(number)
    return found.items


def test_few_are_all_kept():
    """And nothing is made up where there is nothing."""
    assert reservoir(10, range(7)) == list(range(7))
    assert reservoir(10, []) == []
    assert distribution("x", "", []) is None


def test_each_of_many_has_the_same_chance():
    """The mean of a fair sample is near that of all, and so are its quarters; the same again the next time."""
    items = reservoir(2000, range(100_000))

    assert len(set(items)) == 2000
    for quarter in range(4):
        inside = [item for item in items if quarter * 25_000 <= item < (quarter + 1) * 25_000]
        assert len(inside) == pytest.approx(500, abs=80)
    assert reservoir(2000, range(100_000)) == items


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
