"""Files for ``/api/create``: the server keeps them by their SHA-256, so what it has need not be sent again."""

from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar

from pydantic import Field

from ollama_provider.api.schemas.base import Reply, Request
from ollama_provider.api.schemas.models import EmptyReply

#: ``sha256:`` and 64 hex digits.
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class HeadBlobRequest(Request[EmptyReply]):
    """HEAD /api/blobs/:digest (0.1.10): a success says that the server has the blob, `BlobNotFoundError` that not."""

    method: ClassVar[str] = "HEAD"
    path: ClassVar[str] = "/api/blobs/"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = EmptyReply
    answered: ClassVar[bool] = False

    digest: Digest

    @property
    def target(self) -> str:
        """The path with the digest."""
        return self.path + self.digest


class PushBlobRequest(Request[EmptyReply]):
    """POST /api/blobs/:digest (0.1.10): upload a blob; the server checks the digest, and keeps nothing of a part.

    Attributes:
        digest: of the bytes.
        size: their number.
        source: called once for each attempt, gives the bytes in pieces.
    """

    path: ClassVar[str] = "/api/blobs/"
    for_one_server: ClassVar[bool] = True
    reply: ClassVar[type[Reply]] = EmptyReply
    answered: ClassVar[bool] = False

    digest: Digest
    size: int = Field(ge=0, exclude=True)
    source: Callable[[], Iterable[bytes]] = Field(exclude=True)

    @property
    def target(self) -> str:
        """The path with the digest."""
        return self.path + self.digest

    @property
    def read_timeout(self) -> float:  # type: ignore[override]  # a constant elsewhere, here a matter of the size
        """Seconds until the answer, which comes when all bytes are sent and hashed: 1 MB/s at least, and 5 minutes."""
        return 300 + self.size / 1e6

    def body(self) -> Iterable[bytes]:
        """Return the bytes themselves."""
        return self.source()
