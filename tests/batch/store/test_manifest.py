"""``batch.json``: read strictly, and refused with what is wrong and what to do."""

import json

import pytest

from ollama_provider.batch.errors import StorageError

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
