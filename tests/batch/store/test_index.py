"""The compact index behaves like the dict it replaces."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.batch.store.journal import Index

KEYS = st.binary(min_size=16, max_size=16)


@given(st.lists(KEYS | st.integers(0, 50).map(lambda number: number.to_bytes(16, "little"))))
def test_it_numbers_keys_in_the_order_of_their_first_appearance(keys):
    """Each key has one number, also keys that collide; values stay with their numbers."""
    index, model = Index(), {}
    for key in keys:
        number = index.number(key)
        assert number == model.setdefault(key, len(model))
        index[number] = number * 7

    assert len(index) == len(model)
    assert all(index.key(number) == key and index[number] == number * 7 for key, number in model.items())


def test_it_grows_past_its_first_size():
    """Ten thousand keys, all found again after the table was made larger several times."""
    index = Index()
    keys = [number.to_bytes(8, sys.byteorder) + bytes(8) for number in range(10_000)]

    assert [index.number(key) for key in keys] == list(range(10_000))
    assert [index.number(key) for key in keys] == list(range(10_000))
