"""A simple tokeniser: about one token per word, the same on every machine. The tokens joined are the text."""

import re
import zlib

_TOKEN = re.compile(r"<\|\w+\|>|\s*\w{1,8}|\s*[^\w\s]|\s+")
_VOCABULARY = 32_000


def tokenise(text: str) -> list[str]:
    """Split *text*; blanks belong to the token after them."""
    return _TOKEN.findall(text)


def token_ids(tokens: list[str]) -> list[int]:
    """A number for each token, for the `context` of a reply. Equal tokens have equal numbers."""
    crc = zlib.crc32
    return [crc(token.encode("utf-8", "replace")) % _VOCABULARY for token in tokens]
