"""``batch.json``: read strictly, and refused with what is wrong and what to do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.spec import Names
from ollama_provider.batch.store import manifest
from ollama_provider.batch.store.storage import open_storage

GOOD = {"format": 2, "round": 1, "mode": "all", "num_ctx": None, "settings": {}, "common": None, "provenance": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        *(
            json.dumps(GOOD | wrong).encode()
            for wrong in (
                {"format": "2"},
                {"format": None},
                {"round": "1"},
                {"round": 0},
                {"round": 1.5},
                {"round": [1]},
                {"mode": "some"},
                {"mode": ["all"]},
                {"num_ctx": "4096"},
                {"num_ctx": True},
                {"settings": [1]},
                {"common": "x"},
                {"provenance": {"model": 1}},
                {"provenance": []},
            )
        ),
    ],
)
@pytest.mark.parametrize("mode", ["all", "merge"])
def test_a_damaged_manifest_is_refused(batch, content, mode):
    """It says which file and what is wrong, and what to do."""
    batch.run(["a"])
    (batch.directory / "batch.json").write_bytes(content)

    with pytest.raises(StorageError, match=r"batch.json is damaged \(.+\)\. The parts beside it are good: remove it"):
        batch.run(["a"], mode=mode)
    (batch.directory / "batch.json").unlink()
    assert batch.run(["a"]).complete
    assert len(batch.asked) == 1


def test_a_directory_of_a_later_version_is_refused(batch):
    """Whatever else its manifest says."""
    batch.run(["a"])
    (batch.directory / "batch.json").write_text('{"format": 99, "round": "of another kind"}')

    with pytest.raises(StorageError, match="later version"):
        batch.run(["a"])


_PLAIN = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=3
)


@given(
    st.builds(
        manifest.Manifest,
        st.integers(1, 2**31),
        st.sampled_from(["all", "failed_only", "merge"]),
        st.none() | st.integers(1, 2**40),
        st.none() | _PLAIN,
        st.none() | _PLAIN,
        st.none(),
    )
)
def test_what_is_saved_is_read_again(tmp_path_factory, saved):
    """Whatever the settings are."""
    storage = open_storage(tmp_path_factory.mktemp("manifest"))

    manifest.save(storage, saved, Names())

    assert manifest.read(storage, Names().batch) == saved
