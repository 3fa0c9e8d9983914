"""What makes two rows the same work, and the compact table of keys, which behaves like a dict."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.batch.store.keys import Index, Keys

REQUEST = {"task": "generate", "options": {"seed": 1}, "system": None, "think": False}
KEYS = st.binary(min_size=16, max_size=16)


@pytest.fixture
def keys():
    return Keys("digest", REQUEST)


class TestTheKeyIsTheWork:
    """The first promise of the journal."""

    def test_the_same_work_has_the_same_key(self, keys):
        """Two runs agree on the key, in whatever order options were given."""
        again = Keys("digest", dict(reversed(REQUEST.items())))

        assert keys.key("a") == again.key("a")
        assert len(keys.key("a")) == 16

    @pytest.mark.parametrize(
        "change",
        [{"options": {"seed": 2}}, {"options": {}}, {"system": "Be brief."}, {"think": True}, {"task": "chat"}],
        ids=str,
    )
    def test_whatever_bears_on_the_answer_makes_another_key(self, keys, change):
        """Options, system message, reasoning and endpoint are part of the work."""
        assert Keys("digest", REQUEST | change).key("a") != keys.key("a")

    def test_digest_prompt_and_images_make_another_key(self, keys):
        """So are the weights, the prompt and the images, and no two of them can be taken for one another."""
        found = {
            Keys("other", REQUEST).key("a"),
            keys.key("a"),
            keys.key("b"),
            keys.key(""),
            keys.key("a", ["b"]),
            keys.key("ab"),
            keys.key("a", ["b", "c"]),
            keys.key("a", ["bc"]),
            keys.without_request("a"),
        }

        assert len(found) == 9

    def test_half_a_surrogate_pair_has_a_key(self, keys):
        """Also a text that cannot be sent is told apart from others."""
        assert keys.without_request("\ud800") != keys.without_request("\ud801")


@given(st.lists(KEYS | st.integers(0, 50).map(lambda number: number.to_bytes(16, "little"))))
def test_it_numbers_keys_in_the_order_of_their_first_appearance(keys):
    """Each key has one number, also keys that collide; values stay with their numbers."""
    index, model = Index(), {}
    for key in keys:
        assert index.find(key) == model.get(key)
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
    assert [index.find(key) for key in keys] == list(range(10_000))


_TEXTS = st.text(st.characters(codec="utf-16", exclude_categories=[]) | st.sampled_from("pu1:\0\ud800"), max_size=8)
_ROWS = st.tuples(_TEXTS, st.lists(_TEXTS, max_size=3))


@given(_ROWS, _ROWS, st.booleans())
def test_two_rows_have_one_key_if_and_only_if_they_are_the_same_work(first, second, has_schema):
    """However their texts are divided between prompt and images; with a schema there are two keys, and they differ."""
    keys = Keys("digest", REQUEST, {"type": "object"} if has_schema else None)
    (key, request_key), (other, other_request_key) = (keys.key_and_request_key(*row) for row in (first, second))

    assert (key == other) == (first == second)
    assert (request_key == other_request_key) == (first == second or not has_schema)
    assert key != request_key
    assert keys.without_request(first[0]) != key


@given(st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4), max_size=4), st.randoms())
def test_the_order_of_the_request_plays_no_part(request, random):
    """It comes from dicts, and out of JSON."""
    items = list(request.items())
    random.shuffle(items)

    assert Keys("d", dict(items)).key("a") == Keys("d", json.loads(json.dumps(request))).key("a")
