"""Uploading files for a model that is to be created."""

import hashlib

import pytest

from ollama_provider.api.errors import BadRequestError, BlobNotFoundError, ConnectionBrokenError, InvalidRequestError
from ollama_provider.api.events import AttemptFailed
from ollama_provider.api.schemas import HeadBlobRequest, PushBlobRequest
from ollama_provider.testing import CutUpload

PIECES = [b"GGUF", *(bytes([number]) * 100_000 for number in range(50))]
DIGEST = "sha256:" + hashlib.sha256(b"".join(PIECES)).hexdigest()
UPLOAD = PushBlobRequest(digest=DIGEST, size=sum(map(len, PIECES)), source=lambda: PIECES)


def test_a_blob_is_there_once_it_was_uploaded(on, ollama):
    """The question whether the server has it is answered by success or `BlobNotFoundError`."""
    with pytest.raises(BlobNotFoundError):
        on.send(HeadBlobRequest(digest=DIGEST), base_url=ollama.url)

    on.send(UPLOAD, HeadBlobRequest(digest=DIGEST), UPLOAD, base_url=ollama.url)


def test_an_upload_that_breaks_off_is_begun_anew(on, ollama):
    """The connection breaks while bytes are still being sent; the next attempt sends them all."""
    ollama.stand_in.script(CutUpload(after=300_000), CutUpload(after=1), path="blobs")

    on.send(UPLOAD, HeadBlobRequest(digest=DIGEST), base_url=ollama.url)

    failures = [event.error for event in on.events if isinstance(event, AttemptFailed)]
    assert [type(error) for error in failures] == [ConnectionBrokenError, ConnectionBrokenError]


def test_of_an_upload_that_never_succeeds_nothing_is_left(on, ollama):
    """The server keeps no part of a blob."""
    ollama.stand_in.script(CutUpload(after=300_000), path="blobs")

    with pytest.raises(ConnectionBrokenError):
        on.send(UPLOAD, base_url=ollama.url, max_attempts=1)
    with pytest.raises(BlobNotFoundError):
        on.send(HeadBlobRequest(digest=DIGEST), base_url=ollama.url)


def test_bytes_of_another_digest_are_refused(on, ollama):
    """The server says what it got instead, and keeps nothing."""
    other = "sha256:" + "1" * 64

    with pytest.raises(BadRequestError, match="digest mismatch"):
        on.send(PushBlobRequest(digest=other, size=5, source=lambda: [b"hello"]), base_url=ollama.url)
    with pytest.raises(BlobNotFoundError):
        on.send(HeadBlobRequest(digest=other), base_url=ollama.url)


def test_what_is_no_digest_is_refused():
    """Only ``sha256:`` and 64 hex digits make a path."""
    with pytest.raises(InvalidRequestError, match="digest"):
        HeadBlobRequest(digest="sha256:../../etc/passwd")


def test_the_timeout_grows_with_the_size():
    """A hundred gigabytes may take a day, a few bytes may not."""
    small, large = (
        PushBlobRequest(digest=DIGEST, size=size, source=list).read_timeout for size in (10, 100_000_000_000)
    )

    assert small < 600
    assert large > 24 * 3600
