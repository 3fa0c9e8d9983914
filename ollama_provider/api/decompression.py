"""Decompression of answers. We request no compression, but some proxies compress everything. No network, no clock."""

import zlib
from collections.abc import Iterator

import httpx

#: Bytes returned at a time. Compressed data may expand a thousandfold, which must not fill the memory at once.
PIECE = 64 * 1024

_GZIP, _RAW = b"\x1f\x8b", -zlib.MAX_WBITS


class BrokenAnswer(httpx.ReadError):
    """An answer that began as HTTP and has a damaged header, chunk, length or compression."""


class UnknownEncoding(httpx.DecodingError):
    """An answer with a compression that is not supported; the text is its name."""


class Decompressor:
    """Decompresses one answer: gzip or deflate."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its head says
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next bytes, and yield the result in pieces.

        Raises:
            BrokenAnswer: the bytes are damaged or not compressed.
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
            # Some servers send deflate without the header that the standard requires.
            self._inflate = zlib.decompressobj(_RAW)
            return self._inflate.decompress(data, PIECE)

    def end(self) -> None:
        """Check that the compressed data ended with the answer.

        Raises:
            BrokenAnswer: the data is not complete.
        """
        if self._began and not self._inflate.eof:
            raise BrokenAnswer("the compressed answer is cut")


class Discarder(Decompressor):
    """Yields nothing: for a refusal whose body cannot be read."""

    def feed(self, data: bytes) -> Iterator[bytes]:  # noqa: ARG002
        """Discard the bytes."""
        return iter(())


def decompressor_for(response: httpx.Response) -> Decompressor | None:
    """Return a decompressor for an answer; None if it is not compressed.

    Raises:
        UnknownEncoding: it is compressed otherwise than by gzip or deflate, and its status is a success. The status of
            a refusal says enough without its body.
    """
    # httpx would decode all headers to find this one, for each answer.
    found = [value for name, value in response.headers.raw if name.lower() == b"content-encoding"]
    encoding = b", ".join(found).decode("latin-1").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return Decompressor()
    if not response.is_success:
        return Discarder()
    raise UnknownEncoding(encoding[:30])
