"""Compressed answers. They are not asked for, but some proxies compress whatever passes. No network, no clock."""

import zlib
from collections.abc import Iterator

import httpx

#: Bytes given out at a time: a small answer may hold a thousand times its size, and must not fill the memory at once.
PIECE = 64 * 1024

_GZIP, _RAW = b"\x1f\x8b", -zlib.MAX_WBITS


class BrokenAnswer(httpx.ReadError):
    """An answer began as HTTP and is broken: a damaged header, chunk, length or compression."""


class UnknownEncoding(httpx.DecodingError):
    """An answer is compressed in a way that cannot be read here; the text is the name of that way."""


class Unpacker:
    """Decompresses one answer, gzip or deflate."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its head says
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes, give what they hold, in pieces.

        Raises:
            BrokenAnswer: they are not compressed, or damaged.
        """
        more = bool(data)
        while more:
            try:
                piece = self._decompress(data)
            except zlib.error as error:
                raise BrokenAnswer("the compression of the answer is broken") from error
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            more = bool(data) or len(piece) == PIECE
            if self._inflate.eof:
                data = self._inflate.unused_data
                if more := data.startswith(_GZIP):  # gzip may have several members
                    self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def _decompress(self, data: bytes) -> bytes:
        first, self._began = not self._began, True
        try:
            return self._inflate.decompress(data, PIECE)
        except zlib.error:
            if not first or data.startswith(_GZIP):
                raise
            # Some servers send deflate without the head that the standard asks for.
            self._inflate = zlib.decompressobj(_RAW)
            return self._inflate.decompress(data, PIECE)

    def end(self) -> None:
        """Note the end of the answer.

        Raises:
            BrokenAnswer: it is not whole.
        """
        if self._began and not self._inflate.eof:
            raise BrokenAnswer("the compressed answer is cut")


class Skipper(Unpacker):
    """Gives nothing of an answer that cannot be read."""

    def feed(self, data: bytes) -> Iterator[bytes]:  # noqa: ARG002
        """Take bytes."""
        return iter(())


def unpacker_for(response: httpx.Response) -> Unpacker | None:
    """Return what decompresses an answer; None where it is not compressed.

    Raises:
        UnknownEncoding: it is compressed in another way than gzip or deflate, and no refusal, which says enough by its
            status.
    """
    # httpx would decode all headers to find this one, for each answer.
    found = [value for name, value in response.headers.raw if name.lower() == b"content-encoding"]
    encoding = b", ".join(found).decode("latin-1").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return Unpacker()
    if not response.is_success:
        return Skipper()
    raise UnknownEncoding(encoding[:30])
